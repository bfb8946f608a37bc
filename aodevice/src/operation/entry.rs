//! Entering a device into libxl's configuration of its domain, and striking it out of there.
//!
//! Under the lock of the configuration it is asked once more what the store says: a domain that was
//! replaced has another configuration, and a device that was lost is not entered. Files are looked at in
//! threads, so storage that does not answer holds nothing up.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::{Instant, sleep};
use xen_devstate::deadline;
use xs_client::{DomId, Path};

use super::files::blocking;
use super::store::Depth;
use super::wait::{Cancel, cancelled, unless_cancelled};
use super::{Job, Target, place, steps, store};
use crate::libxl::{self, ConfigError, Locked, Userdata};
use crate::{Cause, Device, DeviceId, Guest, Kind, Toolstack, Which};

/// For how long a thread looks for a lock, before it is asked whether that is still wanted.
pub(super) const LOOK: Duration = Duration::from_millis(20);

fn failed(config: &Userdata, problem: ConfigError) -> Cause {
    Cause::Config { file: config.path(), problem }
}

impl Toolstack {
    /// libxl's configuration of a domain, if devices are to be entered into it and it is there.
    pub(super) async fn config_of(&self, fe: DomId) -> Result<Option<Userdata>, Cause> {
        if self.enters { self.config_that_is_there(fe).await } else { Ok(None) }
    }

    pub(super) async fn config_that_is_there(&self, fe: DomId) -> Result<Option<Userdata>, Cause> {
        let Some(config) = self.named_config(fe).await? else { return Ok(None) };
        let looked_at = config.clone();
        // One that does not answer is there: whatever is to be changed in it will fail and say so.
        let exists = blocking(self.limits.file, move || looked_at.exists()).await;
        Ok(exists.unwrap_or(true).then_some(config))
    }

    /// The configuration that a domain has by its UUID, there or not.
    pub(super) async fn named_config(&self, fe: DomId) -> Result<Option<Userdata>, Cause> {
        let directory = &self.libxl_dir;
        let vm = Path::new(format!("/local/domain/{fe}/vm"))?;
        let vm = store::text(self.client.read_opt(&vm).await?);
        Ok(vm.and_then(|vm| Userdata::new(directory, fe, &vm)))
    }

    /// Sees that a device of a kind can be entered into the configuration of its domain, if it has one: before
    /// the device is made, and not when the guest has it already.
    pub(super) async fn check_config(&self, fe: DomId, kind: Kind) -> Result<(), Cause> {
        match self.config_of(fe).await? {
            Some(config) => self.check_entry(&config, kind).await,
            None => Ok(()),
        }
    }

    /// The same of the configuration that it has.
    pub(super) async fn check_entry(&self, config: &Userdata, kind: Kind) -> Result<(), Cause> {
        let looked_at = config.clone();
        let problem = match blocking(self.limits.file, move || looked_at.check(kind)).await {
            Some(Ok(())) => return Ok(()),
            Some(Err(problem)) => problem,
            None => ConfigError::NoAnswer(self.limits.file),
        };
        Err(failed(config, problem))
    }

    /// A device of which nothing but its entry in the configuration is left: by an actor that died, or by `xl`,
    /// which leaves them all.
    pub(super) async fn entry_alone(&self, which: Which) -> Result<Option<Target>, Cause> {
        match self.config_of(which.fe).await? {
            Some(config) => self.stale_entry(config, which).await,
            None => Ok(None),
        }
    }

    async fn stale_entry(&self, config: Userdata, which: Which) -> Result<Option<Target>, Cause> {
        let looked_at = config.clone();
        let has = blocking(self.limits.file, move || looked_at.has((which.kind, which.devid))).await;
        if has != Some(true) {
            return Ok(None);
        }
        Ok(Some(Target::new(DeviceId::new(which, self.own), [])?.with_config(Some(config))))
    }
}

