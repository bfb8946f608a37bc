//! Programs by which handlers do what the kernel lets nobody else do: `ovs-vsctl`, `iscsiadm`, `nbd-client`, `tap-ctl`.
//!
//! A tool is started as a script is: behind a guard, as the leader of a process group of its own, with an environment
//! from an allow-list. No shell is between, so no value of a device is ever read as code. All calls of one
//! run share its deadline. A call that undoes an earlier one has its own, since it is made when that deadline has
//! passed, or the run was cancelled.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use thiserror::Error;
use tokio::select;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::lock::Held;
use crate::process::{self, Environment};
use crate::runner::DRAIN;
use crate::{Ending, LINE_SHOWN, Limits, Output, SpawnError, SpawnFault, printable};

/// How long a call may take that undoes another.
const UNDO: Duration = Duration::from_secs(10);

/// How the tools of handlers are started.
#[derive(Clone, Debug)]
pub struct Tools {
    environment: Environment,
    held: Option<Arc<Held>>,
}

impl Tools {
    /// Tools that are searched for in `PATH`, in which the `sbin` directories are never missing.
    #[must_use]
    pub fn new() -> Self {
        // What they print is read.
        Self { environment: Environment::default(), held: None }.env("LC_ALL", "C")
    }

    /// Sets a variable for every tool.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.extra.insert(name.into(), value.into());
        self
    }

    /// Has every tool keep the lock of the device until its last process is dead, whatever becomes of this program: so
    /// nothing else runs for the device beside a tool that was killed.
    #[must_use]
    pub fn holding(self, held: Held) -> Self {
        Self { held: Some(Arc::new(held)), ..self }
    }

    /// The calls of one run.
    pub(super) fn course(&self, limits: &Limits, cancel: &CancellationToken) -> Course {
        Course {
            tools: self.clone(),
            within: limits.deadline,
            deadline: Instant::now().checked_add(limits.deadline),
            grace: limits.grace,
            cancel: cancel.clone(),
        }
    }
}

impl Default for Tools {
    fn default() -> Self {
        Self::new()
    }
}

/// A program, and how it is installed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tool {
    pub(super) name: &'static str,
    pub(super) install: &'static str,
}

/// A call of a tool. `Display` shows it as one would type it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    tool: &'static Tool,
    args: Vec<String>,
}

impl Call {
    pub(super) fn new<A: Into<String>>(tool: &'static Tool, args: impl IntoIterator<Item = A>) -> Self {
        Self { tool, args: args.into_iter().map(Into::into).collect() }
    }

    /// With these arguments after its own.
    pub(super) fn with(mut self, args: impl IntoIterator<Item = String>) -> Self {
        self.args.extend(args);
        self
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.tool.name.to_owned();
        for arg in &self.args {
            let is_plain = !arg.is_empty() && !arg.contains([' ', '\'']);
            text.push(' ');
            text.push_str(&if is_plain { arg.clone() } else { format!("'{}'", arg.replace('\'', r"'\''")) });
        }
        f.write_str(&printable(text, LINE_SHOWN))
    }
}

/// Why a tool has not done its work.
///
/// `Display` names it with its arguments, and says how it ended and what it said. What to do about it depends on
/// what it was called for, except where it is not installed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ToolError {
    /// It is not installed.
    #[error("there is no program {tool} (it was to be called as `{call}`). Install it: {install}")]
    Missing {
        /// Its name.
        tool: &'static str,
        /// How it is installed.
        install: &'static str,
        /// The call.
        call: String,
    },
    /// It could not be started.
    #[error("`{call}` could not be started: {error}")]
    NotStarted {
        /// The call.
        call: String,
        /// The kernel's answer.
        error: SpawnError,
    },
    /// It failed.
    #[error("`{call}` {ending}{}", .said.as_ref().map(|said| format!(": {said}")).unwrap_or_default())]
    Failed {
        /// The call.
        call: String,
        /// How it ended.
        ending: Ending,
        /// The last line that it printed.
        said: Option<String>,
    },
    /// The deadline of the run passed, and it was killed or not called any more.
    #[error("`{call}` did not finish within the {within:?} that all of the work may take")]
    TimedOut {
        /// The call.
        call: String,
        /// How long the run could take.
        within: Duration,
    },
    /// The run was cancelled, and the tool killed or not called any more.
    #[error("`{call}` was cancelled")]
    Cancelled {
        /// The call.
        call: String,
    },
}

