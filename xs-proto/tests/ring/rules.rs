//! The rules of the page, one by one.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use bytes::BytesMut;
use xs_proto::Features;
use xs_proto::ring::{ClientEnd, Mapping, PAGE_SIZE, Page, RING_SIZE, RingError, RingFault, ServerEnd};

use crate::end::End;

fn received(end: &mut impl End) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    end.receive(&mut bytes, usize::MAX).unwrap();
    bytes.to_vec()
}

#[test]
fn all_of_a_ring_is_used_and_no_more() {
    let page = Page::new();
    let mut server = ServerEnd::new(&page, Features::NONE);
    let mut client = ClientEnd::attach(&page).unwrap();
    let bytes: Vec<u8> = (0..2000_u32).map(|byte| byte as u8).collect();
    assert_eq!(client.send(&bytes).unwrap(), 1024);
    assert!(!client.has_room().unwrap());
    assert_eq!(client.send(b"more").unwrap(), 0);
    assert_eq!(received(&mut server), bytes[..1024]);
    assert!(client.has_room().unwrap());
    assert!(!server.has_input().unwrap());
}

#[test]
fn what_has_no_place_in_the_buffer_stays_in_the_ring() {
    let page = Page::new();
    let mut server = ServerEnd::new(&page, Features::NONE);
    let mut client = ClientEnd::attach(&page).unwrap();
    client.send(b"abcdef").unwrap();
    let mut small = [0; 4];
    assert_eq!(server.receive(&mut &mut small[..], 100).unwrap(), 4);
    assert_eq!(&small, b"abcd");
    assert_eq!(received(&mut server), b"ef");
}

#[test]
fn a_notification_is_owed_for_what_was_moved() {
    fn moves(one: &mut impl End, other: &mut impl End) {
        assert!(!one.take_notify() && !other.take_notify());
        one.send(b"").unwrap();
        assert_eq!(received(other), b"");
        assert!(!one.take_notify() && !other.take_notify());
        one.send(b"a").unwrap();
        one.send(b"b").unwrap();
        assert!(one.take_notify() && !one.take_notify());
        assert_eq!(received(other), b"ab");
        assert!(other.take_notify() && !other.take_notify());
    }
    let page = Page::new();
    let mut server = ServerEnd::new(&page, Features::NONE);
    let mut client = ClientEnd::attach(&page).unwrap();
    moves(&mut client, &mut server);
    moves(&mut server, &mut client);
}

#[test]
fn a_server_begins_with_a_clean_page() {
    let page = Page::new();
    for field in [&page.req_cons, &page.req_prod, &page.rsp_cons, &page.rsp_prod, &page.error] {
        field.store(12345, SeqCst);
    }
    let mut server = ServerEnd::new(&page, Features::ERROR | Features(1 << 31));
    for field in [&page.req_cons, &page.req_prod, &page.rsp_cons, &page.rsp_prod, &page.error] {
        assert_eq!(field.load(SeqCst), 0);
    }
    assert!(!server.take_notify());
    assert_eq!(page.server_features.load(SeqCst), 1 << 31 | 2);
    assert_eq!(ClientEnd::attach(&page).unwrap().server_features(), server.features());
    // What the guest makes of the copy in its page is nothing to the server.
    page.server_features.store(0, SeqCst);
    assert_eq!(server.features(), Features::ERROR | Features(1 << 31));
}

#[test]
fn a_guest_waits_for_its_server() {
    let page = Page::new();
    page.connection.store(1, SeqCst);
    page.rsp_prod.store(5000, SeqCst);
    page.error.store(2, SeqCst);
    let mut client = ClientEnd::attach(&page).unwrap();
    assert!(!client.is_connected().unwrap());
    assert_eq!(client.send(b"x").unwrap(), 0);
    assert_eq!(received(&mut client), b"");
    assert!(!client.has_input().unwrap() && !client.has_room().unwrap());
    let mut server = ServerEnd::new(&page, Features::NONE);
    assert!(server.take_notify());
    assert!(client.is_connected().unwrap());
    assert_eq!(client.send(b"x").unwrap(), 1);
    assert_eq!(received(&mut server), b"x");
}

