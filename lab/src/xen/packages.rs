//! The Debian packages that the machine is made of.
//!
//! Three groups are kept apart. What runs on *this* machine, QEMU above all, must be installed. What dom0 is made of
//! (`xl`, the hotplug scripts, busybox) is copied from this machine, where it must be installed too, if dom0 is of the
//! same release of Debian; of another release it is downloaded and unpacked into one tree. The hypervisor and the
//! kernel must never be installed, since that would touch the boot loader: they are downloaded and unpacked too, one
//! folder per package and version. Such a folder appears in the cache by a rename of a finished one, so an interrupted
//! download leaves nothing to trip over.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use super::debian::{Debian, Source};
use crate::apt::Apt;
use crate::failure::{Failure, output_of};

/// Run on this machine.
const RUN_HERE: [&str; 4] = ["qemu-system-x86", "kmod", "xz-utils", "zstd"];
/// What dom0 is made of, besides `xen-utils-VERSION`.
const DOM0: [&str; 3] = ["xenstore-utils", "busybox-static", "iproute2"];
/// And if its guests have devices of QEMU: the one that is built with Xen, its firmware, the tool that makes images,
/// and the one that shows what goes over QEMU's socket.
const DOM0_WITH_QEMU: [&str; 6] =
    ["qemu-system-xen", "qemu-system-data", "seabios", "ipxe-qemu", "qemu-utils", "strace"];
/// What every machine has, and a tree of packages has only if it is asked for.
const ESSENTIAL: [&str; 6] = ["base-files", "bash", "bsdutils", "coreutils", "libgcc-s1", "util-linux"];
/// Depends on the package of the current kernel version.
const KERNEL: &str = "linux-image-amd64";

/// The unpacked packages.
#[derive(Debug)]
pub struct Packages {
    /// Their release.
    pub debian: Debian,
    /// The folder that has dom0's files in their places.
    pub root: PathBuf,
    /// The hypervisor, still compressed.
    pub xen_gz: PathBuf,
    /// The kernel of dom0 and of its guests, not compressed.
    pub kernel: PathBuf,
    /// The same kernel as it was packed.
    pub packed_kernel: PathBuf,
    /// The folder of that kernel's modules, with an up-to-date `modules.dep`.
    pub modules: PathBuf,
    /// Names and versions of all packages that can end up in an image.
    pub versions: String,
}

impl Packages {
    /// The file that is to be at that place in dom0.
    pub fn file(&self, place: &str) -> PathBuf {
        self.root.join(place.trim_start_matches('/'))
    }
}

/// Makes sure that all packages are there, fetching what is missing if this process may; with those of a
/// host with QEMU if `qemu`.
pub fn prepare(cache: &Path, may_install: bool, qemu: bool, debian: Debian) -> Result<Packages> {
    let mut apt = Apt::new(may_install);
    apt.install_missing(&RUN_HERE)?;
    let xen_utils = format!("xen-utils-{}", debian.xen());
    let dom0 = [&[xen_utils.as_str()], &DOM0[..]].concat();
    if debian == Debian::HOST {
        apt.install_missing(&dom0)?;
        if qemu {
            apt.install_missing(&DOM0_WITH_QEMU)?;
        }
    }
    fs::create_dir_all(cache)?;
    let source = Source::new(debian, &cache.join(debian.folder_name()))?;
    let fetch = || -> Result<_> {
        let hypervisor = unpack(&source, cache, &format!("xen-hypervisor-{}-amd64", debian.xen()))?;
        let depends = source.field(KERNEL, "Depends")?;
        let kernel = depends.split([' ', ',']).next().unwrap_or_default();
        anyhow::ensure!(
            kernel.starts_with("linux-image-"),
            "{KERNEL} depends on {depends:?}, not on a kernel"
        );
        let kernel = unpack(&source, cache, kernel)?;
        let (root, versions) = if debian == Debian::HOST {
            (PathBuf::from("/"), installed()?)
        } else {
            unpack_tree(&source, cache, &[&dom0[..], &DOM0_WITH_QEMU, &ESSENTIAL].concat(), debian)?
        };
        Ok((hypervisor, kernel, root, versions))
    };
    let what = "the hypervisor, the kernel and dom0's programs";
    let (hypervisor, kernel, root, installed) = fetched(&source, &mut apt, what, debian, fetch)?;

    let modules = only_child(&kernel.join("lib/modules"))?;
    let release =
        modules.file_name().context("the modules' folder has no name")?.to_string_lossy().into_owned();
    let packed_kernel = kernel.join("boot").join(format!("vmlinuz-{release}"));
    Ok(Packages {
        debian,
        root,
        xen_gz: hypervisor.join(format!("boot/xen-{}-amd64.gz", debian.xen())),
        kernel: inflated(&packed_kernel)?,
        packed_kernel,
        modules,
        versions: format!("{installed}\n{}\n{}", hypervisor.display(), kernel.display()),
    })
}

/// Makes sure that the stock hotplug scripts of a release are there, fetching them if this process may, and returns their
/// folder.
pub fn scripts(cache: &Path, may_install: bool, debian: Debian) -> Result<PathBuf> {
    const PACKAGE: &str = "xen-utils-common";
    const FOLDER: &str = "/etc/xen/scripts";
    let mut apt = Apt::new(may_install);
    if debian == Debian::HOST {
        apt.install_missing(&[PACKAGE])?;
        return Ok(FOLDER.into());
    }
    fs::create_dir_all(cache)?;
    let source = Source::new(debian, &cache.join(debian.folder_name()))?;
    let fetch = || unpack(&source, cache, PACKAGE);
    let tree = fetched(&source, &mut apt, "the hotplug scripts", debian, fetch)?;
    Ok(tree.join(FOLDER.trim_start_matches('/')))
}

