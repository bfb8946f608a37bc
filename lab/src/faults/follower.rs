//! A task that knows, from what its watch tells and what it reads then, what the store says.
//! When all is quiet it must be right: a change that it was not told of is a lost wake-up.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{sleep, sleep_until};
use xs_client::{Changes, Error, Path};

use super::face::{Asks, Face, Watches};
use super::schedule::{Followed, Follower, path};
use super::worker::text;
use super::world::World;

/// Before what failed is tried again. Nothing else happens in such steps.
const PAUSE: Duration = Duration::from_millis(13);

/// What a follower believes, and whether the connection's end was told to it.
#[derive(Default)]
pub(super) struct View {
    pub(super) nodes: BTreeMap<Path, Option<String>>,
    pub(super) ended: bool,
}

pub(super) struct Following {
    pub(super) follower: Follower,
    view: Mutex<View>,
}

impl Following {
    pub(super) fn new(follower: &Follower) -> Arc<Self> {
        Arc::new(Self { follower: follower.clone(), view: Mutex::default() })
    }

    pub(super) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows until the connection ends for good, or this is dropped.
    pub(super) async fn run(self: Arc<Self>, world: Arc<World>, client: impl Face) {
        sleep_until(world.at(self.follower.from)).await;
        if let Err(error) = self.follow(&world, &client).await {
            world.judge(&format!("following {}", self.follower.watched()), &error, &[]);
            self.view().ended = true;
        }
    }

    /// Ends with the connection.
    async fn follow(&self, world: &World, client: &impl Face) -> Result<(), Error> {
        let watched = self.follower.watched();
        loop {
            let present = world.present();
            let watch = client.watch(&watched, self.follower.depth()).await;
            let held = watch.is_ok().then(|| world.hold((watched.clone(), self.follower.depth()), present));
            let is_crowd = matches!(self.follower.followed, Followed::Crowd(_));
            world.set_watched(&watched, is_crowd && watch.is_ok());
            let looked = self.look(world, client, watch, held).await;
            world.set_watched(&watched, false);
            held.into_iter().for_each(|id| world.let_go(id));
            if let Err(error) = looked {
                self.give_up(world, client, error).await?;
            }
            sleep(PAUSE).await;
        }
    }

    /// Looks after each change, as long as there is the watch.
    async fn look<F: Face>(
        &self,
        world: &World,
        client: &F,
        watch: Result<F::Watch, Error>,
        held: Option<u64>,
    ) -> Result<(), Error> {
        let mut watch = watch?;
        loop {
            let changes = watch.changed().await.inspect_err(|error| {
                held.into_iter().for_each(|id| world.check_refused(id, error));
            })?;
            for node in self.follower.nodes() {
                // What tells of domains is not where the node is that goes with them.
                if watch.path().is_special() || concerns(&changes, &node) {
                    let value = self.read(world, client, &node).await?;
                    self.view().nodes.insert(node, value);
                }
            }
        }
    }

    /// The value of a node; only the end of the connection is an error.
    async fn read(&self, world: &World, client: &impl Face, node: &Path) -> Result<Option<String>, Error> {
        loop {
            match client.read_opt(node).await {
                Ok(value) => return Ok(value.as_ref().map(text)),
                Err(error) => self.give_up(world, client, error).await?,
            }
            sleep(PAUSE).await;
        }
    }

    /// Passes on an error that trying again does not help against.
    async fn give_up(&self, world: &World, client: &impl Face, error: Error) -> Result<(), Error> {
        if error.is_disconnected() && client.has_ended().await {
            return Err(error);
        }
        world.judge("following", &error, &[path("/w"), self.follower.watched()]);
        Ok(())
    }
}

/// Whether a node may be another one. Its parents are made without a word when it is made.
fn concerns(changes: &Changes, node: &Path) -> bool {
    changes.overflowed || changes.paths.iter().any(|path| node.is_within(path) || path.is_within(node))
}
