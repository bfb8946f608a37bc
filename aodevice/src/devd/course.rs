//! What is to be done for a device that this domain serves: a plain value in, a plain value out.
//!
//! [`Seen`] is what the store says now, the daemon's own note included; [`next`] says what follows from it. There is
//! no other memory, so a daemon that was killed at any point goes on from the store as one that was not.
//!
//! | backend | note | what is done |
//! | --- | --- | --- |
//! | at 2, nothing reported | none | its script sets it up |
//! | at 2 and reported, at 3 or 4 | none | adopted without a script: another daemon's work |
//! | at 6 with `online` = 0 | any | its script undoes its work; backend and note go |
//! | at 5 with `online` = 0, and nothing was ever done for it | none | backend goes: no kernel has taken it up |
//! | any | adding, and the script has reported | the daemon died behind it: attached, or failed |
//! | any | adding, and nothing is reported | the daemon died before: undone, and begun anew |
//! | at 1 | attached or failed | the toolstack begins anew: undone |
//! | any | removing, postponed | the daemon died in a removal, or could not begin it: removed |
//! | gone, or without the note's token | any | undone by what the note tells, which goes |

use xen_devstate::XenbusState::{self, Closed, Closing, Connected, InitWait, Initialised, Initialising};

use super::note::{Note, Stage};
use crate::operation::said;
use crate::{BackendKind, Server};

/// What a backend's directory says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Backend {
    pub(super) state: Option<XenbusState>,
    /// Whether the toolstack wants the device: so if `online` is not there.
    pub(super) online: bool,
    /// `hotplug-status`, unless it is empty.
    pub(super) status: Option<String>,
    /// Whether the device's script has told by a key what it made.
    pub(super) made: bool,
    /// The token of the add that it belongs to.
    pub(super) token: Option<String>,
}

impl Backend {
    fn has_failed(&self) -> bool {
        self.status.as_deref().is_some_and(said::is_failure)
    }

    /// Whether a script has come to its end for it. One that writes `connected` without telling of a block device has
    /// found none.
    fn has_reported(&self, kind: BackendKind) -> bool {
        match kind {
            BackendKind::Vif => self.status.is_some(),
            _ => self.made || self.status.is_some(),
        }
    }

    fn works(&self, kind: BackendKind) -> bool {
        !self.has_failed() && (self.made || kind == BackendKind::Vif)
    }

    /// Whether it is on its way out.
    pub(super) fn leaves(&self) -> bool {
        !self.online && matches!(self.state, None | Some(Closing | Closed))
    }
}

/// What the store says of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// `None` if there is no such directory, or it is not a backend's.
    pub(super) backend: Option<Backend>,
    pub(super) note: Option<Note>,
}

/// What is done at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    Nothing,
    /// A script sets the device up.
    Adding,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// Set it up.
    Add,
    /// Note that it was set up, or was not.
    Adopt(Stage),
    /// Say that nobody will serve it.
    Refuse,
    /// Undo the script's work, and remove backend and note.
    Remove,
    /// Undo the script's work in the backend's directory, which stays as a new one.
    Reset,
    /// Undo the work of an add whose backend is gone.
    Undo,
    /// Give up the add that is going on.
    Cancel,
}

/// Whether it takes a program that this daemon does not start.
fn is_unserved(kind: BackendKind) -> bool {
    kind.server() == Server::DeviceModel && kind != BackendKind::Console
}

/// What is to be done for a device of such a backend.
pub(super) fn next(kind: BackendKind, seen: &Seen, doing: Doing) -> Action {
    let (backend, note) = match (&seen.backend, &seen.note) {
        (None, None) if doing == Doing::Adding => return Action::Cancel,
        (None, None) => return Action::Nothing,
        (Some(backend), Some(note)) if backend.token.as_ref() == Some(&note.token) => (backend, Some(note)),
        (Some(backend), None) => (backend, None),
        // Of another device, or of none.
        (_, Some(_)) if doing == Doing::Adding => return Action::Cancel,
        (_, Some(_)) => return Action::Undo,
    };
    if doing == Doing::Adding {
        return if backend.leaves() { Action::Cancel } else { Action::Nothing };
    }
    match note {
        Some(note) => known(kind, backend, note),
        None => unknown(kind, backend),
    }
}

fn known(kind: BackendKind, backend: &Backend, note: &Note) -> Action {
    let is_refused = note.stage == Stage::Failed && is_unserved(kind);
    match (note.stage, backend.state) {
        (Stage::Removing | Stage::Postponed, _) => Action::Remove,
        (_, Some(Closed)) if !backend.online => Action::Remove,
        (_, Some(Closing)) if !backend.online && is_refused => Action::Remove,
        (Stage::Adding, _) if !backend.has_reported(kind) => Action::Reset,
        (Stage::Adding, _) => {
            Action::Adopt(if backend.works(kind) { Stage::Attached } else { Stage::Failed })
        }
        (Stage::Attached | Stage::Failed, Some(Initialising)) if !is_refused => Action::Reset,
        _ => Action::Nothing,
    }
}

