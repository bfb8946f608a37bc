//! What happens in a course, from its seed.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;
use xen_aodevice::{Force, WaitFor};

use crate::seeded::Parts;

/// How many guests there are, and devices that each may have.
pub(super) const GUESTS: usize = 2;
pub(super) const DEVICES: usize = 3;

/// Strikes fall in this time, in milliseconds.
pub(super) const STORM: u64 = 60_000;

/// What an actor does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    Attach(WaitFor),
    Detach(Force),
    /// All devices of the guest, as when it is destroyed; it lives on.
    DetachAll,
}

/// How an act may end before its time.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    /// The toolstack is killed after so many milliseconds.
    Killed(u64),
    /// Its user gives up.
    Cancelled(u64),
    /// Its connection ends after so many bytes from the store.
    Cut(usize),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// Milliseconds to wait before.
    pub(super) pause: u64,
    pub(super) act: Act,
    pub(super) guest: usize,
    pub(super) device: usize,
    pub(super) end: Option<End>,
}

/// What happens to the others.
#[derive(Clone, Copy, Debug)]
pub(super) enum Blow {
    /// The daemon is killed.
    KillDaemon,
    /// It is killed once it has been told so many bytes more: between two requests.
    KillDaemonAfter(usize),
    /// It is asked to end.
    EndDaemon,
    /// Its connection ends after so many bytes.
    CutDaemon(usize),
    /// The driver domain's kernel does nothing.
    StopKernel,
    /// A guest's kernel does nothing.
    StopGuest(usize),
    /// `xl destroy` of the driver domain; another one of its name is there later.
    DestroyDriverDomain,
    /// `xl destroy` of a guest, whose devices are detached; another one is there later.
    DestroyGuest(usize),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Strike {
    /// Milliseconds since the beginning.
    pub(super) at: u64,
    pub(super) blow: Blow,
    /// How long until all is as it was, in milliseconds.
    pub(super) lasts: u64,
}

/// What a hotplug script does that sets a device up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    Works,
    /// It says why it fails.
    Fails,
    /// It exits with an error, and says nothing.
    FailsSilently,
    /// It says `connected` and has found nothing, as the stock one does.
    FindsNothing,
    Hangs,
}

#[derive(Clone, Debug)]
pub(super) struct Schedule {
    pub(super) seed: u64,
    /// What the steps of each toolstack are. Each step is a process of its own.
    pub(super) actors: Vec<Vec<Step>>,
    pub(super) strikes: Vec<Strike>,
    /// Milliseconds until a kernel answers.
    pub(super) latency: u64,
    /// How many scripts of a hundred fail.
    pub(super) failing: u64,
}

/// One of several.
fn pick<'a, T>(rng: &mut Rng, from: &'a [T]) -> &'a T {
    &from[rng.usize(0..from.len())]
}

impl Schedule {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let actors = *pick(&mut rng, &[1, 1, 2, 3]);
        let actors =
            (0..actors).map(|_| (0..rng.usize(2..9)).map(|_| Step::new(&mut rng)).collect()).collect();
        let mut strikes: Vec<_> = (0..rng.usize(0..6)).map(|_| Strike::new(&mut rng)).collect();
        strikes.sort_by_key(|strike| strike.at);
        let (latency, failing) = (*pick(&mut rng, &[1, 5, 200]), *pick(&mut rng, &[0, 10, 40]));
        let mut schedule = Self { seed, actors, strikes, latency, failing };
        // Rare by itself.
        if rng.u8(0..6) == 0 {
            schedule.calm(&mut rng);
        }
        schedule
    }

    /// Leaves nothing to go wrong but that the daemon is away for a while.
    fn calm(&mut self, rng: &mut Rng) {
        self.actors.truncate(1);
        self.failing = 0;
        let after = Blow::KillDaemonAfter(rng.usize(0..2000));
        let blow = *pick(rng, &[Blow::KillDaemon, after, Blow::EndDaemon]);
        self.strikes = vec![Strike { at: rng.u64(0..10_000), blow, lasts: rng.u64(1..=5000) }];
    }

    /// Whether nobody interferes with what an actor does.
    pub(super) fn is_of_one(&self) -> bool {
        self.actors.len() == 1
    }

    /// Whether nothing keeps an attach of a lone toolstack from succeeding: the daemon is away once, and not for long.
    pub(super) fn is_harmless(&self) -> bool {
        use Blow::{CutDaemon, EndDaemon, KillDaemon, KillDaemonAfter};
        let is_short = |strike: &Strike| {
            let is_of_daemon =
                matches!(strike.blow, KillDaemon | KillDaemonAfter(_) | EndDaemon | CutDaemon(_));
            is_of_daemon && strike.lasts <= 5000
        };
        self.is_of_one() && self.failing == 0 && self.strikes.len() <= 1 && self.strikes.iter().all(is_short)
    }

    /// What the nth script does that sets up this device, and how long that takes. The same when something else is
    /// left out.
    pub(super) fn script(&self, device: (u32, u32), nth: u64) -> (Script, Duration) {
        let place = u64::from(device.0) << 40 | u64::from(device.1) << 8 | nth;
        let mut rng = Rng::with_seed(self.seed.rotate_left(32) ^ place);
        let script = match rng.u64(0..100) < self.failing {
            true => {
                *pick(&mut rng, &[Script::Fails, Script::FailsSilently, Script::FindsNothing, Script::Hangs])
            }
            false => Script::Works,
        };
        (script, Duration::from_millis(*pick(&mut rng, &[1, 50, 400, 3000, 12_000])))
    }
}

