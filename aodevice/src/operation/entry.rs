//! Entering a device into libxl's configuration of its domain, and striking it out of there.
//!
//! Under the lock of the configuration it is asked once more what the store says: a domain that was
//! replaced has another configuration, and a device that was lost is not entered. Files are looked at in
//! threads, so storage that does not answer holds nothing up.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use devstate::deadline;
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep};
use xs_client::{DomId, Path};

use super::files::blocking;
use super::wait::{Cancel, cancelled, unless_cancelled};
use super::{Job, Target, steps, store};
use crate::libxl::{self, ConfigError, Locked, Userdata};
use crate::{Cause, Device};

/// The pauses between two attempts to get the lock: the first, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(100)];

fn failed(config: &Userdata, problem: ConfigError) -> Cause {
    Cause::Config { file: config.path(), problem }
}

impl Job<'_> {
    /// libxl's configuration of a domain, if devices are to be entered into it and it is there.
    pub(super) async fn config_of(&self, fe: DomId) -> Result<Option<Userdata>, Cause> {
        let Some(config) = self.named_config(fe).await? else { return Ok(None) };
        let looked_at = config.clone();
        // One that does not answer is there: whatever is to be changed in it will fail and say so.
        let exists = blocking(self.toolstack.limits.file, move || looked_at.exists()).await;
        Ok(exists.unwrap_or(true).then_some(config))
    }

    /// The configuration that a domain has by its UUID, there or not.
    async fn named_config(&self, fe: DomId) -> Result<Option<Userdata>, Cause> {
        let Some(directory) = &self.toolstack.libxl_dir else { return Ok(None) };
        let vm = Path::new(format!("/local/domain/{fe}/vm"))?;
        let vm = store::text(self.toolstack.client.read_opt(&vm).await?);
        Ok(vm.and_then(|vm| Userdata::new(directory, fe, &vm)))
    }

    /// Enters a device that is ours.
    pub(super) async fn enter(
        &self,
        target: &Target,
        device: &Device,
        cancel: Cancel<'_>,
    ) -> Result<(), Cause> {
        let Some(config) = target.config() else { return Ok(()) };
        let id = target.id();
        let mut entry = device.as_spec().libxl();
        (id.kind.info().libxl.complete)(id.devid, &mut entry);
        let wanted = async {
            if !self.has_config(id.fe, config).await? {
                return Err(Cause::Gone { domain: true });
            }
            let seen = store::look(&self.toolstack.client, id.kind, target.paths()).await?;
            steps::enter(&seen, self.record.token).map(|()| true)
        };
        let change = move |config: &mut _| libxl::enter(config, (id.kind, id.devid), entry);
        self.change(config, wanted, change, cancel).await
    }

    /// Strikes a device out that is gone, unless it is back.
    pub(super) async fn strike(&self, target: &Target, cancel: Cancel<'_>) -> Result<(), Cause> {
        let Some(config) = target.config() else { return Ok(()) };
        let id = target.id();
        let wanted = async {
            if !self.has_config(id.fe, config).await? {
                return Ok(false);
            }
            let seen = store::look(&self.toolstack.client, id.kind, target.paths()).await?;
            Ok(steps::is_to_be_struck(&seen))
        };
        let change = move |config: &mut _| libxl::strike(config, (id.kind, id.devid));
        self.change(config, wanted, change, cancel).await
    }

    /// Whether a domain is there, and has this configuration.
    async fn has_config(&self, fe: DomId, config: &Userdata) -> Result<bool, Cause> {
        let now = self.named_config(fe).await?;
        Ok(now.as_ref() == Some(config) && self.toolstack.client.is_introduced(fe).await?)
    }

    /// Changes a configuration under its lock, if that is still wanted then.
    ///
    /// An error means that it is as it was.
    async fn change(
        &self,
        config: &Userdata,
        wanted: impl Future<Output = Result<bool, Cause>>,
        change: impl FnOnce(&mut Map<String, Value>) -> Result<(), ConfigError> + Send + 'static,
        cancel: Cancel<'_>,
    ) -> Result<(), Cause> {
        let limit = self.toolstack.limits.file;
        let lock = unless_cancelled(self.lock(config), cancel).await?;
        let wanted = unless_cancelled(wanted, cancel).await;
        if !matches!(wanted, Ok(true)) {
            blocking(limit, move || drop(lock)).await;
            return wanted.map(drop);
        }
        // Whoever sets this first decides: the thread to replace the file, or this task to give up.
        let decided = Arc::new(AtomicBool::new(false));
        let permit = decided.clone();
        let changed = move || lock.change(change, move || !permit.swap(true, Ordering::SeqCst));
        let mut changed = pin!(async {
            match blocking(Duration::MAX, changed).await {
                Some(changed) => changed.map_err(|problem| failed(config, problem)),
                // Its runtime ends.
                None => Err(Cause::Aborted),
            }
        });
        let cause = tokio::select! {
            biased;
            changed = &mut changed => return changed,
            () = cancelled(cancel) => Cause::Aborted,
            () = deadline(limit) => failed(config, ConfigError::NoAnswer(limit)),
        };
        if decided.swap(true, Ordering::SeqCst) { changed.await } else { Err(cause) }
    }

    /// Waits for the lock of a configuration. libxl holds it for a transaction.
    async fn lock(&self, config: &Userdata) -> Result<Locked, Cause> {
        let limits = self.toolstack.limits;
        let begun = Instant::now();
        let [mut pause, longest] = PAUSES;
        loop {
            let wanted = config.clone();
            let tried = blocking(limits.file, move || wanted.try_lock()).await;
            let problem = match tried {
                Some(Ok(Some(lock))) => return Ok(lock),
                Some(Ok(None)) if begun.elapsed() < limits.config => {
                    sleep(pause).await;
                    pause = (pause * 2).min(longest);
                    continue;
                }
                Some(Ok(None)) => ConfigError::Busy(limits.config),
                Some(Err(error)) => error.into(),
                None => ConfigError::NoAnswer(limits.file),
            };
            return Err(failed(config, problem));
        }
    }
}
