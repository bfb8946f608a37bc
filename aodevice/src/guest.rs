//! The domain that gets a device: finding it, and what its devices depend on.

use std::path::PathBuf;

use xs_client::{Client, DomId, Error, Path};

use crate::Cause;

/// What a tree depends on besides its device.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) paravirtual: bool,
    pub(crate) script_dir: PathBuf,
}

impl Guest {
    /// Reads what kind of guest it is from the toolstack's own tree.
    pub(crate) async fn look(client: &Client, fe: DomId, script_dir: PathBuf) -> Result<Self, Error> {
        let kind = client.read_opt(&Path::new(format!("/libxl/{fe}/type"))?).await?;
        Ok(Self { paravirtual: kind.as_deref() == Some(b"pv"), script_dir })
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
        native.filter(|_| self.paravirtual)
    }

    /// The absolute path of a script.
    pub(crate) fn script(&self, name: &str) -> String {
        self.script_dir.join(name).display().to_string()
    }
}

/// Finds a domain by its number or its name.
///
/// Fails with [`Cause::NoSuchDomain`] if the store knows none, and with [`Cause::Store`].
pub async fn find_domain(client: &Client, text: &str) -> Result<DomId, Cause> {
    let domains = Path::new("/local/domain").map_err(Error::from)?;
    if let Ok(domid) = text.parse::<DomId>() {
        let home = domains.join(domid.to_string()).map_err(Error::from)?;
        return match client.read_opt(&home).await? {
            Some(_) => Ok(domid),
            None => Err(Cause::NoSuchDomain(text.to_owned())),
        };
    }
    let domids = client.directory_or_empty(&domains).await?;
    let names = domids.iter().map(|domid| domains.join(format!("{domid}/name")));
    let names: Vec<Path> = names.collect::<Result<_, _>>().map_err(Error::from)?;
    for (domid, name) in domids.iter().zip(client.read_many(&names).await?) {
        if let (Some(name), Ok(domid)) = (name, domid.parse())
            && name == text.as_bytes()
        {
            return Ok(domid);
        }
    }
    Err(Cause::NoSuchDomain(text.to_owned()))
}
