//! What is to happen, all of it made from a seed before it begins: what callers do, what others
//! change, and what goes wrong.

mod losses;
mod parts;
mod words;

use std::time::Duration;

use fastrand::Rng;
use xs_client::{Config, Path, Reconnect, Retry};

use super::fault::{Fault, STORM, pick};

/// Longer than anything may take, in the time of the schedule.
pub(super) const FOREVER: Duration = Duration::from_secs(3600);

/// Directories that everybody changes.
pub(super) const SHARED: usize = 4;

/// Nodes in each of them, and in a worker's own.
pub(super) const NODES: usize = 3;

/// A path of the schedule's own making.
pub(super) fn path(text: &str) -> Path {
    Path::new(text).unwrap_or_else(|error| unreachable!("{error}"))
}

/// A shared directory.
pub(super) fn shared(directory: usize) -> Path {
    path(&format!("/w/s/{directory}"))
}

/// A node in one. Its name tells the directory, so that a list that went astray is seen.
pub(super) fn shared_node(directory: usize, node: usize) -> Path {
    path(&format!("/w/s/{directory}/{directory}-{node}"))
}

/// The directory that a worker alone changes.
pub(super) fn own(worker: usize) -> Path {
    path(&format!("/w/o{worker}"))
}

/// A node in it.
pub(super) fn own_node(worker: usize, node: usize) -> Path {
    path(&format!("/w/o{worker}/o{worker}-{node}"))
}

/// A node that is written once, by others.
pub(super) fn flag(number: usize) -> Path {
    path(&format!("/w/flag{number}"))
}

/// One of many nodes that are watched one by one.
pub(super) fn crowd(crowds: &Path, node: usize) -> Path {
    path(&format!("{crowds}/{node}"))
}

/// A directory in the home of the client's domain, which its relative paths begin at.
pub(super) fn home() -> Path {
    path("h")
}

/// A node in it.
pub(super) fn home_node(node: usize) -> Path {
    path(&format!("h/h-{node}"))
}

/// What tells of domains that end, or begin.
pub(super) fn domains(ended: bool) -> Path {
    path(if ended { "@releaseDomain" } else { "@introduceDomain" })
}

/// A node that is written right before a domain ends, or begins.
pub(super) fn domains_node(ended: bool) -> Path {
    path(if ended { "/w/ended" } else { "/w/begun" })
}

/// What all transactions count in.
pub(super) fn counter() -> Path {
    path("/w/count")
}

/// How the client is set up.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Whether it acts for a guest, with quotas, or for domain 0.
    pub(super) guest: bool,
    /// Bytes in the pipe between the client and the faults.
    pub(super) pipe: usize,
    /// Milliseconds that each message takes in any case.
    pub(super) latency: u64,
    /// With two ways to the store: which of them leads to it at first, and is to be the only one. The
    /// second is as the kernel's device.
    pub(super) way: Option<usize>,
    pub(super) config: Config,
}

impl Settings {
    /// How many requests may be under way.
    pub(super) fn window(&self) -> usize {
        if self.way == Some(1) { 1 } else { self.config.window }
    }
}

/// How a step is given up: its future is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GiveUp {
    /// After it was polled so often.
    Polls(u32),
    /// After so many milliseconds.
    After(u64),
}

/// How the body of a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    Commit,
    /// It takes so many milliseconds more than it needs.
    Slow(u64),
    /// It fails, which aborts the transaction.
    Fail,
    /// It keeps a clone of the transaction beyond its end, and fails or not.
    Keep {
        fails: bool,
    },
    /// It gives up a batch that may be sent in part, and so it cannot be committed.
    GiveUp,
}

impl Body {
    /// Whether nothing is to come of it.
    pub(super) fn fails(self) -> bool {
        matches!(self, Self::Fail | Self::Keep { fails: true } | Self::GiveUp)
    }
}

/// What is asked for again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Knock {
    /// A watch.
    Watch(Path),
    Read,
    /// A batch that takes the greater part of the window.
    Batch,
}

