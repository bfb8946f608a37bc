//! The client against the embedded store, in one process and one thread.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Mutex;
use xs_client::{Client, Config, Path, Request};
use xs_proto::DomId;
use xs_store::Store;

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn client(store: &Store) -> Client {
    Client::over(store.connect(DomId::DOM0), Config::default())
}

fn path(text: &str) -> Path {
    Path::new(text).unwrap()
}

/// READ, one after the other and 64 together.
fn reads(c: &mut Criterion) {
    let runtime = runtime();
    let name = path("/local/domain/0/name");
    let client = runtime.block_on(async {
        let client = client(&Store::new());
        client.write(&name, "Domain-0").await.unwrap();
        client
    });
    let mut group = c.benchmark_group("client/reads");
    group.throughput(Throughput::Elements(1));
    group.bench_function("one at a time", |b| {
        b.to_async(&runtime).iter(async || client.read(&name).await.unwrap());
    });
    let names = vec![name; 64];
    group.throughput(Throughput::Elements(64));
    group.bench_function("64 together", |b| {
        b.to_async(&runtime).iter(async || client.read_many(&names).await.unwrap());
    });
}

/// Another client writes to nodes in one batch; this one takes the event of each.
fn events(c: &mut Criterion) {
    let mut group = c.benchmark_group("client/events");
    for nodes in [1, 64] {
        let runtime = runtime();
        let paths: Vec<_> = (0..nodes).map(|node| path(&format!("/w/{node}/state"))).collect();
        let (writer, watches) = runtime.block_on(async {
            let store = Store::new();
            let client = client(&store);
            let mut watches = Vec::new();
            for path in &paths {
                let mut watch = client.watch(path).await.unwrap();
                // Every watch fires once at first.
                watch.changed().await.unwrap();
                watches.push(watch);
            }
            (self::client(&store), Mutex::new(watches))
        });
        let write = |path: &Path| Request::Write { path: path.clone(), value: "4".into() };
        group.throughput(Throughput::Elements(nodes));
        group.bench_function(format!("{nodes} nodes"), |b| {
            b.to_async(&runtime).iter(async || {
                writer.all(paths.iter().map(write).collect()).await.unwrap();
                for watch in &mut *watches.lock().await {
                    watch.changed().await.unwrap();
                }
            });
        });
    }
}

criterion_group!(benches, reads, events);
criterion_main!(benches);
