//! Disks and file systems that QEMU serves, and the QEMU of each guest.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use xen_aodevice::devd;

use super::world::*;

const QDISK: &str = "/local/domain/1/backend/qdisk/2/51712";
const OTHER: &str = "/local/domain/1/backend/qdisk/2/51728";
const PID: &str = "/local/domain/1/libxl/2/qdisk-backend-pid";
const MODEL: &str = "/local/domain/1/device-model/2";

impl World {
    async fn attach_qdisk(&self, devid: u32, image: &str) {
        self.attach("qdisk", devid, &[("params", image), ("type", "qdisk"), ("mode", "w")]).await;
    }

    /// Nothing is left of any device, and no QEMU runs.
    async fn is_clean(&self, history: &[&str]) {
        self.qemus.none_runs(GUEST).await;
        self.is_gone(PID).await;
        self.is_gone(MODEL).await;
        assert_eq!(
            (self.left().await, self.qemus.history()),
            (vec![], history.iter().map(ToString::to_string).collect())
        );
    }
}

/// Vector 25, and B-41: two disks of one guest have one QEMU, which ends once, after the last of them.
#[tokio::test(start_paused = true)]
async fn vector_25_b41_the_qemu_of_a_guest_ends_once_and_after_its_last_device() {
    let world = World::new().await;
    let devd = world.devd().await;
    world.attach_qdisk(51712, "raw:/srv/d.img").await;
    world.attach_qdisk(51728, "raw:/srv/e.img").await;
    for backend in [QDISK, OTHER] {
        world.reads(&format!("{backend}/state"), "4").await;
        world.reads(&format!("{backend}/hotplug-status"), "connected").await;
    }
    world.noted("/local/domain/1/libxl/2/devd/qdisk/51712", "attached").await;
    world.reads(PID, "1000").await;
    let qemus = devd::qemus(&devd.client).await.unwrap();
    assert_eq!(
        qemus.iter().map(|qemu| (qemu.domid, qemu.pid, qemu.running)).collect::<Vec<_>>(),
        [(GUEST, Some(1000), true)]
    );
    world.detach(QDISK).await;
    sleep(LONG).await;
    assert_eq!(world.qemus.history(), ["2: runs"]);
    assert_eq!(world.read(&format!("{OTHER}/state")).await, "4");
    world.detach(OTHER).await;
    world.is_clean(&["2: exit status: 0"]).await;
    let events = devd.events();
    assert_eq!(
        events.iter().filter(|event| event.ends_with("told to end, for no device is left")).count(),
        1
    );
    assert!(events.contains(&"the QEMU of domain 2: ended (exit status: 0)".to_owned()), "{events:?}");
    devd.stop().await;
}

/// B-41: what a count forgets. A QEMU that cannot be started, and the next one of the guest, which can.
#[tokio::test(start_paused = true)]
async fn b41_a_start_that_fails_is_told_and_leaves_no_trace() {
    let world = World::new().await;
    let _devd = world.devd().await;
    world.qemus.manner(|manner| manner.refuses = Some("/usr/bin/qemu: No such file or directory"));
    world.attach_qdisk(51712, "raw:/srv/d.img").await;
    world.reads(&format!("{QDISK}/hotplug-status"), "error").await;
    let error = world.read(&format!("{QDISK}/hotplug-error")).await;
    assert!(
        error.starts_with(
            "the QEMU of domain 2 cannot be started: /usr/bin/qemu: No such file or directory (see "
        ),
        "{error}"
    );
    world.detach(QDISK).await;
    world.is_clean(&[]).await;
    // Its guest's driver takes note, too.
    sleep(Duration::from_secs(1)).await;
    world.qemus.manner(|manner| manner.refuses = None);
    world.attach_qdisk(51712, "raw:/srv/d.img").await;
    world.reads(&format!("{QDISK}/state"), "4").await;
    world.detach(QDISK).await;
    world.is_clean(&["2: exit status: 0"]).await;
}

