//! Replaying one case.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, sleep};
use xs_proto::{DomId, Message, Op, TxId};

use super::case::{Ask, Case, Deed, Expect, Order, Step, Text, Tx};
use super::line::{Conn, Deviation, Line, PATIENCE, check_event};
use super::{Guests, Server, Target};

/// Replays a case; returns what went wrong, and in which step.
pub(super) async fn replay(case: &Case, target: &Target) -> Option<String> {
    let mut replay =
        Replay { case, target, conns: HashMap::new(), ids: HashMap::new(), firsts: HashMap::new() };
    if let Err(deviation) = replay.clean_up().await {
        return Some(format!("before the first step: {deviation}"));
    }
    let mut failure = None;
    for (number, step) in (1..).zip(&case.steps) {
        if let Err(deviation) = replay.step(step).await {
            failure = Some(format!("step {number}: {deviation}"));
            break;
        }
    }
    replay.conns.clear();
    // A server that is gone is a failure of the next case, if not of this one.
    let _ = replay.clean_up().await;
    failure
}

struct Replay<'a> {
    case: &'a Case,
    target: &'a Target,
    conns: HashMap<String, Conn>,
    /// Numbers that replies gave, by name.
    ids: HashMap<String, u32>,
    /// First strings of payloads, by name.
    firsts: HashMap<String, Bytes>,
}

