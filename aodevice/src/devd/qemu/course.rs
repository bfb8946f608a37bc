//! What is to be done for a guest's QEMU and the devices that it serves: a plain value in, a plain value out.
//!
//! | device | QEMU | what is done |
//! | --- | --- | --- |
//! | new, at 1 | any | it is noted, and waits for QEMU |
//! | waits | none | QEMU is started |
//! | waits, at 2, 3 or 4 | lives | it has what it needs |
//! | waits | refuses it, or takes too long | it failed |
//! | waits or works | ends by itself | it failed: nothing is tried again |
//! | works | none, and nobody has seen it end | it waits anew: the daemon was away as it ended |
//! | leaves | lives | QEMU closes it, and removes the directory of a disk; what QEMU leaves is removed here |
//! | leaves | none, or has refused it | it goes |
//! | none is there | lives | QEMU is told to end, and killed if it does not |
//! | comes meanwhile | was told to end | it waits for the end, and for the next QEMU |
//!
//! A QEMU takes up devices at 1 alone, and one that has ended leaves their states as they were. So a device that waits
//! anew goes back to 1, and no state that was written by one QEMU is taken for the word of the next.

use xen_devstate::XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};

use crate::BackendKind;
use crate::devd::Place;
use crate::devd::course::{Backend, Seen as Stands};
use crate::devd::note::{Note, Stage};
use crate::operation::said;

/// A device of the guest's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) stands: Stands,
    /// Whether QEMU has had its time for what it is to do with the device.
    pub(super) overdue: bool,
    /// What QEMU has said of it in its log, that being why it does not serve it.
    pub(super) refusal: Option<String>,
    /// Whether the store refuses what is to be done for it, for now.
    pub(super) is_stuck: bool,
}

/// How a guest's QEMU stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Qemu {
    /// There is none.
    #[default]
    None,
    /// It has not said yet that it serves devices.
    Starting,
    Running,
    /// It was told to end.
    Ending,
    /// It could not be started, or has ended by itself, and its devices do not know it yet.
    Failed,
}

impl Qemu {
    fn serves(self) -> bool {
        matches!(self, Self::Starting | Self::Running)
    }

    fn lives(self) -> bool {
        self.serves() || self == Self::Ending
    }
}

/// What there is of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) devices: Vec<(Place, Device)>,
    pub(super) qemu: Qemu,
    /// Whether its QEMU has had its time to start or to end.
    pub(super) overdue: bool,
    /// Whether the store tells of a QEMU.
    pub(super) is_recorded: bool,
}

/// Why a device failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// QEMU ended, or could not be started.
    Failed,
    /// QEMU did not say in time that it serves devices.
    NotStarted,
    /// QEMU did not take it up in time.
    NotTaken,
    /// QEMU says that it cannot, in these words.
    Refused(String),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// Note that a device waits for QEMU, and take it back to 1.
    Await(Place),
    /// Note that a device is served, or was refused, as another daemon has left it.
    Adopt(Place, Stage),
    /// Note that a device is served, and say so.
    Attached(Place),
    Fail(Place, Why),
    /// Remove the directory and the note of a device.
    Remove(Place),
    /// Remove the note of a device whose directory is gone.
    Forget(Place),
    Start,
    /// Tell QEMU to end.
    End,
    /// Kill it.
    Kill,
    /// Remove what the store says of a QEMU that has ended.
    Clear,
}

/// What is to be done next for a guest.
pub(super) fn next(seen: &Seen) -> Action {
    let devices = seen.devices.iter().filter(|(_, device)| !device.is_stuck);
    let mut actions = devices.map(|(place, device)| of_device(*place, device, seen));
    if let Some(action) = actions.find(|action| *action != Action::Nothing) {
        return action;
    }
    let is_there = |(_, device): &(Place, Device)| device.stands.backend.is_some();
    let waits = |(_, device): &(Place, Device)| {
        device.stands.note.as_ref().is_some_and(|note| note.stage == Stage::Adding)
    };
    match seen.qemu {
        // Its failure is not forgotten before all its devices are told.
        Qemu::Failed if seen.devices.iter().any(|(_, device)| device.is_stuck) => Action::Nothing,
        Qemu::Failed => Action::Clear,
        Qemu::None if seen.is_recorded => Action::Clear,
        Qemu::None if seen.devices.iter().any(waits) => Action::Start,
        Qemu::Starting | Qemu::Running if !seen.devices.iter().any(is_there) => Action::End,
        Qemu::Starting | Qemu::Ending if seen.overdue => Action::Kill,
        _ => Action::Nothing,
    }
}

