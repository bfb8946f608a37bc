//! The domain that gets a device: finding it, and what its devices depend on.

use std::path::PathBuf;

use xs_client::{Client, DomId, Error, Path};

use crate::facts::is_introduced;
use crate::operation::text;
use crate::{Cause, Device, Server};

/// What a tree depends on besides its device.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    /// `pv`, `pvh` or `hvm`.
    pub(crate) kind: Option<String>,
    /// The toolstack's own domain.
    pub(crate) own: DomId,
    pub(crate) own_name: Option<String>,
    /// The domain that is to serve the device: the toolstack's own, or a driver domain.
    pub(crate) be: DomId,
    pub(crate) script_dir: PathBuf,
}

impl Guest {
    /// Reads what kind of guest it is from the toolstack's own tree.
    pub(crate) async fn look(
        client: &Client,
        (fe, own): (DomId, DomId),
        script_dir: PathBuf,
    ) -> Result<Self, Error> {
        let nodes = [format!("/libxl/{fe}/type"), format!("/local/domain/{own}/name")];
        let nodes = nodes.map(Path::new).into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut seen = client.read_many(&nodes).await?.into_iter().map(text);
        let (kind, own_name) = (seen.next().flatten(), seen.next().flatten());
        Ok(Self { kind, own, own_name, be: own, script_dir })
    }

    /// Whether QEMU emulates a machine for it.
    pub(crate) fn is_hvm(&self) -> bool {
        self.kind.as_deref() == Some("hvm")
    }

    /// Whether the backend is in another domain than the toolstack's.
    pub(crate) fn is_remote(&self) -> bool {
        self.be != self.own
    }

    /// Whether its device model is to serve this device.
    pub(crate) fn is_served_by_model(&self, device: &Device) -> bool {
        !self.is_remote() && device.as_spec().backend(self).server() == Server::DeviceModel
    }

    /// The same guest of a device whose backend is in this domain, by name or number; in the toolstack's own if none
    /// is named. One that is named must run: the store gives nodes to nobody that are made for a domain that is gone.
    ///
    /// # Errors
    ///
    /// [`Cause::BackendDomain`] if there is no such domain, and those of looking for it.
    pub(crate) async fn served_by(self, client: &Client, backend: Option<&str>) -> Result<Self, Cause> {
        let named = backend.unwrap_or_default();
        if named.is_empty() || named == self.own.to_string() || Some(named) == self.own_name.as_deref() {
            return Ok(self);
        }
        match find_domain(client, named).await {
            Ok(be) => Ok(Self { be, ..self }),
            Err(cause @ Cause::Store(_)) => Err(cause),
            Err(cause) => Err(Cause::BackendDomain { name: named.to_owned(), cause: Box::new(cause) }),
        }
    }

    /// The ABI that a PV frontend's ring starts with, by libxl's name for it. A frontend of
    /// another width overwrites it.
    pub(crate) fn protocol(&self) -> Option<&'static str> {
        let native = match std::env::consts::ARCH {
            "x86_64" => Some("x86_64-abi"),
            "x86" => Some("x86_32-abi"),
            "arm" | "aarch64" => Some("arm-abi"),
            _ => None,
        };
        native.filter(|_| self.kind.as_deref() == Some("pv"))
    }

    /// The absolute path of a script.
    pub(crate) fn script(&self, name: &str) -> String {
        self.script_dir.join(name).display().to_string()
    }
}

/// Finds a domain that runs, by its number or its name.
///
/// As for `xl`, what has digits alone is a number, whatever name a domain may have, and anything else is a
/// name. A domain runs if the store's daemon has been introduced to it; homes that dead domains have left in the
/// store do not count.
///
/// # Errors
///
/// [`Cause::NoSuchDomain`] if there is none, [`Cause::DomainGone`] if all that is left of it is its home,
/// [`Cause::AmbiguousName`] if several have the name, and [`Cause::Store`].
pub async fn find_domain(client: &Client, text: &str) -> Result<DomId, Cause> {
    let unknown = || Cause::NoSuchDomain(text.to_owned());
    if text.is_empty() {
        return Err(unknown());
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        let domid = text.parse().map_err(|_| unknown())?;
        return must_run(client, domid).await.map(|()| domid);
    }
    let domains = Path::new("/local/domain").map_err(Error::from)?;
    let domids = client.directory_or_empty(&domains).await?;
    let names = domids.iter().map(|domid| domains.join(format!("{domid}/name")));
    let names: Vec<Path> = names.collect::<Result<_, _>>().map_err(Error::from)?;
    let (mut running, mut gone) = (Vec::new(), None);
    for (domid, name) in domids.iter().zip(client.read_many(&names).await?) {
        if let (Some(name), Ok(domid)) = (name, domid.parse())
            && name == text.as_bytes()
        {
            if is_running(client, domid).await? {
                running.push(domid);
            } else {
                gone = Some(domid);
            }
        }
    }
    running.sort_unstable();
    match (&running[..], gone) {
        ([domid], _) => Ok(*domid),
        ([], Some(domid)) => Err(Cause::DomainGone(domid)),
        ([], None) => Err(unknown()),
        _ => Err(Cause::AmbiguousName { name: text.to_owned(), domids: running }),
    }
}

/// A domain that gets a device has a home and runs.
pub(crate) async fn must_run(client: &Client, domid: DomId) -> Result<(), Cause> {
    let home = Path::new(format!("/local/domain/{domid}"))?;
    let (home, running) = tokio::try_join!(client.read_opt(&home), is_running(client, domid))?;
    match home {
        None => Err(Cause::NoSuchDomain(domid.to_string())),
        Some(_) if running => Ok(()),
        Some(_) => Err(Cause::DomainGone(domid)),
    }
}

/// Whether a domain that has a home runs, as far as the store's daemon tells: a toolstack that may not ask has
/// only the home to go by.
async fn is_running(client: &Client, domid: DomId) -> Result<bool, Error> {
    Ok(is_introduced(client, domid).await?.unwrap_or(true))
}