impl Job<'_> {
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
        if id.be != DomId::DOM0 {
            entry.shift_insert(0, "backend_domid".to_owned(), id.be.0.into());
        }
        (id.kind.info().libxl.complete)(id.devid, &mut entry);
        let wanted = async {
            let seen = self.look_again(target, config).await?;
            steps::enter(&seen, self.record.token).map(|()| true)
        };
        let change = move |config: &mut _| libxl::enter(config, (id.kind, id.devid), entry);
        self.change(config, wanted, change, cancel).await
    }

    /// Strikes out what is left of an earlier device of the number that a new one would get. libxl passes over an
    /// entry without a device, but takes it for the new one's as soon as that is there: a guest that is rebooted
    /// then would get the earlier disk. So this is done also for a device that is not entered.
    pub(super) async fn strike_stale(
        &self,
        config: &Userdata,
        (fe, guest): (DomId, &Guest),
        device: &Device,
        cancel: Cancel<'_>,
    ) -> Result<(), Cause> {
        let client = &self.toolstack.client;
        let id = place::identify(client, fe, device, guest).await?;
        let Some(target) = self.toolstack.stale_entry(config.clone(), id.which()).await? else {
            return Ok(());
        };
        if client.read_opt(&id.toolstack()?).await?.is_some() {
            return Ok(());
        }
        self.strike(&target, cancel).await
    }

    /// Strikes a device out that is gone, unless it is back.
    pub(super) async fn strike(&self, target: &Target, cancel: Cancel<'_>) -> Result<(), Cause> {
        let Some(config) = target.config() else { return Ok(()) };
        let id = target.id();
        let wanted = async { Ok(steps::is_to_be_struck(&self.look_again(target, config).await?)) };
        let change = move |config: &mut _| libxl::strike(config, (id.kind, id.devid));
        self.change(config, wanted, change, cancel).await
    }

    /// Whose a device is by now, if its domain is there and has this configuration.
    async fn look_again(&self, target: &Target, config: &Userdata) -> Result<steps::Seen, Cause> {
        let (client, id) = (&self.toolstack.client, target.id());
        let (now, is_introduced, seen) = tokio::try_join!(
            self.toolstack.named_config(id.fe),
            async { Ok(client.is_introduced(id.fe).await?) },
            async { Ok(store::look(client, &id, target.paths(), Depth::Standing).await?) },
        )?;
        if now.as_ref() != Some(config) || !is_introduced {
            return Err(Cause::Gone { domain: true });
        }
        Ok(seen)
    }

    /// Changes a configuration under its lock, if that is still wanted then.
    ///
    /// An error means that it is as it was.
    pub(super) async fn change(
        &self,
        config: &Userdata,
        wanted: impl Future<Output = Result<bool, Cause>>,
        change: impl FnOnce(&mut Map<String, Value>) -> Result<(), ConfigError> + Send + 'static,
        cancel: Cancel<'_>,
    ) -> Result<(), Cause> {
        let limit = self.toolstack.limits.file;
        let lock = unless_cancelled(self.lock_config(config), cancel).await?;
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
    async fn lock_config(&self, config: &Userdata) -> Result<Locked, Cause> {
        let limits = self.toolstack.limits;
        let wanted = config.clone();
        let taken = await_lock(limits.file, limits.config, move || wanted.lock_within(LOOK)).await;
        taken.map_err(|problem| {
            let problem = match problem {
                LockProblem::Busy => ConfigError::Busy(limits.config),
                LockProblem::NoAnswer => ConfigError::NoAnswer(limits.file),
                LockProblem::Io(error) => error.into(),
            };
            failed(config, problem)
        })
    }
}

/// Why a lock of libxl's was not to be had.
pub(super) enum LockProblem {
    /// Another program has it.
    Busy,
    /// The storage that it is on does not answer.
    NoAnswer,
    Io(io::Error),
}

/// Waits for a lock that threads try to take, each for a moment and within `storage`. Between them whoever waits may
/// have given up.
pub(super) async fn await_lock<T: Send + 'static>(
    storage: Duration,
    limit: Duration,
    take: impl Fn() -> io::Result<Option<T>> + Clone + Send + 'static,
) -> Result<T, LockProblem> {
    let begun = Instant::now();
    loop {
        match blocking(storage, take.clone()).await {
            Some(Ok(Some(lock))) => return Ok(lock),
            Some(Ok(None)) if begun.elapsed() < limit => sleep(LOOK).await,
            Some(Ok(None)) => return Err(LockProblem::Busy),
            Some(Err(error)) => return Err(LockProblem::Io(error)),
            None => return Err(LockProblem::NoAnswer),
        }
    }
}