impl Replay<'_> {
    async fn step(&mut self, step: &Step) -> Result<(), Deviation> {
        match step {
            Step::Request { conn, op, payload, tx, req_id, repeat, expect } => {
                for turn in 0..repeat.unwrap_or(1) {
                    let payload = numbered(payload, turn);
                    let tx = self.tx(tx)?;
                    let reply = self.conn(conn).await?.call(*op, &payload, tx, *req_id).await?;
                    self.check(&reply, expect, tx)?;
                }
            }
            Step::Pipeline { conn, pipeline, sequence } => self.pipeline(conn, pipeline, sequence).await?,
            Step::Events { conn, events, order } => {
                let conn = self.conn(conn).await?;
                conn.barrier().await?;
                let mut got: Vec<_> = std::mem::take(&mut conn.events);
                let mut expected: Vec<_> = events.iter().map(|Text(event)| event.clone()).collect();
                if *order == Order::Any {
                    got.sort();
                    expected.sort();
                }
                if got != expected {
                    let list = |events: &[Bytes]| events.iter().map(|event| show(event)).collect::<Vec<_>>();
                    let expected: Vec<_> = expected.into_iter().map(Bytes::from).collect();
                    return unexpected(format!("events {:?}, expected {:?}", list(&got), list(&expected)));
                }
            }
            Step::Raw { conn, raw, req_id, expect } => self.raw(conn, raw, *req_id, expect).await?,
            Step::Send { conn, send } => {
                let conn = self.conn(conn).await?;
                for Text(chunk) in send {
                    conn.write(chunk).await?;
                }
            }
            Step::Close { conn, .. } => {
                self.conns.remove(conn);
                self.settle().await?;
            }
            Step::RingField { conn, ring_field, value } => {
                let ring = self.conn(conn).await?.ring()?;
                let end = Instant::now() + PATIENCE;
                while ring.field(*ring_field)? != *value {
                    if Instant::now() > end {
                        let got = ring.field(*ring_field)?;
                        return unexpected(format!("ring field {ring_field} is {got}, expected {value}"));
                    }
                    sleep(Duration::from_millis(1)).await;
                }
            }
            Step::RingAdd { conn, ring_add, value } => {
                let ring = self.conn(conn).await?.ring()?;
                ring.set_field(*ring_add, ring.field(*ring_add)?.wrapping_add(*value))?;
                ring.notify()?;
            }
            Step::Hypervisor { hv, domid } => self.hypervisor(*hv, DomId(*domid)).await?,
        }
        Ok(())
    }

    async fn pipeline(&mut self, conn: &str, pipeline: &[Ask], sequence: &[Expect]) -> Result<(), Deviation> {
        let mut requests = BytesMut::new();
        let mut sent = Vec::new();
        for Ask { op, payload, tx } in pipeline {
            let tx = self.tx(tx)?;
            let id = self.conn(conn).await?.encode(*op, &payload.0, tx, None, &mut requests);
            sent.push((id, tx));
        }
        self.conn(conn).await?.write(&requests).await?;
        let mut sent = sent.into_iter();
        for expect in sequence {
            let message = self.conn(conn).await?.receive().await?;
            if message.op == Op::WATCH_EVENT || expect.op == Some(Op::WATCH_EVENT) {
                check_event(&message)?;
                self.check(&message, expect, TxId::NONE)?;
                continue;
            }
            match sent.next() {
                Some((id, tx)) if id == message.req_id => self.check(&message, expect, tx)?,
                _ => return unexpected(format!("a reply to request {} out of turn", message.req_id)),
            }
        }
        Ok(())
    }

    async fn raw(
        &mut self,
        conn: &str,
        chunks: &[Text],
        req_id: Option<u32>,
        expect: &Expect,
    ) -> Result<(), Deviation> {
        let conn = self.conn(conn).await?;
        let answer = async {
            for Text(chunk) in chunks {
                conn.write(chunk).await?;
            }
            conn.receive().await
        };
        match answer.await {
            Err(Deviation::Closed) if expect.closed => Ok(()),
            Ok(message) if expect.closed => unexpected(format!("still open, and says {}", tell(&message))),
            Ok(message) if req_id.is_some_and(|req_id| req_id != message.req_id) => {
                unexpected(format!("a reply to request {}", message.req_id))
            }
            Ok(message) => self.check(&message, expect, TxId::NONE),
            Err(deviation) => Err(deviation),
        }
    }

    fn check(&mut self, message: &Message, expect: &Expect, tx: TxId) -> Result<(), Deviation> {
        let payload = &message.payload;
        let told = tell(message);
        if expect.tx.is_none() && message.tx_id != tx {
            return unexpected(format!("{told} in transaction {}, asked in {}", message.tx_id.0, tx.0));
        }
        if let Some(error) = &expect.error {
            let fits = |name: &String| payload.strip_suffix(b"\0") == Some(name.as_bytes());
            if message.op != Op::ERROR || !error.names().iter().any(fits) {
                return unexpected(format!("{told}, expected error {}", error.names().join(" or ")));
            }
            return Ok(());
        }
        let first = || payload.split(|byte| *byte == 0).next().map(|first| payload.slice_ref(first));
        let known = |name: &Option<String>| name.as_ref().and_then(|name| self.firsts.get(name));
        let mut strings: Vec<_> = payload.split_inclusive(|byte| *byte == 0).collect();
        strings.sort();
        let with_nuls = |texts: &Vec<Text>| {
            let mut texts: Vec<_> = texts.iter().map(|text| [&text.0[..], b"\0"].concat()).collect();
            texts.sort();
            texts
        };
        let holds = [
            ("operation", expect.op.is_none_or(|op| op == message.op)),
            ("payload", expect.payload.as_ref().is_none_or(|text| text.0 == *payload)),
            ("prefix", expect.prefix.as_ref().is_none_or(|text| payload.starts_with(&text.0))),
            ("suffix", expect.suffix.as_ref().is_none_or(|text| payload.ends_with(&text.0))),
            ("content", expect.contains.as_ref().is_none_or(|text| contains(payload, &text.0))),
            ("length", expect.len.is_none_or(|len| len == payload.len())),
            ("strings", expect.strings_any_order.as_ref().is_none_or(|texts| with_nuls(texts) == strings)),
            ("first string", expect.same_first.is_none() || first().as_ref() == known(&expect.same_first)),
            (
                "change of the first string",
                expect.differs_first.is_none()
                    || known(&expect.differs_first).is_some_and(|known| first().as_ref() != Some(known)),
            ),
        ];
        if let Some((what, _)) = holds.into_iter().find(|(_, holds)| !holds) {
            return unexpected(format!("{told}: not the expected {what}"));
        }
        if let Some(name) = &expect.bind {
            let digits = payload.strip_suffix(b"\0").and_then(|digits| std::str::from_utf8(digits).ok());
            let Some(number) = digits.and_then(|digits| digits.parse().ok()) else {
                return unexpected(format!("{told}: not a decimal number"));
            };
            self.ids.insert(name.clone(), number);
        }
        if let (Some(name), Some(first)) = (&expect.bind_first, first()) {
            self.firsts.insert(name.clone(), first);
        }
        Ok(())
    }

    /// The connection of this name, which is opened if it is not there yet.
    async fn conn(&mut self, name: &str) -> Result<&mut Conn, Deviation> {
        if !self.conns.contains_key(name) {
            let line = match (self.case.conns.get(name), &self.target.guests) {
                (None, _) => self.target.server.connect().await?,
                (Some(guest), Guests::Rings(xen)) => Line::to_ring(xen, DomId(guest.domid))?,
                (Some(guest), Guests::Embedded(store)) => {
                    Line::Stream(Box::new(store.connect(DomId(guest.domid))))
                }
                (Some(_), Guests::None) => return unexpected("there are no guests here".into()),
            };
            self.conns.insert(name.to_owned(), Conn::new(line));
        }
        self.conns.get_mut(name).ok_or(Deviation::Closed)
    }

    fn tx(&self, tx: &Tx) -> Result<TxId, Deviation> {
        match tx {
            Tx::Number(number) => Ok(TxId(*number)),
            Tx::Name(name) => match self.ids.get(name.trim_start_matches('$')) {
                Some(number) => Ok(TxId(*number)),
                None => unexpected(format!("no transaction is called {name}")),
            },
        }
    }

    async fn hypervisor(&mut self, deed: Deed, domid: DomId) -> Result<(), Deviation> {
        match (&self.target.guests, deed) {
            (Guests::None, _) => return unexpected("there is no hypervisor here".into()),
            (Guests::Rings(xen), Deed::Create) => xen.create(domid)?,
            (Guests::Rings(xen), Deed::Shutdown) => xen.shut_down(domid)?,
            (Guests::Rings(xen), Deed::Destroy) => xen.destroy(domid)?,
            // The embedded store has no hypervisor: its domains begin with INTRODUCE.
            (Guests::Embedded(_), Deed::Create) => {}
            (Guests::Embedded(store), Deed::Shutdown) => store.shut_down(domid),
            (Guests::Embedded(store), Deed::Destroy) => store.release(domid),
        }
        if deed == Deed::Create { Ok(()) } else { self.settle().await }
    }

    /// Waits until the server has noticed what happened outside its connections. There is no
    /// reply to that; but a daemon looks at everything in each turn of its loop, so with the
    /// second of two requests answered the turn of the first is over.
    async fn settle(&self) -> Result<(), Deviation> {
        let mut other = Conn::new(self.target.server.connect().await?);
        other.barrier().await?;
        other.barrier().await
    }

    /// Removes what the case, or an earlier run of it, has left.
    async fn clean_up(&self) -> Result<(), Deviation> {
        let mut admin = Conn::new(self.target.server.connect().await?);
        for domid in self.case.domains() {
            admin.call(Op::RELEASE, format!("{domid}\0").as_bytes(), TxId::NONE, None).await?;
            if let Guests::Rings(xen) = &self.target.guests {
                xen.forget(domid)?;
            }
        }
        for path in &self.case.cleanup {
            admin.call(Op::RM, format!("{path}\0").as_bytes(), TxId::NONE, None).await?;
        }
        Ok(())
    }
}