/// B-44: a QEMU that an earlier daemon has told to end is none that serves: the next device gets the next one.
#[tokio::test(start_paused = true)]
async fn b44_a_daemon_that_is_killed_in_an_end_leaves_an_end() {
    let world = World::new().await;
    let devd = world.devd().await;
    world.qemus.manner(|manner| manner.ends = Some(Duration::from_secs(3)));
    world.attach_qdisk(51712, "raw:/srv/d.img").await;
    world.reads(&format!("{QDISK}/state"), "4").await;
    world.noted("/local/domain/1/libxl/2/devd/qdisk/51712", "attached").await;
    world.detach(QDISK).await;
    sleep(Duration::from_secs(1)).await;
    devd.kill().await;
    world.attach_qdisk(51728, "raw:/srv/e.img").await;
    let _devd = world.devd().await;
    world.reads(&format!("{OTHER}/state"), "4").await;
    world.reads(&format!("{OTHER}/hotplug-status"), "connected").await;
    world.detach(OTHER).await;
    world.is_clean(&["2: exit status: 0", "2: exit status: 0"]).await;
}

/// What is recorded of a QEMU is removed by hand: the next daemon finds it all the same.
#[tokio::test(start_paused = true)]
async fn b45_a_record_that_is_removed_is_written_again() {
    let world = World::new().await;
    let devd = world.devd().await;
    world.attach_qdisk(51712, "raw:/srv/d.img").await;
    world.reads(&format!("{QDISK}/hotplug-status"), "connected").await;
    world.dom0.rm(&path("/local/domain/1/libxl/2")).await.unwrap();
    world.attach_qdisk(51728, "raw:/srv/e.img").await;
    world.reads(&format!("{OTHER}/hotplug-status"), "connected").await;
    world.reads(PID, "1000").await;
    devd.kill().await;
    let _devd = world.devd().await;
    for backend in [QDISK, OTHER] {
        world.detach(backend).await;
    }
    world.is_clean(&["2: exit status: 0"]).await;
}

/// B-41: one that never says that it runs is killed, and its device told so in time for the toolstack.
#[tokio::test(start_paused = true)]
async fn b41_a_start_that_hangs_is_given_up() {
    let world = World::new().await;
    let _devd = world.devd().await;
    world.qemus.manner(|manner| manner.starts = None);
    let begun = Instant::now();
    world.attach_qdisk(51712, "raw:/srv/d.img").await;
    world.reads(&format!("{QDISK}/hotplug-status"), "error").await;
    assert_eq!(begun.elapsed().as_secs(), 60);
    let error = world.read(&format!("{QDISK}/hotplug-error")).await;
    assert!(
        error.starts_with("the QEMU of domain 2 did not say within 60s that it serves devices"),
        "{error}"
    );
    world.qemus.none_runs(GUEST).await;
    world.detach(QDISK).await;
    world.is_clean(&["2: signal: 9 (SIGKILL)"]).await;
}

/// An image that QEMU cannot open: its own words, at once; others of the guest go on. The next device of the number is not
/// judged by them.
#[tokio::test(start_paused = true)]
async fn what_qemu_says_of_an_image_is_told() {
    let world = World::new().await;
    let _devd = world.devd().await;
    world.qemus.manner(|manner| manner.bad = Some(("none", false)));
    world.attach_qdisk(51728, "raw:/srv/e.img").await;
    world.reads(&format!("{OTHER}/state"), "4").await;
    let begun = Instant::now();
    world.attach_qdisk(51712, "raw:/srv/none.img").await;
    world.reads(&format!("{QDISK}/hotplug-status"), "error").await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let error = world.read(&format!("{QDISK}/hotplug-error")).await;
    // As `escape_ascii` has it.
    let words = r"qemu: failed to create \'qdisk\' device \'51712\': no such image";
    assert!(error.starts_with(&format!("the QEMU of domain 2 refused the device: {words} (see ")), "{error}");
    world.detach(QDISK).await;
    assert_eq!(world.read(&format!("{OTHER}/state")).await, "4");
    world.detach(OTHER).await;
    world.is_clean(&["2: exit status: 0"]).await;
    world.attach_qdisk(51712, "raw:/srv/d.img").await;
    world.reads(&format!("{QDISK}/hotplug-status"), "connected").await;
}

/// One that takes no notice of a device: the device is told to have failed, and may be removed.
#[tokio::test(start_paused = true)]
async fn a_device_that_qemu_does_not_take_up_fails() {
    let world = World::new().await;
    let _devd = world.devd().await;
    world.qemus.manner(|manner| manner.idles = true);
    let begun = Instant::now();
    world.attach_qdisk(51712, "raw:/srv/d.img").await;
    world.reads(&format!("{QDISK}/hotplug-status"), "error").await;
    assert_eq!(begun.elapsed().as_secs(), 11);
    let error = world.read(&format!("{QDISK}/hotplug-error")).await;
    assert!(error.starts_with("the QEMU of domain 2 did not take the device up within 10s"), "{error}");
    world.detach(QDISK).await;
    world.is_clean(&["2: exit status: 0"]).await;
}

