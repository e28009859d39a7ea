//! Schemas of custom resources: from the structural schema in a CustomResourceDefinition to the same node table.

use std::collections::HashMap;
use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::{Definitions, FieldNode, ListKindNode, ListNode, Node, NodeId, ObjectNode, RestNode, Scalar};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Nesting of a structural schema beyond which it is refused; each level is one call on the stack.
const DEPTH_MAX: usize = 120;

/// Why a structural schema cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct SchemaError {
    /// Path inside the schema, `.properties[spec].items`.
    pub path: String,
    /// What is wrong there.
    pub reason: String,
}

impl Definitions {
    /// The table for one version of a custom resource, from its `openAPIV3Schema`. `metadata` is the built-in object
    /// metadata whatever the schema says of it.
    ///
    /// # Errors
    /// A schema that is not structural: an unknown type, a map list without keys, or nesting without end.
    pub fn for_custom_resource(
        group: &str,
        version: &str,
        kind: &str,
        open_api_v3_schema: &Value,
    ) -> Result<Definitions, SchemaError> {
        let mut builder = Builder { nodes: Vec::new(), imported: HashMap::new() };
        let root = builder.schema(open_api_v3_schema, &mut String::new(), 0, true)?;
        let reversed: Vec<&str> = group.split('.').rev().collect();
        let name = format!("{}.{version}.{kind}", reversed.join("."));
        if let Node::Object(object) = &mut builder.nodes[root as usize] {
            object.name = name.as_str().into();
        }
        let names = HashMap::from([(name.into(), root)]);
        let kinds = HashMap::from([(format!("{group}/{version}/{kind}").into(), root)]);
        Ok(Definitions { nodes: builder.nodes, names, kinds })
    }
}

struct Builder {
    nodes: Vec<Node>,
    /// Built-in node to its copy here.
    imported: HashMap<NodeId, NodeId>,
}

impl Builder {
    fn push(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        (self.nodes.len() - 1) as NodeId
    }

    fn schema(&mut self, schema: &Value, path: &mut String, depth: usize, root: bool) -> Result<NodeId, SchemaError> {
        let fail = |path: &str, reason: String| SchemaError { path: path.to_owned(), reason };
        if depth > DEPTH_MAX {
            return Err(fail(path, "nested too deeply".into()));
        }
        let Some(schema) = schema.as_object() else {
            return Err(fail(path, "a schema must be an object".into()));
        };
        let flag = |key: &str| schema.get(key).and_then(Value::as_bool).unwrap_or(false);
        if flag("x-kubernetes-int-or-string") {
            return Ok(self.push(Node::Scalar(Scalar::IntOrString)));
        }
        let text = |key: &str| schema.get(key).and_then(Value::as_str).unwrap_or_default();
        let embedded = root || flag("x-kubernetes-embedded-resource");
        let node = match (text("type"), text("format")) {
            ("string", "byte") => Node::Scalar(Scalar::Bytes),
            ("string", _) => Node::Scalar(Scalar::String),
            ("integer", "int32") => Node::Scalar(Scalar::Int32),
            ("integer", _) => Node::Scalar(Scalar::Int64),
            ("number", _) => Node::Scalar(Scalar::Number),
            ("boolean", _) => Node::Scalar(Scalar::Boolean),
            ("array", _) => {
                let kind = match text("x-kubernetes-list-type") {
                    "set" => ListKindNode::Set,
                    "map" => {
                        let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
                        let keys: Box<[Box<str>]> =
                            keys.into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect();
                        if keys.is_empty() {
                            return Err(fail(path, "a list of type map needs x-kubernetes-list-map-keys".into()));
                        }
                        ListKindNode::Map(keys)
                    }
                    _ => ListKindNode::Atomic,
                };
                let items = match schema.get("items") {
                    Some(items) => self.nested(items, path, ".items", depth)?,
                    None => self.push(Node::Any),
                };
                Node::List(Box::new(ListNode { items, kind }))
            }
            ("object", _) => self.object(schema, path, depth, embedded)?,
            ("", _) if embedded || schema.contains_key("properties") => self.object(schema, path, depth, embedded)?,
            ("", _) => Node::Any,
            (other, _) => return Err(fail(path, format!("unsupported type {other:?}"))),
        };
        Ok(self.push(node))
    }

    fn nested(&mut self, schema: &Value, path: &mut String, step: &str, depth: usize) -> Result<NodeId, SchemaError> {
        let length = path.len();
        path.push_str(step);
        let node = self.schema(schema, path, depth + 1, false);
        path.truncate(length);
        node
    }

    fn object(
        &mut self,
        schema: &Map<String, Value>,
        path: &mut String,
        depth: usize,
        embedded: bool,
    ) -> Result<Node, SchemaError> {
        let required: Vec<&str> =
            schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let mut fields = Vec::new();
        for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            if embedded && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                continue;
            }
            let node = self.nested(property, path, &format!(".properties[{name}]"), depth)?;
            let mut field = FieldNode::plain(name, node);
            field.required = required.contains(&name.as_str());
            field.default = property.get("default").cloned().map(Box::new);
            fields.push(field);
        }
        if embedded {
            let text = self.push(Node::Scalar(Scalar::String));
            let metadata = self.import(Definitions::builtin().names[OBJECT_META]);
            for (name, node) in [("apiVersion", text), ("kind", text), ("metadata", metadata)] {
                fields.push(FieldNode::plain(name, node));
            }
        }
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        let preserve = schema.get("x-kubernetes-preserve-unknown-fields").and_then(Value::as_bool).unwrap_or(false);
        let rest = match schema.get("additionalProperties") {
            Some(values @ Value::Object(_)) => {
                RestNode::Values(self.nested(values, path, ".additionalProperties", depth)?)
            }
            Some(Value::Bool(true)) => RestNode::Any,
            _ if preserve => RestNode::Any,
            _ => RestNode::Unknown,
        };
        let atomic = schema.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic");
        Ok(Node::Object(Box::new(ObjectNode {
            name: Box::default(),
            fields: fields.into(),
            rest,
            atomic,
            implied: OnceLock::new(),
        })))
    }

    /// Copies a built-in type and all it refers to.
    fn import(&mut self, id: NodeId) -> NodeId {
        if let Some(copy) = self.imported.get(&id) {
            return *copy;
        }
        // The place is taken before descending, so that a type may refer to itself.
        let copy = self.push(Node::Any);
        self.imported.insert(id, copy);
        let mut node = Definitions::builtin().nodes[id as usize].clone();
        match &mut node {
            Node::Any | Node::Scalar(_) => {}
            Node::List(list) => list.items = self.import(list.items),
            Node::Object(object) => {
                for field in &mut object.fields {
                    field.node = self.import(field.node);
                }
                if let RestNode::Values(values) = &mut object.rest {
                    *values = self.import(*values);
                }
            }
        }
        self.nodes[copy as usize] = node;
        copy
    }
}
