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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::DuplexStream;

    use super::*;

    /// A way that may be open, with a window of its own.
    struct Door {
        is_open: Arc<AtomicBool>,
        window: usize,
    }

    impl Connect for Door {
        type Transport = DuplexStream;

        fn at(&self) -> String {
            format!("door {}", self.window)
        }

        async fn connect(&mut self) -> io::Result<DuplexStream> {
            let is_open = self.is_open.load(Ordering::Relaxed);
            if is_open { Ok(tokio::io::duplex(1).0) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
        }

        fn window(&self) -> usize {
            self.window
        }

        fn is_ordered(&self) -> bool {
            self.window > 1
        }
    }

    #[tokio::test]
    async fn the_way_that_was_found_stays_the_only_one() {
        for found in 0..2 {
            let open = [0, 1].map(|number| Arc::new(AtomicBool::new(number == found)));
            let doors = open.clone().into_iter().zip([8, 1]);
            let mut ways = FirstOf::new(doors.map(|(is_open, window)| Door { is_open, window }));
            assert_eq!((ways.at().as_str(), ways.window()), ("any of 2 places", usize::MAX));
            ways.connect().await.unwrap();
            open.iter().enumerate().for_each(|(number, open)| open.store(number != found, Ordering::Relaxed));
            assert_eq!(ways.connect().await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
            let window = [8, 1][found];
            assert_eq!((ways.at(), ways.window()), (format!("door {window}"), window));
            assert_eq!(ways.is_ordered(), window > 1);
            open[found].store(true, Ordering::Relaxed);
            ways.connect().await.unwrap();
        }
    }
}
