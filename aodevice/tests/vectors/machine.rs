//! The machines alone: every state with every event, and every path from begin to end.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use xen_aodevice::libxl::{ConfigError, Userdata};
use xen_aodevice::machine::{
    Action, Add, Claim, Closing, Created, Destroyed, Event, Found, Frontend, Machine, Node, Purpose, Reached,
    Remove, Step,
};
use xen_aodevice::{
    Addition, Cause, DeviceId, Force, Kind, Limits, Occupant, Removal, Target, WaitFor, Warning, Which,
};
use xen_hotplug::{Ending, Output, Report, Request};
use xs_client::{DomId, ErrorCode, Op};

use crate::world::{GUEST, disk};

/// Longer than any operation can be that is not sent round in circles by others.
const LONG: usize = 40;

const WHICH: Which = Which { fe: GUEST, kind: Kind::Vbd, devid: 51712 };

/// A device with one script run, or with two.
fn target(kind: &str) -> Target {
    let which = if kind == "vif_ioemu" { Which { kind: Kind::Vif, devid: 0, ..WHICH } } else { WHICH };
    let recorded = [("script", "/etc/xen/scripts/x"), ("type", kind)];
    let recorded = recorded.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Target::new(DeviceId::new(which, DomId::DOM0), recorded).unwrap()
}

/// The first is of a domain that libxl made.
fn targets() -> [Target; 2] {
    let config = Userdata::new("/var/lib/xen", GUEST, "/vm/00000000-0000-4000-8000-000000000001");
    [target("phy").with_config(Some(config.unwrap())), target("vif_ioemu")]
}

fn locked() -> Cause {
    Cause::Config { file: "/x".into(), problem: ConfigError::Busy(Duration::from_secs(10)) }
}

fn script_failed() -> Cause {
    let run = Box::new(Request::new(xen_hotplug::Kind::Vbd, xen_hotplug::Action::Add, 1, 51712, "block"));
    let report = Report::new(Ending::Exited(1), Output::default(), Duration::from_secs(1));
    Cause::Script { run, report: Box::new(report) }
}

fn store() -> Cause {
    Cause::Store(xs_client::Error::Store { op: Op::READ, path: None, code: ErrorCode::EIO })
}

fn timed_out() -> Cause {
    Cause::TimedOut { node: Node::BackendState, goal: "x".to_owned(), limit: Duration::from_secs(10) }
}

/// What may end any step that can be cancelled.
fn interruptions() -> [Cause; 5] {
    [store(), Cause::Aborted, Cause::Taken, Cause::Gone { domain: true }, Cause::Asked("x".to_owned())]
}

/// Every kind of event, with every outcome that may matter.
fn events() -> Vec<Event> {
    let live = || Occupant::new("add:1 stage=script", true);
    let dead = || Occupant::new("remove:1 stage=closing", false);
    let dead_add = || Occupant::new("add:1 stage=script", false);
    let mut events = vec![Event::Begin, Event::Observed, Event::Left, Event::Checked(Ok(()))];
    events.push(Event::Checked(Err(Cause::Invalid("x".to_owned()))));
    for target in targets() {
        events.push(Event::Created(Created::Done(target.clone())));
        events.push(Event::Created(Created::Unsure(target.clone(), store())));
        events.push(Event::Created(Created::Failed(Cause::Exists, Some(target.clone()))));
        for occupant in [None, Some(live()), Some(dead()), Some(dead_add())] {
            events.push(Event::Probed(Ok(Found::new(target.clone(), occupant))));
        }
    }
    events.push(Event::Created(Created::Failed(Cause::Aborted, None)));
    events.push(Event::Created(Created::Occupied(WHICH, live())));
    events.push(Event::Created(Created::Occupied(WHICH, dead())));
    events.push(Event::Created(Created::Stale(WHICH)));
    events.extend([Cause::NoSuchDevice, store()].map(|cause| Event::Probed(Err(cause))));
    events.push(Event::Released(Ok(())));
    events.push(Event::Released(Err(Cause::Aborted)));
    let reached = [Reached::Value, Reached::Gone, Reached::GuestOver];
    events.extend(reached.map(|reached| Event::Waited(Ok(reached))));
    events.push(Event::Waited(Err(timed_out())));
    events.extend(interruptions().map(|cause| Event::Waited(Err(cause))));
    events.push(Event::Ran(Ok(None)));
    events.push(Event::Ran(Err(script_failed())));
    events.extend(interruptions().map(|cause| Event::Ran(Err(cause))));
    events.push(Event::NotRun(store()));
    events.extend(
        [
            Closing::Told,
            Closing::Closed,
            Closing::Missing,
            Closing::Destroyed,
            Closing::Again,
            Closing::Changed,
            Closing::Vanished,
            Closing::Taken,
        ]
        .map(|closing| Event::Told(Ok(closing))),
    );
    events.extend([store(), Cause::Aborted].map(|cause| Event::Told(Err(cause))));
    events.extend([Destroyed::Gone, Destroyed::Taken].map(|destroyed| Event::Destroyed(Ok(destroyed))));
    events.push(Event::Destroyed(Err(store())));
    events.extend([Event::Entered(Ok(())), Event::Struck(Ok(())), Event::Struck(Err(locked()))]);
    events.push(Event::Entered(Err(locked())));
    events.push(Event::Settled(Ok(())));
    events.extend(
        [store(), Cause::Taken, Cause::Gone { domain: false }].map(|cause| Event::Settled(Err(cause))),
    );
    events
}

