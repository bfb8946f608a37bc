//! One daemon for a domain: a node in its home that names the process which serves it.
//!
//! ```text
//! libxl/xendev-devd = "93c1f00ddeadbeef domid=3 pid=4711 start=123456 boot=3b1c… ns=4026531836.4026531834"
//! ```
//!
//! It stands in the store, since it is about the domain: whatever files two daemons share, they have the same store. A
//! process that was killed leaves it, and is known to be dead by its pid, its start and its boot.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};
use xs_client::{Client, Error, ErrorCode, Path, Request};

use super::DaemonError;
use super::daemon::own_domain;
use crate::operation::owner::{self, Life, Owner, UnderWay};
use crate::operation::record::Token;
use crate::operation::text;

/// The node, relative to the home of the domain.
pub(super) const NODE: &str = "libxl/xendev-devd";

/// How often it is looked whether the process has ended.
const LOOK: Duration = Duration::from_millis(50);

/// The pause before the node is watched again.
const AGAIN: Duration = Duration::from_secs(1);

/// The process that serves a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Holder {
    /// Its process id, in its own namespace.
    pub pid: u32,
    /// Whether it can be seen from here that it is alive; one of another pid namespace is taken to be.
    pub seen: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)?;
        if self.seen { Ok(()) } else { f.write_str(" of another pid namespace") }
    }
}

/// What the node says.
struct Said {
    token: Token,
    owner: Owner,
}

impl Said {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let token = Token(u64::from_str_radix(words.next()?, 16).ok()?);
        Some(Self { token, owner: Owner::parse(words)? })
    }

    /// The process, unless it is dead.
    fn holder(&self, me: &Owner) -> Option<Holder> {
        let life = owner::life_of((self.token, &self.owner), me);
        (life != Life::Dead).then_some(Holder { pid: self.owner.pid, seen: life == Life::Alive })
    }
}

/// The right to serve this domain, which no other process has meanwhile.
///
/// It goes with the process however that ends; [`Claim::release`] also removes the node. A node that is removed, by hand or
/// with a store that begins anew, is written again as long as [`Claim::lost`] is waited for.
///
/// # Examples
///
/// ```no_run
/// # async fn example(client: xs_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use xen_aodevice::devd::Claim;
///
/// let claim = Claim::take(&client, Duration::from_secs(3)).await?;
/// // Serve.
/// claim.release().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Claim {
    client: Client,
    node: Path,
    text: String,
    _under_way: UnderWay,
}

impl Claim {
    /// Takes it for the domain whose connection this is. A process that has it is waited for so long.
    ///
    /// # Errors
    ///
    /// [`DaemonError::RunsAlready`] if another process has it; if this domain may not write the node, or the store fails.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, this process does not have it.
    pub async fn take(client: &Client, patience: Duration) -> Result<Self, DaemonError> {
        let me = &Owner::of_this_process(own_domain(client).await?);
        let (node, token) = (Path::new(NODE).map_err(Error::from)?, Token::random());
        let under_way = UnderWay::new(token);
        let text = format!("{token} {me}");
        let begun = Instant::now();
        while let Some(holder) = claim(client, &node, &text, me).await? {
            if begun.elapsed() >= patience {
                return Err(DaemonError::RunsAlready(holder));
            }
            sleep(LOOK).await;
        }
        Ok(Self { client: client.clone(), node, text, _under_way: under_way })
    }

    /// Keeps the node there. Resolves once it names another process that is alive: then this one must not serve any more.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the node is not looked after; it may be asked for again.
    pub async fn lost(&self) -> Holder {
        let Self { client, node, .. } = self;
        loop {
            let Ok(mut watch) = client.watch(node).await else {
                sleep(AGAIN).await;
                continue;
            };
            // The first event comes at once.
            while watch.changed().await.is_ok() {
                // A store that begins anew may say only later which domain this is.
                loop {
                    match self.stands().await {
                        Ok(Some(holder)) => return holder,
                        Ok(None) => break,
                        Err(_) => sleep(AGAIN).await,
                    }
                }
            }
            // A watch ends with its connection.
            sleep(AGAIN).await;
        }
    }

    /// Writes the node unless it is there; the process that has it instead.
    async fn stands(&self) -> Result<Option<Holder>, DaemonError> {
        let Self { client, node, text: ours, .. } = self;
        let is_ours = text(client.read_opt(node).await?).as_ref() == Some(ours);
        if is_ours {
            return Ok(None);
        }
        claim(client, node, ours, &Owner::of_this_process(own_domain(client).await?)).await
    }

    /// Gives it up.
    ///
    /// # Errors
    ///
    /// If the store fails. This process does not have it any more then, either.
    pub async fn release(self) -> Result<(), Error> {
        let Self { client, node, text: ours, _under_way } = self;
        let (node, ours) = (&node, &ours);
        client
            .decide(|tx| async move {
                let is_ours = text(tx.read_opt(node).await?).as_ref() == Some(ours);
                Ok(((), is_ours.then(|| Request::Rm(node.clone())).into_iter().collect()))
            })
            .await
    }
}

/// Writes the node, unless it names a process that is alive, which is the outcome then.
async fn claim(client: &Client, node: &Path, ours: &str, me: &Owner) -> Result<Option<Holder>, DaemonError> {
    let claimed = client.decide(|tx| async move {
        let said = text(tx.read_opt(node).await?);
        let holder = said.as_deref().and_then(Said::parse).and_then(|said| said.holder(me));
        let write = Request::Write { path: node.clone(), value: ours.to_owned().into() };
        Ok((holder, holder.is_none().then_some(write).into_iter().collect()))
    });
    claimed.await.map_err(|error: Error| match error.code() {
        Some(&ErrorCode::EACCES) => DaemonError::NoNotes,
        _ => error.into(),
    })
}

/// The process that serves the domain whose connection this is; `None` if there is none.
///
/// # Errors
///
/// If the store fails, or does not say which domain that is.
pub async fn holder(client: &Client) -> Result<Option<Holder>, DaemonError> {
    let me = Owner::of_this_process(own_domain(client).await?);
    let said = text(client.read_opt(&Path::new(NODE).map_err(Error::from)?).await?);
    Ok(said.as_deref().and_then(Said::parse).and_then(|said| said.holder(&me)))
}
