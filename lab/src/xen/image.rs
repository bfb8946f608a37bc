//! What the machine boots: a dom0 that lives in an initramfs, with a guest's initramfs inside.
//!
//! dom0 gets Debian's own toolstack, xenstored and hotplug scripts, copied from this machine with the shared
//! libraries that they need, the backend drivers as modules, and busybox for the rest. Some programs must be
//! the real ones, since the hotplug scripts use options that busybox lacks.
//!
//! The image comes in archives, which the kernel unpacks one after the other. The *base* is the same for
//! every run and cached; its key covers the versions of all installed packages and the code and the texts
//! that it is built from. A host with QEMU gets one more of that kind, 60 MB that the other hosts need not
//! load. The *overlay* holds what changes from run to run: the scenarios and the command under test.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::packages::Packages;
use crate::failure::output_of;

const DOM0_INIT: &str = include_str!("../../guest/dom0-init.sh");
const GUEST_INIT: &str = include_str!("../../guest/guest-init.sh");
const GUEST_CLIENTS_INIT: &str = include_str!("../../guest/clients-init.sh");

/// Looked for in [`PROGRAM_FOLDERS`].
const PROGRAMS: [&str; 21] = [
    "bash",
    "flock",
    "libxl-save-helper",
    "ip",
    "bridge",
    "logger",
    "losetup",
    "stat",
    "xl",
    "xenstored",
    "xenconsoled",
    "xen-init-dom0",
    "xenstore",
    "xenstore-chmod",
    "xenstore-exists",
    "xenstore-list",
    "xenstore-ls",
    "xenstore-read",
    "xenstore-rm",
    "xenstore-watch",
    "xenstore-write",
];
const PROGRAM_FOLDERS: [&str; 5] = ["/usr/lib/xen-4.17/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
const BUSYBOX: &str = "/bin/busybox";
/// Loaded by glibc when a thread is cancelled, which `xl` does as it exits; no program names it.
const LIBGCC: &str = "/lib/x86_64-linux-gnu/libgcc_s.so.1";

/// What a host with QEMU has more of, with the firmware that these programs and `xl` look for.
const QEMU_PROGRAMS: [&str; 3] =
    ["/usr/libexec/xen-qemu-system-i386", "/usr/bin/qemu-img", "/usr/bin/strace"];
const QEMU_FOLDERS: [&str; 3] = ["/usr/share/qemu/keymaps", "/usr/share/seabios", "/usr/lib/ipxe/qemu"];
const QEMU_FILES: [&str; 3] =
    ["/usr/lib/xen-4.17/boot/hvmloader", "/usr/share/qemu/linuxboot.bin", "/usr/share/qemu/kvmvapic.bin"];

const DOM0_MODULES: [&str; 10] = [
    "xenfs",
    "xen-privcmd",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-blkback",
    "xen-netback",
    "loop",
    "bridge",
    "tun",
];
const GUEST_MODULES: [&str; 4] = ["xen-blkfront", "xen-netfront", "ata_piix", "sr_mod"];

/// What the overlay adds to the base image.
#[derive(Debug)]
pub struct Overlay<'a> {
    /// The folder of scenarios, copied whole.
    pub scenarios: &'a Path,
    /// File name of the scenario to run.
    pub scenario: &'a str,
    /// The command under test, if the scenario uses it.
    pub xendev: Option<&'a Path>,
    /// The lab's program, if the scenario uses it in dom0 and in a guest.
    pub lab: Option<&'a Path>,
    /// Whether the host has QEMU.
    pub qemu: bool,
}

/// Writes the image of one run to `image`. The parts that stay are built in the folder `cache` if they are
/// not there.
pub fn assemble(packages: &Packages, cache: &Path, overlay: &Overlay<'_>, image: &Path) -> Result<()> {
    let key = key(packages);
    let mut parts = vec![base(packages, cache, key)?];
    if overlay.qemu {
        parts.push(qemu(packages, cache, key)?);
    }
    write_overlay(overlay, image)?;
    let small = fs::read(image)?;
    let mut whole = File::create(image)?;
    for part in parts {
        io::copy(&mut File::open(&part)?, &mut whole).context("cannot copy a part of the image")?;
    }
    io::copy(&mut small.as_slice(), &mut whole).context("cannot append the overlay")?;
    Ok(())
}

