//! `cargo lab`: the lab's command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lab::api::{self, ApiArgs};
use lab::builds::{self, BuildsArgs};
use lab::clients;
use lab::conformance::{self, ConformanceArgs};
use lab::creation::{self, CreationArgs};
use lab::differential::{self, DifferentialArgs};
use lab::ends::{self, EndsArgs};
use lab::faults::{self, FaultsArgs};
use lab::fuzz::{self, FuzzArgs};
use lab::grammar::{self, GrammarArgs};
use lab::guest::{self, GuestArgs};
use lab::hostile::{self, HostileArgs};
use lab::lives::{self, LivesArgs};
use lab::native::{self, NativeArgs};
use lab::native_disk::{self, DiskSideArgs, NativeDiskArgs};
use lab::native_vif::{self, NativeVifArgs, SideArgs};
use lab::peers::{self, PeerArgs, PeersArgs};
use lab::suite::{self, TestArgs};
use lab::xen::{self, XenArgs};

/// The world that xendev is tested in
#[derive(Debug, Parser)]
#[command(name = "cargo lab")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Test(TestArgs),
    Conformance(ConformanceArgs),
    Differential(DifferentialArgs),
    Ends(EndsArgs),
    Faults(FaultsArgs),
    Fuzz(FuzzArgs),
    Grammar(GrammarArgs),
    Xen(XenArgs),
    Guest(GuestArgs),
    Hostile(HostileArgs),
    Lives(LivesArgs),
    Native(NativeArgs),
    NativeVif(NativeVifArgs),
    NativeDisk(NativeDiskArgs),
    Peers(PeersArgs),
    Api(ApiArgs),
    Builds(BuildsArgs),
    #[command(hide = true)]
    Peer(PeerArgs),
    #[command(hide = true)]
    Creation(CreationArgs),
    #[command(hide = true)]
    NativeVifSide(SideArgs),
    #[command(hide = true)]
    NativeDiskSide(DiskSideArgs),
    /// Run in a Xen domain: the client's cases over its kernel's device
    #[command(hide = true)]
    Clients,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Test(args) => suite::run(&args),
        Command::Conformance(args) => conformance::run(&args),
        Command::Differential(args) => differential::run(&args),
        Command::Ends(args) => ends::run(&args),
        Command::Faults(args) => faults::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Grammar(args) => grammar::run(&args),
        Command::Xen(args) => xen::run(&args),
        Command::Guest(args) => guest::run(&args),
        Command::Hostile(args) => hostile::run(&args),
        Command::Lives(args) => lives::run(&args),
        Command::Native(args) => native::run(&args),
        Command::NativeDisk(args) => native_disk::run(&args),
        Command::NativeDiskSide(args) => native_disk::side(&args),
        Command::NativeVif(args) => native_vif::run(&args),
        Command::Peers(args) => peers::run(&args),
        Command::Api(args) => api::run(&args),
        Command::Builds(args) => builds::run(&args),
        Command::Peer(args) => peers::peer(args),
        Command::Creation(args) => creation::run(&args),
        Command::NativeVifSide(args) => native_vif::side(&args),
        Command::Clients => clients::over_device(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
