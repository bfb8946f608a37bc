//! What becomes of a removal by what is known of its guest: paused, shut down, dying, gone.

use std::sync::{Arc, Mutex};

use tokio::join;
use tokio_util::sync::CancellationToken;
use xen_aodevice::{
    Cause, Condition, Device, DomainFacts, Force, Hint, Looking, Reason, StoreFacts, WaitFor, vbd,
};
use xs_client::{Client, Config, DomId};

use crate::world::{BE, Ended, FE, GUEST, LX, World, path, tenths, warned};

/// A source that says of every domain what it was told.
#[derive(Clone, Debug)]
struct Scripted(Arc<Mutex<Condition>>);

impl Scripted {
    fn new(condition: Condition) -> Self {
        Self(Arc::new(Mutex::new(condition)))
    }

    fn says(&self, condition: Condition) {
        *self.0.lock().unwrap() = condition;
    }

    async fn remove(&self, world: &World, force: Force) -> Ended {
        let toolstack = world.toolstack.clone().with_facts(Arc::new(self.clone()));
        toolstack.remove(GUEST, (xen_aodevice::Kind::Vbd, 51712), force, &CancellationToken::new()).await
    }
}

impl DomainFacts for Scripted {
    fn look(&self, _: DomId) -> Looking<'_> {
        let condition = *self.0.lock().unwrap();
        Box::pin(async move { Ok(condition) })
    }
}

/// A guest that uses its disk.
async fn connected() -> World {
    let world = World::new().await;
    world.add_connected().await;
    world
}

/// The backend closes when the guest's directory is gone, as Linux's do.
async fn backend_without_frontend(world: &World) {
    world.is_gone(FE).await;
    world.backend_says("6").await;
}

