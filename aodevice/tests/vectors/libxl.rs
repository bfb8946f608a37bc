//! Devices of a domain that libxl made: they are entered into its configuration, and struck out of it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{FileType, Mode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::join;
use tokio_util::sync::CancellationToken;
use xen_aodevice::libxl::{ConfigError, Locked, Userdata};
use xen_aodevice::{
    Cause, Device, FailureKind, Force, Hint, Kind, Limits, Step, Toolstack, WaitFor, Warning, vif,
};

use crate::world::{BE, Ended, GUEST, LX, World, disk, path, tenths, warned};

const VM: &str = "/vm/0a1b2c3d-0000-4000-8000-0123456789ab";
const ANOTHER_VM: &str = "/vm/0a1b2c3d-0000-4000-8000-ffffffffffff";

/// What `xl create` writes, shortened.
const CREATED: &str = r#"{
    "c_info": {
        "type": "pv",
        "name": "g"
    },
    "b_info": {
        "max_memkb": 18446744073709551615,
        "sched_params": {

        }
    },
    "on_reboot": "restart"
}
"#;

/// A world whose guest libxl has made, and libxl's directory.
struct Made {
    world: World,
    directory: TempDir,
    userdata: Userdata,
    toolstack: Toolstack,
    /// Cancelled when an add begins to enter its device.
    entering: CancellationToken,
    /// The file when a roll-back begins to strike the device out.
    before_striking: Arc<Mutex<Option<String>>>,
}

impl Made {
    async fn new() -> Self {
        let world = World::new().await;
        world.write("/local/domain/1/vm", VM).await;
        let directory = tempfile::tempdir().unwrap();
        let userdata = Userdata::new(directory.path(), GUEST, VM).unwrap();
        fs::write(userdata.path(), format!("{CREATED}\0")).unwrap();
        let (entering, before_striking) = (CancellationToken::new(), Arc::new(Mutex::new(None)));
        let toolstack = world.toolstack.clone().with_libxl_dir(directory.path()).with_observer({
            let (entering, before_striking, path) =
                (entering.clone(), Arc::clone(&before_striking), userdata.path());
            move |step: &Step| {
                if step.doing.starts_with("entering ") {
                    entering.cancel();
                }
                if step.doing.starts_with("rolling back: striking ") {
                    *before_striking.lock().unwrap() = fs::read_to_string(&path).ok();
                }
            }
        });
        Self { world, directory, userdata, toolstack, entering, before_striking }
    }

    fn lock(&self) -> Locked {
        self.userdata.try_lock().unwrap().expect("nobody has the lock")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.userdata.path()).unwrap()
    }

    /// Whether the file is as libxl wrote it, and is the only one.
    #[track_caller]
    fn is_as_created(&self) {
        assert_eq!(self.text(), format!("{CREATED}\0"));
        assert_eq!(fs::read_dir(self.directory.path()).unwrap().count(), 1);
    }

    fn config(&self) -> Value {
        serde_json::from_str(self.text().trim_end_matches('\0')).unwrap()
    }

    async fn add(&self, device: &Device) -> Ended {
        self.add_unless(device, &CancellationToken::new()).await
    }

    async fn add_unless(&self, device: &Device, cancel: &CancellationToken) -> Ended {
        self.toolstack.add(GUEST, device, WaitFor::Script, cancel).await
    }

    async fn remove(&self) -> Ended {
        let never = CancellationToken::new();
        self.toolstack.remove(GUEST, (Kind::Vbd, 51712), Force::Never, &never).await
    }

    /// The backend of `xvda` takes it up.
    async fn is_taken_up(&self) {
        self.world.exists(BE).await;
        self.world.backend_says("2").await;
    }

    /// The backend of `xvda` lets go.
    async fn is_let_go(&self) {
        self.world.is_told_to_close().await;
        self.world.backend_says("6").await;
    }

    async fn add_disk(&self) {
        let device = disk();
        let (added, ()) = join!(self.add(&device), self.is_taken_up());
        assert_eq!(warned(&added.unwrap()), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_attach_is_entered_and_a_detach_strikes_it_out() {
    let made = Made::new().await;
    made.add_disk().await;
    let entry = r#"    "disks": [
        {
            "pdev_path": "/srv/d.img",
            "vdev": "xvda",
            "format": "raw",
            "script": "block",
            "readwrite": 1
        }
    ],
    "on_reboot": "restart"
}
"#;
    let (head, tail) = CREATED.split_once("    \"on_reboot\"").unwrap();
    assert!(tail.ends_with("}\n"));
    assert_eq!(made.text(), format!("{head}{entry}\0"));
    assert_eq!(fs::metadata(made.userdata.path()).unwrap().mode() & 0o777, 0o600);
    let (removed, ()) = join!(made.remove(), made.is_let_go());
    assert_eq!(warned(&removed.unwrap()), [""; 0]);
    made.is_as_created();
}

