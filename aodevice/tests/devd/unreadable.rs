//! Nodes among the notes that are none.

use xen_aodevice::devd::unreadable;
use xs_client::{Client, Config};

use super::world::*;

/// Made by hand, or by another version: what tells of nothing goes when the daemon begins, and it says so.
#[tokio::test(start_paused = true)]
async fn what_is_no_note_goes_if_nothing_is_lost_with_it() {
    let world = World::new().await;
    let notes = "/local/domain/1/libxl";
    for (node, value) in [
        ("7/devd/vbd/51712", "attached"),
        ("7/devd/vbd/x", ""),
        ("7/devd/nonsense", ""),
        ("8/devd/vbd", ""),
        ("9/devd", ""),
        ("abc/devd/vbd/1", "junk"),
    ] {
        world.write(&format!("{notes}/{node}"), value).await;
    }
    let stay = [
        ("10/devd/vbd/51712", r#"{"stage":"of a later version","keys":{"node":"/dev/loop0"}}"#),
        ("10/devd/vbd/51728", "with a copy"),
        ("10/devd/vbd/51728/params", "/srv/d.img"),
        ("10/devd/later", "something else"),
        ("10/of-another-program", "4711"),
    ];
    for (node, value) in stay {
        world.write(&format!("{notes}/{node}"), value).await;
    }
    let client = Client::over(world.store.connect(DRIVER), Config::default());
    assert_eq!(unreadable(&client).await.unwrap().len(), 8);

    let devd = world.devd().await;
    world.is_gone(&format!("{notes}/abc")).await;
    let expected = ["libxl/10/devd/vbd/51712", "libxl/10/devd/vbd/51728"];
    let mut left = unreadable(&client).await.unwrap();
    left.sort();
    assert_eq!(left, expected);
    for (node, value) in stay {
        assert_eq!(world.read(&format!("{notes}/{node}")).await.replace('\\', ""), value);
    }
    for gone in ["7", "8", "9"] {
        assert_eq!(world.read(&format!("{notes}/{gone}")).await, "not there");
    }
    let told = devd.events();
    let said = |words: &str| told.iter().filter(|event| event.contains(words)).count();
    assert_eq!((said("tells of nothing: removed"), said("it stays")), (6, 2), "{told:#?}");
}

/// In the place of a note whose backend is there it is no hindrance.
#[tokio::test(start_paused = true)]
async fn a_device_is_served_whatever_stands_in_the_place_of_its_note() {
    let world = World::new().await;
    world.write(NOTE, "junk").await;
    world.attach_disk().await;
    let _devd = world.devd().await;
    world.noted(NOTE, "attached").await;
    world.reads(&format!("{BE}/state"), "4").await;
    world.detach(BE).await;
    assert_eq!(world.left().await, [""; 0]);
}
