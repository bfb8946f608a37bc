//! Doing the work of the stock hotplug scripts without a shell.
//!
//! Most of an attach on a real host is a shell: the stock `block` and `vif-bridge` start dozens of programs, and every
//! disk of a host waits for one lock meanwhile. The handlers of [`xen_hotplug::native`] do the same in one process. They know
//! no store; [`NativeRunner`] reads for them what the scripts would have read, and writes what they would have written.
//!
//! A handler takes the place of a script only if the script's text is one that the handler was proven equal to, so that
//! whatever an administrator has changed is run as it stands.

mod block;
mod disk;
mod disks;
mod vif;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path as FsPath;
use std::pin::Pin;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, debug_span};
use xen_hotplug::native::Tools;
use xen_hotplug::native::block::{self as block_handler, Block};
use xen_hotplug::native::disk::Script as DiskScript;
use xen_hotplug::native::vif::Script;
use xen_hotplug::{Ending, Held, Limits, Output, Permit, Report, Request, Runner, ScriptRunner, SpawnError};
use xs_client::{Client, Path};

/// How the work of hotplug scripts is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hotplug {
    /// By a native handler where it was proven to do what the script does, by the script's text; else by the script.
    #[default]
    Auto,
    /// By a native handler, whatever text a script of that name has; a script for which there is none fails.
    Native,
    /// By the script.
    Script,
}

/// Does the work of scripts by native handlers, or runs them.
#[derive(Debug)]
pub struct NativeRunner {
    client: Client,
    scripts: ScriptRunner,
    block: Block,
    hotplug: Hotplug,
}

/// Who does the work of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handler {
    Block,
    /// Through the script's tool.
    Disk(DiskScript),
    Vif(Script),
}

impl Handler {
    /// The one for scripts of this name, for such a device.
    fn named(request: &Request) -> Option<Self> {
        let name = request.script.file_name()?.to_str()?;
        match request.kind {
            xen_hotplug::Kind::Vbd if name == "block" => Some(Self::Block),
            xen_hotplug::Kind::Vbd => DiskScript::named(name).map(Self::Disk),
            // Only a tapdisk serves such a disk.
            xen_hotplug::Kind::Vbd3 => {
                DiskScript::named(name).filter(|script| *script == DiskScript::Tap).map(Self::Disk)
            }
            xen_hotplug::Kind::Vif | xen_hotplug::Kind::VifIoemu | xen_hotplug::Kind::Tap => {
                Script::named(name).map(Self::Vif)
            }
            _ => None,
        }
    }

    /// Whether it was proven to do what this script does here. It reads files.
    fn is_equal_to(self, script: &FsPath) -> bool {
        match self {
            Self::Block => matches!(block_handler::release_of(script), Ok(Some(_))),
            Self::Disk(kind) => matches!(kind.release_of(script), Ok(Some(_))),
            Self::Vif(kind) => matches!(kind.release_of(script), Ok(Some(_))) && kind.extras().is_none(),
        }
    }
}

