//! Several operations at once, each with its own outcome.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

/// How several operations ended.
#[derive(Clone, Debug)]
pub struct Outcomes<T, E> {
    /// Every outcome, in the order in which the operations were given.
    pub all: Vec<Result<T, E>>,
    /// Which of them failed first in time; `None` if none did.
    pub first_failure: Option<usize>,
}

impl<T, E> Outcomes<T, E> {
    /// All results if every operation succeeded, else the failure that came first.
    pub fn into_result(mut self) -> Result<Vec<T>, E> {
        if let Some(index) = self.first_failure {
            self.all.swap_remove(index)?;
        }
        self.all.into_iter().collect()
    }
}

/// Runs operations side by side until all have ended. A failure stops none of the others.
///
/// Dropping the future drops those that have not ended.
pub async fn all<T, E>(
    operations: impl IntoIterator<Item = impl Future<Output = Result<T, E>>>,
) -> Outcomes<T, E> {
    let numbered = operations.into_iter().enumerate();
    let running: FuturesUnordered<_> =
        numbered.map(|(index, operation)| async move { (index, operation.await) }).collect();
    let mut ended: Vec<(usize, Result<T, E>)> = running.collect().await;
    let first_failure = ended.iter().find(|(_, outcome)| outcome.is_err()).map(|(index, _)| *index);
    ended.sort_unstable_by_key(|(index, _)| *index);
    Outcomes { all: ended.into_iter().map(|(_, outcome)| outcome).collect(), first_failure }
}
