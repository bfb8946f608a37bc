//! What a script says of its run in the store, beside its exit status: `hotplug-status` and
//! `hotplug-error`.
//!
//! Both nodes stay when a run is over, so what stands there may be an older run's word: of an earlier
//! script of the same add, or of the add when the device is removed. What stood there before a run began
//! is not told as its result.

use bytes::Bytes;
use tokio::time::timeout;
use tracing::debug;
use xen_hotplug::{LINE_SHOWN, Report, printable};
use xs_client::{Client, Error, Path, PathError, Request};

use super::record::Token;
use super::steps::Standing;
use super::store::{self, Depth};
use super::{LAST_WORDS, Target};
use crate::Cause;

use crate::kind::Recorded;

/// A value of the store in a form that can be shown; `None` if there is nothing in it.
pub(crate) fn some_text(value: Option<Bytes>) -> Option<String> {
    value.filter(|text| !text.is_empty()).map(|text| printable(text, LINE_SHOWN))
}

/// What scripts have said of their runs, in a form that can be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// `hotplug-status`.
    pub(crate) status: Option<String>,
    /// `hotplug-error`.
    pub(crate) error: Option<String>,
}

impl Said {
    /// Where scripts say it that run in this directory.
    pub(crate) fn nodes(directory: &Path) -> Result<[Path; 2], PathError> {
        Ok([directory.join("hotplug-status")?, directory.join("hotplug-error")?])
    }

    /// From what stands there, in the order of [`Self::nodes`].
    pub(crate) fn from_values(status: Option<Bytes>, error: Option<Bytes>) -> Self {
        Self { status: some_text(status), error: some_text(error) }
    }

    pub(crate) async fn read(client: &Client, directory: &Path) -> Result<Self, Error> {
        let mut values = client.read_many(&Self::nodes(directory)?).await?.into_iter();
        let mut next = || values.next().flatten();
        Ok(Self::from_values(next(), next()))
    }

    /// From what one is known to have written.
    pub(crate) fn of(keys: &Recorded) -> Self {
        let of = |key: &str| some_text(keys.get(key).map(|value| value.clone().into()));
        Self { status: of("hotplug-status"), error: of("hotplug-error") }
    }

    /// What was said since then. A new error makes the status new as well: scripts write both.
    pub(crate) fn since(self, before: &Self) -> Self {
        let error = self.error.filter(|error| before.error.as_ref() != Some(error));
        let is_new = error.is_some() || self.status != before.status;
        Self { status: self.status.filter(|_| is_new), error }
    }

    /// Whether it says that the run failed.
    pub(crate) fn is_failure(&self) -> bool {
        self.status.as_deref().is_some_and(is_failure)
    }

    /// The report of the run that said it. A native handler may have told in it what cannot be told here.
    pub(crate) fn into_report(self, report: Report) -> Report {
        let error = self.error.or_else(|| report.hotplug_error.clone());
        report.reported(self.status, error)
    }
}

/// Says in BE that the script of an add has failed, as far as it has not said so itself: whoever watches the backend is
/// told, and a device that stays does not look as if it was being set up. Only as long as the operation has the device, or
/// a directory that is gone would come back. Yields what was said.
pub(super) async fn tell(client: &Client, target: &Target, token: Token, cause: &Cause) -> Said {
    // Of a run that was cancelled nothing is told: what it was for is rolled back at once.
    let Cause::Script { report, .. } = cause else { return Said::default() };
    let says_so = report.hotplug_status.as_deref().is_some_and(is_failure);
    let own = Said {
        status: (!says_so).then(|| "error".to_owned()),
        error: report.hotplug_error.is_none().then(|| printable(report.to_string(), LINE_SHOWN)),
    };
    if own == Said::default() {
        return own;
    }
    let (said, backend) = (&own, &target.paths().backend);
    let client = client.with_deadline(LAST_WORDS);
    let told = store::transact(&client, |tx| async move {
        let seen = store::look(&tx, &target.id(), target.paths(), Depth::Standing).await?;
        let is_there = tx.read_opt(&backend.join("frontend-id")?).await?.is_some();
        if !is_there || seen.standing(token) != Standing::Ours {
            return Ok((false, Vec::new()));
        }
        let nodes = Said::nodes(backend)?.into_iter().zip([&said.status, &said.error]);
        let write = |(path, value): (Path, &Option<String>)| {
            Some(Request::Write { path, value: value.clone()?.into() })
        };
        // The reason first, as the stock scripts do.
        Ok((true, nodes.rev().filter_map(write).collect()))
    });
    match timeout(LAST_WORDS, told).await {
        Ok(Ok(true)) => own,
        failed => {
            debug!(?failed, "the failure of a script is not told to the backend");
            Said::default()
        }
    }
}

/// Whether a `hotplug-status` tells of a failure. The stock scripts write `busy` for a target that is in use,
/// and `error` for all else.
pub(crate) fn is_failure(status: &str) -> bool {
    matches!(status, "error" | "busy")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stood_there_before_the_run_is_not_its_result() {
        let said = |status: Option<&str>, error: Option<&str>| Said {
            status: status.map(str::to_owned),
            error: error.map(str::to_owned),
        };
        let old = said(Some("error"), Some("no such LUN"));
        assert_eq!(old.clone().since(&old), Said::default());
        assert_eq!(old.clone().since(&Said::default()), old);
        // Cleared before the run, and written anew.
        assert_eq!(old.clone().since(&said(Some("error"), None)), old);
        assert_eq!(said(Some("busy"), Some("no such LUN")).since(&old), said(Some("busy"), None));
        assert!(!said(Some("connected"), Some("a remark")).is_failure());
        assert!(old.is_failure() && said(Some("busy"), None).is_failure());
    }
}
