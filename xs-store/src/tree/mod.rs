//! The nodes.
//!
//! The tree is made of shared, immutable nodes: a change copies the nodes on the way from the root
//! to its place, and only those that somebody else still holds. Taking a node (or the whole tree)
//! to look at later is therefore one reference count, however large it is, and as long as nobody
//! holds one, changes happen in place.

mod children;
mod data;

use std::sync::Arc;

use xs_proto::DomId;

use crate::rights::Rights;
pub(crate) use children::{Children, Name};
pub(crate) use data::{Data, size};

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

/// The names of a path from the first to the last, each with its hash.
fn names(path: &str) -> impl Iterator<Item = Name<'_>> {
    let mut rest = path.strip_prefix('/').unwrap_or(path);
    std::iter::from_fn(move || {
        let name;
        (name, rest) = Name::first_of(rest)?;
        Some(name)
    })
}

/// A node with all below it. Cloning counts references.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) data: Data,
    pub(crate) children: Children,
}

/// All nodes. The root always exists.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    root: Node,
}

impl Tree {
    /// A tree of the root alone, in generation 0.
    pub(crate) fn new(rights: Arc<Rights>) -> Self {
        Self { root: Node { data: Data::new("", b"", rights, 0), children: Children::default() } }
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Node> {
        names(path).try_fold(&self.root, |node, name| node.children.get(name))
    }

    /// Who is not sure that the node is there should look first: pages are copied on the way.
    fn get_mut(&mut self, path: &str) -> Option<&mut Node> {
        names(path).try_fold(&mut self.root, |node, name| node.children.get_mut(name))
    }

    /// Sets what a node holds that is there.
    pub(crate) fn replace(&mut self, path: &str, data: Data) {
        if let Some(node) = self.get_mut(path) {
            node.data = data;
        }
    }

    /// Sets what a node holds. A node that is missing is created if its parent exists; the
    /// parent then counts as changed, in the same generation.
    pub(crate) fn put(&mut self, path: &str, data: Data) {
        if self.get(path).is_some() {
            self.replace(path, data);
        } else if let Some(node) = parent(path).and_then(|parent| self.get_mut(parent)) {
            node.data = node.data.with_generation(data.generation());
            node.children.add(Node { data, children: Children::default() });
        }
    }

    /// Takes a node with all below it out of the tree; its parent counts as changed.
    pub(crate) fn remove(&mut self, path: &str, generation: u64) -> Option<Node> {
        self.get(path)?;
        let parent = self.get_mut(parent(path)?)?;
        parent.data = parent.data.with_generation(generation);
        parent.children.remove(Name::new(basename(path)))
    }

    /// The topmost nodes that a domain owns.
    pub(crate) fn owned_by(&self, owner: DomId) -> Vec<String> {
        let mut found = Vec::new();
        let mut rest = vec![("/".to_owned(), &self.root)];
        while let Some((path, node)) = rest.pop() {
            if node.data.rights().list.owner() == owner && path != "/" {
                found.push(path);
            } else {
                let below = |node| (child(&path, Node::name(node)), node);
                rest.extend(node.children.in_order().rev().map(below));
            }
        }
        found
    }
}

impl Node {
    fn name(&self) -> &str {
        self.data.name()
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
    let pending = |node: &'a Node| node.children.in_order().rev().collect::<Vec<_>>();
    let mut stack: Vec<(&'a Node, Vec<&'a Node>, usize)> = vec![(node, pending(node), 0)];
    while let Some((node, below, cut)) = stack.last_mut() {
        let (node, cut) = (*node, *cut);
        if let Some(below) = below.pop() {
            let cut = path.len();
            if !path.ends_with('/') {
                path.push('/');
            }
            path.push_str(below.name());
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

    fn rights() -> Arc<Rights> {
        Rights::new(Permissions::owned_by(DomId::DOM0, Access::None), 0)
    }

    pub(super) fn node(name: &str) -> Node {
        Node { data: Data::new(name, b"", rights(), 1), children: Children::default() }
    }

    fn put(tree: &mut Tree, path: &str, value: &str, generation: u64) {
        tree.put(path, Data::new(basename(path), value.as_bytes(), rights(), generation));
    }

    fn listing(tree: &Tree, path: &str) -> Vec<String> {
        tree.get(path).unwrap().children.in_order().map(|node| node.name().to_owned()).collect()
    }

    #[test]
    fn children_keep_the_order_of_their_creation() {
        let mut tree = Tree::new(rights());
        for path in ["/c", "/a", "/b"] {
            put(&mut tree, path, "", 1);
        }
        put(&mut tree, "/a", "changed", 2);
        assert_eq!(listing(&tree, "/"), ["c", "a", "b"]);
        tree.remove("/c", 3);
        put(&mut tree, "/c", "", 4);
        assert_eq!(listing(&tree, "/"), ["a", "b", "c"]);
        assert_eq!(tree.get("/").unwrap().children.bytes(), 6);
    }

    #[test]
    fn a_parent_changes_with_its_list_and_not_with_values() {
        let generation = |tree: &Tree| tree.get("/a").unwrap().data.generation();
        let mut tree = Tree::new(rights());
        put(&mut tree, "/a", "", 1);
        put(&mut tree, "/a/b", "", 2);
        assert_eq!(generation(&tree), 2);
        put(&mut tree, "/a/b", "v", 3);
        assert_eq!(generation(&tree), 2);
        tree.remove("/a/b", 4);
        assert_eq!(generation(&tree), 4);
        assert!(tree.remove("/a/b", 5).is_none());
        assert_eq!(generation(&tree), 4);
    }

    #[test]
    fn what_somebody_holds_does_not_change() {
        let mut tree = Tree::new(rights());
        put(&mut tree, "/a", "old", 1);
        put(&mut tree, "/a/b", "old", 1);
        let before = tree.clone();
        put(&mut tree, "/a/b", "new", 2);
        put(&mut tree, "/a/c", "new", 2);
        tree.remove("/a", 3);
        assert_eq!(listing(&before, "/a"), ["b"]);
        assert_eq!(before.get("/a/b").unwrap().data.value(), b"old");
        assert!(tree.get("/a").is_none());
    }

    #[test]
    fn a_node_without_parent_is_not_created() {
        let mut tree = Tree::new(rights());
        put(&mut tree, "/a/b", "", 1);
        assert!(tree.get("/a").is_none());
        assert!(tree.remove("/", 1).is_none());
    }

    #[test]
    fn depth_is_no_matter() {
        let mut top = node("d");
        for _ in 1..100_000 {
            let mut above = node("d");
            above.children.add(top);
            top = above;
        }
        let mut tree = Tree::new(rights());
        tree.root.children.add(top);
        assert!(tree.get(&"/d".repeat(100_000)).is_some());
        let mut visited = 0;
        visit_upwards("/", &tree.root, &node("").data, |_, _, _| visited += 1);
        assert_eq!(visited, 100_001);
        drop(tree);
    }

    #[test]
    fn children_are_visited_first() {
        let mut tree = Tree::new(rights());
        for path in ["/t", "/t/a", "/t/a/b", "/t/z"] {
            put(&mut tree, path, "", 1);
        }
        let mut order = Vec::new();
        let (above, top) = (node("").data, tree.remove("/t", 2).unwrap());
        visit_upwards("/t", &top, &above, |path, _, _| order.push(path.to_owned()));
        assert_eq!(order, ["/t/a/b", "/t/a", "/t/z", "/t"]);
    }
}
