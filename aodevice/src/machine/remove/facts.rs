//! What a removal knows besides its state and decides by, for its diagram.

use xs_client::DomId;

use super::{Force, Known, Remove, State};
use crate::machine::{Charted, Claim, Event, Frontend, Limits};
use crate::operation::Target;
use crate::{Cause, Kind, Removal, Which};

impl Charted for Remove {
    const NAME: &'static str = "remove";

    fn configurations() -> Vec<Self> {
        let removals = [Force::Never, Force::AfterTimeout, Force::AtOnce].map(Removal::from);
        let removals =
            removals.into_iter().flat_map(|removal| [removal, removal.take_over(true).adopt(true)]);
        let which = Which { fe: DomId(1), kind: Kind::Vbd, devid: 51712 };
        removals.map(|removal| Self::new(which, removal, Limits::default())).collect()
    }

    fn facts(&self, _: &Event) -> Vec<&'static str> {
        let (target, known) = match &self.state {
            State::On(target, known) => (Some(target), Some(known)),
            _ => (None, None),
        };
        let next = if let Some(Known::RunningScript(index)) = known { index + 1 } else { 0 };
        vec![
            match self.removal.force {
                Force::Never => "not forced",
                Force::AfterTimeout => "forced after a timeout",
                Force::AtOnce => "forced at once",
            },
            match self.frontend {
                Frontend::Delete => "without the guest",
                Frontend::Keep | Frontend::DeleteIfIdle => "the guest was asked",
            },
            match self.claim {
                Claim::First(_) => "the device is not claimed",
                Claim::Kept => "the device was claimed",
            },
            match self.waited {
                true => "somebody else was at work on it",
                false => "nobody else was at work on it",
            },
            match target.is_some_and(|target| next < target.runs()) {
                true => "a script is left",
                false => "no script is left",
            },
            match target.is_some_and(Target::daemon_removes) {
                true => "a driver domain removes its backend",
                false => "no driver domain removes its backend",
            },
            match target.is_some_and(Target::is_of_model) {
                true => "QEMU serves it",
                false => "the kernel serves it",
            },
            match target.is_some_and(|target| target.config().is_some()) {
                true => "libxl keeps a configuration",
                false => "libxl keeps none",
            },
        ]
    }

    fn forget_reports(&mut self) {
        self.warnings.clear();
        self.failure = self.failure.take().map(|_| Cause::Aborted);
    }
}
