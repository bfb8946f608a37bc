//! Debian's daemons under the stand-in hypervisor.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use lab::daemon::{Daemon, DaemonKind};
use lab::fakexen::Ring;
use xs_proto::{DomId, HEADER_LEN, Header, Op, Path, Request, TxId};

/// Asks as a guest does, and returns the operation and payload of the reply.
fn ask(ring: &mut Ring, request: &Request) -> (Op, Vec<u8>) {
    let mut bytes = BytesMut::new();
    request.encode(1, TxId::NONE, &mut bytes).unwrap();
    assert_eq!(ring.send(&bytes).unwrap(), bytes.len());
    let mut reply = BytesMut::new();
    let begun = Instant::now();
    loop {
        ring.receive(&mut reply).unwrap();
        if let Some(head) = reply.first_chunk::<HEADER_LEN>() {
            let header = Header::decode(head);
            if reply.len() == HEADER_LEN + header.len as usize {
                return (header.op, reply[HEADER_LEN..].to_vec());
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "no reply but {reply:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn serves_guests(kind: DaemonKind) {
    let daemon = Daemon::start(kind).unwrap();
    daemon.create_domain(DomId(3)).unwrap();
    let mut ring = daemon.hypervisor().ring(DomId(3)).unwrap();
    let home = ask(&mut ring, &Request::GetDomainPath(DomId(3)));
    assert_eq!(home, (Op::GET_DOMAIN_PATH, b"/local/domain/3\0".to_vec()));
    let root = ask(&mut ring, &Request::Read(Path::root()));
    assert_eq!(root, (Op::ERROR, b"EACCES\0".to_vec()));
}

#[test]
fn xenstored_serves_guests() {
    serves_guests(DaemonKind::Xenstored);
}

#[test]
fn oxenstored_serves_guests() {
    serves_guests(DaemonKind::Oxenstored);
}

#[test]
fn daemons_are_apart_and_end_when_dropped() {
    let one = Daemon::start(DaemonKind::Xenstored).unwrap();
    let other = Daemon::start(DaemonKind::Xenstored).unwrap();
    let (socket, state) = (one.socket().to_owned(), one.state_dir().to_owned());
    assert!(UnixStream::connect(&socket).is_ok());
    drop(one);
    assert!(UnixStream::connect(&socket).is_err());
    assert!(!state.exists());
    assert!(UnixStream::connect(other.socket()).is_ok());
}
