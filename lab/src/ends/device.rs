//! The folder of a cell: its script with the script's gates and log, and the devices that it makes.
//!
//! A device is a loop device with the folder's image behind it, or, on a machine that has none, a
//! file that stands for one.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::failure::output_of;

const SCRIPT: &str = include_str!("script.sh");

/// What a script makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Devices {
    /// Loop devices
    Loop,
    /// Files that stand for devices
    Files,
}

impl Devices {
    /// Loop devices, if this machine has them.
    pub(super) fn probe() -> Result<Self> {
        let image = tempfile::NamedTempFile::new()?;
        image.as_file().set_len(1 << 20)?;
        let mut command = losetup();
        let Ok(device) = output_of(command.args(["--find", "--show"]).arg(image.path())) else {
            return Ok(Self::Files);
        };
        let device = String::from_utf8(device)?;
        output_of(losetup().args(["--detach", device.trim_end()]))?;
        Ok(Self::Loop)
    }
}

fn losetup() -> Command {
    let mut command = Command::new("losetup");
    // Users have no sbin in their path.
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// The folder. Whatever devices its script leaves are deleted when it is dropped.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    devices: Devices,
}

impl Folder {
    /// Makes it.
    pub(super) fn new(path: PathBuf, devices: Devices) -> Result<Self> {
        for name in ["", "closed", "reached", "running", "devices"] {
            let folder = path.join(name);
            fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        }
        fs::File::create(path.join("image"))?.set_len(1 << 20)?;
        fs::write(path.join("kind"), if devices == Devices::Loop { "loop\n" } else { "files\n" })?;
        fs::write(path.join("script"), SCRIPT)?;
        fs::set_permissions(path.join("script"), fs::Permissions::from_mode(0o755))?;
        Ok(Self { path, devices })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The disk `xvda` with the script, for the command line.
    pub(super) fn disk(&self) -> String {
        let path = self.path.display();
        format!("vdev=xvda,format=raw,access=rw,script={path}/script,target={path}/image")
    }

    /// Makes the script ignore signals that ask it to end.
    pub(super) fn make_stubborn(&self) -> io::Result<()> {
        fs::write(self.path.join("stubborn"), "")
    }

    /// Makes the script stop at a point.
    pub(super) fn close_gate(&self, point: &str) -> io::Result<()> {
        fs::write(self.path.join("closed").join(point), "")
    }

    /// Lets the script pass at a point.
    pub(super) fn open_gate(&self, point: &str) -> io::Result<()> {
        fs::remove_file(self.path.join("closed").join(point))
    }

    /// Lets the script pass everywhere.
    pub(super) fn open_gates(&self) -> io::Result<()> {
        for gate in fs::read_dir(self.path.join("closed"))? {
            fs::remove_file(gate?.path())?;
        }
        Ok(())
    }

    /// Whether a script has come to a closed gate.
    pub(super) fn is_at(&self, point: &str) -> bool {
        self.path.join("reached").join(point).exists()
    }

    /// What the scripts have noted.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.path.join("log")).unwrap_or_default()
    }

    /// The devices that are there.
    pub(super) fn devices(&self) -> io::Result<Vec<String>> {
        match self.devices {
            Devices::Loop => self.loop_devices(),
            Devices::Files => {
                let files = fs::read_dir(self.path.join("devices"))?;
                files.map(|file| Ok(file?.path().display().to_string())).collect()
            }
        }
    }

    fn loop_devices(&self) -> io::Result<Vec<String>> {
        let image = self.path.join("image").display().to_string();
        let mut found = Vec::new();
        for device in fs::read_dir("/sys/block")? {
            let device = device?;
            // Only a loop device that is in use has this file.
            let behind = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
            if behind.starts_with(&image) {
                found.push(format!("/dev/{}", device.file_name().display()));
            }
        }
        Ok(found)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.devices == Devices::Loop {
            for device in self.loop_devices().unwrap_or_default() {
                // It may have gone by itself.
                _ = output_of(losetup().args(["--detach", &device]));
            }
        }
    }
}
