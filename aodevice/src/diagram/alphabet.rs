//! Every event that a machine may be given, with one of each outcome.
//!
//! The lists are complete or do not compile: see [`every`]. Whether a machine tells two causes of a failure
//! apart is not assumed: each event of a failure comes with every cause.

use std::time::Duration;

use xen_devstate::XenbusState;
use xen_hotplug::{Ending, Output, Report, Request};
use xs_client::{DomId, ErrorCode, Op};

use crate::libxl::{ConfigError, Userdata};
use crate::machine::{Closing, Created, Destroyed, Event, Found, Node, Reached};
use crate::{BackendKind, Cause, DeviceId, DriverDomainFault, Kind, Occupant, RunBy, Target, Warning, Which};

const WHICH: Which = Which { fe: DomId(1), kind: Kind::Vbd, devid: 51712 };

/// Examples of every variant of a type, one line for each variant. One that has no line is a match that is not
/// exhaustive, and so an error of the compiler.
macro_rules! every {
    ($type:ty: $($pattern:pat => $examples:expr),+ $(,)?) => {{
        const _: fn(&$type) = |value| match value { $($pattern => {}),+ };
        let mut all: Vec<$type> = Vec::new();
        $(all.extend($examples);)+
        all
    }};
}

/// Every event, a success before a failure.
pub(super) fn events() -> Vec<Event> {
    every!(Event:
        Event::Begin => [Event::Begin],
        Event::Checked(_) => results(&[()], Event::Checked),
        Event::Created(_) => created().into_iter().map(Event::Created),
        Event::Probed(_) => results(&found(), Event::Probed),
        Event::Released(_) => results(&[()], Event::Released),
        Event::Waited(_) => results(&reached(), Event::Waited),
        Event::Ran(_) => results(&[None, Some(Warning::ScriptSkipped)], Event::Ran),
        Event::NotRun(_) => causes().into_iter().map(Event::NotRun),
        Event::Told(_) => results(&closings(), Event::Told),
        Event::ClosedForServer(_) => results(&[()], Event::ClosedForServer),
        Event::Destroyed(_) => results(&destroyed(), Event::Destroyed),
        Event::Entered(_) => results(&[()], Event::Entered),
        Event::Struck(_) => results(&[()], Event::Struck),
        Event::Settled(_) => results(&[()], Event::Settled),
        Event::Observed => [Event::Observed],
        Event::Left => [Event::Left],
    )
}

/// An event with each of these successes, and with every cause of a failure.
fn results<T: Clone>(successes: &[T], event: fn(Result<T, Cause>) -> Event) -> Vec<Event> {
    let successes = successes.iter().cloned().map(Ok);
    successes.chain(causes().into_iter().map(Err)).map(event).collect()
}

fn created() -> Vec<Created> {
    let [live, dead @ ..] = occupants();
    let unsure = || {
        targets()
            .into_iter()
            .flat_map(|target| causes().into_iter().map(move |cause| (target.clone(), cause)))
    };
    every!(Created:
        Created::Done(_) => targets().into_iter().map(Created::Done),
        Created::Occupied(..) => [live].into_iter().chain(dead).map(|occupant| Created::Occupied(WHICH, occupant)),
        Created::Stale(_) => [Created::Stale(WHICH)],
        Created::Failed(..) => causes()
            .into_iter()
            .map(|cause| Created::Failed(cause, None))
            .chain(unsure().map(|(target, cause)| Created::Failed(cause, Some(target)))),
        Created::Unsure(..) => unsure().map(|(target, cause)| Created::Unsure(target, cause)),
    )
}

fn found() -> Vec<Found> {
    let occupants = || [None].into_iter().chain(occupants().map(Some));
    targets()
        .into_iter()
        .flat_map(|target| occupants().map(move |occupant| Found::new(target.clone(), occupant)))
        .collect()
}

/// Somebody who is alive, and two who died: in a removal, and in an add.
fn occupants() -> [Occupant; 3] {
    [("add:1", true), ("remove:1", false), ("add:1", false)]
        .map(|(record, alive)| Occupant::new(record, alive))
}