impl Server {
    async fn connect(&self) -> Result<Line, Deviation> {
        match self {
            Self::Socket(path) => Ok(Line::to_socket(path).await?),
            Self::Embedded(store) => Ok(Line::Stream(Box::new(store.connect(DomId::DOM0)))),
        }
    }
}

fn unexpected<T>(text: String) -> Result<T, Deviation> {
    Err(Deviation::Unexpected(text))
}

fn numbered(Text(payload): &Text, turn: u32) -> Vec<u8> {
    let mark = b"{i}";
    match payload.windows(mark.len()).position(|window| window == mark) {
        Some(at) => [&payload[..at], turn.to_string().as_bytes(), &payload[at + mark.len()..]].concat(),
        None => payload.clone(),
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    part.is_empty() || bytes.windows(part.len()).any(|window| window == part)
}

fn tell(message: &Message) -> String {
    format!("{} {}", message.op, show(&message.payload))
}

/// Bytes for people, the first of them if there are many.
fn show(bytes: &[u8]) -> String {
    const SHOWN: usize = 80;
    let shown = bytes[..bytes.len().min(SHOWN)].escape_ascii();
    match bytes.len() {
        0..=SHOWN => format!("\"{shown}\""),
        len => format!("\"{shown}\"... ({len} bytes)"),
    }
}
