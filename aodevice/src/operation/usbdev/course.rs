//! The order in which a USB device of the host is given to a guest, and taken back: a plain value that is told what came
//! of the last thing and says the next.
//!
//! The port of the controller is the claim: it holds the bus id from before the host is touched until the host has the
//! device back, so two who want the device or the port cannot both go on. Taking back is one way, whether it is a detach
//! or the roll-back of an attach, and whatever of it was done before is done again without harm: who finds a port whose
//! attach died detaches it.

use crate::{Cause, Warning};

/// What serves the ports of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    /// The device model, which watches the ports and opens the device itself.
    DeviceModel,
    /// The kernel's usbback, which is to be the driver of each of the device's interfaces, of which there are so many.
    Usbback { interfaces: usize },
}

impl Service {
    fn interfaces(self) -> usize {
        match self {
            Self::DeviceModel => 0,
            Self::Usbback { interfaces } => interfaces,
        }
    }
}

/// What is to be done. Interfaces are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Look which device it is, and, for a detach, what the port holds.
    Look,
    /// In one transaction: see that nobody has the device, find a port and write the bus id there, and note the drivers
    /// of the interfaces.
    Claim,
    /// Take an interface from its driver, and give it to usbback.
    Take(usize),
    /// Enter the device into libxl's configuration.
    Enter,
    /// Take an interface from usbback.
    Release(usize),
    /// Give an interface back to the driver that is noted.
    GiveBack(usize),
    /// In one transaction: empty the port, if it is still this device's, and forget the drivers.
    Free,
    /// Strike the device out of libxl's configuration.
    Strike,
    Finish,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Heard {
    Begin,
    /// It is done, or not.
    Done(Result<(), Cause>),
    /// Of [`Act::Claim`], and of [`Act::Look`] in a detach: what serves the port.
    Served(Result<Service, Cause>),
    /// The caller does not want it any more. It was not begun.
    Cancelled,
}

/// What it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    Attach,
    Detach,
}

/// The change of a port.
#[derive(Debug)]
pub(super) struct Course {
    aim: Aim,
    last: Act,
    service: Service,
    /// Whether usbback has kept an interface: then the port stays claimed.
    kept: bool,
    failed: Option<Cause>,
    warnings: Vec<Warning>,
}

impl Course {
    pub(super) fn attach() -> Self {
        Self::new(Aim::Attach)
    }

    pub(super) fn detach() -> Self {
        Self::new(Aim::Detach)
    }

    fn new(aim: Aim) -> Self {
        Self {
            aim,
            last: Act::Finish,
            service: Service::DeviceModel,
            kept: false,
            failed: None,
            warnings: Vec::new(),
        }
    }

    /// Whether what is done now may be left undone: a roll-back may not.
    pub(super) fn is_cancellable(&self) -> bool {
        matches!(self.last, Act::Look | Act::Claim | Act::Take(_) | Act::Enter)
            || (self.aim == Aim::Detach && matches!(self.last, Act::Release(_)))
    }

    pub(super) fn on(&mut self, heard: Heard) -> Act {
        self.last = self.next(heard);
        self.last
    }

    fn next(&mut self, heard: Heard) -> Act {
        match (self.last, heard) {
            (_, Heard::Begin) => Act::Look,
            (Act::Look, Heard::Done(Ok(()))) => Act::Claim,
            (Act::Look, Heard::Served(Ok(service))) => {
                self.service = service;
                self.release(service.interfaces())
            }
            (Act::Claim, Heard::Served(Ok(service))) => {
                self.service = service;
                self.take(0)
            }
            (Act::Take(index), Heard::Done(Ok(()))) => self.take(index + 1),
            (Act::Take(index), heard) => self.roll_back(heard, index + 1),
            (Act::Enter, Heard::Done(Ok(()))) => Act::Finish,
            (Act::Enter, heard) => self.roll_back(heard, self.service.interfaces()),
            (Act::Release(index), Heard::Done(Ok(()))) => Act::GiveBack(index),
            (Act::Release(index), Heard::Done(Err(cause))) if self.aim == Aim::Attach => {
                self.kept = true;
                self.warn("taking an interface back from usbback", cause);
                self.release(index)
            }
            (Act::GiveBack(index), heard) => {
                if let Heard::Done(Err(cause)) = heard {
                    self.warn("giving an interface back to its driver", cause);
                }
                self.release(index)
            }
            (Act::Free, Heard::Done(Ok(()))) if self.aim == Aim::Detach => Act::Strike,
            (Act::Free, Heard::Done(Err(cause))) if self.aim == Aim::Attach => {
                self.warn("emptying the port", cause);
                Act::Finish
            }
            (Act::Strike, Heard::Done(Err(cause))) => {
                self.warnings.push(Warning::NotStruck(cause));
                Act::Finish
            }
            (_, heard) => self.fail(heard),
        }
    }

    /// What is to be done once so many interfaces are usbback's.
    fn take(&self, index: usize) -> Act {
        if index < self.service.interfaces() { Act::Take(index) } else { Act::Enter }
    }

    /// What is to be done as long as so many interfaces are to be taken back.
    fn release(&self, left: usize) -> Act {
        match left.checked_sub(1) {
            Some(index) => Act::Release(index),
            None if self.kept => Act::Finish,
            None => Act::Free,
        }
    }

    fn roll_back(&mut self, heard: Heard, interfaces: usize) -> Act {
        self.fail(heard);
        self.release(interfaces)
    }

    fn warn(&mut self, step: &'static str, cause: Cause) {
        self.warnings.push(Warning::LeftBehind { step, cause });
    }

