//! Reports as values: F5 to F7. They carry the identity of the device, and can be serialised.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::join;
use tokio_util::sync::CancellationToken;
use xen_aodevice::{Force, Kind, Removal, Step, WaitFor};

use crate::world::{BE, GUEST, Line, World, disk};

#[tokio::test(start_paused = true)]
async fn f6_steps_and_outcomes_carry_the_identity_of_the_device() {
    let world = World::new().await;
    let steps: Arc<Mutex<Vec<Value>>> = Arc::default();
    let told = steps.clone();
    let toolstack = world.toolstack.clone().with_observer(move |step: &Step| {
        told.lock().unwrap().push(serde_json::to_value(step).unwrap());
    });
    let (device, never) = (disk(), CancellationToken::new());
    let (added, ()) = join!(toolstack.add(GUEST, &device, WaitFor::Script, &never), async {
        world.exists(BE).await;
        world.backend_says("2").await;
    });
    let named = json!({"fe": 1, "kind": "vbd", "devid": 51712, "name": "xvda"});
    let steps = std::mem::take(&mut *steps.lock().unwrap());
    assert!(steps.iter().all(|step| step["device"] == named && step["operation"] == "attach"), "{steps:#?}");
    assert_eq!(
        serde_json::to_value(added.unwrap()).unwrap(),
        json!({
            "device": {"fe": 1, "kind": "vbd", "devid": 51712, "name": "xvda", "be": 0, "be_kind": "vbd"},
            "warnings": [],
            "seconds": 0.0,
        })
    );
    let listed = xen_aodevice::list(&world.dom0, GUEST, Kind::Vbd).await.unwrap();
    let listed = serde_json::to_value(&listed).unwrap();
    assert_eq!((&listed[0]["id"]["devid"], &listed[0]["vdev"]), (&json!(51712), &json!("xvda")));

    world.scripts.on("add", Line::Fails("no"));
    let failure = toolstack.add(GUEST, &device, WaitFor::Script, &never).await.unwrap_err();
    let failure = serde_json::to_value(&failure).unwrap();
    assert_eq!(
        (&failure["device"], &failure["kind"], &failure["operation"]),
        (&named, &json!("failed"), &json!("attach"))
    );
    assert_eq!(failure["hint"], json!({"list_devices": "vbd"}));
}

/// An interface that has no number yet gets one.
#[tokio::test(start_paused = true)]
async fn f6_an_automatic_id_is_told_as_soon_as_it_is_known() {
    let world = World::new().await;
    let devids: Arc<Mutex<Vec<Option<u32>>>> = Arc::default();
    let told = devids.clone();
    let toolstack = world
        .toolstack
        .clone()
        .with_observer(move |step: &Step| told.lock().unwrap().push(step.device.devid));
    let (nic, never) = (crate::world::nic(), CancellationToken::new());
    let (added, ()) = join!(toolstack.add(GUEST, &nic, WaitFor::Script, &never), async {
        world.exists("/local/domain/0/backend/vif/1/0").await;
        world.write("/local/domain/0/backend/vif/1/0/state", "2").await;
    });
    added.unwrap();
    let devids = devids.lock().unwrap();
    assert_eq!((devids.first(), devids.last()), (Some(&None), Some(&Some(0))), "{devids:?}");
}

/// F7: what is not said does no harm, in the library as in the command.
#[test]
fn f7_nothing_is_forced_by_default() {
    assert_eq!(Force::default(), Force::Never);
    assert_eq!(Removal::default(), Removal::from(Force::Never));
    assert!(!Removal::default().adopt && !Removal::default().take_over);
}

/// C5, B-47: the runner is given what is recorded, and needs to parse nothing.
#[tokio::test(start_paused = true)]
async fn c5_a_runner_is_given_what_the_script_made() {
    let world = World::new().await;
    world.add_connected().await;
    world.backend_says("6").await;
    world.remove(Force::Never).await.unwrap();
    let request = world.scripts.last_request().unwrap();
    assert_eq!((request.fe, request.devid, request.own), (1, 51712, 0));
    assert_eq!(request.recorded.get("node").map(String::as_str), Some("/dev/sim0"));
    assert_eq!(request.recorded.get("params").map(String::as_str), Some("/srv/d.img"));
}