/// What is written into the backend's directory.
type Keys = Vec<(&'static str, String)>;

/// Why a handler has not done its work.
#[derive(Debug)]
enum Fault {
    /// It failed, or was late. It says why itself, and what is to be written in the backend's directory.
    Handler(Ending, String, Keys),
    /// It was cancelled.
    Cancelled,
    /// The device went while it was at work.
    Gone,
    /// The store failed, or has not got what is needed.
    Store(String),
}

impl From<xs_client::Error> for Fault {
    fn from(error: xs_client::Error) -> Self {
        Self::Store(error.to_string())
    }
}

impl From<xs_client::PathError> for Fault {
    fn from(error: xs_client::PathError) -> Self {
        Self::Store(error.to_string())
    }
}

impl NativeRunner {
    /// One that speaks to the store by this connection, and has these run the scripts that it does not replace.
    pub fn new(client: Client, scripts: ScriptRunner, hotplug: Hotplug) -> Self {
        Self { client, scripts, block: Block::new(), hotplug }
    }

    /// Who is to do the work: nobody but the script, or none.
    async fn handler(&self, request: &Request) -> Result<Option<Handler>, SpawnError> {
        let handler = Handler::named(request);
        match (self.hotplug, handler) {
            (Hotplug::Script, _) | (Hotplug::Auto, None) => Ok(None),
            (Hotplug::Native, None) => Err(no_handler()),
            (Hotplug::Native, handler) => Ok(handler),
            (Hotplug::Auto, Some(handler)) => {
                let script = request.script.clone();
                let equal = spawn_blocking(move || handler.is_equal_to(&script)).await;
                Ok(equal.unwrap_or(false).then_some(handler))
            }
        }
    }

    async fn execute(
        &self,
        request: &Request,
        limits: &Limits,
        cancel: &CancellationToken,
        permit: Permit<'_>,
    ) -> Report {
        let handler = match self.handler(request).await {
            Ok(Some(handler)) => handler,
            Ok(None) => return self.scripts.run_if(request, limits, cancel, permit).await,
            Err(error) => return report(Ending::SpawnFailed(error), Duration::ZERO),
        };
        let report = match self.scripts.hold(request, limits, cancel, permit).await {
            Ok(held) => self.work(handler, request, held, limits, cancel).await,
            Err(ending) => report(ending, Duration::ZERO),
        };
        debug!(duration = ?report.duration, ?handler, "{}", report.ending);
        report
    }

    async fn work(
        &self,
        handler: Handler,
        request: &Request,
        held: Held,
        limits: &Limits,
        cancel: &CancellationToken,
    ) -> Report {
        let tools = Tools::new().holding(held);
        let begun = Instant::now();
        let worked = match handler {
            Handler::Block => block::run(&self.client, &self.block, request, limits, cancel).await.map(Some),
            Handler::Disk(script) => {
                disk::run(&self.client, script, request, tools, limits, cancel).await.map(|()| None)
            }
            Handler::Vif(script) => {
                vif::run(&self.client, script, request, tools, limits, cancel).await.map(Some)
            }
        };
        let duration = begun.elapsed();
        let (ending, why, keys) = match worked {
            Ok(None) => return report(Ending::Done, duration),
            Ok(Some(keys)) => {
                let wrote = keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
                return report(Ending::Done, duration).wrote(wrote);
            }
            Err(Fault::Cancelled) => return report(Ending::Aborted, duration),
            Err(Fault::Gone) => (Ending::Failed, "the backend's directory is gone".to_owned(), Vec::new()),
            Err(Fault::Store(why)) => (Ending::Failed, why, Vec::new()),
            Err(Fault::Handler(ending, why, keys)) => (ending, why, keys),
        };
        // As a script would, so that whoever watches the backend's directory is told.
        if let Err(error) = self.tell(request, keys).await {
            debug!(?error, "the failure cannot be told to the backend");
        }
        report(ending, duration).reported(None, Some(why))
    }

    async fn tell(&self, request: &Request, keys: Keys) -> Result<(), Fault> {
        disks::write(&self.client, &Path::new(request.directory())?, &keys).await
    }
}

fn no_handler() -> SpawnError {
    std::io::Error::other("no native handler does its work; give --hotplug auto").into()
}

fn report(ending: Ending, duration: Duration) -> Report {
    Report::new(ending, Output::default(), duration)
}

impl Runner for NativeRunner {
    fn foresee(&self, script: &FsPath) -> Result<(), SpawnError> {
        match self.hotplug {
            // The script need not even be there.
            Hotplug::Native => Ok(()),
            _ => self.scripts.foresee(script),
        }
    }

    fn environment(&self, request: &Request) -> BTreeMap<OsString, OsString> {
        self.scripts.environment(request)
    }

    fn replaces(&self, request: &Request) -> bool {
        let handler = Handler::named(request);
        match self.hotplug {
            Hotplug::Script => false,
            Hotplug::Native => handler.is_some(),
            Hotplug::Auto => handler.is_some_and(|handler| handler.is_equal_to(&request.script)),
        }
    }

    fn run_if<'a>(
        &'a self,
        request: &'a Request,
        limits: &'a Limits,
        cancel: &'a CancellationToken,
        permit: Permit<'a>,
    ) -> Pin<Box<dyn Future<Output = Report> + Send + 'a>> {
        let span = debug_span!("hotplug", run = %request);
        Box::pin(self.execute(request, limits, cancel, permit).instrument(span))
    }
}
