//! A schedule from its beginning to its end, and what must hold there.
//!
//! With the asynchronous client everything runs in one thread, in time that is not real: it goes on
//! when nobody can do anything before. So a schedule has the same course each time, and a wait costs
//! nothing. With the blocking client neither is so: what must hold in the end is waited for.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Barrier;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use xs_client::{Client, Error, Lifecycle, Lifecycles, Request, blocking};

use super::face::{Asks, Face, Watches, slack};
use super::fault::STORM;
use super::follower::Following;
use super::schedule::{
    CROWD, Deed, FOREVER, Schedule, counter, crowd, domains_node, flag, home, home_node, path, shared,
    shared_node,
};
use super::worker::{Caller, value_of};
use super::world::{Outcome, World};
use crate::seeded::{Caught, catching};

/// Carries a schedule out, with the asynchronous client.
pub(super) fn run(schedule: &Schedule) -> io::Result<Outcome> {
    // The client's pauses.
    fastrand::seed(schedule.seed);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build()?;
    Ok(run_on::<Client>(&runtime, schedule))
}

/// Carries a schedule out with the blocking client, in real time and in many threads.
pub(super) fn run_blocking(schedule: &Schedule) -> io::Result<Outcome> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    Ok(run_on::<blocking::Client>(&runtime, schedule))
}

fn run_on<F: Face>(runtime: &Runtime, schedule: &Schedule) -> Outcome {
    match catching(|| runtime.block_on(course::<F>(schedule))) {
        Caught::Calm(outcome) => outcome,
        Caught::Beside(mut outcome) => {
            if outcome.violations.is_empty() {
                outcome.violations.push("a task panics".to_owned());
            }
            outcome
        }
        Caught::Panicked(said) => Outcome { violations: vec![said], ..Outcome::default() },
    }
}

async fn course<F: Face>(schedule: &Schedule) -> Outcome {
    let world = World::new(schedule).await;
    match F::connect(&world).await {
        Ok(client) => Course { world: world.clone(), client }.run().await,
        Err(error) => world.violation(format!("no connection: {error}")),
    }
    world.outcome()
}

struct Course<F> {
    world: Arc<World>,
    client: F,
}

impl<F: Face> Course<F> {
    async fn run(self) {
        let Self { world, client } = &self;
        let flags = (0..world.schedule.flags.len()).map(|number| write_flag(world.clone(), number));
        let flags = tokio::spawn(join_all(flags));
        let others = tokio::spawn(others(world.clone()));
        let watching =
            client.lifecycle().map(|lifecycle| tokio::spawn(watch_lifecycle(world.clone(), lifecycle)));
        let following: Vec<_> = world.schedule.followers.iter().map(Following::new).collect();
        let followers: Vec<JoinHandle<()>> = following
            .iter()
            .map(|following| tokio::spawn(following.clone().run(world.clone(), client.clone())))
            .collect();
        let callers: Vec<_> = world
            .schedule
            .workers
            .iter()
            .map(|worker| {
                let caller = Caller::new(world.clone(), client.clone(), worker);
                tokio::spawn(caller.run(worker.steps.clone()))
            })
            .collect();
        let mut watches = Vec::new();
        for caller in callers {
            match timeout(FOREVER * 10, caller).await {
                Ok(Ok(kept)) => watches.extend(kept),
                Ok(Err(error)) => world.violation(format!("a worker fails: {error}")),
                Err(_) => world.violation("a worker does not end"),
            }
        }
        _ = tokio::join!(flags, others);
        sleep_until(world.at(STORM)).await;
        quiet(world, Some(client)).await;

        let alive = !client.has_ended().await;
        world.check_end(!alive);
        if alive {
            self.works().await;
        } else {
            self.all_ends(&mut watches).await;
        }
        expect(world, Some(client), async || self.astray(&following, alive).await).await;
        world.check_counter().await;

        following.iter().for_each(|following| world.set_watched(&following.follower.watched(), false));
        followers.iter().for_each(JoinHandle::abort);
        for follower in followers {
            if follower.await.is_err_and(|error| error.is_panic()) {
                world.violation("who follows something panics");
            }
        }
        drop(watches);
        expect(world, Some(client), async || self.left("after all watches were dropped").await).await;
        if alive {
            self.all_turns_are_free().await;
            expect(world, Some(client), async || self.left("after transactions were dropped").await).await;
        }
        world.check_connections(client.stats().reconnects);
        world.finish();
        let Self { world, client } = self;
        drop(client);
        let gone = async || {
            let wires = (world.wires() > 0).then(|| "the connection outlives the client".to_owned());
            // What the client tells to the end, too.
            let tasks = Handle::current().metrics().num_alive_tasks();
            let tasks = (tasks > 0).then(|| format!("{tasks} tasks outlive the client"));
            wires.into_iter().chain(tasks).collect()
        };
        expect(&world, None::<&F>, gone).await;
        if watching.is_some_and(|watching| !watching.is_finished()) {
            world.violation("the end of the client is not told to who follows its lifecycle");
        }
    }

