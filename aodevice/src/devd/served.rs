//! What a daemon has noted of its devices, for whoever asks.

use serde::Serialize;
use xs_client::{Client, Error, Path};

use super::place::BACKENDS;
use super::{Place, Stage, look};

/// A device as the daemon has noted it.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Served {
    /// Which device.
    #[serde(flatten)]
    pub place: Place,
    /// How far it has come.
    pub stage: Stage,
    /// When it came to that, in seconds since 1970.
    pub since: u64,
    /// Why it failed.
    pub error: Option<String>,
    /// The state of its backend; `None` if that is gone.
    pub state: Option<xen_devstate::XenbusState>,
    /// Whether the toolstack wants it.
    pub online: bool,
    /// What its script has reported last.
    pub hotplug_status: Option<String>,
}

/// The devices that a daemon in this domain has noted, and how they stand.
///
/// # Errors
///
/// If the store fails.
pub async fn served(client: &Client) -> Result<Vec<Served>, Error> {
    let all = look::all(client, &Path::new(BACKENDS)?).await?;
    let served = all.into_iter().filter_map(|(place, seen)| {
        let (note, backend) = (seen.note?, seen.backend);
        Some(Served {
            place,
            stage: note.stage,
            since: note.since,
            error: note.error.map(|error| xen_hotplug::printable(error, xen_hotplug::LINE_SHOWN)),
            state: backend.as_ref().and_then(|backend| backend.state),
            online: backend.as_ref().is_some_and(|backend| backend.online),
            hotplug_status: backend.and_then(|backend| backend.status),
        })
    });
    Ok(served.collect())
}
