//! Giving a PCI function to a guest that has others, and taking it back: a plain value that is told what came of the last
//! thing and says the next.
//!
//! The backend and the frontend agree on a new set of functions by their states. Who changes the set writes 7
//! (Reconfiguring) into the backend's, which is allowed at 4 (Connected) alone: so the state itself keeps two from changing
//! the set at once. The backend comes to 8 (Reconfigured) and 4 when both have the new set.
//!
//! ```text
//! attach:  Look Claim Give Write -+-> made:      AwaitReady  --> Finish
//!                          ^      +-> announced: AwaitTaken  --> Finish
//!                          |      '-> busy:      AwaitIdle -.
//!                          '--------------------------------'
//! detach:  Look Mark -+-> bus:       RemoveBus ----------> Take Unclaim Finish
//!               ^     +-> function:  AwaitReleased Drop -> Take Unclaim Finish
//!               |     +-> nowhere:   ------------------->  Take Unclaim Finish
//!               |     '-> busy:      AwaitIdle -.
//!               '-------------------------------'
//! ```
//!
//! The roll-back of an attach is a detach that does not need the guest.

use std::time::Duration;

use crate::{Cause, Warning};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// See that it can be done here at all.
    Look,
    /// In one transaction: see that no guest has the function, and note that this one does.
    Claim,
    /// Have the hypervisor assign it.
    Give,
    /// In one transaction: make the bus with the function, or add it to the bus that is there and announce that.
    Write,
    /// Wait until a new bus is taken up.
    AwaitReady,
    /// Wait until both ends have the last set of functions.
    AwaitIdle,
    /// Wait until the backend has taken the function up and the guest has the new set.
    AwaitTaken,
    /// In one transaction: announce that the function goes, or that the bus does if it has no other. `anyway`: also where
    /// both ends have not the last set yet.
    Mark {
        anyway: bool,
    },
    /// Wait until both ends have let go of the function.
    AwaitReleased,
    /// In one transaction: remove its keys, and close the gap.
    Drop,
    /// Remove the bus, as any device.
    RemoveBus,
    /// Have the hypervisor take the function back.
    Take,
    /// Forget that the guest has it.
    Unclaim,
    Finish,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Heard {
    Begin,
    Done(Result<(), Cause>),
    /// Of [`Act::Write`] and [`Act::Mark`].
    Changed(Result<Change, Cause>),
    /// Of a wait.
    Waited(Result<Reached, Cause>),
    /// The caller does not want it any more. It was not begun.
    Cancelled,
}

/// What a transaction did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// To the bus as a whole: it was made, or told to close.
    Bus,
    /// To the function, as announced.
    Function,
    /// Nothing: the ends are at work on another change.
    Busy,
    /// Nothing: the bus has no such function.
    Nowhere,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    /// By what was waited for.
    State,
    /// The guest's end is closed, or the guest is gone: nobody will answer (B-24).
    FrontendClosed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    Attach,
    Detach,
    RollBack,
}

/// The change of a guest's set of functions.
#[derive(Debug)]
pub(super) struct Course {
    aim: Aim,
    last: Act,
    /// Whether a guest that does not answer is done without.
    force: bool,
    /// How long each wait has, for the warning.
    limit: Duration,
    failed: Option<Cause>,
    warnings: Vec<Warning>,
}

impl Course {
    pub(super) fn attach(limit: Duration) -> Self {
        Self::new(Aim::Attach, false, limit)
    }

    pub(super) fn detach(force: bool, limit: Duration) -> Self {
        Self::new(Aim::Detach, force, limit)
    }

    fn new(aim: Aim, force: bool, limit: Duration) -> Self {
        Self { aim, last: Act::Finish, force, limit, failed: None, warnings: Vec::new() }
    }

    /// Whether what is done now may be left undone: a roll-back may not, nor what follows the guest's consent.
    pub(super) fn is_cancellable(&self) -> bool {
        let may_stop = match self.last {
            Act::Look | Act::Claim | Act::Give | Act::Write | Act::Mark { .. } => true,
            Act::AwaitReady | Act::AwaitIdle | Act::AwaitTaken | Act::AwaitReleased => true,
            Act::Drop | Act::RemoveBus | Act::Take | Act::Unclaim | Act::Finish => false,
        };
        may_stop && self.aim != Aim::RollBack
    }

    /// Whether the guest is not to be asked at all.
    pub(super) fn is_forced(&self) -> bool {
        self.force
    }

    pub(super) fn on(&mut self, heard: Heard) -> Act {
        self.last = self.next(heard);
        self.last
    }

