//! Giving PCI functions of the host to a guest, and taking them back.
//!
//! In which order the store, both ends and the hypervisor are asked is a [`Course`], a plain value. What is written into
//! the backend's directory is decided in [`bus`]; the hypervisor's half is a [`PciHost`]. There is no operation record:
//! the backend's state keeps two from changing a bus at once, and libxl's note of a function's guest is its claim.

pub(crate) mod bus;
mod course;
mod host;

use std::sync::Arc;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use xen_devstate::{Absent, Ended, Goal, StateSet, StateValue, XenbusState, wait_until};
use xs_client::DomId;

pub use self::host::PciHost;

use self::course::{Act, Change, Course, Heard, Reached};
use self::host::NoPciHost;
use super::files::blocking;
use super::observe::{Texts, observe};
use super::wait::{Cancel, cancelled, for_state, unless_cancelled};
use super::{Job, LAST_WORDS, Target};
use crate::machine::Node;
use crate::pcidev::{PciAddress, PciDev};
use crate::report::{Failure, Named, Operation, Part, Success};
use crate::{Cause, Condition, Force, Guest, Kind, Removal, Toolstack, Warning, facts, guest};

impl Toolstack {
    /// Gives a PCI function of the host to a PV guest.
    ///
    /// The first one makes the guest's bus, and is done when pciback has taken that up. Another one is announced to both
    /// ends, which have [`Limits::connect`](crate::Limits::connect) to agree on it; while they are at work on another
    /// change that is waited for first, as long.
    ///
    /// # Errors
    ///
    /// On failure, and when `cancel` is cancelled, the function is taken back, without the guest's consent if it does not
    /// answer; what could not be taken back is among the failure's warnings. Without a [`PciHost`] of the caller's it is
    /// [`Cause::NotSupported`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the function stays where it is: detach it. Prefer to cancel.
    pub async fn attach_pci(
        &self,
        fe: DomId,
        dev: &PciDev,
        cancel: &CancellationToken,
    ) -> Result<Success, Box<Failure>> {
        let course = Course::attach(self.limits.connect);
        Work::new(self, Operation::Attach, fe, *dev).run(course, cancel).await
    }

    /// Sees that a PCI function of the host could be given to a guest. Nothing is changed.
    ///
    /// # Errors
    ///
    /// What [`Self::attach_pci`] would fail with before it changes anything.
    pub async fn check_pci(&self, fe: DomId, dev: &PciDev) -> Result<(), Box<Failure>> {
        let work = Work::new(self, Operation::Attach, fe, *dev);
        let looked = async {
            work.look().await?;
            bus::is_free(&self.client, fe, dev.address).await
        };
        match looked.await {
            Ok(()) => Ok(()),
            Err(cause) => work.job.finish((Err(cause), Vec::new())).map(drop),
        }
    }

    /// Takes a PCI function of the host from a guest.
    ///
    /// The guest is asked, unless its end of the bus is closed. The last function takes the bus with it. With `force` a
    /// guest that does not let go within [`Limits::close`](crate::Limits::close) loses it all the same.
    ///
    /// # Errors
    ///
    /// Without `force` a guest that does not let go in time keeps the function, closing; detach it again then.
    ///
    /// # Cancel safety
    ///
    /// As if it had been cancelled: a detach that was announced stays so, and a later one goes on.
    pub async fn detach_pci(
        &self,
        fe: DomId,
        address: PciAddress,
        force: bool,
        cancel: &CancellationToken,
    ) -> Result<Success, Box<Failure>> {
        let course = Course::detach(force, self.limits.close);
        Work::new(self, Operation::Detach, fe, PciDev::new(address)).run(course, cancel).await
    }

    /// With someone to do the hypervisor's half of giving PCI functions to guests: nobody does if not said.
    #[must_use]
    pub fn with_pci_host(mut self, host: Arc<dyn PciHost>) -> Self {
        self.pci_host = Some(host);
        self
    }
}

/// A change of a guest's bus under way.
struct Work<'a> {
    job: Job<'a>,
    fe: DomId,
    dev: PciDev,
    host: Arc<dyn PciHost>,
}

impl<'a> Work<'a> {
    fn new(toolstack: &'a Toolstack, operation: Operation, fe: DomId, dev: PciDev) -> Self {
        let named = Named::of_pci(fe, dev.address);
        let mut job = Job::new(toolstack, operation, named);
        job.id = Some(bus::id(fe));
        let host = toolstack.pci_host.clone().unwrap_or_else(|| Arc::new(NoPciHost));
        Self { job, fe, dev, host }
    }

    async fn run(mut self, course: Course, cancel: &CancellationToken) -> Result<Success, Box<Failure>> {
        let outcome = Box::pin(self.follow(course, cancel)).await;
        let function = self.dev.address;
        Ok(Success { part: Some(Part::Function { function }), ..self.job.finish(outcome)? })
    }