    /// Without faults, nothing fails.
    async fn works(&self) {
        let Self { world, client } = self;
        let client = client.patient();
        let (node, value) = (path("/w/o99"), value_of(&path("/w/o99"), 1));
        let calls = async {
            let write = Request::Write { path: node.clone(), value: value.clone().into() };
            world.ask(&*client, write.clone()).await?;
            let read = client.read(&node).await?;
            let mut watch = client.watch(&node, None).await?;
            let first = watch.changed().await?;
            let rounds = client.transaction(|tx| async move { tx.read(&counter()).await }).await?;
            let names = client.directory(&path("/w")).await?;
            world.ask(&*client, write).await?;
            let second = watch.changed().await?;
            Ok::<_, Error>((read, first.paths.contains(&node), second.paths.contains(&node), rounds, names))
        };
        match timeout(FOREVER, calls).await {
            Ok(Ok((read, true, true, count, names)))
                if read == value.as_bytes()
                    && count.starts_with(counter().as_bytes())
                    && names.contains(&"o99".to_owned()) => {}
            Ok(Ok(told)) => world.violation(format!("after the storm, a client is told {told:?}")),
            Ok(Err(error)) => world.violation(format!("after the storm, a client is told: {error}")),
            Err(_) => world.violation("after the storm, a call does not end"),
        }
    }

    /// When the connection has ended, every call says so at once, and so does every watch.
    async fn all_ends(&self, watches: &mut [(u64, F::Watch)]) {
        let Self { world, client } = self;
        let told = Instant::now();
        let outcomes = [
            client.read(&path("/w")).await.map(drop),
            client.watch(&path("/w"), None).await.map(drop),
            client.transaction(|_| async { Ok::<_, Error>(()) }).await,
        ];
        for outcome in outcomes {
            if !outcome.as_ref().is_err_and(Error::is_disconnected) {
                world.violation(format!("the connection has ended, and a call comes to {outcome:?}"));
            }
        }
        for (_, watch) in watches {
            let ended = async { while watch.changed().await.is_ok() {} };
            if timeout(FOREVER, ended).await.is_err() {
                world.violation(format!("the watch of {} does not end with the connection", watch.path()));
            }
        }
        if told.elapsed() >= slack::<F>() {
            world.violation(format!("it takes {:?} to tell of the connection's end", told.elapsed()));
        }
    }

    /// Who follows knows what the store says, or that the connection has ended.
    async fn astray(&self, following: &[Arc<Following>], alive: bool) -> Vec<String> {
        let world = &self.world;
        let mut direct = world.direct();
        let mut astray = Vec::new();
        for following in following {
            let watched = following.follower.watched();
            if following.view().ended == alive {
                astray.push(format!(
                    "who follows {watched} is told the wrong thing about the connection's end"
                ));
            }
            if !alive {
                continue;
            }
            for node in following.follower.nodes() {
                let there = direct.read(&world.absolute(&node)).await;
                let believed = following.view().nodes.get(&node).cloned();
                if believed != Some(there.clone()) {
                    astray.push(format!(
                        "a wake-up is lost: who follows {watched} takes {node} for {believed:?}, and it is {there:?}"
                    ));
                }
            }
        }
        astray
    }

    /// What the client or the store keeps for those who have gone.
    async fn left(&self, when: &str) -> Vec<String> {
        let mut all = Vec::new();
        let stats = self.client.stats();
        if stats.in_flight > 0 || stats.watches > 0 {
            all.push(format!("{when}, the client counts {stats:?}"));
        }
        let usage = self.world.direct().usage(self.world.domid()).await;
        let names = ["watches", "transactions", "outstanding"];
        let counted: Vec<_> = usage.iter().filter(|(name, _)| names.contains(&&**name)).collect();
        // The reply to this very question may be counted as outstanding.
        let left = |(name, count): &&&(String, i64)| *count > i64::from(name == "outstanding");
        if counted.len() != names.len() || counted.iter().any(|row| left(&row)) {
            all.push(format!("{when}, the store counts {usage:?}"));
        }
        all
    }