    fn fail(&mut self, heard: Heard) -> Act {
        let cause = match heard {
            Heard::Done(Err(cause)) | Heard::Served(Err(cause)) => Some(cause),
            Heard::Cancelled => Some(Cause::Aborted),
            Heard::Begin | Heard::Done(Ok(())) | Heard::Served(Ok(_)) => None,
        };
        self.failed = self.failed.take().or(cause);
        Act::Finish
    }

    /// How it ended.
    pub(super) fn outcome(self) -> (Result<(), Cause>, Vec<Warning>) {
        (self.failed.map_or(Ok(()), Err), self.warnings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is heard, a word each, and what is done then.
    fn dialogue(course: &mut Course, heard: &str) -> String {
        let acts: Vec<String> = heard
            .split(' ')
            .map(|word| {
                let act = course.on(match word {
                    "begin" => Heard::Begin,
                    "done" => Heard::Done(Ok(())),
                    "qemu" => Heard::Served(Ok(Service::DeviceModel)),
                    "usbback" => Heard::Served(Ok(Service::Usbback { interfaces: 2 })),
                    "refused" => Heard::Served(Err(Cause::NoSuchDevice)),
                    "failed" => Heard::Done(Err(Cause::Taken)),
                    "cancelled" => Heard::Cancelled,
                    other => panic!("{other}"),
                });
                format!("{act:?}")
            })
            .collect();
        acts.join(" ")
    }

    fn told(course: Course) -> Vec<String> {
        let (outcome, warnings) = course.outcome();
        let outcome = outcome.map_or_else(|cause| cause.code().to_owned(), |()| "ok".to_owned());
        std::iter::once(outcome).chain(warnings.iter().map(ToString::to_string)).collect()
    }

    fn ends(mut course: Course, heard: &str, acts: &str) -> Vec<String> {
        assert_eq!(dialogue(&mut course, heard), acts, "{heard}");
        told(course)
    }

    #[test]
    fn the_device_model_needs_but_the_port() {
        assert_eq!(ends(Course::attach(), "begin done qemu done", "Look Claim Enter Finish"), ["ok"]);
        assert_eq!(ends(Course::detach(), "begin qemu done done", "Look Free Strike Finish"), ["ok"]);
    }

    #[test]
    fn usbback_gets_every_interface() {
        let attach = "Look Claim Take(0) Take(1) Enter Finish";
        assert_eq!(ends(Course::attach(), "begin done usbback done done done", attach), ["ok"]);
        let detach = "Look Release(1) GiveBack(1) Release(0) GiveBack(0) Free Strike Finish";
        assert_eq!(ends(Course::detach(), "begin usbback done done done done done done", detach), ["ok"]);
    }

    #[test]
    fn before_the_claim_nothing_is_to_be_undone() {
        for (heard, acts, code) in [
            ("begin failed", "Look Finish", "taken"),
            ("begin cancelled", "Look Finish", "cancelled"),
            ("begin done refused", "Look Claim Finish", "no_such_device"),
            ("begin done cancelled", "Look Claim Finish", "cancelled"),
        ] {
            assert_eq!(ends(Course::attach(), heard, acts), [code]);
        }
        assert_eq!(ends(Course::detach(), "begin refused", "Look Finish"), ["no_such_device"]);
    }

    #[test]
    fn an_attach_that_fails_gives_all_of_it_back() {
        let acts = "Look Claim Take(0) Take(1) Release(1) GiveBack(1) Release(0) GiveBack(0) Free Finish";
        for (last, code) in [("failed", "taken"), ("cancelled", "cancelled")] {
            let heard = format!("begin done usbback done {last} done done done done done");
            assert_eq!(ends(Course::attach(), &heard, acts), [code]);
        }
        let acts = "Look Claim Enter Free Finish";
        assert_eq!(ends(Course::attach(), "begin done qemu failed done", acts), ["taken"]);
        let warned = ends(Course::attach(), "begin done qemu failed failed", acts);
        assert_eq!(warned[0], "taken");
        assert!(warned[1].starts_with("emptying the port failed"), "{warned:?}");
    }

    /// Whoever got the port or the device then would meet usbback, which has it.
    #[test]
    fn what_usbback_keeps_stays_claimed() {
        let acts = "Look Claim Take(0) Take(1) Release(1) Release(0) GiveBack(0) Finish";
        let warned = ends(Course::attach(), "begin done usbback done failed failed done done", acts);
        assert_eq!(warned.len(), 2);
        assert!(warned[1].starts_with("taking an interface back from usbback failed"), "{warned:?}");
        let acts = "Look Release(1) Finish";
        assert_eq!(ends(Course::detach(), "begin usbback failed", acts), ["taken"]);
        assert_eq!(ends(Course::detach(), "begin usbback cancelled", acts), ["cancelled"]);
    }

    #[test]
    fn a_driver_that_does_not_take_its_interface_is_told_of() {
        let acts = "Look Release(1) GiveBack(1) Release(0) GiveBack(0) Free Strike Finish";
        let warned = ends(Course::detach(), "begin usbback done failed done done done failed", acts);
        assert_eq!(warned.len(), 3);
        assert_eq!(warned[0], "ok");
    }

    #[test]
    fn a_roll_back_is_not_cancelled() {
        let mut course = Course::attach();
        for (heard, may) in
            [("begin", true), ("done", true), ("usbback", true), ("failed", false), ("done", false)]
        {
            dialogue(&mut course, heard);
            assert_eq!(course.is_cancellable(), may, "{heard}: {:?}", course.last);
        }
    }
}
