//! A guest's arsenal, and a local user's. Whoever attacks is a culprit; whoever sleeps is not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use xs_proto::{DomId, Op, TxId};

use super::host::{Host, done, home, is_alive, pipelined};
use crate::conformance::line::Conn;

/// The first culprit. Others follow it.
pub(super) const CULPRIT: DomId = DomId(1);

/// The guest whose connection is not read while the attack goes on.
pub(super) const SLEEPER: DomId = DomId(90);

/// How often a transaction of domain 0 may fail, one time after the other.
const MOST_FAILURES: usize = 20;

/// The longest name of a node, but for what stands before it.
const LONG: usize = 1900;

/// What is done to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attack {
    Watches,
    Events,
    SocketEvents,
    Pipeline,
    UnreadRing,
    Transactions,
    Views,
    Missing,
    WideAndDeep,
    Permissions,
    Recreated,
    Conflicts,
}

impl Attack {
    pub(super) const ALL: [Self; 12] = [
        Self::Watches,
        Self::Events,
        Self::SocketEvents,
        Self::Pipeline,
        Self::UnreadRing,
        Self::Transactions,
        Self::Views,
        Self::Missing,
        Self::WideAndDeep,
        Self::Permissions,
        Self::Recreated,
        Self::Conflicts,
    ];

    /// In a few words.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Watches => "20 guests with 120 watches of / each",
            Self::Events => "nodes of long names come and go; a guest that watches them sleeps",
            Self::SocketEvents => "the same; a tool of domain 0 that watches them sleeps",
            Self::Pipeline => "a local user reads without a pause, 200 requests at a time",
            Self::UnreadRing => "a guest asks and never reads an answer",
            Self::Transactions => "9 transactions full of nodes that are never ended",
            Self::Views => "9 transactions that hold views of values that another guest rewrites",
            Self::Missing => "9 transactions that look at nodes that are not there",
            Self::WideAndDeep => "wide and deep trees, made, listed and removed",
            Self::Permissions => "permissions of a node set again and again",
            Self::Conflicts => "a guest writes without a pause what a transaction of domain 0 reads",
            Self::Recreated => "a domain that ends and begins again and again",
        }
    }

    /// How many guests are culprits, so many times their quota of memory may be used.
    pub(super) fn culprits(self) -> u32 {
        match self {
            Self::Watches => 20,
            Self::Views => 2,
            Self::Pipeline => 0,
            _ => 1,
        }
    }

    /// Attacks until it is over. An error is the server's answer to it, such as a connection that it closed.
    /// Says who was cut off without having done anything.
    pub(super) async fn run(self, host: &Host, over: &AtomicBool) -> Result<Option<&'static str>> {
        let mut culprit = host.ring(CULPRIT)?;
        let home = home(CULPRIT);
        match self {
            Self::Watches => watches(host, over).await?,
            Self::Events => {
                let mut sleeper = host.ring(SLEEPER)?;
                watch(&mut sleeper, &home).await?;
                come_and_go(&mut culprit, over).await;
                if !is_alive(&mut sleeper).await {
                    return Ok(Some("a guest that slept"));
                }
            }
            Self::SocketEvents => {
                let mut sleeper = host.connect().await?;
                watch(&mut sleeper, &home).await?;
                come_and_go(&mut culprit, over).await;
                if !is_alive(&mut sleeper).await {
                    return Ok(Some("a tool of domain 0 that slept"));
                }
            }
            Self::Pipeline => pipeline(&mut host.connect().await?, over).await?,
            Self::UnreadRing => unread(&mut culprit, over).await,
            Self::Transactions => transactions(&mut culprit, over, Fill::Nodes).await?,
            Self::Views => {
                let mut other = host.ring(DomId(CULPRIT.0 + 1))?;
                transactions(&mut culprit, over, Fill::Views(&mut other)).await?;
            }
            Self::Missing => transactions(&mut culprit, over, Fill::Missing).await?,
            Self::WideAndDeep => wide_and_deep(&mut culprit, over).await?,
            Self::Permissions => permissions(&mut culprit, over).await?,
            Self::Recreated => recreated(host, over).await?,
            Self::Conflicts => {
                let write = async {
                    while !is_over(over) {
                        if culprit.call(Op::WRITE, b"state\x004", TxId::NONE, None).await.is_err() {
                            return;
                        }
                    }
                };
                let ((), starved) = tokio::join!(write, transactions_of_domain0(host, &home, over));
                if starved? {
                    return Ok(Some("a transaction of domain 0"));
                }
            }
        }
        Ok(None)
    }
}

fn is_over(over: &AtomicBool) -> bool {
    over.load(Ordering::Relaxed)
}

async fn watch(conn: &mut Conn, path: &str) -> Result<()> {
    done(conn.call(Op::WATCH, format!("{path}\0token\0").as_bytes(), TxId::NONE, None).await?)
}

