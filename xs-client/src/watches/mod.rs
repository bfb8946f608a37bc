//! The watch registry of a connection: which local watchers a watch on the server serves.
//!
//! One watch on the server per path, however many local watchers; and where many paths have an
//! ancestor in common, one for all of them, as long as that pays ([`share`]). What it then tells is
//! told to the watchers at and above the changed node, and to those below it, which may be gone
//! with it.
//!
//! A token is not used again before 2^32 others, so an event that was under way when its watch was
//! removed finds no entry and is dropped, as the protocol asks of clients.

mod local;
mod share;
mod told;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use rustc_hash::FxHashMap;
use xs_proto::{Path, Token};

use crate::log::debug;
use crate::watcher::Watcher;
use local::Local;
use share::{SHARE_FROM, Trial, upwards};
pub(crate) use told::Told;

/// The token of nothing: the connection is lost.
const NONE: u32 = 0;

#[derive(Debug)]
struct ServerWatch {
    path: Path,
    depth: Option<u32>,
    /// Whether the server has confirmed it. Its initial event comes after that, and serves all
    /// who joined until then; who joins later needs one of our own.
    confirmed: bool,
    /// Whether it has had an event.
    heard: bool,
    serves: Serves,
}

#[derive(Debug)]
enum Serves {
    /// Watchers of just its path, who want to hear of as many levels.
    Path(Vec<Arc<Watcher>>),
    /// Those of paths below it.
    Below(Box<Below>),
}

#[derive(Debug, Default)]
struct Below {
    watchers: usize,
    trial: Trial,
    /// The watches that are to take its place, as far as they are neither confirmed nor refused.
    successors: Option<HashSet<u32>>,
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

/// A request that nobody waits for, and that has time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Todo {
    Watch(u32),
    Unwatch(Path, Token),
}

#[derive(Debug)]
pub(crate) struct Watches {
    local: Local,
    server: FxHashMap<u32, ServerWatch>,
    /// The watches of ancestors, by their path.
    shared: BTreeMap<Path, u32>,
    last_token: u32,
    /// With so many watches on the server, look whether some can be shared.
    share_from: usize,
    todo: VecDeque<Todo>,
    /// Those registered again that the server has not answered yet.
    restoring: HashSet<u32>,
    /// Distinct paths that a watcher keeps.
    backlog: usize,
    pub(crate) told: Told,
}

pub(crate) fn token(number: u32) -> Token {
    // Hexadecimal digits hold no NUL.
    Token::new(format!("{number:x}")).unwrap_or_else(|_| unreachable!("hexadecimal digits hold no NUL"))
}

fn number(token: &Token) -> Option<u32> {
    u32::from_str_radix(std::str::from_utf8(token.as_bytes()).ok()?, 16).ok()
}

impl Watches {
    pub(crate) fn new(backlog: usize) -> Self {
        Self {
            local: Local::default(),
            server: FxHashMap::default(),
            shared: BTreeMap::new(),
            last_token: NONE,
            share_from: SHARE_FROM,
            todo: VecDeque::new(),
            restoring: HashSet::new(),
            backlog,
            told: Told::default(),
        }
    }

    /// Whether watches of the connection to come may be replaced by one of an ancestor.
    pub(crate) fn may_share(&mut self, may: bool) {
        self.share_from = if may { SHARE_FROM } else { usize::MAX };
        self.shared.retain(|_, _| may);
    }

    /// How many watches the server has for it, or will have.
    pub(crate) fn len(&self) -> usize {
        self.server.len()
    }

