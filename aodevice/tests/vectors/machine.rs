//! The machines alone: every state with every event, and every path from begin to end.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use aodevice::machine::{Action, Add, AddState, Closing, Destroyed, Event, Frontend, Remove, RemoveState};
use aodevice::{Cause, Force, Limits, WaitFor, Warning};
use devstate::{Outcome, XenbusState};
use hotplug::{Ending, Output, Report, ScriptRun};
use xs_client::{ErrorCode, Op};

/// Longer than any operation of two script runs can be. A path that gets there goes round in circles.
const LONG: usize = 24;

trait Machine: Clone + fmt::Debug + fmt::Display {
    fn on(&mut self, event: Event) -> Action;
    fn is_done(&self) -> bool;
}

impl Machine for Add {
    fn on(&mut self, event: Event) -> Action {
        self.on(event)
    }

    fn is_done(&self) -> bool {
        self.state() == AddState::Done
    }
}

impl Machine for Remove {
    fn on(&mut self, event: Event) -> Action {
        self.on(event)
    }

    fn is_done(&self) -> bool {
        self.state() == RemoveState::Done
    }
}

fn script_failed() -> Cause {
    let run = Box::new(ScriptRun::vbd("block", hotplug::Action::Add, 1, 51712));
    let (ending, output, duration) = (Ending::Exited(1), Output::default(), Duration::from_secs(1));
    Cause::Script { run, report: Box::new(Report { ending, output, duration }) }
}

/// Every kind of event, with every outcome that may matter.
fn events() -> Vec<Event> {
    let store = || xs_client::Error::Store { op: Op::READ, path: None, code: ErrorCode::EIO };
    let causes = || [Cause::Store(store()), Cause::Superseded];
    let mut events = vec![Event::Begin, Event::Observed, Event::Settled(Ok(()))];
    events.extend([0, 1, 2].map(|runs| Event::Known(Ok(runs))));
    events.extend([Cause::Exists, Cause::Aborted].map(|cause| Event::Known(Err(cause))));
    events.extend(
        [
            Outcome::Reached(XenbusState::Closed),
            Outcome::Failed(XenbusState::Closing),
            Outcome::Gone,
            Outcome::TimedOut { last: None },
            Outcome::Aborted,
            Outcome::Io(store()),
        ]
        .map(Event::Waited),
    );
    events.extend(causes().map(Event::Unsure));
    events.push(Event::Ran(Ok(None)));
    events.extend([script_failed(), Cause::Aborted].map(|cause| Event::Ran(Err(cause))));
    events.extend(causes().map(|cause| Event::Ran(Err(cause))));
    events.extend(
        [Closing::Told, Closing::Closed, Closing::Missing, Closing::Destroyed, Closing::NotOurs]
            .map(|closing| Event::Told(Ok(closing))),
    );
    events.extend(causes().map(|cause| Event::Told(Err(cause))));
    events.extend([Destroyed::Gone, Destroyed::NotOurs].map(|destroyed| Event::Destroyed(Ok(destroyed))));
    events.extend(causes().map(|cause| Event::Destroyed(Err(cause))));
    events.extend(causes().map(|cause| Event::Settled(Err(cause))));
    events
}

/// Whether an event is what an action results in.
fn answers(action: &Action, event: &Event) -> bool {
    match action {
        Action::Create => matches!(event, Event::Known(_) | Event::Unsure(_)),
        Action::Probe => matches!(event, Event::Known(_)),
        Action::Await { .. } => matches!(event, Event::Waited(_)),
        Action::Run { .. } => matches!(event, Event::Ran(_)),
        Action::Close(_) => matches!(event, Event::Told(_)),
        Action::Destroy => matches!(event, Event::Destroyed(_)),
        Action::Settle => matches!(event, Event::Settled(_)),
        Action::Observe => matches!(event, Event::Observed),
        Action::Finish => false,
        other => panic!("{other:?} is new: say which events answer it"),
    }
}

