//! The model of a type: which fields it has, of which shape, and how lists and maps in it are merged.
//!
//! A [`Definitions`] owns a flat table of nodes; a [`Schema`] is a cheap handle (two words) to one node of it, resolved
//! while walking, so that self-referring types cost nothing. The built-in table holds every type of the API version
//! served; a custom resource brings a table of its own in the same form.
//!
//! ```
//! use gantry_schema::schema::{Definitions, ListKind, Shape};
//!
//! let deployment = Definitions::builtin().schema_for("apps", "v1", "Deployment").unwrap();
//! let containers = deployment.at(&["spec", "template", "spec", "containers"]).unwrap();
//! let Shape::List(list) = containers.shape() else { panic!("a list") };
//! assert!(matches!(list.kind, ListKind::Map(keys) if &*keys[0] == "name"));
//! ```

mod custom;
mod empty;
mod implied;
mod load;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::OnceLock;

use serde_json::Value;

pub use custom::SchemaError;
pub(crate) use implied::Implied;

/// Index of a node in a table.
pub(crate) type NodeId = u32;

/// A leaf type, named after what it accepts on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// A string.
    String,
    /// Base64 text of arbitrary bytes.
    Bytes,
    /// RFC 3339 with seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// A quantity such as `100m` or `1Gi`; a number is accepted too.
    Quantity,
    /// A 32-bit integer or a string.
    IntOrString,
    /// A 32-bit signed integer.
    Int32,
    /// A 64-bit signed integer.
    Int64,
    /// A double.
    Number,
    /// `true` or `false`.
    Boolean,
}

/// How the items of a list are told apart when two lists are merged.
#[derive(Clone, Copy, Debug)]
pub enum ListKind<'a> {
    /// The list is one value: it is replaced whole.
    Atomic,
    /// Scalars, each present once.
    Set,
    /// Objects told apart by these fields.
    Map(&'a [Box<str>]),
}

/// What a value of a type looks like.
#[derive(Clone, Copy, Debug)]
pub enum Shape<'a> {
    /// Anything at all; nothing inside is known or checked.
    Any,
    /// A leaf.
    Scalar(Scalar),
    /// A list.
    List(List<'a>),
    /// An object with known fields, a map, or both (custom resources may have both).
    Object(Object<'a>),
}

/// A list type.
#[derive(Clone, Copy, Debug)]
pub struct List<'a> {
    /// Type of each item.
    pub items: Schema<'a>,
    /// How it merges.
    pub kind: ListKind<'a>,
}

/// What fields other than the declared ones are.
#[derive(Clone, Copy, Debug)]
pub enum Rest<'a> {
    /// There are none: an unknown field is an error.
    Unknown,
    /// Any value is kept unchecked (`x-kubernetes-preserve-unknown-fields`).
    Any,
    /// The values of a map.
    Values(Schema<'a>),
}

/// An object or map type.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    definitions: &'a Definitions,
    node: &'a ObjectNode,
    /// Whether it is replaced whole instead of merged field by field.
    pub atomic: bool,
}

/// A declared field of an object.
#[derive(Clone, Copy, Debug)]
pub struct Field<'a> {
    /// Name on the wire.
    pub name: &'a str,
    /// Its type.
    pub schema: Schema<'a>,
    /// Whether an object without it is invalid by its schema.
    pub required: bool,
    /// Strategic merge: the list is merged (by [`Field::merge_key`] or as a set of scalars) and not replaced.
    pub merge: bool,
    /// Strategic merge: the object or list is replaced whole.
    pub replace: bool,
    /// Strategic merge: fields the patch does not name are dropped (`retainKeys`).
    pub retain_keys: bool,
    /// Strategic merge: the field that tells the list's objects apart.
    pub merge_key: Option<&'a str>,
    /// Value assumed when the field is absent; used for the keys of map lists.
    pub default: Option<&'a Value>,
}

/// A handle to one type. Copying it is free.
#[derive(Clone, Copy)]
pub struct Schema<'a> {
    definitions: &'a Definitions,
    node: NodeId,
    /// A reference may say another granularity than the type it refers to.
    atomic: Option<bool>,
}

impl std::fmt::Debug for Schema<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Schema({})", self.name().unwrap_or("inline"))
    }
}

/// A table of types, found by name or by group, version and kind.
pub struct Definitions {
    nodes: Vec<Node>,
    names: HashMap<Box<str>, NodeId>,
    /// Key: `group/version/kind`.
    kinds: HashMap<Box<str>, NodeId>,
}

impl std::fmt::Debug for Definitions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Definitions({} types)", self.names.len())
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Node {
    Any,
    Scalar(Scalar),
    List(Box<ListNode>),
    Object(Box<ObjectNode>),
}

#[derive(Debug, Clone)]
pub(crate) struct ListNode {
    items: NodeId,
    kind: ListKindNode,
}

#[derive(Debug, Clone)]
pub(crate) enum ListKindNode {
    Atomic,
    Set,
    Map(Box<[Box<str>]>),
}

#[derive(Debug, Clone)]
pub(crate) struct ObjectNode {
    /// Qualified name of the definition; empty for a type written in place.
    name: Box<str>,
    /// Sorted by name.
    fields: Box<[FieldNode]>,
    rest: RestNode,
    atomic: bool,
    /// See [`Object::implied`]; found when first asked for.
    implied: OnceLock<Box<[Implied]>>,
}

#[derive(Debug, Clone)]
pub(crate) enum RestNode {
    Unknown,
    Any,
    Values(NodeId),
}

