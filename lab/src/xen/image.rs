//! What the machine boots: a dom0 that lives in an initramfs, with a guest's initramfs inside.
//!
//! dom0 gets Debian's own toolstack, xenstored and hotplug scripts, copied from this machine or from a tree of
//! unpacked packages with the shared libraries that they need, the backend drivers as modules, and busybox for the
//! rest. Some programs must be the real ones, since the hotplug scripts use options that busybox lacks.
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

/// Looked for where Xen has its own, and in [`PROGRAM_FOLDERS`].
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
const PROGRAM_FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
const BUSYBOX: &str = "/bin/busybox";
/// Loaded by glibc when a thread is cancelled, which `xl` does as it exits; no program names it.
const LIBGCC: &str = "/lib/x86_64-linux-gnu/libgcc_s.so.1";
/// Lists the libraries of programs of its own C library, which need not be this machine's.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

/// What a host with QEMU has more of, with the firmware that these programs and `xl` look for.
const QEMU_PROGRAMS: [&str; 3] =
    ["/usr/libexec/xen-qemu-system-i386", "/usr/bin/qemu-img", "/usr/bin/strace"];
const QEMU_FOLDERS: [&str; 2] = ["/usr/share/qemu/keymaps", "/usr/share/seabios"];
const QEMU_FILES: [&str; 2] = ["/usr/share/qemu/linuxboot.bin", "/usr/share/qemu/kvmvapic.bin"];
/// Where the ROMs of network cards are: in one of these, depending on the release of Debian.
const QEMU_ROM_FOLDERS: [&str; 2] = ["/usr/share/qemu", "/usr/lib/ipxe/qemu"];

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
/// How the name of a packed module ends.
const PACKED: &str = ".xz";
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
    let cache = cache.join(packages.debian.folder_name());
    let mut parts = vec![base(packages, &cache, key)?];
    if overlay.qemu {
        parts.push(qemu(packages, &cache, key)?);
    }
    write_overlay(packages, overlay, image)?;
    let small = fs::read(image)?;
    let mut whole = File::create(image)?;
    for part in parts {
        io::copy(&mut File::open(&part)?, &mut whole).context("cannot copy a part of the image")?;
    }
    io::copy(&mut small.as_slice(), &mut whole).context("cannot append the overlay")?;
    Ok(())
}

fn write_overlay(packages: &Packages, overlay: &Overlay<'_>, path: &Path) -> Result<()> {
    let mut archive = Archive::create(path)?;
    archive.copy_tree("/lab/scenarios", overlay.scenarios)?;
    archive.file("/lab/scenario", 0o644, overlay.scenario.as_bytes())?;
    if let Some(xendev) = overlay.xendev {
        archive.copy("/usr/sbin/xendev", xendev)?;
        add_libraries(&mut archive, packages, &[xendev.to_path_buf()])?;
    }
    if let Some(lab) = overlay.lab {
        archive.copy("/usr/sbin/lab", lab)?;
        add_libraries(&mut archive, packages, &[lab.to_path_buf()])?;
        let guest = path.with_extension("guest");
        write_guest_overlay(packages, lab, &guest)?;
        archive.copy("/guest/clients", &guest)?;
        fs::remove_file(guest)?;
    }
    archive.finish()
}

