//! What both ends of a device say of themselves.

use serde::{Serialize, Serializer};
use xen_devstate::StateValue;
use xen_devstate::XenbusState::{self, Closed, Closing, Connected, InitWait, Initialised};
use xs_client::DomId;

use crate::{BackendKind, Condition, Operation, Server};

/// What the two ends of a device say of themselves. Texts are escaped and shortened ([`xen_hotplug::printable`]).
/// Error texts that stood in the store before the operation began are left out: they are not its result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Observation {
    /// What is known of the guest's domain.
    pub guest: Condition,
    /// What serves the device, where that is known.
    pub served_by: Option<BackendKind>,
    /// The driver domain that has the backend, if one has.
    #[serde(serialize_with = "domid_if_any")]
    pub driver_domain: Option<DomId>,
    /// The backend's state.
    pub backend: Option<StateValue>,
    /// The frontend's state, as the guest wrote it.
    pub frontend: Option<StateValue>,
    /// `hotplug-status`, as the script left it; `error` and `busy` only if they are of this operation.
    pub hotplug_status: Option<String>,
    /// `hotplug-error`, as the script left it.
    pub hotplug_error: Option<String>,
    /// The backend driver's error text.
    pub backend_error: Option<String>,
    /// The frontend driver's error text, as the guest wrote it.
    pub frontend_error: Option<String>,
}

fn domid_if_any<S: Serializer>(domid: &Option<DomId>, to: S) -> Result<S::Ok, S::Error> {
    domid.map(|domid| domid.0).serialize(to)
}

impl Observation {
    /// Sentences, the most telling first; empty if there is nothing to see.
    pub fn sentences(&self) -> Vec<String> {
        let mut sentences = Vec::new();
        let mut say = |what: &str, text: &Option<String>| {
            if let Some(text) = text {
                sentences.push(format!("{what}: {text}"));
            }
        };
        say("the script says", &self.hotplug_error);
        say("the backend says", &self.backend_error);
        say("the guest says", &self.frontend_error);
        if self.guest == Condition::Paused || self.guest.is_over() {
            sentences.push(format!("the guest {}", self.guest));
        }
        if let Some(status) = &self.hotplug_status {
            sentences.push(format!("hotplug-status is {status}"));
        }
        if self.backend.is_some() || self.frontend.is_some() {
            let state = |end: &Option<StateValue>| match end {
                Some(value) => value.to_string(),
                None => "not there".to_owned(),
            };
            sentences.push(format!(
                "backend state {}, frontend state {}",
                state(&self.backend),
                state(&self.frontend)
            ));
        }
        sentences
    }

    /// Whether a device model is to move the backend.
    pub(crate) fn is_of_model(&self) -> bool {
        self.served_by.is_some_and(|backend| backend.server() == Server::DeviceModel)
    }

    /// Whether it is for the guest to go on, by the states of both ends.
    pub(crate) fn awaits_guest(&self, operation: Operation) -> bool {
        let state = |end: &Option<StateValue>| end.as_ref().and_then(StateValue::state);
        let (backend, frontend) = (state(&self.backend), state(&self.frontend));
        match operation {
            Operation::Attach => {
                matches!(backend, Some(InitWait | Initialised | Connected))
                    && !matches!(frontend, Some(Initialised | Connected))
            }
            _ => backend == Some(Closing) && !matches!(frontend, None | Some(Closed)),
        }
    }

    pub(crate) fn backend_is(&self, wanted: XenbusState) -> bool {
        self.backend.as_ref().and_then(StateValue::state) == Some(wanted)
    }
}
