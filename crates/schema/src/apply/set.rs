//! Sets of field paths, and `fieldsV1`, the form in which they are stored.

use std::collections::{BTreeMap, BTreeSet};

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
    members: BTreeSet<PathElement>,
    children: BTreeMap<PathElement, FieldSet>,
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

    /// Adds a path; the empty path (the root) is in no set.
    pub fn insert(&mut self, path: &[PathElement]) {
        match path {
            [] => {}
            [last] => {
                self.members.insert(last.clone());
            }
            [first, rest @ ..] => self.children.entry(first.clone()).or_default().insert(rest),
        }
    }

    /// Whether a path is in the set.
    pub fn has(&self, path: &[PathElement]) -> bool {
        match path {
            [] => false,
            [last] => self.members.contains(last),
            [first, rest @ ..] => self.children.get(first).is_some_and(|child| child.has(rest)),
        }
    }

    /// Whether no path is in the set.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.values().all(FieldSet::is_empty)
    }

    /// Number of paths.
    pub fn len(&self) -> usize {
        self.members.len() + self.children.values().map(FieldSet::len).sum::<usize>()
    }

    /// The part below one step, if there is any.
    pub(super) fn below(&self, step: &PathElement) -> Option<&FieldSet> {
        self.children.get(step).filter(|child| !child.is_empty())
    }

    pub(super) fn has_member(&self, step: &PathElement) -> bool {
        self.members.contains(step)
    }

    /// Paths in either.
    pub fn union(&self, other: &FieldSet) -> FieldSet {
        let mut children = self.children.clone();
        for (step, child) in &other.children {
            let merged = match children.get(step) {
                Some(own) => own.union(child),
                None => child.clone(),
            };
            children.insert(step.clone(), merged);
        }
        FieldSet { members: self.members.union(&other.members).cloned().collect(), children }
    }

    /// Paths in both.
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        let children = self.children.iter().filter_map(|(step, child)| {
            let common = child.intersection(other.children.get(step)?);
            (!common.is_empty()).then(|| (step.clone(), common))
        });
        FieldSet { members: self.members.intersection(&other.members).cloned().collect(), children: children.collect() }
    }

    /// Paths here and not there.
    pub fn difference(&self, other: &FieldSet) -> FieldSet {
        let children = self.children.iter().filter_map(|(step, child)| {
            let left = match other.children.get(step) {
                Some(taken) => child.difference(taken),
                None => child.clone(),
            };
            (!left.is_empty()).then(|| (step.clone(), left))
        });
        FieldSet { members: self.members.difference(&other.members).cloned().collect(), children: children.collect() }
    }

    /// Paths here, without those there and without all that is below those there.
    pub fn recursive_difference(&self, other: &FieldSet) -> FieldSet {
        let children =
            self.children.iter().filter(|(step, _)| !other.members.contains(step)).filter_map(|(step, child)| {
                let left = match other.children.get(step) {
                    Some(taken) => child.recursive_difference(taken),
                    None => child.clone(),
                };
                (!left.is_empty()).then(|| (step.clone(), left))
            });
        FieldSet { members: self.members.difference(&other.members).cloned().collect(), children: children.collect() }
    }

    /// Paths that no other path of the set goes through.
    pub fn leaves(&self) -> FieldSet {
        let members = self.members.iter().filter(|step| !self.children.contains_key(step)).cloned().collect();
        let children = self.children.iter().map(|(step, child)| (step.clone(), child.leaves())).collect();
        FieldSet { members, children }
    }

    /// Adds every declared field that a path goes through. Whoever owns `spec.replicas` is then taken to own `spec` as
    /// well, which decides whether an object that lost all its fields goes too.
    pub(super) fn with_named_fields(&self, schema: Option<Schema<'_>>) -> FieldSet {
        let mut members = self.members.clone();
        let shape = schema.map(Schema::shape);
        let mut children = BTreeMap::new();
        for (step, child) in &self.children {
            let inner = match (step, &shape) {
                (PathElement::Field(name), Some(Shape::Object(object))) => {
                    if object.field(name).is_some() {
                        members.insert(step.clone());
                    }
                    object.child(name)
                }
                (PathElement::Key(_), Some(Shape::List(list))) => Some(list.items),
                _ => None,
            };
            children.insert(step.clone(), child.with_named_fields(inner));
        }
        FieldSet { members, children }
    }

    /// All paths in order.
    pub fn paths(&self) -> Vec<Vec<PathElement>> {
        let mut out = Vec::new();
        self.collect(&mut Vec::new(), &mut out);
        out
    }

    fn collect(&self, prefix: &mut Vec<PathElement>, out: &mut Vec<Vec<PathElement>>) {
        for step in &self.members {
            let mut path = prefix.clone();
            path.push(step.clone());
            out.push(path);
        }
        for (step, child) in &self.children {
            prefix.push(step.clone());
            child.collect(prefix, out);
            prefix.pop();
        }
    }

    /// The stored form.
    pub fn to_fields_v1(&self) -> Value {
        Value::Object(self.encode(false))
    }

    fn encode(&self, itself: bool) -> Map<String, Value> {
        let mut map = Map::new();
        if itself && !(self.members.is_empty() && self.children.is_empty()) {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for step in &self.members {
            let inner = self.children.get(step).map(|child| child.encode(true)).unwrap_or_default();
            map.insert(step.encode(), Value::Object(inner));
        }
        for (step, child) in self.children.iter().filter(|(step, _)| !self.members.contains(step)) {
            map.insert(step.encode(), Value::Object(child.encode(false)));
        }
        map
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// A key that is no step, or a member that is no object.
    pub fn from_fields_v1(fields: &Value) -> Result<FieldSet, String> {
        let set = FieldSet::decode(fields)?.0;
        Ok(set.unwrap_or_default())
    }

    /// The set below a member, and whether the member itself is in the set above.
    fn decode(fields: &Value) -> Result<(Option<FieldSet>, bool), String> {
        let map = match fields {
            Value::Object(map) => map,
            Value::Null => return Ok((None, true)),
            other => return Err(format!("expected an object of fields, got {other}")),
        };
        let mut itself = false;
        let mut set: Option<FieldSet> = None;
        for (key, inner) in map {
            if key == "." {
                itself = true;
                continue;
            }
            let Some(step) = PathElement::decode(key)? else {
                continue;
            };
            let (child, member) = FieldSet::decode(inner)?;
            let own = set.get_or_insert_default();
            if member {
                own.members.insert(step.clone());
            }
            if let Some(child) = child {
                own.children.insert(step, child);
            }
        }
        Ok((set.clone(), itself || set.is_none()))
    }
}