/// B-44: a device that comes while QEMU ends gets the next QEMU, and no two of them run at once.
#[tokio::test(start_paused = true)]
async fn b44_an_end_and_a_start_for_one_guest_never_overlap() {
    for moment in (0..9000).step_by(300) {
        let world = World::new().await;
        let _devd = world.devd().await;
        world.qemus.manner(|manner| manner.ends = Some(Duration::from_secs(8)));
        world.attach_qdisk(51712, "raw:/srv/d.img").await;
        world.reads(&format!("{QDISK}/state"), "4").await;
        world.detach(QDISK).await;
        sleep(Duration::from_millis(moment)).await;
        world.attach_qdisk(51728, "raw:/srv/e.img").await;
        world.reads(&format!("{OTHER}/state"), "4").await;
        world.detach(OTHER).await;
        world.is_clean(&["2: exit status: 0", "2: exit status: 0"]).await;
    }
}

/// B-41: one that does not end is killed, and only then its traces go.
#[tokio::test(start_paused = true)]
async fn b41_a_qemu_that_does_not_end_is_killed() {
    let world = World::new().await;
    let _devd = world.devd().await;
    world.qemus.manner(|manner| manner.ends = None);
    world.attach_qdisk(51712, "raw:/srv/d.img").await;
    world.reads(&format!("{QDISK}/state"), "4").await;
    let begun = Instant::now();
    world.detach(QDISK).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(world.read(PID).await, "1000");
    world.is_clean(&["2: signal: 9 (SIGKILL)"]).await;
    assert_eq!(begun.elapsed().as_secs(), 10);
}