/// An operation from its begin to its end: what was asked and what came of it.
type Operation = Vec<(Action, Event)>;

/// Walks every path of a machine. In every state on the way, every event that does not answer what
/// the machine asks for must change nothing. `look` sees each operation that has ended.
fn walk<M: Machine>(machine: &M, mut look: impl FnMut(&[(Action, Event)], M)) {
    let events = events();
    let mut begun = machine.clone();
    let first = begun.on(Event::Begin);
    let mut seen = BTreeSet::new();
    let mut waiting: Vec<(M, Action, Operation)> = vec![(begun, first, Vec::new())];
    while let Some((machine, action, path)) = waiting.pop() {
        assert!(path.len() < LONG, "goes on and on: {path:#?}");
        assert!(!machine.to_string().is_empty());
        if seen.insert(format!("{machine:?}")) {
            for event in events.iter().filter(|event| !answers(&action, event)) {
                let mut other = machine.clone();
                assert_eq!(other.on(event.clone()), action, "{machine:?} takes {event:?}");
                assert_eq!(format!("{other:?}"), format!("{machine:?}"), "{event:?}");
            }
        }
        if action == Action::Finish {
            assert!(machine.is_done(), "{machine:?} after {path:#?}");
            look(&path, machine);
            continue;
        }
        for event in events.iter().filter(|event| answers(&action, event)) {
            let (mut next, mut path) = (machine.clone(), path.clone());
            path.push((action.clone(), event.clone()));
            let action = next.on(event.clone());
            waiting.push((next, action, path));
        }
    }
}

/// The script runs of an action that were asked for, in their order.
fn runs(path: &[(Action, Event)], wanted: hotplug::Action) -> Vec<usize> {
    let index = |action: &Action| match action {
        Action::Run { action, index } if *action == wanted => Some(*index),
        _ => None,
    };
    path.iter().filter_map(|(action, _)| index(action)).collect()
}

fn asked(path: &[(Action, Event)], wanted: &Action) -> bool {
    path.iter().any(|(action, _)| action == wanted)
}

fn was_superseded(warnings: &[Warning]) -> bool {
    warnings.iter().any(|warning| matches!(warning, Warning::Superseded))
}

#[test]
fn a_machine_that_has_not_begun_waits_for_that() {
    let (mut add, mut remove) =
        (Add::new(WaitFor::Script, Limits::default()), Remove::new(Force::Auto, Limits::default()));
    for event in events().into_iter().filter(|event| !matches!(event, Event::Begin)) {
        assert_eq!(add.on(event.clone()), Action::Finish);
        assert_eq!(remove.on(event), Action::Finish);
    }
    assert_eq!((add.state(), remove.state()), (AddState::Idle, RemoveState::Idle));
}

#[test]
fn every_add_ends_well_or_undoes_what_it_did() {
    for wait_for in [WaitFor::Script, WaitFor::Connected] {
        let mut operations = 0;
        walk(&Add::new(wait_for, Limits::default()), |path, machine| {
            operations += 1;
            assert!(!asked(path, &Action::Probe) && !asked(path, &Action::Close(Frontend::Delete)));
            let cancellable = machine.is_cancellable();
            let (outcome, warnings) = machine.outcome();
            let (added, mut undone) = (runs(path, hotplug::Action::Add), runs(path, hotplug::Action::Remove));
            if outcome.is_ok() {
                assert!(cancellable && asked(path, &Action::Settle) && undone.is_empty(), "{path:#?}");
                return;
            }
            assert!(!cancellable && asked(path, &Action::Observe), "{path:#?}");
            let unsure = matches!(&path[0].1, Event::Unsure(_));
            if !unsure && !matches!(&path[0].1, Event::Known(Ok(_))) {
                assert_eq!(path.len(), 2, "nothing to undo: {path:#?}");
                return;
            }
            let not_ours = path.iter().any(|(_, event)| matches!(event, Event::Told(Ok(Closing::NotOurs))));
            if was_superseded(&warnings) || (unsure && not_ours) {
                return;
            }
            undone.reverse();
            assert_eq!(added, undone, "each run is undone once, the last first: {path:#?}");
            assert!(asked(path, &Action::Close(Frontend::DeleteIfIdle)), "{path:#?}");
            let gone = path.iter().any(|(_, event)| {
                matches!(event, Event::Told(Ok(Closing::Destroyed)) | Event::Destroyed(Ok(Destroyed::Gone)))
            });
            let admitted = warnings.iter().any(|warning| matches!(warning, Warning::LeftBehind { .. }));
            assert!(gone || admitted, "something is left and nobody is told: {path:#?}");
        });
        assert!(operations > 100, "{operations}");
    }
}

