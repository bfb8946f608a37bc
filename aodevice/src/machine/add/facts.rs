//! What an add knows besides its state and decides by, for its diagram.

use std::sync::Arc;

use xs_client::DomId;

use super::{Add, Known, Nodes, State, WaitFor};
use crate::machine::{Charted, Created, Event, Limits};
use crate::vif::Vif;
use crate::{Addition, Cause, Device, Target};

impl Charted for Add {
    const NAME: &'static str = "add";

    fn configurations() -> Vec<Self> {
        let additions = [WaitFor::Script, WaitFor::Connected, WaitFor::Tree].map(Addition::from);
        let additions = additions.into_iter().flat_map(|addition| [addition, addition.take_over(true)]);
        let device = Arc::new(Device::Vif(Vif::default()));
        additions.map(|addition| Self::new(DomId(1), device.clone(), addition, Limits::default())).collect()
    }

    fn facts(&self, event: &Event) -> Vec<&'static str> {
        let (target, known) = match (&self.state, event) {
            (State::On(target, known), _) => (Some(target), Some(known)),
            (_, Event::Created(Created::Done(target))) => (Some(target), None),
            _ => (None, None),
        };
        let next = if let Some(Known::RunningScript(index)) = known { index + 1 } else { 0 };
        let begun = if let Some(Known::UndoingScript(index)) = known { *index } else { self.begun };
        vec![
            match target.is_some_and(|target| next < target.runs()) {
                true => "a script is left",
                false => "no script is left",
            },
            match begun > 0 {
                true => "a script is to be undone",
                false => "no script is to be undone",
            },
            match self.addition.wait_for == WaitFor::Connected {
                true => "the guest is waited for",
                false => "the guest is not waited for",
            },
            match target.is_none_or(|target| self.is_served(target)) {
                true => "who serves it is waited for",
                false => "it is left to who serves it",
            },
            match target.is_some_and(|target| target.runs_of_daemon() > 0) {
                true => "a driver domain runs its script",
                false => "no driver domain runs its script",
            },
            match target.is_some_and(Target::daemon_removes) {
                true => "a driver domain removes its backend",
                false => "no driver domain removes its backend",
            },
            match (self.created, self.unsure) {
                (false, _) => "no nodes were written",
                (true, false) => "nodes were written",
                (true, true) => "nodes were perhaps written",
            },
            match self.nodes {
                Nodes::Ours => "the nodes are to go",
                Nodes::Kept => "the nodes are kept",
                Nodes::Taken => "somebody else has the nodes",
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
        if let State::Recovering(remove) = &mut self.state {
            remove.forget_reports();
        }
    }
}
