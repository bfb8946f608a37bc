//! The client's way to the stores of a world, with the schedule's faults in between.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::io::DuplexStream;
use tokio::time::{sleep, sleep_until};
use xs_client::Connect;

use super::fault::What;
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

/// Makes one connection after the other.
pub(super) struct Dialer(pub(super) Arc<World>);

impl Connect for Dialer {
    type Transport = DuplexStream;

    fn at(&self) -> String {
        "the faults".to_owned()
    }

    async fn connect(&mut self) -> io::Result<DuplexStream> {
        match self.0.back() {
            Some(back) => sleep_until(back).await,
            // Nothing takes no time.
            None => sleep(Duration::from_millis(1)).await,
        }
        dial(&self.0)
    }

    fn is_ordered(&self) -> bool {
        !self.0.schedule.faults.iter().any(|fault| fault.what == What::Reorder)
    }
}