/// What was found out about an interface is in its entry: its number and its address.
#[tokio::test(start_paused = true)]
async fn an_interface_is_entered_as_it_was_settled() {
    let made = Made::new().await;
    let nic = Device::Vif(vif::parse(&["bridge=br1"]).unwrap());
    made.world.write("/libxl/1/device/vif/0/backend", "/x").await;
    let (added, ()) = join!(made.add(&nic), async {
        made.world.exists("/local/domain/0/backend/vif/1/1").await;
        made.world.write("/local/domain/0/backend/vif/1/1/state", "2").await;
    });
    added.unwrap();
    let mac = made.world.read("/libxl/1/device/vif/1/mac").await;
    let entry = json!({"devid": 1, "mac": mac, "bridge": "br1", "nictype": "vif"});
    // As a text, for the order.
    assert_eq!(made.config()["nics"].to_string(), json!([entry]).to_string());
}

/// B-38: libxl would have two entries for one disk.
#[tokio::test(start_paused = true)]
async fn b38_an_entry_of_another_spelling_is_replaced() {
    let made = Made::new().await;
    let stale = r#""disks": [{"vdev": "51712"}, {"vdev": "xvdb"}, {"vdev": "xvda"}]}"#;
    fs::write(made.userdata.path(), CREATED.trim_end().trim_end_matches("\n}").to_owned() + "," + stale)
        .unwrap();
    made.add_disk().await;
    let disks = &made.config()["disks"];
    assert_eq!((disks.as_array().unwrap().len(), &disks[1]["pdev_path"]), (2, &json!("/srv/d.img")));
    assert_eq!(disks[0], json!({"vdev": "xvdb"}));
}

/// libxl takes an earlier device's entry for the one that has its number now, so it goes before that is made.
#[tokio::test(start_paused = true)]
async fn an_earlier_entry_goes_before_the_device_is_made() {
    for enters in [true, false] {
        let mut made = Made::new().await;
        let stale = r#""disks": [{"vdev": "51712", "pdev_path": "/old"}]}"#;
        fs::write(made.userdata.path(), CREATED.trim_end().trim_end_matches("\n}").to_owned() + "," + stale)
            .unwrap();
        if !enters {
            made.toolstack = made.toolstack.clone().without_libxl_config();
        }
        let device = disk();
        let (added, ()) = join!(made.add(&device), async {
            made.world.exists(LX).await;
            assert_eq!(made.text().trim_end_matches('\0'), CREATED);
            made.is_taken_up().await;
        });
        added.unwrap();
        assert_eq!(made.text().trim_end_matches('\0') == CREATED, !enters);
    }
}

/// What an actor that died has left, or `xl block-detach`, which leaves every entry.
#[tokio::test(start_paused = true)]
async fn an_entry_without_a_device_is_detached() {
    let made = Made::new().await;
    let stale = r#""disks": [{"vdev": "51712", "pdev_path": "/old"}]}"#;
    fs::write(made.userdata.path(), CREATED.trim_end().trim_end_matches("\n}").to_owned() + "," + stale)
        .unwrap();
    let removed = made.remove().await.unwrap();
    assert!(matches!(removed.warnings[..], [Warning::OnlyEntry]), "{removed:?}");
    made.is_as_created();
    assert!(matches!(made.remove().await.unwrap_err().cause, Cause::NoSuchDevice));
}

/// Another toolstack, which made the domain, has no such file. None is made, and nothing is said.
#[tokio::test(start_paused = true)]
async fn without_a_file_nothing_is_entered() {
    for without in ["the file", "the node", "the wish"] {
        let mut made = Made::new().await;
        match without {
            "the file" => fs::remove_file(made.userdata.path()).unwrap(),
            "the node" => made.world.write("/local/domain/1/vm", "/vm/none").await,
            _ => made.toolstack = made.toolstack.clone().without_libxl_config(),
        }
        let files = || fs::read_dir(made.directory.path()).unwrap().count();
        let before = files();
        let (tell, told) = std::sync::mpsc::channel();
        made.toolstack = made.toolstack.clone().with_observer(move |step: &Step| {
            tell.send(step.doing.clone()).unwrap();
        });
        made.add_disk().await;
        let (removed, ()) = join!(made.remove(), made.is_let_go());
        removed.unwrap();
        assert_eq!(files(), before, "without {without}");
        assert!(told.try_iter().all(|doing| !doing.contains("libxl")), "without {without}");
        if before > 0 {
            made.is_as_created();
        }
    }
}

