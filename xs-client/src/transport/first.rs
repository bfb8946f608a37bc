//! The first of several ways that leads to a store.

use std::io;

use super::Connect;

/// The first way of several that leads to a store, and afterwards that one alone.
///
/// When none does, the error tells what was observed at each. A store that has no time now
/// ([`io::ErrorKind::WouldBlock`]) is one that can be reached: no other way is tried then.
///
/// A store that goes away is waited for at its own way: another, which is there meanwhile, may lead
/// to another store, or be of another make.
#[derive(Clone, Debug)]
pub struct FirstOf<C> {
    ways: Vec<C>,
    /// The place of the one that has led to a store.
    found: Option<usize>,
}

impl<C> FirstOf<C> {
    /// These ways, in this order.
    pub fn new(ways: impl IntoIterator<Item = C>) -> Self {
        Self { ways: ways.into_iter().collect(), found: None }
    }

    /// The one that has led to a store.
    fn found(&self) -> Option<&C> {
        self.found.map(|found| &self.ways[found])
    }
}

impl<C: Connect> Connect for FirstOf<C> {
    type Transport = C::Transport;

    /// The way that was found, or the only one.
    fn at(&self) -> String {
        match (self.found(), &self.ways[..]) {
            (Some(way), _) | (None, [way]) => way.at(),
            (None, ways) => format!("any of {} places", ways.len()),
        }
    }

    async fn connect(&mut self) -> io::Result<C::Transport> {
        if let Some(found) = self.found {
            return self.ways[found].connect().await;
        }
        let mut unreachable = Unreachable::default();
        for (number, way) in self.ways.iter_mut().enumerate() {
            match way.connect().await {
                Ok(transport) => {
                    self.found = Some(number);
                    return Ok(transport);
                }
                Err(error) => unreachable.add(&way.at(), &error)?,
            }
        }
        Err(unreachable.into_error())
    }

    fn window(&self) -> usize {
        self.found().map_or(usize::MAX, C::window)
    }

    fn is_ordered(&self) -> bool {
        self.found().is_none_or(C::is_ordered)
    }
}

/// What was observed where no store can be reached.
#[derive(Debug, Default)]
struct Unreachable {
    kind: Option<io::ErrorKind>,
    observed: Vec<String>,
}

impl Unreachable {
    /// Takes note of an error, or fails if that ends the search: a store without time is one that
    /// can be reached.
    fn add(&mut self, at: &str, error: &io::Error) -> io::Result<()> {
        let text = format!("{at}: {error}");
        if error.kind() == io::ErrorKind::WouldBlock {
            return Err(io::Error::new(error.kind(), text));
        }
        // The first that is there and cannot be reached says more than those that are not.
        if error.kind() != io::ErrorKind::NotFound {
            self.kind.get_or_insert(error.kind());
        }
        self.observed.push(text);
        Ok(())
    }

    /// All that was observed.
    fn into_error(self) -> io::Error {
        io::Error::new(self.kind.unwrap_or(io::ErrorKind::NotFound), self.observed.join("; "))
    }
}
