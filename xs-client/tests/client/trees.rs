//! Subtrees in one call.

use xs_client::{Client, Config, DomId, Error, Op, Path};
use xs_store::Store;

use crate::support::{Peer, client, frame, path, watched_client};

async fn fill(client: &Client, nodes: &[(&str, &'static str)]) {
    for (node, value) in nodes {
        client.write(&path(node), *value).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_tree_is_all_nodes_with_their_values() {
    let client = client();
    fill(&client, &[("/t/a", "1"), ("/t/b/c", "2"), ("/t", "top"), ("/ta", "not below")]).await;
    let tree = client.read_tree(&path("/t")).await.unwrap().unwrap();
    let nodes: Vec<_> = tree.nodes().map(|(path, node)| (path, &node.value[..])).collect();
    let expected = [("", "top"), ("a", "1"), ("b", ""), ("b/c", "2")];
    assert_eq!(nodes, expected.map(|(path, value)| (path.to_owned(), value.as_bytes())));
    assert_eq!(tree.value("b/c").unwrap(), "2");
    assert_eq!(tree.get("b").unwrap().children.len(), 1);
    assert!(tree.get("b/c/d").is_none());
    let root = client.read_tree(&Path::root()).await.unwrap().unwrap();
    assert_eq!(root.get("t"), Some(&tree));
}

#[tokio::test(start_paused = true)]
async fn a_missing_node_has_no_tree() {
    assert_eq!(client().read_tree(&path("/none")).await.unwrap(), None);
}

/// Also those that are too wide for one round trip.
#[tokio::test(start_paused = true)]
async fn levels_are_asked_for_together() {
    let (client, proxy, _store) = watched_client(Config { window: 1000, ..Config::default() });
    for child in 0..300 {
        client.write(&path(format!("/wide/{child}/x")), "v").await.unwrap();
    }
    let before = proxy.count(Op::READ);
    let tree = client.read_tree(&path("/wide")).await.unwrap().unwrap();
    assert_eq!(tree.nodes().count(), 601);
    assert_eq!(proxy.count(Op::READ) - before, 601);
}

#[tokio::test(start_paused = true)]
async fn a_directory_too_long_for_a_reply_is_read_too() {
    let client = client();
    let name = |number: usize| format!("/long/{number:0>100}");
    for number in 0..100 {
        client.write(&path(name(number)), number.to_string()).await.unwrap();
    }
    let tree = client.read_tree(&path("/long")).await.unwrap().unwrap();
    assert_eq!(tree.children.len(), 100);
    assert_eq!(tree.value(&name(7)["/long/".len()..]).unwrap(), "7");
}

#[tokio::test(start_paused = true)]
async fn a_tree_over_the_limit_is_refused() {
    let config = Config { tree_limit: 10, ..Config::default() };
    let client = Client::over(Store::new().connect(DomId::DOM0), config);
    for child in 0..9 {
        client.write(&path(format!("/t/{child}")), "v").await.unwrap();
    }
    assert_eq!(client.read_tree(&path("/t")).await.unwrap().unwrap().nodes().count(), 10);
    client.write(&path("/t/9"), "v").await.unwrap();
    let error = client.read_tree(&path("/t")).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: 10, .. }), "{error}");
}

/// Values longer than any node can have are given up before all of the level is asked for.
#[tokio::test(start_paused = true)]
async fn a_tree_of_too_many_bytes_is_refused() {
    let (client, mut peer) = Peer::new(Config { tree_limit: 1000, ..Config::default() });
    let names: String = (0..900).map(|child| format!("{child}\0")).collect();
    let mut asked = 0;
    let root = path("/t");
    let answering = async {
        while let Some(request) = peer.request().await {
            asked += 1;
            let value = vec![b'x'; 20_000];
            let reply = match request.op {
                Op::READ => &value[..],
                _ if asked == 2 => names.as_bytes(),
                _ => b"",
            };
            peer.send(&frame(request.op, request.req_id, reply.len() as u32, reply)).await;
        }
    };
    let tree = tokio::select! {
        tree = client.read_tree(&root) => tree,
        () = answering => Ok(None),
    };
    let error = tree.unwrap_err();
    assert!(matches!(&error, Error::Endless { path, limit: 4_096_000 } if *path == root), "{error}");
    assert!(asked <= 2 + 512, "{asked} requests");
}

#[tokio::test(start_paused = true)]
async fn in_a_transaction_a_tree_is_that_of_one_moment() {
    let client = client();
    fill(&client, &[("/t/a", "1"), ("/t/b", "1")]).await;
    let mut runs = 0;
    let sum = client.transaction(|tx| {
        runs += 1;
        let (first, client) = (runs == 1, client.clone());
        async move {
            let tree = tx.read_tree(&path("/t")).await?.unwrap();
            if first {
                // Somebody else.
                client.write(&path("/t/b"), "2").await?;
            }
            Ok::<_, Error>(tree.children.values().map(|node| node.value.clone()).collect::<Vec<_>>())
        }
    });
    assert_eq!(sum.await.unwrap(), ["1", "2"]);
    assert_eq!(runs, 2);
}