    /// As many transactions as there may be are open together; so no turn was lost.
    async fn all_turns_are_free(&self) {
        let Self { world, client } = self;
        let client = client.patient();
        let count = world.schedule.settings.config.transactions;
        let all_open = Arc::new(Barrier::new(count + 1));
        let open = (0..count).map(|_| {
            let (client, all_open) = (client.clone(), all_open.clone());
            tokio::spawn(async move {
                let body = |_| async {
                    all_open.wait().await;
                    if !F::BLOCKS {
                        // It is dropped.
                        pending::<()>().await;
                    }
                    Err::<(), _>(Error::Disconnected { reason: "given up".into() })
                };
                client.transaction(body).await
            })
        });
        let open: Vec<_> = open.collect();
        if timeout(FOREVER, all_open.wait()).await.is_err() {
            world.violation("after the storm, not all transactions get their turn");
        }
        for open in open {
            open.abort();
            if let Ok(Err(error)) = open.await
                && !error.is_disconnected()
            {
                world.violation(format!("after the storm, a transaction is told: {error}"));
            }
        }
        let (window, counter) = (world.schedule.settings.window(), counter());
        let reads = (0..2 * window).map(|_| client.read_opt(&counter));
        for outcome in join_all(reads).await {
            if let Err(error) = outcome {
                world.violation(format!("after the storm, a read of many is told: {error}"));
            }
        }
    }
}

/// Waits until nothing is under way any more.
async fn quiet<F: Face>(world: &World, client: Option<&F>) {
    if !F::BLOCKS {
        return sleep(world.schedule.settings.config.deadline * 2 + Duration::from_secs(5)).await;
    }
    if let Some(client) = client {
        // What is under way comes before the answer to this.
        _ = client.patient().read_opt(&counter()).await;
    }
    sleep(Duration::from_millis(10)).await;
}

/// Looks, when all is quiet, for what should not be; where time is real, until that is gone.
async fn expect<F: Face>(world: &World, client: Option<&F>, look: impl AsyncFn() -> Vec<String>) {
    let begun = Instant::now();
    loop {
        quiet(world, client).await;
        let amiss = look().await;
        if amiss.is_empty() || begun.elapsed() >= slack::<F>() {
            return amiss.into_iter().for_each(|text| world.violation(text));
        }
    }
}

/// Follows what the client tells of its connection until the end.
async fn watch_lifecycle(world: Arc<World>, mut lifecycle: Lifecycles) {
    let mut last = 0;
    while let Some(state) = lifecycle.next().await {
        match state {
            Lifecycle::Lost(error) => world.judge("the connection", &error, &[]),
            Lifecycle::Restored(number) if number <= last => {
                world.violation(format!("connection {number} is told after {last}"));
            }
            Lifecycle::Restored(number) => {
                last = number;
                world.check_restored();
            }
            // That is when it is dropped.
            Lifecycle::Ended(_) if world.is_over() => {}
            Lifecycle::Ended(_) => world.check_giving_up(),
            state => world.violation(format!("the client is {state:?} again")),
        }
    }
}

/// Others write a flag, once.
async fn write_flag(world: Arc<World>, number: usize) {
    sleep_until(world.at(world.schedule.flags[number])).await;
    world.direct().write(flag(number), value_of(&flag(number), "")).await;
}

/// What others do.
async fn others(world: Arc<World>) {
    for (number, change) in world.schedule.changes.iter().enumerate() {
        sleep_until(world.at(change.at)).await;
        // The store may be another one each time.
        let mut direct = world.direct();
        let (written, removed) = match &change.deed {
            Deed::Write(directory, node) => (vec![shared_node(*directory, *node)], None),
            Deed::Remove(directory) => (vec![], Some(shared(*directory))),
            Deed::WriteHome(node) => (vec![home_node(*node)], None),
            Deed::RemoveHome => (vec![], Some(home())),
            Deed::WriteCrowd(node) => (vec![node.clone()], None),
            Deed::WriteBeside(crowds) => ((CROWD..2 * CROWD).map(|node| crowd(crowds, node)).collect(), None),
            Deed::RemoveCrowd(crowds) => (vec![], Some(crowds.clone())),
            Deed::Domain => {
                for ends in [false, true] {
                    let node = domains_node(ends);
                    direct.write(node.clone(), value_of(&node, format!("other.{number}"))).await;
                    world.turn_domain(ends);
                }
                continue;
            }
        };
        for node in written {
            direct.write(world.absolute(&node), value_of(&node, format!("other.{number}"))).await;
        }
        if let Some(node) = removed {
            direct.ask(Request::Rm(world.absolute(&node))).await;
        }
    }
}
