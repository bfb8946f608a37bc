//! Commands to the store.

use std::fmt;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use xs_proto::{DomId, Op};

use crate::peer::{Peer, store};

#[tokio::test]
async fn commands_are_refused_as_the_daemon_does() {
    let (_store, mut a) = store();
    for command in [
        "",
        "|",
        "none|",
        "check",
        "check|x|",
        "help|x|",
        "print|",
        "log|",
        "log||",
        "logfile|",
        "memreport|",
        "live-update|",
        // Nobody keeps a log here.
        "log|on|",
        "print|hello|",
        "quota|set|",
        "quota|set|nodes|",
        "quota|set|nodes|x|",
        "quota|set|nodes|-1|",
        "quota|set|nodes|0|",
        "quota|set|nodes|1|x|",
        "quota|set|none|1|",
        "quota|set|soft-memory|1|",
        "quota|x|",
        "quota-soft|set|nodes|1|",
    ] {
        assert_eq!(a.ask(Op::CONTROL, command).await, "!EINVAL", "{command}");
    }
    assert_eq!(a.ask(Op::CONTROL, "quota|9|").await, "!ENOENT");
    for command in ["check|", "log|off|", "quota|set|nodes|1000|"] {
        a.ok(Op::CONTROL, command).await;
    }
    let help = a.ask(Op::CONTROL, "help|").await;
    assert!(["check", "print", "quota", "quota-soft"].iter().all(|command| help.contains(command)));
}

#[tokio::test]
async fn quotas_are_shown_and_set() {
    let (_store, mut a) = store();
    let names = a.ask(Op::GET_QUOTA, "").await;
    let expected = "nodes watches transactions outstanding transaction-nodes memory soft-memory \
                    node-permissions path-max node-size|";
    assert_eq!(names, expected);
    a.ok(Op::CONTROL, "quota|set|memory|12345|").await;
    a.ok(Op::CONTROL, "quota-soft|set|memory|1234|").await;
    assert_eq!(a.ask(Op::GET_QUOTA, "memory|").await, "12345|");
    assert_eq!(a.ask(Op::GET_QUOTA, "soft-memory|").await, "1234|");
    assert!(a.ask(Op::CONTROL, "quota|").await.contains("\nmemory           :    12345\n"));
    assert_eq!(a.ask(Op::CONTROL, "quota-soft|").await, "Quota settings:\nsoft-memory      :     1234\n|");
}

#[tokio::test]
async fn what_a_domain_uses_is_shown() {
    let (store, mut a) = store();
    store.introduce(DomId(7));
    let mut guest = Peer::of(&store, 7);
    a.ok(Op::MKDIR, "/x|").await;
    a.ok(Op::SET_PERMS, "/x|n7|").await;
    guest.ok(Op::WATCH, "/x|t|").await;
    guest.ok(Op::MKDIR, "/x/y|").await;
    guest.start().await;
    // 16 bytes, 8 for each permission, the path, and the name with its NUL; path and token.
    let memory = (24 + 2 + 2) + (24 + 4 + 2) + (2 + 1);
    let counts = [("nodes", 2), ("watches", 1), ("transactions", 1), ("outstanding", 0), ("memory", memory)];
    let rows = counts.map(|(name, count)| format!("{name:<17}: {count:>8}\n"));
    assert_eq!(a.ask(Op::CONTROL, "quota|7|").await, format!("Domain 7:\n{}|", rows.concat()));
    store.release(DomId(7));
    assert_eq!(a.ask(Op::CONTROL, "quota|7|").await, "!ENOENT");
    a.ok(Op::CONTROL, "check|").await;
}

#[tokio::test]
async fn the_most_that_any_guest_used_is_kept() {
    let (store, mut a) = store();
    let mut guest = Peer::of(&store, 7);
    for path in ["a", "b", "c"] {
        guest.ok(Op::WATCH, &format!("{path}|t|")).await;
    }
    guest.ok(Op::RESET_WATCHES, "|").await;
    assert!(a.ask(Op::CONTROL, "quota|max|").await.contains("watches          :        3\n"));
    a.ok(Op::CONTROL, "quota|max|-r|").await;
    assert!(a.ask(Op::CONTROL, "quota|max|").await.contains("watches          :        0\n"));
}

/// A log of whatever is said.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl Visit for Log {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.lock().unwrap().push_str(&format!("{field}={value:?} "));
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[tokio::test]
async fn what_is_asked_to_be_logged_is_in_the_log() {
    let log = Log::default();
    // For all threads: of one for this thread, `tracing` takes what another finds first for the answer of all.
    tracing::subscriber::set_global_default(log.clone()).unwrap();
    let (_store, mut a) = store();
    a.ok(Op::CONTROL, "print|hello|").await;
    a.ok(Op::CONTROL, "log|on|").await;
    a.ok(Op::WRITE, "/x|v").await;
    let said = log.0.lock().unwrap().clone();
    assert!(said.contains("hello") && said.contains("payload=/x\\x00v"), "{said}");
}
