//! How long an online and an offline of an interface take, by the script and by the handler: medians of rounds in which
//! both have their turns, on the same host.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use xen_hotplug::native::vif::Script;
use xen_hotplug::{Action, Kind, Request};

use super::SCRIPTS;
use super::host::Host;
use super::side::Performer;

/// So many times the handler may be called for one run of the script, since it is that much shorter.
const CALLS: usize = 10;

/// Measures, and prints a table.
pub(super) async fn run(rounds: usize) -> Result<()> {
    ensure!(rounds > 0, "no rounds");
    let host =
        Host::start(&["link add br0 type bridge forward_delay 0", "link set br0 up"], &[("bridge", "br0")])
            .await?;
    let (script, native) = (Performer::new(&host, "script")?, Performer::new(&host, "native")?);
    let (mut theirs, mut ours) = (Times::default(), Times::default());
    for _ in 0..rounds {
        theirs.take(&script).await?;
        for _ in 0..CALLS {
            ours.take(&native).await?;
        }
    }
    println!(
        "vif-bridge on a veth pair, medians of {rounds} and {} runs, the store's nodes included",
        rounds * CALLS
    );
    println!("{:8} {:>12} {:>12} {:>8}", "", "script", "handler", "ratio");
    let rows = [("online", theirs.online, ours.online), ("offline", theirs.offline, ours.offline)];
    let (mut script, mut handler) = (Duration::ZERO, Duration::ZERO);
    for (name, theirs, ours) in rows {
        let (theirs, ours) = (median(theirs), median(ours));
        print_row(name, theirs, ours);
        script += theirs;
        handler += ours;
    }
    print_row("both", script, handler);
    Ok(())
}

fn print_row(name: &str, script: Duration, handler: Duration) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!("{name:8} {:9.2} ms {:9.3} ms {:7.0}x", ms(script), ms(handler), ms(script) / ms(handler));
}

#[derive(Default)]
struct Times {
    online: Vec<Duration>,
    offline: Vec<Duration>,
}

impl Times {
    async fn take(&mut self, performer: &Performer) -> Result<()> {
        for (action, times) in [(Action::Add, &mut self.online), (Action::Remove, &mut self.offline)] {
            let request = Request::new(Kind::Vif, action, 1, 0, format!("{SCRIPTS}/vif-bridge"))
                .recorded("bridge", "br0");
            let begun = Instant::now();
            ensure!(performer.perform(Script::Bridge, &request).await?, "{request} failed");
            times.push(begun.elapsed());
        }
        Ok(())
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
