//! The watchers of a connection in the order of their paths.
//!
//! In this order everything below a path stands together. The watchers are their own keys, so
//! that ten thousand of them take little more than what they are.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use super::share;
use crate::watcher::Watcher;

#[derive(Debug)]
struct Entry(Arc<Watcher>);

/// What the order goes by: the path, and to tell watchers of one path apart, their address.
trait Place {
    fn place(&self) -> (&str, usize);
}

impl Place for Entry {
    fn place(&self) -> (&str, usize) {
        (self.0.path.as_str(), Arc::as_ptr(&self.0).addr())
    }
}

impl Place for (&str, usize) {
    fn place(&self) -> (&str, usize) {
        *self
    }
}

impl<'a> Borrow<dyn Place + 'a> for Entry {
    fn borrow(&self) -> &(dyn Place + 'a) {
        self
    }
}

impl PartialEq for dyn Place + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for dyn Place + '_ {}

impl PartialOrd for dyn Place + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn Place + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

#[derive(Debug, Default)]
pub(super) struct Local(BTreeSet<Entry>);

impl Local {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn insert(&mut self, watcher: Arc<Watcher>) {
        self.0.insert(Entry(watcher));
    }

    /// Removes a watcher; says whether it was there.
    pub(super) fn remove(&mut self, watcher: &Arc<Watcher>) -> bool {
        let place = (watcher.path.as_str(), Arc::as_ptr(watcher).addr());
        self.0.remove(&place as &dyn Place)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Watcher>> {
        self.0.iter().map(|Entry(watcher)| watcher)
    }

    /// The watchers of a path.
    pub(super) fn at(&self, path: &str) -> impl Iterator<Item = &Arc<Watcher>> {
        let range = self.0.range::<dyn Place, _>(span(&(path, 0), &(path, usize::MAX)));
        range.map(|Entry(watcher)| watcher)
    }

    /// Goes through the watchers of a path and of its ancestors below `root`.
    ///
    /// An ancestor is also the beginning of everything that stands between it and the path. So
    /// what stands last before the path tells which ancestors need not be looked for.
    pub(super) fn upwards(&self, path: &str, root: &str, mut each: impl FnMut(&Watcher)) {
        let mut at = path;
        while at.len() > root.len() {
            let end = (at, usize::MAX);
            let range = (Bound::Unbounded, Bound::Excluded(&end as &dyn Place));
            let mut before = self.0.range::<dyn Place, _>(range).map(|Entry(watcher)| watcher).rev();
            let last = before.find(|watcher| {
                let found = *watcher.path == *at;
                if found {
                    each(watcher);
                }
                !found
            });
            let Some(last) = last else { return };
            let above = share::upwards(at).skip(1).find(|above| last.path.starts_with(above));
            let Some(above) = above else { return };
            at = above;
        }
    }

    /// The watchers of paths below a path.
    ///
    /// What stands between these and the path begins like it too. So what follows on the path tells
    /// whether to look for any, and mostly it says no.
    pub(super) fn below(&self, path: &str) -> impl Iterator<Item = &Arc<Watcher>> {
        let end = (path, usize::MAX);
        let range = (Bound::Excluded(&end as &dyn Place), Bound::Unbounded);
        let next = self.0.range::<dyn Place, _>(range).next();
        let range = next.filter(|Entry(next)| next.path.starts_with(path)).map(|_| {
            let [first, last] = bounds(path);
            self.0.range::<dyn Place, _>(span(&(&*first, 0), &(&*last, 0)))
        });
        range.into_iter().flatten().map(|Entry(watcher)| watcher)
    }
}

type Span<'a> = (Bound<&'a (dyn Place + 'a)>, Bound<&'a (dyn Place + 'a)>);

/// What stands between two places. No watcher has the address 0 or the highest.
fn span<'a>(first: &'a (&'a str, usize), last: &'a (&'a str, usize)) -> Span<'a> {
    (Bound::Excluded(first), Bound::Excluded(last))
}

/// Everything below a path stands between these: no name is empty, and `0` follows on `/`.
fn bounds(path: &str) -> [String; 2] {
    let above = if path == "/" { "" } else { path };
    // The root itself stands before this.
    [format!("{above}/\0"), format!("{above}0")]
}

#[cfg(test)]
mod tests {
    use xs_proto::Path;

    use super::*;

    /// All that is found, against what a look at each finds, over many small trees.
    #[test]
    fn above_and_below_are_what_they_should_be() {
        let names = ["a", "a-b", "a0", "b"];
        let mut all = vec!["/".to_owned(), "a".to_owned(), "a/b".to_owned()];
        for depth in 1..=3 {
            for number in 0..4_usize.pow(depth) {
                let name = |level: u32| names[number / 4_usize.pow(level) % 4];
                all.push((0..depth).map(|level| format!("/{}", name(level))).collect());
            }
        }
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..200 {
            let mut local = Local::default();
            for path in &all {
                for _ in 0..rng.u8(0..8).saturating_sub(5) {
                    local.insert(Watcher::new(&Path::new(path).unwrap(), None));
                }
            }
            let watched = |wanted: &dyn Fn(&Path) -> bool| {
                let all = local.iter().map(|watcher| watcher.path.to_string());
                all.filter(|path| wanted(&Path::new(path).unwrap())).collect::<Vec<_>>()
            };
            for (path, root) in all.iter().map(|path| (path, "/a")).chain(all.iter().map(|path| (path, ""))) {
                let path = Path::new(path).unwrap();
                let mut above = Vec::new();
                local.upwards(&path, root, |watcher| above.push(watcher.path.to_string()));
                above.sort();
                let wanted =
                    |other: &Path| path.is_within(other) && other.len() > root.len() && **other != *"/";
                assert_eq!(above, watched(&|other| wanted(other) || (path == *other && root.is_empty())));
                let below: Vec<String> = local.below(&path).map(|watcher| watcher.path.to_string()).collect();
                assert_eq!(below, watched(&|other| other.is_within(&path) && *other != path));
            }
        }
    }
}
