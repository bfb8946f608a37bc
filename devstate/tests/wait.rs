//! Waits for a state, against a store, in virtual time.

use std::time::Duration;

use lab_proxy::Proxy;
use tokio::join;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use xen_devstate::{Absent, Goal, Outcome, StateValue, XenbusState, wait};
use xs_client::{Client, Config, DomId, Error, Op, Path};
use xs_store::Store;

const STATE: &str = "/local/domain/0/backend/vbd/1/51712/state";

/// A store, whoever writes the state, and whoever waits for it.
struct Scene {
    backend: Client,
    waiter: Client,
    proxy: Proxy,
    cancel: CancellationToken,
    begun: Instant,
}

impl Scene {
    fn new() -> Self {
        let store = Store::new();
        let (stream, proxy) = Proxy::over(store.connect(DomId::DOM0));
        Self {
            backend: Client::over(store.connect(DomId::DOM0), Config::default()),
            waiter: Client::over(stream, Config::default()),
            proxy,
            cancel: CancellationToken::new(),
            begun: Instant::now(),
        }
    }

    async fn says(&self, value: impl Into<Vec<u8>>) {
        self.backend.write(&Path::new(STATE).unwrap(), value.into()).await.unwrap();
    }

    async fn goes(&self) {
        self.backend.rm(&Path::new(STATE).unwrap()).await.unwrap();
    }

    async fn at(&self, seconds: u64) {
        tokio::time::sleep_until(self.begun + Duration::from_secs(seconds)).await;
    }

    /// Waits for at most 10 s.
    async fn waits(&self, goal: Goal) -> Outcome {
        self.waits_for(goal, 10).await
    }

    async fn waits_for(&self, goal: Goal, seconds: u64) -> Outcome {
        let (path, limit) = (Path::new(STATE).unwrap(), Duration::from_secs(seconds));
        wait(&self.waiter, &path, goal, limit, &self.cancel).await
    }

    fn clock(&self) -> u64 {
        self.begun.elapsed().as_secs()
    }

