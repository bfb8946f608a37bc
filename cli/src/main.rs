//! `xendev`: adds, removes, lists and waits for the paravirtual devices of Xen domains.
//!
//! This program holds arguments, output and exit codes; whatever another tool would want is in
//! the crates behind it.

mod args;
mod block;
mod demo;
mod devices;
mod network;
mod output;
mod problem;
mod progress;
mod signals;
mod store;
mod table;
mod wait;
mod world;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};
use problem::{Exit, Problem};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let compat = args.compat_exit;
    let outcome = run(args).await;
    let exit = outcome.unwrap_or_else(|problem| {
        problem.print();
        problem.exit
    });
    exit.code(compat)
}

async fn run(args: Args) -> Result<Exit, Problem> {
    let store = &args.store;
    match args.command {
        Command::BlockAttach(args) => block::attach(store, &args).await,
        Command::BlockDetach(args) => block::detach(store, &args).await,
        Command::BlockList(args) => devices::list(store, &args, aodevice::Kind::Vbd).await,
        Command::NetworkAttach(args) => network::attach(store, &args).await,
        Command::NetworkDetach(args) => network::detach(store, &args).await,
        Command::NetworkList(args) => devices::list(store, &args, aodevice::Kind::Vif).await,
        Command::Wait(args) => wait::run(store, &args).await,
        Command::Demo(args) => demo::run(&args).await,
        Command::Store(args) => store::run(&args).await,
    }
}
