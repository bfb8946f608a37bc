//! What is done to change a medium, in which order, as a plain value: `course.on(heard) -> act`.
//!
//! ```text
//! greet -> eject -> the store names none -> add-fd -> blockdev-change-medium -> the store names the new one
//!            ^ |                                          ^ |        |
//!            '-' locked by the guest: after a pause       '-'        '-> remove-fd: the drive stays empty
//! ```
//!
//! The store is written after QEMU has done something, and before it is asked for more: so it never names a medium
//! that the drive was not given. Who dies between the two leaves in the store what was ejected, or an empty drive that
//! is not.

use serde_json::Value;

use crate::Cause;
use crate::operation::qmp::{Command, MonitorError, Refusal};

/// What is to be done next.
#[derive(Debug)]
pub(super) enum Act {
    /// Ask QEMU.
    Ask(Command),
    /// Write what is in the drive into the store: nothing, or the new medium.
    Write(Content),
    /// Wait a little: the guest is to open the tray.
    Pause,
    /// It is over.
    Finish,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Heard {
    /// The begin, and the end of a pause.
    Nothing,
    /// QEMU's answer.
    Answer(Result<Value, Refusal>),
    /// QEMU did not answer, or not as it should.
    Fault(MonitorError),
    /// The store was written, or not.
    Written(Result<(), Cause>),
    /// There is no more time for pauses.
    Over,
    /// The caller cancelled.
    Cancelled,
}

/// What is in a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// What was there.
    Earlier,
    Nothing,
    New,
    /// QEMU did not say.
    Unknown,
}

/// Why a medium was not changed.
#[derive(Debug)]
pub(super) enum Stopped {
    Refused { command: &'static str, refusal: Refusal },
    Monitor(MonitorError),
    Cause(Cause),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Begun,
    Greeting,
    Ejecting,
    Emptied,
    Adding,
    Changing(u64),
    Filled,
    Removing,
    Finished,
}

/// A new medium.
#[derive(Clone, Debug)]
pub(super) struct NewMedium {
    /// What its descriptor is called in QEMU, for people.
    pub(super) opaque: String,
    /// QEMU's name of its format.
    pub(super) format: &'static str,
    pub(super) block_device: bool,
}

/// A change of a medium.
#[derive(Debug)]
pub(super) struct Course {
    drive: String,
    force: bool,
    medium: Option<NewMedium>,
    state: State,
    /// What QEMU has done.
    drive_has: Content,
    /// What the store says.
    store_has: Content,
    stopped: Option<Stopped>,
}

impl Course {
    pub(super) fn new(devid: u32, force: bool, medium: Option<NewMedium>) -> Self {
        Self {
            drive: format!("ide-{devid}"),
            force,
            medium,
            state: State::Begun,
            drive_has: Content::Earlier,
            store_has: Content::Earlier,
            stopped: None,
        }
    }