/// Whether others have made it begin again.
fn goes_round(event: &Event) -> bool {
    matches!(
        event,
        Event::Created(Created::Occupied(..) | Created::Stale(_))
            | Event::Told(Ok(Closing::Changed))
            | Event::Released(Ok(()))
    )
}

/// An operation from its begin to its end: what was asked and what came of it.
type Path = Vec<(Action, Event)>;

/// Walks every path of a machine on which others send it round in circles once at most. In every state on
/// the way, every event that does not answer what the machine asks for must change nothing. `look` sees
/// each operation that has ended.
fn walk<M: Machine + Clone + Debug>(
    machine: &M,
    is_done: impl Fn(&M) -> bool,
    mut look: impl FnMut(&[(Action, Event)], M),
) {
    let events = events();
    let mut begun = machine.clone();
    let first = begun.on(Event::Begin);
    let mut seen = BTreeSet::new();
    let mut ended = BTreeSet::new();
    let mut waiting: Vec<(M, Action, Path)> = vec![(begun, first, Vec::new())];
    while let Some((machine, action, path)) = waiting.pop() {
        assert!(path.len() < LONG, "goes on and on: {}", brief(&path));
        assert!(!machine.to_string().is_empty());
        let state = format!("{machine:?}");
        if action == Action::Finish {
            assert!(is_done(&machine), "{machine:?} after {}", brief(&path));
            if ended.insert(state + &shape(&path)) {
                look(&path, machine);
            }
            continue;
        }
        if !seen.insert(state.clone() + &shape(&path)) {
            continue;
        }
        for event in events.iter().filter(|event| !action.is_answered_by(event)) {
            let mut other = machine.clone();
            assert_eq!(other.on(event.clone()), action, "{machine:?} takes {event:?}");
            assert_eq!(format!("{other:?}"), state, "{event:?}");
        }
        let went_round = saw(&path, goes_round);
        for event in events.iter().filter(|event| action.may_result_in(event)) {
            if went_round && goes_round(event) {
                continue;
            }
            let (mut next, mut path) = (machine.clone(), path.clone());
            path.push((action.clone(), event.clone()));
            let action = next.on(event.clone());
            waiting.push((next, action, path));
        }
    }
}

/// What of a path matters for what may come: which steps were asked for since the device was looked at or
/// written last. So of the many ways to one state each is walked that differs in them.
fn shape(path: &[(Action, Event)]) -> String {
    let begins = |(action, _): &(Action, Event)| matches!(action, Action::Create(..) | Action::Probe { .. });
    let since = path.iter().rposition(begins).unwrap_or(0);
    let step = |(action, _): &(Action, Event)| match action {
        Action::On(_, Step::Run { purpose, .. }) => format!("{purpose:?}"),
        Action::On(_, step) => format!("{step:?}").chars().take(8).collect(),
        _ => String::new(),
    };
    path[since..].iter().map(step).collect::<BTreeSet<String>>().into_iter().collect()
}

/// A path for a person: a line for each step.
fn brief(path: &[(Action, Event)]) -> String {
    let line = |(action, event): &(Action, Event)| {
        let action = match action {
            Action::On(_, step) => format!("{step:?}"),
            other => format!("{other:?}").chars().take(30).collect(),
        };
        let event: String = format!("{event:?}").chars().take(90).collect();
        format!("\n  {action} --> {event}")
    };
    path.iter().map(line).collect()
}

/// The script runs of a purpose that were asked for, in their order.
fn runs(path: &[(Action, Event)], wanted: Purpose) -> Vec<usize> {
    let index = |action: &Action| match action {
        Action::On(_, Step::Run { purpose, index }) if *purpose == wanted => Some(*index),
        _ => None,
    };
    path.iter().filter_map(|(action, _)| index(action)).collect()
}