    /// No watch is left on the server.
    async fn is_clean(&self) -> bool {
        self.waiter.read_opt(&Path::new("/tool").unwrap()).await.unwrap();
        self.proxy.count(Op::WATCH) == self.proxy.count(Op::UNWATCH)
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_there_already() {
    let scene = Scene::new();
    for (goal, value, state) in [
        (Goal::BACKEND_READY, "2", XenbusState::InitWait),
        (Goal::BACKEND_READY, "4", XenbusState::Connected),
        (Goal::CONNECTED, "4", XenbusState::Connected),
        (Goal::CLOSED, " 6\n", XenbusState::Closed),
    ] {
        scene.says(value).await;
        let outcome = scene.waits(goal).await;
        assert!(matches!(outcome, Outcome::Reached(reached) if reached == state), "{value}: {outcome:?}");
        assert!(scene.is_clean().await);
    }
    assert_eq!(scene.clock(), 0);
}

/// Other states come and go before it.
#[tokio::test(start_paused = true)]
async fn it_comes_later() {
    let scene = Scene::new();
    scene.says("4").await;
    let (outcome, ()) = join!(scene.waits(Goal::CLOSED), async {
        for (second, state) in [(1, "5"), (2, "junk"), (3, ""), (4, "4"), (7, "6")] {
            scene.at(second).await;
            scene.says(state).await;
        }
    });
    assert!(matches!(outcome, Outcome::Reached(XenbusState::Closed)), "{outcome:?}");
    assert_eq!(scene.clock(), 7);
    assert!(scene.is_clean().await);
}

/// Adding such a limit to the clock's time panicked.
#[tokio::test(start_paused = true)]
async fn a_limit_that_no_clock_can_say_is_none() {
    const YEAR: u64 = 365 * 24 * 3600;
    for seconds in [u64::MAX, u64::MAX / 2, u64::MAX / 2 - 100_000_000, 1_000 * YEAR] {
        let scene = Scene::new();
        scene.says("4").await;
        let (outcome, ()) = join!(scene.waits_for(Goal::CLOSED, seconds), async {
            scene.at(YEAR).await;
            scene.says("6").await;
        });
        assert!(matches!(outcome, Outcome::Reached(XenbusState::Closed)), "{seconds}: {outcome:?}");
        assert_eq!(scene.clock(), YEAR);
    }
}

#[tokio::test(start_paused = true)]
async fn the_other_end_gives_up() {
    let scene = Scene::new();
    scene.says("1").await;
    let (outcome, ()) = join!(scene.waits(Goal::BACKEND_READY), async {
        scene.at(2).await;
        scene.says("5").await;
    });
    assert!(matches!(outcome, Outcome::Failed(XenbusState::Closing)), "{outcome:?}");
    assert_eq!(scene.clock(), 2);
    assert!(scene.is_clean().await);
}

/// The node goes, or has never been there: what that means is the goal's to say.
#[tokio::test(start_paused = true)]
async fn the_node_is_gone() {
    for goal in [Goal::CLOSED, Goal::BACKEND_READY] {
        let scene = Scene::new();
        let gone = |outcome: &Outcome| match goal.absent {
            Absent::Done => matches!(outcome, Outcome::Gone),
            _ => matches!(outcome, Outcome::Vanished),
        };
        assert!(gone(&scene.waits(goal).await), "never there");
        scene.says("4").await;
        let (outcome, ()) = join!(scene.waits(Goal { done: xen_devstate::StateSet::EMPTY, ..goal }), async {
            scene.at(3).await;
            scene.goes().await;
        });
        assert!(gone(&outcome), "{outcome:?}");
        assert_eq!(scene.clock(), 3);
        assert!(scene.is_clean().await);
    }
    // The directory above it goes.
    let scene = Scene::new();
    scene.says("4").await;
    let (outcome, ()) = join!(scene.waits(Goal::CLOSED), async {
        scene.at(3).await;
        scene.backend.rm(&Path::new("/local").unwrap()).await.unwrap();
    });
    assert!(matches!(outcome, Outcome::Gone), "{outcome:?}");
    assert_eq!(scene.clock(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_to_come() {
    let scene = Scene::new();
    let goal = Goal { absent: Absent::Ignore, ..Goal::CONNECTED };
    let (outcome, ()) = join!(scene.waits(goal), async {
        scene.at(1).await;
        scene.says("1").await;
        scene.at(2).await;
        scene.goes().await;
        scene.at(3).await;
        scene.says("4").await;
    });
    assert!(matches!(outcome, Outcome::Reached(XenbusState::Connected)), "{outcome:?}");
    assert_eq!(scene.clock(), 3);
}

#[tokio::test(start_paused = true)]
async fn it_does_not_come() {
    let scene = Scene::new();
    scene.says("4").await;
    let (outcome, ()) = join!(scene.waits(Goal::CLOSED), async {
        scene.at(3).await;
        scene.says("5").await;
    });
    let Outcome::TimedOut { last } = outcome else { panic!("{outcome:?}") };
    assert_eq!(last, Some(StateValue::State(XenbusState::Closing)));
    assert_eq!(scene.clock(), 10);
    assert!(scene.is_clean().await);

    scene.says(vec![0xff; 1000]).await;
    let outcome = scene.waits(Goal::CLOSED).await;
    let Outcome::TimedOut { last: Some(last) } = outcome else { panic!("{outcome:?}") };
    assert_eq!(last, StateValue::Malformed(vec![0xff; 32]));

    scene.goes().await;
    let outcome = scene.waits(Goal { absent: Absent::Ignore, ..Goal::CLOSED }).await;
    assert!(matches!(outcome, Outcome::TimedOut { last: None }), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn it_is_cancelled() {
    let scene = Scene::new();
    scene.says("4").await;
    let (outcome, ()) = join!(scene.waits(Goal::CLOSED), async {
        scene.at(3).await;
        scene.cancel.cancel();
    });
    assert!(matches!(outcome, Outcome::Aborted), "{outcome:?}");
    assert_eq!(scene.clock(), 3);
    assert!(scene.is_clean().await);
    let watches = scene.proxy.count(Op::WATCH);
    assert!(matches!(scene.waits(Goal::CLOSED).await, Outcome::Aborted), "before it begins");
    assert_eq!(scene.proxy.count(Op::WATCH), watches);
}

/// Cancelled while the store does not answer.
#[tokio::test(start_paused = true)]
async fn it_is_cancelled_in_silence() {
    let scene = Scene::new();
    scene.says("4").await;
    scene.proxy.hold(true);
    let (outcome, ()) = join!(scene.waits(Goal::CLOSED), async {
        scene.at(3).await;
        scene.cancel.cancel();
    });
    assert!(matches!(outcome, Outcome::Aborted), "{outcome:?}");
    assert_eq!(scene.clock(), 3);
    scene.proxy.hold(false);
    assert!(scene.is_clean().await);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_wait_leaves_nothing() {
    let scene = Scene::new();
    scene.says("4").await;
    tokio::time::timeout(Duration::from_secs(3), scene.waits(Goal::CLOSED)).await.unwrap_err();
    assert_eq!(scene.proxy.count(Op::WATCH), 1);
    assert!(scene.is_clean().await);
}

/// The limit of the wait holds also where the calls that it makes would be given longer.
#[tokio::test(start_paused = true)]
async fn the_store_is_silent_from_the_start() {
    let scene = Scene::new();
    scene.proxy.silence(true);
    let outcome = scene.waits_for(Goal::CLOSED, 3).await;
    assert!(matches!(outcome, Outcome::TimedOut { last: None }), "{outcome:?}");
    assert_eq!(scene.clock(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_store_falls_silent() {
    let scene = Scene::new();
    scene.says("5").await;
    let (outcome, ()) = join!(scene.waits_for(Goal::CLOSED, 8), async {
        scene.at(1).await;
        scene.proxy.silence(true);
        scene.says("6").await;
    });
    let Outcome::TimedOut { last } = outcome else { panic!("{outcome:?}") };
    assert_eq!(last, Some(StateValue::State(XenbusState::Closing)), "what was last seen");
    assert_eq!(scene.clock(), 8);
}

#[tokio::test(start_paused = true)]
async fn the_store_goes_away() {
    let scene = Scene::new();
    scene.says("5").await;
    let (outcome, ()) = join!(scene.waits(Goal::CLOSED), async {
        scene.at(2).await;
        scene.proxy.cut_after(3);
        scene.says("5").await;
    });
    assert!(matches!(&outcome, Outcome::Io(error) if error.is_disconnected()), "{outcome:?}");
    assert_eq!(scene.clock(), 2);
    let outcome = scene.waits(Goal::CLOSED).await;
    assert!(matches!(outcome, Outcome::Io(Error::Protocol(_))), "{outcome:?}");
}

/// A guest that writes its state without pause costs reads one after another, and cannot keep the
/// wait beyond its limit.
#[tokio::test(start_paused = true)]
async fn a_flood_of_changes() {
    let scene = Scene::new();
    scene.says("1").await;
    let (outcome, ()) = join!(scene.waits(Goal::CLOSED), async {
        while scene.clock() < 12 {
            for _ in 0..10 {
                scene.says("1").await;
            }
            sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(matches!(outcome, Outcome::TimedOut { .. }), "{outcome:?}");
    assert!(scene.proxy.count(Op::READ) < 12_000, "{}", scene.proxy.count(Op::READ));
}

/// Many changes while one read is under way cost one more read.
#[tokio::test(start_paused = true)]
async fn changes_during_a_read() {
    let scene = Scene::new();
    scene.says("1").await;
    let (outcome, ()) = join!(scene.waits(Goal::CLOSED), async {
        scene.at(1).await;
        let reads = scene.proxy.count(Op::READ);
        scene.proxy.hold(true);
        for _ in 0..500 {
            scene.says("5").await;
        }
        scene.says("6").await;
        scene.at(2).await;
        scene.proxy.hold(false);
        scene.at(3).await;
        assert!(scene.proxy.count(Op::READ) <= reads + 2, "{}", scene.proxy.count(Op::READ) - reads);
    });
    assert!(matches!(outcome, Outcome::Reached(XenbusState::Closed)), "{outcome:?}");
}

/// Three who wait for one node share its watch, and all of them learn.
#[tokio::test(start_paused = true)]
async fn several_wait_for_one_node() {
    let scene = Scene::new();
    scene.says("5").await;
    let (outcomes, ()) = join!(
        async { join!(scene.waits(Goal::CLOSED), scene.waits(Goal::CLOSED), scene.waits(Goal::CONNECTED)) },
        async {
            scene.at(1).await;
            scene.says("6").await;
        }
    );
    assert!(
        matches!(outcomes, (Outcome::Reached(_), Outcome::Reached(_), Outcome::Failed(_))),
        "{outcomes:?}"
    );
    assert_eq!(scene.proxy.count(Op::WATCH), 1);
    assert!(scene.is_clean().await);
}
