//! What the store tells of a domain: its daemon is introduced to each domain that is made, and forgets those that
//! are destroyed, the dying among them. One that is paused or has shut down it does not tell from one that runs.

use xs_client::{Client, DomId, Error, ErrorCode, Path};

use super::{Condition, DomainFacts, Looking};

/// The facts that the store tells.
#[derive(Clone, Debug)]
pub struct StoreFacts {
    client: Client,
}

impl StoreFacts {
    /// Those of the store at the other end of this connection.
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

impl DomainFacts for StoreFacts {
    fn look(&self, domid: DomId) -> Looking<'_> {
        Box::pin(async move {
            let home = Path::new(format!("/local/domain/{domid}"))?;
            if self.client.read_opt(&home).await?.is_none() {
                return Ok(Condition::Gone);
            }
            Ok(match is_introduced(&self.client, domid).await? {
                Some(true) => Condition::There,
                Some(false) => Condition::Gone,
                None => Condition::Unknown,
            })
        })
    }
}

/// Whether the store's daemon has been introduced to a domain; `None` for a toolstack that may not ask.
pub(crate) async fn is_introduced(client: &Client, domid: DomId) -> Result<Option<bool>, Error> {
    match client.is_introduced(domid).await {
        Err(Error::Store { code: ErrorCode::EACCES | ErrorCode::ENOSYS, .. }) => Ok(None),
        // A store of its own may never have been told of its own domain.
        Ok(false) if domid == DomId::DOM0 => Ok(Some(true)),
        introduced => introduced.map(Some),
    }
}
