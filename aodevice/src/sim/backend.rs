//! How a kernel's backend moves: blkback and netback.

use xen_devstate::XenbusState::{Closed, Closing, Connected, InitWait, Initialised, Initialising};

use super::bus::{Reaction, View};
use crate::Kind;

const VBD_FEATURES: &[(&str, &str)] = &[
    ("feature-max-indirect-segments", "256"),
    ("multi-queue-max-queues", "1"),
    ("max-ring-page-order", "4"),
];
const VBD_DISK: &[(&str, &str)] =
    &[("feature-flush-cache", "1"), ("sectors", "32768"), ("info", "0"), ("sector-size", "512")];
const VIF_FEATURES: &[(&str, &str)] =
    &[("feature-sg", "1"), ("feature-rx-copy", "1"), ("feature-rx-flip", "0")];

/// What a driver offers, as far as it matters.
fn features(kind: Kind) -> &'static [(&'static str, &'static str)] {
    if kind == Kind::Vbd {
        VBD_FEATURES
    } else if kind == Kind::Vif {
        VIF_FEATURES
    } else {
        &[]
    }
}

pub(super) fn react(view: &View) -> Option<Reaction> {
    let frontend_gone = matches!(view.other, None | Some(Closed));
    match view.own {
        Initialising if frontend_gone => Reaction::to(Closed),
        Initialising => Reaction::with(features(view.kind), InitWait),
        InitWait | Initialised | Connected | Closing if frontend_gone => Reaction::to(Closed),
        InitWait | Initialised | Connected if view.other == Some(Closing) => Reaction::to(Closing),
        InitWait if view.script_done && matches!(view.other, Some(Initialised | Connected)) => {
            Reaction::with(if view.kind == Kind::Vbd { VBD_DISK } else { &[] }, Connected)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_for_script_and_frontend() {
        let view = |own, other, script_done| View { kind: Kind::Vbd, own, other, script_done };
        let state = |view| react(&view).map(|reaction| reaction.state);
        assert_eq!(state(view(Initialising, Some(Initialising), false)), Some(InitWait));
        assert_eq!(state(view(InitWait, Some(Initialised), false)), None);
        assert_eq!(state(view(InitWait, Some(Initialising), true)), None);
        assert_eq!(state(view(InitWait, Some(Initialised), true)), Some(Connected));
        assert_eq!(state(view(Connected, Some(Connected), true)), None);
        assert_eq!(state(view(Closing, Some(Connected), true)), None);
        assert_eq!(state(view(Closing, Some(Closed), true)), Some(Closed));
        assert_eq!(state(view(Connected, None, true)), Some(Closed));
        assert_eq!(state(view(Closed, None, true)), None);
    }
}
