//! What is known to differ between the daemon of Debian, 4.17, and what the store follows, 4.22.
//!
//! Quotas are set so that both allow the same. Requests whose answers differ in a known way are
//! asked all the same, and the daemon's answer is translated. What cannot be compared is left out
//! by the generator, which says why.

use std::collections::{BTreeMap, HashSet};

use xs_proto::{ErrorCode, Message, Op};

use super::step::{Answer, Ask, Step};

/// Whose way of counting quotas is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limits {
    Daemon,
    Store,
}

/// Quotas of the daemon: name, usual limit, the store's name, and by how much the store's limit
/// must differ to allow the same. Since 4.22 reaching a limit is too much; before that it was not,
/// for watches and transactions not even one more. The header of a node was 8 bytes larger.
const QUOTAS: [(&str, u32, &str, i32); 8] = [
    ("nodes", 1000, "nodes", 0),
    ("watches", 128, "watches", 2),
    ("transactions", 10, "transactions", 2),
    ("outstanding", 20, "outstanding", 0),
    ("transaction-nodes", 1024, "transaction-nodes", 0),
    ("permissions", 5, "node-permissions", 1),
    ("path-max", 2048, "path-max", 1),
    ("node-size", 2048, "node-size", -8),
];

/// The limits that a sequence begins with.
pub(super) fn usual_limits() -> impl Iterator<Item = (&'static str, u32)> {
    QUOTAS.into_iter().map(|(name, limit, ..)| (name, limit))
}

impl Limits {
    /// A request that sets one of the daemon's quotas, as this server has to be asked.
    pub(super) fn translate(self, ask: &Ask) -> Ask {
        let text = str::from_utf8(&ask.payload).unwrap_or_default();
        let quota =
            text.strip_prefix("quota\0set\0").and_then(|rest| rest.strip_suffix('\0')?.split_once('\0'));
        let set = quota.and_then(|(name, limit)| {
            let (_, _, its_name, shift) = QUOTAS.into_iter().find(|(known, ..)| *known == name)?;
            Some((its_name, limit.parse::<u32>().ok()?.saturating_add_signed(shift)))
        });
        match set {
            Some((name, limit)) if self == Self::Store && ask.op == Op::CONTROL => {
                Ask { payload: format!("quota\0set\0{name}\0{limit}\0").into(), ..ask.clone() }
            }
            _ => ask.clone(),
        }
    }
}

/// Makes answers alike that differ only as is known.
pub(super) fn reconcile(step: &Step, daemon: &mut Answer, store: &mut Answer) {
    // 4.17 ends a domain before it answers or after, depending on where its connection is in a list.
    let ends = matches!(step, Step::Send { asks, .. } if asks.iter().any(|ask| ask.op == Op::RELEASE));
    for answer in [&mut *daemon, &mut *store] {
        merge(step, answer);
        // Between connections there is no order.
        answer.received.sort_by_key(|(conn, message)| (*conn, ends && is_event(message)));
    }
    let (conn, asks) = match step {
        Step::Send { conn, asks } => (conn, asks),
        Step::ReadAll => {
            for ((_, theirs), (_, ours)) in daemon.received.iter().zip(&mut store.received) {
                if is_known_text(theirs, ours) {
                    ours.clone_from(theirs);
                }
            }
            return;
        }
        _ => return,
    };
    let replies = |answer: &Answer| -> Vec<usize> {
        let of_conn = |(_, (at, message)): &(usize, &(usize, Message))| at == conn && !is_event(message);
        answer.received.iter().enumerate().filter(of_conn).map(|(place, _)| place).collect()
    };
    let (daemons, stores) = (replies(daemon), replies(store));
    let mut silent = Vec::new();
    for (ask, (at, to)) in asks.iter().zip(daemons.into_iter().zip(stores)) {
        let (theirs, ours) = (&daemon.received[at].1, &mut store.received[to].1);
        if is_known(ask, theirs, ours) {
            ours.clone_from(theirs);
        }
        // Since 4.18 the change of the permissions of a special path is told.
        if is_special(ask) && ask.op == Op::SET_PERMS && ours.op == Op::SET_PERMS {
            silent.extend(ask.strings().next());
        }
    }
    for answer in [daemon, store] {
        answer.received.retain(|(_, message)| {
            let path = message.payload.split(|byte| *byte == 0).next();
            !is_event(message) || !path.is_some_and(|path| silent.contains(&path))
        });
    }
}

/// Whether the answers to a request may differ so.
fn is_known(ask: &Ask, daemon: &Message, store: &Message) -> bool {
    let refusals = |theirs: ErrorCode, ours: ErrorCode| {
        let is = |message: &Message, code: ErrorCode| {
            message.op == Op::ERROR && message.payload.strip_suffix(b"\0") == Some(code.as_bytes())
        };
        is(daemon, theirs) && is(store, ours)
    };
    match ask.op {
        // Since 4.22 all quotas are answered in one way.
        Op::WATCH => refusals(ErrorCode::E2BIG, ErrorCode::ENOSPC),
        // Since 4.18 the path is looked at.
        Op::UNWATCH => refusals(ErrorCode::ENOENT, ErrorCode::EINVAL),
        // The store reads the whole request before it looks at who is named in it, and counts.
        Op::SET_PERMS => {
            refusals(ErrorCode::ENOSPC, ErrorCode::EINVAL) || refusals(ErrorCode::ENOENT, ErrorCode::EINVAL)
        }
        // 4.17 tells domains that it does not know from those that are not introduced.
        Op::RELEASE | Op::RESUME | Op::SET_TARGET => refusals(ErrorCode::EINVAL, ErrorCode::ENOENT),
        // Texts are each server's own, and so is the size of things in memory. The store prints nothing
        // to a log that nobody keeps.
        Op::CONTROL => {
            let print = &ask.payload[..] == b"print\0hello\0" && daemon.op == Op::CONTROL;
            (print && store.op == Op::ERROR) || is_known_text(daemon, store)
        }
        _ => false,
    }
}

fn is_known_text(daemon: &Message, store: &Message) -> bool {
    let theirs = counts(&daemon.payload);
    daemon.op == Op::CONTROL && store.op == Op::CONTROL && theirs == counts(&store.payload)
}

/// What a text says that a guest uses.
fn counts(text: &[u8]) -> BTreeMap<&str, &str> {
    let mut lines = str::from_utf8(text).unwrap_or_default().lines();
    let of_guest = lines.next().is_some_and(|line| line.starts_with("Domain ") && line != "Domain 0:");
    let rows = lines.filter(|_| of_guest).filter_map(|line| line.split_once(':'));
    let rows = rows.map(|(name, count)| (name.trim(), count.trim()));
    rows.filter(|(name, _)| ["nodes", "watches", "transactions"].contains(name)).collect()
}

fn is_special(ask: &Ask) -> bool {
    ask.payload.first() == Some(&b'@')
}

fn is_event(message: &Message) -> bool {
    message.op == Op::WATCH_EVENT
}

/// An event is left out while the same one is waiting to be sent, and how long that takes is
/// chance. The first is certain. Events of special paths are never left out; but if the daemon
/// learns at once that a domain is down and another has ended, it tells one or both.
fn merge(step: &Step, answer: &mut Answer) {
    let mut seen = HashSet::new();
    answer.received.retain(|(conn, message)| {
        let is_special = message.payload.first() == Some(&b'@') && !matches!(step, Step::Domain(..));
        !is_event(message) || is_special || seen.insert((*conn, message.payload.clone()))
    });
}