    /// Does what a course asks for.
    async fn follow(
        &mut self,
        mut course: Course,
        cancel: &CancellationToken,
    ) -> (Result<(), Cause>, Vec<Warning>) {
        let mut act = course.on(Heard::Begin);
        while act != Act::Finish {
            let cancel = course.is_cancellable().then_some(cancel);
            let heard = if cancel.is_some_and(CancellationToken::is_cancelled) {
                Heard::Cancelled
            } else {
                self.carry_out(act, course.is_forced(), cancel).await
            };
            if let Heard::Waited(Err(_)) = heard {
                self.observe().await;
            }
            act = course.on(heard);
        }
        course.outcome()
    }

    async fn carry_out(&mut self, act: Act, force: bool, cancel: Cancel<'_>) -> Heard {
        let (client, fe, address) = (&self.job.toolstack.client, self.fe, self.dev.address);
        match act {
            Act::Look => {
                self.job.tell(&"looking at the function", false);
                Heard::Done(unless_cancelled(self.look(), cancel).await)
            }
            Act::Claim => Heard::Done(bus::claim(client, fe, address).await),
            Act::Give => {
                self.job.tell(&"having the hypervisor assign it", false);
                Heard::Done(self.ask_host(move |host| host.give(fe, address)).await)
            }
            Act::Write => {
                self.job.tell(&"writing it into the guest's bus", false);
                Heard::Changed(bus::write(client, fe, &self.dev).await)
            }
            Act::AwaitReady => Heard::Waited(self.wait(Goal::BACKEND_READY, cancel).await),
            Act::AwaitIdle => {
                self.job.tell(&"waiting for another change of the guest's bus", false);
                Heard::Waited(self.wait(self.idle(), cancel).await)
            }
            Act::AwaitTaken => {
                self.job.tell(&"waiting for the guest to take the function", false);
                Heard::Waited(self.taken(cancel).await)
            }
            Act::Mark { anyway } => {
                self.job.tell(&"announcing that it goes", false);
                Heard::Changed(self.mark(anyway).await)
            }
            Act::AwaitReleased => {
                self.job.tell(&"waiting for the guest to let go of the function", false);
                Heard::Waited(self.wait(RELEASED, cancel).await)
            }
            Act::Drop => Heard::Done(bus::drop(client, fe, address).await),
            Act::RemoveBus => {
                self.job.tell(&"removing the guest's bus", false);
                Heard::Done(self.remove_bus(force).await)
            }
            Act::Take => {
                self.job.tell(&"having the hypervisor take it back", false);
                Heard::Done(self.ask_host(move |host| host.take(fe, address)).await)
            }
            Act::Unclaim => Heard::Done(bus::unclaim(client, fe, address).await),
            Act::Finish => Heard::Done(Ok(())),
        }
    }

    fn attaches(&self) -> bool {
        self.job.record.operation == Operation::Attach
    }

    /// What the host does, in a thread.
    async fn ask_host(
        &self,
        work: impl FnOnce(&dyn PciHost) -> Result<(), Cause> + Send + 'static,
    ) -> Result<(), Cause> {
        let (host, limit) = (self.host.clone(), self.job.toolstack.limits.file);
        let no_answer = || Err(Cause::HostSilent(limit));
        blocking(limit, move || work(&*host)).await.unwrap_or_else(no_answer)
    }

    /// Sees that it can be done here, before anything is changed.
    async fn look(&self) -> Result<(), Cause> {
        let (toolstack, fe, address) = (self.job.toolstack, self.fe, self.dev.address);
        let client = &toolstack.client;
        if self.attaches() {
            guest::must_run(client, fe).await?;
            let guest = Guest::look(client, (fe, toolstack.own), toolstack.script_dir.clone()).await?;
            if guest.is_hvm() {
                let what = "a PCI function for an HVM guest".to_owned();
                return Err(Cause::NotSupported { what, needs: "the device model's monitor (QMP)" });
            }
        } else {
            self.must_have_it().await?;
        }
        if toolstack.own != DomId::DOM0 {
            let what = "a PCI function".to_owned();
            return Err(Cause::NotSupported { what, needs: "a toolstack in domain 0, where pciback is" });
        }
        self.ask_host(move |host| host.check(address)).await
    }

    /// Sees that the guest has the function, by its bus or by libxl's note.
    async fn must_have_it(&self) -> Result<(), Cause> {
        let (client, fe, address) = (&self.job.toolstack.client, self.fe, self.dev.address);
        let bus = bus::Bus::read(client, &bus::id(fe).backend()?).await?;
        let has = bus.is_some_and(|bus| bus.index(address).is_some());
        if has || bus::noted(client, address).await? == Some(fe) { Ok(()) } else { Err(Cause::NoSuchDevice) }
    }

