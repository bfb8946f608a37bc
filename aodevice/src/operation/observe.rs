//! Looking at both ends of a device, for the report on a failure.

use bytes::Bytes;
use devstate::StateValue;
use xs_client::{Client, Error, Path};

use super::Target;
use crate::Observation;

/// Text from the store in a form that can be shown: guests write some of it.
pub(crate) fn shown(text: &[u8]) -> String {
    text[..text.len().min(200)].escape_ascii().to_string()
}

fn some_text(value: Option<Bytes>) -> Option<String> {
    value.filter(|text| !text.is_empty()).map(|text| shown(&text))
}

/// Reads what both ends say of themselves.
pub(crate) async fn observe(client: &Client, target: &Target) -> Result<Observation, Error> {
    let (id, paths) = (target.id(), target.paths());
    let (frontend, backend) = (&paths.frontend, &paths.backend);
    let keys = [
        backend.join("state")?,
        frontend.join("state")?,
        backend.join("hotplug-status")?,
        backend.join("hotplug-error")?,
        // Where Linux's xenbus drivers put their error texts.
        Path::new(format!(
            "/local/domain/{}/error/backend/{}/{}/{}/error",
            id.be, id.be_kind, id.fe, id.devid
        ))?,
        Path::new(format!("/local/domain/{}/error/device/{}/{}/error", id.fe, id.kind, id.devid))?,
    ];
    let mut seen = client.read_many(&keys).await?.into_iter();
    let mut next = || seen.next().flatten();
    Ok(Observation {
        backend: next().as_deref().map(StateValue::parse),
        frontend: next().as_deref().map(StateValue::parse),
        hotplug_status: some_text(next()),
        hotplug_error: some_text(next()),
        backend_error: some_text(next()),
        frontend_error: some_text(next()),
    })
}
