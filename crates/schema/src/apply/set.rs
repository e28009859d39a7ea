//! Sets of field paths, and `fieldsV1`, the form in which they are stored.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::path::PathElement;
use crate::schema::{Schema, Shape};

/// A set of paths, as a trie: a path is in the set when its last step is a member of the node its other steps lead to.
///
/// ```
/// use gantry_schema::apply::FieldSet;
/// use serde_json::json;
///
/// let set = FieldSet::from_paths(&[&["spec"], &["spec", "replicas"]]);
/// assert_eq!(set.to_fields_v1(), json!({"f:spec": {".": {}, "f:replicas": {}}}));
/// assert_eq!(FieldSet::from_fields_v1(&set.to_fields_v1()).unwrap(), set);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// In the order of their steps; each is a member, or has something below, or both.
    nodes: Vec<Node>,
}

/// One step, whether it ends a path of the set, and the paths that go through it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    step: PathElement,
    member: bool,
    below: FieldSet,
}

impl Node {
    fn is_void(&self) -> bool {
        !self.member && self.below.nodes.is_empty()
    }
}

impl FieldSet {
    /// The empty set.
    pub fn new() -> FieldSet {
        FieldSet::default()
    }

    /// A set of paths of plain fields, such as the fields a resource resets: `&[&["status"]]`.
    pub fn from_paths(paths: &[&[&str]]) -> FieldSet {
        let mut set = FieldSet::new();
        for path in paths {
            let steps: Vec<PathElement> = path.iter().map(|name| PathElement::field(name)).collect();
            set.insert(&steps);
        }
        set
    }

    fn find(&self, step: &PathElement) -> Result<usize, usize> {
        self.nodes.binary_search_by(|node| node.step.cmp(step))
    }

    fn node(&self, step: &PathElement) -> Option<&Node> {
        self.find(step).ok().map(|at| &self.nodes[at])
    }

    /// Adds a path; the empty path (the root) is in no set.
    pub fn insert(&mut self, path: &[PathElement]) {
        let [first, rest @ ..] = path else { return };
        let at = self.find(first).unwrap_or_else(|at| {
            self.nodes.insert(at, Node { step: first.clone(), member: false, below: FieldSet::new() });
            at
        });
        match rest {
            [] => self.nodes[at].member = true,
            rest => self.nodes[at].below.insert(rest),
        }
    }

    /// Adds a step that comes after all that are there; nothing where there is nothing to add.
    pub(super) fn push(&mut self, step: PathElement, part: Part) {
        self.push_with(|| step, part);
    }

    /// The same with a step that is made only where it is needed.
    pub(super) fn push_with(&mut self, step: impl FnOnce() -> PathElement, part: Part) {
        let Part { member, below } = part;
        if member || !below.is_empty() {
            self.nodes.push(Node { step: step(), member, below });
        }
    }

    /// Whether a path is in the set.
    pub fn has(&self, path: &[PathElement]) -> bool {
        match path {
            [] => false,
            [last] => self.has_member(last),
            [first, rest @ ..] => self.node(first).is_some_and(|node| node.below.has(rest)),
        }
    }

    /// Whether no path is in the set.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Number of paths.
    pub fn len(&self) -> usize {
        self.nodes.iter().map(|node| usize::from(node.member) + node.below.len()).sum()
    }

    /// The part below one step, if there is any.
    pub(super) fn below(&self, step: &PathElement) -> Option<&FieldSet> {
        self.node(step).map(|node| &node.below).filter(|below| !below.is_empty())
    }

    pub(super) fn has_member(&self, step: &PathElement) -> bool {
        self.node(step).is_some_and(|node| node.member)
    }

    /// Paths in either.
    #[must_use]
    pub fn union(&self, other: &FieldSet) -> FieldSet {
        self.clone().with(other.clone())
    }

