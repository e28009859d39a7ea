//! Fields that are there whatever was sent, because upstream holds them by value: an empty object or list takes their place.

use super::{Definitions, Object, ObjectNode, Shape};
use serde_json::{Map, Value};
use std::sync::LazyLock;

/// A field of a built-in object that is there without being said. Nobody comes to own such a field by being the first to
/// set something in it.
#[derive(Debug, Clone)]
pub(crate) struct Implied {
    pub(crate) name: Box<str>,
    list: bool,
}

static EMPTY: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));
static NULL: Value = Value::Null;

impl Implied {
    /// What stands for the field where it is absent: an empty object, or null for a list.
    pub(crate) fn value(&self) -> &'static Value {
        if self.list { &NULL } else { &EMPTY }
    }
}

impl<'a> Object<'a> {
    /// The fields that are there without being said, sorted by name.
    pub(crate) fn implied(&self) -> &'a [Implied] {
        self.node.implied.get_or_init(|| of(self.definitions, self.node))
    }
}

fn of(definitions: &Definitions, node: &ObjectNode) -> Box<[Implied]> {
    if !node.name.starts_with("io.k8s.") {
        return Box::default();
    }
    let owner = node.name.rsplit('.').next().unwrap_or_default();
    let mut found = Vec::new();
    for field in &node.fields {
        let required = field.required;
        let list = match definitions.handle(field.node).shape() {
            Shape::Object(inner) if inner.has_fields() && (required || is_by_value(owner, &field.name)) => false,
            Shape::List(_) if required => true,
            _ => continue,
        };
        found.push(Implied { name: field.name.clone(), list });
    }
    found.into()
}

/// Optional fields that are structures and no pointers.
fn is_by_value(owner: &str, field: &str) -> bool {
    match field {
        "metadata" | "spec" | "status" | "strategy" | "updateStrategy" | "loadBalancer" | "state" | "lastState" => true,
        "daemonEndpoints" | "kubeletEndpoint" | "nodeInfo" => true,
        "resources" => owner != "PodSpec",
        _ => false,
    }
}
