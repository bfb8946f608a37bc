//! From what a walk has seen to a diagram: what agrees is merged.

use std::collections::{BTreeMap, BTreeSet};

use super::guard::guards;
use super::walk::{Sample, Seen, Visit, What, walk};
use super::{Arc, Diagram, Phase, Reason, State, Warns};
use crate::machine::{Action, Charted, Remove};

pub(super) fn draw<M: Charted>() -> Diagram {
    let seen = walk::<M>();
    let states = states(&seen);
    let arcs = arcs(&seen, &states);
    Diagram { machine: M::NAME, states, arcs }
}

fn states(seen: &Seen) -> Vec<State> {
    let mut states: Vec<State> = Vec::new();
    for visit in &seen.visits {
        let asks = match &visit.action {
            Some(action) if *action != Action::Finish && !visit.is_part => Some(action.to_string()),
            _ => None,
        };
        match states.iter_mut().find(|state| state.name == visit.state) {
            Some(state) => state.asks.extend(asks.filter(|asks| !state.asks.contains(asks))),
            None => {
                let (phase, part) = (phase(visit), visit.is_part.then_some(Remove::NAME));
                states.push(State { name: visit.state, phase, asks: asks.into_iter().collect(), part });
            }
        }
    }
    states
}

pub(super) fn phase(visit: &Visit) -> Phase {
    match (&visit.action, visit.is_cancellable) {
        (None, _) => Phase::Begin,
        (Some(Action::Finish), true) => Phase::Succeeded,
        (Some(Action::Finish), false) => Phase::Failed,
        (Some(_), false) => Phase::Failure,
        (Some(Action::On(..)), true) if !visit.is_part => Phase::AtWork,
        (Some(_), true) => Phase::Before,
    }
}

fn arcs(seen: &Seen, states: &[State]) -> Vec<Arc> {
    let phase =
        |name| states.iter().find(|state| state.name == name).map_or(Phase::Begin, |state| state.phase);
    let mut arcs: Vec<Arc> = Vec::new();
    for (from, to, reason) in states.iter().flat_map(|state| ways_from(state.name, seen)) {
        match arcs.iter_mut().find(|arc| (arc.from, arc.to) == (from, to)) {
            Some(arc) => add(&mut arc.reasons, reason),
            None => {
                let failure =
                    phase(from) == Phase::Failure || matches!(phase(to), Phase::Failure | Phase::Failed);
                arcs.push(Arc { from, to, failure, reasons: vec![reason] });
            }
        }
    }
    arcs
}

/// Adds a reason to those that lead the same way: to one that differs in its event only.
fn add(reasons: &mut Vec<Reason>, reason: Reason) {
    let same = reasons.iter_mut().find(|other| (&other.guard, other.warns) == (&reason.guard, reason.warns));
    match same {
        Some(other) => other.events.extend(reason.events),
        None => reasons.push(reason),
    }
}

/// What leads from a state to which other, and why: an entry for each event and way.
fn ways_from(from: &'static str, seen: &Seen) -> Vec<(&'static str, &'static str, Reason)> {
    let mut ways = Vec::new();
    for (event, samples) in events_in(from, seen) {
        let cases: Vec<_> = samples.iter().map(|sample| (sample.facts.clone(), sample.to)).collect();
        for (to, guard) in guards(&cases) {
            let warns = warns(samples.iter().filter(|sample| sample.to == to));
            ways.push((from, to, Reason { events: vec![event.clone()], guard, warns }));
        }
    }
    ways
}

fn warns<'a>(mut samples: impl Iterator<Item = &'a &'a Sample> + Clone) -> Warns {
    match (samples.clone().all(|sample| sample.warns), samples.any(|sample| sample.warns)) {
        (true, _) => Warns::Always,
        (false, true) => Warns::Perhaps,
        (false, false) => Warns::Never,
    }
}

/// What may come in a state, in words, each with the transitions that were seen.
fn events_in<'a>(from: &'static str, seen: &'a Seen) -> Vec<(String, Vec<&'a Sample>)> {
    let mut events: Vec<(&str, Vec<&Sample>)> = Vec::new();
    for sample in seen.samples.iter().filter(|sample| sample.from == from) {
        match events.iter_mut().find(|(words, _)| *words == sample.what.words) {
            Some((_, samples)) => samples.push(sample),
            None => events.push((&sample.what.words, vec![sample])),
        }
    }
    events.into_iter().flat_map(|(words, samples)| by_cause(words, &samples)).collect()
}

/// Where an event led, by what the machine knew.
type Leads<'a> = BTreeMap<&'a [&'static str], BTreeSet<&'static str>>;

/// An event with different causes, in groups of causes that always lead the same way. The largest group goes without
/// the names of its causes, and comes last.
fn by_cause<'a>(words: &str, samples: &[&'a Sample]) -> Vec<(String, Vec<&'a Sample>)> {
    let mut causes: Vec<(Option<&String>, Leads<'a>, Vec<&'a Sample>)> = Vec::new();
    for sample in samples {
        let What { cause, .. } = &sample.what;
        let index = causes.iter().position(|(other, ..)| *other == cause.as_ref()).unwrap_or_else(|| {
            causes.push((cause.as_ref(), Leads::new(), Vec::new()));
            causes.len() - 1
        });
        let (_, leads, all) = &mut causes[index];
        leads.entry(&sample.facts).or_default().insert(sample.to);
        all.push(sample);
    }
    let mut groups: Vec<(Leads<'a>, Vec<&str>, Vec<&'a Sample>)> = Vec::new();
    for (cause, leads, samples) in causes {
        let cause = cause.map(String::as_str);
        match groups.iter_mut().find(|(other, ..)| *other == leads) {
            Some((_, causes, all)) => {
                causes.extend(cause);
                all.extend(samples);
            }
            None => groups.push((leads, cause.into_iter().collect(), samples)),
        }
    }
    groups.sort_by_key(|(_, causes, _)| causes.len());
    let last = groups.len() - 1;
    let named = |index, causes: &[&str]| match index {
        0 if last == 0 => words.to_owned(),
        index if index == last => format!("{words} otherwise"),
        _ => format!("{words}: {}", causes.join(", ")),
    };
    let groups = groups.into_iter().enumerate();
    groups.map(|(index, (_, causes, samples))| (named(index, &causes), samples)).collect()
}
