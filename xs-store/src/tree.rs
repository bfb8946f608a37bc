//! The nodes.
//!
//! The tree is made of shared, immutable nodes: a change copies the nodes on the way from the root
//! to its place, and only those that somebody else still holds. Taking a node (or the whole tree)
//! to look at later is therefore one reference count, however large it is, and as long as nobody
//! holds one, changes happen in place.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use xs_proto::DomId;

use crate::rights::Rights;

/// The parent of an absolute path; `None` for the root, and for special paths.
pub(crate) fn parent(path: &str) -> Option<&str> {
    match path.rfind('/')? {
        0 => (path != "/").then_some("/"),
        at => Some(&path[..at]),
    }
}

/// The path of a child.
pub(crate) fn child(parent: &str, name: &str) -> String {
    let slash = if parent == "/" { "" } else { "/" };
    format!("{parent}{slash}{name}")
}

/// The last name of a path.
pub(crate) fn basename(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !name.is_empty())
}

/// What a node holds besides its children. Cloning is cheap.
#[derive(Clone, Debug)]
pub(crate) struct Data {
    pub(crate) value: Bytes,
    pub(crate) rights: Arc<Rights>,
    /// A number that no other state of this node has had: it changes with the value, the
    /// permissions and the set of children.
    pub(crate) generation: u64,
}

/// Names with what belongs to them, listed in the order of their creation.
#[derive(Clone, Debug)]
pub(crate) struct Children<T> {
    by_name: BTreeMap<Arc<str>, (u64, T)>,
    order: BTreeMap<u64, Arc<str>>,
    next: u64,
    bytes: usize,
}

impl<T> Default for Children<T> {
    fn default() -> Self {
        Self { by_name: BTreeMap::new(), order: BTreeMap::new(), next: 0, bytes: 0 }
    }
}

impl<T> Children<T> {
    pub(crate) fn get(&self, name: &str) -> Option<&T> {
        self.by_name.get(name).map(|(_, child)| child)
    }

    fn get_mut(&mut self, name: &str) -> Option<&mut T> {
        self.by_name.get_mut(name).map(|(_, child)| child)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Adds a name at the end of the order. It must not be there yet.
    pub(crate) fn push(&mut self, name: &str, child: T) {
        let name: Arc<str> = name.into();
        self.bytes += name.len() + 1;
        self.order.insert(self.next, name.clone());
        self.by_name.insert(name, (self.next, child));
        self.next += 1;
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<T> {
        let (place, child) = self.by_name.remove(name)?;
        self.order.remove(&place);
        self.bytes -= name.len() + 1;
        Some(child)
    }

    pub(crate) fn names(&self) -> impl DoubleEndedIterator<Item = &Arc<str>> {
        self.order.values()
    }

    /// Bytes of all names, each with its NUL, as listings and the node-size quota count them.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A node with all below it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) data: Data,
    children: Children<Arc<Self>>,
}

impl Node {
    pub(crate) fn children(&self) -> &Children<Arc<Self>> {
        &self.children
    }
}

impl Drop for Node {
    /// Takes the subtree apart level by level: a path can be more than a thousand levels deep,
    /// and dropping by recursion would put as many frames on the stack.
    fn drop(&mut self) {
        let mut orphans = std::mem::take(&mut self.children.by_name);
        let mut rest: Vec<Arc<Self>> = Vec::new();
        loop {
            rest.extend(std::mem::take(&mut orphans).into_values().map(|(_, node)| node));
            let Some(mut node) = rest.pop() else { return };
            // A node that somebody else holds keeps its children.
            if let Some(node) = Arc::get_mut(&mut node) {
                orphans = std::mem::take(&mut node.children.by_name);
            }
        }
    }
}

/// All nodes. The root always exists.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    root: Arc<Node>,
}

impl Tree {
    pub(crate) fn new(root: Data) -> Self {
        Self { root: Arc::new(Node { data: root, children: Children::default() }) }
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Arc<Node>> {
        names(path).try_fold(&self.root, |node, name| node.children.get(name))
    }

    fn get_mut(&mut self, path: &str) -> Option<&mut Node> {
        // Looking first saves copying nodes on the way to one that is not there.
        self.get(path)?;
        names(path).try_fold(Arc::make_mut(&mut self.root), |node, name| {
            node.children.get_mut(name).map(Arc::make_mut)
        })
    }

    /// Sets what a node holds. A node that is missing is created if its parent exists; the
    /// parent then counts as changed, in the same generation.
    pub(crate) fn put(&mut self, path: &str, data: Data) {
        if let Some(node) = self.get_mut(path) {
            node.data = data;
        } else if let Some(node) = parent(path).and_then(|parent| self.get_mut(parent)) {
            node.data.generation = data.generation;
            node.children.push(basename(path), Arc::new(Node { data, children: Children::default() }));
        }
    }

    /// Takes a node with all below it out of the tree; its parent counts as changed.
    pub(crate) fn remove(&mut self, path: &str, generation: u64) -> Option<Arc<Node>> {
        self.get(path)?;
        let parent = self.get_mut(parent(path)?)?;
        parent.data.generation = generation;
        parent.children.remove(basename(path))
    }

    /// The topmost nodes that a domain owns.
    pub(crate) fn owned_by(&self, owner: DomId) -> Vec<String> {
        let mut found = Vec::new();
        let mut rest = vec![("/".to_owned(), &self.root)];
        while let Some((path, node)) = rest.pop() {
            if node.data.rights.list.owner() == owner && path != "/" {
                found.push(path);
            } else {
                let below = |name: &Arc<str>| Some((child(&path, name), node.children.get(name)?));
                rest.extend(node.children.names().rev().filter_map(below));
            }
        }
        found
    }
}

/// Calls `visit` for a node and everything below it: children before their parent, in the order
/// of their creation, each with its path and its parent's data.
pub(crate) fn visit_upwards<'a>(
    path: &str,
    node: &'a Node,
    above: &'a Data,
    mut visit: impl FnMut(&str, &'a Data, &'a Data),
) {
    let mut path = path.to_owned();
    let mut stack: Vec<(&'a Node, Vec<&'a Arc<str>>, usize)> = Vec::new();
    let pending = |node: &'a Node| node.children.names().rev().collect::<Vec<_>>();
    stack.push((node, pending(node), 0));
    while let Some((node, names, cut)) = stack.last_mut() {
        let (node, cut) = (*node, *cut);
        let next = names.pop().and_then(|name| Some((name, node.children.get(name)?)));
        if let Some((name, below)) = next {
            let cut = path.len();
            if !path.ends_with('/') {
                path.push('/');
            }
            path.push_str(name);
            stack.push((below, pending(below), cut));
        } else {
            stack.pop();
            visit(&path, &node.data, stack.last().map_or(above, |(parent, ..)| &parent.data));
            path.truncate(cut);
        }
    }
}

#[cfg(test)]
mod tests {
    use xs_proto::{Access, Permissions};

