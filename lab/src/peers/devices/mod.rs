//! What the whole life of a disk costs: it is added, connects, is closed, and is destroyed.
//!
//! | contestant | what it is |
//! | --- | --- |
//! | libxl | libxenstore with the calls that libxl makes for a disk, one at a time (`lab/peers/libxl.c`) |
//! | raw | the fewest requests for the same trees, without libxl's copy of them, pipelined ([`raw`]) |
//! | ours | the toolstack as a library, with its defaults, 16 disks at a time ([`ours`]) |
//!
//! Each is a program of its own, on a fresh server that knows the domains. A second process drives
//! both ends of every disk ([`drivers`]). No hotplug script runs: ours has a handler that does nothing.
//! Afterwards the store must be as it was before.
//!
//! Beside the time, every request of one life of ours is counted ([`account`]).

mod account;
mod drivers;
mod link;
mod lives;
mod ours;
mod raw;
mod tap;
mod world;

use std::env;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};

use super::harness::{self, Better, Goal, Workload};
use crate::apt::Apt;
use crate::cc;
use crate::failure::Failure;
use account::Account;
pub(super) use lives::run as live;
use world::{Running, ServerKind};

const LIBXL: &str = include_str!("../../../peers/libxl.c");

/// The columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contestant {
    Libxl,
    Raw,
    Ours,
    /// In a row about our store: what a user of today has, libxl on the C daemon.
    Today,
}

pub(super) const ALL: &[Contestant] =
    &[Contestant::Libxl, Contestant::Raw, Contestant::Ours, Contestant::Today];

/// What ours is compared with.
pub(super) const RIVALS: &[Contestant] = &[Contestant::Libxl, Contestant::Raw, Contestant::Today];

/// Those that run on the row's own server.
const HERE: &[Contestant] = &[Contestant::Libxl, Contestant::Raw, Contestant::Ours];

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Libxl => "libxl",
            Self::Raw => "raw",
            Self::Ours => "ours",
            Self::Today => "libxl on xenstored",
        })
    }
}

impl Contestant {
    /// On which server it runs in a row about this one.
    fn server(self, of_row: ServerKind) -> ServerKind {
        if self == Self::Today { ServerKind::Xenstored } else { of_row }
    }
}

/// Where the programs are.
#[derive(Debug)]
pub(super) struct Programs {
    lab: PathBuf,
    libxl: PathBuf,
    xendev: PathBuf,
}

impl Programs {
    /// Installs and builds what is needed. `xendev` is our program.
    pub(super) fn prepare(xendev: PathBuf) -> Result<Self> {
        Apt::new(true).install_missing(&["xen-utils-4.17", "libxen-dev", "gcc", "libc6-dev"])?;
        Self::build(env::current_exe().context("where is this program?")?, xendev)
    }

    fn build(lab: PathBuf, xendev: PathBuf) -> Result<Self> {
        let options = ["-O2", "-Wall", "-Wextra", "-lxenstore"];
        let libxl = cc::compiled("libxl-lives", LIBXL, &options, "gcc libc6-dev libxen-dev")?;
        Ok(Self { lab, libxl, xendev })
    }

    /// A part of the lab.
    fn peer(&self, name: &str) -> Command {
        let mut command = Command::new(&self.lab);
        command.args(["peer", "life", name]);
        command
    }

    /// Lets so many disks live on a fresh server; what the contestant has printed.
    fn run(&self, contestant: Contestant, server: ServerKind, disks: usize) -> Result<Map<String, Value>> {
        let server = Running::start(server, &self.xendev, disks)?;
        let before = server.dump()?;
        let folder = tempfile::tempdir()?;
        let target = folder.path().join("disk.img");
        std::fs::write(&target, "")?;
        let socket = format!("socket={}", server.socket().display());
        let settings = [socket, format!("disks={disks}"), format!("target={}", target.display())];

        let mut drivers = self.peer("drivers");
        let mut drivers = drivers.args(&settings).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(drivers.stdout.take().context("no pipe")?).read_line(&mut line)?;
        ensure!(line == "ready\n", "the drivers did not start");

        let mut command = match contestant {
            Contestant::Libxl | Contestant::Today => Command::new(&self.libxl),
            Contestant::Raw => self.peer("raw"),
            Contestant::Ours => self.peer("ours"),
        };
        let output = command.args(&settings).output();
        // They end with their standard input.
        drop(drivers.stdin.take());
        drivers.wait()?;
        let output = output.with_context(|| format!("running {command:?}"))?;
        let figures = serde_json::from_slice(&output.stdout).map_err(|error| Failure {
            tried: format!("letting {disks} disks live with {command:?}"),
            observed: format!("{error}: {}", String::from_utf8_lossy(&output.stderr)),
            hint: "start a server and the drivers and run it by hand".into(),
        })?;
        let after = server.dump()?;
        let left: Vec<_> = after.iter().filter(|(path, node)| before.get(*path) != Some(*node)).collect();
        ensure!(left.is_empty() && before.len() == after.len(), "{contestant} left in the store: {left:?}");
        Ok(figures)
    }
}

type Row = harness::Row<Contestant>;

fn row(name: String, values: &'static str, goals: Vec<Goal<Contestant>>) -> Row {
    Row { name, values, better: Better::Lower, goals }
}

