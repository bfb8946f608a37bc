//! What becomes of a device when xendev is struck in mid-operation? `cargo lab ends` looks.
//!
//! The matrix has every step of an attach, a detach and a forced detach, and in each every way to be
//! struck: signals, closed pipes, a store that goes, a domain that goes. All of it is real but the
//! hypervisor and the drivers: the program as it is installed, Debian's xenstored, and a hotplug script
//! that makes loop devices. The drivers, the script and a relay before the store hold xendev at a step
//! until it is struck.
//!
//! What must hold in every cell:
//!
//! - xendev ends, without a panic;
//! - its exit status is true: 0 if the device stands, or is gone, as asked, 4 if a signal cancelled it,
//!   and an attach that failed has left nothing;
//! - soon after its end no process of a script runs, and no two scripts of the device ever ran at once;
//! - a plain `block-detach` later leaves no node, no device and no process.
//!
//! | module | holds |
//! | --- | --- |
//! | `cell` | the matrix |
//! | `course` | how a cell goes |
//! | `strike` | what strikes, and how all goes on |
//! | `judge` | what is demanded |
//! | `host` | the store, the guest, the drivers |
//! | `relay` | the socket before the store, which can hold requests back |
//! | `device`, `script.sh` | the hotplug script and its devices |
//! | `program`, `process` | a run of xendev; processes that are left |

mod cell;
mod course;
mod device;
mod host;
mod judge;
mod process;
mod program;
mod relay;
mod strike;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::failure::missing;
use crate::xendev;
use cell::Cell;
pub use device::Devices;

/// Cells mostly wait: so many of them go on for each CPU.
const AT_ONCE: usize = 6;

/// Strike xendev at every step of its operations in every way there is: what it says must be true,
/// and after a later detach nothing may be left
///
/// Needs root for loop devices and takes about two minutes on two CPUs.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct EndsArgs {
    /// Only cells whose name contains this, such as `attach/script` or `kill`
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// List the cells and run none
    #[arg(long)]
    list: bool,
    /// The program to strike, instead of the one built here
    #[arg(long, value_name = "PATH")]
    xendev: Option<PathBuf>,
    /// What the script makes [default: loop devices if this machine has them]
    #[arg(long, value_enum, value_name = "KIND")]
    devices: Option<Devices>,
    /// How many cells go on at a time [default: 6 for each CPU]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Leave the folders of the cells, which have what the program and the script said
    #[arg(long)]
    keep: bool,
    /// Say nothing but failures and the summary
    #[arg(short, long)]
    quiet: bool,
}

/// What all cells have in common.
#[derive(Debug)]
struct Setting {
    program: PathBuf,
    devices: Devices,
}

/// Runs the subcommand. The last line is `N passed, N failed`; a cell that failed is an error.
pub fn run(args: &EndsArgs) -> Result<()> {
    let mut cells = Cell::all();
    cells.retain(|cell| cell.to_string().contains(&args.only));
    ensure!(!cells.is_empty(), "no cell's name contains {:?}", args.only);
    if args.list {
        cells.iter().for_each(|cell| println!("{cell}"));
        return Ok(());
    }
    let program = args.xendev.clone().map_or_else(|| xendev::build(false), Ok)?;
    let program = program.canonicalize().with_context(|| program.display().to_string())?;
    let devices = args.devices.map_or_else(Devices::probe, Ok)?;
    // What the script needs, or else all cells would fail for the want of it.
    let tool = Command::new("xenstore-write").stdin(Stdio::null()).output();
    tool.map_err(|error| missing("running xenstore-write", &error, "xenstore-utils"))?;
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let jobs = args.jobs.unwrap_or(cpus * AT_ONCE).max(1);
    if !args.quiet {
        let kind = if devices == Devices::Loop { "loop devices" } else { "files that stand for devices" };
        eprintln!("lab: {} cells, {jobs} at a time, with {kind}", cells.len());
    }
    // The loop driver shows the path behind a device without links.
    let folder =
        tempfile::Builder::new().prefix("xendev-ends-").tempdir_in(std::env::temp_dir().canonicalize()?)?;
    let setting = Setting { program, devices };
    let (begun, count) = (Instant::now(), cells.len());
    let failed = strike_all(cells, jobs, &setting, folder.path(), args.keep)?;
    if !args.quiet {
        eprintln!("lab: it took {:.0} s", begun.elapsed().as_secs_f64());
    }
    if args.keep {
        println!("the folders of the cells are in {}", folder.keep().display());
    }
    println!("{} passed, {failed} failed", count - failed);
    ensure!(failed == 0, "{failed} cells failed");
    Ok(())
}

/// Runs the cells, so many at a time; returns how many failed.
fn strike_all(cells: Vec<Cell>, jobs: usize, setting: &Setting, folder: &Path, keep: bool) -> Result<usize> {
    let queue = Mutex::new(cells.into_iter().enumerate());
    let (done, results) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs {
            let (queue, done) = (&queue, done.clone());
            scope.spawn(move || {
                while let Some((number, cell)) = next(queue) {
                    let path = folder.join(format!("{number:03}"));
                    let faults = take(setting, cell, path.clone());
                    if done.send((cell, path, faults)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        let mut failed = 0;
        for (cell, path, faults) in results {
            if !keep {
                // The lab may have failed before it made one.
                _ = fs::remove_dir_all(&path);
            }
            if !faults.is_empty() {
                failed += 1;
                let number = path.file_name().unwrap_or_default().display();
                let kept = if keep { format!(" ({number})") } else { String::new() };
                println!("FAILED {cell}{kept}: {}", faults.join("; "));
            }
        }
        Ok(failed)
    })
}

fn next<T>(queue: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).next()
}

/// Takes a cell's course on this thread; what the lab could not do is a fault too.
fn take(setting: &Setting, cell: Cell, path: PathBuf) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let faults = runtime
        .context("making a runtime")
        .and_then(|runtime| runtime.block_on(course::run(setting, cell, path)));
    faults.unwrap_or_else(|error| vec![format!("{error:#}")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_does_nothing_passes_nowhere() {
        let args = EndsArgs {
            only: "/told/".to_owned(),
            xendev: Some("/bin/true".into()),
            quiet: true,
            ..EndsArgs::default()
        };
        assert_eq!(run(&args).unwrap_err().to_string(), "33 cells failed");
    }
}