impl Step {
    fn new(rng: &mut Rng) -> Self {
        let act = match rng.u8(0..20) {
            0..9 => Act::Attach(WaitFor::Script),
            9..11 => Act::Attach(WaitFor::Connected),
            11..16 => Act::Detach(Force::Never),
            16 | 17 => Act::Detach(Force::AfterTimeout),
            18 => Act::Detach(Force::AtOnce),
            _ => Act::DetachAll,
        };
        let soon = |rng: &mut Rng| {
            let most = *pick(rng, &[20, 1000, 20_000]);
            rng.u64(0..most)
        };
        let end = match rng.u8(0..10) {
            0 | 1 => Some(End::Killed(soon(rng))),
            2 => Some(End::Cancelled(soon(rng))),
            3 => Some(End::Cut(rng.usize(0..4000))),
            _ => None,
        };
        let pause = if rng.bool() { rng.u64(0..100) } else { rng.u64(0..10_000) };
        // Some more often than others, so that acts meet.
        let (guest, device) =
            (rng.usize(0..GUESTS) * rng.usize(0..2), rng.usize(0..DEVICES) * rng.usize(0..2));
        Self { pause, act, guest, device, end }
    }
}

impl Strike {
    fn new(rng: &mut Rng) -> Self {
        let blow = match rng.u8(0..20) {
            0..3 => Blow::KillDaemon,
            3..8 => Blow::KillDaemonAfter(rng.usize(0..4000)),
            8..10 => Blow::EndDaemon,
            10..13 => Blow::CutDaemon(rng.usize(0..4000)),
            13 | 14 => Blow::StopKernel,
            15 | 16 => Blow::StopGuest(rng.usize(0..GUESTS)),
            17 | 18 => Blow::DestroyDriverDomain,
            _ => Blow::DestroyGuest(rng.usize(0..GUESTS)),
        };
        // The longest outlast whatever waits.
        let lasts = *pick(rng, &[10, 500, 5000, 30_000, 120_000]);
        // Early ones meet more.
        let most = *pick(rng, &[2000, STORM]);
        Self { at: rng.u64(0..most), blow, lasts: rng.u64(1..=lasts) }
    }
}

/// What is left out of a schedule that fails.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    Actor,
    Strike,
    Step,
    /// How an act ends before its time.
    End,
}

impl Parts for Schedule {
    type Part = Part;

    const PARTS: &'static [Part] = &[Part::Actor, Part::Strike, Part::Step, Part::End];

    fn count(&self, part: Part) -> usize {
        match part {
            Part::Actor => self.actors.len(),
            Part::Strike => self.strikes.len(),
            Part::Step => self.actors.iter().map(Vec::len).sum(),
            Part::End => self.actors.iter().flatten().filter(|step| step.end.is_some()).count(),
        }
    }

    fn remove(&mut self, part: Part, at: usize) {
        match part {
            Part::Actor => drop(self.actors.remove(at)),
            Part::Strike => drop(self.strikes.remove(at)),
            Part::Step => {
                let mut at = at;
                for steps in &mut self.actors {
                    if at < steps.len() {
                        steps.remove(at);
                        return;
                    }
                    at -= steps.len();
                }
            }
            Part::End => {
                let mut early = self.actors.iter_mut().flatten().filter(|step| step.end.is_some());
                if let Some(step) = early.nth(at) {
                    step.end = None;
                }
            }
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { latency, failing, .. } = self;
        writeln!(f, "  kernels answer within {latency} ms; of a hundred scripts {failing} fail")?;
        for strike in &self.strikes {
            writeln!(f, "  at {} ms: {:?}, for {} ms", strike.at, strike.blow, strike.lasts)?;
        }
        for (number, steps) in self.actors.iter().enumerate() {
            writeln!(f, "  toolstack {number}:")?;
            for Step { pause, act, guest, device, end } in steps {
                write!(f, "    {pause} ms later: {act:?}, device {device} of guest {guest}")?;
                match end {
                    Some(end) => writeln!(f, ", {end:?}")?,
                    None => writeln!(f)?,
                }
            }
        }
        Ok(())
    }
}