fn asked(path: &[(Action, Event)], wanted: impl Fn(&Step) -> bool) -> Option<usize> {
    path.iter().position(|(action, _)| matches!(action, Action::On(_, step) if wanted(step)))
}

fn saw(path: &[(Action, Event)], wanted: impl Fn(&Event) -> bool) -> bool {
    path.iter().any(|(_, event)| wanted(event))
}

/// Whether libxl made the domain of the device that was written or found last.
fn has_config(path: &[(Action, Event)]) -> bool {
    let target = path.iter().rev().find_map(|(_, event)| match event {
        Event::Created(Created::Done(target) | Created::Unsure(target, _)) => Some(target),
        Event::Probed(Ok(found)) => Some(&found.target),
        _ => None,
    });
    target.is_some_and(|target| target.config().is_some())
}

fn is_close(step: &Step) -> bool {
    matches!(step, Step::Close(..))
}

fn add(wait_for: WaitFor) -> Add {
    Add::new(GUEST, Arc::new(disk()), Addition::from(wait_for), Limits::default())
}

#[test]
fn a_machine_that_has_not_begun_waits_for_that() {
    let (mut add, mut remove) =
        (add(WaitFor::Script), Remove::new(WHICH, Removal::default(), Limits::default()));
    for event in events().into_iter().filter(|event| !matches!(event, Event::Begin)) {
        assert_eq!(add.on(event.clone()), Action::Finish);
        assert_eq!(remove.on(event), Action::Finish);
    }
    assert_eq!((add.to_string(), remove.to_string()), ("not begun".to_owned(), "not begun".to_owned()));
}

#[test]
fn every_add_ends_well_or_undoes_what_it_did() {
    for wait_for in [WaitFor::Script, WaitFor::Connected] {
        let mut operations = 0;
        walk(&add(wait_for), Add::is_done, |path, machine| {
            operations += 1;
            let cancellable = machine.is_cancellable();
            let (outcome, warnings) = machine.outcome();
            let written = path.iter().rposition(|(_, event)| {
                matches!(event, Event::Created(Created::Done(_) | Created::Unsure(..)))
            });
            let Some(written) = written else {
                assert!(outcome.is_err(), "{}", brief(path));
                return;
            };
            // What an earlier device left was removed before that.
            let unsure = matches!(path[written].1, Event::Created(Created::Unsure(..)));
            let path = &path[written..];
            let entry = has_config(path);
            let strikes = asked(path, |step| *step == Step::Strike);
            let (added, mut undone) = (runs(path, Purpose::Add), runs(path, Purpose::Undo));
            assert!(runs(path, Purpose::Remove).is_empty());
            if outcome.is_ok() {
                assert!(cancellable && undone.is_empty(), "{}", brief(path));
                assert!(saw(path, |event| matches!(event, Event::Settled(Ok(())))), "{}", brief(path));
                assert_eq!(
                    saw(path, |event| matches!(event, Event::Entered(Ok(())))),
                    entry,
                    "{}",
                    brief(path)
                );
                return;
            }
            assert!(!cancellable, "{}", brief(path));
            let closed = asked(path, is_close).expect("the backend is told to close");
            let first = |wanted: Purpose| {
                asked(path, |step| matches!(step, Step::Run { purpose, .. } if *purpose == wanted))
            };
            assert!(
                first(Purpose::Undo).is_none_or(|undo| closed < undo),
                "closed before it is undone: {}",
                brief(path)
            );
            // A run that was not started is not undone.
            let not_run = path.iter().filter(|(action, event)| {
                matches!(
                    (action, event),
                    (Action::On(_, Step::Run { purpose: Purpose::Add, .. }), Event::NotRun(_))
                )
            });
            let begun = &added[..added.len() - not_run.count()];
            undone.reverse();
            let destroyed = saw(path, |event| matches!(event, Event::Told(Ok(Closing::Destroyed))));
            let never = unsure
                && saw(path, |event| {
                    matches!(event, Event::Told(Ok(Closing::Vanished | Closing::Taken | Closing::Changed)))
                });
            if !destroyed && !never {
                assert_eq!(begun, undone, "each run is undone once, the last first: {}", brief(path));
            }
            let gone = saw(path, |event| matches!(event, Event::Destroyed(Ok(Destroyed::Gone))));
            assert_eq!(strikes.is_some(), (destroyed || gone) && entry, "{}", brief(path));
            let admitted =
                warnings.iter().any(|warning| matches!(warning, Warning::LeftBehind { .. } | Warning::Taken));
            assert!(
                destroyed || never || gone || admitted,
                "something is left and nobody is told: {}",
                brief(path)
            );
        });
        assert!(operations > 100, "{operations}");
    }
}