async fn watches(host: &Host, over: &AtomicBool) -> Result<()> {
    let mut guests = Vec::new();
    for guest in 0..20 {
        let mut conn = host.ring(DomId(CULPRIT.0 + guest))?;
        for token in 0..120 {
            done(conn.call(Op::WATCH, format!("/\0{token}\0").as_bytes(), TxId::NONE, None).await?)?;
        }
        guests.push(conn);
    }
    while !is_over(over) {
        for guest in &mut guests {
            guest.barrier().await?;
            guest.events.clear();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Makes and removes nodes with long names as fast as the server takes it. Being held up, or cut off, is what a
/// culprit has to expect.
async fn come_and_go(culprit: &mut Conn, over: &AtomicBool) {
    for turn in 0.. {
        let name = format!("{}{}\0", turn % 8, "n".repeat(LONG));
        for op in [Op::MKDIR, Op::RM] {
            if is_over(over) || culprit.call(op, name.as_bytes(), TxId::NONE, None).await.is_err() {
                return;
            }
        }
    }
}

async fn pipeline(conn: &mut Conn, over: &AtomicBool) -> Result<()> {
    let requests = vec![(Op::READ, b"/tool\0".to_vec()); 200];
    while !is_over(over) {
        let bytes = pipelined(conn, &requests, TxId::NONE);
        conn.write(&bytes).await?;
        for _ in 0..requests.len() {
            conn.receive().await?;
        }
    }
    Ok(())
}

async fn unread(culprit: &mut Conn, over: &AtomicBool) {
    let requests = vec![(Op::DIRECTORY, b"/\0".to_vec()); 16];
    while !is_over(over) {
        let bytes = pipelined(culprit, &requests, TxId::NONE);
        // The ring is full for ever after a while: that is all that happens.
        if tokio::time::timeout(Duration::from_millis(50), culprit.write(&bytes)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// What transactions are filled with.
enum Fill<'a> {
    /// Nodes that are written inside.
    Nodes,
    /// Values that are read inside and rewritten by somebody else outside.
    Views(&'a mut Conn),
    /// Nodes that are not there.
    Missing,
}

async fn transactions(culprit: &mut Conn, over: &AtomicBool, mut fill: Fill<'_>) -> Result<()> {
    let mut open = Vec::new();
    for _ in 0..9 {
        let started = culprit.call(Op::TRANSACTION_START, b"\0", TxId::NONE, None).await?;
        let id = std::str::from_utf8(&started.payload)?.trim_end_matches('\0').parse()?;
        open.push(TxId(id));
    }
    let value = "v".repeat(1900);
    for round in 0.. {
        for tx in &open {
            for node in 0..40 {
                if is_over(over) {
                    return Ok(());
                }
                let number = round * 40 + node;
                match &mut fill {
                    Fill::Nodes => {
                        let payload = format!("t{number}\0{value}");
                        culprit.call(Op::WRITE, payload.as_bytes(), *tx, None).await?;
                    }
                    Fill::Missing => {
                        let path = format!("{number}{}\0", "m".repeat(LONG));
                        culprit.call(Op::READ, path.as_bytes(), *tx, None).await?;
                    }
                    Fill::Views(other) => {
                        let node = number % 400;
                        let payload = format!("w{node}\0{round}{value}");
                        other.call(Op::WRITE, payload.as_bytes(), TxId::NONE, None).await?;
                        let path = format!("{}/w{node}\0", home(DomId(CULPRIT.0 + 1)));
                        culprit.call(Op::READ, path.as_bytes(), *tx, None).await?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Reads a guest's node in transactions, as toolstacks do; whether one of them fails again and again.
async fn transactions_of_domain0(host: &Host, home: &str, over: &AtomicBool) -> Result<bool> {
    let mut dom0 = host.connect().await?;
    let mut failures = 0;
    while !is_over(over) {
        let started = dom0.call(Op::TRANSACTION_START, b"\0", TxId::NONE, None).await?;
        let tx = TxId(std::str::from_utf8(&started.payload)?.trim_end_matches('\0').parse()?);
        dom0.call(Op::READ, format!("{home}/state\0").as_bytes(), tx, None).await?;
        tokio::time::sleep(Duration::from_millis(2)).await;
        let ended = dom0.call(Op::TRANSACTION_END, b"T\0", tx, None).await?;
        failures = if ended.op == Op::ERROR { failures + 1 } else { 0 };
        if failures > MOST_FAILURES {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn wide_and_deep(culprit: &mut Conn, over: &AtomicBool) -> Result<()> {
    while !is_over(over) {
        for child in 0..900 {
            culprit.call(Op::MKDIR, format!("wide/{child}\0").as_bytes(), TxId::NONE, None).await?;
        }
        for _ in 0..50 {
            culprit.call(Op::DIRECTORY_PART, b"wide\x000\0", TxId::NONE, None).await?;
        }
        culprit.call(Op::RM, b"wide\0", TxId::NONE, None).await?;
        let deep = format!("deep{}\0", "/d".repeat(800));
        culprit.call(Op::MKDIR, deep.as_bytes(), TxId::NONE, None).await?;
        culprit.call(Op::RM, b"deep\0", TxId::NONE, None).await?;
    }
    Ok(())
}

async fn permissions(culprit: &mut Conn, over: &AtomicBool) -> Result<()> {
    culprit.call(Op::MKDIR, b"p\0", TxId::NONE, None).await?;
    for turn in 0u32.. {
        if is_over(over) {
            break;
        }
        let perms = format!("p\0n{CULPRIT}\0r{}\0w{}\0b{}\0", turn % 100, turn % 7, turn % 50);
        culprit.call(Op::SET_PERMS, perms.as_bytes(), TxId::NONE, None).await?;
    }
    Ok(())
}

async fn recreated(host: &Host, over: &AtomicBool) -> Result<()> {
    let mut dom0 = host.connect().await?;
    let again = DomId(CULPRIT.0 + 50);
    while !is_over(over) {
        host.introduce(&mut dom0, again).await?;
        let mut guest = host.ring(again)?;
        watch(&mut guest, &home(again)).await?;
        guest.call(Op::MKDIR, b"x\0", TxId::NONE, None).await?;
        drop(guest);
        done(dom0.call(Op::RELEASE, format!("{again}\0").as_bytes(), TxId::NONE, None).await?)?;
        host.xen.destroy(again)?;
    }
    Ok(())
}