fn write_overlay(overlay: &Overlay<'_>, path: &Path) -> Result<()> {
    let mut archive = Archive::create(path)?;
    archive.copy_tree("/lab/scenarios", overlay.scenarios)?;
    archive.file("/lab/scenario", 0o644, overlay.scenario.as_bytes())?;
    if let Some(xendev) = overlay.xendev {
        archive.copy("/usr/sbin/xendev", xendev)?;
        add_libraries(&mut archive, &[xendev.to_path_buf()])?;
    }
    if let Some(lab) = overlay.lab {
        archive.copy("/usr/sbin/lab", lab)?;
        add_libraries(&mut archive, &[lab.to_path_buf()])?;
        let guest = path.with_extension("guest");
        write_guest_overlay(lab, &guest)?;
        archive.copy("/guest/clients", &guest)?;
        fs::remove_file(guest)?;
    }
    archive.finish()
}

/// What a guest gets on top of its initramfs to run the lab's program instead of its usual work.
fn write_guest_overlay(lab: &Path, path: &Path) -> Result<()> {
    let mut archive = Archive::create(path)?;
    archive.symlink("/lib64", "usr/lib64")?;
    archive.copy("/usr/bin/lab", lab)?;
    add_libraries(&mut archive, &[lab.to_path_buf()])?;
    archive.file("/init", 0o755, GUEST_CLIENTS_INIT.as_bytes())?;
    archive.finish()
}

/// What tells parts of one version from those of another.
fn key(packages: &Packages) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&packages.versions, DOM0_INIT, GUEST_INIT, include_str!("image.rs"), include_str!("cpio.rs"))
        .hash(&mut hasher);
    hasher.finish()
}

fn base(packages: &Packages, cache: &Path, key: u64) -> Result<PathBuf> {
    let image = cache.join(format!("dom0-{key:016x}.cpio"));
    if image.is_file() {
        return Ok(image);
    }
    println!("lab: building the image of dom0");
    let _ = fs::remove_dir_all(cache); // images of older versions
    fs::create_dir_all(cache)?;
    let unfinished = tempfile::Builder::new().prefix("unfinished-").tempdir_in(cache)?;
    let guest = unfinished.path().join("guest.cpio");
    write_guest(packages, &guest)?;
    let dom0 = unfinished.path().join("dom0.cpio");
    write_dom0(packages, &guest, &dom0)?;
    fs::rename(&dom0, &image).context("cannot put the image in its place")?;
    Ok(image)
}

/// The part that only a host with QEMU has. To be called after [`base`], which removes that of an older
/// version.
fn qemu(packages: &Packages, cache: &Path, key: u64) -> Result<PathBuf> {
    let image = cache.join(format!("qemu-{key:016x}.cpio"));
    if image.is_file() {
        return Ok(image);
    }
    println!("lab: building the image of QEMU");
    let unfinished = tempfile::Builder::new().prefix("unfinished-").tempdir_in(cache)?;
    let path = unfinished.path().join("qemu.cpio");
    let mut archive = Archive::create(&path)?;
    let programs = QEMU_PROGRAMS.map(PathBuf::from);
    for program in &programs {
        archive.copy(&in_usr(program), program)?;
    }
    add_libraries(&mut archive, &programs)?;
    for folder in QEMU_FOLDERS {
        archive.copy_tree(folder, Path::new(folder))?;
    }
    for file in QEMU_FILES {
        archive.copy(file, Path::new(file))?;
    }
    // QEMU starts an HVM guest with this, and not with the unpacked one.
    archive.copy("/guest/bzImage", &packages.packed_kernel)?;
    archive.finish()?;
    fs::rename(&path, &image).context("cannot put the image in its place")?;
    Ok(image)
}

fn write_guest(packages: &Packages, path: &Path) -> Result<()> {
    let mut archive = Archive::create(path)?;
    for folder in ["/dev", "/proc", "/sys"] {
        archive.directory(folder, 0o755)?;
    }
    archive.symlink("/bin", "usr/bin")?;
    archive.symlink("/sbin", "usr/bin")?;
    archive.symlink("/lib", "usr/lib")?;
    add_busybox(&mut archive)?;
    add_modules(&mut archive, packages, &GUEST_MODULES)?;
    archive.file("/init", 0o755, GUEST_INIT.as_bytes())?;
    archive.finish()
}

