//! Changing what is in a CD-ROM drive that QEMU emulates.
//!
//! The device stays: its directories, its backend and its state are as before, but for `params`, which says what is in
//! it. So there is no operation record and no machine with a roll-back. What is asked of QEMU, and when the store is
//! written, is a [`Course`], a plain value. The one descriptor that QEMU gets is the image's, read-only.
//!
//! libxl's two locks of a domain keep others out, and go with their process: the one for changes of devices by QMP,
//! and the one of the monitor, which serves one program at a time. The medium that goes with the disk's paravirtual
//! backend stays as it is: QEMU opens that once, when the guest is made.

mod course;
mod drive;
mod image;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use xs_client::DomId;

use self::course::{Act, Content, Course, Ended, Heard, NewMedium, Stopped};
use self::drive::{Drive, Seen};
use self::image::Image;
use super::entry::{LOOK, LockProblem, await_lock};
use super::qmp::{Command, Connection, MonitorError};
use super::wait::{Cancel, cancelled, unless_cancelled};
use super::{Job, LAST_WORDS, Model};
use crate::kind::Spec;
use crate::libxl::{self, Lock, Userdata};
use crate::report::{Failure, InDrive, Named, Operation, Success};
use crate::vbd::{Format, Vbd, Vdev};
use crate::{Cause, DeviceId, Guest, Kind, Observation, PlannedWrite, Toolstack, Warning, Which, guest};

/// How often a guest that has locked the tray is asked again to open it.
const PAUSE: Duration = Duration::from_millis(200);

/// An image for a CD-ROM drive.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Medium {
    /// The absolute path of a file or block device.
    pub target: String,
    /// The format of the image.
    pub format: Format,
}

impl Medium {
    /// A raw image, as that of a CD.
    pub fn new(target: impl Into<String>) -> Self {
        Self { target: target.into(), format: Format::Raw }
    }

    /// In another format.
    #[must_use]
    pub fn with_format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// What the drive is then, as a disk.
    fn disk(medium: Option<&Self>, devid: u32) -> Vbd {
        let mut disk = Vbd::new("", Vdev::from_devid(devid));
        // libxl enters an empty drive with an empty path.
        disk.target = Some(medium.map(|medium| medium.target.clone()).unwrap_or_default());
        disk.format = medium.map_or(Format::Empty, |medium| medium.format);
        (disk.cdrom, disk.writable) = (true, false);
        disk
    }
}

/// How the medium of a drive is changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MediumChange {
    /// What is put in; nothing by default.
    pub medium: Option<Medium>,
    /// Whether the tray is opened also if the guest has locked it.
    pub force: bool,
    /// Whether the owner of an operation that is under way on the device is asked to cancel it.
    pub take_over: bool,
}

impl MediumChange {
    /// Takes the medium out.
    pub fn eject() -> Self {
        Self::default()
    }

    /// Takes the medium out, and puts this one in.
    pub fn insert(medium: Medium) -> Self {
        Self { medium: Some(medium), ..Self::default() }
    }

    /// Opens the tray also if the guest has locked it.
    #[must_use]
    pub fn force(mut self, force: bool) -> Self {
        self.force = force;
        self
    }

    /// Asks the owner of an operation that is under way on the device to cancel it.
    #[must_use]
    pub fn take_over(mut self, take_over: bool) -> Self {
        self.take_over = take_over;
        self
    }

    fn operation(&self) -> Operation {
        if self.medium.is_some() { Operation::Insert } else { Operation::Eject }
    }

    fn course(&self, devid: u32, image: Option<&Image>) -> Course {
        let medium = self.medium.as_ref().zip(image).map(|(medium, image)| NewMedium {
            opaque: format!("{}:{}", medium.format.name(), medium.target),
            format: medium.format.of_block_layer(),
            block_device: image.block_device,
        });
        Course::new(devid, self.force, medium)
    }

    /// Opens the new medium.
    async fn open(&self, limit: Duration) -> Result<Option<Image>, Cause> {
        match &self.medium {
            Some(medium) => image::open(medium, limit).await.map(Some),
            None => Ok(None),
        }
    }
}

/// What a change of a medium would do.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MediumPreview {
    /// The drive.
    pub device: DeviceId,
    /// What would be asked of the device model, as QMP has it. The number of a descriptor is the device model's.
    pub commands: Vec<Value>,
    /// What the store would say then.
    pub writes: Vec<PlannedWrite>,
}