    use super::*;

    fn data(value: &'static str, generation: u64) -> Data {
        let rights = Rights::new(Permissions::owned_by(DomId::DOM0, Access::None), 0);
        Data { value: Bytes::from_static(value.as_bytes()), rights, generation }
    }

    fn listing(tree: &Tree, path: &str) -> Vec<String> {
        tree.get(path).unwrap().children().names().map(ToString::to_string).collect()
    }

    #[test]
    fn children_keep_the_order_of_their_creation() {
        let mut tree = Tree::new(data("", 0));
        for path in ["/c", "/a", "/b"] {
            tree.put(path, data("", 1));
        }
        tree.put("/a", data("changed", 2));
        assert_eq!(listing(&tree, "/"), ["c", "a", "b"]);
        tree.remove("/c", 3);
        tree.put("/c", data("", 4));
        assert_eq!(listing(&tree, "/"), ["a", "b", "c"]);
        assert_eq!(tree.get("/").unwrap().children().bytes(), 6);
    }

    #[test]
    fn a_parent_changes_with_its_list_and_not_with_values() {
        let generation = |tree: &Tree| tree.get("/a").unwrap().data.generation;
        let mut tree = Tree::new(data("", 0));
        tree.put("/a", data("", 1));
        tree.put("/a/b", data("", 2));
        assert_eq!(generation(&tree), 2);
        tree.put("/a/b", data("v", 3));
        assert_eq!(generation(&tree), 2);
        tree.remove("/a/b", 4);
        assert_eq!(generation(&tree), 4);
        assert!(tree.remove("/a/b", 5).is_none());
        assert_eq!(generation(&tree), 4);
    }

    #[test]
    fn what_somebody_holds_does_not_change() {
        let mut tree = Tree::new(data("", 0));
        tree.put("/a", data("old", 1));
        tree.put("/a/b", data("old", 1));
        let before = tree.clone();
        tree.put("/a/b", data("new", 2));
        tree.put("/a/c", data("new", 2));
        tree.remove("/a", 3);
        assert_eq!(listing(&before, "/a"), ["b"]);
        assert_eq!(before.get("/a/b").unwrap().data.value, "old");
        assert!(tree.get("/a").is_none());
    }

    #[test]
    fn a_node_without_parent_is_not_created() {
        let mut tree = Tree::new(data("", 0));
        tree.put("/a/b", data("", 1));
        assert!(tree.get("/a").is_none());
        assert!(tree.remove("/", 1).is_none());
    }

    #[test]
    fn depth_is_no_matter() {
        let mut tree = Tree::new(data("", 0));
        let mut path = String::new();
        for _ in 0..100_000 {
            path += "/d";
            // Not put, which would walk all the way each time.
            let mut top = Tree::new(data("", 0));
            top.put("/d", data("", 1));
            let below = std::mem::replace(&mut tree, top).root;
            Arc::get_mut(&mut tree.root).unwrap().children = Children::default();
            Arc::get_mut(&mut tree.root).unwrap().children.push("d", below);
        }
        assert!(tree.get(&path).is_some());
        let mut visited = 0;
        visit_upwards("/", &tree.root, &data("", 0), |_, _, _| visited += 1);
        assert_eq!(visited, 100_001);
        drop(tree);
    }

    #[test]
    fn children_are_visited_first() {
        let mut tree = Tree::new(data("", 0));
        for path in ["/t", "/t/a", "/t/a/b", "/t/z"] {
            tree.put(path, data("", 1));
        }
        let mut order = Vec::new();
        let (above, top) = (data("", 0), tree.remove("/t", 2).unwrap());
        visit_upwards("/t", &top, &above, |path, _, _| order.push(path.to_owned()));
        assert_eq!(order, ["/t/a/b", "/t/a", "/t/z", "/t"]);
    }
}