fn unknown(kind: BackendKind, backend: &Backend) -> Action {
    let has_reported = backend.has_reported(kind);
    match backend.state {
        Some(Closed) if !backend.online => Action::Remove,
        Some(Closing) if !backend.online && !has_reported => Action::Remove,
        Some(Initialising | InitWait) if is_unserved(kind) => Action::Refuse,
        Some(InitWait) if !has_reported => Action::Add,
        Some(InitWait) => Action::Adopt(if backend.works(kind) { Stage::Attached } else { Stage::Failed }),
        Some(Initialised | Connected) => Action::Adopt(Stage::Attached),
        // Its guest begins anew.
        Some(Closing | Closed) if backend.online && has_reported => Action::Adopt(Stage::Attached),
        _ => Action::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Recorded;

    const VBD: BackendKind = BackendKind::Vbd;
    const VIF: BackendKind = BackendKind::Vif;

    /// A device as a dialogue tells of it: the state, and what else is there in words.
    fn seen(words: &str) -> Seen {
        let mut seen = Seen::default();
        let mut backend = Backend { online: true, ..Backend::default() };
        let mut note = None;
        let mut is_there = true;
        for word in words.split_whitespace() {
            match word {
                "gone" => is_there = false,
                "offline" => backend.online = false,
                "connected" | "error" | "busy" => backend.status = Some(word.to_owned()),
                "made" => backend.made = true,
                "adding" => note = Some(Stage::Adding),
                "attached" => note = Some(Stage::Attached),
                "failed" => note = Some(Stage::Failed),
                "removing" => note = Some(Stage::Removing),
                "another" => backend.token = Some("another".to_owned()),
                state => backend.state = Some(XenbusState::from_number(state.parse().unwrap()).unwrap()),
            }
        }
        if let Some(stage) = note {
            let note = Note::new(stage, Recorded::new());
            backend.token = Some(backend.token.unwrap_or(note.token.clone()));
            seen.note = Some(note);
        }
        seen.backend = is_there.then_some(backend);
        seen
    }

    fn dialogue(kind: BackendKind, lines: &[(&str, Action)]) {
        for (words, expected) in lines {
            assert_eq!(next(kind, &seen(words), Doing::Nothing), *expected, "{kind} {words}");
        }
    }

    #[test]
    fn the_life_of_a_disk() {
        dialogue(
            VBD,
            &[
                ("1", Action::Nothing),
                ("2", Action::Add),
                ("2 made connected attached", Action::Nothing),
                ("4 made connected attached", Action::Nothing),
                // The guest reboots.
                ("6 made connected attached", Action::Nothing),
                ("5 offline made connected attached", Action::Nothing),
                ("6 offline made connected attached", Action::Remove),
                ("gone", Action::Nothing),
            ],
        );
    }

    /// B-42, vector 23.
    #[test]
    fn b42_what_a_daemon_finds_that_was_not_there() {
        let unknown = [
            ("2", Action::Add),
            ("2 error", Action::Adopt(Stage::Failed)),
            ("4 connected", Action::Adopt(Stage::Attached)),
            ("3", Action::Adopt(Stage::Attached)),
            ("6 offline", Action::Remove),
            ("6 offline connected", Action::Remove),
            ("5 offline", Action::Remove),
            // It closes under the guest's hands, who may still write.
            ("5 offline connected", Action::Nothing),
            ("6 connected", Action::Adopt(Stage::Attached)),
            ("6", Action::Nothing),
            ("1", Action::Nothing),
        ];
        dialogue(VIF, &unknown);
        // The stock script reports a disk that is not there as connected.
        dialogue(VBD, &[("2 connected", Action::Adopt(Stage::Failed))]);
        dialogue(VBD, &[("2 connected made", Action::Adopt(Stage::Attached))]);
    }

    #[test]
    fn what_a_daemon_finds_that_was_killed() {
        dialogue(
            VBD,
            &[
                ("2 adding", Action::Reset),
                ("2 made adding", Action::Adopt(Stage::Attached)),
                ("2 made connected adding", Action::Adopt(Stage::Attached)),
                ("2 connected adding", Action::Adopt(Stage::Failed)),
                ("2 busy adding", Action::Adopt(Stage::Failed)),
                ("6 offline adding", Action::Remove),
                ("gone adding", Action::Undo),
                ("2 another adding", Action::Undo),
                ("2 another attached", Action::Undo),
                ("gone attached", Action::Undo),
                ("6 offline removing", Action::Remove),
                ("gone removing", Action::Undo),
            ],
        );
    }

    /// B-43.
    #[test]
    fn b43_what_failed_stays_so_until_the_toolstack_begins_anew() {
        dialogue(
            VBD,
            &[
                ("2 error failed", Action::Nothing),
                ("2 failed", Action::Nothing),
                ("1 error failed", Action::Reset),
                ("6 offline error failed", Action::Remove),
            ],
        );
    }

    #[test]
    fn an_add_is_given_up_when_its_device_leaves() {
        for (words, expected) in [
            ("2 adding", Action::Nothing),
            ("4 made adding", Action::Nothing),
            ("6 adding", Action::Nothing),
            ("5 offline adding", Action::Cancel),
            ("6 offline adding", Action::Cancel),
            ("gone adding", Action::Cancel),
            ("gone", Action::Cancel),
            ("2 another adding", Action::Cancel),
        ] {
            assert_eq!(next(VBD, &seen(words), Doing::Adding), expected, "{words}");
        }
    }

    #[test]
    fn what_no_program_here_serves_is_refused_and_removed() {
        dialogue(
            BackendKind::Vfb,
            &[
                ("1", Action::Refuse),
                ("1 error failed", Action::Nothing),
                ("5 offline error failed", Action::Remove),
                ("5 offline", Action::Remove),
            ],
        );
    }
}
