//! Moving a state: what a driver or a toolstack writes, but never into a device that is gone.

use xs_client::{Client, Error, Path};

use crate::{StateValue, XenbusState};

/// Writes `to` into the `state` node of a device's directory if the node still exists, in one
/// transaction; returns what it held. `None` means that the node is gone: writing it would bring a
/// removed device back.
///
/// # Errors
///
/// Those of the transaction.
///
/// # Cancel safety
///
/// If the future is dropped, the state may have been written or not.
pub async fn move_state(
    client: &Client,
    directory: &Path,
    to: XenbusState,
) -> Result<Option<StateValue>, Error> {
    let state = &directory.join("state")?;
    client
        .transaction(|tx| async move {
            let Some(held) = tx.read_opt(state).await? else {
                return Ok(None);
            };
            tx.write(state, to.digits()).await?;
            Ok(Some(StateValue::parse(&held)))
        })
        .await
}
