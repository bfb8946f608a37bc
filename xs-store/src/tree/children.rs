//! The children of a node: a B-tree of shared, immutable pages.
//!
//! A directory may have a handful of children or a million, and a transaction may hold on to it
//! while others add to it. So a change copies the few pages on the way to its place, and only
//! those that somebody else still holds.
//!
//! Entries are sorted by a hash of their name and then by the name. A search then compares
//! numbers that lie side by side, and looks at one name. Names whose hashes collide, by chance or
//! by intent, stay sorted and are found as fast; they only share a page.

use std::mem;

use triomphe::Arc;

use super::Node;

/// Entries in a page. One that is full is split in halves.
const PAGE: usize = 32;

/// The children of a node; cloning counts a reference.
#[derive(Clone, Debug, Default)]
pub(crate) struct Children(Option<Arc<Directory>>);

#[derive(Clone, Debug)]
struct Directory {
    page: Page,
    /// Bytes of all names, each with its NUL.
    bytes: usize,
    /// The order of the next child.
    next: u32,
}

#[derive(Clone, Debug)]
enum Page {
    Leaf(Vec<Entry>),
    /// Pages, each with the lowest hash that may be in it.
    Inner(Vec<(u32, Arc<Self>)>),
}

#[derive(Clone, Debug)]
struct Entry {
    hash: u32,
    /// Children are listed in the order of their creation. It begins again after four thousand
    /// million creations in one directory, which nobody may rely on.
    order: u32,
    node: Node,
}

/// A name to look for, with its hash.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name<'a> {
    text: &'a str,
    hash: u32,
}

impl<'a> Name<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, hash: hash(text.bytes()) }
    }

    /// The first name of a path that has no slash in front, and what is behind its slash. `None` if
    /// nothing is left.
    pub(crate) fn first_of(path: &'a str) -> Option<(Self, &'a str)> {
        let mut length = 0;
        let hash = hash(path.bytes().take_while(|byte| *byte != b'/').inspect(|_| length += 1));
        let (text, rest) = path.split_at_checked(length)?;
        (length > 0).then(|| (Self { text, hash }, rest.get(1..).unwrap_or_default()))
    }
}

/// FNV-1a.
fn hash(name: impl Iterator<Item = u8>) -> u32 {
    name.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

impl Children {
    pub(crate) fn get(&self, name: Name<'_>) -> Option<&Node> {
        let mut page = &self.0.as_ref()?.page;
        loop {
            match page {
                Page::Inner(pages) => page = &pages[page_for(pages, name.hash)].1,
                Page::Leaf(entries) => {
                    return search(entries, name).ok().map(|at| &entries[at].node);
                }
            }
        }
    }

    /// The child, to be changed. Who is not sure that it is there should look first, since pages
    /// are copied on the way.
    pub(crate) fn get_mut(&mut self, name: Name<'_>) -> Option<&mut Node> {
        let mut page = &mut Arc::make_mut(self.0.as_mut()?).page;
        loop {
            match page {
                Page::Inner(pages) => {
                    let at = page_for(pages, name.hash);
                    page = Arc::make_mut(&mut pages[at].1);
                }
                Page::Leaf(entries) => {
                    let at = search(entries, name).ok()?;
                    return Some(&mut entries[at].node);
                }
            }
        }
    }

    /// Adds a child at the end of the order. There must be none of its name yet.
    pub(crate) fn add(&mut self, node: Node) {
        let directory =
            Arc::make_mut(self.0.get_or_insert_with(|| {
                Arc::new(Directory { page: Page::Leaf(Vec::new()), bytes: 0, next: 0 })
            }));
        let order = directory.next;
        directory.next = order.wrapping_add(1);
        directory.bytes += node.data.name().len() + 1;
        let entry = Entry { hash: Name::new(node.data.name()).hash, order, node };
        if let Some(right) = directory.page.insert(entry) {
            let left = (0, Arc::new(mem::replace(&mut directory.page, Page::Inner(Vec::new()))));
            directory.page = Page::Inner(vec![left, right]);
        }
    }

    pub(crate) fn remove(&mut self, name: Name<'_>) -> Option<Node> {
        self.get(name)?;
        let directory = Arc::make_mut(self.0.as_mut()?);
        let node = directory.page.remove(name)?;
        directory.bytes -= name.text.len() + 1;
        match &mut directory.page {
            Page::Leaf(entries) if entries.is_empty() => self.0 = None,
            Page::Inner(pages) if pages.len() == 1 => {
                let page = pages.pop().map(|(_, page)| page)?;
                directory.page = Arc::unwrap_or_clone(page);
            }
            _ => {}
        }
        Some(node)
    }

    /// The children in the order of their creation.
    pub(crate) fn in_order(&self) -> impl DoubleEndedIterator<Item = &Node> {
        let mut entries: Vec<&Entry> = Vec::new();
        let mut rest: Vec<&Page> = self.0.iter().map(|directory| &directory.page).collect();
        while let Some(page) = rest.pop() {
            match page {
                Page::Inner(pages) => rest.extend(pages.iter().map(|(_, page)| &**page)),
                Page::Leaf(leaf) => entries.extend(leaf),
            }
        }
        entries.sort_unstable_by_key(|entry| entry.order);
        entries.into_iter().map(|entry| &entry.node)
    }

    /// Bytes of all names, each with its NUL, as listings and the node-size quota count them.
    pub(crate) fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |directory| directory.bytes)
    }
}