#[test]
fn a_guest_does_not_attach_to_impossible_indexes() {
    let attached = |field: fn(&Page) -> &AtomicU32, value| {
        let page = Page::new();
        field(&page).store(value, SeqCst);
        ClientEnd::attach(&page).map(|_| ())
    };
    let bad = |index, found, own| Err(RingError::BadIndex { index, found, own });
    assert_eq!(attached(|page| &page.req_prod, 1024), Ok(()));
    assert_eq!(attached(|page| &page.req_prod, 1025), bad("req_cons", 0, 1025));
    assert_eq!(attached(|page| &page.rsp_prod, 1025), bad("rsp_prod", 1025, 0));
    assert_eq!(attached(|page| &page.rsp_cons, 1), bad("rsp_prod", 0, 1));
}

/// A broken rule: the field to change, what to add to it, and the end that breaks it.
fn broken_by_guest(field: fn(&Page) -> &AtomicU32, add: u32, touch: fn(&mut ServerEnd<&Page>)) -> RingError {
    let page = Page::new();
    let mut server = ServerEnd::new(&page, Features::ERROR);
    let mut client = ClientEnd::attach(&page).unwrap();
    client.send(&[1; 100]).unwrap();
    server.send(&[2; 100]).unwrap();
    assert_eq!(received(&mut client).len(), 100);
    assert!(server.has_room().unwrap() && server.has_input().unwrap());
    server.take_notify();
    field(&page).fetch_add(add, SeqCst);
    touch(&mut server);
    assert_eq!(page.error.load(SeqCst), 2);
    assert!(server.take_notify());
    // It stays so, whatever the guest mends.
    let error = server.send(b"x").unwrap_err();
    field(&page).fetch_sub(add, SeqCst);
    page.error.store(0, SeqCst);
    assert_eq!(server.send(b"x"), Err(error));
    assert_eq!(server.receive(&mut BytesMut::new(), 9), Err(error));
    assert_eq!(server.has_input(), Err(error));
    assert_eq!(server.has_room(), Err(error));
    server.fail(RingFault::PROTO);
    assert_eq!(page.error.load(SeqCst), 0);
    assert!(!server.take_notify());
    error
}

#[test]
fn a_server_finds_every_index_that_cannot_be() {
    let receive: fn(&mut ServerEnd<&Page>) = |server| {
        assert!(server.receive(&mut BytesMut::new(), 10_000).is_err());
    };
    let has_input: fn(&mut ServerEnd<&Page>) = |server| assert!(server.has_input().is_err());
    let send: fn(&mut ServerEnd<&Page>) = |server| assert!(server.send(b"x").is_err());
    let has_room: fn(&mut ServerEnd<&Page>) = |server| assert!(server.has_room().is_err());
    for touch in [receive, has_input] {
        let bad = |found| RingError::BadIndex { index: "req_prod", found, own: 0 };
        // More than the ring holds, and less than there was.
        assert_eq!(broken_by_guest(|page| &page.req_prod, 1025 - 100, touch), bad(1025));
        assert_eq!(broken_by_guest(|page| &page.req_prod, u32::MAX, touch), bad(99));
    }
    for touch in [send, has_room] {
        let bad = |found| RingError::BadIndex { index: "rsp_cons", found, own: 100 };
        assert_eq!(broken_by_guest(|page| &page.rsp_cons, 1, touch), bad(101));
        assert_eq!(broken_by_guest(|page| &page.rsp_cons, u32::MAX, touch), bad(99));
    }
    for touch in [receive, has_input, send, has_room] {
        let own = |index, found, own| RingError::OwnIndex { index, found, own };
        assert_eq!(broken_by_guest(|page| &page.rsp_prod, 3, touch), own("rsp_prod", 103, 100));
        assert_eq!(broken_by_guest(|page| &page.req_cons, 3, touch), own("req_cons", 3, 0));
    }
}

#[test]
fn a_guest_that_was_introduced_again_attaches_again() {
    let page = Page::new();
    let _ = ServerEnd::new(&page, Features::NONE);
    let mut client = ClientEnd::attach(&page).unwrap();
    client.send(b"lost").unwrap();
    let mut server = ServerEnd::new(&page, Features::NONE);
    let error = RingError::OwnIndex { index: "req_prod", found: 0, own: 4 };
    assert_eq!(client.send(b"more"), Err(error));
    assert_eq!(client.is_connected(), Err(error));
    let mut client = ClientEnd::attach(&page).unwrap();
    client.send(b"anew").unwrap();
    assert_eq!(received(&mut server), b"anew");
}