/// All rows with up to so many disks, and what is wanted where all share a CPU, or are unpinned.
pub(super) fn workloads(programs: &Programs, most: usize, unpinned: bool) -> Vec<Workload<'_, Contestant>> {
    let mut all = Vec::new();
    let sizes = || [1, 10, 100, 1000].into_iter().filter(|size| *size <= most);
    for disks in sizes() {
        let beside_libxl = if unpinned { 5.0 } else { 1.6 };
        let goals = vec![
            Goal::Beside(Contestant::Ours, Contestant::Raw, 1.3),
            Goal::Beside(Contestant::Ours, Contestant::Libxl, 1.0 / beside_libxl),
        ];
        all.push(lives(programs, ServerKind::Xenstored, disks, HERE, goals));
    }
    for disks in sizes() {
        let today = |times: f64| vec![Goal::Beside(Contestant::Ours, Contestant::Today, 1.0 / times)];
        let goals = match disks {
            10 => today(10.0),
            1000 => today(25.0),
            _ => Vec::new(),
        };
        all.push(lives(programs, ServerKind::Xendev, disks, ALL, goals));
    }
    if most >= 1000 {
        all.push(growth(programs));
    }
    all.push(counts(programs));
    all
}

/// The cost of a life where so many disks live at the same time.
fn lives<'a>(
    programs: &'a Programs,
    server: ServerKind,
    disks: usize,
    columns: &'static [Contestant],
    goals: Vec<Goal<Contestant>>,
) -> Workload<'a, Contestant> {
    const VALUES: &str = "µs a disk: life / attach / detach / requests";
    let plural = if disks == 1 { "" } else { "s" };
    let run = move |contestant: Contestant| {
        let figures = programs.run(contestant, contestant.server(server), disks)?;
        let value =
            |key| figures.get(key).and_then(Value::as_f64).with_context(|| format!("it printed no {key}"));
        let values = ["us_each", "attach_us", "detach_us", "requests_each"].map(value);
        Ok(vec![values.into_iter().collect::<Result<_>>()?])
    };
    Workload {
        rows: vec![row(format!("{disks} disk{plural}, {server}"), VALUES, goals)],
        columns: columns.into(),
        repetitions: if disks < 1000 { usize::MAX } else { 3 },
        run: Box::new(run),
    }
}

/// Whether a disk costs more among many.
fn growth(programs: &Programs) -> Workload<'_, Contestant> {
    let run = |contestant| {
        let cost = |disks| -> Result<f64> {
            let figures = programs.run(contestant, ServerKind::Xendev, disks)?;
            figures.get("us_each").and_then(Value::as_f64).context("it printed no us_each")
        };
        Ok(vec![vec![cost(10)?, cost(1000)?]])
    };
    let name = format!("growth, {}", ServerKind::Xendev);
    Workload {
        rows: vec![row(name, "µs a disk: 10 / 1000 disks", vec![Goal::Growth(1.3)])],
        columns: (&[Contestant::Ours]).into(),
        repetitions: 3,
        run: Box::new(run),
    }
}

/// What one life asks of the server. It is no matter of speed, so once is enough.
fn counts(programs: &Programs) -> Workload<'_, Contestant> {
    let run = |_| {
        let total = account(&programs.xendev, ServerKind::Xenstored)?.total();
        Ok([total.requests, total.bursts].map(|count| vec![count as f64]).into())
    };
    let goal = |most| vec![Goal::Reach(Contestant::Ours, most)];
    Workload {
        rows: vec![
            row("requests of a life".to_owned(), "requests", goal(46.0)),
            row("round trips of a life".to_owned(), "bursts", goal(14.0)),
        ],
        columns: (&[Contestant::Ours]).into(),
        repetitions: 1,
        run: Box::new(run),
    }
}

fn account(xendev: &Path, server: ServerKind) -> Result<Account> {
    let server = Running::start(server, xendev, 1)?;
    let before = server.dump()?;
    let account = Account::take(&server)?;
    ensure!(before == server.dump()?, "ours left something in the store");
    Ok(account)
}

/// How often one life of ours asks what; with `listing`, every request in order.
pub(super) fn accounts(programs: &Programs, listing: bool) -> Result<String> {
    let mut text = String::new();
    for server in [ServerKind::Xenstored, ServerKind::Xendev] {
        let account = account(&programs.xendev, server)?;
        text += &format!("One life of a disk of ours, {server}:\n\n{}\n", account.table());
        if listing {
            text += &account.listing();
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::tap::Line;
    use super::world::Disk;
    use super::*;
    use crate::{cargo, xendev};

    fn programs() -> Programs {
        let lab = cargo::build("lab", "lab", false).unwrap();
        Programs::build(lab, xendev::build(false).unwrap()).unwrap()
    }

    /// Of two domains, so that the parents go that are empty. That they leave nothing, `run` looks at.
    #[test]
    fn all_contestants_leave_the_store_as_it_was() {
        let programs = programs();
        for server in [ServerKind::Xenstored, ServerKind::Xendev] {
            for contestant in HERE {
                let figures = programs.run(*contestant, server, 12).unwrap();
                let requests = figures["requests_each"].as_f64().unwrap();
                assert!(requests > 40.0, "{contestant}, {server}: {requests}");
            }
        }
    }

    #[test]
    fn every_request_is_accounted_for_and_the_trees_are_those_of_the_others() {
        for server in [ServerKind::Xenstored, ServerKind::Xendev] {
            let account = account(&xendev::build(false).unwrap(), server).unwrap();
            assert_eq!(account.total().requests as u64, account.counted, "{}", account.listing());
            let (_, attach) = &account.phases[0];
            let disk = Disk(0);
            let keys = |directory: String, keys: Vec<(&'static str, String)>| {
                keys.into_iter().map(move |(key, value)| format!("{directory}/{key} {value}"))
            };
            let expected = keys(disk.frontend(), disk.frontend_keys())
                .chain(keys(disk.backend(), disk.backend_keys(&account.target)));
            for expected in expected {
                let is_there = |line: &Line| matches!(line, Line::Request { text, .. } if *text == expected);
                assert!(attach.iter().any(is_there), "{expected} is not among\n{}", account.listing());
            }
        }
    }
}
