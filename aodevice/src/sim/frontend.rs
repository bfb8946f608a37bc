//! How a guest's frontend moves: blkfront and netfront.

use xen_devstate::XenbusState::{self, Closed, Closing, Connected, InitWait, Initialised, Initialising};

use super::bus::{Reaction, View};
use crate::Kind;

const VBD_RING: &[(&str, &str)] = &[("ring-ref", "8"), ("event-channel", "8"), ("feature-persistent", "1")];
const VIF_RINGS: &[(&str, &str)] = &[
    ("tx-ring-ref", "522"),
    ("rx-ring-ref", "523"),
    ("event-channel-tx", "9"),
    ("event-channel-rx", "10"),
    ("request-rx-copy", "1"),
];

pub(super) fn react(view: &View) -> Option<Reaction> {
    let backend: XenbusState = view.other?;
    match (view.own, backend) {
        // netfront is connected as soon as it has published its rings; blkfront waits.
        (Initialising, InitWait | Connected) if view.kind == Kind::Vif => {
            Reaction::with(VIF_RINGS, Connected)
        }
        (Initialising, InitWait) => {
            Reaction::with(if view.kind == Kind::Vbd { VBD_RING } else { &[] }, Initialised)
        }
        (Initialised, Connected) => Reaction::to(Connected),
        (Initialised | Connected, Closing | Closed) => Reaction::to(Closing),
        (Initialising | Closing, Closing | Closed) => Reaction::to(Closed),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_its_backend() {
        let view = |kind, own, other| View { kind, own, other, script_done: false };
        let state = |view| react(&view).map(|reaction| reaction.state);
        assert_eq!(state(view(Kind::Vbd, Initialising, Some(Initialising))), None);
        assert_eq!(state(view(Kind::Vbd, Initialising, Some(InitWait))), Some(Initialised));
        assert_eq!(state(view(Kind::Vif, Initialising, Some(InitWait))), Some(Connected));
        assert_eq!(state(view(Kind::Vbd, Initialised, Some(Connected))), Some(Connected));
        assert_eq!(state(view(Kind::Vbd, Connected, Some(Closing))), Some(Closing));
        assert_eq!(state(view(Kind::Vbd, Closing, Some(Closing))), Some(Closed));
        assert_eq!(state(view(Kind::Vbd, Connected, None)), None);
    }
}
