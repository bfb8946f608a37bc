//! Looking at both ends of a device, for the report on a failure.
//!
//! Error texts stay in the store until somebody removes them, so what stood there before an operation began
//! is not told as its result.

use bytes::Bytes;
use xen_devstate::StateValue;
use xen_hotplug::printable;
use xs_client::{Client, Error, Path, Requests};

use super::Target;
use super::said::{Said, is_failure, some_text};
use crate::{DeviceId, DomainFacts, Observation};

/// How much of a value of the store is shown, in characters.
const VALUE_SHOWN: usize = 200;

/// Text from the store in a form that can be shown: guests write some of it.
pub(crate) fn shown(text: &[u8]) -> String {
    printable(text, VALUE_SHOWN)
}

/// The error texts of a device, in a form that can be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Texts {
    said: Said,
    backend: Option<String>,
    frontend: Option<String>,
}

impl Texts {
    /// Where Linux's xenbus drivers put their error texts.
    fn of_drivers_nodes(id: &DeviceId) -> Result<[Path; 2], Error> {
        let DeviceId { fe, kind, devid, be, be_kind } = id;
        Ok([
            Path::new(format!("/local/domain/{be}/error/backend/{be_kind}/{fe}/{devid}/error"))?,
            Path::new(format!("/local/domain/{fe}/error/device/{kind}/{devid}/error"))?,
        ])
    }

    fn nodes(id: &DeviceId) -> Result<Vec<Path>, Error> {
        let mut nodes = Vec::with_capacity(4);
        if id.be_kind.is_scripted() {
            nodes.extend(Said::nodes(&id.backend()?)?);
        }
        nodes.extend(Self::of_drivers_nodes(id)?);
        Ok(nodes)
    }

    /// In the order of the nodes.
    fn from_values(id: &DeviceId, mut next: impl FnMut() -> Option<Bytes>) -> Self {
        let said = if id.be_kind.is_scripted() { Said::from_values(next(), next()) } else { Said::default() };
        Self { said, backend: some_text(next()), frontend: some_text(next()) }
    }

    /// What stands there now.
    pub(crate) async fn read(store: &Requests, id: &DeviceId) -> Result<Self, Error> {
        let mut values = store.read_many(&Self::nodes(id)?).await?.into_iter();
        Ok(Self::from_values(id, || values.next().flatten()))
    }

    /// The same, for a backend's directory that is made anew: no script has said anything there.
    pub(crate) async fn of_drivers(store: &Requests, id: &DeviceId) -> Result<Self, Error> {
        let mut values = store.read_many(&Self::of_drivers_nodes(id)?).await?.into_iter().map(some_text);
        let mut next = || values.next().flatten();
        Ok(Self { said: Said::default(), backend: next(), frontend: next() })
    }

    /// What has been written since then. A status that tells of no failure is nobody's fault, and stays.
    fn since(self, before: &Self) -> Self {
        let status = self.said.status.clone();
        let mut said = self.said.since(&before.said);
        said.status = said.status.or(status.filter(|status| !is_failure(status)));
        let new = |now: Option<String>, then: &Option<String>| now.filter(|now| then.as_ref() != Some(now));
        Self {
            said,
            backend: new(self.backend, &before.backend),
            frontend: new(self.frontend, &before.frontend),
        }
    }
}

/// Reads what both ends say of themselves; of error texts those that did not stand there `before`.
pub(crate) async fn observe(
    client: &Client,
    facts: &dyn DomainFacts,
    target: &Target,
    before: &Texts,
) -> Result<Observation, Error> {
    let (id, paths) = (target.id(), target.paths());
    let mut nodes = vec![paths.backend.join("state")?, paths.frontend.join("state")?];
    nodes.extend(Texts::nodes(&id)?);
    let mut seen = client.read_many(&nodes).await?.into_iter();
    let mut next = || seen.next().flatten();
    let backend = next().as_deref().map(StateValue::parse);
    let frontend = next().as_deref().map(StateValue::parse);
    let texts = Texts::from_values(&id, next).since(before);
    Ok(Observation {
        guest: facts.look(id.fe).await?,
        served_by: Some(id.be_kind),
        driver_domain: target.is_remote().then_some(id.be),
        backend,
        frontend,
        hotplug_status: texts.said.status,
        hotplug_error: texts.said.error,
        backend_error: texts.backend,
        frontend_error: texts.frontend,
    })
}