    async fn mark(&self, anyway: bool) -> Result<Change, Cause> {
        bus::mark(&self.job.toolstack.client, self.fe, self.dev.address, anyway).await
    }

    /// What is waited for while the ends are at work on another change. A bus that closes has none of its functions any
    /// more: that is the end of it for a detach, and a failure for an attach.
    fn idle(&self) -> Goal {
        const CLOSED: StateSet = StateSet::of(&[XenbusState::Closing, XenbusState::Closed]);
        const CONNECTED: StateSet = StateSet::of(&[XenbusState::Connected]);
        const ANY: StateSet =
            StateSet::of(&[XenbusState::Connected, XenbusState::Closing, XenbusState::Closed]);
        if self.attaches() {
            Goal { done: CONNECTED, fail: CLOSED, absent: Absent::Fail }
        } else {
            Goal { done: ANY, fail: StateSet::of(&[]), absent: Absent::Done }
        }
    }

    /// Waits until the guest has the new set of functions, and sees that the backend has taken this one up.
    async fn taken(&self, cancel: Cancel<'_>) -> Result<Reached, Cause> {
        let reached = self.wait(TAKEN, cancel).await?;
        let state = bus::state_of(&self.job.toolstack.client, self.fe, self.dev.address).await?;
        if reached == Reached::State
            && state.as_ref().and_then(StateValue::state) == Some(XenbusState::Initialising)
        {
            return Err(Cause::Host("pciback has not taken the function up".to_owned()));
        }
        Ok(reached)
    }

    /// Waits for the backend's state, unless the guest will never answer.
    async fn wait(&self, goal: Goal, cancel: Cancel<'_>) -> Result<Reached, Cause> {
        let toolstack = self.job.toolstack;
        let client = &toolstack.client;
        let limit = if self.attaches() { toolstack.limits.connect } else { toolstack.limits.close };
        let never = CancellationToken::new();
        let (backend, frontend) = (bus::id(self.fe).backend()?, bus::id(self.fe).frontend()?);
        let (state, frontend) = (backend.join("state")?, frontend.join("state")?);
        let waited = for_state(client, &state, (Node::BackendState, goal), limit);
        let closed = |value: Option<&[u8]>| {
            let state = value.map(|value| StateValue::parse(value).state());
            matches!(state, None | Some(Some(XenbusState::Closed))).then_some(())
        };
        let closed = async {
            match wait_until(client, &frontend, std::time::Duration::MAX, &never, closed).await {
                Ended::Decided(()) => {}
                // A store that fails ends the other wait.
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = cancelled(cancel) => Err(Cause::Aborted),
            waited = waited => waited.map(|_| Reached::State),
            () = closed => Ok(Reached::FrontendClosed),
            () = facts::until(&*toolstack.facts, self.fe, Condition::is_over) => Ok(Reached::FrontendClosed),
        }
    }

    /// Removes the bus, which has been told to close. No toolstack has recorded it: libxl does not.
    async fn remove_bus(&self, force: bool) -> Result<(), Cause> {
        let force = if force { Force::AtOnce } else { Force::AfterTimeout };
        let removal = Removal::from(force).adopt(true);
        let never = CancellationToken::new();
        let removed = self.job.toolstack.remove(self.fe, (Kind::Pci, 0), removal, &never).await;
        match removed {
            Ok(_) => Ok(()),
            // It went by itself.
            Err(failure) if matches!(failure.cause, Cause::NoSuchDevice) => Ok(()),
            Err(failure) => Err(failure.cause),
        }
    }

    /// What both ends say, for the report.
    async fn observe(&mut self) {
        let toolstack = self.job.toolstack;
        let client = toolstack.client.with_deadline(LAST_WORDS);
        let Ok(target) = Target::new(bus::id(self.fe), []) else { return };
        let none = Texts::default();
        let observed = observe(&client, &*toolstack.facts, &target, &none);
        if let Ok(Ok(observed)) = timeout(LAST_WORDS, observed).await {
            self.job.observed = observed;
        }
    }
}

/// Both ends have a new set of functions, or the backend at least.
const TAKEN: Goal = Goal {
    done: StateSet::of(&[XenbusState::Connected, XenbusState::Reconfigured]),
    fail: StateSet::of(&[XenbusState::Closing, XenbusState::Closed]),
    absent: Absent::Fail,
};

/// The same where a function goes; it is gone too when the bus is.
const RELEASED: Goal = Goal {
    done: StateSet::of(&[XenbusState::Connected, XenbusState::Reconfigured, XenbusState::Closed]),
    fail: StateSet::of(&[]),
    absent: Absent::Done,
};