    /// Takes what came of the last act.
    pub(super) fn on(&mut self, heard: Heard) -> Act {
        match (self.state, heard) {
            (State::Begun, Heard::Nothing) => self.ask(State::Greeting, Command::Capabilities),
            (State::Greeting, Heard::Answer(Ok(_))) => self.eject(),
            (State::Ejecting, Heard::Nothing) => self.eject(),
            (State::Changing(fdset), Heard::Nothing) => self.change(fdset),
            (State::Ejecting, Heard::Answer(Ok(_))) => {
                self.drive_has = Content::Nothing;
                self.write(State::Emptied)
            }
            (State::Emptied, Heard::Written(Ok(()))) => {
                self.store_has = Content::Nothing;
                match &self.medium {
                    Some(medium) => {
                        let opaque = medium.opaque.clone();
                        self.ask(State::Adding, Command::AddFd { opaque })
                    }
                    None => self.finish(),
                }
            }
            (State::Adding, Heard::Answer(Ok(value))) => {
                match value.get("fdset-id").and_then(Value::as_u64) {
                    Some(fdset) => self.change(fdset),
                    None => {
                        let problem =
                            MonitorError::Strange("add-fd was answered without an fdset-id".to_owned());
                        self.stop(Stopped::Monitor(problem))
                    }
                }
            }
            (State::Changing(_), Heard::Answer(Ok(_))) => {
                self.drive_has = Content::New;
                self.write(State::Filled)
            }
            (State::Filled, Heard::Written(Ok(()))) => {
                self.store_has = Content::New;
                self.finish()
            }
            (State::Ejecting | State::Changing(_), Heard::Answer(Err(refusal))) if refusal.is_locked() => {
                self.stopped = Some(self.refused(refusal));
                Act::Pause
            }
            (State::Changing(fdset), Heard::Answer(Err(refusal))) => {
                self.stopped = Some(self.refused(refusal));
                self.ask(State::Removing, Command::RemoveFd { fdset })
            }
            (State::Changing(fdset), Heard::Over) => self.ask(State::Removing, Command::RemoveFd { fdset }),
            (State::Changing(fdset), Heard::Cancelled) => {
                self.stopped = Some(Stopped::Cause(Cause::Aborted));
                self.ask(State::Removing, Command::RemoveFd { fdset })
            }
            // The descriptor goes when QEMU lets go of the connection, at the latest.
            (State::Removing, _) => self.finish(),
            (_, Heard::Over) => self.finish(),
            (_, Heard::Cancelled) => self.stop(Stopped::Cause(Cause::Aborted)),
            (_, Heard::Answer(Err(refusal))) => {
                let refused = self.refused(refusal);
                self.stop(refused)
            }
            (state, Heard::Fault(problem)) => {
                if matches!(state, State::Ejecting | State::Changing(_)) {
                    self.drive_has = Content::Unknown;
                }
                self.stop(Stopped::Monitor(problem))
            }
            (_, Heard::Written(Err(cause))) => self.stop(Stopped::Cause(cause)),
            // Nothing else comes of what is asked for.
            (_, Heard::Nothing | Heard::Answer(Ok(_)) | Heard::Written(Ok(()))) => self.finish(),
        }
    }

    /// How it ended.
    pub(super) fn ended(self) -> Ended {
        Ended { drive: self.drive_has, store: self.store_has, stopped: self.stopped }
    }

    fn ask(&mut self, state: State, command: Command) -> Act {
        self.state = state;
        Act::Ask(command)
    }

    fn eject(&mut self) -> Act {
        let command = Command::Eject { drive: self.drive.clone(), force: self.force };
        self.ask(State::Ejecting, command)
    }

    fn change(&mut self, fdset: u64) -> Act {
        let Some(NewMedium { format, block_device, .. }) = self.medium else { return self.finish() };
        let command = Command::Change { drive: self.drive.clone(), fdset, block_device, format };
        self.ask(State::Changing(fdset), command)
    }

    fn write(&mut self, state: State) -> Act {
        self.state = state;
        self.stopped = None;
        Act::Write(self.drive_has)
    }

    fn refused(&self, refusal: Refusal) -> Stopped {
        let command = match self.state {
            State::Ejecting => "eject",
            State::Adding => "add-fd",
            State::Changing(_) => "blockdev-change-medium",
            _ => "qmp_capabilities",
        };
        Stopped::Refused { command, refusal }
    }

    fn stop(&mut self, why: Stopped) -> Act {
        self.stopped = Some(why);
        self.finish()
    }

