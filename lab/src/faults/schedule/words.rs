//! A schedule in words.

use std::fmt;

use super::{
    CROWD, Change, Deed, Followed, Follower, GiveUp, Schedule, Settings, Step, Worker, flag, home, home_node,
    shared, shared_node,
};

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { guest, pipe, latency, way, config } = &self.settings;
        let of = if *guest { "a guest" } else { "domain 0" };
        writeln!(f, "  a client of {of}, deadline {:?}, {:?},", config.deadline, config.reconnect)?;
        writeln!(
            f,
            "  window {}, backlog {}, transactions {}, attempts {}, pipe {pipe} bytes, latency {latency} ms",
            config.window, config.watch_backlog, config.transactions, config.retry.attempts
        )?;
        if let Some(way) = way {
            writeln!(f, "  two ways, of which the {} is there at first,", ["first", "second"][*way])?;
        }
        for fault in &self.faults {
            writeln!(f, "  fault {fault}")?;
        }
        for Change { at, deed } in &self.changes {
            match deed {
                Deed::Write(directory, node) => {
                    writeln!(f, "  at {at} ms: others write {}", shared_node(*directory, *node))?;
                }
                Deed::Remove(directory) => writeln!(f, "  at {at} ms: others remove {}", shared(*directory))?,
                Deed::WriteHome(node) => writeln!(f, "  at {at} ms: others write {}", home_node(*node))?,
                Deed::RemoveHome => writeln!(f, "  at {at} ms: others remove {}", home())?,
                Deed::Domain => writeln!(f, "  at {at} ms: a domain begins and ends")?,
                Deed::WriteCrowd(path) => writeln!(f, "  at {at} ms: others write {path}")?,
                Deed::RemoveCrowd(crowds) => writeln!(f, "  at {at} ms: others remove {crowds}")?,
                Deed::WriteBeside(crowds) => {
                    writeln!(f, "  at {at} ms: others write {CROWD} nodes of nobody's in {crowds}")?;
                }
            }
        }
        for (number, at) in self.flags.iter().enumerate() {
            writeln!(f, "  at {at} ms: others write {}", flag(number))?;
        }
        let crowd = |follower: &&Follower| matches!(follower.followed, Followed::Crowd(_));
        for Follower { from, followed } in self.followers.iter().filter(|follower| !crowd(follower)) {
            writeln!(f, "  from {from} ms: {followed:?} is followed")?;
        }
        if let Some(Follower { from, .. }) = self.followers.iter().find(crowd) {
            let count = self.followers.iter().filter(crowd).count();
            writeln!(f, "  from {from} ms: {count} nodes of the crowd are followed")?;
        }
        for Worker { number, steps } in &self.workers {
            writeln!(f, "  worker {number}")?;
            for Step { pause, act, give_up } in steps {
                write!(f, "    after {pause} ms: {act:?}")?;
                match give_up {
                    None => writeln!(f)?,
                    Some(GiveUp::Polls(polls)) => writeln!(f, ", dropped after {polls} polls")?,
                    Some(GiveUp::After(ms)) => writeln!(f, ", dropped after {ms} ms")?,
                }
            }
        }
        Ok(())
    }
}