impl ToolError {
    /// What to do, after this error's text: it says so itself of a tool that is not installed.
    pub(super) fn then(&self, fix: &str) -> String {
        if matches!(self, Self::Missing { .. }) { String::new() } else { format!(". {fix}") }
    }

    /// The exit status, if it ended by itself.
    #[must_use]
    pub fn exit_status(&self) -> Option<i32> {
        match self {
            Self::Failed { ending: Ending::Exited(status), .. } => Some(*status),
            _ => None,
        }
    }
}

/// The calls of one run of a handler, one after the other.
#[derive(Clone, Debug)]
pub(super) struct Course {
    tools: Tools,
    within: Duration,
    /// None for no deadline.
    deadline: Option<Instant>,
    grace: Duration,
    pub(super) cancel: CancellationToken,
}

impl Course {
    /// How much time is left, at most `most`.
    pub(super) fn left(&self, most: Duration) -> Duration {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        left.map_or(most, |left| left.min(most))
    }

    /// How long all of the run may take.
    pub(super) fn within(&self) -> Duration {
        self.within
    }

    /// Whether a tool is installed, for one that is called late.
    pub(super) fn find(&self, tool: &'static Tool) -> Result<(), ToolError> {
        let variables = self.tools.environment.variables(std::env::vars_os(), &[]);
        let path = variables.get(OsStr::new("PATH"));
        let mut folders = path.into_iter().flat_map(std::env::split_paths);
        let missing =
            || ToolError::Missing { tool: tool.name, install: tool.install, call: tool.name.to_owned() };
        if folders.any(|folder| folder.join(tool.name).is_file()) { Ok(()) } else { Err(missing()) }
    }

    /// Calls a tool; what it printed, if it exited with 0.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the tool and its children are killed.
    pub(super) async fn call(&self, call: &Call) -> Result<Output, ToolError> {
        self.run(call, self.deadline, &self.cancel).await
    }

    /// The same for a call that undoes another: it has a deadline of its own, and is not cancelled.
    pub(super) async fn undo(&self, call: &Call) -> Result<Output, ToolError> {
        self.run(call, Instant::now().checked_add(UNDO), &CancellationToken::new()).await
    }

    async fn run(
        &self,
        call: &Call,
        deadline: Option<Instant>,
        cancel: &CancellationToken,
    ) -> Result<Output, ToolError> {
        let cancelled = || ToolError::Cancelled { call: call.to_string() };
        let late = || ToolError::TimedOut { call: call.to_string(), within: self.within };
        if cancel.is_cancelled() {
            return Err(cancelled());
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(late());
        }
        let variables = self.tools.environment.variables(std::env::vars_os(), &[]);
        let held = self.tools.held.as_deref();
        let lock = held.and_then(Held::lend);
        let started = process::start(OsStr::new(call.tool.name), &call.args, &variables, lock);
        let (mut group, mut capture) = match started {
            Ok(started) => started,
            Err(error) => {
                if let Some(held) = held {
                    held.returned();
                }
                return Err(not_started(call, &error));
            }
        };
        let ended = {
            let mut ended = pin!(async {
                let why = select! {
                    biased;
                    ending = group.ended() => return Ok(ending),
                    () = cancel.cancelled() => cancelled(),
                    () = passed(deadline) => late(),
                };
                // It may have done its work before it heard of that.
                group.terminate(self.grace).await.ok_or(why)
            });
            select! {
                biased;
                ended = &mut ended => ended,
                () = capture.read_to_end() => ended.await,
            }
        };
        if let Some(held) = held.filter(|_| group.is_gone()) {
            held.returned();
        }
        // The pipe ends with the tool, unless a daemon that it has started keeps it open.
        let _ = timeout(DRAIN, capture.read_to_end()).await;
        let output = capture.finish();
        match ended? {
            Ending::Exited(0) => Ok(output),
            ending => Err(ToolError::Failed { call: call.to_string(), ending, said: output.last_line() }),
        }
    }
}