/// What a guest gets on top of its initramfs to run the lab's program instead of its usual work.
fn write_guest_overlay(packages: &Packages, lab: &Path, path: &Path) -> Result<()> {
    let mut archive = Archive::create(path)?;
    archive.symlink("/lib64", "usr/lib64")?;
    archive.copy("/usr/bin/lab", lab)?;
    add_libraries(&mut archive, packages, &[lab.to_path_buf()])?;
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
    add_programs(&mut archive, packages, QEMU_PROGRAMS.map(str::to_owned).into())?;
    for folder in QEMU_FOLDERS {
        archive.copy_tree(folder, &packages.file(folder))?;
    }
    for file in QEMU_FILES {
        archive.copy(file, &packages.file(file))?;
    }
    let hvmloader = format!("/usr/lib/xen-{}/boot/hvmloader", packages.debian.xen());
    archive.copy(&hvmloader, &packages.file(&hvmloader))?;
    for folder in QEMU_ROM_FOLDERS {
        for entry in fs::read_dir(packages.file(folder)).into_iter().flatten() {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.ends_with(".rom") {
                let place = format!("{folder}/{name}");
                archive.copy(&place, &packages.file(&place))?;
            }
        }
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
    add_busybox(&mut archive, packages)?;
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

    let programs = PROGRAMS.iter().map(|name| find_program(packages, name)).collect::<Result<Vec<_>>>()?;
    add_programs(&mut archive, packages, programs)?;
    archive.copy(&in_usr(LIBGCC), &packages.file(LIBGCC))?;
    add_busybox(&mut archive, packages)?;
    add_modules(&mut archive, packages, &DOM0_MODULES)?;
    archive.copy_tree("/etc/xen", &packages.file("/etc/xen"))?;
    archive.copy("/guest/vmlinuz", &packages.kernel)?;
    archive.copy("/guest/initrd", guest)?;
    archive.file("/init", 0o755, DOM0_INIT.as_bytes())?;
    archive.finish()
}

fn program_folders(packages: &Packages) -> Vec<String> {
    let of_xen = format!("/usr/lib/xen-{}/bin", packages.debian.xen());
    [of_xen].into_iter().chain(PROGRAM_FOLDERS.map(str::to_owned)).collect()
}

/// The place of a program.
fn find_program(packages: &Packages, name: &str) -> Result<String> {
    let folders = program_folders(packages);
    folders
        .iter()
        .map(|folder| format!("{folder}/{name}"))
        .find(|place| packages.file(place).is_file())
        .with_context(|| format!("no program {name} in {}", folders.join(", ")))
}

/// A place in the image, where `/bin`, `/sbin` and `/lib*` are links into `/usr`.
fn in_usr(place: &str) -> String {
    if place.starts_with("/bin/") || place.starts_with("/sbin/") || place.starts_with("/lib") {
        format!("/usr{place}")
    } else {
        place.to_owned()
    }
}

/// Adds programs, by their places, with the shared libraries that they need.
fn add_programs(archive: &mut Archive, packages: &Packages, places: Vec<String>) -> Result<()> {
    let files: Vec<PathBuf> = places.iter().map(|place| packages.file(place)).collect();
    for (place, file) in places.iter().zip(&files) {
        archive.copy(&in_usr(place), file)?;
    }
    add_libraries(archive, packages, &files)
}

/// Adds the shared libraries that the programs need, as the loader of dom0's C library finds them.
fn add_libraries(archive: &mut Archive, packages: &Packages, programs: &[PathBuf]) -> Result<()> {
    for program in programs {
        let mut loader = Command::new(packages.file(LOADER));
        // Of another release nothing may be taken from this machine.
        loader.args(["--inhibit-cache", "--library-path"]).arg(packages.file(LIBRARIES));
        let output = loader.arg("--list").arg(program).output().context("cannot run the loader")?;
        // It fails if the program is static or a script, and these need nothing.
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            // `libc.so.6 => /lib/libc.so.6 (0x…)`, or `/lib64/ld-linux-x86-64.so.2 (0x…)` for the loader itself.
            let line = line.trim_start();
            let path = line.split_once(" => ").map_or(line, |(_, path)| path);
            let Some(path) = path.split(' ').next().filter(|path| path.starts_with('/')) else { continue };
            let place = Path::new(path)
                .strip_prefix(&packages.root)
                .with_context(|| format!("{} needs {line}", program.display()))?;
            archive.copy(&in_usr(&format!("/{}", place.display())), Path::new(path))?;
        }
    }
    Ok(())
}

/// Adds busybox under the names of all its applets, except where the real program is in the archive already.
fn add_busybox(archive: &mut Archive, packages: &Packages) -> Result<()> {
    let busybox = packages.file(BUSYBOX);
    archive.copy("/usr/bin/busybox", &busybox)?;
    let applets = output_of(Command::new(busybox).arg("--list"))?;
    let folders = program_folders(packages);
    for applet in String::from_utf8_lossy(&applets).lines() {
        if folders.iter().all(|folder| !archive.contains(&in_usr(&format!("{folder}/{applet}")))) {
            archive.symlink(&format!("/usr/bin/{applet}"), "busybox")?;
        }
    }
    Ok(())
}

/// Adds kernel modules with their dependencies and the part of `modules.dep` that tells of them. Packed ones are
/// unpacked here, where it is fast, and not under emulation.
fn add_modules(archive: &mut Archive, packages: &Packages, modules: &[&str]) -> Result<()> {
    let release = packages.modules.file_name().context("the modules' folder has no name")?.to_string_lossy();
    let index =
        fs::read_to_string(packages.modules.join("modules.dep")).context("cannot read modules.dep")?;
    // `kernel/net/bridge/bridge.ko: kernel/net/802/stp.ko kernel/net/llc/llc.ko`, where the dependencies'
    // own dependencies are listed too, and each name may end in `.xz`.
    let entry_of = |file: &str| {
        index
            .lines()
            .find(|line| line.split_once(':').is_some_and(|(path, _)| path.rsplit('/').next() == Some(file)))
    };
    let mut kept = BTreeSet::new();
    for module in modules {
        let packed = || entry_of(&format!("{module}.ko{PACKED}"));
        let Some(entry) = entry_of(&format!("{module}.ko")).or_else(packed) else {
            anyhow::bail!("kernel {release} has no module {module}");
        };
        for path in entry.split([':', ' ']).filter(|path| !path.is_empty()) {
            kept.extend(path.rsplit('/').next().and_then(entry_of));
            let source = packages.modules.join(path);
            let place = |path: &str| format!("/usr/lib/modules/{release}/{path}");
            match path.strip_suffix(PACKED) {
                None => archive.copy(&place(path), &source)?,
                Some(path) if archive.contains(&place(path)) => {}
                Some(path) => {
                    let module = output_of(Command::new("xz").arg("-dc").arg(source))?;
                    archive.file(&place(path), 0o644, &module)?;
                }
            }
        }
    }
    let kept: String = kept.into_iter().map(|entry| format!("{}\n", entry.replace(PACKED, ""))).collect();
    archive.file(&format!("/usr/lib/modules/{release}/modules.dep"), 0o644, kept.as_bytes())
}