/// Fetches `what`. Old package lists name versions that the mirror has already replaced, and new machines have no
/// lists: they are read anew then.
fn fetched<T>(
    source: &Source,
    apt: &mut Apt,
    what: &str,
    debian: Debian,
    fetch: impl Fn() -> Result<T>,
) -> Result<T> {
    let again = |error: anyhow::Error| match source.refresh(apt) {
        Ok(()) => fetch(),
        Err(refused) => Err(error.context(format!("{refused:#}"))),
    };
    let failed = |error| Failure {
        tried: format!("fetching {what} of Debian {}", debian.codename()),
        observed: format!("{error:#}"),
        hint: format!(
            "check that apt's sources have {} main and that `apt-get download` works here; if the lists are old, run \
             `apt-get update` as root",
            Debian::HOST.codename()
        ),
    };
    Ok(fetch().or_else(again).map_err(failed)?)
}

/// Names and versions of what is installed on this machine.
fn installed() -> Result<String> {
    let shown =
        output_of(Command::new("dpkg-query").args(["--show", "--showformat=${Package} ${Version}\n"]))?;
    Ok(String::from_utf8_lossy(&shown).into_owned())
}

/// Returns the folder of the unpacked package, downloading it if this version is not there yet.
fn unpack(source: &Source, cache: &Path, package: &str) -> Result<PathBuf> {
    let version = source.field(package, "Version")?;
    let folder = cache.join(format!("{package}_{}", version.replace(['/', ':'], "_")));
    if folder.is_dir() {
        return Ok(folder);
    }
    println!("lab: fetching {package} {version}");
    let work = tempfile::Builder::new().prefix("unfinished-").tempdir_in(cache)?;
    source.download(package, &version, work.path())?;
    let archive = only_child(work.path())?;
    let tree = work.path().join("tree");
    extract(&archive, &tree)?;
    if tree.join("usr/lib/modules").is_dir() {
        // Where depmod looks, and where older kernels have them.
        std::os::unix::fs::symlink("usr/lib", tree.join("lib"))?;
    }
    if let Ok(modules) = only_child(&tree.join("lib/modules")) {
        let release = modules.file_name().context("the modules' folder has no name")?;
        output_of(Command::new("/sbin/depmod").arg("--basedir").arg(&tree).arg(release))?;
    }
    put_in_place(&tree, folder)
}

/// Returns the folder of a tree with these packages and all that they depend on, and the names and versions of them;
/// downloads them if these versions are not there yet.
fn unpack_tree(
    source: &Source,
    cache: &Path,
    packages: &[&str],
    debian: Debian,
) -> Result<(PathBuf, String)> {
    let versions = source.closure(packages)?;
    let mut hasher = DefaultHasher::new();
    versions.hash(&mut hasher);
    let folder = cache.join(format!("{}-root_{:016x}", debian.folder_name(), hasher.finish()));
    if folder.is_dir() {
        return Ok((folder, versions));
    }
    println!("lab: fetching {} packages of {}", versions.lines().count(), debian.codename());
    let work = tempfile::Builder::new().prefix("unfinished-").tempdir_in(cache)?;
    let tree = work.path().join("tree");
    for archive in source.download_closure(packages, &work.path().join("archives"))? {
        extract(&archive, &tree)?;
    }
    Ok((put_in_place(&tree, folder)?, versions))
}

fn extract(archive: &Path, tree: &Path) -> Result<()> {
    output_of(Command::new("dpkg").arg("--extract").arg(archive).arg(tree)).map(drop)
}

fn put_in_place(tree: &Path, folder: PathBuf) -> Result<PathBuf> {
    match fs::rename(tree, &folder) {
        Err(_) if folder.is_dir() => Ok(folder), // another run was faster
        renamed => renamed.map(|()| folder).context("cannot put the unpacked package in its place"),
    }
}

/// Unpacks the kernel that is inside a bzImage, unless that was done before, and returns where it is.
///
/// Xen and `xl create` would do it too, but under emulation: a run takes 12 s less this way.
fn inflated(image: &Path) -> Result<PathBuf> {
    let inflated = image.with_file_name("vmlinux");
    if inflated.is_file() {
        return Ok(inflated);
    }
    let content = fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    // Offsets from Documentation/arch/x86/boot.rst of Linux: setup_sects, payload_offset, payload_length.
    let long =
        |at: usize| content.get(at..at + 4)?.try_into().ok().map(|bytes| u32::from_le_bytes(bytes) as usize);
    let payload = || {
        let setup = (usize::from(*content.get(0x1f1)?) + 1) * 512;
        let start = setup + long(0x248)?;
        content.get(start..start + long(0x24c)?)
    };
    let payload = payload().with_context(|| format!("{} is no bzImage", image.display()))?;
    // The kernel's build appends the length, which is no part of what is compressed.
    let stream = &payload[..payload.len().saturating_sub(4)];
    let program = match stream {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        _ => bail!("the kernel in {} is compressed neither by xz nor by zstd", image.display()),
    };
    let work = tempfile::tempdir_in(image.parent().context("the kernel has no folder")?)?;
    let compressed = work.path().join("kernel");
    fs::write(&compressed, stream)?;
    let kernel = output_of(Command::new(program).arg("-dc").arg(&compressed))?;
    let finished = work.path().join("vmlinux");
    fs::write(&finished, kernel)?;
    fs::rename(&finished, &inflated)?;
    Ok(inflated)
}

fn only_child(folder: &Path) -> Result<PathBuf> {
    let mut children = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    match (children.next(), children.next()) {
        (Some(child), None) => Ok(child?.path()),
        _ => Err(anyhow!("expected exactly one entry in {}", folder.display())),
    }
}