    /// Paths in either.
    #[must_use]
    pub fn with(self, other: FieldSet) -> FieldSet {
        if self.nodes.is_empty() {
            return other;
        }
        if other.nodes.is_empty() {
            return self;
        }
        let mut nodes = Vec::with_capacity(self.nodes.len().max(other.nodes.len()));
        let (mut left, mut right) = (self.nodes.into_iter().peekable(), other.nodes.into_iter().peekable());
        while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
            match a.step.cmp(&b.step) {
                Ordering::Less => nodes.extend(left.next()),
                Ordering::Greater => nodes.extend(right.next()),
                Ordering::Equal => {
                    if let (Some(a), Some(b)) = (left.next(), right.next()) {
                        nodes.push(Node { step: a.step, member: a.member || b.member, below: a.below.with(b.below) });
                    }
                }
            }
        }
        nodes.extend(left);
        nodes.extend(right);
        FieldSet { nodes }
    }

    /// Paths in both.
    #[must_use]
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        let common = |node: &Node| {
            let there = other.node(&node.step)?;
            let (member, below) = (node.member && there.member, node.below.intersection(&there.below));
            (member || !below.is_empty()).then(|| Node { step: node.step.clone(), member, below })
        };
        FieldSet { nodes: self.nodes.iter().filter_map(common).collect() }
    }

    /// Whether every path is there, too.
    #[must_use]
    pub fn is_subset(&self, other: &FieldSet) -> bool {
        let there = |node: &Node| {
            other
                .node(&node.step)
                .is_some_and(|there| (there.member || !node.member) && node.below.is_subset(&there.below))
        };
        self.nodes.iter().all(there)
    }

    /// Whether every path is there, too, or among those that do not count.
    #[must_use]
    pub(super) fn is_subset_but(&self, ignored: &FieldSet, other: &FieldSet) -> bool {
        static NONE: FieldSet = FieldSet { nodes: Vec::new() };
        let there = |node: &Node| {
            let (ignored, there) = (ignored.node(&node.step), other.node(&node.step));
            let is_member = |node: Option<&Node>| node.is_some_and(|node| node.member);
            let (ignored_below, below) = (ignored.map_or(&NONE, |i| &i.below), there.map_or(&NONE, |t| &t.below));
            (!node.member || is_member(ignored) || is_member(there)) && node.below.is_subset_but(ignored_below, below)
        };
        self.nodes.iter().all(there)
    }

    /// Paths here and not there.
    #[must_use]
    pub fn difference(&self, other: &FieldSet) -> FieldSet {
        let mut left = self.clone();
        left.subtract(other);
        left
    }

    /// Takes the paths away that are there; returns whether there were any.
    pub(super) fn subtract(&mut self, other: &FieldSet) -> bool {
        let mut fewer = false;
        if other.nodes.is_empty() {
            return fewer;
        }
        self.nodes.retain_mut(|node| {
            let Some(taken) = other.node(&node.step) else { return true };
            fewer |= node.member && taken.member;
            node.member &= !taken.member;
            fewer |= node.below.subtract(&taken.below);
            !node.is_void()
        });
        fewer
    }

    /// Paths here, without those there and without all that is below those there.
    #[must_use]
    pub fn recursive_difference(&self, other: &FieldSet) -> FieldSet {
        let mut left = self.clone();
        left.subtract_whole(other);
        left
    }

    /// Takes the paths away that are there, and all that is below them.
    pub(super) fn subtract_whole(&mut self, other: &FieldSet) {
        if other.nodes.is_empty() {
            return;
        }
        self.nodes.retain_mut(|node| {
            let Some(taken) = other.node(&node.step) else { return true };
            if taken.member {
                return false;
            }
            node.below.subtract_whole(&taken.below);
            !node.is_void()
        });
    }

    /// Paths that no other path of the set goes through.
    #[must_use]
    pub fn leaves(&self) -> FieldSet {
        let leaf = |node: &Node| Node {
            step: node.step.clone(),
            member: node.member && node.below.is_empty(),
            below: node.below.leaves(),
        };
        FieldSet { nodes: self.nodes.iter().map(leaf).collect() }
    }

    /// Adds every declared field that a path goes through. Whoever owns `spec.replicas` is then taken to own `spec` as
    /// well, which decides whether an object that lost all its fields goes too.
    #[must_use]
    pub(super) fn with_named_fields(&self, schema: Option<Schema<'_>>) -> FieldSet {
        let shape = schema.map(Schema::shape);
        let named = |node: &Node| {
            if node.below.is_empty() {
                return node.clone();
            }
            let (mut member, mut inner) = (node.member, None);
            match (&node.step, &shape) {
                (PathElement::Field(name), Some(Shape::Object(object))) => {
                    member |= object.field(name).is_some();
                    inner = object.child(name);
                }
                (PathElement::Key(_), Some(Shape::List(list))) => inner = Some(list.items),
                _ => {}
            }
            Node { step: node.step.clone(), member, below: node.below.with_named_fields(inner) }
        };
        FieldSet { nodes: self.nodes.iter().map(named).collect() }
    }

    /// All paths in order.
    pub fn paths(&self) -> Vec<Vec<PathElement>> {
        let mut out = Vec::new();
        self.collect(&mut Vec::new(), &mut out);
        out
    }

    fn collect(&self, prefix: &mut Vec<PathElement>, out: &mut Vec<Vec<PathElement>>) {
        for node in self.nodes.iter().filter(|node| node.member) {
            let mut path = prefix.clone();
            path.push(node.step.clone());
            out.push(path);
        }
        for node in self.nodes.iter().filter(|node| !node.below.is_empty()) {
            prefix.push(node.step.clone());
            node.below.collect(prefix, out);
            prefix.pop();
        }
    }

    /// The stored form.
    pub fn to_fields_v1(&self) -> Value {
        Value::Object(self.encode(false))
    }

    fn encode(&self, itself: bool) -> Map<String, Value> {
        let itself = (itself && !self.nodes.is_empty()).then(|| (".".to_owned(), Value::Object(Map::new())));
        let nodes = self.nodes.iter().map(|node| (node.step.encode(), Value::Object(node.below.encode(node.member))));
        itself.into_iter().chain(nodes).collect()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// A key that is no step, or a member that is no object.
    pub fn from_fields_v1(fields: &Value) -> Result<FieldSet, String> {
        Ok(FieldSet::decode(fields)?.below)
    }

    /// The set below a member, and whether the member itself is in the set above.
    fn decode(fields: &Value) -> Result<Part, String> {
        let map = match fields {
            Value::Object(map) => map,
            Value::Null => return Ok(Part { member: true, below: FieldSet::new() }),
            other => return Err(format!("expected an object of fields, got {other}")),
        };
        let mut itself = false;
        let mut nodes = Vec::with_capacity(map.len());
        for (key, inner) in map {
            if key == "." {
                itself = true;
                continue;
            }
            let Some(step) = PathElement::decode(key)? else {
                continue;
            };
            let Part { member, below } = FieldSet::decode(inner)?;
            nodes.push(Node { step, member, below });
        }
        // Nearly always so already: the keys of the text sort as the steps do, but for numbers and spelling.
        if !nodes.is_sorted_by(|a, b| a.step < b.step) {
            nodes.sort_by(|a, b| a.step.cmp(&b.step));
            nodes.dedup_by(|later, first| {
                let same = later.step == first.step;
                if same {
                    first.member |= later.member;
                    first.below = std::mem::take(&mut first.below).with(std::mem::take(&mut later.below));
                }
                same
            });
        }
        Ok(Part { member: itself || nodes.is_empty(), below: FieldSet { nodes } })
    }
}

/// What a set has at one place: whether the place itself, and what below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) member: bool,
    pub(super) below: FieldSet,
}

impl Part {
    /// The place itself.
    pub(super) const fn itself() -> Part {
        Part { member: true, below: FieldSet { nodes: Vec::new() } }
    }

    /// What either has.
    pub(super) fn with(self, other: Part) -> Part {
        Part { member: self.member || other.member, below: self.below.with(other.below) }
    }
}
