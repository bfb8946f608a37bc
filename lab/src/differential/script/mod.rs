//! Makes sequences that often hit something: few names, few tokens, transactions that are open,
//! quotas that are nearly used up.
//!
//! A sequence is known by its seed. What is likely in it is decided by the seed too, so that some
//! sequences are about domains, some about quotas, and some do without transactions.
//!
//! Left out is what 4.17 and 4.22 answer differently, and what has no answer that can be relied
//! on:
//!
//! - malformed single strings end 4.17, or are answered by chance;
//! - SET_PERMS of special paths that is to be refused: 4.17 has no error for it, and may end;
//! - a guest as the owner of a special path: when it ends, each version has its own defaults;
//! - GET_PERMS of special paths, a depth of WATCH, requests of 4.21 and later: not in 4.17;
//! - GET_DOMAIN_PATH and requests of the toolstack with junk for a domain: 4.17 reads them leniently;
//! - an unterminated tail of DIRECTORY_PART: the store refuses it;
//! - special paths with characters that a path may not have: 4.17 takes them;
//! - paths of sockets over 2048 bytes: 4.17 holds everybody to the quota;
//! - introducing domain 0: the store has no ring for its own domain;
//! - the end of a domain that is the target of another, or its own: 4.17 keeps it, or ends as well.

mod words;

use bytes::Bytes;
use fastrand::Rng;
use xs_proto::{DomId, Op, TxId};

use super::step::{Answer, Ask, CONNS, Deed, GUESTS, SOCKETS, Step};

/// What a step may be about.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Directory,
    DirectoryPart,
    GetPerms,
    Write,
    Mkdir,
    Rm,
    SetPerms,
    Watch,
    Unwatch,
    ResetWatches,
    Start,
    End,
    SpecialWatch,
    SpecialPerms,
    Introduce,
    Release,
    Domain,
    DomainQuestion,
    SetTarget,
    BadTransaction,
    Malformed,
    UnknownOp,
    LargeValue,
    LongPath,
    ManyChildren,
    Batch,
    Quota,
    Control,
    Reconnect,
}

/// How likely each is.
const KINDS: [(Kind, u32); 30] = [
    (Kind::Read, 40),
    (Kind::Directory, 40),
    (Kind::DirectoryPart, 15),
    (Kind::GetPerms, 20),
    (Kind::Write, 80),
    (Kind::Mkdir, 40),
    (Kind::Rm, 40),
    (Kind::SetPerms, 40),
    (Kind::Watch, 40),
    (Kind::Unwatch, 15),
    (Kind::ResetWatches, 4),
    (Kind::Start, 15),
    (Kind::End, 60),
    (Kind::SpecialWatch, 10),
    (Kind::SpecialPerms, 6),
    (Kind::Introduce, 8),
    (Kind::Release, 5),
    (Kind::Domain, 12),
    (Kind::DomainQuestion, 6),
    (Kind::SetTarget, 4),
    (Kind::BadTransaction, 6),
    (Kind::Malformed, 20),
    (Kind::UnknownOp, 3),
    (Kind::LargeValue, 8),
    (Kind::LongPath, 8),
    (Kind::ManyChildren, 5),
    (Kind::Batch, 20),
    (Kind::Quota, 6),
    (Kind::Control, 4),
    (Kind::Reconnect, 4),
];

const TOKENS: [&str; 4] = ["t", "t", "u", ""];

pub(super) struct Script {
    rng: Rng,
    weights: [u32; KINDS.len()],
    /// The paths that most requests are about.
    paths: Vec<String>,
    /// The connection that half of them are of.
    favourite: usize,
    open: [Vec<TxId>; CONNS],
    /// Watches that were asked for, as they were.
    watches: Vec<(usize, String)>,
    present: [bool; CONNS],
    /// Domain 7 has the rights of domain 8.
    targeted: bool,
    /// Steps to come before others, the last first.
    ahead: Vec<Step>,
}