#[derive(Debug, Clone)]
pub(crate) struct FieldNode {
    /// See [`beginning_of`].
    beginning: u64,
    name: Box<str>,
    node: NodeId,
    required: bool,
    merge: bool,
    replace: bool,
    retain_keys: bool,
    atomic: Option<bool>,
    merge_key: Option<Box<str>>,
    default: Option<Box<Value>>,
}

/// The first eight bytes of a name as a number that orders as they do.
fn beginning_of(name: &str) -> u64 {
    let mut bytes = [0; 8];
    let length = name.len().min(bytes.len());
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    u64::from_be_bytes(bytes)
}

impl FieldNode {
    /// A field with no markers.
    fn plain(name: &str, node: NodeId) -> FieldNode {
        FieldNode {
            beginning: beginning_of(name),
            name: name.into(),
            node,
            required: false,
            merge: false,
            replace: false,
            retain_keys: false,
            atomic: None,
            merge_key: None,
            default: None,
        }
    }
}

impl Definitions {
    /// Every type of the API version served. The first call decompresses and loads the table (a few milliseconds).
    pub fn builtin() -> &'static Definitions {
        static BUILTIN: OnceLock<Definitions> = OnceLock::new();
        BUILTIN.get_or_init(load::builtin)
    }

    /// The type of a kind, if this table has it. The core group is the empty string.
    pub fn schema_for(&self, group: &str, version: &str, kind: &str) -> Option<Schema<'_>> {
        self.kinds.get(format!("{group}/{version}/{kind}").as_str()).map(|node| self.handle(*node))
    }

    /// The type with a definition name such as `io.k8s.api.apps.v1.Deployment`.
    pub fn definition(&self, name: &str) -> Option<Schema<'_>> {
        self.names.get(name).map(|node| self.handle(*node))
    }

    /// The definition name of a kind.
    pub fn name_of(&self, group: &str, version: &str, kind: &str) -> Option<&str> {
        self.schema_for(group, version, kind)?.name()
    }

    fn handle(&self, node: NodeId) -> Schema<'_> {
        Schema { definitions: self, node, atomic: None }
    }
}

impl<'a> Schema<'a> {
    /// What a value of this type looks like.
    pub fn shape(self) -> Shape<'a> {
        match &self.definitions.nodes[self.node as usize] {
            Node::Any => Shape::Any,
            Node::Scalar(scalar) => Shape::Scalar(*scalar),
            Node::List(list) => Shape::List(List {
                items: self.definitions.handle(list.items),
                kind: match &list.kind {
                    ListKindNode::Atomic => ListKind::Atomic,
                    ListKindNode::Set => ListKind::Set,
                    ListKindNode::Map(keys) => ListKind::Map(keys),
                },
            }),
            Node::Object(node) => Shape::Object(Object {
                definitions: self.definitions,
                node,
                atomic: self.atomic.unwrap_or(node.atomic),
            }),
        }
    }

    /// Definition name (`io.k8s.api.core.v1.PodSpec`); nothing for scalars, lists, maps and types written in place.
    pub fn name(self) -> Option<&'a str> {
        match &self.definitions.nodes[self.node as usize] {
            Node::Object(node) if !node.name.is_empty() => Some(&node.name),
            _ => None,
        }
    }

    /// The type of a field or map value of this type; nothing when it has no such field or is not an object.
    pub fn field(self, name: &str) -> Option<Schema<'a>> {
        match self.shape() {
            Shape::Object(object) => object.child(name),
            _ => None,
        }
    }

    /// The type reached through a path of field names; lists on the way are passed through to their items.
    pub fn at(self, path: &[&str]) -> Option<Schema<'a>> {
        path.iter().try_fold(self, |mut schema, name| {
            while let Shape::List(list) = schema.shape() {
                schema = list.items;
            }
            schema.field(name)
        })
    }
}

impl<'a> Object<'a> {
    /// A declared field.
    pub fn field(&self, name: &str) -> Option<Field<'a>> {
        let beginning = beginning_of(name);
        // Hardly ever are names alike for so long that they have to be looked at.
        let order = |field: &FieldNode| field.beginning.cmp(&beginning).then_with(|| (*field.name).cmp(name));
        let index = self.node.fields.binary_search_by(order).ok()?;
        Some(self.resolve(&self.node.fields[index]))
    }

    /// The declared fields, sorted by name.
    pub fn fields(&self) -> impl Iterator<Item = Field<'a>> + use<'a> {
        let object = *self;
        self.node.fields.iter().map(move |field| object.resolve(field))
    }

    /// Whether any field is declared; a map has none.
    pub fn has_fields(&self) -> bool {
        !self.node.fields.is_empty()
    }

    /// What other fields are.
    pub fn rest(&self) -> Rest<'a> {
        match self.node.rest {
            RestNode::Unknown => Rest::Unknown,
            RestNode::Any => Rest::Any,
            RestNode::Values(node) => Rest::Values(self.definitions.handle(node)),
        }
    }

    /// Definition name, or the empty string for a map or a type written in place.
    pub fn name(&self) -> &'a str {
        &self.node.name
    }

    /// The type of a field, declared or map value; nothing when it is unknown or kept unchecked.
    pub fn child(&self, name: &str) -> Option<Schema<'a>> {
        match self.field(name) {
            Some(field) => Some(field.schema),
            None => match self.rest() {
                Rest::Values(schema) => Some(schema),
                Rest::Any | Rest::Unknown => None,
            },
        }
    }

    fn resolve(&self, field: &'a FieldNode) -> Field<'a> {
        Field {
            name: &field.name,
            schema: Schema { definitions: self.definitions, node: field.node, atomic: field.atomic },
            required: field.required,
            merge: field.merge,
            replace: field.replace,
            retain_keys: field.retain_keys,
            merge_key: field.merge_key.as_deref(),
            default: field.default.as_deref(),
        }
    }
}