fn write_dom0(packages: &Packages, guest: &Path, path: &Path) -> Result<()> {
    let mut archive = Archive::create(path)?;
    for link in ["bin", "sbin", "lib", "lib64"] {
        archive.symlink(&format!("/{link}"), &format!("usr/{link}"))?;
    }
    for folder in ["/dev", "/proc", "/sys", "/run", "/tmp", "/root", "/var/lib/xen", "/var/lib/xenstored"] {
        archive.directory(folder, 0o755)?;
    }
    archive.directory("/var/log/xen", 0o755)?;
    archive.symlink("/var/run", "/run")?;
    archive.symlink("/var/lock", "/run/lock")?;

    let programs = PROGRAMS.iter().map(|name| find_program(name)).collect::<Result<Vec<_>>>()?;
    for program in &programs {
        archive.copy(&in_usr(program), program)?;
    }
    add_libraries(&mut archive, &programs)?;
    archive.copy(&in_usr(Path::new(LIBGCC)), Path::new(LIBGCC))?;
    add_busybox(&mut archive)?;
    add_modules(&mut archive, packages, &DOM0_MODULES)?;
    archive.copy_tree("/etc/xen", Path::new("/etc/xen"))?;
    archive.copy("/guest/vmlinuz", &packages.kernel)?;
    archive.copy("/guest/initrd", guest)?;
    archive.file("/init", 0o755, DOM0_INIT.as_bytes())?;
    archive.finish()
}

fn find_program(name: &str) -> Result<PathBuf> {
    PROGRAM_FOLDERS
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("no program {name} in {}", PROGRAM_FOLDERS.join(", ")))
}

/// The place of a host file in the image, where `/bin`, `/sbin` and `/lib*` are links into `/usr`.
fn in_usr(path: &Path) -> String {
    let path = path.display().to_string();
    if path.starts_with("/bin/") || path.starts_with("/sbin/") || path.starts_with("/lib") {
        format!("/usr{path}")
    } else {
        path
    }
}

/// Adds the shared libraries that the programs need, as ldd(1) finds them.
fn add_libraries(archive: &mut Archive, programs: &[PathBuf]) -> Result<()> {
    // ldd fails if one of the programs is static or a script, and these need nothing.
    let output = Command::new("ldd").args(programs).output().context("cannot run ldd")?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        // `libc.so.6 => /lib/libc.so.6 (0x…)`, or `/lib64/ld-linux-x86-64.so.2 (0x…)` for the loader. A line
        // that begins at the margin is the name of the next program.
        if let Some(library) = line.strip_prefix('\t').and_then(|line| {
            let path = line.split_once(" => ").map_or(line, |(_, path)| path);
            path.split(' ').next().filter(|path| path.starts_with('/'))
        }) {
            archive.copy(&in_usr(Path::new(library)), Path::new(library))?;
        }
    }
    Ok(())
}

/// Adds busybox under the names of all its applets, except where the real program is in the archive already.
fn add_busybox(archive: &mut Archive) -> Result<()> {
    archive.copy("/usr/bin/busybox", Path::new(BUSYBOX))?;
    let applets = output_of(Command::new(BUSYBOX).arg("--list"))?;
    for applet in String::from_utf8_lossy(&applets).lines() {
        if PROGRAM_FOLDERS.iter().all(|folder| !archive.contains(&in_usr(&Path::new(folder).join(applet)))) {
            archive.symlink(&format!("/usr/bin/{applet}"), "busybox")?;
        }
    }
    Ok(())
}

/// Adds kernel modules with their dependencies and the part of `modules.dep` that tells of them.
fn add_modules(archive: &mut Archive, packages: &Packages, modules: &[&str]) -> Result<()> {
    let release = packages.modules.file_name().context("the modules' folder has no name")?.to_string_lossy();
    let index =
        fs::read_to_string(packages.modules.join("modules.dep")).context("cannot read modules.dep")?;
    // `kernel/net/bridge/bridge.ko: kernel/net/802/stp.ko kernel/net/llc/llc.ko`, where the dependencies'
    // own dependencies are listed too.
    let entry_of = |file: &str| {
        index
            .lines()
            .find(|line| line.split_once(':').is_some_and(|(path, _)| path.rsplit('/').next() == Some(file)))
    };
    let mut kept = BTreeSet::new();
    for module in modules {
        let Some(entry) = entry_of(&format!("{module}.ko")) else {
            anyhow::bail!("kernel {release} has no module {module}");
        };
        for path in entry.split([':', ' ']).filter(|path| !path.is_empty()) {
            kept.extend(path.rsplit('/').next().and_then(entry_of));
            archive.copy(&format!("/usr/lib/modules/{release}/{path}"), &packages.modules.join(path))?;
        }
    }
    let kept: String = kept.into_iter().map(|entry| format!("{entry}\n")).collect();
    archive.file(&format!("/usr/lib/modules/{release}/modules.dep"), 0o644, kept.as_bytes())
}