impl Toolstack {
    /// Changes what is in a CD-ROM drive of a guest: of an HVM guest, whose device model (QEMU) emulates the drive.
    ///
    /// The medium that is there is ejected first, also if it is the same. A guest that has locked the tray, as Linux
    /// does while the medium is mounted or read, is asked to open it, again and again within
    /// [`Limits::medium`](crate::Limits::medium).
    ///
    /// # Errors
    ///
    /// What can be seen beforehand (the image cannot be opened, the device is no drive) changes nothing. If QEMU ejects
    /// the earlier medium and does not take the new one, the drive stays empty; the store says so, and a
    /// [warning](Warning::Medium) of the failure does.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, QEMU may carry out the last thing that it was asked for, without the store saying so.
    /// Prefer to cancel.
    pub async fn change_medium(
        &self,
        fe: DomId,
        devid: u32,
        change: &MediumChange,
        cancel: &CancellationToken,
    ) -> Result<Success, Box<Failure>> {
        let which = drive::which(fe, devid);
        let mut job = Job::new(self, change.operation(), Named::of_id(which));
        let mut warnings = Vec::new();
        let changed = Box::pin(job.change_medium(which, change, cancel, &mut warnings)).await;
        job.finish((changed, warnings))
    }

    /// What [`Self::change_medium`] would do now. Nothing is changed.
    ///
    /// # Errors
    ///
    /// Whatever `change_medium` would fail with before it asks QEMU for anything.
    pub async fn preview_medium(
        &self,
        fe: DomId,
        devid: u32,
        change: &MediumChange,
    ) -> Result<MediumPreview, Box<Failure>> {
        let which = drive::which(fe, devid);
        let preview = async {
            let drive = self.drive(which).await?;
            let image = change.open(self.limits.file).await?;
            self.check_config(fe, Kind::Vbd).await?;
            preview(&drive, change, image.as_ref())
        };
        preview.await.map_err(|cause| {
            Box::new(Failure {
                operation: change.operation(),
                device: Named::of_id(which),
                cause,
                observed: Observation::default(),
                warnings: Vec::new(),
                elapsed: Duration::ZERO,
            })
        })
    }

    /// The drive, as the store has it, of a guest whose device model runs.
    async fn drive(&self, which: Which) -> Result<Drive, Cause> {
        let fe = which.fe;
        guest::must_run(&self.client, fe).await?;
        let drive = Seen::look(&self.client, which).await?.drive(which, self.own)?;
        let guest = Guest::look(&self.client, (fe, self.own), self.script_dir.clone()).await?;
        if !guest.is_hvm() {
            return Err(Cause::NoDrive(
                "only an HVM guest has a drive whose medium can be changed".to_owned(),
            ));
        }
        if !Model::look(&self.client, (fe, self.own)).await?.is_running(fe) {
            return Err(Cause::NoDeviceModel(fe));
        }
        Ok(drive)
    }

    /// The socket of the monitor that libxl has the guest's device model make for toolstacks.
    pub(super) fn monitor(&self, fe: DomId) -> PathBuf {
        self.run_dir.join(format!("qmp-libxl-{fe}"))
    }
}

/// What a change does, if QEMU and the guest agree to it.
fn preview(drive: &Drive, change: &MediumChange, image: Option<&Image>) -> Result<MediumPreview, Cause> {
    let mut course = change.course(drive.id.devid, image);
    let (mut commands, mut heard) = (Vec::new(), Heard::Nothing);
    loop {
        heard = match course.on(heard) {
            Act::Ask(command) => {
                commands.push(command.to_json());
                Heard::Answer(Ok(serde_json::json!({"fdset-id": 0})))
            }
            Act::Write(_) => Heard::Written(Ok(())),
            Act::Pause | Act::Finish => break,
        };
    }
    let value = drive::params(change.medium.as_ref());
    let mut writes = Vec::new();
    for directory in [&drive.paths.toolstack, &drive.paths.backend] {
        writes
            .push(PlannedWrite::Write { path: directory.join("params")?.to_string(), value: value.clone() });
    }
    Ok(MediumPreview { device: drive.id, commands, writes })
}

