//! `cargo lab guest`: a simulated guest to try commands on by hand, over any store's socket.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::ctrl_c;
use xen_aodevice::sim::{self, Drivers};
use xs_client::{Client, Config, DomId};

use crate::daemon::{Daemon, DaemonKind};

/// Runs a simulated guest and its backends on a store until interrupted, to try commands on
#[derive(Debug, clap::Args)]
pub struct GuestArgs {
    /// The store's socket; without one, Debian's xenstored is started under the stand-in hypervisor
    socket: Option<PathBuf>,
    /// The guest's domid, which the store must know if it is not started here
    #[arg(long, default_value_t = 1)]
    domid: u16,
    /// How long each driver takes
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 20)]
    latency: u64,
}

/// Runs the subcommand until it is interrupted.
pub fn run(args: &GuestArgs) -> Result<()> {
    let domid = DomId::from(args.domid);
    let daemon = match &args.socket {
        Some(_) => None,
        None => {
            let daemon = Daemon::start(DaemonKind::Xenstored)?;
            daemon.create_domain(domid)?;
            Some(daemon)
        }
    };
    let socket = args.socket.as_deref().or(daemon.as_ref().map(Daemon::socket)).context("no socket")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let latency = Duration::from_millis(args.latency);
        let client = Client::connect_unix(socket, Config::default()).await?;
        sim::create_domain0(&client).await?;
        sim::create_domain(&client, domid, "guest").await?;
        let _backends = Drivers::backends(client.clone(), DomId::DOM0, latency)?;
        let _frontends = Drivers::frontends(client, domid, latency)?;
        println!("guest {domid} runs; try, with a script that writes what the backend waits for:");
        println!("  xendev --store {} network-attach {domid} script=/path/to/script", socket.display());
        println!("  XENSTORED_PATH={} xenstore-ls -fp", socket.display());
        ctrl_c().await.context("cannot wait for an interrupt")
    })
}
