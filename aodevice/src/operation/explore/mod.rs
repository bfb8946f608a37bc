//! Every interleaving of two actors on one device, explored exhaustively over the pure machines and the
//! pure decisions of `steps.rs`: one actor may die at any step, one wait may time out at any moment, and
//! `xl`, which knows nothing of records, may tear the device down at any moment.
//!
//! Nothing here is simulated that the driver decides: what a step writes is what `steps.rs` says. The
//! world is one device: its nodes, its backend's driver, a guest that answers, what scripts made, and its
//! entry in libxl's configuration of the guest.

mod actors;
mod world;

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::rc::Rc;

use self::world::{Mover, Running, World};
use crate::Operation;

/// How a world came about.
struct Trail {
    from: Option<Rc<Self>>,
    world: String,
}

thread_local! {
    static LAST: RefCell<Option<Rc<Trail>>> = const { RefCell::new(None) };
}

/// The way to the world that is being looked at.
fn way() -> String {
    let mut lines = Vec::new();
    let mut at = LAST.with_borrow(Clone::clone);
    while let Some(trail) = at {
        lines.push(trail.world.clone());
        at = trail.from.clone();
    }
    lines.reverse();
    lines.join("\n")
}

/// In a line what a person would want to know.
impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for actor in &self.actors {
            match &actor.running {
                _ if !actor.alive => write!(f, "[dead] ")?,
                Some((Running::Add(add), _)) => write!(f, "[{add} {:?}] ", actor.script)?,
                Some((Running::Remove(remove), _)) => write!(f, "[{remove} {:?}] ", actor.script)?,
                None => write!(f, "[{} to do] ", actor.todo.len())?,
            }
        }
        let Self { lx, op, fe, be, node, saved, effects, orphan, entry, .. } = self;
        let op = op.as_deref().map(|op| op.split(" since").next());
        write!(
            f,
            "lx {lx} op {op:?} fe {fe:?} be {be:?} node {node:?} saved {saved:?} made {effects:?} orphan {orphan:?} entry {entry:?}"
        )
    }
}

/// Explores everything that may come of these operations; returns how many worlds there are.
fn explore(todo: [&[Operation]; 2], attached: bool) -> usize {
    let deaths = 1;
    explore_from(World { deaths, ..World::new(todo.map(<[Operation]>::to_vec), attached) })
}

/// The same with `xl` beside it. With two actors nobody dies then: of three who get into each other's way
/// at the same moment, one must live to tell.
fn explore_with_xl(todo: [&[Operation]; 2], attached: bool) -> usize {
    let deaths = usize::from(todo.iter().any(|todo| todo.is_empty()));
    explore_from(World { deaths, teardowns: 1, ..World::new(todo.map(<[Operation]>::to_vec), attached) })
}

/// The same with a device model that serves the device, and may end at any moment, or the domain; alone, or with
/// a death of an actor.
fn explore_with_ends(todo: [&[Operation]; 2], attached: bool, deaths: usize) -> usize {
    let world = World::new(todo.map(<[Operation]>::to_vec), attached).by_model();
    explore_from(World { deaths, timeouts: 1 - deaths, ..world })
}

/// The same before the device model is started, which may happen at any moment.
fn explore_creation(todo: [&[Operation]; 2], deaths: usize) -> usize {
    let world = World::new(todo.map(<[Operation]>::to_vec), false).before_model();
    explore_from(World { deaths, timeouts: 1 - deaths, ..world })
}

fn explore_from(world: World) -> usize {
    let xl = world.teardowns > 0;
    let mut seen: HashSet<String> = HashSet::new();
    let mut waiting = vec![(world, None)];
    while let Some((world, from)) = waiting.pop() {
        if !seen.insert(format!("{world:?}")) {
            continue;
        }
        let trail = Rc::new(Trail { from, world: world.to_string() });
        LAST.replace(Some(trail.clone()));
        let next = world.next();
        if next.is_empty() || world.is_over() {
            assert!(world.is_over(), "somebody waits for ever\n{}", way());
            let settled = world.lx && world.op.is_none() && world.mover == Mover::Kernel;
            assert!(!settled || world.entry == world.node, "it is not entered as it is: {world}\n{}", way());
            let after = if world.is_clean() { world.clone() } else { world.clone().removed_later() };
            // What `xl` removed leaves its saved copy, which nobody believes.
            let after = World { saved: after.saved.filter(|_| !xl), ..after };
            assert!(after.is_clean(), "something is left after a later removal: {after}\n{}", way());
        }
        waiting.extend(next.into_iter().map(|next| (next, Some(trail.clone()))));
    }
    seen.len()
}

const ADD: Operation = Operation::Attach;
const REMOVE: Operation = Operation::Detach;

#[test]
fn an_add_and_two_removals_by_two_actors() {
    let mut worlds = 0;
    for todo in [
        [&[ADD][..], &[REMOVE, REMOVE][..]],
        [&[ADD, REMOVE], &[REMOVE]],
        [&[ADD], &[REMOVE]],
        [&[REMOVE], &[ADD, REMOVE]],
        [&[ADD], &[ADD]],
    ] {
        worlds += explore(todo, false);
    }
    assert!(worlds > 5_000, "{worlds}");
}

#[test]
fn removals_of_a_device_that_is_in_use() {
    for todo in [[&[REMOVE][..], &[REMOVE][..]], [&[REMOVE, ADD], &[REMOVE]], [&[REMOVE], &[ADD]]] {
        explore(todo, true);
    }
}

#[test]
fn xl_beside_an_add_and_a_removal() {
    for (todo, attached) in [
        ([&[ADD][..], &[][..]], false),
        ([&[ADD], &[REMOVE]], false),
        ([&[REMOVE], &[]], true),
        ([&[REMOVE], &[REMOVE]], true),
        // In the gap that `xl` leaves another device is added.
        ([&[REMOVE], &[ADD]], true),
        ([&[ADD], &[ADD]], false),
        ([&[ADD], &[REMOVE, ADD]], false),
    ] {
        explore_with_xl(todo, attached);
    }
}

#[test]
fn the_end_of_the_device_model_or_of_the_domain() {
    let mut worlds = 0;
    for deaths in [0, 1] {
        for (todo, attached) in [
            ([&[ADD][..], &[][..]], false),
            ([&[ADD, REMOVE], &[]], false),
            ([&[ADD], &[REMOVE]], false),
            ([&[ADD], &[ADD]], false),
            ([&[REMOVE], &[]], true),
            ([&[REMOVE], &[REMOVE]], true),
            ([&[REMOVE], &[ADD]], true),
        ] {
            worlds += explore_with_ends(todo, attached, deaths);
        }
    }
    assert!(worlds > 1_000, "{worlds}");
}

#[test]
fn a_device_model_that_is_started_later() {
    let mut worlds = 0;
    for deaths in [0, 1] {
        for todo in [
            [&[ADD][..], &[][..]],
            [&[ADD, REMOVE], &[]],
            [&[ADD], &[REMOVE]],
            [&[ADD], &[ADD]],
            [&[ADD, REMOVE], &[ADD]],
        ] {
            worlds += explore_creation(todo, deaths);
        }
    }
    assert!(worlds > 1_000, "{worlds}");
}
