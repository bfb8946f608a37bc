//! Single requests: how long one takes, and how many are done when many are in flight.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::Result;
use xs_proto::{Header, Op, TxId};

use super::super::figure::{Figure, percentile};
use super::super::harness::{Better, Goal, Workload};
use super::super::wire::{Batch, Transaction, Wire};
use super::{ALL, BUDGET, DEPTH, Row, Running, Server, WARM_UP, cost, one_row, row};

/// The node that is read and written. A READ of it is 16 + 35 bytes, the reply 16 + 1.
const NODE: &str = "/local/domain/1/device/vif/0/state";
const VALUE: &str = "4";

const LATENCY: &str = "µs: median / 99 of 100";

pub(super) fn workloads(xendev: &Path) -> Vec<Workload<'_, Server>> {
    let latency = |name: &str, goal| row(name, LATENCY, Better::Lower, goal);
    let rate = |name: &str| row(name, "requests/s", Better::Higher, Some(Goal::Times(10.0)));
    let sooner = Some(Goal::Times(1.3));
    vec![
        with_nobody(xendev, latency("READ, one at a time", sooner), one_at_a_time),
        one_row(xendev, latency("WRITE, one at a time", sooner), |server| {
            one_at_a_time(&mut ready(server)?, &Batch::write(NODE, VALUE))
        }),
        with_nobody(xendev, rate("READ, 64 in flight"), in_flight),
        one_row(xendev, rate("WRITE, 64 in flight"), |server| {
            in_flight(&mut ready(server)?, &Batch::write(NODE, VALUE))
        }),
        one_row(xendev, latency("READ beside 512 idle connections", None), |server| {
            let idle: Result<Vec<_>> = (0..512).map(|_| server.connect()).collect();
            let figure = one_at_a_time(&mut ready(server)?, &Batch::read(NODE));
            drop(idle?);
            figure
        }),
        one_row(xendev, latency("transaction of 8 writes", None), |server| {
            let mut wire = ready(server)?;
            let mut transaction = Transaction::new(NODE);
            latencies(|| transaction.run(&mut wire))
        }),
        one_row(xendev, latency("DIRECTORY of 1000 children", None), |server| {
            let mut wire = server.connect()?;
            let writes = (0..1000).map(|child| Batch::write(&format!("/parent/{child}"), ""));
            wire.ask_all(&Batch::in_groups(writes, DEPTH))?;
            one_at_a_time(&mut wire, &Batch::directory("/parent"))
        }),
    ]
}

/// A row of READs, which also a thread can answer that does not look at them.
fn with_nobody<'a>(
    xendev: &'a Path,
    row: Row,
    ask: fn(&mut Wire, &Batch) -> Result<Figure>,
) -> Workload<'a, Server> {
    let run = move |server: Server| {
        let read = Batch::read(NODE);
        Ok(vec![match server {
            Server::Nobody => answered_by_nobody(|wire| ask(wire, &read))?,
            server => {
                let server = server.fresh(xendev)?;
                ask(&mut ready(&server)?, &read)?
            }
        }])
    };
    Workload { rows: vec![row], columns: ALL.into(), repetitions: usize::MAX, run: Box::new(run) }
}

/// A connection, and the node is there.
fn ready(server: &Running) -> Result<Wire> {
    let mut wire = server.connect()?;
    wire.ask(&Batch::write(NODE, VALUE))?;
    Ok(wire)
}

fn one_at_a_time(wire: &mut Wire, request: &Batch) -> Result<Figure> {
    latencies(|| wire.ask(request))
}

fn in_flight(wire: &mut Wire, request: &Batch) -> Result<Figure> {
    let batch = Batch::in_groups(std::iter::repeat_n(request.clone(), DEPTH), DEPTH);
    cost(wire, &batch, WARM_UP)?;
    Ok(vec![1e6 / cost(wire, &batch, BUDGET)?])
}

/// The median and the 99th percentile.
fn latencies(mut act: impl FnMut() -> Result<()>) -> Result<Figure> {
    let begun = Instant::now();
    while begun.elapsed() < WARM_UP {
        act()?;
    }
    let mut all = Vec::new();
    let begun = Instant::now();
    let mut last = begun;
    while last - begun < BUDGET {
        act()?;
        let now = Instant::now();
        all.push((now - last).as_secs_f64() * 1e6);
        last = now;
    }
    Ok(vec![percentile(&mut all, 50), percentile(&mut all, 99)])
}

/// A thread that gives one reply for as many bytes as a READ has. A process, as servers are,
/// would need a little longer.
fn answered_by_nobody(ask: impl FnOnce(&mut Wire) -> Result<Figure>) -> Result<Figure> {
    let (near, mut far) = UnixStream::pair()?;
    let request = 16 + NODE.len() + 1;
    let mut reply = bytes::BytesMut::new();
    Header { op: Op::READ, req_id: 1, tx_id: TxId::NONE, len: 1 }.encode(&mut reply);
    reply.extend_from_slice(VALUE.as_bytes());
    let replies = reply.repeat(DEPTH);
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut buffer, mut got) = (vec![0; DEPTH * request], 0);
            while let Ok(more @ 1..) = far.read(&mut buffer) {
                got += more;
                let answer = &replies[..got / request * reply.len()];
                got %= request;
                if far.write_all(answer).is_err() {
                    return;
                }
            }
        });
        // Its end ends the thread.
        ask(&mut Wire::over(near)?)
    })
}
