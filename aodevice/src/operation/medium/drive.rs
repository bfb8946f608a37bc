//! A CD-ROM drive in the store: what is recorded of it, and writing what is in it.

use xs_client::{Client, DomId, Path, Request, Requests};

use super::Medium;
use crate::operation::observe::shown;
use crate::operation::store::{text, transact};
use crate::{BackendKind, Cause, DeviceId, Kind, Paths, Which};

/// What the toolstack has recorded of a device that is to be a drive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Whether its guest has a home in the store.
    pub(super) home: bool,
    /// Whether it is there.
    pub(super) lx: bool,
    /// BE's path.
    pub(super) backend: Option<String>,
    /// Whether BE is there.
    pub(super) be: bool,
    /// `cdrom` or `disk`.
    pub(super) device_type: Option<String>,
    /// What is in it.
    pub(super) params: Option<String>,
    /// The record of an operation that works on it.
    pub(super) op: Option<String>,
}

/// A drive whose medium can be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Drive {
    pub(super) id: DeviceId,
    pub(super) paths: Paths,
    /// What is in it, as the store says.
    pub(super) params: String,
}

impl Seen {
    pub(super) async fn look(store: &Requests, which: Which) -> Result<Self, Cause> {
        let home = Path::new(format!("/local/domain/{}", which.fe))?;
        let lx = DeviceId::new(which, DomId::DOM0).toolstack()?;
        let keys = ["backend", "device-type", "params", "op"].map(|key| lx.join(key));
        let mut nodes = vec![home, lx];
        nodes.extend(keys.into_iter().collect::<Result<Vec<_>, _>>()?);
        let mut seen = store.read_many(&nodes).await?.into_iter();
        let mut next = || seen.next().flatten();
        let (home, lx) = (next().is_some(), next().is_some());
        let mut next = || text(next());
        let seen =
            Self { home, lx, be: false, backend: next(), device_type: next(), params: next(), op: next() };
        let be = match seen.backend.as_ref().and_then(|path| Path::new(path).ok()) {
            Some(path) => store.read_opt(&path).await?.is_some(),
            None => false,
        };
        Ok(Self { be, ..seen })
    }

    /// The drive, if it is one that the guest's device model emulates.
    pub(super) fn drive(&self, which: Which, own: DomId) -> Result<Drive, Cause> {
        let no_drive = |why: &str| Err(Cause::NoDrive(why.to_owned()));
        if !self.home {
            return Err(Cause::NoSuchDomain(which.fe.to_string()));
        }
        if !self.lx {
            return Err(Cause::NoSuchDevice);
        }
        if self.device_type.as_deref() != Some("cdrom") {
            return no_drive("it is a disk, and no CD-ROM drive");
        }
        let backend = self.backend.as_deref().unwrap_or_default();
        let id = Path::new(backend).ok().and_then(|path| DeviceId::served_at(which, &path));
        let Some(id) = id.filter(|id| id.be == own) else {
            return Err(Cause::ForeignBackend(format!("at {}", shown(backend.as_bytes()))));
        };
        if id.be_kind != BackendKind::Qdisk {
            return no_drive("the kernel serves it (backendtype=phy), which takes its image once");
        }
        if !self.be {
            return no_drive("its backend is gone");
        }
        Ok(Drive { id, paths: id.paths()?, params: self.params.clone().unwrap_or_default() })
    }
}

/// Writes what is in a drive, if it is still the one that it was, and nobody else works on it.
pub(super) async fn write(client: &Client, drive: &Drive, medium: Option<&Medium>) -> Result<(), Cause> {
    let value = params(medium);
    let value = &value;
    transact(client, |tx| async move {
        let seen = Seen::look(&tx, drive.id.which()).await?;
        may_write(&seen, drive)?;
        let mut writes = Vec::new();
        for directory in [&drive.paths.toolstack, &drive.paths.backend] {
            writes.push(Request::Write { path: directory.join("params")?, value: value.clone().into() });
        }
        Ok(((), writes))
    })
    .await
}

fn may_write(seen: &Seen, drive: &Drive) -> Result<(), Cause> {
    if !seen.lx {
        return Err(Cause::Gone { domain: !seen.home });
    }
    // An operation that has the device takes it away, or makes it anew.
    let is_it = seen.drive(drive.id.which(), drive.id.be).is_ok_and(|now| now.id == drive.id);
    if is_it && seen.op.is_none() { Ok(()) } else { Err(Cause::Taken) }
}

