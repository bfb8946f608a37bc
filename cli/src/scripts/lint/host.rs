//! What a host has that scripts make and take away: loop devices, other block devices, interfaces with their bridges and
//! rules, files of locks, and processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, getpid, kill_process};

/// What is there, by what it is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Host(BTreeMap<String, String>);

impl Host {
    /// Looks. `is_ours` tells by the file behind a loop device whether it counts; `network`: whether this network is the
    /// sandbox's own.
    pub(super) fn look(is_ours: impl Fn(&Path) -> bool, network: bool) -> Self {
        let mut items = BTreeMap::new();
        for name in names("/sys/block") {
            let device = Path::new("/sys/block").join(&name);
            if name.starts_with("loop") {
                let backing = fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
                let backing = backing.trim_end_matches('\n').to_owned();
                if !backing.is_empty() && is_ours(Path::new(&backing)) {
                    items.insert(format!("loop device /dev/{name}"), format!("serves {backing}"));
                }
            } else if read(&device.join("size")).is_some_and(|size| size != "0") {
                items.insert(format!("block device {name}"), "is there".to_owned());
            }
        }
        for name in names("/run/xen-hotplug") {
            items.insert(format!("file /run/xen-hotplug/{name}"), "is there".to_owned());
        }
        if network {
            look_at_network(&mut items);
        }
        Self(items)
    }

    /// What is there and was not, or was otherwise, in words; and what was there and is not.
    pub(super) fn since(&self, before: &Self) -> Vec<String> {
        let new = self.0.iter().filter(|(name, value)| before.0.get(*name) != Some(value));
        let new = new.map(|(name, value)| match before.0.get(name) {
            None => format!("{name} {value}"),
            Some(was) => format!("{name} {value}, and was: {was}"),
        });
        new.chain(self.lost(before)).collect()
    }

    /// What was there and is not any more.
    pub(super) fn lost(&self, before: &Self) -> Vec<String> {
        let gone = before.0.iter().filter(|(name, _)| !self.0.contains_key(*name));
        gone.map(|(name, was)| format!("{name} is gone, and was: {was}")).collect()
    }

    /// Without files of locks: one that nobody holds is harmless.
    pub(super) fn without_files(mut self) -> Self {
        self.0.retain(|name, _| !name.starts_with("file "));
        self
    }

    /// The loop devices.
    pub(super) fn loops(&self) -> impl Iterator<Item = &str> {
        self.0.keys().filter_map(|name| name.strip_prefix("loop device "))
    }
}

fn names(directory: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn read(file: &Path) -> Option<String> {
    Some(fs::read_to_string(file).ok()?.trim().to_owned())
}

/// Interfaces by where they belong, routes, and rules of the packet filter. An interface goes with its backend, so whether
/// it is up, and its addresses, are nothing that is left.
fn look_at_network(items: &mut BTreeMap<String, String>) {
    for name in names("/sys/class/net") {
        let master = fs::read_link(Path::new("/sys/class/net").join(&name).join("master")).ok();
        let master = master.and_then(|master| Some(master.file_name()?.to_string_lossy().into_owned()));
        let master = master.map_or_else(|| "is there".to_owned(), |master| format!("is a port of {master}"));
        items.insert(format!("interface {name}"), master);
    }
    for (what, program, args) in
        [("route", "ip", &["-4", "route", "show"][..]), ("rule of the packet filter", "iptables", &["-S"])]
    {
        let Ok(output) = Command::new(program).args(args).stdin(Stdio::null()).output() else { continue };
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            items.insert(format!("{what} {}", line.trim()), "is there".to_owned());
        }
    }
}

/// A process that outlived its script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Survivor {
    pid: i32,
    name: String,
    /// The files whose locks it holds.
    pub(super) locks: Vec<String>,
}

impl std::fmt::Display for Survivor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({})", self.pid, xen_hotplug::printable(&self.name, xen_hotplug::LINE_SHOWN))?;
        if self.locks.is_empty() {
            Ok(())
        } else {
            write!(f, ", which holds the lock of {}", self.locks.join(", "))
        }
    }
}

impl Survivor {
    pub(super) fn kill(&self) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            // It may have ended by now.
            _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// The processes that scripts have left: they have this in their environment, or became this process's children.
pub(super) fn survivors(marker: &str) -> Vec<Survivor> {
    let own = getpid().as_raw_nonzero().get();
    let locked = locked();
    let mut found = Vec::new();
    for pid in names("/proc").iter().filter_map(|name| name.parse::<i32>().ok()).filter(|pid| *pid != own) {
        let proc = Path::new("/proc").join(pid.to_string());
        let Some(stat) = read(&proc.join("stat")) else { continue };
        let Some((head, tail)) = stat.rsplit_once(") ") else { continue };
        let name = head.split_once(" (").map_or("", |(_, name)| name).to_owned();
        let mut words = tail.split(' ');
        let (state, parent) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let environment = fs::read(proc.join("environ")).unwrap_or_default();
        let is_marked = environment.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes());
        let is_child = parent == own.to_string() && name != "hotplug-guard";
        if state == "Z" || name == "hotplug-guard" || !(is_marked || is_child) {
            continue;
        }
        let files = fs::read_dir(proc.join("fd")).into_iter().flatten().flatten();
        let mut locks: Vec<String> = files
            .filter(|file| {
                fs::metadata(file.path()).is_ok_and(|found| locked.contains(&(found.dev(), found.ino())))
            })
            .filter_map(|file| Some(fs::read_link(file.path()).ok()?.to_string_lossy().into_owned()))
            .collect();
        locks.sort();
        locks.dedup();
        found.push(Survivor { pid, name, locks });
    }
    found
}

/// The files whose locks are held, by device and number.
fn locked() -> BTreeSet<(u64, u64)> {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    // As in `1: FLOCK  ADVISORY  WRITE 4711 00:19:1234 0 EOF`.
    let file = |line: &str| {
        let mut parts = line.split_ascii_whitespace().nth(5)?.split(':');
        let mut number = || u32::from_str_radix(parts.next()?, 16).ok();
        let device = rustix::fs::makedev(number()?, number()?);
        Some((device, parts.next()?.parse().ok()?))
    };
    // Who waits for one has an arrow.
    locks.lines().filter(|line| !line.contains("->")).filter_map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(items: &[(&str, &str)]) -> Host {
        Host(items.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn what_is_new_gone_and_otherwise_is_told() {
        let before =
            host(&[("loop device /dev/loop1", "serves a"), ("interface vif1.0", "is down"), ("file f", "x")]);
        let now =
            host(&[("loop device /dev/loop2", "serves b"), ("interface vif1.0", "is up"), ("file f", "x")]);
        assert_eq!(
            now.since(&before),
            [
                "interface vif1.0 is up, and was: is down",
                "loop device /dev/loop2 serves b",
                "loop device /dev/loop1 is gone, and was: serves a"
            ]
        );
        assert_eq!(now.loops().collect::<Vec<_>>(), ["/dev/loop2"]);
        assert_eq!(before.since(&before), [""; 0]);
        assert_eq!(now.without_files().since(&host(&[])).len(), 2);
    }
}
