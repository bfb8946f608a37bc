//! Which events may come of which action. A new action or step does not compile until it is said here.

use super::{Action, Claim, Closing, Event, Reached, Step, Until};
use crate::Cause;

impl Action {
    /// Whether an event is the answer to this action. To any other event a machine does nothing.
    pub fn is_answered_by(&self, event: &Event) -> bool {
        match self {
            Self::Check(..) => matches!(event, Event::Checked(_)),
            Self::Create(..) => matches!(event, Event::Created(_)),
            Self::Probe { .. } => matches!(event, Event::Probed(_)),
            Self::AwaitOwner { .. } => matches!(event, Event::Released(_)),
            Self::On(_, step) => match step {
                Step::Await { .. } => matches!(event, Event::Waited(_)),
                Step::Run { .. } => matches!(event, Event::Ran(_) | Event::NotRun(_)),
                Step::Close(..) => matches!(event, Event::Told(_)),
                Step::CloseForServer => matches!(event, Event::ClosedForServer(_)),
                Step::Destroy => matches!(event, Event::Destroyed(_)),
                Step::Enter(_) => matches!(event, Event::Entered(_)),
                Step::Strike => matches!(event, Event::Struck(_)),
                Step::Settle { .. } => matches!(event, Event::Settled(_)),
                Step::Observe => matches!(event, Event::Observed),
                Step::Leave => matches!(event, Event::Left),
            },
            Self::Finish => false,
        }
    }

    /// Whether an event may come of this action: not every outcome of the right kind can be.
    pub fn may_result_in(&self, event: &Event) -> bool {
        self.is_answered_by(event)
            && match (self, event) {
                // Who claims a device compares its record; who has claimed it looks whether it is still his.
                (Self::On(_, Step::Close(claim, _)), Event::Told(Ok(closing))) => match claim {
                    Claim::First(_) => *closing != Closing::Taken,
                    Claim::Kept => *closing != Closing::Changed,
                },
                (Self::On(_, Step::Await { until, .. }), Event::Waited(Ok(Reached::Gone))) => {
                    until.is_reached_by_absence()
                }
                // Of the end of its server only a wait for the end of the backend makes a success.
                (
                    Self::On(_, Step::Await { until, .. }),
                    Event::Waited(Ok(Reached::ImageOpen | Reached::ServerGone | Reached::ServerUnseen)),
                ) => until.is_reached_by_absence() && *until != Until::Removed,
                (Self::On(_, Step::Await { by_guest, .. }), Event::Waited(Ok(Reached::GuestOver))) => {
                    *by_guest
                }
                (Self::On(_, Step::Await { until, .. }), Event::Waited(Err(Cause::Refused { .. }))) => {
                    until.can_be_refused()
                }
                _ => true,
            }
    }
}

impl Until {
    fn is_reached_by_absence(&self) -> bool {
        match self {
            Self::State(goal) => goal.absent == xen_devstate::Absent::Done,
            Self::Scripted => false,
            Self::Removed => true,
        }
    }

    fn can_be_refused(&self) -> bool {
        match self {
            Self::State(goal) => goal.fail != xen_devstate::StateSet::EMPTY,
            Self::Scripted => true,
            Self::Removed => false,
        }
    }
}
