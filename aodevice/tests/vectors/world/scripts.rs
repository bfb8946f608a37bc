//! Hotplug scripts that play the line they were given, and keep a record of their runs.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use xen_aodevice::sim;
use xen_hotplug::{Ending, Limits, Output, Permit, Report, Request, Runner};
use xs_client::{Client, Path};

use super::tenths;

/// What a script does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Line {
    /// Its work, and exits with 0 after so many seconds.
    Takes(f64),
    /// Nothing, and exits with 1 after so many seconds.
    FailsAfter(f64),
    /// Writes this to `hotplug-error` and exits with 1.
    Fails(&'static str),
    /// Writes these keys and values, and exits with this status.
    Says(&'static [(&'static str, &'static str)], i32),
    /// Nothing, and exits with 0.
    Forgets,
    /// Nothing, for ever.
    Hangs,
    /// It cannot be started, which nobody foresees.
    CannotStart,
}

/// All scripts of a world. Who has no line does its work at once.
pub(crate) struct Scripts {
    client: Client,
    begun: Instant,
    lines: Mutex<HashMap<&'static str, Line>>,
    runs: Mutex<Vec<String>>,
    last: Mutex<Option<Request>>,
    turn: Mutex<Duration>,
}

impl fmt::Debug for Scripts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.runs.fmt(f)
    }
}

impl Scripts {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            begun: Instant::now(),
            lines: Mutex::default(),
            runs: Mutex::default(),
            last: Mutex::default(),
            turn: Mutex::default(),
        }
    }

    /// Gives the run of this action (`add`, `remove`, `online`, `offline`) its line; of one script alone if that
    /// stands before it (`block-b add`).
    pub(crate) fn on(&self, action: &'static str, line: Line) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).insert(action, line);
    }

    /// When which run began and how it ended, in the order in which they ended.
    pub(crate) fn runs(&self) -> Vec<String> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was asked for last.
    pub(crate) fn last_request(&self) -> Option<Request> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has each run wait so long for its turn, whatever comes in between, before it asks whether it is still wanted.
    pub(crate) fn take_turns(&self, turn: Duration) {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = turn;
    }

    /// Forgets the runs so far.
    pub(crate) fn forget(&self) {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    async fn play(
        &self,
        line: Option<Line>,
        run: &Request,
        limits: &Limits,
        cancel: &CancellationToken,
    ) -> Report {
        let begun = Instant::now();
        let exits = async {
            match line {
                Some(Line::Forgets) => Ending::Exited(0),
                Some(Line::Hangs) => std::future::pending().await,
                Some(Line::CannotStart) => {
                    Ending::SpawnFailed(std::io::Error::from(std::io::ErrorKind::NotFound).into())
                }
                Some(Line::FailsAfter(seconds)) => {
                    sleep(Duration::from_secs_f64(seconds)).await;
                    Ending::Exited(1)
                }
                Some(Line::Fails(error)) => {
                    let node = Path::new(format!("{}/hotplug-error", run.directory())).unwrap();
                    self.client.write(&node, error).await.unwrap();
                    Ending::Exited(1)
                }
                Some(Line::Says(keys, status)) => {
                    for (key, value) in keys {
                        // An absolute key is another's.
                        let node = if key.starts_with('/') {
                            (*key).to_owned()
                        } else {
                            format!("{}/{key}", run.directory())
                        };
                        self.client.write(&Path::new(node).unwrap(), *value).await.unwrap();
                    }
                    Ending::Exited(status)
                }
                Some(Line::Takes(_)) | None => {
                    let duration = if let Some(Line::Takes(seconds)) = line { seconds } else { 0.0 };
                    let duration = Duration::from_secs_f64(duration);
                    let stock = sim::Scripts::new(self.client.clone(), duration);
                    stock.run(run, limits, cancel).await.ending
                }
            }
        };
        let ending = tokio::select! {
            biased;
            () = cancel.cancelled() => Ending::Aborted,
            ending = exits => ending,
            () = sleep(limits.deadline) => Ending::TimedOut,
        };
        Report::new(ending, Output::default(), begun.elapsed())
    }
}

impl Runner for Scripts {
    fn run_if<'a>(
        &'a self,
        run: &'a Request,
        limits: &'a Limits,
        cancel: &'a CancellationToken,
        permit: Permit<'a>,
    ) -> Pin<Box<dyn Future<Output = Report> + Send + 'a>> {
        Box::pin(async move {
            let turn = *self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            if !turn.is_zero() {
                sleep(turn).await;
            }
            if !permit.await {
                return Report::new(Ending::Withdrawn, Output::default(), Duration::ZERO);
            }
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(run.clone());
            let at = tenths(self.begun.elapsed());
            let (name, action) =
                (run.script.file_name().unwrap_or_default().to_string_lossy(), run.args()[0]);
            let line = {
                let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.get(&*format!("{name} {action}")).or_else(|| lines.get(action)).copied()
            };
            let report = self.play(line, run, limits, cancel).await;
            let copy = if run.copy.is_some() { " in a copy" } else { "" };
            let record = format!("at {at} s: {name} {}{copy} {}", run.args().join(" "), report.ending);
            self.runs.lock().unwrap_or_else(PoisonError::into_inner).push(record);
            report
        })
    }
}
