//! Ctrl-C: the first one cancels, and what was begun is cleaned up; a second one gives up on that.

use std::process;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that SIGINT and SIGTERM cancel.
pub(crate) fn cancel_on_signal() -> CancellationToken {
    let token = CancellationToken::new();
    let cancel = token.clone();
    // Without handlers the signals end the program as they always do.
    if let (Ok(interrupt), Ok(terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    {
        tokio::spawn(listen(interrupt, terminate, cancel));
    }
    token
}

async fn listen(mut interrupt: Signal, mut terminate: Signal, cancel: CancellationToken) {
    let mut either = async || {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    either().await;
    eprintln!("cancelling, and cleaning up; interrupt again to stop at once");
    cancel.cancel();
    either().await;
    eprintln!("stopped at once; what was begun is left, and can be detached");
    process::exit(4);
}
