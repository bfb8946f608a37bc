//! Nodes among the daemon's notes that are none: made by hand, by another version, or left empty.
//!
//! Nothing follows from one, so nothing would ever remove it. It goes where nothing can be lost with it: it holds no JSON
//! object, in which another version may have noted what a script needs, has no nodes below it, and no backend stands in
//! its place.

use std::collections::HashSet;

use bytes::Bytes;
use futures_util::future::try_join_all;
use xs_client::{Client, Error, ErrorCode, Path, Request, Requests};

use super::look;
use super::note::Note;
use super::place::{NOTES, OURS, Place};
use crate::operation::{cleanup, text};

/// What a node holds; `None` if it is not there, or this domain may not read it.
async fn value(store: &Requests, path: &Path) -> Result<Option<Bytes>, Error> {
    match store.read_opt(path).await {
        Err(error) if error.code() == Some(&ErrorCode::EACCES) => Ok(None),
        value => value,
    }
}

/// Whether a node is a note.
async fn is_note(store: &Requests, path: &Path) -> Result<bool, Error> {
    let value = value(store, path).await?;
    Ok(Place::of_note(path).is_some() && value.as_deref().and_then(Note::parse).is_some())
}

/// Where nodes are that cannot be read as notes, and directories without any. `noted`: devices whose notes were read.
async fn paths(store: &Requests, noted: &HashSet<Place>) -> Result<Vec<Path>, Error> {
    let guests = look::below(store, vec![Path::new(NOTES)?]).await?;
    let mut level = guests.iter().map(|guest| guest.join(OURS)).collect::<Result<Vec<_>, _>>()?;
    let mut found = Vec::new();
    // The directories of the guests, and those of the kinds. What holds a value tells of something else.
    for _ in 0..2 {
        let below = look::below(store, level.clone()).await?;
        level.retain(|path| !below.iter().any(|below| below.is_within(path)));
        let values = try_join_all(level.iter().map(|path| value(store, path))).await?;
        let is_empty = |value: Option<Bytes>| value.is_some_and(|value| value.is_empty());
        found.extend(
            level.into_iter().zip(values).filter_map(|(path, value)| is_empty(value).then_some(path)),
        );
        level = below;
    }
    level.retain(|path| Place::of_note(path).is_none_or(|place| !noted.contains(&place)));
    let notes = try_join_all(level.iter().map(|path| is_note(store, path))).await?;
    found.extend(level.into_iter().zip(notes).filter_map(|(path, is_note)| (!is_note).then_some(path)));
    Ok(found)
}

/// Where nodes are among the notes of the daemon in this domain that cannot be read as notes, relative to its home.
///
/// # Errors
///
/// If the store fails.
pub async fn unreadable(client: &Client) -> Result<Vec<String>, Error> {
    Ok(paths(client, &HashSet::new()).await?.iter().map(ToString::to_string).collect())
}

/// Whether nothing is lost with a node.
async fn is_empty(store: &Requests, path: &Path) -> Result<bool, Error> {
    let value = text(store.read_opt(path).await?).unwrap_or_default();
    let is_object = serde_json::from_str::<serde_json::Map<_, _>>(&value).is_ok();
    let has_backend = match Place::of_note(path) {
        Some(place) => store.read_opt(&place.backend()?).await?.is_some(),
        None => false,
    };
    Ok(!is_object && !has_backend && store.directory_or_empty(path).await?.is_empty())
}

/// Removes those with which nothing is lost, and yields each that was there, and whether it is gone.
pub(super) async fn sweep(client: &Client, noted: &HashSet<Place>) -> Result<Vec<(Path, bool)>, Error> {
    let mut swept = Vec::new();
    for path in paths(client, noted).await? {
        let node = &path;
        let goes = client.decide(|tx| async move {
            let goes = !is_note(&tx, node).await? && is_empty(&tx, node).await?;
            let gone = if goes { cleanup::extent(&tx, node, &Path::new(NOTES)?).await? } else { Vec::new() };
            Ok::<_, Error>((goes, gone.into_iter().map(Request::Rm).collect()))
        });
        let goes = match goes.await {
            // What this domain may not look at or remove stays.
            Err(Error::Store { .. }) => false,
            goes => goes?,
        };
        swept.push((path, goes));
    }
    Ok(swept)
}
