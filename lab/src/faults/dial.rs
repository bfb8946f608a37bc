//! The client's way to the stores of a world, with the schedule's faults in between.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::io::DuplexStream;
use tokio::time::{sleep, sleep_until};
use xs_client::{Connect, FirstOf};

use super::fault::{Event, What};
use super::wire::Wire;
use super::world::World;

/// A new connection of the client.
pub(super) fn dial(world: &Arc<World>) -> io::Result<DuplexStream> {
    let (number, store) = world.wire_begun()?;
    let (near, far) = tokio::io::duplex(world.schedule.settings.pipe);
    tokio::spawn(Wire::new(world.clone(), number).run(far, store));
    Ok(near)
}

/// The same by a pair of sockets.
pub(super) fn dial_socket(world: &Arc<World>) -> io::Result<UnixStream> {
    let (number, store) = world.wire_begun()?;
    let (near, far) = UnixStream::pair()?;
    set_socket_send_buffer_size(&near, world.schedule.settings.pipe)?;
    far.set_nonblocking(true)?;
    let far = tokio::net::UnixStream::from_std(far)?;
    tokio::spawn(Wire::new(world.clone(), number).run(far, store));
    Ok(near)
}

/// Makes one connection after the other: one of the ways to the store.
pub(super) struct Dialer {
    world: Arc<World>,
    number: usize,
}

/// All ways that there are, of which the client has to choose.
pub(super) fn ways(world: &Arc<World>) -> FirstOf<Dialer> {
    let count = if world.schedule.settings.way.is_some() { 2 } else { 1 };
    FirstOf::new((0..count).map(|number| Dialer { world: world.clone(), number }))
}

impl Connect for Dialer {
    type Transport = DuplexStream;

    fn at(&self) -> String {
        format!("way {} through the faults", self.number)
    }

    async fn connect(&mut self) -> io::Result<DuplexStream> {
        let Self { world, number } = self;
        if world.schedule.settings.way.is_some_and(|first| first != *number) {
            if world.connections() == 0 {
                return Err(io::ErrorKind::NotFound.into());
            }
            world.violation("the client leaves the way that it has found for another one");
            return dial(world);
        }
        world.attempted();
        match world.back() {
            Some(back) => sleep_until(back).await,
            // Nothing takes no time.
            None => sleep(Duration::from_millis(1)).await,
        }
        let dialled = dial(world);
        if dialled.is_err() && world.schedule.settings.way.is_some() {
            world.happened(Event::WayClosed);
        }
        dialled
    }

    fn window(&self) -> usize {
        if self.number == 0 { usize::MAX } else { 1 }
    }

    fn is_ordered(&self) -> bool {
        self.number == 0 && !self.world.schedule.faults.iter().any(|fault| fault.what == What::Reorder)
    }
}