/// Which of the pages has the entries of a hash. Names of one hash are never in two.
fn page_for(pages: &[(u32, Arc<Page>)], hash: u32) -> usize {
    pages.partition_point(|(lowest, _)| *lowest <= hash).saturating_sub(1)
}

fn search(entries: &[Entry], name: Name<'_>) -> Result<usize, usize> {
    entries.binary_search_by(|entry| {
        entry.hash.cmp(&name.hash).then_with(|| entry.node.data.name_bytes().cmp(name.text.as_bytes()))
    })
}

/// Inserts without the room for growth that a vector would take: most directories are small.
fn insert<T>(vec: &mut Vec<T>, at: usize, item: T) {
    if vec.len() == vec.capacity() {
        vec.reserve_exact(vec.len() / 2 + 1);
    }
    vec.insert(at, item);
}

impl Page {
    /// Inserts an entry. A page that was full keeps its lower half; the upper one is returned.
    fn insert(&mut self, entry: Entry) -> Option<(u32, Arc<Self>)> {
        match self {
            Self::Leaf(entries) => {
                let name = Name { text: entry.node.data.name(), hash: entry.hash };
                let at = search(entries, name).unwrap_or_else(|at| at);
                insert(entries, at, entry);
                if entries.len() < PAGE {
                    return None;
                }
                // Not between names of one hash, so not at all if there is just one.
                let half = entries[PAGE / 2].hash;
                let before = entries.partition_point(|entry| entry.hash < half);
                let behind = entries.partition_point(|entry| entry.hash <= half);
                let upper = entries.split_off(if before > 0 { before } else { behind });
                let lowest = upper.first()?.hash;
                entries.shrink_to_fit();
                Some((lowest, Arc::new(Self::Leaf(upper))))
            }
            Self::Inner(pages) => {
                let at = page_for(pages, entry.hash);
                let right = Arc::make_mut(&mut pages[at].1).insert(entry)?;
                insert(pages, at + 1, right);
                if pages.len() < PAGE {
                    return None;
                }
                let upper = pages.split_off(PAGE / 2);
                Some((upper[0].0, Arc::new(Self::Inner(upper))))
            }
        }
    }

    /// Removes an entry that is there, and pages that it leaves empty.
    fn remove(&mut self, name: Name<'_>) -> Option<Node> {
        match self {
            Self::Leaf(entries) => {
                let at = search(entries, name).ok()?;
                let entry = entries.remove(at);
                if entries.len() < entries.capacity() / 4 {
                    entries.shrink_to_fit();
                }
                Some(entry.node)
            }
            Self::Inner(pages) => {
                let at = page_for(pages, name.hash);
                let page = Arc::make_mut(&mut pages[at].1);
                let node = page.remove(name);
                if page.is_empty() {
                    pages.remove(at);
                }
                node
            }
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Leaf(entries) => entries.is_empty(),
            Self::Inner(pages) => pages.is_empty(),
        }
    }
}