    fn finish(&mut self) -> Act {
        self.state = State::Finished;
        Act::Finish
    }
}

/// How a change ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// What is in the drive.
    pub(super) drive: Content,
    /// What the store says is in the drive.
    pub(super) store: Content,
    /// Why, if it did not come to its end.
    pub(super) stopped: Option<Stopped>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What is heard, a word each, and what is done then.
    fn dialogue(course: &mut Course, heard: &[&str]) -> Vec<String> {
        let refusal = |class: &str, said: &str| Refusal { class: class.to_owned(), said: said.to_owned() };
        let mut acts = Vec::new();
        for word in heard {
            let heard = match *word {
                "begin" | "again" => Heard::Nothing,
                "done" => Heard::Answer(Ok(json!({}))),
                "fdset 3" => Heard::Answer(Ok(json!({"fdset-id": 3, "fd": 19}))),
                "locked" => {
                    Heard::Answer(Err(refusal("GenericError", "Device 'ide-5632' is locked and so on")))
                }
                "no drive" => Heard::Answer(Err(refusal("DeviceNotFound", "Device 'ide-5632' not found"))),
                "no image" => Heard::Answer(Err(refusal("GenericError", "Image is not in qcow2 format"))),
                "silence" => Heard::Fault(MonitorError::Closed("eject")),
                "written" => Heard::Written(Ok(())),
                "not written" => Heard::Written(Err(Cause::Taken)),
                "over" => Heard::Over,
                "cancelled" => Heard::Cancelled,
                other => panic!("{other}"),
            };
            acts.push(match course.on(heard) {
                Act::Ask(command) => {
                    let said = command.to_json();
                    let arguments = said.get("arguments").map(|all| format!(" {all}")).unwrap_or_default();
                    format!("{}{arguments}", command.name())
                }
                Act::Write(content) => format!("write {content:?}"),
                Act::Pause => "pause".to_owned(),
                Act::Finish => "finish".to_owned(),
            });
        }
        acts
    }

    fn insert() -> Course {
        let (opaque, format) = ("qcow2:/b.qcow2".to_owned(), "qcow2");
        Course::new(5632, false, Some(NewMedium { opaque, format, block_device: false }))
    }

    fn eject() -> Course {
        Course::new(5632, false, None)
    }

    const EJECT: &str = r#"eject {"id":"ide-5632"}"#;
    const ADD: &str = r#"add-fd {"opaque":"qcow2:/b.qcow2"}"#;
    const CHANGE: &str =
        r#"blockdev-change-medium {"id":"ide-5632","filename":"/dev/fdset/3","format":"qcow2"}"#;
    const REMOVE: &str = r#"remove-fd {"fdset-id":3}"#;
    /// Up to the change.
    const FILLING: [&str; 5] = ["begin", "done", "done", "written", "fdset 3"];

    /// What the drive has, what the store says, and why it stopped.
    fn end(course: Course) -> (Content, Content, String) {
        let Ended { drive, store, stopped } = course.ended();
        let why = match stopped {
            None => "done".to_owned(),
            Some(Stopped::Refused { command, refusal }) => format!("{command}: {}", refusal.said),
            Some(Stopped::Monitor(problem)) => problem.to_string(),
            Some(Stopped::Cause(cause)) => cause.to_string(),
        };
        (drive, store, why)
    }

    #[test]
    fn a_medium_is_ejected() {
        let mut course = eject();
        let acts = dialogue(&mut course, &["begin", "done", "done", "written"]);
        assert_eq!(acts, ["qmp_capabilities", EJECT, "write Nothing", "finish"]);
        assert_eq!(end(course), (Content::Nothing, Content::Nothing, "done".to_owned()));
    }

    #[test]
    fn a_medium_is_inserted() {
        let mut course = insert();
        let acts = dialogue(&mut course, &[&FILLING[..], &["done", "written"]].concat());
        assert_eq!(acts, ["qmp_capabilities", EJECT, "write Nothing", ADD, CHANGE, "write New", "finish"]);
        assert_eq!(end(course), (Content::New, Content::New, "done".to_owned()));
    }

    #[test]
    fn a_locked_tray_is_waited_for() {
        let mut course = eject();
        let acts = dialogue(
            &mut course,
            &["begin", "done", "locked", "again", "locked", "again", "done", "written"],
        );
        assert_eq!(acts[2..], ["pause", EJECT, "pause", EJECT, "write Nothing", "finish"]);
        assert_eq!(end(course), (Content::Nothing, Content::Nothing, "done".to_owned()));

        let mut course = eject();
        assert_eq!(dialogue(&mut course, &["begin", "done", "locked", "over"])[2..], ["pause", "finish"]);
        let why = "eject: Device 'ide-5632' is locked and so on".to_owned();
        assert_eq!(end(course), (Content::Earlier, Content::Earlier, why));
    }