/// What a caller does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Write(usize),
    Read(usize),
    Remove(usize),
    Mkdir(usize),
    /// The permissions that it has.
    SetPerms(usize),
    List,
    /// Writes and reads of its own nodes, sent together.
    Batch(Vec<usize>),
    /// So many reads of shared nodes at once.
    Burst(usize),
    WriteShared(usize, usize),
    /// A shared directory with all below.
    ReadTree(usize),
    Transaction(Vec<usize>, Body),
    /// Watches a shared directory, from now on.
    Watch(usize),
    /// Looks what its watches tell, for so many milliseconds each.
    Drain(u64),
    /// Drops its oldest watch.
    Unwatch,
    WaitFor(usize),
    /// A value that no message can hold.
    Oversized,
    /// Reads through a clone of the client that is dropped right after.
    Clone(usize),
    /// So many calls, each given up at once.
    Knock(usize, Knock),
}

/// A step of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Milliseconds to wait before.
    pub(super) pause: u64,
    pub(super) act: Act,
    pub(super) give_up: Option<GiveUp>,
}

/// A caller. It takes its steps one after the other.
#[derive(Clone, Debug)]
pub(super) struct Worker {
    /// Its own; also when other workers are taken out of the schedule.
    pub(super) number: usize,
    pub(super) steps: Vec<Step>,
}

/// What is followed.
#[derive(Clone, Debug)]
pub(super) enum Followed {
    /// A shared directory, and all in it.
    Directory(usize),
    /// A node in one.
    Node(usize, usize),
    /// A node in one, by a watch that hears of nothing below.
    NodeAlone(usize, usize),
    /// The directory in the domain's home, by a relative path.
    Home,
    /// The domains that end, or begin; by a watch that tells of `each` which it is, or just that.
    Domains { ended: bool, each: bool },
    /// One of many: so many watches become one of what is above them.
    Crowd(Path),
}

/// A task that watches something to the end, and keeps in mind what it holds.
#[derive(Clone, Debug)]
pub(super) struct Follower {
    /// When it begins, in milliseconds.
    pub(super) from: u64,
    pub(super) followed: Followed,
}

impl Follower {
    fn new(rng: &mut Rng) -> Self {
        let (directory, node) = (rng.usize(0..SHARED), rng.usize(0..NODES));
        let followed = match rng.u8(0..8) {
            0 | 1 => Followed::Node(directory, node),
            2 => Followed::NodeAlone(directory, node),
            3 => Followed::Home,
            4 => Followed::Domains { ended: rng.bool(), each: rng.bool() },
            _ => Followed::Directory(directory),
        };
        Self { from: if rng.bool() { 0 } else { rng.u64(0..STORM) }, followed }
    }

    /// What it watches.
    pub(super) fn watched(&self) -> Path {
        match &self.followed {
            Followed::Directory(directory) => shared(*directory),
            Followed::Node(directory, node) | Followed::NodeAlone(directory, node) => {
                shared_node(*directory, *node)
            }
            Followed::Home => home(),
            Followed::Domains { ended, .. } => domains(*ended),
            Followed::Crowd(path) => path.clone(),
        }
    }

    /// How deep it watches.
    pub(super) fn depth(&self) -> Option<u32> {
        match self.followed {
            Followed::NodeAlone(..) => Some(0),
            Followed::Domains { each: true, .. } => Some(1),
            _ => None,
        }
    }

    /// The nodes it keeps in mind.
    pub(super) fn nodes(&self) -> Vec<Path> {
        let watched = [self.watched()].into_iter();
        match self.followed {
            Followed::Directory(directory) => {
                watched.chain((0..NODES).map(|node| shared_node(directory, node))).collect()
            }
            Followed::Home => watched.chain((0..NODES).map(home_node)).collect(),
            Followed::Domains { ended, .. } => vec![domains_node(ended)],
            _ => watched.collect(),
        }
    }
}

/// What somebody else does, with a connection of its own.
#[derive(Clone, Debug)]
pub(super) enum Deed {
    Write(usize, usize),
    /// A shared directory, with all below.
    Remove(usize),
    WriteHome(usize),
    RemoveHome,
    /// A domain begins and ends.
    Domain,
    /// One of the crowd.
    WriteCrowd(Path),
    /// All of the crowd.
    RemoveCrowd(Path),
    /// Many nodes that are not of the crowd, but beside it: nobody wants to hear of them.
    WriteBeside(Path),
}

