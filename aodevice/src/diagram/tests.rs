use std::collections::{BTreeMap, BTreeSet};

use super::alphabet::events;
use super::walk::{Seen, walk};
use super::*;

fn walks() -> [(&'static str, Seen, &'static str); 2] {
    [
        (Add::NAME, walk::<Add>(), include_str!("../machine/add.rs")),
        (Remove::NAME, walk::<Remove>(), include_str!("../machine/remove.rs")),
    ]
}

/// The names that a machine gives to its states, from its source.
fn named(source: &str) -> BTreeSet<&str> {
    let source = source.split_once("fn state(&self)").unwrap().1.split_once("\n    }\n").unwrap().0;
    source.split('"').skip(1).step_by(2).collect()
}

#[test]
fn every_state_that_has_a_name_is_reached() {
    for (name, seen, source) in walks() {
        let reached: BTreeSet<&str> = seen.visits.iter().map(|visit| visit.state).collect();
        assert_eq!(reached, named(source), "{name}");
    }
}

#[test]
fn no_event_that_may_come_is_ignored() {
    for (name, seen, _) in walks() {
        // The guest's directory may have come back since it was removed, so the same is asked for again.
        let ignored = seen.ignored.iter().filter(|(_, event)| !event.contains("Again"));
        assert_eq!(ignored.collect::<Vec<_>>(), Vec::<&(&str, String)>::new(), "{name}");
    }
}

#[test]
fn every_event_comes_in_some_state() {
    let walks = walks();
    let samples = || walks.iter().flat_map(|(_, seen, _)| &seen.samples);
    let come: BTreeSet<&str> = samples().map(|sample| sample.what.words.as_str()).collect();
    for event in events() {
        assert!(come.contains(event.words()), "{event:?}");
    }
}

#[test]
fn a_state_is_in_one_phase() {
    for (name, seen, _) in walks() {
        let mut phases = BTreeMap::new();
        for visit in &seen.visits {
            let phase = chart::phase(visit);
            assert_eq!(*phases.entry(visit.state).or_insert(phase), phase, "{name} {}", visit.state);
        }
    }
}

#[test]
fn what_a_machine_knows_tells_its_ways_apart() {
    for diagram in all() {
        for arc in &diagram.arcs {
            let untold = arc.reasons.iter().any(|reason| reason.guard.as_deref() == Some(guard::UNTOLD));
            assert!(!untold, "a fact is missing in {}: {arc:?}", diagram.machine);
        }
    }
}

#[test]
fn every_state_leads_to_an_end_and_no_failure_to_a_success() {
    for Diagram { machine, states, arcs } in all() {
        let phase = |name| states.iter().find(|state| state.name == name).unwrap().phase;
        let mut ending: BTreeSet<&str> = BTreeSet::new();
        for state in &states {
            let is_end = matches!(state.phase, Phase::Succeeded | Phase::Failed);
            let leaves = arcs.iter().any(|arc| arc.from == state.name);
            assert_ne!(is_end, leaves, "{machine} {}", state.name);
            ending.extend(is_end.then_some(state.name));
        }
        for _ in &states {
            let before = arcs.iter().filter(|arc| ending.contains(arc.to)).map(|arc| arc.from);
            let before: Vec<&str> = before.collect();
            ending.extend(before);
        }
        assert_eq!(ending.len(), states.len(), "{machine}");
        for arc in arcs.iter().filter(|arc| phase(arc.from) == Phase::Failure) {
            assert!(matches!(phase(arc.to), Phase::Failure | Phase::Failed), "{machine}: {arc:?}");
        }
    }
}

#[test]
fn labels_are_quoted() {
    let state = State { name: "A", phase: Phase::Before, asks: vec!["say \"x\"".to_owned()], part: None };
    let diagram = Diagram { machine: "m", states: vec![state], arcs: Vec::new() };
    assert!(
        diagram.to_mermaid().contains("A[\"<b>A</b><br>say #quot;x#quot;\"]"),
        "{}",
        diagram.to_mermaid()
    );
    assert!(diagram.to_dot().contains("A [label=\"A\\nsay \\\"x\\\"\"]"), "{}", diagram.to_dot());
}
