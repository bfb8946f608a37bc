//! Who works on a device, named in a way that says whether he is alive.
//!
//! A process of this host is named by its pid, the time when it started and the id of this boot: no
//! other process has all three. Pid and time count in namespaces, which are named too: from others nobody
//! can see whether the process is alive, so it is taken to be. So it is wherever something cannot be read.
//! A process of another domain is alive as long as its domain is. Within one process many operations may
//! go on, or one may have been given up, so those that are under way are entered in a list.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::{fmt, fs, process};

use xs_client::DomId;

use super::proc;
use super::record::{Record, Stage, Token};

/// A process that works on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Owner {
    /// The domain that it runs in.
    pub domid: DomId,
    /// Its process id.
    pub pid: u32,
    /// When it started, in clock ticks since the boot; 0 if that cannot be read.
    pub start: u64,
    /// Its boot, by the id that the kernel gives it; empty if that cannot be read.
    pub boot: String,
    /// The namespaces that its pid and its start count in.
    pub ns: String,
}

impl Owner {
    /// This process, in this domain.
    pub(crate) fn of_this_process(domid: DomId) -> Self {
        // Read each time: a program may fork.
        let (pid, start) = (process::id(), start_time(process::id()).unwrap_or(0));
        Self { domid, pid, start, boot: boot_id(), ns: namespaces() }
    }

    /// Reads the fields of a record; `None` if one is missing.
    pub(crate) fn parse<'a>(words: impl Iterator<Item = &'a str> + Clone) -> Option<Self> {
        let field = |name: &str| {
            let mut fields = words.clone().filter_map(|word| word.split_once('='));
            fields.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        Some(Self {
            domid: field("domid")?.parse().ok()?,
            pid: field("pid")?.parse().ok().filter(|pid| *pid != 0)?,
            start: field("start")?.parse().ok()?,
            boot: field("boot")?.to_owned(),
            ns: field("ns")?.to_owned(),
        })
    }

    /// Whether it is alive, as far as that can be seen from `me`.
    fn life(&self, me: &Self) -> Life {
        if self.domid != me.domid {
            return Life::WithDomain(self.domid);
        }
        let (known, mine) = (!self.boot.is_empty(), !me.boot.is_empty());
        if known && mine && self.boot != me.boot {
            return Life::Dead;
        }
        if !known || !mine || self.start == 0 || me.start == 0 || self.ns != me.ns {
            return Life::Unseen;
        }
        if start_time(self.pid) == Some(self.start) { Life::Alive } else { Life::Dead }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domid, pid, start, boot, ns } = self;
        write!(f, "domid={domid} pid={pid} start={start} boot={boot} ns={ns}")
    }
}

/// Whether the owner of a record still works on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Alive,
    Dead,
    /// It cannot be seen from here.
    Unseen,
    /// As long as this domain is.
    WithDomain(DomId),
}

pub(crate) fn life(record: &Record, me: &Owner) -> Life {
    let Some(owner) = record.owner.as_ref().filter(|_| record.stage != Stage::Left) else {
        return Life::Dead;
    };
    life_of((record.token, owner), me)
}

/// Whether the owner of what has this token is alive.
pub(crate) fn life_of((token, owner): (Token, &Owner), me: &Owner) -> Life {
    if owner == me {
        return if under_way().contains(&token.0) { Life::Alive } else { Life::Dead };
    }
    owner.life(me)
}

fn under_way() -> MutexGuard<'static, HashSet<u64>> {
    static UNDER_WAY: LazyLock<Mutex<HashSet<u64>>> = LazyLock::new(Mutex::default);
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An operation of this process that is under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay(Token);

impl UnderWay {
    pub(crate) fn new(token: Token) -> Self {
        under_way().insert(token.0);
        Self(token)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        under_way().remove(&self.0.0);
    }
}

/// When a process started, in clock ticks since the boot; `None` if it is dead or a zombie.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = proc::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // `number (name) state parent ...`: the name may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn boot_id() -> String {
    let id = proc::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    // A record's fields are separated by blanks.
    id.split_whitespace().next().unwrap_or_default().to_owned()
}

fn namespaces() -> String {
    let number = |name: &str| {
        let link = fs::read_link(format!("/proc/self/ns/{name}")).unwrap_or_default();
        link.to_string_lossy().chars().filter(char::is_ascii_digit).collect::<String>()
    };
    format!("{}.{}", number("pid"), number("time"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Operation;

    fn life_of(owner: &Owner) -> Life {
        life(&Record::new(Operation::Attach, owner.clone()), &Owner::of_this_process(DomId::DOM0))
    }

    #[test]
    fn a_process_is_named_by_more_than_its_pid() {
        let me = Owner::of_this_process(DomId::DOM0);
        let parent = std::os::unix::process::parent_id();
        let other = Owner { pid: parent, start: start_time(parent).unwrap(), ..me.clone() };
        assert_eq!(life_of(&other), Life::Alive);
        assert_eq!(
            life_of(&Owner { start: other.start + 1, ..other.clone() }),
            Life::Dead,
            "a later process"
        );
        assert_eq!(life_of(&Owner { boot: "x".into(), ..other.clone() }), Life::Dead, "before the boot");
        assert_eq!(life_of(&Owner { pid: u32::MAX, ..other.clone() }), Life::Dead);
        assert_eq!(life_of(&Owner { ns: "1.1".into(), pid: u32::MAX, ..other.clone() }), Life::Unseen);
        // Where /proc hides it, nothing is known.
        assert_eq!(life_of(&Owner { boot: String::new(), ..other.clone() }), Life::Unseen);
        assert_eq!(life_of(&Owner { start: 0, ..other.clone() }), Life::Unseen);
        assert_eq!(life_of(&Owner { domid: DomId(7), ..other }), Life::WithDomain(DomId(7)));
    }

    /// A program that forks, as daemons do, is another process then.
    #[test]
    fn a_process_is_asked_for_its_start_each_time() {
        let me = Owner::of_this_process(DomId::DOM0);
        assert_eq!((me.pid, Some(me.start)), (process::id(), start_time(process::id())));
        // As whoever looks would find the record of a process of another start: the first of all is older.
        let wrong = Owner { pid: 1, ..me.clone() };
        assert_ne!(start_time(1), Some(me.start));
        assert_eq!(life_of(&wrong), Life::Dead, "a start of another process is not believed");
    }

    #[test]
    fn an_operation_of_this_process_that_was_given_up_has_no_owner() {
        let me = Owner::of_this_process(DomId::DOM0);
        let record = Record::new(Operation::Attach, me.clone());
        let going_on = UnderWay::new(record.token);
        assert_eq!(life(&record, &me), Life::Alive);
        assert_eq!(life(&record.at(Stage::Left), &me), Life::Dead);
        drop(going_on);
        assert_eq!(life(&record, &me), Life::Dead);
    }
}
