//! The Debian packages that the machine is made of.
//!
//! Two groups are kept apart. What runs on *this* machine (QEMU), and what is copied from it into dom0 (`xl`,
//! the hotplug scripts, busybox), must be installed. The hypervisor and the kernel must not be: installing
//! them would touch the boot loader. They are downloaded and unpacked into a cache, one folder per package
//! and version. A folder appears there by a rename of a finished one, so an interrupted download leaves
//! nothing to trip over.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};

use crate::apt::Apt;
use crate::failure::{Failure, output_of};

/// Installed, either to be run here or to be copied into the image.
const INSTALLED: [&str; 7] =
    ["qemu-system-x86", "xen-utils-4.17", "xenstore-utils", "busybox-static", "iproute2", "kmod", "xz-utils"];
/// Also installed for a host whose guests have devices of QEMU: the one that is built with Xen, its firmware,
/// the tool that makes images, and the one that shows what goes over QEMU's socket.
const INSTALLED_FOR_QEMU: [&str; 6] =
    ["qemu-system-xen", "qemu-system-data", "seabios", "ipxe-qemu", "qemu-utils", "strace"];
const HYPERVISOR: &str = "xen-hypervisor-4.17-amd64";
/// Depends on the package of the current kernel version.
const KERNEL: &str = "linux-image-amd64";

/// The unpacked packages.
#[derive(Debug)]
pub struct Packages {
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

/// Makes sure that all packages are there, fetching what is missing if this process may; with those of a
/// host with QEMU if `qemu`.
pub fn prepare(cache: &Path, may_install: bool, qemu: bool) -> Result<Packages> {
    let mut apt = Apt::new(may_install);
    apt.install_missing(&INSTALLED)?;
    if qemu {
        apt.install_missing(&INSTALLED_FOR_QEMU)?;
    }
    fs::create_dir_all(cache)?;
    let (hypervisor, kernel) = match unpack_both(cache) {
        Ok(both) => both,
        // Old package lists name versions that the mirror has already replaced; new machines have no lists.
        Err(_) if apt.refresh().is_ok() => unpack_both(cache).map_err(|error| Failure {
            tried: format!("fetching {HYPERVISOR} and the kernel of {KERNEL}"),
            observed: format!("{error:#}"),
            hint: "check that apt's sources have bookworm main and that `apt-get download` works here".into(),
        })?,
        Err(error) => Err(Failure {
            tried: format!("fetching {HYPERVISOR} and the kernel of {KERNEL}"),
            observed: format!("{error:#}"),
            hint: "run `apt-get update` as root, then try again".into(),
        })?,
    };

    let modules = only_child(&kernel.join("lib/modules"))?;
    let release =
        modules.file_name().context("the modules' folder has no name")?.to_string_lossy().into_owned();
    let installed =
        output_of(Command::new("dpkg-query").args(["--show", "--showformat=${Package} ${Version}\n"]))?;
    let packed_kernel = kernel.join("boot").join(format!("vmlinuz-{release}"));
    Ok(Packages {
        xen_gz: hypervisor.join("boot/xen-4.17-amd64.gz"),
        kernel: inflated(&packed_kernel)?,
        packed_kernel,
        modules,
        versions: format!(
            "{}{}\n{}",
            String::from_utf8_lossy(&installed),
            hypervisor.display(),
            kernel.display()
        ),
    })
}

fn unpack_both(cache: &Path) -> Result<(PathBuf, PathBuf)> {
    let hypervisor = unpack(cache, HYPERVISOR)?;
    let depends = candidate_field(KERNEL, "Depends")?;
    let kernel = depends.split([' ', ',']).next().unwrap_or_default();
    anyhow::ensure!(kernel.starts_with("linux-image-"), "{KERNEL} depends on {depends:?}, not on a kernel");
    Ok((hypervisor, unpack(cache, kernel)?))
}

/// Returns the folder of the unpacked package, downloading it if this version is not there yet.
fn unpack(cache: &Path, package: &str) -> Result<PathBuf> {
    let version = candidate_field(package, "Version")?;
    let folder = cache.join(format!("{package}_{}", version.replace(['/', ':'], "_")));
    if folder.is_dir() {
        return Ok(folder);
    }
    println!("lab: fetching {package} {version}");
    let work = tempfile::Builder::new().prefix("unfinished-").tempdir_in(cache)?;
    output_of(
        Command::new("apt-get")
            .args(["download", "--quiet", &format!("{package}={version}")])
            // The user _apt, whom apt would switch to, need not be able to write to our cache.
            .args(["--option", "APT::Sandbox::User=root"])
            .current_dir(work.path()),
    )?;
    let archive = only_child(work.path())?;
    let tree = work.path().join("tree");
    output_of(Command::new("dpkg").arg("--extract").arg(&archive).arg(&tree))?;
    if let Ok(modules) = only_child(&tree.join("lib/modules")) {
        let release = modules.file_name().context("the modules' folder has no name")?;
        output_of(Command::new("/sbin/depmod").arg("--basedir").arg(&tree).arg(release))?;
    }
    match fs::rename(&tree, &folder) {
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
    let work = tempfile::tempdir_in(image.parent().context("the kernel has no folder")?)?;
    let compressed = work.path().join("kernel.xz");
    fs::write(&compressed, payload)?;
    // The kernel's build appends the length, which a second stream would not begin with.
    let kernel = output_of(Command::new("xz").args(["-dc", "--single-stream"]).arg(&compressed))?;
    let finished = work.path().join("kernel");
    fs::write(&finished, kernel)?;
    fs::rename(&finished, &inflated)?;
    Ok(inflated)
}

/// A field of the version of a package that apt would install.
fn candidate_field(package: &str, field: &str) -> Result<String> {
    let shown = output_of(Command::new("apt-cache").args(["show", "--no-all-versions", package]))?;
    String::from_utf8_lossy(&shown)
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(": "))
        .map(str::to_owned)
        .ok_or_else(|| anyhow!("apt knows no {field} of {package}"))
}

fn only_child(folder: &Path) -> Result<PathBuf> {
    let mut children = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    match (children.next(), children.next()) {
        (Some(child), None) => Ok(child?.path()),
        _ => Err(anyhow!("expected exactly one entry in {}", folder.display())),
    }
}
