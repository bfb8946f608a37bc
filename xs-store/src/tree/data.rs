//! What a node holds besides its children.

use std::sync::Arc;

use smallvec::SmallVec;
use triomphe::ThinArc;

use crate::rights::Rights;

/// The bytes of a node but for the names of its children, as the C daemon stores it.
pub(crate) fn size(rights: &Rights, value: usize) -> usize {
    16 + 8 * rights.list.entries().len() + value
}

#[derive(Debug)]
struct Head {
    rights: Arc<Rights>,
    generation: u64,
    /// Bytes of the name; the value is what is behind it.
    name: u16,
}

/// Name, value, permissions and generation of a node, in one allocation. It never changes, so
/// cloning is counting a reference.
#[derive(Clone, Debug)]
pub(crate) struct Data(ThinArc<Head, u8>);

impl Data {
    /// The name is one of a path, so it is shorter than a message.
    pub(crate) fn new(name: &str, value: &[u8], rights: Arc<Rights>, generation: u64) -> Self {
        let mut text = SmallVec::<[u8; 128]>::from_slice(name.as_bytes());
        text.extend_from_slice(value);
        let head = Head { rights, generation, name: name.len() as u16 };
        Self(ThinArc::from_header_and_slice(head, &text))
    }

    /// The same node with another value.
    pub(crate) fn with_value(&self, value: &[u8], generation: u64) -> Self {
        Self::new(self.name(), value, self.rights().clone(), generation)
    }

    /// The same node with other permissions.
    pub(crate) fn with_rights(&self, rights: Arc<Rights>, generation: u64) -> Self {
        Self::new(self.name(), self.value(), rights, generation)
    }

    /// The same node after its set of children has changed.
    pub(crate) fn with_generation(&self, generation: u64) -> Self {
        self.with_rights(self.rights().clone(), generation)
    }

    fn head(&self) -> &Head {
        &self.0.header.header
    }

    fn parts(&self) -> (&[u8], &[u8]) {
        self.0.slice.split_at(self.head().name.into())
    }

    /// The last name of the node's path; empty for the root.
    pub(crate) fn name(&self) -> &str {
        // It was a str when it came in.
        std::str::from_utf8(self.name_bytes()).unwrap_or_default()
    }

    pub(crate) fn name_bytes(&self) -> &[u8] {
        self.parts().0
    }

    pub(crate) fn value(&self) -> &[u8] {
        self.parts().1
    }

    pub(crate) fn rights(&self) -> &Arc<Rights> {
        &self.head().rights
    }

    /// A number that no other state of this node has had: it changes with the value, the
    /// permissions and the set of children.
    pub(crate) fn generation(&self) -> u64 {
        self.head().generation
    }
}