fn of_device(place: Place, device: &Device, seen: &Seen) -> Action {
    let (backend, note) = match (&device.stands.backend, &device.stands.note) {
        (None, None) => return Action::Nothing,
        (Some(backend), None) => (backend, None),
        (Some(backend), Some(note)) if backend.token.as_ref() == Some(&note.token) => (backend, Some(note)),
        // Of a device that is gone, or was replaced.
        (_, Some(_)) => return Action::Forget(place),
    };
    if backend.leaves() {
        return if is_awaited(place.backend_kind, (backend, note), device, seen.qemu) {
            Action::Nothing
        } else {
            Action::Remove(place)
        };
    }
    match note {
        None => unknown(place, backend, seen.qemu),
        Some(note) => known(place, (backend, note), device, seen),
    }
}

/// Whether QEMU is still to close a device that leaves, or to remove its directory.
fn is_awaited(
    kind: BackendKind,
    (backend, note): (&Backend, Option<&Note>),
    device: &Device,
    qemu: Qemu,
) -> bool {
    if !qemu.lives() || note.is_some_and(|note| note.stage == Stage::Failed) {
        return false;
    }
    let is_served = note.is_some_and(|note| note.stage == Stage::Attached) || backend.status.is_some();
    match backend.state {
        Some(Closing) if is_served => true,
        Some(Closing) => !device.overdue,
        // Only a disk's directory is removed by QEMU itself, shortly before it closes the image.
        _ => is_served && kind == BackendKind::Qdisk && !device.overdue,
    }
}

fn has_been_taken_up(backend: &Backend) -> bool {
    matches!(backend.state, Some(InitWait | Initialised | Connected))
}

fn unknown(place: Place, backend: &Backend, qemu: Qemu) -> Action {
    let is_refused = backend.status.as_deref().is_some_and(said::is_failure);
    match backend.state {
        _ if is_refused => Action::Adopt(place, Stage::Failed),
        Some(InitWait | Initialised | Connected) if qemu.serves() => Action::Adopt(place, Stage::Attached),
        Some(Closing | Closed) if qemu.serves() && backend.status.is_some() => {
            Action::Adopt(place, Stage::Attached)
        }
        Some(Initialising) => Action::Await(place),
        // What the QEMU before has left.
        Some(InitWait | Initialised | Connected) if qemu == Qemu::None => Action::Await(place),
        _ => Action::Nothing,
    }
}

