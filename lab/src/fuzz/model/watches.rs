//! Watches, and who hears of what.

use xs_proto::{DomId, Message, Op, Path, Token, TxId};

use super::{Answer, Conn, ConnId, Model, Rights, ok};

#[derive(Debug)]
pub(super) struct Watch {
    /// As it was given, and as it was meant.
    path: String,
    absolute: String,
    token: Token,
    depth: Option<u32>,
}

/// For whom a change is: for watches on the path and above, or on just the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Above,
    Exact,
}

impl Watch {
    fn covers(&self, path: &str, scope: Scope) -> bool {
        if path == self.absolute {
            return true;
        }
        let below = match path.strip_prefix(&self.absolute) {
            Some(below) if self.absolute == "/" || below.starts_with('/') => below.trim_start_matches('/'),
            _ => return false,
        };
        let levels = below.split('/').count();
        scope == Scope::Above && self.depth.is_none_or(|depth| levels <= depth as usize)
    }

    /// A path as the watch's owner sees it.
    fn seen<'a>(&self, path: &'a str) -> &'a str {
        &path[self.absolute.len() - self.path.len()..]
    }
}

impl Conn {
    /// Sends an event, unless the same one is waiting.
    pub(super) fn send_once(&mut self, path: &str, token: &Token) {
        let event = event(path, token);
        if !self.output.contains(&event) {
            self.output.push_back(event);
        }
    }
}

fn event(path: &str, token: &Token) -> Message {
    let payload = [path.as_bytes(), b"\0", token.as_bytes(), b"\0"].concat().into();
    Message { op: Op::WATCH_EVENT, req_id: 0, tx_id: TxId::NONE, payload }
}

impl Model {
    pub(super) fn watch(&mut self, id: ConnId, path: &Path, token: &Token, depth: Option<u32>) -> Answer {
        let absolute = self.absolute(path);
        let watches = &self.conns[&id].watches;
        if watches.iter().any(|watch| watch.absolute == absolute && watch.token == *token) {
            return Err("EEXIST");
        }
        self.check("watches", watches.len() + 1)?;
        let (path, token) = (path.to_string(), token.clone());
        self.conn(id).watches.push(Watch { path, absolute, token, depth });
        ok()
    }

    pub(super) fn unwatch(&mut self, id: ConnId, path: &Path, token: &Token) -> Answer {
        let absolute = self.absolute(path);
        let watches = &mut self.conn(id).watches;
        let found = watches.iter().position(|watch| watch.absolute == absolute && watch.token == *token);
        watches.remove(found.ok_or("ENOENT")?);
        ok()
    }

    /// Tells of a change those who may read by one of these lists.
    pub(super) fn publish(&mut self, path: &str, scope: Scope, readers: &[Rights]) {
        let mut events = Vec::new();
        for (id, conn) in &self.conns {
            let may_hear = readers.iter().any(|rights| self.allowed(conn.caller, rights).read);
            let watches = conn.watches.iter().filter(|watch| may_hear && watch.covers(path, scope));
            events.extend(watches.map(|watch| (*id, watch.seen(path), watch.token.clone())));
        }
        for (id, path, token) in events {
            self.conn(id).send_once(path, &token);
        }
    }

    /// Tells of a domain that has come or gone: first those who want to know that one has, then
    /// those who want to know which. These events are never left out.
    pub(super) fn publish_special(&mut self, name: &'static str, domid: DomId) {
        let of_domain = &*format!("{name}/{domid}");
        let some = |watch: &Watch| watch.absolute == name && watch.depth.is_none();
        let which = |watch: &Watch| {
            watch.absolute == of_domain
                || (watch.absolute == name && watch.depth.is_some_and(|depth| depth > 0))
        };
        let mut events = Vec::new();
        for (path, wanted) in [(name, &some as &dyn Fn(&Watch) -> bool), (of_domain, &which)] {
            for (id, conn) in &self.conns {
                let may_hear = self.allowed(conn.caller, &self.special[name]).read;
                let watches = conn.watches.iter().filter(|watch| may_hear && wanted(watch));
                events.extend(watches.map(|watch| (*id, event(path, &watch.token))));
            }
        }
        for (id, event) in events {
            self.conn(id).output.push_back(event);
        }
    }
}
