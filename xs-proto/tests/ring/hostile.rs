//! A peer that writes anything anywhere in the page, at any time.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;

use bytes::BytesMut;
use proptest::collection::vec;
use proptest::prelude::*;
use xs_proto::Features;
use xs_proto::ring::{ClientEnd, Page, RING_SIZE, RingError, RingFault, ServerEnd};

use crate::end::End;

fn fields(page: &Page) -> [&AtomicU32; 8] {
    [
        &page.req_cons,
        &page.req_prod,
        &page.rsp_cons,
        &page.rsp_prod,
        &page.server_features,
        &page.connection,
        &page.error,
        &page.evtchn_port,
    ]
}

#[derive(Clone, Copy, Debug)]
enum Deed {
    Send(usize),
    Receive(usize),
    Look,
    Reconnect,
    /// The server gives up. A client cannot.
    Fail,
    /// The peer sets a field, or moves it.
    Set(usize, u32),
    Add(usize, u32),
}

fn deed() -> impl Strategy<Value = Deed> {
    let size = || prop_oneof![0..3_usize, 0..3000_usize, Just(usize::MAX)];
    let number =
        || prop_oneof![0..3_u32, 0..1100_u32, (u32::MAX - 1100)..=u32::MAX, any::<u32>(), 1020..1030_u32];
    prop_oneof![
        4 => (0..3000_usize).prop_map(Deed::Send),
        4 => size().prop_map(Deed::Receive),
        2 => Just(Deed::Look),
        1 => Just(Deed::Reconnect),
        1 => Just(Deed::Fail),
        2 => (0..8_usize, number()).prop_map(|(field, value)| Deed::Set(field, value)),
        // The indexes, mostly by as much as is allowed.
        6 => (0..4_usize, 0..600_u32).prop_map(|(field, value)| Deed::Add(field, value)),
    ]
}

/// Does something with an end, and checks that no more is moved than was asked for.
fn act(end: &mut impl End, deed: Deed) -> Result<(), RingError> {
    match deed {
        Deed::Send(len) => {
            let bytes = [9; 3000];
            assert!(end.send(&bytes[..len])? <= len.min(RING_SIZE));
        }
        Deed::Receive(max) => {
            let mut into = BytesMut::from(&b"before"[..]);
            let received = end.receive(&mut into, max)?;
            assert!(received <= max.min(RING_SIZE));
            assert_eq!(into.len(), 6 + received);
            assert!(into.starts_with(b"before"));
        }
        Deed::Look => {
            end.has_input()?;
            end.has_room()?;
        }
        Deed::Reconnect | Deed::Fail | Deed::Set(..) | Deed::Add(..) => unreachable!("not of all ends"),
    }
    Ok(())
}

fn break_in(page: &Page, deed: Deed) {
    match deed {
        Deed::Set(field, value) => fields(page)[field].store(value, SeqCst),
        Deed::Add(field, value) => drop(fields(page)[field].fetch_add(value, SeqCst)),
        _ => unreachable!("not of the peer"),
    }
}

proptest! {
    #[test]
    fn a_server_takes_anything(deeds in vec(deed(), 0..100)) {
        let page = Page::new();
        let mut server = ServerEnd::new(&page, Features::RECONNECT);
        let mut dead = None;
        for deed in deeds {
            let before = fields(&page).map(|field| field.load(SeqCst));
            match deed {
                Deed::Set(..) | Deed::Add(..) => {
                    break_in(&page, deed);
                    continue;
                }
                Deed::Reconnect => {
                    if server.wants_reconnect() {
                        prop_assert_eq!(dead, None);
                        server.reconnect();
                    }
                }
                Deed::Fail => {
                    server.fail(RingFault::PROTO);
                    dead = dead.or(Some(RingError::Fault(RingFault::PROTO)));
                }
                deed => match (act(&mut server, deed), dead) {
                    (Err(error), None) => {
                        prop_assert_eq!(page.error.load(SeqCst), 2);
                        dead = Some(error);
                        continue;
                    }
                    (result, Some(error)) => prop_assert_eq!(result, Err(error)),
                    (Ok(()), None) => {}
                },
            }
            if dead.is_some() && !matches!(deed, Deed::Fail) {
                prop_assert_eq!(fields(&page).map(|field| field.load(SeqCst)), before);
            }
        }
    }

    #[test]
    fn a_client_takes_anything(
        found in vec(any::<u32>(), 8), valid in any::<bool>(), deeds in vec(deed(), 0..100)
    ) {
        let page = Page::new();
        if !valid {
            for (field, value) in fields(&page).into_iter().zip(found) {
                field.store(value, SeqCst);
            }
        }
        let Ok(mut client) = ClientEnd::attach(&page) else {
            return Ok(());
        };
        let mut dead = None;
        for deed in deeds {
            match deed {
                Deed::Set(..) | Deed::Add(..) => break_in(&page, deed),
                Deed::Reconnect => {
                    if client.reconnect() {
                        dead = None;
                    }
                }
                Deed::Fail => {}
                deed => match (act(&mut client, deed), dead) {
                    (result, Some(error)) => prop_assert_eq!(result, Err(error)),
                    (Err(RingError::Fault(fault)), None) => prop_assert!(fault.0 != 0),
                    (Err(error), None) => dead = Some(error),
                    (Ok(()), None) => {}
                },
            }
        }
    }
}

/// The same while it happens, and not in between: another thread writes all over the page.
#[test]
fn a_page_may_change_at_any_moment() {
    let (page, done) = (&Page::new(), &AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut random = fastrand::Rng::with_seed(1);
            while !done.load(SeqCst) {
                // Never `error` or the features, so that the ends work for a while.
                let field = fields(page)[random.usize(0..4)];
                match random.u32(0..100) {
                    0 => field.store(random.u32(..), SeqCst),
                    1 => page.connection.store(random.u32(0..2), SeqCst),
                    _ => drop(field.fetch_add(random.u32(0..500), SeqCst)),
                }
                page.req[random.usize(0..RING_SIZE)].store(random.u8(..), SeqCst);
            }
        });
        let mut random = fastrand::Rng::with_seed(2);
        let mut moved = 0;
        for _ in 0..2000 {
            let mut server = ServerEnd::new(page, Features::RECONNECT);
            let mut client = ClientEnd::attach(page);
            for _ in 0..20 {
                let deed = match random.u32(0..3) {
                    0 => Deed::Send(random.usize(0..2000)),
                    1 => Deed::Receive(random.usize(0..2000)),
                    _ => Deed::Look,
                };
                moved += u32::from(act(&mut server, deed).is_ok());
                if server.wants_reconnect() {
                    server.reconnect();
                }
                if let Ok(client) = &mut client {
                    moved += u32::from(act(client, deed).is_ok());
                }
            }
        }
        done.store(true, SeqCst);
        assert!(moved > 0);
    });
}
