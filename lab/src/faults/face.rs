//! What a schedule asks of a client, whichever of its two faces it has.
//!
//! A call of the blocking face takes its thread until it ends, while the tasks of other callers
//! go on in other threads. So nothing gives it up but its own deadline.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::{block_in_place, yield_now};
use xs_client::{
    Changes, Client, Error, Lifecycle, Lifecycles, Path, Reply, Request, Requests, Stats, Tree, Watch,
    blocking,
};

use super::dial::{dial, dial_socket, ways};
use super::schedule::FOREVER;
use super::world::World;

/// So long a thread looks for changes before its task can be ended.
const TICK: Duration = Duration::from_millis(100);

macro_rules! asks {
    ($(fn $name:ident($($arg:ident: $type:ty),*) -> $outcome:ty;)*) => {
        /// The node operations, in or outside of a transaction.
        pub(super) trait Asks: Send + Sync {
            $(fn $name(&self, $($arg: $type),*) -> impl Future<Output = Result<$outcome, Error>> + Send;)*
        }

        impl Asks for Requests {
            $(async fn $name(&self, $($arg: $type),*) -> Result<$outcome, Error> {
                Self::$name(self, $($arg),*).await
            })*
        }

        impl Asks for blocking::Requests {
            $(async fn $name(&self, $($arg: $type),*) -> Result<$outcome, Error> {
                block_in_place(|| Self::$name(self, $($arg),*))
            })*
        }
    };
}

asks! {
    fn request(request: Request) -> Reply;
    fn batch(requests: Vec<Request>) -> Vec<Result<Reply, Error>>;
    fn read(path: &Path) -> Bytes;
    fn read_opt(path: &Path) -> Option<Bytes>;
    fn read_many(paths: &[Path]) -> Vec<Option<Bytes>>;
    fn write(path: &Path, value: Vec<u8>) -> ();
    fn directory(path: &Path) -> Vec<String>;
    fn directory_or_empty(path: &Path) -> Vec<String>;
    fn read_tree(path: &Path) -> Option<Tree>;
}

/// A watch.
pub(super) trait Watches: Send + Sync {
    fn path(&self) -> &Path;

    fn changed(&mut self) -> impl Future<Output = Result<Changes, Error>> + Send;
}

/// A client.
pub(super) trait Face: Clone + Send + Sync + Deref<Target = Self::Requests> + 'static {
    type Requests: Asks + Clone;
    type Watch: Watches;

    /// Whether its calls take their thread, and hence real time.
    const BLOCKS: bool;

    fn connect(world: &Arc<World>) -> impl Future<Output = Result<Self, Error>> + Send;

    /// The same, whose calls have all the time they need.
    fn patient(&self) -> Self;

    fn stats(&self) -> Stats;

    /// If it tells of it.
    fn lifecycle(&self) -> Option<Lifecycles>;

    /// Whether its connection has ended for good.
    fn has_ended(&self) -> impl Future<Output = bool> + Send;

    fn watch(
        &self,
        path: &Path,
        depth: Option<u32>,
    ) -> impl Future<Output = Result<Self::Watch, Error>> + Send;

    fn transaction<T: Send, E: From<Error> + Send, F: Future<Output = Result<T, E>> + Send>(
        &self,
        body: impl FnMut(Self::Requests) -> F + Send,
    ) -> impl Future<Output = Result<T, E>> + Send;

    /// Waits until a node has a value that is not empty.
    fn wait_for(&self, within: Duration, path: &Path) -> impl Future<Output = Result<Bytes, Error>> + Send;
}

impl Watches for Watch {
    fn path(&self) -> &Path {
        Self::path(self)
    }

    async fn changed(&mut self) -> Result<Changes, Error> {
        Self::changed(self).await
    }
}

impl Face for Client {
    type Requests = Requests;
    type Watch = Watch;

    const BLOCKS: bool = false;

