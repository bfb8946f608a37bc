//! Carrying a plan out.

use std::collections::{BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use tokio::sync::Notify;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::ending::{self, ModelEnd};
use super::{Ended, Outcome, Plan, Planned, Progress, Undone};
use crate::report::{Named, Part};
use crate::{Cause, DeviceId, Failure, Force, Success, Toolstack, Which};

/// How long the device model lives on while what it serves cannot be told to close, because another operation has a
/// device, or the store does not answer.
const GRACE: Duration = Duration::from_secs(2);

/// A plan that is carried out, as long as somebody asks for its progress or its end.
///
/// Dropping it stops all operations where they are, as dropping those does: see [`Toolstack::add`] and
/// [`Toolstack::remove`].
pub struct Run {
    work: Pin<Box<dyn Future<Output = Outcome> + Send>>,
    progress: UnboundedReceiver<Progress>,
    outcome: Option<Outcome>,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("outcome", &self.outcome).finish_non_exhaustive()
    }
}

impl Run {
    /// What happens next; `None` when all is over.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<Progress> {
        StreamExt::next(self).await
    }

    /// The outcome, once all is over.
    pub async fn finish(mut self) -> Outcome {
        while self.next().await.is_some() {}
        match self.outcome {
            Some(outcome) => outcome,
            None => self.work.await,
        }
    }
}

impl Stream for Run {
    type Item = Progress;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Progress>> {
        loop {
            if let Poll::Ready(progress) = self.progress.poll_recv(cx) {
                return Poll::Ready(progress);
            }
            if self.outcome.is_some() {
                return Poll::Ready(None);
            }
            match self.work.as_mut().poll(cx) {
                // What it has told last is still to be taken.
                Poll::Ready(outcome) => self.outcome = Some(outcome),
                Poll::Pending => return self.progress.poll_recv(cx),
            }
        }
    }
}

impl Plan {
    /// Carries it out. When `cancel` is cancelled, what runs is cancelled, with the effects that
    /// [`Toolstack::add`] and [`Toolstack::remove`] tell of, and nothing more is begun.
    ///
    /// Nothing happens but while the [`Run`] is asked.
    pub fn run(self, toolstack: &Toolstack, cancel: &CancellationToken) -> Run {
        let (sender, progress) = mpsc::unbounded_channel();
        let worker = Worker {
            plan: self,
            toolstack: toolstack.clone(),
            progress: sender,
            late: CancellationToken::new(),
            unplaced: Arc::default(),
            news: Arc::default(),
        };
        Run { work: Box::pin(worker.work(cancel.child_token())), progress, outcome: None }
    }
}

struct Worker {
    plan: Plan,
    toolstack: Toolstack,
    progress: UnboundedSender<Progress>,
    /// Cancelled at the deadline, unless all was cancelled before.
    late: CancellationToken,
    /// Additions that have begun and whose devices have no place yet.
    unplaced: Arc<Mutex<BTreeSet<usize>>>,
    /// Whenever another operation may begin.
    news: Arc<Notify>,
}

fn lock(indices: &Mutex<BTreeSet<usize>>) -> MutexGuard<'_, BTreeSet<usize>> {
    indices.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which removals of what a device model serves have yet to tell their backends to close.
struct Told {
    served: BTreeSet<usize>,
    left: Mutex<BTreeSet<usize>>,
    /// Whenever one has.
    news: Arc<Notify>,
    /// Cancelled when none is left.
    all: CancellationToken,
    /// Cancelled if the device model does not end.
    survives: CancellationToken,
}

impl Told {
    fn new(served: &[usize], news: Arc<Notify>) -> Self {
        let served = BTreeSet::from_iter(served.iter().copied());
        let left = Mutex::new(served.clone());
        let told =
            Self { served, left, news, all: CancellationToken::new(), survives: CancellationToken::new() };
        told.look(&told.left());
        told
    }

    /// Whether it only waits for the device model to end, which is asked to when all have told: who waits so must not
    /// keep another from its turn.
    fn only_waits(&self, index: usize) -> bool {
        self.served.contains(&index) && !self.left().contains(&index)
    }

    fn left(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        lock(&self.left)
    }

    fn look(&self, left: &BTreeSet<usize>) {
        if left.is_empty() {
            self.all.cancel();
        }
    }

    /// One has, or has ended without.
    fn is(&self, index: usize) {
        let mut left = self.left();
        left.remove(&index);
        self.look(&left);
        self.news.notify_one();
    }
}

/// What has come of the operations so far.
struct Tally {
    ended: Vec<Option<Result<Success, Box<Failure>>>>,
    first_failure: Option<usize>,
}