fn reached() -> Vec<Reached> {
    every!(Reached:
        Reached::Value => [Reached::Value],
        Reached::Gone => [Reached::Gone],
        Reached::ImageOpen => [Reached::ImageOpen],
        Reached::ServerGone => [Reached::ServerGone],
        Reached::ServerUnseen => [Reached::ServerUnseen],
        Reached::GuestOver => [Reached::GuestOver],
    )
}

fn closings() -> Vec<Closing> {
    every!(Closing:
        Closing::Told => [Closing::Told],
        Closing::Closed => [Closing::Closed],
        Closing::Missing => [Closing::Missing],
        Closing::Destroyed => [Closing::Destroyed],
        Closing::Again => [Closing::Again],
        Closing::Changed => [Closing::Changed],
        Closing::Vanished => [Closing::Vanished],
        Closing::Taken => [Closing::Taken],
    )
}

fn destroyed() -> Vec<Destroyed> {
    every!(Destroyed: Destroyed::Gone => [Destroyed::Gone], Destroyed::Taken => [Destroyed::Taken])
}

/// Devices with no script run, one and two, with something that a script has made or not, with backends here and in a
/// driver domain, in a domain with a configuration of libxl and without.
fn targets() -> Vec<Target> {
    let script = ("script", "/etc/xen/scripts/script");
    let interface = Which { kind: Kind::Vif, devid: 0, ..WHICH };
    let kernel = |which| DeviceId::new(which, DomId::DOM0);
    let recorded: [(DeviceId, &[(&str, &str)]); 5] = [
        (kernel(interface), &[script, ("type", "vif_ioemu")]),
        (kernel(WHICH), &[script]),
        (kernel(WHICH), &[("node", "/dev/loop0")]),
        (kernel(WHICH), &[]),
        (DeviceId::with_backend(WHICH, DomId::DOM0, BackendKind::Qdisk), &[]),
    ];
    let driver_domain = DomId(3);
    let remote: [(DeviceId, &[(&str, &str)]); 3] = [
        (DeviceId::new(interface, driver_domain), &[script, ("type", "vif_ioemu")]),
        (DeviceId::new(WHICH, driver_domain), &[script]),
        (DeviceId::with_backend(WHICH, driver_domain, BackendKind::Qdisk), &[]),
    ];
    let config = Userdata::new("/var/lib/xen", WHICH.fe, "/vm/00000000-0000-4000-8000-000000000001");
    let target = |(id, keys): (DeviceId, &[(&str, &str)])| {
        let keys = keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Target::new(id, keys).ok()
    };
    let elsewhere = [RunBy::Daemon, RunBy::Nobody];
    let remote = remote.into_iter().filter_map(target);
    let remote = remote.flat_map(|target| elsewhere.map(|run_by| target.clone().with_scripts_run_by(run_by)));
    let targets = recorded.into_iter().filter_map(target).chain(remote);
    targets.flat_map(|target| [target.clone().with_config(config.clone()), target]).collect()
}

fn script() -> (Box<Request>, Box<Report>) {
    let run =
        Request::new(xen_hotplug::Kind::Vbd, xen_hotplug::Action::Add, WHICH.fe.0, WHICH.devid, "script");
    (Box::new(run), Box::new(Report::new(Ending::Exited(1), Output::default(), Duration::ZERO)))
}

