//! The watch registry of a connection: which local watchers a watch on the server serves.
//!
//! One server watch per path, however many local watchers. The token is ours and is never used
//! again on the connection, so an event that was under way when its watch was removed finds no
//! entry and is dropped, as the protocol asks of clients.

use std::collections::HashMap;

use xs_proto::{Path, Token};

/// A local watcher, unique for the life of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WatcherId(pub(crate) u64);

#[derive(Debug)]
struct ServerWatch {
    path: Path,
    /// Whether the server has confirmed it. Its initial event comes after that, and serves all
    /// who joined until then; who joins later needs one of our own.
    confirmed: bool,
    watchers: Vec<WatcherId>,
}

/// What adding a watcher asks of the connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Added {
    /// Send WATCH with this token.
    Register(u32),
    /// The server watch is there: tell the watcher that it has fired.
    Fire,
    /// WATCH is under way; its reply and its initial event will serve this watcher too.
    Wait(u32),
}

#[derive(Debug, Default)]
pub(crate) struct Watches {
    by_token: HashMap<u32, ServerWatch>,
    by_path: HashMap<Path, u32>,
    watcher_token: HashMap<WatcherId, u32>,
    last_token: u32,
}

pub(crate) fn token(number: u32) -> Token {
    // Hexadecimal digits hold no NUL.
    Token::new(format!("{number:x}")).unwrap_or_else(|_| unreachable!("hexadecimal digits hold no NUL"))
}

fn number(token: &Token) -> Option<u32> {
    u32::from_str_radix(std::str::from_utf8(token.as_bytes()).ok()?, 16).ok()
}

impl Watches {
    pub(crate) fn add(&mut self, path: &Path, watcher: WatcherId) -> Added {
        if let Some((&token, watch)) =
            self.by_path.get(path).and_then(|token| Some((token, self.by_token.get_mut(token)?)))
        {
            watch.watchers.push(watcher);
            self.watcher_token.insert(watcher, token);
            return if watch.confirmed { Added::Fire } else { Added::Wait(token) };
        }
        self.last_token += 1;
        let token = self.last_token;
        let watch = ServerWatch { path: path.clone(), confirmed: false, watchers: vec![watcher] };
        self.by_token.insert(token, watch);
        self.by_path.insert(path.clone(), token);
        self.watcher_token.insert(watcher, token);
        Added::Register(token)
    }

    /// Takes note of the server's OK.
    pub(crate) fn confirm(&mut self, token: u32) {
        if let Some(watch) = self.by_token.get_mut(&token) {
            watch.confirmed = true;
        }
    }

    /// Forgets a watch that the server refused.
    pub(crate) fn refuse(&mut self, token: u32) {
        if let Some(watch) = self.by_token.remove(&token) {
            self.by_path.remove(&watch.path);
            for watcher in &watch.watchers {
                self.watcher_token.remove(watcher);
            }
        }
    }

    /// Removes a watcher; the path and token to send in UNWATCH if it was the last of its watch.
    pub(crate) fn remove(&mut self, watcher: WatcherId) -> Option<(Path, Token)> {
        let number = self.watcher_token.remove(&watcher)?;
        let watch = self.by_token.get_mut(&number)?;
        watch.watchers.retain(|other| *other != watcher);
        if !watch.watchers.is_empty() {
            return None;
        }
        let watch = self.by_token.remove(&number)?;
        self.by_path.remove(&watch.path);
        Some((watch.path, token(number)))
    }

    /// The watchers that an event is for; none if its watch is gone.
    pub(crate) fn watchers(&self, token: &Token) -> &[WatcherId] {
        let watch = number(token).and_then(|number| self.by_token.get(&number));
        watch.map_or(&[], |watch| &watch.watchers)
    }

    /// How many watches the server has for it.
    pub(crate) fn len(&self) -> usize {
        self.by_token.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: WatcherId = WatcherId(1);
    const B: WatcherId = WatcherId(2);

    #[test]
    fn watchers_of_a_path_share_one_server_watch() {
        let path = Path::new("/a").unwrap();
        let mut watches = Watches::default();
        assert_eq!(watches.add(&path, A), Added::Register(1));
        assert_eq!(watches.add(&path, B), Added::Wait(1));
        watches.confirm(1);
        assert_eq!(watches.watchers(&token(1)), [A, B]);
        assert_eq!(watches.remove(A), None);
        assert_eq!(watches.remove(B), Some((path.clone(), token(1))));
        assert!(watches.watchers(&token(1)).is_empty(), "a late event finds nobody");
        assert_eq!(watches.add(&path, A), Added::Register(2), "a token is never used again");
    }

    #[test]
    fn who_joins_a_confirmed_watch_is_told_at_once() {
        let path = Path::new("/a").unwrap();
        let mut watches = Watches::default();
        watches.add(&path, A);
        watches.confirm(1);
        assert_eq!(watches.add(&path, B), Added::Fire);
    }

    #[test]
    fn a_refused_watch_leaves_nothing() {
        let path = Path::new("/a").unwrap();
        let mut watches = Watches::default();
        watches.add(&path, A);
        watches.refuse(1);
        assert_eq!(watches.remove(A), None);
        assert!(watches.len() == 0 && watches.by_path.is_empty() && watches.watcher_token.is_empty());
    }

    #[test]
    fn foreign_tokens_find_nobody() {
        let mut watches = Watches::default();
        watches.add(&Path::root(), A);
        for text in ["", "2", "zz", "\u{ff}"] {
            assert!(watches.watchers(&Token::new(text.to_owned()).unwrap()).is_empty());
        }
    }
}