fn known(place: Place, (backend, note): (&Backend, &Note), device: &Device, seen: &Seen) -> Action {
    let is_taken_up = has_been_taken_up(backend);
    match (note.stage, seen.qemu) {
        (Stage::Removing, _) => Action::Remove(place),
        (Stage::Adding | Stage::Attached, Qemu::Failed) => Action::Fail(place, Why::Failed),
        (Stage::Adding, Qemu::Starting | Qemu::Running) if is_taken_up => Action::Attached(place),
        (Stage::Adding, Qemu::Starting) if seen.overdue => Action::Fail(place, Why::NotStarted),
        (Stage::Adding, Qemu::Starting | Qemu::Running) => match &device.refusal {
            Some(said) => Action::Fail(place, Why::Refused(said.clone())),
            None if device.overdue => Action::Fail(place, Why::NotTaken),
            None => Action::Nothing,
        },
        (Stage::Adding, Qemu::None) if backend.state != Some(Initialising) => Action::Await(place),
        (Stage::Attached, Qemu::None) => Action::Await(place),
        // The QEMU of another device has taken it up after all, and says so itself.
        (Stage::Failed, qemu)
            if qemu.serves() && is_taken_up && backend.status.as_deref() == Some("connected") =>
        {
            Action::Attached(place)
        }
        _ => Action::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use xen_devstate::XenbusState;
    use xs_client::DomId;

    use super::*;
    use crate::kind::Recorded;

    fn place(kind: BackendKind, devid: u32) -> Place {
        Place { backend_kind: kind, domid: DomId(2), devid }
    }

    const DISK: u32 = 51712;

    fn xvda() -> Place {
        place(BackendKind::Qdisk, DISK)
    }

    /// A device as a dialogue tells of it: the state, and what else is there in words.
    fn device(words: &str) -> (Place, Device) {
        let mut device = Device::default();
        let mut backend = Backend { online: true, ..Backend::default() };
        let (mut place, mut stage, mut is_there) = (xvda(), None, true);
        for word in words.split_whitespace() {
            match word {
                "9pfs" => place.backend_kind = BackendKind::P9,
                "xvdb" => place.devid = DISK + 16,
                "gone" => is_there = false,
                "offline" => backend.online = false,
                "connected" | "error" => backend.status = Some(word.to_owned()),
                "overdue" => device.overdue = true,
                "refused" => device.refusal = Some("no image".to_owned()),
                "stuck" => device.is_stuck = true,
                "there" => {}
                "waits" => stage = Some(Stage::Adding),
                "works" => stage = Some(Stage::Attached),
                "failed" => stage = Some(Stage::Failed),
                "another" => backend.token = Some("another".to_owned()),
                state => backend.state = Some(XenbusState::from_number(state.parse().unwrap()).unwrap()),
            }
        }
        if let Some(stage) = stage {
            let note = Note::new(stage, Recorded::new());
            backend.token = Some(backend.token.unwrap_or(note.token.clone()));
            device.stands.note = Some(note);
        }
        device.stands.backend = is_there.then_some(backend);
        (place, device)
    }

    /// The devices with commas between them, and QEMU.
    fn seen(devices: &str, qemu: &str) -> Seen {
        let devices = devices.split(',').filter(|words| !words.trim().is_empty()).map(device).collect();
        let mut seen = Seen { devices, ..Seen::default() };
        for word in qemu.split_whitespace() {
            match word {
                "none" => seen.qemu = Qemu::None,
                "starts" => seen.qemu = Qemu::Starting,
                "runs" => seen.qemu = Qemu::Running,
                "ends" => seen.qemu = Qemu::Ending,
                "failed" => seen.qemu = Qemu::Failed,
                "overdue" => seen.overdue = true,
                "recorded" => seen.is_recorded = true,
                word => panic!("{word}"),
            }
        }
        seen
    }

    fn dialogue(lines: &[(&str, &str, Action)]) {
        for (devices, qemu, expected) in lines {
            assert_eq!(next(&seen(devices, qemu)), *expected, "{devices} | {qemu}");
        }
    }

    #[test]
    fn the_life_of_a_disk() {
        dialogue(&[
            ("1", "none", Action::Await(xvda())),
            ("1 waits", "none", Action::Start),
            ("1 waits", "starts recorded", Action::Nothing),
            ("1 waits", "runs recorded", Action::Nothing),
            ("2 connected waits", "runs", Action::Attached(xvda())),
            ("4 connected works", "runs", Action::Nothing),
            // The guest reboots.
            ("6 connected works", "runs", Action::Nothing),
            ("5 offline connected works", "runs", Action::Nothing),
            ("6 offline connected works", "runs", Action::Nothing),
            ("gone works", "runs", Action::Forget(xvda())),
            ("", "runs", Action::End),
            ("", "ends", Action::Nothing),
            ("", "none recorded", Action::Clear),
            ("", "none", Action::Nothing),
        ]);
    }

    /// Vector 25: who uses it is no count, so none goes wrong by what fails, is done twice, or is forgotten.
    #[test]
    fn vector_25_b41_it_ends_after_the_last_of_its_devices() {
        dialogue(&[
            ("1 waits, xvdb 1 waits", "none", Action::Start),
            ("4 works, xvdb 4 works", "runs", Action::Nothing),
            ("gone works, xvdb 4 works", "runs", Action::Forget(xvda())),
            ("xvdb 4 works", "runs", Action::Nothing),
            ("xvdb 1 error failed", "runs", Action::Nothing),
            ("9pfs 4 works", "runs", Action::Nothing),
            ("xvdb 6 offline works", "runs", Action::Nothing),
            ("4 works stuck", "runs", Action::Nothing),
            ("", "runs", Action::End),
            ("", "starts", Action::End),
        ]);
    }

    #[test]
    fn b44_a_device_that_comes_while_it_ends_waits_for_the_next_one() {
        dialogue(&[
            ("1", "ends", Action::Await(xvda())),
            ("1 waits", "ends", Action::Nothing),
            // The one that ends has taken it up, or so it looks.
            ("2 connected waits", "ends", Action::Nothing),
            ("2 connected", "ends", Action::Nothing),
            ("2 connected waits", "none recorded", Action::Await(xvda())),
            ("1 waits", "none recorded", Action::Clear),
            ("1 waits", "none", Action::Start),
            ("1 waits", "ends overdue", Action::Kill),
        ]);
    }

    #[test]
    fn b41_whatever_fails_is_told_once_and_not_tried_again() {
        let fail = |why| Action::Fail(xvda(), why);
        dialogue(&[
            ("1 waits", "failed recorded", fail(Why::Failed)),
            ("4 works", "failed recorded", fail(Why::Failed)),
            ("1 waits", "starts overdue", fail(Why::NotStarted)),
            ("1 error failed", "starts overdue", Action::Kill),
            ("1 waits overdue", "runs", fail(Why::NotTaken)),
            ("1 waits refused", "runs", fail(Why::Refused("no image".to_owned()))),
            ("1 waits refused", "starts", fail(Why::Refused("no image".to_owned()))),
            ("1 error failed", "failed recorded", Action::Clear),
            ("1 error failed", "none", Action::Nothing),
            ("4 error failed", "none", Action::Nothing),
            ("4 error failed", "runs", Action::Nothing),
            ("4 connected failed", "runs", Action::Attached(xvda())),
            ("1 waits stuck", "failed", Action::Nothing),
        ]);
    }

    /// What QEMU does not close, or leaves behind, nobody waits for.
    #[test]
    fn a_device_that_leaves_goes_whatever_becomes_of_its_qemu() {
        let remove = Action::Remove(xvda());
        for qemu in ["none", "failed"] {
            dialogue(&[
                ("5 offline works", qemu, remove.clone()),
                ("6 offline works", qemu, remove.clone()),
                ("5 offline", qemu, remove.clone()),
            ]);
        }
        dialogue(&[
            ("5 offline error failed", "runs", remove.clone()),
            ("6 offline works overdue", "runs", remove.clone()),
            ("6 offline waits", "runs", remove.clone()),
            ("6 offline connected waits", "runs", Action::Nothing),
            ("5 offline waits", "runs", Action::Nothing),
            ("5 offline waits overdue", "runs", remove.clone()),
            ("5 offline connected works overdue", "runs", Action::Nothing),
            ("9pfs 6 offline works", "runs", Action::Remove(place(BackendKind::P9, DISK))),
            ("2 another works", "runs", Action::Forget(xvda())),
        ]);
    }

    /// B-42, and what a daemon that was killed has left.
    #[test]
    fn b42_what_a_daemon_finds() {
        dialogue(&[
            ("4 connected", "runs", Action::Adopt(xvda(), Stage::Attached)),
            ("6 connected", "runs", Action::Adopt(xvda(), Stage::Attached)),
            ("1 error", "none", Action::Adopt(xvda(), Stage::Failed)),
            ("4 connected", "none", Action::Await(xvda())),
            ("4 connected works", "none recorded", Action::Await(xvda())),
            ("4 connected waits", "none", Action::Await(xvda())),
            ("6", "none", Action::Nothing),
            ("", "none recorded", Action::Clear),
        ]);
    }

    /// Whatever stands in the store, what is done for it comes to an end: no two looks ask for the same for ever.
    #[test]
    fn each_action_leads_to_another_look() {
        let states = ["", "1", "2", "3", "4", "5", "6", "7", "8"];
        let lines = ["", "offline", "connected", "error", "offline connected", "offline error"];
        let notes = ["", "waits", "works", "failed", "another works"];
        let qemus =
            ["none", "none recorded", "starts", "runs", "ends", "failed", "starts overdue", "ends overdue"];
        let words =
            states.iter().flat_map(|state| lines.iter().map(move |line| format!("there {state} {line}")));
        let words: Vec<_> = words.flat_map(|words| notes.map(|note| format!("{words} {note}"))).collect();
        for (words, qemu) in words.iter().flat_map(|words| qemus.map(|qemu| (words, qemu))) {
            let mut now = seen(words, qemu);
            let mut asked = Vec::new();
            loop {
                let action = next(&now);
                assert!(asked.len() < 8, "{words} | {qemu}: {asked:?}");
                if matches!(action, Action::Nothing | Action::Start | Action::End | Action::Kill) {
                    break;
                }
                carried_out(&mut now, &action);
                asked.push(action);
            }
        }
    }

    /// What the store says once an action has been carried out.
    fn carried_out(seen: &mut Seen, action: &Action) {
        let stands = &mut seen.devices[0].1.stands;
        let noted = |stands: &mut Stands, stage| {
            let note = Note::new(stage, Recorded::new());
            if let Some(backend) = &mut stands.backend {
                backend.token = Some(note.token.clone());
            }
            stands.note = Some(note);
        };
        let status = |stands: &mut Stands, status: Option<&str>| {
            if let Some(backend) = &mut stands.backend {
                backend.status = status.map(str::to_owned);
            }
        };
        match action {
            Action::Await(_) => {
                noted(stands, Stage::Adding);
                status(stands, None);
                stands.backend.as_mut().unwrap().state = Some(Initialising);
            }
            Action::Adopt(_, stage) => noted(stands, *stage),
            Action::Attached(_) => {
                noted(stands, Stage::Attached);
                status(stands, Some("connected"));
            }
            Action::Fail(..) => {
                noted(stands, Stage::Failed);
                status(stands, Some("error"));
            }
            Action::Remove(_) => *stands = Stands::default(),
            Action::Forget(_) => stands.note = None,
            Action::Clear => (seen.qemu, seen.is_recorded) = (Qemu::None, false),
            _ => {}
        }
    }
}