impl Script {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let weights = KINDS.map(|(_, weight)| weight * [0, 1, 1, 2, 5][rng.usize(0..5)]);
        let (paths, watches, ahead, open) = Default::default();
        let (present, favourite) = ([true; CONNS], rng.usize(0..CONNS));
        let mut script =
            Self { rng, weights, paths, favourite, open, watches, present, targeted: false, ahead };
        script.paths = (0..script.rng.usize(2..8)).map(|_| script.any_path()).collect();
        if script.rng.u8(0..4) > 0 {
            // Something that guests may change.
            let list = format!("/t\0{}0\0", script.pick(&["b", "b", "r", "w"]));
            let asks = vec![Ask::new(Op::MKDIR, "/t\0"), Ask::new(Op::SET_PERMS, list)];
            script.ahead.push(Step::Send { conn: 0, asks });
        }
        if script.rng.u8(0..3) == 0 {
            let quota = script.quota();
            script.ahead.push(Step::Send { conn: 0, asks: vec![quota] });
        }
        script
    }

    /// The next step; these connections are there.
    pub(super) fn next(&mut self, present: [bool; CONNS]) -> Step {
        self.present = present;
        for (open, present) in self.open.iter_mut().zip(present) {
            if !present {
                open.clear();
            }
        }
        if let Some(step) = self.ahead.pop() {
            return step;
        }
        let mut at = self.rng.u32(0..self.weights.iter().sum::<u32>().max(1));
        let kind = KINDS.iter().zip(self.weights).find(|(_, weight)| {
            let found = at < *weight;
            at = at.saturating_sub(*weight);
            found
        });
        let kind = kind.map_or(Kind::Write, |((kind, _), _)| *kind);
        self.step(kind)
    }

    fn step(&mut self, kind: Kind) -> Step {
        match kind {
            Kind::Domain => self.domain(),
            Kind::Introduce => {
                let guest = *self.pick(&GUESTS);
                if self.rng.bool() {
                    self.home(guest);
                }
                let more = *self.pick(&["", "", "", "x\0", "tail"]);
                self.admin(Op::INTRODUCE, format!("{guest}\01\05\0{more}"))
            }
            Kind::Release => {
                let guest = self.ending();
                self.admin(Op::RELEASE, format!("{guest}\0"))
            }
            Kind::SetTarget => {
                self.targeted = true;
                let payload = *self.pick(&["7\08\0", "7\08\0", "7\x008\0x\0", "11\x007\0", "7\0"]);
                self.admin(Op::SET_TARGET, payload)
            }
            Kind::SpecialPerms => {
                let special = *self.pick(&["@introduceDomain", "@releaseDomain", "@releaseDomain"]);
                let ask = Ask::new(Op::SET_PERMS, format!("{special}\0{}", self.list_of("0")));
                Step::Send { conn: self.rng.usize(0..SOCKETS), asks: vec![ask] }
            }
            Kind::Quota => {
                let Ask { op, payload, .. } = self.quota();
                self.admin(op, payload)
            }
            Kind::Control => self.control(),
            Kind::ManyChildren => self.many_children(),
            Kind::Reconnect => {
                let conn = self.rng.usize(0..SOCKETS);
                self.open[conn].clear();
                Step::Reconnect(conn)
            }
            Kind::Batch => {
                let conn = self.conn();
                let asks = (0..self.rng.usize(2..8)).map(|_| self.simple(conn)).collect();
                Step::Send { conn, asks }
            }
            _ => {
                let conn = self.conn();
                Step::Send { conn, asks: vec![self.ask(conn, kind)] }
            }
        }
    }

    /// A request that is safe in a batch, whatever comes before it.
    fn simple(&mut self, conn: usize) -> Ask {
        const KINDS: [Kind; 14] = [
            Kind::Read,
            Kind::Directory,
            Kind::GetPerms,
            Kind::Write,
            Kind::Write,
            Kind::Write,
            Kind::Mkdir,
            Kind::Rm,
            Kind::SetPerms,
            Kind::Watch,
            Kind::Unwatch,
            Kind::End,
            Kind::ResetWatches,
            Kind::BadTransaction,
        ];
        let kind = *self.pick(&KINDS);
        self.ask(conn, kind)
    }

    fn ask(&mut self, conn: usize, kind: Kind) -> Ask {
        let tx = match &self.open[conn][..] {
            open if !open.is_empty() && self.rng.u8(0..3) > 0 => open[self.rng.usize(0..open.len())],
            _ => TxId::NONE,
        };
        let path = self.path();
        let token = *self.pick(&TOKENS);
        let within = |op, payload: String| Ask { op, tx, payload: payload.into() };
        match kind {
            Kind::Directory => within(Op::DIRECTORY, format!("{path}\0")),
            Kind::DirectoryPart => {
                const OFFSETS: [&str; 12] =
                    ["0", "0", "1", "2", "100", "1050", "3000", "-1", " +2", "x", "", "99999999999"];
                let path = if self.rng.bool() { "/t".to_owned() } else { path };
                let offset = *self.pick(&OFFSETS);
                within(Op::DIRECTORY_PART, format!("{path}\0{offset}\0"))
            }
            Kind::GetPerms => within(Op::GET_PERMS, format!("{path}\0")),
            Kind::Write => within(Op::WRITE, format!("{path}\0{}", self.rng.u8(0..3))),
            Kind::Mkdir => within(Op::MKDIR, format!("{path}\0")),
            Kind::Rm => within(Op::RM, format!("{path}\0")),
            Kind::SetPerms => {
                // If a guest owned the root, all would go with it.
                let path = if path == "/" { "/t" } else { &path };
                within(Op::SET_PERMS, format!("{path}\0{}", self.list(conn)))
            }
            Kind::Watch => {
                let watch = format!("{path}\0{token}\0");
                self.watches.push((conn, watch.clone()));
                within(Op::WATCH, watch)
            }
            Kind::Unwatch => {
                let known = self.watches.iter().filter(|(of, _)| *of == conn).map(|(_, watch)| watch);
                let known: Vec<_> = known.cloned().collect();
                match self.rng.choice(known) {
                    Some(watch) if self.rng.u8(0..4) > 0 => {
                        within(Op::UNWATCH, self.other_spelling(conn, watch))
                    }
                    _ => within(Op::UNWATCH, format!("{path}\0{token}\0")),
                }
            }
            Kind::ResetWatches => Ask { tx, ..Ask::new(Op::RESET_WATCHES, *self.pick(&["\0", "", "x"])) },
            Kind::Start => {
                let tx = if self.rng.u8(0..10) == 0 { tx } else { TxId::NONE };
                Ask { tx, ..Ask::new(Op::TRANSACTION_START, *self.pick(&["\0", "\0", "", "x"])) }
            }
            // As a rule there is one to end.
            Kind::End if tx == TxId::NONE && self.rng.u8(0..10) > 0 => Ask::new(Op::TRANSACTION_START, "\0"),
            Kind::End => {
                Ask { tx, ..Ask::new(Op::TRANSACTION_END, *self.pick(&["T\0", "T\0", "T\0", "F\0"])) }
            }
            Kind::SpecialWatch => {
                let special = *self.pick(&["@introduceDomain", "@releaseDomain", "@releaseDomain", "@other"]);
                let op = *self.pick(&[Op::WATCH, Op::WATCH, Op::WATCH, Op::UNWATCH]);
                Ask::new(op, format!("{special}\0{token}\0"))
            }
            Kind::DomainQuestion => {
                let domid = *self.pick(&["0", "7", "8", "9", "11", "32752"]);
                let op = *self.pick(&[Op::GET_DOMAIN_PATH, Op::IS_DOMAIN_INTRODUCED, Op::RESUME]);
                within(op, format!("{domid}\0"))
            }
            Kind::BadTransaction => {
                let op = *self.pick(&[
                    Op::READ,
                    Op::WRITE,
                    Op::TRANSACTION_END,
                    Op::TRANSACTION_START,
                    Op::WATCH,
                    Op::UNWATCH,
                    Op::RESET_WATCHES,
                    Op::GET_DOMAIN_PATH,
                    Op::INTRODUCE,
                    Op(20),
                ]);
                let payload = match op {
                    Op::TRANSACTION_END => "T\0".to_owned(),
                    Op::GET_DOMAIN_PATH => "7\0".to_owned(),
                    Op::WATCH | Op::UNWATCH => format!("{path}\0{token}\0"),
                    _ => format!("{path}\0"),
                };
                Ask { op, tx: TxId(*self.pick(&[77, 0x8000_0000, u32::MAX])), payload: payload.into() }
            }
            Kind::Malformed => Ask { tx, ..self.malformed(path) },
            Kind::UnknownOp => {
                let op = Op(*self.pick(&[15, 16, 20, 27, 100, 65535, u32::MAX]));
                within(op, format!("{path}\0"))
            }
            Kind::LargeValue => {
                // Of the largest message, and around the quota for a node.
                let sizes = [0, 100, 1000, 1990, 1998, 2006, 2007, 2014, 2015, 2016, 2500, 4096];
                let room = 4096 - path.len() - 1;
                let size = room.min(*self.pick(&sizes));
                within(Op::WRITE, format!("{path}\0{}", "v".repeat(size)))
            }
            Kind::LongPath => {
                let path = self.long_path(conn);
                let op = *self.pick(&[
                    Op::READ,
                    Op::WRITE,
                    Op::MKDIR,
                    Op::RM,
                    Op::WATCH,
                    Op::UNWATCH,
                    Op::DIRECTORY,
                ]);
                match op {
                    Op::WATCH | Op::UNWATCH => within(op, format!("{path}\0{token}\0")),
                    _ => within(op, format!("{path}\0")),
                }
            }
            _ => within(Op::READ, format!("{path}\0")),
        }
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.rng.usize(0..from.len())]
    }

    /// A connection that is there.
    fn conn(&mut self) -> usize {
        if self.present[self.favourite] && self.rng.bool() {
            return self.favourite;
        }
        loop {
            let conn = self.rng.usize(0..CONNS);
            if self.present[conn] {
                return conn;
            }
        }
    }

    /// A request of a privileged connection.
    fn admin(&mut self, op: Op, payload: impl Into<Bytes>) -> Step {
        // Now and then of one that may not.
        let conn = if self.rng.u8(0..12) == 0 { self.conn() } else { self.rng.usize(0..SOCKETS) };
        Step::Send { conn, asks: vec![Ask::new(op, payload)] }
    }

    fn control(&mut self) -> Step {
        const COMMANDS: [&str; 21] = [
            "check\0",
            "check\0x\0",
            "check",
            "help\0",
            "help\0x\0",
            "print\0",
            "print\0hello\0",
            "quota\0",
            "quota\x0011\0",
            "quota\0set\0",
            "quota\0set\0nodes\0",
            "quota\0set\0nodes\0x\0",
            "quota\0set\0nodes\0-1\0",
            "quota\0set\0none\x005\0",
            "quota-soft\0",
            "quota-soft\0set\0memory\x002000000\0",
            "quota-soft\0set\0nodes\x0010\0",
            "log\0",
            "log\0\0",
            "unknown\0",
            "",
        ];
        let command = *self.pick(&COMMANDS);
        self.admin(Op::CONTROL, command)
    }

    /// So many children that a listing does not fit into one message. All names have one length, so
    /// that a part ends in the same place whatever the length of the generation in front.
    fn many_children(&mut self) -> Step {
        let conn = self.conn();
        let top = if conn < SOCKETS { *self.pick(&["/t", "/t/a"]) } else { *self.pick(&["x", "a"]) };
        let first = self.rng.usize(0..10);
        let count = if conn < SOCKETS { self.rng.usize(35..55) } else { 12 };
        let asks = (first..first + count)
            .map(|number| Ask::new(Op::MKDIR, format!("{top}/{number:02}{}\0", "n".repeat(97))));
        self.ahead.push(Step::Send {
            conn,
            asks: vec![
                Ask::new(Op::DIRECTORY, format!("{top}\0")),
                Ask::new(Op::DIRECTORY_PART, format!("{top}\0000\0")),
            ],
        });
        Step::Send { conn, asks: asks.collect() }
    }

    fn domain(&mut self) -> Step {
        let guest = *self.pick(&GUESTS);
        match self.rng.u8(0..8) {
            0 => Step::Domain(Deed::Crash, guest),
            1 | 2 => Step::Domain(Deed::ShutDown, guest),
            3..6 => {
                let guest = self.ending();
                Step::Domain(Deed::Destroy, guest)
            }
            _ => {
                self.home(guest);
                let introduce = Ask::new(Op::INTRODUCE, format!("{guest}\01\05\0"));
                self.ahead.push(Step::Send { conn: 0, asks: vec![introduce] });
                Step::Domain(Deed::Create, guest)
            }
        }
    }

    /// A domain that may end.
    fn ending(&mut self) -> DomId {
        loop {
            let guest = *self.pick(&GUESTS);
            if !self.targeted || guest != DomId(8) {
                return guest;
            }
        }
    }

    /// Gives a domain its home, after the next step.
    fn home(&mut self, guest: DomId) {
        let home = format!("/local/domain/{guest}\0");
        let asks =
            vec![Ask::new(Op::MKDIR, home.clone()), Ask::new(Op::SET_PERMS, format!("{home}n{guest}\0"))];
        self.ahead.push(Step::Send { conn: 0, asks });
    }

    /// Learns which transactions are open.
    pub(super) fn note(&mut self, step: &Step, answer: &Answer) {
        let Step::Send { conn, asks } = step else {
            if matches!(step, Step::Domain(Deed::Create, _)) {
                // All of them are ended before.
                self.open.iter_mut().for_each(Vec::clear);
            }
            return;
        };
        let replies =
            answer.received.iter().filter(|(at, message)| at == conn && message.op != Op::WATCH_EVENT);
        for (ask, (_, reply)) in asks.iter().zip(replies) {
            match reply.op {
                Op::TRANSACTION_START => {
                    let number = str::from_utf8(&reply.payload).unwrap_or_default().trim_end_matches('\0');
                    self.open[*conn].extend(number.parse().ok().map(TxId));
                }
                Op::TRANSACTION_END => self.open[*conn].retain(|tx| *tx != ask.tx),
                Op::RESET_WATCHES => self.open[*conn].clear(),
                Op::INTRODUCE => {
                    if let Some(guest) = ask.domid().and_then(super::step::conn_of) {
                        self.open[guest].clear();
                    }
                }
                _ => {}
            }
        }
    }
}