/// When somebody else does what.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// Milliseconds since the beginning.
    pub(super) at: u64,
    pub(super) deed: Deed,
}

/// All of it.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    pub(super) seed: u64,
    pub(super) settings: Settings,
    pub(super) faults: Vec<Fault>,
    pub(super) workers: Vec<Worker>,
    pub(super) followers: Vec<Follower>,
    pub(super) changes: Vec<Change>,
    /// When others write the flags, in milliseconds.
    pub(super) flags: [u64; FLAGS],
}

/// How many flags there are.
const FLAGS: usize = 2;

/// How many nodes are watched where many are: more than the client has to have watches before it
/// looks what they have in common.
pub(super) const CROWD: usize = 300;

impl Schedule {
    /// The schedule of a seed.
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let settings = Settings::new(&mut rng);
        Self::of(seed, settings, &mut rng)
    }

    /// One whose time is real, for a client that makes no lost connection again.
    pub(super) fn in_real_time(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut settings = Settings::new(&mut rng);
        settings.config.reconnect = None;
        settings.latency = settings.latency.min(2);
        if settings.config.window == 64 {
            // More than a small socket takes at once.
            settings.config.window = 1024;
        }
        let mut schedule = Self::of(seed, settings, &mut rng);
        // Without one, who is not woken waits for ever.
        let deadline = &mut schedule.settings.config.deadline;
        if *deadline > Duration::from_secs(1) {
            *deadline = FOREVER;
        }
        schedule
    }

    fn of(seed: u64, mut settings: Settings, rng: &mut Rng) -> Self {
        let again = settings.config.reconnect.is_some();
        let mut faults: Vec<Fault> = (0..rng.usize(0..7)).map(|_| Fault::survived(rng)).collect();
        // Without reconnection, nothing happens to a client whose connection has ended.
        let endings = rng.usize(0..if again { 4 } else { 2 });
        faults.extend((0..endings).map(|_| Fault::ending(rng, again)));
        if again && rng.u8(0..5) == 0 {
            settings.way = Some(rng.usize(0..2));
            faults.push(Fault::refusing(rng));
        }
        let workers = (0..rng.usize(2..8))
            .map(|number| Worker { number, steps: (0..rng.usize(3..14)).map(|_| Step::new(rng)).collect() });
        let mut workers: Vec<_> = workers.collect();
        let mut followers: Vec<_> = (0..rng.usize(1..4)).map(|_| Follower::new(rng)).collect();
        if again {
            Self::meet_losses(rng, &mut faults, &mut workers, &followers);
        }
        let mut changes: Vec<_> = (0..rng.usize(5..25)).map(|_| Change::new(rng)).collect();
        if rng.u8(0..20) == 0 {
            // A guest may not have as many watches. And all of them have to be served in time.
            settings.guest = false;
            settings.config.window = 64;
            settings.way = None;
            settings.config.deadline = Duration::from_secs(10);
            let from = rng.u64(0..STORM / 2);
            let crowds = path(if rng.bool() { "/w/m" } else { "m" });
            followers.extend((0..CROWD).map(|node| {
                let followed = Followed::Crowd(crowd(&crowds, node));
                Follower { from, followed }
            }));
            changes.extend((0..rng.usize(5..200)).map(|_| {
                let deed = match rng.u8(0..80) {
                    0 => Deed::RemoveCrowd(crowds.clone()),
                    1 => Deed::WriteBeside(crowds.clone()),
                    _ => Deed::WriteCrowd(crowd(&crowds, rng.usize(0..CROWD))),
                };
                Change { at: rng.u64(0..STORM), deed }
            }));
            if rng.u8(0..5) > 0 {
                faults.push(Fault::gathering(rng, &crowds));
                // What is removed has to have been there.
                changes.extend((0..rng.usize(1..CROWD)).map(|node| Change {
                    at: rng.u64(0..=from),
                    deed: Deed::WriteCrowd(crowd(&crowds, node)),
                }));
            }
        }
        faults.sort_by_key(|fault| fault.at);
        changes.sort_by_key(|change| change.at);
        let flags = [(); FLAGS].map(|()| rng.u64(0..STORM));
        Self { seed, settings, faults, workers, followers, changes, flags }
    }

    /// Whether so many nodes are watched that the client may watch what is above them.
    pub(super) fn has_crowd(&self) -> bool {
        self.followers.iter().any(|follower| matches!(follower.followed, Followed::Crowd(_)))
    }
}