/// Every cause of a failure.
fn causes() -> Vec<Cause> {
    let (node, limit) = (Node::BackendState, Duration::ZERO);
    let (run, report) = script();
    let [occupant, ..] = occupants();
    let unanswered = xs_client::Error::Store { op: Op::READ, path: None, code: ErrorCode::EIO };
    every!(Cause:
        Cause::TimedOut { .. } => [Cause::TimedOut { node, goal: String::new(), limit }],
        Cause::Refused { .. } => [Cause::Refused { node, goal: String::new(), found: String::new() }],
        Cause::Vanished(_) => [Cause::Vanished(node)],
        Cause::Gone { .. } => [false, true].map(|domain| Cause::Gone { domain }),
        Cause::Taken => [Cause::Taken],
        Cause::Script { .. } => [Cause::Script { run: run.clone(), report: report.clone() }],
        Cause::Reported { .. } => [Cause::Reported { run, report }],
        Cause::Undecided(_) => [Cause::Undecided(Vec::new())],
        Cause::NotPermitted => [Cause::NotPermitted],
        Cause::Aborted => [Cause::Aborted],
        // Of several operations, and none of a machine.
        Cause::Deadline => [],
        // Of a script that is run by hand.
        Cause::InUse { .. } => [],
        Cause::NoScript(_) => [],
        Cause::Asked(_) => [Cause::Asked(String::new())],
        Cause::Store(_) => [Cause::Store(unanswered)],
        Cause::Config { .. } => [Cause::Config { file: Default::default(), problem: ConfigError::Busy(limit) }],
        Cause::Busy { .. } => [Cause::Busy { occupant: Box::new(occupant), limit }],
        Cause::NoSuchDevice => [Cause::NoSuchDevice],
        Cause::NoSuchDomain(_) => [Cause::NoSuchDomain(String::new())],
        Cause::DomainGone(_) => [Cause::DomainGone(WHICH.fe)],
        Cause::AmbiguousName { .. } => [Cause::AmbiguousName { name: String::new(), domids: Vec::new() }],
        Cause::Exists => [Cause::Exists],
        Cause::Unfinished => [Cause::Unfinished],
        Cause::Unrecorded(_) => [Cause::Unrecorded(XenbusState::Connected)],
        Cause::FrontendInUse(_) => [Cause::FrontendInUse(XenbusState::Connected)],
        Cause::Invalid(_) => [Cause::Invalid(String::new())],
        Cause::Target(_) => [Cause::Target(String::new())],
        Cause::Unsupported(_) => [Cause::Unsupported(String::new())],
        Cause::NotSupported { .. } => [Cause::NotSupported { what: String::new(), needs: "" }],
        Cause::NotInDomain0(_) => [Cause::NotInDomain0("")],
        Cause::NoDeviceModel(_) => [Cause::NoDeviceModel(WHICH.fe)],
        Cause::DeviceModel { .. } => [Cause::DeviceModel { said: String::new(), log: Default::default() }],
        Cause::Daemon { .. } => [Cause::Daemon { name: "xen-9pfsd", problem: String::new() }],
        Cause::NoEmulatedTwin(_) => [Cause::NoEmulatedTwin(String::new())],
        Cause::NoDrive(_) => [Cause::NoDrive(String::new())],
        Cause::Monitor { .. } => [Cause::Monitor {
            socket: Default::default(),
            problem: crate::MonitorError::Busy(limit),
        }],
        Cause::ModelRefused { .. } => [Cause::ModelRefused {
            command: "eject",
            said: String::new(),
            locked: None,
            no_drive: false,
        }],
        Cause::NoHostDevice(_) => [Cause::NoHostDevice(String::new())],
        Cause::Assigned { .. } => [Cause::Assigned { device: String::new(), domid: DomId(1), place: String::new() }],
        Cause::NoHostDriver(_) => [Cause::NoHostDriver("")],
        Cause::Host(_) => [Cause::Host(String::new())],
        Cause::HostSilent(_) => [Cause::HostSilent(limit)],
        Cause::BackendDomain { .. } => [Cause::BackendDomain { name: String::new(), cause: Box::new(Cause::Exists) }],
        Cause::DriverDomain { .. } => [
            DriverDomainFault::Gone,
            DriverDomainFault::Silent { limit },
            DriverDomainFault::NotRemoved { limit },
        ].map(|fault| Cause::DriverDomain { be: DomId(3), fault }),
        Cause::ForeignBackend(_) => [Cause::ForeignBackend(String::new())],
    )
}
