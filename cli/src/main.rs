//! `xendev`: adds, removes, lists and waits for the paravirtual devices of Xen domains.
//!
//! This program holds arguments, output and exit codes; whatever another tool would want is in
//! the crates behind it.

mod args;
mod block;
mod demo;
mod devices;
mod hint;
mod network;
mod output;
mod printer;
mod problem;
mod progress;
mod signals;
mod store;
mod table;
mod wait;
mod world;

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use tokio::runtime::Builder;

use args::{Args, Command};
use output::{Role, finish};
use printer::{stderr, stdout};
use problem::{Exit, Problem};

fn main() -> ExitCode {
    let status = match Args::try_parse() {
        Ok(args) => {
            let (json, role, compat) = (args.command.json(), args.command.role_of_stdout(), args.compat_exit);
            finish(start(args), json, role, compat)
        }
        Err(error) => {
            let role = if error.use_stderr() { Role::Report } else { Role::Purpose };
            finish(told(&error), false, role, false)
        }
    };
    ExitCode::from(status)
}

/// Puts out what the argument parser has to tell: help, the version, or an error.
fn told(error: &clap::Error) -> Result<Exit, Problem> {
    let text = error.render();
    let plain = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let styled = |terminal| if terminal && !plain { text.ansi().to_string() } else { text.to_string() };
    if !error.use_stderr() {
        stdout().put(styled(io::stdout().is_terminal()));
        return Ok(Exit::Done);
    }
    // It repeats arguments, which may be names that others have made.
    let is_printable = |arg: OsString| problem::line(&arg.to_string_lossy()) == arg.to_string_lossy();
    if env::args_os().all(is_printable) {
        stderr().put(styled(io::stderr().is_terminal()));
    } else {
        stderr().put(text.to_string().lines().map(|text| problem::line(text) + "\n").collect::<String>());
    }
    if env::args_os().any(|arg| arg == "--json") {
        let text = text.to_string();
        let first: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
        let observed = first.join(" ").trim_start_matches("error: ").to_owned();
        let hint = "xendev --help tells the commands and their options";
        output::say(format!(
            "{}\n",
            Problem::new("cannot understand the command line", observed, hint).json()
        ));
    }
    Ok(Exit::Usage)
}

fn start(args: Args) -> Result<Exit, Problem> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Problem::new("cannot start", error, "see the limits of this process (ulimit -a)"))?;
    let outcome = runtime.block_on(run(args));
    // A call that is blocked in a thread does not hold up the end.
    runtime.shutdown_background();
    outcome
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