#[test]
fn the_cause_of_a_failed_add_is_what_went_wrong_first() {
    walk(&add(WaitFor::Connected), Add::is_done, |path, machine| {
        let (Err(cause), _) = machine.outcome() else { return };
        let Some(observed) =
            path.iter().rposition(|(action, _)| matches!(action, Action::On(_, Step::Observe)))
        else {
            return;
        };
        // Of a device that was in its place: the removal's own.
        let Some((_, event)) = observed.checked_sub(1).map(|before| &path[before]) else { return };
        let first = match event {
            Event::Created(Created::Unsure(_, first) | Created::Failed(first, _))
            | Event::Waited(Err(first))
            | Event::Ran(Err(first))
            | Event::NotRun(first)
            | Event::Told(Err(first))
            | Event::Destroyed(Err(first))
            | Event::Entered(Err(first))
            | Event::Settled(Err(first)) => first.to_string(),
            Event::Told(Ok(Closing::Taken)) | Event::Destroyed(Ok(Destroyed::Taken)) => {
                Cause::Taken.to_string()
            }
            other => panic!("{other:?} is no failure"),
        };
        assert_eq!(cause.to_string(), first);
    });
}

#[test]
fn every_removal_asks_in_the_right_order() {
    for force in [Force::Never, Force::AfterTimeout, Force::AtOnce] {
        let mut operations = 0;
        walk(
            &Remove::new(WHICH, Removal::from(force), Limits::default()),
            Remove::is_done,
            |path, machine| {
                operations += 1;
                let (outcome, _) = machine.outcome();
                assert!(matches!(path[0].0, Action::Probe { .. }));
                let closes = |wanted: Frontend| {
                    asked(path, |step| matches!(step, Step::Close(_, frontend) if *frontend == wanted))
                };
                // Without consent only if there is nobody left to give it.
                let over =
                    path.iter().position(|(_, event)| matches!(event, Event::Waited(Ok(Reached::GuestOver))));
                if let (Force::Never, Some(deleted)) = (force, closes(Frontend::Delete)) {
                    assert!(over.is_some_and(|over| over < deleted), "{}", brief(path));
                }
                assert!(over.is_none_or(|over| matches!(
                    path.get(over + 1),
                    Some((Action::On(_, Step::Close(Claim::Kept, Frontend::Delete)), _))
                )));
                assert!(!(force == Force::AtOnce && closes(Frontend::Keep).is_some()), "{}", brief(path));
                if let (Force::AfterTimeout, Some(deleted)) = (force, closes(Frontend::Delete)) {
                    let asked_before = closes(Frontend::Keep).or(closes(Frontend::DeleteIfIdle));
                    assert!(
                        asked_before.is_some_and(|kept| kept < deleted),
                        "the guest is asked first: {}",
                        brief(path)
                    );
                }
                assert!(runs(path, Purpose::Add).is_empty() && runs(path, Purpose::Undo).is_empty());
                if let Some(destroyed) = asked(path, |step| *step == Step::Destroy) {
                    assert!(asked(path, is_close).is_some_and(|told| told < destroyed), "{}", brief(path));
                }
                let gone = saw(path, |event| {
                    matches!(
                        event,
                        Event::Told(Ok(Closing::Destroyed | Closing::Vanished))
                            | Event::Destroyed(Ok(Destroyed::Gone))
                            | Event::Probed(Err(Cause::NoSuchDevice))
                    )
                });
                assert!(outcome.is_err() || gone, "gone, it says: {}", brief(path));
                let absent = saw(path, |event| matches!(event, Event::Probed(Err(Cause::NoSuchDevice))));
                let strikes = asked(path, |step| *step == Step::Strike).is_some();
                assert_eq!(strikes, gone && !absent && has_config(path), "{}", brief(path));
                // Who claimed the device and failed leaves a mark that nobody works on it.
                let claimed = saw(path, |event| {
                    matches!(
                        event,
                        Event::Told(Ok(Closing::Told | Closing::Closed | Closing::Missing | Closing::Again))
                    )
                });
                let kept = path
                    .iter()
                    .any(|(action, _)| matches!(action, Action::On(_, Step::Close(Claim::Kept, _))));
                assert!(claimed || !kept);
                assert_eq!(
                    asked(path, |step| *step == Step::Leave).is_some(),
                    outcome.is_err() && claimed,
                    "{}",
                    brief(path)
                );
            },
        );
        assert!(operations > 50, "{operations}");
    }
}