    async fn connect(world: &Arc<World>) -> Result<Self, Error> {
        let config = world.schedule.settings.config.clone();
        if config.reconnect.is_some() {
            return Self::connect_with(ways(world), config).await;
        }
        Ok(Self::over(dial(world).map_err(no_connection)?, config))
    }

    fn patient(&self) -> Self {
        // Time passes only where something has to wait.
        self.clone()
    }

    fn stats(&self) -> Stats {
        Self::stats(self)
    }

    fn lifecycle(&self) -> Option<Lifecycles> {
        Some(Self::lifecycle(self))
    }

    async fn has_ended(&self) -> bool {
        matches!(Self::lifecycle(self).now(), Lifecycle::Ended(_))
    }

    async fn watch(&self, path: &Path, depth: Option<u32>) -> Result<Watch, Error> {
        match depth {
            Some(depth) => self.watch_depth(path, depth).await,
            None => Self::watch(self, path).await,
        }
    }

    async fn transaction<T: Send, E: From<Error> + Send, F: Future<Output = Result<T, E>> + Send>(
        &self,
        mut body: impl FnMut(Requests) -> F + Send,
    ) -> Result<T, E> {
        Self::transaction(self, |tx| body((*tx).clone())).await
    }

    async fn wait_for(&self, within: Duration, path: &Path) -> Result<Bytes, Error> {
        let look = |look: xs_client::Look| async move {
            Ok::<_, Error>(look.read(path).await?.filter(|value| !value.is_empty()))
        };
        Self::wait_for(self, within, look).await
    }
}

impl Watches for blocking::Watch {
    fn path(&self) -> &Path {
        Self::path(self)
    }

    async fn changed(&mut self) -> Result<Changes, Error> {
        loop {
            if let Some(changes) = block_in_place(|| Self::changed(self, TICK))? {
                return Ok(changes);
            }
            yield_now().await;
        }
    }
}

impl Face for blocking::Client {
    type Requests = blocking::Requests;
    type Watch = blocking::Watch;

    const BLOCKS: bool = true;

    async fn connect(world: &Arc<World>) -> Result<Self, Error> {
        let socket = dial_socket(world).map_err(no_connection)?;
        Self::over(socket, world.schedule.settings.config.clone()).map_err(no_connection)
    }

    fn patient(&self) -> Self {
        self.with_deadline(FOREVER)
    }

    fn stats(&self) -> Stats {
        Self::stats(self)
    }

    fn lifecycle(&self) -> Option<Lifecycles> {
        None
    }

    async fn has_ended(&self) -> bool {
        // It learns so when it looks.
        let looked = Asks::read_opt(&*self.patient(), &Path::root()).await;
        looked.is_err_and(|error| error.is_disconnected())
    }

    async fn watch(&self, path: &Path, depth: Option<u32>) -> Result<blocking::Watch, Error> {
        block_in_place(|| match depth {
            Some(depth) => self.watch_depth(path, depth),
            None => Self::watch(self, path),
        })
    }

    async fn transaction<T: Send, E: From<Error> + Send, F: Future<Output = Result<T, E>> + Send>(
        &self,
        mut body: impl FnMut(blocking::Requests) -> F + Send,
    ) -> Result<T, E> {
        let runtime = Handle::current();
        block_in_place(|| Self::transaction(self, |tx| runtime.block_on(body((**tx).clone()))))
    }

    async fn wait_for(&self, within: Duration, path: &Path) -> Result<Bytes, Error> {
        let look = |look: &mut blocking::Look| Ok(look.read(path)?.filter(|value| !value.is_empty()));
        block_in_place(|| Self::wait_for(self, within, look))
    }
}

/// How much longer than it should something may take.
pub(super) const fn slack<F: Face>() -> Duration {
    // The clock of a schedule has milliseconds. A thread goes on when it is given a CPU.
    if F::BLOCKS { Duration::from_secs(20) } else { Duration::from_millis(1) }
}

fn no_connection(reason: std::io::Error) -> Error {
    Error::Connect { at: "the faults".to_owned(), reason: reason.to_string().into() }
}
