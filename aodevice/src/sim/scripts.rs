//! Hotplug scripts that only write what the stock ones would.

use std::pin::Pin;
use std::time::Duration;

use hotplug::{Ending, Limits, Output, Report, Runner, ScriptRun};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use xs_client::{Client, DomId, Error, Path};

/// Plays the `block` and `vif-bridge` scripts for a backend domain.
#[derive(Clone, Debug)]
pub struct Scripts {
    client: Client,
    be: DomId,
    duration: Duration,
}

impl Scripts {
    /// Scripts that write over this connection and take this long.
    pub fn new(client: Client, be: DomId, duration: Duration) -> Self {
        Self { client, be, duration }
    }

    async fn play(&self, run: &ScriptRun) -> Result<(), Error> {
        sleep(self.duration).await;
        let var =
            |name: &str| run.env.iter().find_map(|(key, value)| (key == name).then_some(value.as_str()));
        let adds = matches!(run.args.first().map(String::as_str), Some("add" | "online"));
        let (Some(kind), Some(path)) = (var("XENBUS_TYPE"), var("XENBUS_PATH")) else {
            return Ok(());
        };
        let directory = Path::new(format!("/local/domain/{}/{path}", self.be))?;
        let keys: &[(&str, &str)] = match (adds, kind) {
            (false, _) => &[],
            (true, "vbd") => &[
                ("node", "/dev/loop0"),
                ("physical-device", "7:0"),
                ("physical-device-path", "/dev/loop0"),
                ("hotplug-status", "connected"),
            ],
            (true, _) => &[("hotplug-status", "connected")],
        };
        for (key, value) in keys {
            self.client.write(&directory.join(key)?, *value).await?;
        }
        Ok(())
    }
}

impl Runner for Scripts {
    fn run<'a>(
        &'a self,
        run: &'a ScriptRun,
        limits: &'a Limits,
        cancel: &'a CancellationToken,
    ) -> Pin<Box<dyn Future<Output = Report> + Send + 'a>> {
        Box::pin(async move {
            let begun = tokio::time::Instant::now();
            let ending = tokio::select! {
                biased;
                () = cancel.cancelled() => Ending::Aborted,
                played = self.play(run) => Ending::Exited(i32::from(played.is_err())),
                () = sleep(limits.deadline) => Ending::TimedOut,
            };
            Report { ending, output: Output::default(), duration: begun.elapsed() }
        })
    }
}