    fn next(&mut self, heard: Heard) -> Act {
        if self.aim == Aim::Attach { self.attaching(heard) } else { self.detaching(heard) }
    }

    fn attaching(&mut self, heard: Heard) -> Act {
        match (self.last, heard) {
            (_, Heard::Begin) => Act::Look,
            (Act::Look, Heard::Done(Ok(()))) => Act::Claim,
            (Act::Claim, Heard::Done(Ok(()))) => Act::Give,
            (Act::Give, Heard::Done(Ok(()))) | (Act::AwaitIdle, Heard::Waited(Ok(Reached::State))) => {
                Act::Write
            }
            (Act::Write, Heard::Changed(Ok(Change::Bus))) => Act::AwaitReady,
            (Act::Write, Heard::Changed(Ok(Change::Function))) => Act::AwaitTaken,
            (Act::Write, Heard::Changed(Ok(Change::Busy))) => Act::AwaitIdle,
            (Act::AwaitReady | Act::AwaitTaken, Heard::Waited(Ok(Reached::State))) => Act::Finish,
            (
                Act::AwaitIdle | Act::AwaitReady | Act::AwaitTaken,
                Heard::Waited(Ok(Reached::FrontendClosed)),
            ) => {
                let what = "giving a PCI function to a guest whose end of the bus is closed".to_owned();
                let cause = Cause::NotSupported { what, needs: "a guest whose driver (pcifront) runs" };
                self.roll_back(Heard::Done(Err(cause)))
            }
            (Act::Look | Act::Claim, heard) => self.fail(heard),
            (_, heard) => self.roll_back(heard),
        }
    }

    /// From here it is a detach that does without the guest, and looks for itself how far the attach came.
    fn roll_back(&mut self, heard: Heard) -> Act {
        self.fail(heard);
        (self.aim, self.force) = (Aim::RollBack, true);
        Act::Mark { anyway: true }
    }

    fn detaching(&mut self, heard: Heard) -> Act {
        match (self.last, heard) {
            (_, Heard::Begin) => Act::Look,
            (Act::Look, Heard::Done(Ok(()))) | (Act::AwaitIdle, Heard::Waited(Ok(Reached::State))) => {
                Act::Mark { anyway: false }
            }
            (Act::AwaitIdle, Heard::Waited(Ok(Reached::FrontendClosed))) => Act::Mark { anyway: true },
            (Act::AwaitIdle, Heard::Waited(Err(Cause::TimedOut { .. }))) if self.force => {
                Act::Mark { anyway: true }
            }
            (Act::Mark { .. }, Heard::Changed(Ok(change))) => match change {
                Change::Bus => Act::RemoveBus,
                Change::Function => Act::AwaitReleased,
                Change::Busy => Act::AwaitIdle,
                Change::Nowhere => Act::Take,
            },
            (Act::AwaitReleased, Heard::Waited(Ok(_))) => Act::Drop,
            (Act::AwaitReleased, Heard::Waited(Err(Cause::TimedOut { .. }))) if self.force => {
                self.warnings.push(Warning::Forced { limit: self.limit });
                Act::Drop
            }
            (Act::Drop | Act::RemoveBus, Heard::Done(Ok(()))) => Act::Take,
            (Act::Take, Heard::Done(Ok(()))) => Act::Unclaim,
            (Act::Unclaim, Heard::Done(Ok(()))) => Act::Finish,
            (last, heard) => self.stop(last, heard),
        }
    }

    /// What cannot be done in a detach is its failure, and in a roll-back a warning: the first failure counts.
    fn stop(&mut self, last: Act, heard: Heard) -> Act {
        if self.aim == Aim::RollBack {
            let step = match last {
                Act::Take => "taking the function back by the hypervisor",
                Act::Unclaim => "forgetting that the guest has the function",
                _ => "taking the function from the guest's bus",
            };
            self.warnings.extend(cause_of(heard).map(|cause| Warning::LeftBehind { step, cause }));
            return Act::Finish;
        }
        self.fail(heard)
    }

    fn fail(&mut self, heard: Heard) -> Act {
        self.failed = self.failed.take().or(cause_of(heard));
        Act::Finish
    }

    /// How it ended.
    pub(super) fn outcome(self) -> (Result<(), Cause>, Vec<Warning>) {
        (self.failed.map_or(Ok(()), Err), self.warnings)
    }
}

