//! What a client must be able to do, whatever carries its bytes and whoever answers.
//!
//! A case gets a [`World`]: a client, a node to work below, and what holds there. It is the same for
//! an embedded store, a daemon's socket, a guest's ring and the kernel's device; what cannot be
//! done everywhere says by a [`Property`] where it can.

mod concurrency;
mod nodes;
mod transactions;
mod watches;

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use anyhow::Result;
use xs_client::transport::{Auto, default_device};
use xs_client::{Client, Config, DomId, Path};

/// A case that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Changes kept for a watcher that does not look: few, so that it takes no thousands to overflow.
const BACKLOG: usize = 100;

/// What does not hold everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property {
    /// The client may do everything.
    Privileged,
    /// The client has the rights of a guest, and its quotas.
    Guest,
    /// There is a privileged client besides.
    Observed,
    /// A list of children that is longer than a reply can be made, and be told to the client.
    LongLists,
    /// There is a domain that can be introduced.
    SpareDomain,
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Privileged => "a privileged client",
            Self::Guest => "a guest",
            Self::Observed => "a privileged client besides",
            Self::LongLists => "lists longer than a reply",
            Self::SpareDomain => "a domain to introduce",
        })
    }
}

/// Where a case is run.
#[derive(Clone, Debug)]
pub struct World {
    /// The client under test.
    pub client: Client,
    /// The domain that it speaks for.
    pub domid: DomId,
    /// A privileged client of the same store.
    pub admin: Option<Client>,
    /// A node that the client may create, and all below it.
    pub base: Path,
    /// The longest payload that a request may have.
    pub payload_max: usize,
    /// The longest value that a node may have.
    pub value_max: usize,
    /// Whether a long list of children can be made and told.
    pub long_lists: bool,
    /// A domain that exists and is not introduced.
    pub spare: Option<DomId>,
}

/// What the client under test is to be made with.
pub fn config() -> Config {
    // A thousand requests, one after the other and under emulation, take a while.
    Config { deadline: PATIENCE, watch_backlog: BACKLOG, ..Config::default() }
}

impl World {
    /// The kernel's device of this machine, in dom0 or in a guest.
    pub async fn of_device() -> Result<Self> {
        let client = Client::connect_with(Auto::among([default_device()]), config()).await?;
        let domid = client.read(&Path::new("domid")?).await?;
        let domid: DomId = std::str::from_utf8(&domid)?.parse()?;
        let privileged = domid == DomId::DOM0;
        let base = if privileged { "/clients".into() } else { format!("/local/domain/{domid}/data/clients") };
        Ok(Self {
            client,
            domid,
            admin: None,
            base: Path::new(base)?,
            payload_max: 4080,
            value_max: if privileged { 4080 } else { GUEST_VALUE_MAX },
            long_lists: privileged,
            spare: None,
        })
    }

    fn has(&self, property: Property) -> bool {
        match property {
            Property::Privileged => self.domid == DomId::DOM0,
            Property::Guest => self.domid != DomId::DOM0,
            Property::Observed => self.admin.is_some(),
            Property::LongLists => self.long_lists,
            Property::SpareDomain => self.spare.is_some(),
        }
    }

    /// The privileged client, or the one under test if there is no other.
    fn admin(&self) -> &Client {
        self.admin.as_ref().unwrap_or(&self.client)
    }

    /// A node of the case.
    fn node(&self, name: impl fmt::Display) -> Path {
        Path::new(format!("{}/{name}", self.base)).expect("cases name their nodes well")
    }
}

/// A value that every server lets a guest have.
pub const GUEST_VALUE_MAX: usize = 2000;

type Run = fn(World) -> Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// Something that a client must be able to do.
struct Case {
    name: &'static str,
    needs: &'static [Property],
    run: Run,
}

macro_rules! cases {
    ($($module:ident::$name:ident $([$($need:ident),*])?;)*) => {
        [$(Case {
            name: stringify!($name),
            needs: &[$($(Property::$need),*)?],
            run: |world| Box::pin($module::$name(world)),
        }),*]
    };
}

const CASES: &[Case] = &cases! {
    nodes::values_are_bytes;
    nodes::the_largest_value_comes_back;
    nodes::long_lists_come_whole [LongLists];
    nodes::permissions_are_kept;
    nodes::permissions_bind_a_guest [Guest, Observed];
    nodes::what_is_missing_is_told_so;
    nodes::a_tree_is_read_whole;
    nodes::a_request_too_long_fails_alone;
    nodes::an_error_fails_alone;
    concurrency::callers_64;
    concurrency::callers_1000;
    concurrency::a_batch_is_answered_in_order;
    transactions::a_conflict_is_tried_again;
    transactions::nothing_is_seen_before_the_commit;
    transactions::nothing_is_left_of_an_abort;
    transactions::counters_that_conflict_count_right;
    watches::a_watch_fires_at_first;
    watches::a_watch_tells_what_is_below;
    watches::a_watch_with_a_depth_tells_no_deeper;
    watches::a_dropped_watch_is_gone_from_the_server;
    watches::watches_come_and_go [Guest];
    watches::a_watch_too_many_fails_alone [Guest];
    watches::domains_come_and_go [Privileged, SpareDomain];
    watches::special_paths_fire_at_first [Privileged];
    watches::a_watcher_that_never_looks_holds_up_nobody;
    watches::what_is_waited_for_comes;
};

/// How a case went.
#[derive(Debug)]
pub enum Outcome {
    /// As it must.
    Passed,
    /// It is not meant for this world, which lacks this.
    Lacks(Property),
    /// Not as it must.
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Lacks(property) => write!(f, "not here, it needs {property}"),
            Self::Failed(why) => write!(f, "FAILED: {why}"),
        }
    }
}

/// Runs all cases, one after the other, each below a node of its own, and tells how each went.
pub async fn run(world: &World, mut tell: impl FnMut(&'static str, &Outcome)) -> Result<()> {
    for Case { name, needs, run } in CASES {
        let outcome = match needs.iter().find(|need| !world.has(**need)) {
            Some(lacking) => Outcome::Lacks(*lacking),
            None => run_one(world, name, *run).await?,
        };
        tell(name, &outcome);
    }
    world.client.rm(&world.base).await?;
    Ok(())
}

async fn run_one(world: &World, name: &str, run: Run) -> Result<Outcome> {
    let base = world.base.join(name)?;
    world.client.mkdir(&base).await?;
    let case = run(World { base: base.clone(), ..world.clone() });
    // A task of its own, so that an assertion does not end the others.
    let outcome = match tokio::time::timeout(PATIENCE, tokio::spawn(case)).await {
        Ok(Ok(Ok(()))) => Outcome::Passed,
        Ok(Ok(Err(error))) => Outcome::Failed(format!("{error:#}")),
        Ok(Err(panic)) => Outcome::Failed(panic.to_string()),
        Err(_) => Outcome::Failed(format!("not done within {} s", PATIENCE.as_secs())),
    };
    world.client.rm(&base).await?;
    Ok(outcome)
}

/// Runs the cases over the device of this machine, and prints a line for each.
#[tokio::main(flavor = "current_thread")]
pub async fn over_device() -> Result<()> {
    let world = World::of_device().await?;
    run(&world, |name, outcome| println!("CASE {name}: {outcome}")).await
}