    /// Whether nobody watches and nothing is left to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.local.is_empty() && self.todo.is_empty()
    }

    pub(crate) fn todo(&mut self) -> Option<Todo> {
        self.todo.pop_front()
    }

    /// What to ask of the server for a watch; `None` if it has it, or it is not wanted any more.
    pub(crate) fn wanted(&self, token: u32) -> Option<(&Path, Option<u32>)> {
        let watch = self.server.get(&token).filter(|watch| !watch.confirmed)?;
        Some((&watch.path, watch.depth))
    }

    fn serve(&mut self, path: &Path, depth: Option<u32>, serves: Serves) -> u32 {
        // After the last one come the first again, and some of them may still live.
        self.last_token = self.last_token.wrapping_add(1);
        while self.last_token == NONE || self.server.contains_key(&self.last_token) {
            self.last_token = self.last_token.wrapping_add(1);
        }
        let watch = ServerWatch { path: path.clone(), depth, confirmed: false, heard: false, serves };
        self.server.insert(self.last_token, watch);
        self.last_token
    }

    /// The watch of an ancestor that can serve a path.
    fn shared_above(&self, path: &Path) -> Option<u32> {
        if self.shared.is_empty() || path.is_special() {
            return None;
        }
        let tokens = upwards(path).skip(1).filter_map(|above| self.shared.get(above));
        tokens.copied().find(|token| match self.server.get(token) {
            Some(ServerWatch { confirmed, serves: Serves::Below(below), .. }) => {
                *confirmed && below.successors.is_none()
            }
            _ => false,
        })
    }

    fn below(&mut self, token: u32) -> Option<&mut Below> {
        match self.server.get_mut(&token) {
            Some(ServerWatch { serves: Serves::Below(below), .. }) => Some(below),
            _ => None,
        }
    }

    /// Adds a watcher to a watch of its path, or makes one.
    fn add_to_path(&mut self, watcher: &Arc<Watcher>) -> Added {
        let (path, depth) = (&watcher.path, watcher.depth());
        let is_same = |token: &u32| match self.server.get(token) {
            Some(watch) => watch.depth == depth && matches!(watch.serves, Serves::Path(_)),
            None => false,
        };
        let same = self.local.at(path).map(|watcher| watcher.token()).find(is_same);
        let (token, added) = if let Some(token) = same
            && let Some(watch) = self.server.get_mut(&token)
            && let Serves::Path(watchers) = &mut watch.serves
        {
            watchers.push(watcher.clone());
            (token, if watch.confirmed { Added::Fire } else { Added::Wait(token) })
        } else {
            let token = self.serve(path, depth, Serves::Path(vec![watcher.clone()]));
            (token, Added::Register(token))
        };
        watcher.set_token(token);
        added
    }

    pub(crate) fn add(&mut self, watcher: &Arc<Watcher>) -> Added {
        let added = if let Some(token) = self.shared_above(&watcher.path) {
            if let Some(below) = self.below(token) {
                below.watchers += 1;
            }
            watcher.set_token(token);
            Added::Fire
        } else {
            self.add_to_path(watcher)
        };
        self.local.insert(watcher.clone());
        added
    }

    /// Tells one watcher that its path has changed.
    pub(crate) fn fire(&mut self, watcher: &Watcher) {
        self.told.tell(watcher, &watcher.path, self.backlog);
    }

    /// Removes a watcher; the path and token to send in UNWATCH if it was the last of its watch.
    pub(crate) fn remove(&mut self, watcher: &Arc<Watcher>) -> Option<(Path, Token)> {
        if !self.local.remove(watcher) {
            return None;
        }
        let token = watcher.token();
        match &mut self.server.get_mut(&token)?.serves {
            Serves::Path(watchers) => {
                watchers.retain(|other| !Arc::ptr_eq(other, watcher));
                if !watchers.is_empty() {
                    return None;
                }
            }
            Serves::Below(below) => {
                below.watchers -= 1;
                if below.watchers > 0 || below.successors.is_some() {
                    return None;
                }
            }
        }
        self.settle(token);
        self.drop_watch(token)
    }

    fn drop_watch(&mut self, number: u32) -> Option<(Path, Token)> {
        self.restoring.remove(&number);
        let ServerWatch { path, serves, .. } = self.server.remove(&number)?;
        if matches!(serves, Serves::Below(_)) {
            self.shared.remove(&path);
        }
        Some((path, token(number)))
    }

    /// Takes note of the server's OK.
    pub(crate) fn confirm(&mut self, token: u32) {
        let Some(watch) = self.server.get_mut(&token) else { return };
        watch.confirmed = true;
        self.restoring.remove(&token);
        let path = watch.path.clone();
        if let Serves::Below(_) = watch.serves {
            return self.gather(token, &path);
        }
        self.settle(token);
        if let Some(shared) = self.shared_above(&path) {
            self.hand_over(token, shared);
        } else if self.server.len() >= self.share_from {
            self.share();
        }
    }

    /// Looks for ancestors that can take the place of many watches.
    fn share(&mut self) {
        let paths = self.server.values().filter_map(|watch| match watch.serves {
            Serves::Path(_) if !watch.path.is_special() => Some(&watch.path),
            _ => None,
        });
        let ancestors = share::ancestors(paths).into_iter().filter_map(|above| Path::new(above).ok());
        for path in ancestors.collect::<Vec<_>>() {
            if !self.shared.contains_key(&path) {
                debug!(%path, "one watch takes the place of those below it");
                self.serve_below(path, Box::default());
            }
        }
        // Looked at again only when there are many more, so that it costs little for each.
        self.share_from = SHARE_FROM.max(2 * self.server.len());
    }

    fn serve_below(&mut self, path: Path, below: Box<Below>) -> u32 {
        let token = self.serve(&path, None, Serves::Below(below));
        self.shared.insert(path, token);
        self.todo.push_back(Todo::Watch(token));
        token
    }

    /// The watch of an ancestor is there: it takes the place of those below it.
    fn gather(&mut self, shared: u32, path: &Path) {
        let tokens: BTreeSet<u32> = self.local.below(path).map(|watcher| watcher.token()).collect();
        for token in tokens {
            if self.server.get(&token).is_some_and(|watch| watch.confirmed && !watch.path.is_special()) {
                self.hand_over(token, shared);
            }
        }
        if self.below(shared).is_some_and(|below| below.watchers == 0)
            && let Some((path, token)) = self.drop_watch(shared)
        {
            self.todo.push_back(Todo::Unwatch(path, token));
        }
    }

    /// The watch of an ancestor takes the place of one.
    fn hand_over(&mut self, from: u32, shared: u32) {
        let Some(ServerWatch { serves: Serves::Path(watchers), heard, .. }) = self.server.get_mut(&from)
        else {
            return;
        };
        let (watchers, heard) = (std::mem::take(watchers), *heard);
        if let Some(below) = self.below(shared) {
            below.watchers += watchers.len();
        }
        for watcher in watchers {
            if !heard {
                // Its initial event will find nobody.
                self.fire(&watcher);
            }
            watcher.set_token(shared);
        }
        if let Some((path, token)) = self.drop_watch(from) {
            self.todo.push_back(Todo::Unwatch(path, token));
        }
    }

    /// Gives those whom an ancestor's watch serves watches of their own; returns these.
    fn split(&mut self, shared: u32) -> HashSet<u32> {
        let Some(ServerWatch { path, serves: Serves::Below(below), .. }) = self.server.get_mut(&shared)
        else {
            return HashSet::new();
        };
        below.watchers = 0;
        let path = path.clone();
        let served = self.local.below(&path).filter(|watcher| watcher.token() == shared);
        let served: Vec<Arc<Watcher>> = served.cloned().collect();
        self.register(served)
    }

    fn register(&mut self, watchers: Vec<Arc<Watcher>>) -> HashSet<u32> {
        let mut tokens = HashSet::new();
        for watcher in watchers {
            if let Added::Register(token) = self.add_to_path(&watcher) {
                self.todo.push_back(Todo::Watch(token));
                tokens.insert(token);
            }
        }
        tokens
    }

    /// A watch is confirmed, refused or gone: that may have been the last for which the watch of
    /// an ancestor had to stay. One that serves the refused stays.
    fn settle(&mut self, token: u32) {
        for shared in self.shared.values().copied().collect::<Vec<_>>() {
            let Some(below) = self.below(shared) else { continue };
            let Some(successors) = &mut below.successors else { continue };
            successors.remove(&token);
            if !successors.is_empty() {
                continue;
            }
            below.successors = None;
            if below.watchers == 0
                && let Some((path, token)) = self.drop_watch(shared)
            {
                self.todo.push_back(Todo::Unwatch(path, token));
            }
        }
    }

    /// The watch of an ancestor whose place a watch was to take.
    fn predecessor(&self, token: u32) -> Option<u32> {
        self.shared.values().copied().find(|shared| match self.server.get(shared) {
            Some(ServerWatch { serves: Serves::Below(below), .. }) => {
                below.successors.as_ref().is_some_and(|successors| successors.contains(&token))
            }
            _ => false,
        })
    }

    /// Forgets a watch that the server refused, and returns the watchers who have none now. `None`
    /// if an ancestor's watch goes on serving them.
    pub(crate) fn refuse(&mut self, token: u32) -> Option<Vec<Arc<Watcher>>> {
        let watchers = match self.server.get_mut(&token) {
            Some(ServerWatch { serves: Serves::Path(watchers), .. }) => std::mem::take(watchers),
            Some(_) => {
                let successors = self.split(token);
                if self.restoring.contains(&token) {
                    self.restoring.extend(successors);
                }
                self.drop_watch(token);
                // It is not asked for again.
                self.share_from = usize::MAX;
                return Some(Vec::new());
            }
            None => return Some(Vec::new()),
        };
        let shared = self.predecessor(token);
        for watcher in &watchers {
            match shared {
                Some(shared) => {
                    watcher.set_token(shared);
                    // The first event that it may have waited for does not come.
                    self.fire(watcher);
                }
                None => drop(self.local.remove(watcher)),
            }
        }
        if let Some(below) = shared.and_then(|shared| self.below(shared)) {
            below.watchers += watchers.len();
        }
        self.drop_watch(token);
        self.settle(token);
        shared.is_none().then_some(watchers)
    }

    /// Tells an event to the watchers that it is for; to nobody if its watch is gone.
    pub(crate) fn event(&mut self, token: &Token, path: &Path) {
        let Some(token) = number(token) else { return };
        let Some(watch) = self.server.get_mut(&token) else { return };
        watch.heard = true;
        let below = match &mut watch.serves {
            Serves::Path(watchers) => {
                watchers.iter().for_each(|watcher| self.told.tell(watcher, path, self.backlog));
                return;
            }
            Serves::Below(below) => below,
        };
        // Also the initial one, although all below have had theirs: a store merges events that are the
        // same and wait, so it may stand for a removal as well, and what the watches that this one has
        // replaced tell of that comes too late.
        let before = self.told.changes;
        let (told, backlog) = (&mut self.told, self.backlog);
        self.local.upwards(path, &watch.path, |watcher| told.tell(watcher, path, backlog));
        for watcher in self.local.below(path) {
            self.told.tell(watcher, &watcher.path, self.backlog);
        }
        let useful = self.told.changes > before;
        if below.successors.is_none() && below.trial.fails(useful, below.watchers) {
            debug!(path = %watch.path, "each path gets a watch of its own again");
            let successors = self.split(token);
            if let Some(below) = self.below(token) {
                below.successors = Some(successors);
            }
            self.settle(token);
        }
    }

    /// The connection is lost, and with it all watches on the server.
    pub(crate) fn lose(&mut self) {
        self.server.clear();
        self.todo.clear();
        self.restoring.clear();
        self.local.iter().for_each(|watcher| watcher.set_token(NONE));
    }

    /// There is a new connection: everything is to be watched again.
    pub(crate) fn restore(&mut self) {
        // The deepest ancestors first.
        for path in std::mem::take(&mut self.shared).into_keys().rev() {
            let unserved = self.local.below(&path).filter(|watcher| watcher.token() == NONE);
            let unserved: Vec<Arc<Watcher>> = unserved.cloned().collect();
            if unserved.is_empty() {
                continue;
            }
            let below = Below { watchers: unserved.len(), ..Below::default() };
            let token = self.serve_below(path, Box::new(below));
            unserved.iter().for_each(|watcher| watcher.set_token(token));
        }
        let alone = self.local.iter().filter(|watcher| watcher.token() == NONE).cloned().collect();
        self.register(alone);
        self.restoring.extend(self.server.keys());
    }

    /// Whether the server has answered everything that is watched again.
    pub(crate) fn is_restored(&self) -> bool {
        self.restoring.is_empty()
    }

    /// There will be no connection again: no watcher has anything more to wait for.
    pub(crate) fn watchers(&self) -> impl Iterator<Item = &Arc<Watcher>> {
        self.local.iter()
    }
}

#[cfg(test)]
mod tests;