/// B-6: libxl takes a paused guest for one that goes. Here it is asked, its directory stays, and the report says why
/// it did not answer.
#[tokio::test(start_paused = true)]
async fn b6_a_paused_guest_is_asked_like_any_other() {
    let world = connected().await;
    let failure = Scripted::new(Condition::Paused).remove(&world, Force::Never).await.unwrap_err();
    assert_eq!(tenths(failure.elapsed), 10.0);
    assert!(matches!(failure.cause, Cause::TimedOut { .. }));
    assert!(
        failure.observations().contains(&"the guest is paused".to_owned()),
        "{:?}",
        failure.observations()
    );
    assert_eq!(failure.hint(), Hint::Unpause(GUEST));
    assert_eq!(serde_json::to_value(&failure).unwrap()["observed"]["guest"], "paused");
    assert_eq!(world.read(&format!("{FE}/state")).await, "4");
    assert_eq!(world.scripts.runs(), [""; 0]);
    // It is unpaused, and a later removal goes on.
    let source = Scripted::new(Condition::Running);
    let (ended, ()) = join!(source.remove(&world, Force::Never), async {
        world.at(13.0).await;
        assert_eq!(world.read(&format!("{FE}/state")).await, "4", "it is still asked");
        world.guest_says("6").await;
        world.backend_says("6").await;
    });
    assert_eq!(tenths(ended.unwrap().elapsed), 3.0);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_runs_is_not_said_to_be_paused() {
    for condition in [Condition::Running, Condition::There, Condition::Unknown] {
        let world = connected().await;
        let failure = Scripted::new(condition).remove(&world, Force::Never).await.unwrap_err();
        assert_eq!(failure.hint(), Hint::RemoveAgainOrForce, "{condition}");
        assert!(!failure.observations().iter().any(|seen| seen.starts_with("the guest")), "{failure:?}");
    }
}

/// libxl waits 10 s for a guest that has crashed.
#[tokio::test(start_paused = true)]
async fn a_guest_that_is_over_is_not_waited_for() {
    let shut_down = [Reason::PowerOff, Reason::Crash].map(Condition::ShutDown);
    for condition in shut_down.into_iter().chain([Condition::Dying, Condition::Gone]) {
        for force in [Force::Never, Force::AfterTimeout] {
            let world = connected().await;
            let source = Scripted::new(condition);
            let (ended, ()) = join!(source.remove(&world, force), backend_without_frontend(&world));
            let success = ended.unwrap();
            assert_eq!((tenths(success.elapsed), warned(&success)), (0.0, vec![]), "{condition}");
            assert_eq!(world.scripts.runs(), ["at 0 s: block remove exited with status 0"]);
            assert_eq!(world.read(LX).await, "not there");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_shuts_down_meanwhile_is_not_waited_for_any_longer() {
    let world = connected().await;
    let source = Scripted::new(Condition::Running);
    let (ended, (), ()) =
        join!(source.remove(&world, Force::Never), backend_without_frontend(&world), async {
            world.at(3.0).await;
            assert_eq!(world.read(&format!("{FE}/state")).await, "4");
            source.says(Condition::ShutDown(Reason::PowerOff));
        });
    let elapsed = ended.unwrap().elapsed.as_secs_f64();
    assert!((3.0..=3.3).contains(&elapsed), "{elapsed}");
}

/// Its backend is waited for all the same, and then done without, as when it is forced.
#[tokio::test(start_paused = true)]
async fn the_backend_of_a_guest_that_is_over_has_its_time() {
    let world = connected().await;
    let success = Scripted::new(Condition::Gone).remove(&world, Force::Never).await.unwrap();
    assert_eq!(tenths(success.elapsed), 10.0);
    assert_eq!(warned(&success), ["forced: the backend did not close within 10s"]);
    assert_eq!(world.scripts.runs(), ["at 10 s: block remove exited with status 0"]);
}

/// `xl save -c` and a migration that fails resume it, and it has its disk still.
#[tokio::test(start_paused = true)]
async fn a_suspended_guest_is_not_over() {
    let world = connected().await;
    let source = Scripted::new(Condition::ShutDown(Reason::Suspend));
    let failure = source.remove(&world, Force::Never).await.unwrap_err();
    assert_eq!(tenths(failure.elapsed), 10.0);
    assert_eq!(world.read(&format!("{FE}/state")).await, "4");
}

/// B-39: libxl fails where the hypervisor knows no such domain, and leaves what nobody else removes. The store knows
/// as much.
#[tokio::test(start_paused = true)]
async fn b39_a_domain_that_is_gone_is_a_dead_frontend() {
    let world = connected().await;
    world.dom0.release(GUEST).await.unwrap();
    let (ended, ()) = join!(world.remove(Force::Never), backend_without_frontend(&world));
    let success = ended.unwrap();
    assert_eq!((tenths(success.elapsed), warned(&success)), (0.0, vec![]));
    assert_eq!(world.read(BE).await, "not there");
    assert_eq!(world.read(LX).await, "not there");
}

#[tokio::test(start_paused = true)]
async fn a_paused_guest_that_does_not_connect_is_to_be_unpaused() {
    let world = World::new().await;
    let before = world.dump().await;
    let source = Scripted::new(Condition::Paused);
    let toolstack = world.toolstack.clone().with_facts(Arc::new(source));
    let (disk, cancel) = (crate::world::disk(), CancellationToken::new());
    let (ended, ()) = join!(toolstack.add(GUEST, &disk, WaitFor::Connected, &cancel), async {
        world.exists(BE).await;
        world.backend_says("2").await;
        backend_without_frontend(&world).await;
    },);
    let failure = ended.unwrap_err();
    assert_eq!(failure.hint(), Hint::Unpause(GUEST), "{:?}", failure.observations());
    assert_eq!(world.dump().await, before);
}

/// A device model that cannot be seen is taken to be gone once its guest is, and not when its guest's home is:
/// `xl destroy` removes that while the guest is paused, and its model lives.
#[tokio::test(start_paused = true)]
async fn a_guest_without_a_home_may_have_its_device_model_still() {
    let world = World::new().await;
    world.write("/local/domain/0/device-model/1/state", "running").await;
    let be = "/local/domain/0/backend/qdisk/1/51712";
    let (image, cancel) =
        (Device::Vbd(vbd::parse(&["/proc/self/exe,qcow2,xvda"]).unwrap()), CancellationToken::new());
    let (ended, ()) = join!(world.toolstack.add(GUEST, &image, WaitFor::Script, &cancel), async {
        world.exists(be).await;
        world.write(&format!("{be}/state"), "2").await;
    });
    ended.unwrap();
    world.write(&format!("{be}/state"), "4").await;
    world.dom0.rm(&path("/local/domain/1")).await.unwrap();
    let source = Scripted::new(Condition::Paused);
    let (ended, ()) = join!(source.remove(&world, Force::Never), async {
        world.at(4.0).await;
        assert_eq!(world.read(&format!("{be}/state")).await, "5");
        source.says(Condition::Dying);
    });
    let success = ended.unwrap();
    let elapsed = success.elapsed.as_secs_f64();
    assert!((6.0..=6.5).contains(&elapsed), "{elapsed}");
    assert!(warned(&success)[0].contains("cannot be seen"), "{success:?}");
}

#[tokio::test(start_paused = true)]
async fn the_store_says_what_it_knows_and_no_more() {
    let world = World::new().await;
    let facts = StoreFacts::new(world.dom0.clone());
    assert_eq!(facts.look(GUEST).await.unwrap(), Condition::There);
    assert_eq!(facts.look(DomId::DOM0).await.unwrap(), Condition::There);
    assert_eq!(facts.look(DomId(7)).await.unwrap(), Condition::Gone);
    world.dom0.release(GUEST).await.unwrap();
    assert_eq!(facts.look(GUEST).await.unwrap(), Condition::Gone);
    // A toolstack that may not ask has only the home to go by.
    world.store.introduce(DomId(2));
    let guest = Client::over(world.store.connect(DomId(2)), Config::default());
    let facts = StoreFacts::new(guest);
    let seen = facts.look(DomId::DOM0).await;
    assert!(matches!(seen, Ok(Condition::Unknown) | Err(_)), "{seen:?}");
}