/// Waits for a call in a thread that may block, be there a runtime around it or not. The thread that waits is another,
/// since one of a runtime must not begin a second one.
pub(super) fn on_thread(
    call: &Call,
    run: impl Future<Output = Result<Output, ToolError>> + Send,
) -> Result<Output, ToolError> {
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| not_started(call, &error))?.block_on(run)
    };
    let ran = thread::scope(|scope| scope.spawn(work).join());
    ran.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn not_started(call: &Call, error: &io::Error) -> ToolError {
    let (tool, call) = (call.tool, call.to_string());
    let error = SpawnError::from(io::Error::new(error.kind(), error.to_string()));
    if error.fault() == SpawnFault::NotFound {
        return ToolError::Missing { tool: tool.name, install: tool.install, call };
    }
    ToolError::NotStarted { call, error }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;

    const TOOL: Tool = Tool { name: "a-tool-of-tests", install: "apt-get install a-package" };

    fn tools(folder: &Path, text: &str) -> Tools {
        let program = folder.join(TOOL.name);
        fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Tools::new().env("PATH", folder)
    }

    async fn called(tools: &Tools, limits: Limits, args: &[&str]) -> Result<Output, ToolError> {
        let course = tools.course(&limits, &CancellationToken::new());
        course.call(&Call::new(&TOOL, args.iter().copied())).await
    }

    #[tokio::test]
    async fn arguments_are_no_code_and_errors_name_them() {
        let folder = tempfile::tempdir().unwrap();
        let tools = tools(folder.path(), r#"for arg; do echo "<$arg>"; done; exit $1"#);
        let printed = called(&tools, Limits::default(), &["0", "a b", "$(id)", ""]).await.unwrap();
        assert_eq!(printed.text(), "<0>\n<a b>\n<$(id)>\n<>\n");
        let error = called(&tools, Limits::default(), &["3", "a b", "it's"]).await.unwrap_err();
        assert_eq!(error.to_string(), r"`a-tool-of-tests 3 'a b' 'it'\''s'` exited with status 3: <it's>");
        assert_eq!(error.exit_status(), Some(3));
    }

    #[tokio::test]
    async fn a_tool_that_is_not_installed_is_told_with_its_package() {
        let error = called(&Tools::new(), Limits::default(), &["x"]).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no program a-tool-of-tests (it was to be called as `a-tool-of-tests x`). Install it: apt-get \
             install a-package"
        );
    }

    #[tokio::test]
    async fn a_tool_that_is_late_or_cancelled_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let tools = tools(folder.path(), r#"sleep 1000 & echo $! > "$1"; wait"#);
        let limits = Limits::default().deadline(Duration::from_millis(300));
        let is_alive = || {
            let pid = fs::read_to_string(&pid).unwrap();
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.is_ok_and(|stat| !stat.contains(") Z"))
        };
        let args = [pid.to_str().unwrap()];
        let error = called(&tools, limits, &args).await.unwrap_err();
        assert!(matches!(error, ToolError::TimedOut { .. }), "{error}");
        assert!(!is_alive());

        let cancel = CancellationToken::new();
        let course = tools.course(&Limits::default(), &cancel);
        let call = Call::new(&TOOL, args);
        fs::remove_file(&pid).unwrap();
        let run = course.call(&call);
        let cancelling = async {
            while !pid.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            cancel.cancel();
        };
        let (ran, ()) = tokio::join!(run, cancelling);
        assert!(matches!(ran, Err(ToolError::Cancelled { .. })), "{ran:?}");
        // Nothing is called any more, but to undo.
        assert!(matches!(course.call(&call).await, Err(ToolError::Cancelled { .. })));
        fs::write(folder.path().join(TOOL.name), "#!/bin/sh\nexit 0\n").unwrap();
        assert!(course.undo(&call).await.is_ok());
    }

    #[tokio::test]
    async fn a_tool_keeps_the_lock_of_the_device() {
        let folder = tempfile::tempdir().unwrap();
        let lock = folder.path().join("lock");
        let poll = Duration::from_millis(2);
        let held = Held::take(&lock, poll).await.unwrap();
        let tools = tools(folder.path(), r#"trap '' TERM; touch "$1"; sleep 1000"#).holding(held);
        let began = folder.path().join("began");
        let course = tools.course(&Limits::default(), &CancellationToken::new());
        drop(tools);
        {
            let call = Call::new(&TOOL, [began.to_str().unwrap()]);
            let mut run = pin!(course.call(&call));
            while !began.exists() {
                select! {
                    _ = &mut run => panic!("it has ended"),
                    () = tokio::time::sleep(poll) => {}
                }
            }
            // Dropped in the midst.
        }
        drop(course);
        // The file stays as long as the tool may be alive, and the lock can be had when it is not.
        assert!(lock.exists());
        drop(Held::take(&lock, poll).await.unwrap());
        assert!(!lock.exists());
    }
}