/// Whether the store says that this is in the drive, for what follows from that.
pub(super) fn holds(seen: &Seen, drive: &Drive, medium: Option<&Medium>) -> bool {
    may_write(seen, drive).is_ok() && seen.params.as_deref() == Some(&*params(medium))
}

/// What the store says of a medium.
pub(super) fn params(medium: Option<&Medium>) -> String {
    medium.map(|medium| format!("{}:{}", medium.format.of_qemu(), medium.target)).unwrap_or_default()
}

/// The disk of this number.
pub(super) fn which(fe: DomId, devid: u32) -> Which {
    Which { fe, kind: Kind::Vbd, devid }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vbd::Format;

    const WHICH: Which = Which { fe: DomId(7), kind: Kind::Vbd, devid: 5632 };
    const BE: &str = "/local/domain/0/backend/qdisk/7/5632";

    fn seen() -> Seen {
        let text = |text: &str| Some(text.to_owned());
        Seen {
            home: true,
            lx: true,
            be: true,
            backend: text(BE),
            device_type: text("cdrom"),
            params: text("aio:/a.iso"),
            op: None,
        }
    }

    fn refused(seen: Seen) -> String {
        seen.drive(WHICH, DomId::DOM0).unwrap_err().to_string()
    }

    #[test]
    fn what_is_a_drive() {
        let drive = seen().drive(WHICH, DomId::DOM0).unwrap();
        assert_eq!((&*drive.paths.backend, &*drive.params), (BE, "aio:/a.iso"));
        let text = |text: &str| Some(text.to_owned());
        for (seen, told) in [
            (Seen { home: false, ..seen() }, "the store knows no domain 7"),
            (Seen { lx: false, ..seen() }, "the guest has no such device"),
            (Seen { device_type: text("disk"), ..seen() }, "it is a disk"),
            (Seen { device_type: None, ..seen() }, "it is a disk"),
            (Seen { backend: None, ..seen() }, "its backend is at ;"),
            (Seen { backend: text("/local/domain/0/backend/qdisk/8/5632"), ..seen() }, "its backend is at"),
            (Seen { backend: text("/local/domain/3/backend/qdisk/7/5632"), ..seen() }, "its backend is at"),
            (Seen { backend: text("/local/domain/0/backend/vbd/7/5632"), ..seen() }, "the kernel serves it"),
            (Seen { be: false, ..seen() }, "its backend is gone"),
        ] {
            let refused = refused(seen);
            assert!(refused.contains(told), "{refused}");
        }
    }

    /// QEMU takes a while: by then the device may be another's.
    #[test]
    fn a_drive_that_was_lost_is_not_written() {
        let drive = seen().drive(WHICH, DomId::DOM0).unwrap();
        let may = |seen: Seen| may_write(&seen, &drive).map_err(|cause| cause.code());
        assert_eq!(may(seen()), Ok(()));
        assert_eq!(may(Seen { lx: false, ..seen() }), Err("gone"));
        assert_eq!(may(Seen { be: false, ..seen() }), Err("taken"));
        assert_eq!(may(Seen { op: Some("remove:1".to_owned()), ..seen() }), Err("taken"));
        assert_eq!(may(Seen { device_type: Some("disk".to_owned()), ..seen() }), Err("taken"));
        let other = Some("/local/domain/0/backend/vbd/7/5632".to_owned());
        assert_eq!(may(Seen { backend: other, ..seen() }), Err("taken"));
    }

    #[test]
    fn media_are_named_as_libxl_does() {
        let of = |format| params(Some(&Medium::new("/a:b").with_format(format)));
        assert_eq!(
            (of(Format::Raw), of(Format::Qcow2), of(Format::Vhd)),
            ("aio:/a:b".into(), "qcow2:/a:b".into(), "vhd:/a:b".into())
        );
        assert_eq!(params(None), "");
        let drive = seen().drive(WHICH, DomId::DOM0).unwrap();
        assert!(holds(&seen(), &drive, Some(&Medium::new("/a.iso"))));
        assert!(!holds(&seen(), &drive, Some(&Medium::new("/b.iso"))) && !holds(&seen(), &drive, None));
    }
}