#[test]
fn the_cause_of_a_failed_add_is_what_went_wrong_first() {
    walk(&Add::new(WaitFor::Connected, Limits::default()), |path, machine| {
        let (Err(cause), _) = machine.outcome() else { return };
        let observed = path.iter().position(|(action, _)| *action == Action::Observe).unwrap();
        let first = match &path[observed - 1].1 {
            Event::Known(Err(first))
            | Event::Unsure(first)
            | Event::Ran(Err(first))
            | Event::Settled(Err(first)) => first.to_string(),
            Event::Waited(Outcome::Io(error)) => error.to_string(),
            Event::Waited(Outcome::Aborted) => Cause::Aborted.to_string(),
            Event::Waited(Outcome::Gone) => "the backend's nodes vanished from the store".to_owned(),
            Event::Waited(Outcome::Failed(state)) => {
                assert!(cause.to_string().contains(&format!("went to {state} instead of")), "{cause}");
                return;
            }
            Event::Waited(Outcome::TimedOut { .. }) => {
                assert!(cause.to_string().ends_with("within 10s"), "{cause}");
                return;
            }
            other => panic!("{other:?} is no failure"),
        };
        assert_eq!(cause.to_string(), first);
    });
}

#[test]
fn every_removal_asks_in_the_right_order() {
    for force in [Force::Auto, Force::On, Force::Off] {
        let mut operations = 0;
        walk(&Remove::new(force, Limits::default()), |path, machine| {
            operations += 1;
            let (outcome, warnings) = machine.outcome();
            assert_eq!(path[0].0, Action::Probe);
            let (kept, deleted) = (Action::Close(Frontend::Keep), Action::Close(Frontend::Delete));
            assert!(!(force == Force::Off && asked(path, &deleted)), "{path:#?}");
            assert!(!(force == Force::On && asked(path, &kept)), "{path:#?}");
            let at = |wanted: &Action| path.iter().position(|(action, _)| action == wanted);
            if force == Force::Auto && at(&deleted).is_some() {
                assert!(at(&kept) < at(&deleted), "the guest is asked first: {path:#?}");
            }
            assert!(runs(path, hotplug::Action::Add).is_empty());
            let removed = runs(path, hotplug::Action::Remove);
            assert_eq!(removed, (0..removed.len()).collect::<Vec<_>>(), "each once, in order");
            if let Some(destroyed) = at(&Action::Destroy) {
                let told = at(&kept).or(at(&deleted)).unwrap();
                assert!(told < destroyed && destroyed + 3 > path.len(), "{path:#?}");
            }
            let gone = path.iter().any(|(_, event)| {
                matches!(event, Event::Told(Ok(Closing::Destroyed)) | Event::Destroyed(Ok(Destroyed::Gone)))
            });
            assert_eq!(outcome.is_ok(), gone || was_superseded(&warnings), "{path:#?}");
            assert_eq!(outcome.is_err(), asked(path, &Action::Observe), "{path:#?}");
        });
        assert!(operations > 50, "{operations}");
    }
}
