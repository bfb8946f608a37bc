//! How long an attach and a detach of a file take, by the script and by the handler.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio_util::sync::CancellationToken;
use xen_hotplug::Action;
use xen_hotplug::native::block::{Block, Disk, Domain, Mode, detach};

use super::world::{GUEST, LIMIT, World};

/// Measures both in turns, and prints the medians and their ratio.
pub(super) async fn run(script: &Path, rounds: usize) -> Result<()> {
    ensure!(rounds > 0, "nothing is measured in no rounds");
    let world = World::start().await?;
    let image = world.image("image", 64 << 20)?;
    let (mut by_script, mut by_handler, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    let disk = Disk { params: image.to_string_lossy().into_owned(), mode: Mode::Write };
    let never = CancellationToken::new();
    for _ in 0..rounds {
        fresh(&world, &image).await?;
        let begun = Instant::now();
        for action in [Action::Add, Action::Remove] {
            let report = world.script(GUEST, script, action).await?;
            ensure!(report.success(), "{} {action} {report}", script.display());
        }
        by_script.push(begun.elapsed());

        fresh(&world, &image).await?;
        let begun = Instant::now();
        let attached = world.attach(GUEST, &Block::new()).await?;
        ensure!(attached.is_ok(), "{attached:?}");
        world.detach(GUEST).await?;
        by_handler.push(begun.elapsed());

        let begun = Instant::now();
        let attach = Block::new().begin(&disk, LIMIT, &never).await?;
        let attached = attach.attach(Domain::default(), Vec::new()).await?;
        let saved = attached.keep().context("a file has something to undo")?;
        detach(saved, LIMIT, &never).await?;
        alone.push(begun.elapsed());
    }
    let (script, handler, alone) = (median(by_script), median(by_handler), median(alone));
    let ratio = script.as_secs_f64() / handler.as_secs_f64();
    println!("a file attached and detached, with all requests to the store, median of {rounds}:");
    println!(
        "  script  {script:>10.2?}\n  handler {handler:>10.2?}, without requests {alone:.2?}\n  ratio   {ratio:>10.1}"
    );
    Ok(())
}

async fn fresh(world: &World, image: &Path) -> Result<()> {
    let directory = xs_client::Path::new(World::directory(GUEST))?;
    match world.client.rm(&directory).await {
        Err(error) if !error.is_not_found() => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    world.backend("vbd", GUEST, &[("params", &image.to_string_lossy()), ("mode", "w")]).await
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