/// A crash is noticed at once and told; nothing is tried again until the toolstack attaches something.
#[tokio::test(start_paused = true)]
async fn a_qemu_that_crashes_is_told_of_in_all_its_devices() {
    let world = World::new().await;
    let devd = world.devd().await;
    for (devid, backend) in [(51712, QDISK), (51728, OTHER)] {
        world.attach_qdisk(devid, "raw:/srv/d.img").await;
        world.reads(&format!("{backend}/state"), "4").await;
    }
    world.noted("/local/domain/1/libxl/2/devd/qdisk/51728", "attached").await;
    let begun = Instant::now();
    world.qemus.crash(GUEST, "qemu: double free\u{1b}");
    for backend in [QDISK, OTHER] {
        world.reads(&format!("{backend}/hotplug-status"), "error").await;
        let error = world.read(&format!("{backend}/hotplug-error")).await;
        let expected = "the QEMU of domain 2 ended by itself (signal: 11 (SIGSEGV)), its last words: qemu: double free\\\\x1b";
        assert!(error.starts_with(expected), "{error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    world.is_gone(PID).await;
    sleep(LONG).await;
    assert_eq!(world.qemus.history(), ["2: signal: 11 (SIGSEGV)"]);
    assert!(devd.events().iter().any(|event| event.contains("ended by itself")));
    // A detach needs no QEMU, and a new attach starts one.
    world.detach(QDISK).await;
    world.attach_qdisk(51712, "raw:/srv/d.img").await;
    world.reads(&format!("{QDISK}/hotplug-status"), "connected").await;
    assert_eq!(world.read(&format!("{OTHER}/hotplug-status")).await, "error");
    world.detach(OTHER).await;
    world.detach(QDISK).await;
    world.is_clean(&["2: signal: 11 (SIGSEGV)", "2: exit status: 0"]).await;
}

/// One that dies of the image that it is to open, and says so.
#[tokio::test(start_paused = true)]
async fn a_qemu_that_dies_of_an_image_is_told_in_its_words() {
    let world = World::new().await;
    let _devd = world.devd().await;
    world.qemus.manner(|manner| manner.bad = Some(("none", true)));
    world.attach_qdisk(51712, "qcow2:/srv/none.img").await;
    world.reads(&format!("{QDISK}/hotplug-status"), "error").await;
    let error = world.read(&format!("{QDISK}/hotplug-error")).await;
    assert!(
        error.contains(r"its last words: qemu: failed to create \'qdisk\' device \'51712\': no such image"),
        "{error}"
    );
    world.detach(QDISK).await;
    world.is_clean(&["2: exit status: 1"]).await;
}

/// B-45: the daemon is killed at any moment, and another goes on: there is one QEMU as long as there are devices, and none
/// after that.
#[tokio::test(start_paused = true)]
async fn b45_b41_a_daemon_that_is_killed_at_any_moment_loses_no_qemu() {
    for moment in (0..3000).step_by(40) {
        let world = World::new().await;
        let devd = world.devd().await;
        let (strike, ()) = tokio::join!(
            async {
                sleep(Duration::from_millis(moment)).await;
                devd.kill().await;
                sleep(Duration::from_millis(10)).await;
                world.devd().await
            },
            async {
                world.attach_qdisk(51712, "raw:/srv/d.img").await;
                world.attach("9pfs", 0, &[("path", "/srv"), ("security_model", "none")]).await;
                world.reads(&format!("{QDISK}/state"), "4").await;
                world.reads("/local/domain/1/backend/9pfs/2/0/state", "4").await;
                sleep(Duration::from_millis(100)).await;
                world.detach(QDISK).await;
                world.detach("/local/domain/1/backend/9pfs/2/0").await;
            }
        );
        world.is_clean(&["2: exit status: 0"]).await;
        strike.stop().await;
    }
}

/// A QEMU that has ended while no daemon was there, whose devices are still wanted, is started again; one that runs without
/// any device is ended.
#[tokio::test(start_paused = true)]
async fn what_has_become_of_a_qemu_meanwhile_is_found() {
    let world = World::new().await;
    let devd = world.devd().await;
    world.attach_qdisk(51712, "raw:/srv/d.img").await;
    world.reads(&format!("{QDISK}/state"), "4").await;
    world.noted("/local/domain/1/libxl/2/devd/qdisk/51712", "attached").await;
    devd.kill().await;
    world.qemus.crash(GUEST, "");
    let devd = world.devd().await;
    world.reads(PID, "1001").await;
    world.reads(&format!("{QDISK}/state"), "4").await;
    world.noted("/local/domain/1/libxl/2/devd/qdisk/51712", "attached").await;
    assert_eq!(world.read(&format!("{QDISK}/hotplug-status")).await, "connected");

    devd.kill().await;
    let devd = world.devd().await;
    world.reads(MODEL, "").await;
    sleep(LONG).await;
    let adopted = "the QEMU of domain 2: taken as it is, process 1001".to_owned();
    assert_eq!(devd.events().iter().filter(|event| **event == adopted).count(), 1, "{:?}", devd.events());
    devd.kill().await;
    world.dom0.rm(&path("/local/domain/1/backend")).await.unwrap();
    let _devd = world.devd().await;
    world.is_clean(&["2: signal: 11 (SIGSEGV)", "2: exit status: 0"]).await;
}

/// What another process has by now is not taken for a QEMU.
#[tokio::test(start_paused = true)]
async fn a_recorded_number_of_another_process_is_not_believed() {
    let world = World::without_drivers().await;
    for (node, value) in [(PID, "1"), ("/local/domain/1/device-model/2/state", "running")] {
        world.write(node, value).await;
    }
    let _devd = world.devd().await;
    world.is_clean(&[]).await;
}

/// A daemon that was asked to end leaves QEMUs and devices as they are.
#[tokio::test(start_paused = true)]
async fn a_daemon_that_ends_leaves_qemu_running() {
    let world = World::new().await;
    let devd = world.devd().await;
    world.attach_qdisk(51712, "raw:/srv/d.img").await;
    world.reads(&format!("{QDISK}/state"), "4").await;
    devd.stop().await;
    assert_eq!(world.qemus.history(), ["2: runs"]);
    world.close(QDISK).await;
    world.is_gone(QDISK).await;
    let _devd = world.devd().await;
    world.is_clean_but_for_frontends().await;
}

impl World {
    async fn is_clean_but_for_frontends(&self) {
        self.remove_frontends().await;
        self.is_clean(&["2: exit status: 0"]).await;
    }
}

/// Of guests with a QEMU, too, nothing is polled.
#[tokio::test(start_paused = true)]
async fn an_idle_qemu_is_not_asked_for() {
    let world = World::new().await;
    let devd = world.devd().await;
    world.attach_qdisk(51712, "raw:/srv/d.img").await;
    world.reads(&format!("{QDISK}/state"), "4").await;
    sleep(LONG).await;
    let before = devd.client.stats().requests;
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(devd.client.stats().requests, before);
}
