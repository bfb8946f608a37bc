//! What is compared after an attach and after a detach.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::world::{GUEST, World, losetup};

/// What losetup tells of a loop device, but for its number.
const COLUMNS: &str = "AUTOCLEAR,BACK-FILE,DIO,LOG-SEC,OFFSET,PARTSCAN,RO,SIZELIMIT";

/// The keys that were there before.
const GIVEN: [&str; 9] =
    ["frontend-id", "online", "state", "dev", "type", "params", "mode", "direct-io-safe", "script"];

/// What one pass has left. `Display` is what is compared.
#[derive(Debug, Default)]
pub(super) struct Observed {
    /// The keys that were made, in their order.
    keys: Vec<String>,
    /// The loop device that serves the disk.
    device: String,
    /// The loop devices of the folder after the detach.
    left: usize,
    /// Whether the attach was said to be done.
    success: bool,
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", if self.success { "done" } else { "failed" }, self.keys.join(" "))?;
        if !self.device.is_empty() {
            write!(f, " [{}]", self.device)?;
        }
        write!(f, ", then {} loop devices", self.left)
    }
}

impl Observed {
    /// Looks at the guest's disk after an attach.
    pub(super) async fn attached(world: &World, success: bool) -> Result<Self> {
        let folder = world.path("").to_string_lossy().into_owned();
        let keys = world.keys(GUEST).await?;
        let value = |name: &str| keys.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let node = value("node");
        let mut shown = Vec::new();
        for (key, value) in keys.iter().filter(|(key, _)| !GIVEN.contains(&key.as_str())) {
            // Which number a device has is the kernel's choice, and whose folder it is the lab's.
            let mut value = value.replace(&folder, "/folder/");
            for made in loops_of(&world.path(""))? {
                let sign = if node.as_ref() == Some(&made) { "#" } else { "@" };
                if value == made {
                    value = format!("/dev/loop{sign}");
                } else if value == format!("7:{:x}", number(&made)?) {
                    value = format!("7:{sign}");
                }
            }
            // How a failure reads is each one's own.
            let value = if key == "hotplug-error" { "..." } else { &*value };
            shown.push(format!("{key}={value}"));
        }
        let device = match &node {
            Some(node) => describe(node)?.replace(&folder, "/folder/"),
            None => String::new(),
        };
        Ok(Self { keys: shown, device, left: 0, success })
    }

    /// Counts what is left after the detach.
    pub(super) fn detached(mut self, world: &World) -> Result<Self> {
        self.left = loops_of(&world.path(""))?.len();
        Ok(self)
    }

    /// What was reported as `hotplug-status`.
    pub(super) fn status(&self) -> &str {
        self.keys.iter().find_map(|key| key.strip_prefix("hotplug-status=")).unwrap_or("nothing")
    }
}

fn number(node: &str) -> Result<u32> {
    let number = node.strip_prefix("/dev/loop").and_then(|number| number.parse().ok());
    number.with_context(|| format!("{node} is no loop device"))
}

/// A loop device with its file, flags and size.
fn describe(node: &str) -> Result<String> {
    let told = losetup(&["--list", "--noheadings", "--raw", "--output", COLUMNS, node])?;
    let told = told.trim_end();
    ensure!(!told.is_empty(), "{node} serves nothing");
    let size = fs::read_to_string(format!("/sys/block/loop{}/size", number(node)?))?;
    Ok(format!("{told} size {}", size.trim_end()))
}

/// The loop devices that serve a file below this folder.
pub(super) fn loops_of(folder: &Path) -> Result<Vec<String>> {
    let folder = folder.to_string_lossy();
    let mut found = Vec::new();
    for device in fs::read_dir("/sys/block")? {
        let device = device?;
        // Only a loop device that is in use has this file.
        let behind = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        if behind.starts_with(&*folder) {
            found.push(format!("/dev/{}", device.file_name().display()));
        }
    }
    Ok(found)
}