    #[test]
    fn force_does_without_the_guest() {
        let mut course = Course::new(5632, true, None);
        let acts = dialogue(&mut course, &["begin", "done"]);
        assert_eq!(acts[1], r#"eject {"id":"ide-5632","force":true}"#);
    }

    #[test]
    fn what_is_refused_before_the_tray_is_open_changes_nothing() {
        for (heard, why) in [
            (&["begin", "no drive"][..], "qmp_capabilities: Device 'ide-5632' not found"),
            (&["begin", "done", "no drive"], "eject: Device 'ide-5632' not found"),
            (&["begin", "silence"], "was closed by the device model, as it was asked for eject"),
            (&["begin", "cancelled"], "cancelled"),
            (&["begin", "done", "locked", "cancelled"], "cancelled"),
        ] {
            let mut course = insert();
            assert_eq!(dialogue(&mut course, heard).last().unwrap(), "finish", "{heard:?}");
            assert_eq!(end(course), (Content::Earlier, Content::Earlier, why.to_owned()), "{heard:?}");
        }
    }

    #[test]
    fn an_image_that_is_refused_leaves_an_empty_drive_and_no_descriptor() {
        let why = "blockdev-change-medium: Image is not in qcow2 format".to_owned();
        for last in ["done", "no image", "silence"] {
            let mut course = insert();
            let acts = dialogue(&mut course, &[&FILLING[..], &["no image", last]].concat());
            assert_eq!(acts[5..], [REMOVE, "finish"]);
            assert_eq!(end(course), (Content::Nothing, Content::Nothing, why.clone()));
        }
        // The guest has closed the tray and locked it, between the two.
        for (last, why) in [
            ("over", "blockdev-change-medium: Device 'ide-5632' is locked and so on"),
            ("cancelled", "cancelled"),
        ] {
            let mut course = insert();
            let heard = [&FILLING[..], &["locked", "again", "locked", last, "done"]].concat();
            assert_eq!(dialogue(&mut course, &heard)[5..], ["pause", CHANGE, "pause", REMOVE, "finish"]);
            assert_eq!(end(course), (Content::Nothing, Content::Nothing, why.to_owned()));
        }
    }

    #[test]
    fn an_answer_that_does_not_come_leaves_what_is_not_known() {
        let mut course = insert();
        assert_eq!(dialogue(&mut course, &["begin", "done", "silence"])[2], "finish");
        assert_eq!((course.drive_has, course.store_has), (Content::Unknown, Content::Earlier));
        let mut course = insert();
        assert_eq!(dialogue(&mut course, &[&FILLING[..], &["silence"]].concat())[5], "finish");
        assert_eq!((course.drive_has, course.store_has), (Content::Unknown, Content::Nothing));
        let mut course = insert();
        assert_eq!(dialogue(&mut course, &["begin", "done", "done", "written", "done"])[4], "finish");
        let why = "said what is no answer: add-fd was answered without an fdset-id".to_owned();
        assert_eq!(end(course), (Content::Nothing, Content::Nothing, why));
    }

    /// The device was detached meanwhile, say.
    #[test]
    fn a_store_that_is_not_written_is_told() {
        let taken = Cause::Taken.to_string();
        let mut course = insert();
        assert_eq!(dialogue(&mut course, &["begin", "done", "done", "not written"])[3], "finish");
        assert_eq!(end(course), (Content::Nothing, Content::Earlier, taken.clone()));
        let mut course = insert();
        assert_eq!(dialogue(&mut course, &[&FILLING[..], &["done", "not written"]].concat())[6], "finish");
        assert_eq!(end(course), (Content::New, Content::Nothing, taken));
    }
}