impl Drop for Directory {
    /// Takes the subtree apart level by level: a path can be more than a thousand levels deep,
    /// and dropping by recursion would put as many frames on the stack. What somebody else holds
    /// stays whole.
    fn drop(&mut self) {
        let mut rest = vec![mem::replace(&mut self.page, Page::Leaf(Vec::new()))];
        while let Some(page) = rest.pop() {
            match page {
                Page::Inner(pages) => {
                    rest.extend(pages.into_iter().filter_map(|(_, page)| Arc::try_unwrap(page).ok()));
                }
                Page::Leaf(entries) => {
                    let below = entries.into_iter().filter_map(|entry| entry.node.children.0);
                    let own = below.filter_map(|directory| Arc::try_unwrap(directory).ok());
                    rest.extend(
                        own.map(|mut directory| mem::replace(&mut directory.page, Page::Leaf(Vec::new()))),
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::tests::node;
    use super::*;

    fn names(children: &Children) -> Vec<String> {
        children.in_order().map(|node| node.data.name().to_owned()).collect()
    }

    /// Against a plain list, with names that come and go, some of them of one hash.
    #[test]
    fn many_children_behave_as_few_do() {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut children, mut expected) = (Children::default(), Vec::<String>::new());
        let mut held: BTreeMap<usize, (Children, Vec<String>)> = BTreeMap::new();
        for step in 0..60_000 {
            let name = format!("n{}", random.u32(..3000));
            if step % 5_000 == 0 {
                held.insert(step, (children.clone(), expected.clone()));
            }
            // At first it grows, then it shrinks.
            let there = expected.iter().position(|other| *other == name);
            assert_eq!(children.get(Name::new(&name)).is_some(), there.is_some());
            match there {
                Some(at) if random.u32(..10) < if step < 40_000 { 2 } else { 9 } => {
                    expected.remove(at);
                    assert!(children.remove(Name::new(&name)).is_some());
                }
                None if step < 50_000 => {
                    expected.push(name.clone());
                    children.add(node(&name));
                }
                Some(_) => assert_eq!(children.get_mut(Name::new(&name)).unwrap().data.name(), name),
                None => assert!(
                    children.remove(Name::new(&name)).is_none()
                        && children.get_mut(Name::new(&name)).is_none()
                ),
            }
        }
        assert_eq!(names(&children), expected);
        assert_eq!(children.bytes(), expected.iter().map(|name| name.len() + 1).sum::<usize>());
        // What was held has not changed.
        for (then, expected) in held.into_values() {
            assert_eq!(names(&then), expected);
        }
    }

    #[test]
    fn names_of_one_hash_are_all_found() {
        // Found by trying: FNV is no secret.
        let mut by_hash: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for number in 0..400_000 {
            let name = format!("{number:x}");
            by_hash.entry(Name::new(&name).hash % 4096).or_default().push(name);
        }
        let colliding = by_hash.into_values().find(|names| names.len() >= 2 * PAGE).unwrap();
        let mut entries = Page::Leaf(Vec::new());
        for (order, name) in colliding.iter().enumerate() {
            // As if the whole hash were the same.
            let right = entries.insert(Entry { hash: 5, order: order as u32, node: node(name) });
            assert!(right.is_none());
        }
        for name in &colliding {
            assert!(entries.remove(Name { text: name, hash: 5 }).is_some(), "{name}");
        }
        assert!(entries.is_empty());
    }

    #[test]
    fn an_empty_directory_takes_no_memory() {
        let mut children = Children::default();
        children.add(node("a"));
        assert!(children.remove(Name::new("a")).is_some());
        assert!(children.0.is_none());
        assert_eq!(children.bytes(), 0);
    }
}