impl Worker {
    async fn work(self, cancel: CancellationToken) -> Outcome {
        let late = async {
            xen_devstate::deadline(self.plan.deadline).await;
            if !cancel.is_cancelled() {
                self.late.cancel();
                cancel.cancel();
            }
            std::future::pending::<()>().await;
        };
        let mut tally = Tally { ended: vec![None; self.plan.operations.len()], first_failure: None };
        let all = async {
            let mut stages = VecDeque::from(self.plan.stages.clone());
            while let Some(stage) = stages.pop_front() {
                if tally.first_failure.is_some() || cancel.is_cancelled() {
                    break;
                }
                match &self.plan.goes {
                    Some(goes) => {
                        let model = self.destroy(&stage, &goes.of_model, &mut tally, &cancel).await;
                        return (Some(model), tally);
                    }
                    None => self.stage(&stage, &mut tally, &cancel, None).await,
                }
            }
            (None, tally)
        };
        let (model, mut tally) = tokio::select! {
            ended = all => ended,
            () = late => unreachable!("a deadline cancels, and waits"),
        };
        let incomplete = tally.ended.iter().any(|ended| !matches!(ended, Some(Ok(_))));
        let undone = if incomplete && self.plan.undo { self.undo(&tally).await } else { Vec::new() };
        let devices = tally.ended.iter_mut().enumerate();
        let devices = devices.map(|(index, ended)| self.ended(index, ended.take())).collect();
        Outcome {
            domid: self.plan.fe,
            devices,
            first_failure: tally.first_failure,
            timed_out: self.late.is_cancelled(),
            undone,
            model,
            left: self.plan.left,
        }
    }

    /// The removals of a domain that goes, and beside them the end of its device model, as soon as all that it serves
    /// was told to close: it closes its images as it ends, and its end is the evidence that it has. A guest that
    /// loses its devices is not asked, so there is nothing to be won by waiting.
    async fn destroy(
        &self,
        stage: &[usize],
        served: &[usize],
        tally: &mut Tally,
        cancel: &CancellationToken,
    ) -> ModelEnd {
        let told = Arc::new(Told::new(served, self.news.clone()));
        let model = async {
            // Looked for beside what is looked at anyway. One that is started later serves nothing that was there.
            let told_all = async {
                tokio::select! {
                    () = told.all.cancelled() => {}
                    () = sleep(GRACE) => {}
                }
            };
            let (model, ()) = tokio::join!(ending::look(&self.toolstack, self.plan.fe), told_all);
            if cancel.is_cancelled() {
                let why = if self.late.is_cancelled() { "the deadline came before" } else { "cancelled" };
                return ModelEnd::Alive { reason: format!("it was not asked to: {why}") };
            }
            let patience = self.toolstack.limits.close;
            let end = match model {
                Ok(model) => ending::end(&self.toolstack, self.plan.fe, model, patience, cancel).await,
                Err(cause) => Err(cause),
            };
            let end = end.unwrap_or_else(|cause| ModelEnd::Alive { reason: cause.to_string() });
            if !end.is_gone() && !cancel.is_cancelled() {
                told.survives.cancel();
            }
            self.tell(Progress::Model(end.clone()));
            end
        };
        let removals = async {
            // What the device model serves comes first, if not all can be done at one time.
            let rest = stage.iter().filter(|index| !served.contains(index));
            let order: Vec<usize> = served.iter().chain(rest).copied().collect();
            self.stage(&order, tally, cancel, Some(&told)).await;
        };
        tokio::join!(model, removals).0
    }

    /// Carries out some operations side by side.
    async fn stage(
        &self,
        stage: &[usize],
        tally: &mut Tally,
        cancel: &CancellationToken,
        told: Option<&Arc<Told>>,
    ) {
        // Whose id is fixed has it before others choose theirs.
        let (choosing, fixed): (Vec<usize>, Vec<usize>) =
            stage.iter().partition(|index| self.plan.automatic.contains_key(index));
        let mut waiting: VecDeque<usize> = fixed.into_iter().chain(choosing).collect();
        let mut running = FuturesUnordered::new();
        let mut at_work = BTreeSet::new();
        let only_waits = |index: &&usize| told.is_some_and(|told| told.only_waits(**index));
        loop {
            while at_work.iter().filter(|index| !only_waits(index)).count() < self.plan.at_once
                && !(cancel.is_cancelled() || self.plan.undo && tally.first_failure.is_some())
            {
                // Ids are chosen one after the other, or whoever is fast would have the first.
                let has_its_turn =
                    |index: &usize| !self.plan.automatic.contains_key(index) || self.unplaced().is_empty();
                let Some(index) = waiting.front().copied().filter(has_its_turn) else { break };
                waiting.pop_front();
                at_work.insert(index);
                self.unplaced().insert(index);
                running.push(async move {
                    let outcome = self.operation(index, cancel, told.cloned()).await;
                    if let Some(told) = told {
                        told.is(index);
                    }
                    (index, outcome)
                });
            }
            let (index, outcome) = tokio::select! {
                ended = running.next() => match ended {
                    Some(ended) => ended,
                    None => break,
                },
                () = self.news.notified() => continue,
            };
            at_work.remove(&index);
            self.unplaced().remove(&index);
            let outcome = outcome.map_err(|failure| match failure.cause {
                Cause::Aborted if self.late.is_cancelled() => {
                    Box::new(Failure { cause: Cause::Deadline, ..*failure })
                }
                _ => failure,
            });
            if outcome.is_err() {
                tally.first_failure.get_or_insert(index);
            }
            self.tell(Progress::Ended(index, outcome.clone()));
            tally.ended[index] = Some(outcome);
        }
    }

