//! When one watch on a common ancestor is better than many below it, and when it is not.
//!
//! The C daemon compares every change with every watch: about 33 ns for each, so ten thousand
//! watches cost each change of anybody a third of a millisecond. One watch on a common ancestor
//! costs next to nothing, but also tells of changes that nobody here asked for: about 25 µs of the
//! daemon for each of these.

use std::collections::{BTreeSet, HashMap};

use xs_proto::Path;

/// With so many watches of their own it is looked for what they have in common.
pub(super) const SHARE_FROM: usize = 256;

/// So many have to be below an ancestor.
const ENOUGH: usize = 128;

/// So many watches compared cost what a useless event costs.
const EVENT_COST: usize = 750;

/// So many events are counted before it is judged.
const TRIAL: usize = 256;

/// The path itself and its ancestors, the root left out: to watch that is to hear of everything.
pub(super) fn upwards(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| path.rfind('/').map(|at| &path[..at]))
        .take_while(|path| !path.is_empty())
}

/// The deepest ancestors that have enough of these paths below them.
pub(super) fn ancestors<'a>(paths: impl Iterator<Item = &'a Path> + Clone) -> BTreeSet<&'a str> {
    let mut below: HashMap<&str, usize> = HashMap::new();
    for path in paths.clone() {
        for above in upwards(path).skip(1) {
            *below.entry(above).or_default() += 1;
        }
    }
    let has_enough = |above: &&str| below[above] >= ENOUGH;
    let mut served: HashMap<&str, usize> = HashMap::new();
    for deepest in paths.filter_map(|path| upwards(path).skip(1).find(has_enough)) {
        *served.entry(deepest).or_default() += 1;
    }
    served.into_iter().filter(|(_, served)| *served >= ENOUGH).map(|(above, _)| above).collect()
}

/// Counts whether the events of a shared watch were of use.
#[derive(Debug, Default)]
pub(super) struct Trial {
    events: usize,
    useless: usize,
}

impl Trial {
    /// Takes one more event. Says whether the watch, which serves so many, has not paid.
    pub(super) fn fails(&mut self, useful: bool, served: usize) -> bool {
        self.events += 1;
        self.useless += usize::from(!useful);
        if self.events < TRIAL {
            return false;
        }
        let Self { events, useless } = std::mem::take(self);
        useless * EVENT_COST > events * served
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(texts: impl IntoIterator<Item = String>) -> Vec<Path> {
        texts.into_iter().map(|text| Path::new(text).unwrap()).collect()
    }

    #[test]
    fn the_deepest_ancestor_with_enough_below_it_is_chosen() {
        let vifs = (0..200).map(|domid| format!("/local/domain/0/backend/vif/{domid}/0/state"));
        let vbds = (0..150).map(|domid| format!("/local/domain/0/backend/vbd/{domid}/768/state"));
        let few = (0..100).map(|domid| format!("/local/domain/{domid}/memory/target"));
        let watched = paths(vifs.chain(vbds).chain(few));
        let chosen: Vec<&str> = ancestors(watched.iter()).into_iter().collect();
        assert_eq!(chosen, ["/local/domain/0/backend/vbd", "/local/domain/0/backend/vif"]);
    }

    #[test]
    fn what_has_only_the_root_in_common_is_left_alone() {
        let watched = paths((0..1000).map(|number| format!("/{number}")));
        assert!(ancestors(watched.iter()).is_empty());
        let relative = paths((0..200).map(|number| format!("device/vbd/{number}/state")));
        assert!(ancestors(relative.iter()).contains("device/vbd"));
    }

    #[test]
    fn many_watchers_are_worth_useless_events_and_few_are_not() {
        let judge = |served, one_useful_in: usize| {
            let mut trial = Trial::default();
            (0..TRIAL).any(|event| trial.fails(event % one_useful_in == 0, served))
        };
        assert!(!judge(10_000, TRIAL), "comparing ten thousand watches is worse");
        assert!(judge(128, 2));
        assert!(!judge(128, 1));
    }
}