/// Between the removal of the nodes and that of the entry somebody has added the device again.
#[tokio::test(start_paused = true)]
async fn the_entry_of_a_device_that_is_back_stays() {
    let made = Made::new().await;
    made.add_disk().await;
    let before = made.text();
    let locked = made.lock();
    let (removed, ()) = join!(made.remove(), async {
        made.is_let_go().await;
        made.world.is_gone(LX).await;
        made.world.write(&format!("{LX}/backend"), "/x").await;
        drop(locked);
    });
    assert_eq!(warned(&removed.unwrap()), [""; 0]);
    assert_eq!(made.text(), before);
}

/// The backend gives up after the entry was made.
#[tokio::test(start_paused = true)]
async fn a_roll_back_strikes_the_entry_out() {
    let made = Made::new().await;
    let before = made.world.dump().await;
    let (device, locked) = (disk(), made.lock());
    let (added, ()) = join!(made.add(&device), async {
        made.is_taken_up().await;
        made.entering.cancelled().await;
        made.world.backend_says("6").await;
        drop(locked);
    });
    let failure = added.unwrap_err();
    assert!(matches!(failure.cause, Cause::Refused { .. }), "{failure}");
    assert!(failure.warnings.is_empty(), "{:?}", failure.warnings);
    let entered = made.before_striking.lock().unwrap().take().unwrap();
    assert!(entered.contains(r#""vdev": "xvda""#), "{entered}");
    made.is_as_created();
    assert_eq!(made.world.dump().await, before);
}

/// An add that comes between a removal's end and its strike waits until that is done.
#[tokio::test(start_paused = true)]
async fn an_add_does_not_begin_before_the_earlier_entry_is_gone() {
    let made = Made::new().await;
    made.add_disk().await;
    let (device, locked) = (disk(), made.lock());
    let (removed, added, ()) = join!(
        made.remove(),
        async {
            made.world.is_told_to_close().await;
            made.world.is_gone(LX).await;
            made.add(&device).await
        },
        async {
            made.is_let_go().await;
            made.world.is_gone(LX).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(made.world.dom0.read_opt(&crate::world::path(LX)).await.unwrap().is_none());
            drop(locked);
        }
    );
    assert_eq!(warned(&removed.unwrap()), [""; 0]);
    // No backend has taken it up.
    assert!(matches!(added.unwrap_err().cause, Cause::TimedOut { .. }));
    made.is_as_created();
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_held_too_long_fails_an_attach() {
    let made = Made::new().await;
    let before = made.world.dump().await;
    let (device, locked) = (disk(), made.lock());
    let (added, ()) = join!(made.add(&device), async {
        made.is_taken_up().await;
        made.is_let_go().await;
        assert_eq!(made.world.clock(), 10.0);
    });
    drop(locked);
    let failure = added.unwrap_err();
    let text = format!(
        "cannot attach vbd xvda to domain 1: libxl's configuration of the domain, {}, cannot be changed: \
         another program has held its lock for 10s",
        made.userdata.path().display()
    );
    assert_eq!(failure.to_string(), text);
    assert!(matches!(failure.cause, Cause::Config { problem: ConfigError::Busy(_), .. }));
    assert_eq!((failure.hint(), failure.cause.kind()), (Hint::AddWithoutConfig, FailureKind::TimedOut));
    assert_eq!(made.world.dump().await, before);
    made.is_as_created();
}

/// The device is gone, so that the entry stays is no failure.
#[tokio::test(start_paused = true)]
async fn a_lock_that_is_held_too_long_is_a_warning_of_a_detach() {
    let made = Made::new().await;
    made.add_disk().await;
    let (before, locked) = (made.text(), made.lock());
    let (removed, ()) = join!(made.remove(), made.is_let_go());
    drop(locked);
    let success = removed.unwrap();
    assert_eq!(tenths(success.elapsed), 10.0);
    let [warning] = &warned(&success)[..] else { panic!("{success:?}") };
    assert!(warning.starts_with("the device is gone, but "), "{warning}");
    assert!(warning.contains(made.userdata.path().to_str().unwrap()), "{warning}");
    assert_eq!(made.text(), before);
    assert_eq!(made.world.read(LX).await, "not there");
}

/// The device is gone by then, and the caller does not wait for its entry.
#[tokio::test(start_paused = true)]
async fn a_detach_that_is_cancelled_at_its_entry_is_done() {
    let made = Made::new().await;
    made.add_disk().await;
    let (before, locked, cancel) = (made.text(), made.lock(), CancellationToken::new());
    let removing = made.toolstack.remove(GUEST, (Kind::Vbd, 51712), Force::Never, &cancel);
    let (removed, ()) = join!(removing, async {
        made.is_let_go().await;
        made.world.is_gone(LX).await;
        made.world.at(3.0).await;
        cancel.cancel();
    });
    drop(locked);
    let success = removed.unwrap();
    assert_eq!(tenths(success.elapsed), 3.0);
    assert!(matches!(&success.warnings[..], [Warning::NotStruck(Cause::Aborted)]), "{success:?}");
    assert_eq!(made.text(), before);
}

/// While the lock is waited for, what is to be entered may be given up, lost, or of another domain.
#[tokio::test(start_paused = true)]
async fn what_came_to_nothing_meanwhile_is_not_entered() {
    for (meanwhile, says) in [
        ("it is cancelled", "cancelled"),
        ("xl removes the device", "removed by another toolstack"),
        ("the domain is replaced", "gone with its domain"),
        ("the domain goes", "gone with its domain"),
    ] {
        let made = Made::new().await;
        let (device, locked, cancel) = (disk(), made.lock(), CancellationToken::new());
        let (added, ()) = join!(made.add_unless(&device, &cancel), async {
            made.is_taken_up().await;
            made.entering.cancelled().await;
            match meanwhile {
                "it is cancelled" => {
                    cancel.cancel();
                    made.is_let_go().await;
                    drop(locked);
                }
                "xl removes the device" => {
                    made.world.dom0.rm(&path(LX)).await.unwrap();
                    drop(locked);
                }
                _ => {
                    match meanwhile {
                        "the domain goes" => made.world.store.release(GUEST),
                        _ => made.world.write("/local/domain/1/vm", ANOTHER_VM).await,
                    }
                    drop(locked);
                    made.is_let_go().await;
                }
            }
        });
        let failure = added.unwrap_err();
        assert!(failure.cause.to_string().contains(says), "{meanwhile}: {failure}");
        if let Some(before_striking) = made.before_striking.lock().unwrap().take() {
            assert_eq!(before_striking, format!("{CREATED}\0"), "{meanwhile}");
        }
        made.is_as_created();
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_changed_fails_an_attach() {
    let made = Made::new().await;
    let before = made.world.dump().await;
    let new = made.directory.path().join("userdata-n.1.0a1b2c3d-0000-4000-8000-0123456789ab.libxl-json");
    for (text, says) in [
        ("{\"disks\": {}}", "its member \"disks\" is not an array"),
        ("{\"disks\": [1.5]}", "it holds 1.5"),
        ("not JSON", "it is not a JSON object: "),
        (CREATED, new.to_str().unwrap()),
    ] {
        fs::write(made.userdata.path(), text).unwrap();
        if text == CREATED {
            // In the way of the new file.
            fs::create_dir(&new).unwrap();
        }
        let device = disk();
        let failure = if text == CREATED {
            let (added, ()) = join!(made.add(&device), async {
                made.is_taken_up().await;
                made.is_let_go().await;
            });
            added.unwrap_err()
        } else {
            // What cannot be understood is seen before anything is written.
            made.add(&device).await.unwrap_err()
        };
        assert!(failure.to_string().contains(says), "{failure}");
        assert_eq!(failure.hint(), Hint::AddWithoutConfig);
        assert_eq!(made.text(), text);
        assert_eq!(made.world.dump().await, before);
    }
}

/// A pipe that nobody writes to stands for storage that does not answer.
#[tokio::test]
async fn what_was_given_up_is_not_written_later() {
    let mut made = Made::new().await;
    let limit = Duration::from_millis(100);
    let mut limits = Limits::default();
    (limits.file, limits.config) = (limit, limit);
    made.toolstack = made.toolstack.clone().with_limits(limits).with_observer(|_| {});
    let (device, file) = (disk(), made.userdata.path());
    let (added, ()) = join!(made.add(&device), async {
        made.world.exists(BE).await;
        fs::remove_file(&file).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &file, FileType::Fifo, Mode::RWXU, 0).unwrap();
        made.is_taken_up().await;
        made.is_let_go().await;
    });
    let failure = added.unwrap_err();
    assert!(matches!(&failure.cause, Cause::Config { problem: ConfigError::NoAnswer(_), .. }), "{failure}");
    // It has the lock still, so the roll-back cannot know.
    assert!(matches!(&failure.warnings[..], [Warning::NotStruck(_)]), "{failure:?}");
    fs::write(&file, CREATED).unwrap();
    while made.userdata.try_lock().unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(FileType::from_raw_mode(fs::metadata(&file).unwrap().mode()).is_fifo());
    assert_eq!(fs::read_dir(made.directory.path()).unwrap().count(), 1);
}