impl Settings {
    fn new(rng: &mut Rng) -> Self {
        let ms = Duration::from_millis;
        let deadline = ms(*pick(rng, &[50, 200, 1000, 10_000]));
        let attempts = *pick(rng, &[2, 8, 64]);
        let retry = Retry { attempts, first_pause: ms(1), max_pause: ms(20), ..Retry::default() };
        let config = Config {
            deadline,
            window: *pick(rng, &[1, 2, 8, 64]),
            watch_backlog: *pick(rng, &[1, 4, 64, 1024]),
            transactions: *pick(rng, &[1, 2, 8]),
            retry,
            reconnect: rng.bool().then(|| Reconnect {
                within: ms(*pick(rng, &[50, 400, 60_000])),
                first_pause: ms(*pick(rng, &[1, 10])),
                retry_reads: rng.bool(),
                ..Reconnect::default()
            }),
            ..Config::default()
        };
        Self {
            guest: rng.bool(),
            pipe: *pick(rng, &[7, 64, 1024, 4096, 65536, 65536]),
            // The longer, the more is under way when a connection ends.
            latency: rng.u64(0..3) * if deadline >= ms(1000) && rng.bool() { 10 } else { 1 },
            way: None,
            config,
        }
    }
}

impl Step {
    fn new(rng: &mut Rng) -> Self {
        let act = match rng.u8(0..35) {
            0..3 => Act::Write(rng.usize(0..NODES)),
            3..5 => Act::Read(rng.usize(0..NODES)),
            5 | 31 | 32 => Act::Remove(rng.usize(0..NODES)),
            6..8 => Act::List,
            8..10 => {
                let most = *pick(rng, &[12, 12, 12, 80]);
                Act::Batch((0..rng.usize(1..most)).map(|_| rng.usize(0..NODES)).collect())
            }
            10..12 => Act::Burst(*pick(rng, &[2, 5, 30, 100])),
            12..14 => Act::WriteShared(rng.usize(0..SHARED), rng.usize(0..NODES)),
            14 => Act::ReadTree(rng.usize(0..SHARED)),
            15..20 => {
                let body = match rng.u8(0..7) {
                    0 => Body::Fail,
                    1 => Body::Slow(rng.u64(1..40)),
                    2 => Body::Keep { fails: rng.u8(0..3) > 0 },
                    3 => Body::GiveUp,
                    _ => Body::Commit,
                };
                Act::Transaction((0..rng.usize(0..3)).map(|_| rng.usize(0..NODES)).collect(), body)
            }
            20..23 => Act::Watch(rng.usize(0..SHARED)),
            23..25 => Act::Drain(rng.u64(0..30)),
            25 => Act::Unwatch,
            26 => Act::WaitFor(rng.usize(0..FLAGS)),
            27 => Act::Oversized,
            28 => Act::Mkdir(rng.usize(0..NODES)),
            29 | 30 => Act::SetPerms(rng.usize(0..NODES)),
            _ => Act::Clone(rng.usize(0..NODES)),
        };
        let give_up = match rng.u8(0..8) {
            0 => Some(GiveUp::Polls(rng.u32(0..4))),
            1 => {
                let most = *pick(rng, &[10, 40, 500]);
                Some(GiveUp::After(rng.u64(0..most)))
            }
            _ => None,
        };
        let pause = if rng.bool() { 0 } else { rng.u64(0..150) };
        Self { pause, act, give_up }
    }
}

impl Change {
    fn new(rng: &mut Rng) -> Self {
        let directory = rng.usize(0..SHARED);
        let deed = match rng.u8(0..12) {
            0 => Deed::Remove(directory),
            1 | 2 => Deed::WriteHome(rng.usize(0..NODES)),
            3 if rng.bool() => Deed::RemoveHome,
            4 => Deed::Domain,
            _ => Deed::Write(directory, rng.usize(0..NODES)),
        };
        Self { at: rng.u64(0..STORM), deed }
    }
}