impl Job<'_> {
    async fn change_medium(
        &mut self,
        which: Which,
        change: &MediumChange,
        cancel: &CancellationToken,
        warnings: &mut Vec<Warning>,
    ) -> Result<(), Cause> {
        let (toolstack, fe) = (self.toolstack, which.fe);
        let limits = toolstack.limits;
        let cancel = Some(cancel);
        self.tell(&"looking at the drive", false);
        let drive = unless_cancelled(toolstack.drive(which), cancel).await?;
        self.id = Some(drive.id);
        let drive = if self.await_others(which, change.take_over, cancel).await? {
            unless_cancelled(toolstack.drive(which), cancel).await?
        } else {
            drive
        };
        let image = unless_cancelled(change.open(limits.file), cancel).await?;
        let config = unless_cancelled(toolstack.config_of(fe), cancel).await?;
        unless_cancelled(toolstack.check_config(fe, Kind::Vbd), cancel).await?;

        self.tell(&"waiting for the device model", false);
        // In libxl's order.
        let _devices = unless_cancelled(self.lock(fe, "libxl-device-changes-lock"), cancel).await?;
        let _monitor = unless_cancelled(self.lock(fe, "qmp-socket-lock"), cancel).await?;
        let ended = self.follow(&drive, change, image, cancel).await?;
        let refused = ended.stopped.map(|stopped| self.cause(stopped, fe));
        if let Some(cause) = refused {
            warnings.extend(disagreement(ended.drive, ended.store, &drive, change));
            if ended.store == Content::Nothing {
                warnings.extend(self.enter_medium(config.as_ref(), &drive, &MediumChange::eject()).await);
            }
            return Err(cause);
        }
        warnings.extend(self.enter_medium(config.as_ref(), &drive, change).await);
        Ok(())
    }

    /// Waits until nobody else works on the device, and tells whether anybody did.
    async fn await_others(
        &mut self,
        which: Which,
        take_over: bool,
        cancel: Cancel<'_>,
    ) -> Result<bool, Cause> {
        let client = &self.toolstack.client;
        let mut waited = false;
        while let Some(op) = unless_cancelled(Seen::look(client, which), cancel).await?.op {
            let occupant = self.occupant(op).await?;
            if !occupant.alive {
                return Err(Cause::Unfinished);
            }
            self.tell(&"waiting for another operation on the device", false);
            self.await_owner(which, occupant, take_over, cancel).await?;
            waited = true;
        }
        Ok(waited)
    }

    /// Takes one of libxl's locks of a domain; `None` where there is no libxl.
    async fn lock(&self, fe: DomId, name: &'static str) -> Result<Option<Lock>, Cause> {
        let limits = self.toolstack.limits;
        let Some(userdata) = self.toolstack.named_config(fe).await? else { return Ok(None) };
        let take = move || userdata.lock_of_within(name, LOOK);
        let problem = match await_lock(limits.file, limits.medium, take).await {
            Ok(lock) => return Ok(Some(lock)),
            Err(LockProblem::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(LockProblem::Io(error)) => error.into(),
            Err(LockProblem::Busy) => MonitorError::Busy(limits.medium),
            Err(LockProblem::NoAnswer) => MonitorError::Busy(limits.file),
        };
        Err(Cause::Monitor { socket: self.toolstack.monitor(fe), problem })
    }

    /// Does what a course asks for.
    async fn follow(
        &self,
        drive: &Drive,
        change: &MediumChange,
        image: Option<Image>,
        cancel: Cancel<'_>,
    ) -> Result<Ended, Cause> {
        let limit = self.toolstack.limits.medium;
        let begun = Instant::now();
        let left = || limit.saturating_sub(begun.elapsed());
        let socket = self.toolstack.monitor(drive.id.fe);
        let failed = |problem| Cause::Monitor { socket: socket.clone(), problem };
        let no_answer = |command, limit| Heard::Fault(MonitorError::NoAnswer { command, limit });
        let open = async {
            let opened = timeout(limit, Connection::open(&socket)).await;
            let no_answer = Err(MonitorError::NoAnswer { command: "the connection", limit });
            opened.unwrap_or(no_answer).map_err(failed)
        };
        let mut connection = unless_cancelled(open, cancel).await?;
        let mut course = change.course(drive.id.devid, image.as_ref());
        let mut act = course.on(Heard::Nothing);
        let mut awaits_guest = false;
        loop {
            let is_cancelled = cancel.is_some_and(CancellationToken::is_cancelled);
            let heard = match act {
                Act::Ask(Command::RemoveFd { fdset }) => {
                    let command = Command::RemoveFd { fdset };
                    match timeout(LAST_WORDS, connection.ask(&command, None)).await {
                        Ok(Ok(answer)) => Heard::Answer(answer),
                        _ => Heard::Over,
                    }
                }
                Act::Ask(_) if is_cancelled => Heard::Cancelled,
                Act::Ask(command) => {
                    if !awaits_guest {
                        self.tell(&format_args!("asking the device model for {}", command.name()), false);
                    }
                    let fd = image.as_ref().filter(|_| matches!(command, Command::AddFd { .. }));
                    let answer = connection.ask(&command, fd.map(|image| image.fd.as_fd()));
                    // One that lives answers at once, and then it is known what was done.
                    let limit = left().max(LAST_WORDS);
                    tokio::select! {
                        biased;
                        answer = timeout(limit, answer) => match answer {
                            Ok(Ok(answer)) => Heard::Answer(answer),
                            Ok(Err(problem)) => Heard::Fault(problem),
                            Err(_) => no_answer(command.name(), limit),
                        },
                        () = async { cancelled(cancel).await; sleep(LAST_WORDS).await } => {
                            no_answer(command.name(), LAST_WORDS)
                        }
                    }
                }
                Act::Write(content) => {
                    awaits_guest = false;
                    let medium = change.medium.as_ref().filter(|_| content == Content::New);
                    Heard::Written(drive::write(&self.toolstack.client, drive, medium).await)
                }
                Act::Pause if left().is_zero() => Heard::Over,
                Act::Pause => {
                    if !std::mem::replace(&mut awaits_guest, true) {
                        self.tell(&"waiting for the guest to open the tray", false);
                    }
                    tokio::select! {
                        () = cancelled(cancel) => Heard::Cancelled,
                        () = sleep(PAUSE.min(left())) => Heard::Nothing,
                    }
                }
                Act::Finish => return Ok(course.ended()),
            };
            act = course.on(heard);
        }
    }

    fn cause(&self, stopped: Stopped, fe: DomId) -> Cause {
        match stopped {
            Stopped::Refused { command, refusal } => Cause::ModelRefused {
                command,
                locked: refusal.is_locked().then_some(self.toolstack.limits.medium),
                no_drive: refusal.is_not_found(),
                said: refusal.shown(),
            },
            Stopped::Monitor(problem) => Cause::Monitor { socket: self.toolstack.monitor(fe), problem },
            Stopped::Cause(cause) => cause,
        }
    }

    /// Enters what is in a drive into libxl's configuration of the domain, if the store still says so.
    async fn enter_medium(
        &self,
        config: Option<&Userdata>,
        drive: &Drive,
        change: &MediumChange,
    ) -> Option<Warning> {
        let config = config?;
        let (client, which) = (&self.toolstack.client, drive.id.which());
        let medium = change.medium.as_ref();
        let wanted = async {
            let now = self.toolstack.named_config(which.fe).await?;
            let seen = Seen::look(client, which).await?;
            Ok(now.as_ref() == Some(config) && drive::holds(&seen, drive, medium))
        };
        let entry = Medium::disk(medium, which.devid).libxl();
        let change = move |config: &mut _| libxl::set_medium(config, which.devid, entry);
        self.change(config, wanted, change, None).await.err().map(Warning::NotEntered)
    }
}

/// What is to be told of a drive after a failure: nothing, as long as it has what it had.
fn disagreement(has: Content, recorded: Content, drive: &Drive, change: &MediumChange) -> Option<Warning> {
    let names = |content| match content {
        Content::New => drive::params(change.medium.as_ref()),
        Content::Nothing => String::new(),
        Content::Earlier | Content::Unknown => drive.params.clone(),
    };
    let drive = match has {
        Content::Earlier => return None,
        Content::Nothing => InDrive::Nothing,
        Content::New => InDrive::New,
        Content::Unknown => InDrive::Unknown,
    };
    Some(Warning::Medium { drive, recorded: names(recorded) })
}
