//! What the client programs in Rust have in common: their command line, their clocks, the line
//! they print, and the workloads over an asynchronous client. `lab/peers/README.md` says what
//! these are.
//!
//! It is a crate of its own with few dependencies, because programs outside of the workspace use
//! it too.

mod workloads;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::iter;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

pub use workloads::{Client, Watch, run};

/// What a program is to do: `WORKLOAD key=value...`.
#[derive(Debug)]
pub struct Task {
    /// The workload's name.
    pub workload: String,
    settings: BTreeMap<String, String>,
}

impl Task {
    /// Reads a command line, without the program's name.
    pub fn new(args: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut args = args.into_iter();
        let workload = args.next().context("no workload is named")?;
        let setting = |arg: String| {
            let (key, value) = arg.split_once('=').with_context(|| format!("{arg:?} is not key=value"))?;
            Ok((key.to_owned(), value.to_owned()))
        };
        Ok(Self { workload, settings: args.map(setting).collect::<Result<_>>()? })
    }

    /// A setting, which must be there.
    pub fn text(&self, key: &str) -> Result<&str> {
        let value = self.settings.get(key);
        value.map(String::as_str).with_context(|| format!("the workload {} needs {key}=", self.workload))
    }

    /// A setting that is a number.
    pub fn number(&self, key: &str) -> Result<usize> {
        self.text(key)?.parse().with_context(|| format!("{key}= is not a number"))
    }

    /// As many turns as `count` says.
    pub fn counted(&self) -> Result<impl Iterator + use<>> {
        Ok(0..self.number("count")?)
    }

    /// One turn after another, as long as `ms` says. Takes as long for a client that is slow.
    pub fn timed(&self) -> Result<impl Iterator + use<>> {
        let (begun, within) = (Instant::now(), Duration::from_millis(self.number("ms")? as u64));
        Ok(iter::repeat(()).take_while(move |()| begun.elapsed() < within))
    }

    /// How many READs are to be in flight, and how many make a turn.
    pub fn pipelined(&self) -> Result<(usize, usize)> {
        let depth = self.number("depth")?;
        Ok((depth, depth * 10))
    }

    /// The nodes to watch.
    pub fn watched(&self) -> Result<Vec<String>> {
        let below = self.text("below")?;
        Ok((0..self.number("nodes")?).map(|number| format!("{below}/{number}/0/state")).collect())
    }

    /// The nodes that a transaction writes.
    pub fn written(&self) -> Result<Vec<String>> {
        let below = self.text("below")?;
        Ok((0..8).map(|key| format!("{below}/key{key}")).collect())
    }
}

/// What a transaction writes to each of its nodes.
pub const VALUE: &str = "0123456789abcdef";

/// What a program has measured: names, and values in µs, KiB, s or events as the names say.
pub type Figures = Vec<(&'static str, f64)>;

/// Prints the figures as one line of JSON.
pub fn print(figures: &Figures) {
    let figures: Vec<_> = figures.iter().map(|(name, value)| format!("{name:?}: {value}")).collect();
    println!("{{{}}}", figures.join(", "));
}

/// Says that all is set up, so that the lab begins to write.
pub fn ready() {
    println!("ready");
}

/// How long each of many turns took. The first tenth warms up and does not count.
#[derive(Debug, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Adds a turn that ends now.
    pub fn add(&mut self, begun: Instant) {
        self.0.push(begun.elapsed());
    }

    /// The median and the 99th percentile of a turn.
    pub fn latencies(mut self) -> Result<Figures> {
        let counted = self.counted()?;
        counted.sort();
        let percentile = |percent: usize| counted[(counted.len() - 1) * percent / 100].as_secs_f64() * 1e6;
        Ok(vec![("median_us", percentile(50)), ("p99_us", percentile(99))])
    }

    /// How many things were done in a second, with so many in each turn.
    pub fn rate(mut self, in_each: usize) -> Result<Figures> {
        let counted = self.counted()?;
        let seconds = counted.iter().sum::<Duration>().as_secs_f64();
        Ok(vec![("per_second", (counted.len() * in_each) as f64 / seconds)])
    }

    fn counted(&mut self) -> Result<&mut [Duration]> {
        ensure!(!self.0.is_empty(), "there was no turn");
        let warm_up = self.0.len() / 10;
        Ok(&mut self.0[warm_up..])
    }
}

/// What registering watches takes, from now on.
#[derive(Debug)]
pub struct Registering {
    resident: f64,
    begun: Instant,
}

impl Registering {
    /// To be called when all is prepared and the client is warm.
    pub fn begin() -> Result<Self> {
        Ok(Self { resident: resident()?, begun: Instant::now() })
    }

    /// To be called when so many are registered and their first events were taken.
    pub fn end(self, watches: usize) -> Result<Figures> {
        let each = self.begun.elapsed().as_secs_f64() * 1e6 / watches as f64;
        Ok(vec![("us_each", each), ("kib", resident()? - self.resident)])
    }
}

/// KiB of this process's memory that are resident.
fn resident() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// A second connection, which writes to a node: its events are for the client that is measured.
#[derive(Debug)]
pub struct Writer {
    stream: UnixStream,
    request: Vec<u8>,
}

impl Writer {
    /// A writer to a node of a store.
    pub fn connect(socket: &str, node: &str) -> Result<Self> {
        let payload = [node.as_bytes(), b"\x004"].concat();
        let head = [11, 1, 0, payload.len() as u32].map(u32::to_le_bytes);
        Ok(Self { stream: UnixStream::connect(socket)?, request: [&head.concat(), &payload[..]].concat() })
    }

    /// Asks for a write, without waiting for anything.
    pub fn write(&mut self) -> Result<()> {
        Ok(self.stream.write_all(&self.request)?)
    }

    /// Takes the reply.
    pub fn finish(&mut self) -> Result<()> {
        const OK: &[u8] = b"OK\0";
        let mut reply = [0; 16 + OK.len()];
        self.stream.read_exact(&mut reply)?;
        ensure!(reply.ends_with(OK), "the write failed");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_a_workload_and_its_settings() {
        let task = |line: &str| Task::new(line.split(' ').map(str::to_owned));
        let watch = task("watch below=/a=b nodes=2").unwrap();
        assert_eq!((watch.workload.as_str(), watch.text("below").unwrap()), ("watch", "/a=b"));
        assert_eq!(watch.watched().unwrap(), ["/a=b/0/0/state", "/a=b/1/0/state"]);
        assert!(watch.number("below").is_err() && watch.number("count").is_err());
        assert!(task("watch nodes").is_err() && Task::new([]).is_err());
    }

    #[test]
    fn the_first_tenth_does_not_count() {
        let samples = || Samples([9000, 9000, 1, 2].map(Duration::from_micros).into());
        let long = || {
            Samples((0..20).map(|turn| Duration::from_micros(if turn < 2 { 9000 } else { turn })).collect())
        };
        assert_eq!(samples().rate(1).unwrap()[0].1, 4.0 / 0.018003);
        assert_eq!(long().latencies().unwrap(), [("median_us", 10.0), ("p99_us", 18.0)]);
        assert!(Samples::default().rate(1).is_err());
    }
}
