//! What is traced: every transition of a machine, once.

use std::cell::RefCell;
use std::fmt;
use std::sync::Once;

use tokio::join;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::set_global_default;
use tracing::{Event, Metadata, Subscriber};

use crate::world::{BE, LX, World, disk};

thread_local! {
    /// The transitions of the test that this thread runs, one a line.
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// One for all threads: where there is but one for a thread, `tracing` takes what another thread finds first, no
/// subscriber, for the answer of all.
struct Log;

impl Log {
    fn begin() {
        static ALL: Once = Once::new();
        ALL.call_once(|| set_global_default(Self).unwrap());
        LINES.take();
    }

    fn taken() -> Vec<String> {
        LINES.take()
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" | "doing" => {}
            name => self.0 += &format!("{name}={value:?} "),
        }
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "xen_aodevice::machine"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        LINES.with_borrow_mut(|lines| lines.push(line.0.trim_end().to_owned()));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[tokio::test(start_paused = true)]
async fn every_transition_with_the_time_that_its_state_took() {
    let world = World::new().await;
    Log::begin();
    let (failed, ()) = join!(world.add(disk()), async {
        world.at(3.0).await;
        world.backend_says("6").await;
    });
    failed.unwrap_err();
    let of = "operation=attach device=vbd xvda domid=1";
    assert_eq!(
        Log::taken(),
        [
            r#"from="Idle" event="begin" to="Checking" elapsed_ms=0"#,
            r#"from="Checking" event="all is there" to="Creating" elapsed_ms=0"#,
            r#"from="Creating" event="the nodes are written" to="WaitingForBackend" elapsed_ms=0"#,
            r#"from="WaitingForBackend" event="the wait fails" cause="the backend went to 6 (Closed) instead of 2 (InitWait), 3 (Initialised) or 4 (Connected)" to="Observing" elapsed_ms=3000"#,
            r#"from="Observing" event="looked" to="Closing" elapsed_ms=0"#,
            r#"from="Closing" event="the backend is closed already" to="Destroying" elapsed_ms=0"#,
            r#"from="Destroying" event="the nodes are gone" to="Failed" elapsed_ms=0"#,
        ]
        .map(|line| format!("{of} {line}"))
    );
}

#[tokio::test(start_paused = true)]
async fn those_of_a_part_are_told_under_the_name_of_its_state() {
    let world = World::new().await;
    world.add_connected().await;
    world.write(&format!("{LX}/op"), "add:1 stage=left").await;
    world.backend_says("6").await;
    Log::begin();
    let (added, ()) = join!(world.add(disk()), async {
        world.is_gone(BE).await;
        world.exists(BE).await;
        world.backend_says("2").await;
    });
    added.unwrap();
    let way = Log::taken().into_iter().map(|line| line.split('"').nth(1).unwrap().to_owned());
    assert_eq!(
        way.collect::<Vec<_>>(),
        [
            "Idle",
            "Checking",
            "Creating",
            "Recovering/Probing",
            "Recovering/Closing",
            "Recovering/RunningScript",
            "Recovering/Destroying",
            "Creating",
            "WaitingForBackend",
            "RunningScript",
            "Settling",
        ]
    );
}
