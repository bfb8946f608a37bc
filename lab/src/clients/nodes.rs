//! Cases about nodes.

use std::collections::BTreeSet;

use anyhow::Result;
use xs_client::{Access, DomId, Error, ErrorCode, Permission, Permissions, Request};

use super::World;

/// A permission list of these entries.
fn perms(entries: &[(DomId, Access)]) -> Result<Permissions> {
    let entries = entries.iter().map(|&(domid, access)| Permission { domid, access }).collect();
    Ok(Permissions::new(entries)?)
}

pub(super) async fn values_are_bytes(world: World) -> Result<()> {
    let node = world.node("value");
    let all: Vec<u8> = (0..=255).collect();
    for value in [&b"plain"[..], b"", b"\xff\xfe\0\n", &all, b"\0"] {
        world.client.write(&node, value.to_vec()).await?;
        assert_eq!(world.client.read(&node).await?, value);
    }
    Ok(())
}

pub(super) async fn the_largest_value_comes_back(world: World) -> Result<()> {
    let node = world.node("largest");
    let length = world.value_max.min(world.payload_max - node.as_str().len() - 1);
    let value: Vec<u8> = (0..length).map(|at| at as u8).collect();
    world.client.write(&node, value.clone()).await?;
    assert_eq!(world.client.read(&node).await?, value);
    Ok(())
}

pub(super) async fn long_lists_come_whole(world: World) -> Result<()> {
    let node = world.node("long");
    world.client.mkdir(&node).await?;
    let names: BTreeSet<String> = (0..120).map(|child| format!("{child:03}{}", "n".repeat(90))).collect();
    let requests = names.iter().map(|name| Ok(Request::Mkdir(node.join(name)?))).collect::<Result<_>>()?;
    // Not by the client itself: a guest's quota does not let it have so many.
    world.admin().all(requests).await?;
    let listed: BTreeSet<String> = world.client.directory(&node).await?.into_iter().collect();
    assert_eq!(listed, names);
    // Gone by whoever made them.
    world.admin().rm(&node).await?;
    Ok(())
}

pub(super) async fn permissions_are_kept(world: World) -> Result<()> {
    let node = world.node("mine");
    world.client.write(&node, "x").await?;
    assert_eq!(world.client.get_perms(&node).await?.owner(), world.domid);
    let list = perms(&[(world.domid, Access::None), (DomId::DOM0, Access::Both)])?;
    world.client.set_perms(&node, list.clone()).await?;
    assert_eq!(world.client.get_perms(&node).await?, list);
    Ok(())
}

pub(super) async fn permissions_bind_a_guest(world: World) -> Result<()> {
    let node = world.node("theirs");
    let admin = world.admin();
    admin.write(&node, "secret").await?;
    admin.set_perms(&node, perms(&[(DomId::DOM0, Access::None)])?).await?;
    let error = world.client.read(&node).await.unwrap_err();
    assert_eq!(error.code(), Some(&ErrorCode::EACCES));
    admin.set_perms(&node, perms(&[(DomId::DOM0, Access::None), (world.domid, Access::Read)])?).await?;
    assert_eq!(world.client.read(&node).await?, "secret");
    let error = world.client.write(&node, "mine").await.unwrap_err();
    assert_eq!(error.code(), Some(&ErrorCode::EACCES));
    admin.rm(&node).await?;
    Ok(())
}

pub(super) async fn what_is_missing_is_told_so(world: World) -> Result<()> {
    let (client, none) = (&world.client, world.node("none"));
    assert!(client.read(&none).await.unwrap_err().is_not_found());
    assert_eq!(client.read_opt(&none).await?, None);
    assert!(client.directory(&none).await.unwrap_err().is_not_found());
    assert!(client.directory_or_empty(&none).await?.is_empty());
    assert!(client.get_perms(&none).await.unwrap_err().is_not_found());
    assert_eq!(client.read_tree(&none).await?, None);
    client.rm(&none).await?;
    let below = world.node("none/below");
    assert!(client.rm(&below).await.unwrap_err().is_not_found());
    Ok(())
}

pub(super) async fn a_tree_is_read_whole(world: World) -> Result<()> {
    let mut expected = vec![(String::new(), String::new())];
    for device in 0..5 {
        expected.push((device.to_string(), String::new()));
        for key in ["frontend", "state"] {
            let (below, value) = (format!("{device}/{key}"), format!("{device} {key}"));
            world.client.write(&world.node(format!("tree/{below}")), value.clone()).await?;
            expected.push((below, value));
        }
    }
    let tree = world.client.read_tree(&world.node("tree")).await?.expect("it was just written");
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let found: Vec<(String, String)> = tree.nodes().map(|(below, node)| (below, text(&node.value))).collect();
    assert_eq!(found, expected);
    Ok(())
}

/// Among requests that are under way with it.
pub(super) async fn a_request_too_long_fails_alone(world: World) -> Result<()> {
    let node = world.node("long");
    let value = vec![b'x'; world.payload_max - node.as_str().len()];
    let fine = |number: usize| Request::Write { path: world.node(number), value: "fine".into() };
    let mut requests: Vec<Request> = (0..20).map(fine).collect();
    requests.insert(10, Request::Write { path: node.clone(), value: value.into() });
    for (number, outcome) in world.client.batch(requests).await?.into_iter().enumerate() {
        match (number, outcome) {
            (10, Err(Error::Encode(_))) => {}
            (10, Err(error)) => assert_eq!(error.code(), Some(&ErrorCode::E2BIG)),
            (10, Ok(reply)) => panic!("it was taken: {reply:?}"),
            (_, outcome) => drop(outcome?),
        }
    }
    assert_eq!(world.client.read_opt(&node).await?, None);
    Ok(())
}

pub(super) async fn an_error_fails_alone(world: World) -> Result<()> {
    let (node, none) = (world.node("node"), world.node("none"));
    let list = Request::Directory(none.clone());
    let reads = [Request::Mkdir(node.clone()), Request::Read(none), list, Request::Read(node)];
    let outcomes = world.client.batch(reads.to_vec()).await?;
    let codes: Vec<_> = outcomes.iter().map(|outcome| outcome.as_ref().err().and_then(Error::code)).collect();
    assert_eq!(codes, [None, Some(&ErrorCode::ENOENT), Some(&ErrorCode::ENOENT), None]);
    Ok(())
}
