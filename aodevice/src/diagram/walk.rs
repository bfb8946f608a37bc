//! The walk over a machine: every state that it can get to, and what it does there with every event that may
//! come of what it asks for.

use std::collections::{HashSet, VecDeque};

use super::alphabet::events;
use crate::Cause;
use crate::machine::{Action, Charted, Event, Machine, Remove};

/// Something that came of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct What {
    pub(super) words: String,
    /// Why it failed, if it did.
    pub(super) cause: Option<String>,
}

/// A transition, as it was seen.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) from: &'static str,
    pub(super) what: What,
    /// What the machine knew besides its state.
    pub(super) facts: Vec<&'static str>,
    pub(super) to: &'static str,
    /// Whether it has warned of something.
    pub(super) warns: bool,
}

/// A state, as it was seen.
#[derive(Clone, Debug)]
pub(super) struct Visit {
    pub(super) state: &'static str,
    /// What it asks for; `None` before it has begun.
    pub(super) action: Option<Action>,
    pub(super) is_cancellable: bool,
    pub(super) is_part: bool,
}

/// What a walk has seen, in the order in which it came there.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) visits: Vec<Visit>,
    pub(super) samples: Vec<Sample>,
    /// States with an event that may come there and that changed nothing.
    pub(super) ignored: Vec<(&'static str, String)>,
}

/// Walks a machine breadth first, from every configuration. What a machine only reports is forgotten after each
/// step, so that those that go on in the same way are the same, and the walk ends.
pub(super) fn walk<M: Charted>() -> Seen {
    let mut seen = Seen::default();
    let events = events();
    let mut known = HashSet::new();
    let mut waiting: VecDeque<(M, Option<Action>)> =
        M::configurations().into_iter().map(|machine| (machine, None)).collect();
    while let Some((machine, action)) = waiting.pop_front() {
        let before = format!("{machine:?}");
        if !known.insert(before.clone()) {
            continue;
        }
        seen.visit(&machine, action.as_ref());
        let may_come = |event: &Event| match &action {
            Some(action) => action.may_result_in(event),
            None => matches!(event, Event::Begin),
        };
        for event in events.iter().filter(|event| may_come(event)) {
            let mut next = machine.clone();
            let asks = next.on(event.clone());
            let warns = !next.clone().outcome().1.is_empty();
            next.forget_reports();
            if Some(&asks) == action.as_ref() && format!("{next:?}") == before {
                seen.ignored.push((machine.state(), format!("{event:?}")));
            }
            if let Some(what) = what(&machine, event) {
                let (from, facts, to) = (machine.state(), machine.facts(event), next.state());
                seen.samples.push(Sample { from, what, facts, to, warns });
            }
            waiting.push_back((next, Some(asks)));
        }
    }
    seen
}

impl Seen {
    fn visit(&mut self, machine: &impl Machine, action: Option<&Action>) {
        let (state, is_cancellable) = (machine.state(), machine.is_cancellable());
        let (action, is_part) = (action.cloned(), machine.part().is_some());
        self.visits.push(Visit { state, action, is_cancellable, is_part });
    }
}

/// What came of an action in words; `None` if it is a part of the machine that goes on by it.
fn what(machine: &impl Machine, event: &Event) -> Option<What> {
    match machine.part() {
        Some(part) => ending_of(part, event),
        None => Some(What { words: event.words().to_owned(), cause: event.cause().map(in_words) }),
    }
}

/// A cause in the words of its code, which stay the same whatever becomes of its text.
fn in_words(cause: &Cause) -> String {
    match cause {
        Cause::Script { .. } => "the run itself".to_owned(),
        Cause::Undecided(_) => "what it made cannot be told".to_owned(),
        cause => cause.code().replace('_', " "),
    }
}

fn ending_of(part: &Remove, event: &Event) -> Option<What> {
    let mut part = part.clone();
    if part.on(event.clone()) != Action::Finish {
        return None;
    }
    let words = if part.outcome().0.is_ok() { "the removal has ended" } else { "the removal has failed" };
    Some(What { words: words.to_owned(), cause: None })
}
