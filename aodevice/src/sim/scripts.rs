//! Hotplug scripts that only write what the stock ones would.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use xen_hotplug::{Action, Ending, Kind, Limits, Output, Permit, Report, Request, Runner};
use xs_client::{Client, Error, Path};

/// Plays the `block` and `vif-bridge` scripts.
#[derive(Clone, Debug)]
pub struct Scripts {
    client: Client,
    duration: Duration,
}

impl Scripts {
    /// Scripts that write over this connection and take this long.
    pub fn new(client: Client, duration: Duration) -> Self {
        Self { client, duration }
    }

    async fn play(&self, request: &Request) -> Result<(), Error> {
        sleep(self.duration).await;
        let directory = Path::new(request.directory())?;
        let keys: &[(&str, &str)] = match (request.action, request.kind) {
            (Action::Remove, _) => &[],
            (Action::Add, Kind::Vbd | Kind::Vbd3) => &[
                ("node", "/dev/sim0"),
                ("physical-device", "7:0"),
                ("physical-device-path", "/dev/sim0"),
                ("hotplug-status", "connected"),
            ],
            (Action::Add, _) => &[("hotplug-status", "connected")],
        };
        for (key, value) in keys {
            self.client.write(&directory.join(key)?, *value).await?;
        }
        Ok(())
    }
}

impl Runner for Scripts {
    fn run_if<'a>(
        &'a self,
        request: &'a Request,
        limits: &'a Limits,
        cancel: &'a CancellationToken,
        permit: Permit<'a>,
    ) -> Pin<Box<dyn Future<Output = Report> + Send + 'a>> {
        Box::pin(async move {
            if !permit.await {
                return Report::new(Ending::Withdrawn, Output::default(), Duration::ZERO);
            }
            let begun = tokio::time::Instant::now();
            let ending = tokio::select! {
                biased;
                () = cancel.cancelled() => Ending::Aborted,
                played = self.play(request) => Ending::Exited(i32::from(played.is_err())),
                () = sleep(limits.deadline) => Ending::TimedOut,
            };
            Report::new(ending, Output::default(), begun.elapsed())
        })
    }
}