#[test]
fn a_guest_that_is_given_up_learns_why() {
    let page = Page::new();
    let mut server = ServerEnd::new(&page, Features::ERROR);
    let mut client = ClientEnd::attach(&page).unwrap();
    server.send(b"the last reply").unwrap();
    server.fail(RingFault::PROTO);
    assert!(server.take_notify());
    assert_eq!(page.error.load(SeqCst), 3);
    let error = RingError::Fault(RingFault::PROTO);
    assert_eq!(server.send(b"x"), Err(error));
    // The guest still gets what was sent before.
    assert_eq!(client.send(b"x"), Err(error));
    assert_eq!(client.has_room(), Err(error));
    assert!(client.has_input().unwrap());
    assert_eq!(client.receive(&mut BytesMut::new(), 0), Ok(0));
    assert_eq!(received(&mut client), b"the last reply");
    assert_eq!(client.receive(&mut BytesMut::new(), 99), Err(error));
    assert_eq!(client.has_input(), Err(error));
    page.error.store(4711, SeqCst);
    assert_eq!(client.has_input(), Err(RingError::Fault(RingFault(4711))));
}

#[test]
fn a_guest_begins_anew() {
    let page = Page::new();
    let mut server = ServerEnd::new(&page, Features::RECONNECT);
    let mut client = ClientEnd::attach(&page).unwrap();
    assert!(!server.wants_reconnect());
    client.send(b"half a mess").unwrap();
    server.send(b"an old reply").unwrap();
    client.take_notify();
    server.take_notify();

    assert!(client.reconnect());
    assert!(client.take_notify());
    assert_eq!(page.connection.load(SeqCst), 1);
    assert!(!client.is_connected().unwrap());
    assert_eq!(client.send(b"too early").unwrap(), 0);
    assert_eq!(received(&mut client), b"");

    assert!(server.wants_reconnect());
    server.reconnect();
    assert!(server.take_notify());
    assert!(!server.wants_reconnect());
    assert_eq!(page.connection.load(SeqCst), 0);
    assert!(page.req.iter().chain(&page.rsp).all(|byte| byte.load(SeqCst) == 0xff));
    assert!(client.is_connected().unwrap());
    assert_eq!((received(&mut server), received(&mut client)), (vec![], vec![]));
    client.send(b"anew").unwrap();
    server.send(b"yes").unwrap();
    assert_eq!((received(&mut server), received(&mut client)), (b"anew".to_vec(), b"yes".to_vec()));
}

#[test]
fn a_dead_guest_end_lives_again_by_reconnecting() {
    let page = Page::new();
    let mut server = ServerEnd::new(&page, Features::RECONNECT);
    let mut client = ClientEnd::attach(&page).unwrap();
    page.rsp_prod.store(9999, SeqCst);
    assert!(client.has_input().is_err());
    page.rsp_prod.store(0, SeqCst);
    assert!(client.has_input().is_err());
    assert!(client.reconnect());
    server.reconnect();
    assert_eq!(client.has_input(), Ok(false));
    assert_eq!(client.send(b"x"), Ok(1));
}

#[test]
fn who_may_not_begin_anew_does_not() {
    let page = Page::new();
    let mut server = ServerEnd::new(&page, Features::ERROR);
    let mut client = ClientEnd::attach(&page).unwrap();
    assert!(!client.reconnect());
    assert!(!client.take_notify());
    assert_eq!(client.send(b"x").unwrap(), 1);
    // The guest only believes that it is offered.
    page.server_features.store(1, SeqCst);
    assert!(client.reconnect());
    assert!(!server.wants_reconnect());
    assert_eq!(received(&mut server), b"x");

    let page = Page::new();
    let mut server = ServerEnd::new(&page, Features::RECONNECT);
    let mut client = ClientEnd::attach(&page).unwrap();
    server.fail(RingFault::PROTO);
    assert!(client.reconnect());
    assert!(!server.wants_reconnect());
}

#[test]
fn a_mapped_file_is_shared() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(PAGE_SIZE as u64).unwrap();
    let mut server = ServerEnd::new(Mapping::new(&file).unwrap(), Features::NONE);
    let mut client = ClientEnd::attach(Mapping::new(&file).unwrap()).unwrap();
    drop(file);
    assert_eq!(client.send(&[7; 3 * RING_SIZE]).unwrap(), RING_SIZE);
    assert_eq!(received(&mut server), [7; RING_SIZE]);
}

#[test]
fn a_file_that_is_too_short_is_not_mapped() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(PAGE_SIZE as u64 - 1).unwrap();
    let error = Mapping::new(&file).unwrap_err();
    assert_eq!(error.to_string(), "a ring page needs 4096 bytes, and the file has 4095");
}
