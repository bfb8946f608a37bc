//! `xendev`: adds, removes, lists and waits for the paravirtual devices of Xen domains.
//!
//! This program holds arguments, output and exit codes; whatever another tool would want is in
//! the crates behind it.

mod args;
mod attach_all;
mod block;
mod cd;
mod demo;
mod destroy;
mod devd;
mod devices;
mod hint;
mod journal;
mod kinds;
mod machine;
mod network;
mod options;
mod output;
mod pci;
mod plan;
mod printer;
mod problem;
mod progress;
mod scripts;
mod signals;
mod store;
mod table;
mod usb;
mod wait;
mod world;
mod xl_conf;

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use tokio::runtime::Builder;

use args::{Args, Command, Common};
use output::{Role, finish};
use printer::{stderr, stdout};
use problem::{Code, Exit, Problem};

fn main() -> ExitCode {
    let status = match Args::parse() {
        Ok(args) => {
            let Common { json, compat_exit, .. } = args.common;
            let role = if args.common.dry_run { Role::Purpose } else { args.command.role_of_stdout() };
            signals::tell_as_json(json);
            finish(start(args), json, role, compat_exit)
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
            Problem::new(Code::Usage, "cannot understand the command line", observed, hint).json()
        ));
    }
    Ok(Exit::Usage)
}

/// Longer than any process lives. A thread for what may block is kept: tokio panics if it needs one, has none, and none can be
/// made.
const LONG: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

fn start(args: Args) -> Result<Exit, Problem> {
    let runtime =
        Builder::new_current_thread().enable_all().thread_keep_alive(LONG).build().map_err(|error| {
            Problem::new(Code::Start, "cannot start", error, "see the limits of this process (ulimit -a)")
        })?;
    let outcome = runtime.block_on(run(args));
    // A call that is blocked in a thread does not hold up the end.
    runtime.shutdown_background();
    outcome
}

async fn run(args: Args) -> Result<Exit, Problem> {
    let common = &args.common;
    if common.dry_run && !args.command.has_dry_run() {
        let observed =
            "only the commands that attach, cd-insert, cd-eject, destroy-devices and hotplug run have one";
        return Err(Problem::new(Code::Usage, "cannot make a dry run", observed, "leave out -N (--dry-run)"));
    }
    match args.command {
        Command::AttachAll(args) => attach_all::run(common, &args).await,
        Command::BlockAttach(args) => block::attach(common, &args).await,
        Command::BlockDetach(args) => block::detach(common, &args).await,
        Command::BlockList(args) => devices::list(common, &args, Some(xen_aodevice::Kind::Vbd)).await,
        Command::CdInsert(args) => cd::insert(common, &args).await,
        Command::CdEject(args) => cd::eject(common, &args).await,
        Command::NetworkAttach(args) => network::attach(common, &args).await,
        Command::NetworkDetach(args) => network::detach(common, &args).await,
        Command::NetworkList(args) => devices::list(common, &args, Some(xen_aodevice::Kind::Vif)).await,
        Command::OfKind(command) => command.run(common).await,
        Command::UsbdevAttach(args) => usb::attach(common, &args).await,
        Command::UsbdevDetach(args) => usb::detach(common, &args).await,
        Command::UsbList(args) => usb::list(common, &args).await,
        Command::PciAttach(args) => pci::attach(common, &args).await,
        Command::PciDetach(args) => pci::detach(common, &args).await,
        Command::PciList(args) => pci::list(common, &args).await,
        Command::DestroyDevices(args) => destroy::run(common, &args).await,
        Command::Hotplug(command) => command.run(common).await,
        Command::Devd(args) => devd::run(common, &args).await,
        Command::Wait(args) => wait::run(common, &args).await,
        Command::List(args) => devices::list(common, &args, None).await,
        Command::Machine(args) => Ok(machine::run(common, &args)),
        Command::Demo(_) if common.json => {
            let observed = "the demo tells a story, which has no JSON";
            Err(Problem::new(Code::Usage, "cannot show the demo", observed, "leave out --json"))
        }
        Command::Demo(args) => demo::run(&args).await,
        Command::Store(args) => store::run(common, &args).await,
    }
}