fn cause_of(heard: Heard) -> Option<Cause> {
    match heard {
        Heard::Done(Err(cause)) | Heard::Changed(Err(cause)) | Heard::Waited(Err(cause)) => Some(cause),
        Heard::Cancelled => Some(Cause::Aborted),
        Heard::Begin | Heard::Done(Ok(())) | Heard::Changed(Ok(_)) | Heard::Waited(Ok(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Node;

    const LIMIT: Duration = Duration::from_secs(10);

    fn timed_out() -> Cause {
        Cause::TimedOut { node: Node::BackendState, goal: "4".to_owned(), limit: LIMIT }
    }

    /// What is heard, a word each, and what is done then; and how it ends.
    fn dialogue(mut course: Course, heard: &str) -> (String, Vec<String>) {
        let mut acts = Vec::new();
        for word in heard.split(' ') {
            assert_ne!(acts.last().map(String::as_str), Some("Finish"), "{heard}");
            let act = course.on(match word {
                "begin" => Heard::Begin,
                "done" => Heard::Done(Ok(())),
                "failed" => Heard::Done(Err(Cause::Taken)),
                "bus" => Heard::Changed(Ok(Change::Bus)),
                "function" => Heard::Changed(Ok(Change::Function)),
                "busy" => Heard::Changed(Ok(Change::Busy)),
                "nowhere" => Heard::Changed(Ok(Change::Nowhere)),
                "refused" => Heard::Changed(Err(Cause::NoSuchDevice)),
                "reached" => Heard::Waited(Ok(Reached::State)),
                "closed" => Heard::Waited(Ok(Reached::FrontendClosed)),
                "late" => Heard::Waited(Err(timed_out())),
                "gone" => Heard::Waited(Err(Cause::Vanished(Node::BackendState))),
                "cancelled" => Heard::Cancelled,
                other => panic!("{other}"),
            });
            acts.push(match act {
                Act::Mark { anyway: true } => "MarkAnyway".to_owned(),
                Act::Mark { anyway: false } => "Mark".to_owned(),
                act => format!("{act:?}"),
            });
        }
        let (outcome, warnings) = course.outcome();
        let mut told = vec![outcome.map_or_else(|cause| cause.code().to_owned(), |()| "ok".to_owned())];
        told.extend(warnings.iter().map(ToString::to_string));
        (acts.join(" "), told)
    }

    fn attach(heard: &str) -> (String, Vec<String>) {
        dialogue(Course::attach(LIMIT), heard)
    }

    fn detach(force: bool, heard: &str) -> (String, Vec<String>) {
        dialogue(Course::detach(force, LIMIT), heard)
    }

    fn is(said: (String, Vec<String>), acts: &str, told: &[&str]) {
        assert_eq!(said.0, acts);
        assert_eq!(said.1.len(), told.len(), "{:?}", said.1);
        for (said, told) in said.1.iter().zip(told) {
            assert!(said.starts_with(told), "{said}");
        }
    }

    #[test]
    fn the_first_function_makes_the_bus() {
        is(attach("begin done done done bus reached"), "Look Claim Give Write AwaitReady Finish", &["ok"]);
    }

    #[test]
    fn another_function_is_announced() {
        let acts = "Look Claim Give Write AwaitTaken Finish";
        is(attach("begin done done done function reached"), acts, &["ok"]);
    }

    #[test]
    fn two_changes_come_one_after_the_other() {
        let acts = "Look Claim Give Write AwaitIdle Write AwaitIdle Write AwaitTaken Finish";
        is(attach("begin done done done busy reached busy reached function reached"), acts, &["ok"]);
        let acts = "Look Mark AwaitIdle Mark AwaitReleased Drop Take Unclaim Finish";
        is(detach(false, "begin done busy reached function reached done done done"), acts, &["ok"]);
    }

    #[test]
    fn one_of_several_goes_and_the_bus_stays() {
        let acts = "Look Mark AwaitReleased Drop Take Unclaim Finish";
        is(detach(false, "begin done function reached done done done"), acts, &["ok"]);
    }

    #[test]
    fn the_last_function_takes_the_bus_with_it() {
        let acts = "Look Mark RemoveBus Take Unclaim Finish";
        is(detach(false, "begin done bus done done done"), acts, &["ok"]);
        is(detach(false, "begin done bus failed"), "Look Mark RemoveBus Finish", &["taken"]);
    }

    #[test]
    fn before_the_claim_nothing_is_to_be_undone() {
        is(attach("begin failed"), "Look Finish", &["taken"]);
        is(attach("begin cancelled"), "Look Finish", &["cancelled"]);
        is(attach("begin done failed"), "Look Claim Finish", &["taken"]);
        is(detach(false, "begin failed"), "Look Finish", &["taken"]);
        is(detach(false, "begin done refused"), "Look Mark Finish", &["no_such_device"]);
    }

    #[test]
    fn an_attach_that_fails_is_taken_back_as_far_as_it_came() {
        let given = "Look Claim Give MarkAnyway Take Unclaim Finish";
        is(attach("begin done done failed nowhere done done"), given, &["taken"]);
        is(attach("begin done done cancelled nowhere done done"), given, &["cancelled"]);
        let busy = "Look Claim Give Write AwaitIdle MarkAnyway Take Unclaim Finish";
        is(attach("begin done done done busy late nowhere done done"), busy, &["timed_out"]);
        let made = "Look Claim Give Write AwaitReady MarkAnyway RemoveBus Take Unclaim Finish";
        is(attach("begin done done done bus late bus done done done"), made, &["timed_out"]);
        let announced = "Look Claim Give Write AwaitTaken MarkAnyway AwaitReleased Drop Take Unclaim Finish";
        for (heard, code) in [("late", "timed_out"), ("cancelled", "cancelled"), ("gone", "vanished")] {
            let heard = format!("begin done done done function {heard} function reached done done done");
            is(attach(&heard), announced, &[code]);
        }
        // The guest that did not take it does not let go of it either.
        let heard = "begin done done done function late function late done done done";
        is(attach(heard), announced, &["timed_out", "forced"]);
    }

    #[test]
    fn what_a_roll_back_leaves_is_told_of() {
        let told = |heard: &str| attach(&format!("begin done done done function late {heard}")).1;
        assert!(told("refused")[1].starts_with("taking the function from the guest's bus failed"));
        assert!(
            told("function reached failed")[1].starts_with("taking the function from the guest's bus failed")
        );
        assert!(
            told("function reached done failed")[1].starts_with("taking the function back by the hypervisor")
        );
        assert!(told("function reached done done failed")[1].starts_with("forgetting that the guest has"));
    }

    #[test]
    fn a_guest_that_never_answers_keeps_the_function_unless_forced() {
        is(detach(false, "begin done function late"), "Look Mark AwaitReleased Finish", &["timed_out"]);
        is(detach(false, "begin done busy late"), "Look Mark AwaitIdle Finish", &["timed_out"]);
        let acts = "Look Mark AwaitIdle MarkAnyway AwaitReleased Drop Take Unclaim Finish";
        is(detach(true, "begin done busy late function late done done done"), acts, &["ok", "forced"]);
    }

    /// B-24: libxl waits 10 s, with everything else at a standstill, for a backend whose frontend is gone.
    #[test]
    fn b24_a_frontend_that_is_closed_is_not_waited_for() {
        let acts = "Look Mark AwaitIdle MarkAnyway AwaitReleased Drop Take Unclaim Finish";
        is(detach(false, "begin done busy closed function closed done done done"), acts, &["ok"]);
        let acts = "Look Claim Give Write AwaitTaken MarkAnyway AwaitReleased Drop Take Unclaim Finish";
        is(
            attach("begin done done done function closed function closed done done done"),
            acts,
            &["not_supported"],
        );
    }

    #[test]
    fn a_backend_that_goes_meanwhile_is_told_of_and_found_gone_later() {
        is(detach(false, "begin done function gone"), "Look Mark AwaitReleased Finish", &["vanished"]);
        is(detach(false, "begin done nowhere done done"), "Look Mark Take Unclaim Finish", &["ok"]);
    }

    #[test]
    fn a_detach_is_cancelled_until_the_guest_has_let_go() {
        is(detach(false, "begin done cancelled"), "Look Mark Finish", &["cancelled"]);
        is(detach(false, "begin done function cancelled"), "Look Mark AwaitReleased Finish", &["cancelled"]);
        let mut course = Course::detach(false, LIMIT);
        for heard in [Heard::Begin, Heard::Done(Ok(())), Heard::Changed(Ok(Change::Function))] {
            course.on(heard);
            assert!(course.is_cancellable());
        }
        course.on(Heard::Waited(Ok(Reached::State)));
        assert!(!course.is_cancellable(), "{:?}", course.last);
        let mut course = Course::attach(LIMIT);
        for heard in [Heard::Begin, Heard::Done(Ok(())), Heard::Done(Ok(())), Heard::Done(Err(Cause::Taken))]
        {
            course.on(heard);
        }
        assert!(!course.is_cancellable(), "{:?}", course.last);
    }
}
