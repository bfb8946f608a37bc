//! A real Open vSwitch in the namespaces of a side: both of its daemons, as Debian installs them, with switches in user
//! space, which need no module of the kernel.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::failure::{missing, output_of};

/// Where the daemons and `ovs-vsctl` look for each other.
const FOLDER: &str = "/run/openvswitch";

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

const PATIENCE: Duration = Duration::from_secs(10);

/// What of the tables is compared: not what each run makes anew, such as ids of rows.
const TABLES: [(&str, &str); 3] = [
    ("bridge", "name,datapath_type"),
    ("port", "name,tag,trunks,vlan_mode"),
    ("interface", "name,type,external_ids,mtu_request,mac"),
];

/// The daemons. Dropping the value ends them.
pub(super) struct Switch {
    daemons: Vec<Child>,
}

impl Switch {
    /// Starts the daemons, and runs `ovs-vsctl` with each of these words.
    pub(super) fn start(setup: &[&str]) -> Result<Self> {
        fs::create_dir_all(FOLDER)?;
        let database = format!("{FOLDER}/conf.db");
        output_of(Command::new("ovsdb-tool").args(["create", &database, SCHEMA]))?;
        let socket = format!("{FOLDER}/db.sock");
        let mut switch = Self { daemons: Vec::new() };
        switch.spawn("ovsdb-server", &[&database, &format!("--remote=punix:{socket}"), "--no-chdir"])?;
        let begun = Instant::now();
        // It does not connect again by itself to a socket.
        while let Err(error) = vsctl("--no-wait init") {
            if begun.elapsed() > PATIENCE {
                return Err(error.context("waiting for ovsdb-server"));
            }
            sleep(Duration::from_millis(10));
        }
        switch.spawn("ovs-vswitchd", &[&format!("unix:{socket}"), "--pidfile", "--no-chdir"])?;
        setup.iter().try_for_each(|words| vsctl(words))?;
        Ok(switch)
    }

    /// Stops the daemon that makes ports, so that `ovs-vsctl` waits for it.
    pub(super) fn stop(&self) -> Result<()> {
        let daemon = self.daemons.last().context("no daemon")?;
        rustix::process::kill_process(Pid::from_child(daemon), Signal::STOP)?;
        Ok(())
    }

    fn spawn(&mut self, program: &str, args: &[&str]) -> Result<()> {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn();
        let child =
            child.map_err(|error| missing(&format!("running {program}"), &error, "openvswitch-switch"))?;
        self.daemons.push(child);
        Ok(())
    }

    /// What its database holds.
    pub(super) fn view() -> Result<BTreeMap<String, String>> {
        let mut view = BTreeMap::new();
        for (table, columns) in TABLES {
            let args = ["--timeout=5", "--format=json", "--columns", columns, "list", table];
            let printed = output_of(Command::new("ovs-vsctl").args(args))?;
            let listed: Value = serde_json::from_slice(&printed).context("reading what ovs-vsctl printed")?;
            let Some(rows) = listed["data"].as_array() else { bail!("no rows in {listed}") };
            for row in rows {
                let name = row[0].as_str().unwrap_or_default();
                for (column, value) in columns.split(',').zip(row.as_array().into_iter().flatten()).skip(1) {
                    view.insert(format!("switch/{table}/{name}/{column}"), value.to_string());
                }
            }
        }
        Ok(view)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        for daemon in self.daemons.iter_mut().rev() {
            // One that has ended is nothing to worry about.
            _ = daemon.kill();
            _ = daemon.wait();
        }
    }
}

/// Runs `ovs-vsctl` with these words.
pub(super) fn vsctl(words: &str) -> Result<()> {
    output_of(Command::new("ovs-vsctl").arg("--timeout=10").args(words.split_ascii_whitespace())).map(drop)
}