    async fn operation(
        &self,
        index: usize,
        cancel: &CancellationToken,
        told: Option<Arc<Told>>,
    ) -> Result<Success, Box<Failure>> {
        let toolstack = self.observed(index, told.clone());
        match &self.plan.operations[index] {
            Planned::Add(device, addition) => {
                let device = self.plan.automatic.get(&index).unwrap_or(device);
                toolstack.add(self.plan.fe, device, *addition, cancel).await
            }
            Planned::AttachUsb(dev) => toolstack.attach_usb(self.plan.fe, dev, cancel).await,
            Planned::AttachPci(dev) => toolstack.attach_pci(self.plan.fe, dev, cancel).await,
            Planned::Remove(Which { fe, kind, devid }, removal) => {
                // libxl's configuration of a domain goes with it.
                let toolstack = toolstack.without_libxl_config();
                let which = Which { fe: *fe, kind: *kind, devid: *devid };
                let survives = told.map(|told| told.survives.clone()).unwrap_or_default();
                let found = self.plan.goes.as_ref().map(|goes| goes.found[index]);
                let removed = toolstack.remove_of_domain((which, found), *removal, survives, cancel).await;
                removed.or_else(|failure| match failure.cause {
                    // Somebody else has removed it: all are to go.
                    Cause::NoSuchDevice => Ok(Success {
                        id: DeviceId::new(which, toolstack.own()),
                        part: None,
                        warnings: failure.warnings,
                        elapsed: failure.elapsed,
                    }),
                    _ => Err(failure),
                })
            }
        }
    }

    /// Removes what was added, the last stage first.
    async fn undo(&self, tally: &Tally) -> Vec<Undone> {
        // What was done is undone also if all was cancelled.
        let mut undone = Vec::new();
        for stage in self.plan.stages.iter().rev() {
            let added = stage.iter().filter_map(|index| match &tally.ended[*index] {
                Some(Ok(success)) => Some((*index, success)),
                _ => None,
            });
            let removals =
                added.map(|(index, success)| async move { (index, self.take_back(index, success).await) });
            let mut removals: FuturesUnordered<_> = removals.collect();
            while let Some((index, outcome)) = removals.next().await {
                self.tell(Progress::Undone(index, outcome.clone()));
                undone.push(Undone { operation: index, ended: self.ended(index, Some(outcome)) });
            }
        }
        undone
    }

    async fn take_back(&self, index: usize, added: &Success) -> Result<Success, Box<Failure>> {
        let (toolstack, id) = (self.observed(index, None), added.id);
        match added.part {
            None => toolstack.take_back(id, Force::AtOnce).await,
            Some(Part::Port { port, made_controller }) => {
                toolstack.take_back_usb(id, (port, made_controller)).await
            }
            Some(Part::Function { function }) => {
                toolstack.detach_pci(id.fe, function, true, &CancellationToken::new()).await
            }
        }
    }

    /// The toolstack, whose steps are told as those of an operation.
    fn observed(&self, index: usize, told: Option<Arc<Told>>) -> Toolstack {
        let progress = self.progress.clone();
        let before = self.toolstack.observer.clone();
        let (unplaced, news) = (self.unplaced.clone(), self.news.clone());
        self.toolstack.clone().with_observer(move |step| {
            if let Some(before) = &before {
                before(step);
            }
            _ = progress.send(Progress::Step(index, step.clone()));
            if step.placed && lock(&unplaced).remove(&index) {
                news.notify_one();
            }
            if let Some(told) = told.as_ref().filter(|_| step.told) {
                told.is(index);
            }
        })
    }

    fn unplaced(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        lock(&self.unplaced)
    }

    fn tell(&self, progress: Progress) {
        // Whoever dropped the receiver has dropped this, too.
        _ = self.progress.send(progress);
    }

    fn ended(&self, index: usize, outcome: Option<Result<Success, Box<Failure>>>) -> Ended {
        match outcome {
            Some(Ok(success)) => Ended::Done(success),
            Some(Err(failure)) => Ended::Failed(failure),
            None => Ended::NotBegun { device: self.named(index) },
        }
    }

    fn named(&self, index: usize) -> Named {
        match &self.plan.operations[index] {
            Planned::Add(device, _) => {
                Named::of_device(self.plan.fe, self.plan.automatic.get(&index).unwrap_or(device))
            }
            Planned::AttachUsb(dev) => Named::of_usb(self.plan.fe, dev),
            Planned::AttachPci(dev) => Named::of_pci(self.plan.fe, dev.address),
            Planned::Remove(which, _) => Named::of_id(*which),
        }
    }
}
