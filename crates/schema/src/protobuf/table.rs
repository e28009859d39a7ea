//! The messages of the wire: which field has which number and which form.

/// The JSON form of a value and how it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    String,
    /// Base64 in JSON.
    Bytes,
    Bool,
    /// A varint; negative numbers as 64 bits.
    Int,
    Double,
    /// A string in a message.
    Quantity,
    /// A message of a type (0 integer, 1 string), the integer and the string.
    IntOrString,
    /// Seconds and nanoseconds in a message; the nanoseconds count for nothing.
    Time,
    MicroTime,
    /// Nanoseconds in a message.
    Duration,
    /// JSON text in a message.
    Raw,
    /// A list of strings in a message.
    Strings,
    /// A schema or a list of schemas (`items`).
    SchemaOrArray,
    /// A schema or a boolean (`additionalProperties`).
    SchemaOrBool,
    /// A schema or a list of strings (`dependencies`).
    SchemaOrStrings,
    /// The message with this index.
    Message(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Single,
    Repeated,
    /// From strings.
    Map,
}

#[derive(Debug)]
pub(super) struct Field {
    /// In JSON.
    pub name: &'static str,
    pub number: u16,
    pub shape: Shape,
    pub kind: Kind,
    /// Whether the fields of this message stand beside it in JSON.
    pub inline: bool,
    /// Whether zero is a value of its own; otherwise it stands for an absent one.
    pub zero_counts: bool,
}

/// A message type of the wire.
#[derive(Debug)]
pub struct Message {
    pub(super) name: &'static str,
    /// Sorted by name, inline ones first.
    pub(super) fields: &'static [Field],
    /// Indices of the fields, sorted by number.
    pub(super) by_number: &'static [u16],
}

pub(super) struct Package {
    pub group: &'static str,
    pub version: &'static str,
    pub first: usize,
    pub end: usize,
}

include!(concat!(env!("OUT_DIR"), "/protobuf.rs"));

/// The group of the kinds that belong to every group.
const META_GROUP: &str = "meta.k8s.io";
/// Those kinds.
const META_KINDS: &[&str] = &[
    "APIGroup",
    "APIGroupList",
    "APIResourceList",
    "APIVersions",
    "CreateOptions",
    "DeleteOptions",
    "GetOptions",
    "ListOptions",
    "PatchOptions",
    "Status",
    "UpdateOptions",
    "WatchEvent",
];

impl Kind {
    /// The message behind the kind, where it is one.
    pub(super) fn message(self) -> Option<&'static Message> {
        match self {
            Kind::Message(index) => Some(&MESSAGES[usize::from(index)]),
            _ => None,
        }
    }
}

impl Message {
    /// The field that JSON calls `name`, which is not inside an inline message.
    pub(super) fn field(&self, name: &str) -> Option<&'static Field> {
        let fields = &self.fields[self.inline().count()..];
        fields.binary_search_by(|f| f.name.cmp(name)).ok().map(|at| &fields[at])
    }

    /// The inline messages.
    pub(super) fn inline(&self) -> impl Iterator<Item = &'static Field> + use<> {
        self.fields.iter().take_while(|f| f.inline)
    }

    /// The index of the field with this number.
    pub(super) fn index(&self, number: u64) -> Option<u16> {
        let at = self.by_number.binary_search_by(|i| u64::from(self.fields[usize::from(*i)].number).cmp(&number));
        at.ok().map(|at| self.by_number[at])
    }

    /// Whether JSON has this field here or in an inline message.
    pub(super) fn has(&self, name: &str) -> bool {
        self.field(name).is_some() || self.inline().any(|f| f.kind.message().is_some_and(|m| m.has(name)))
    }
}

fn in_package(group: &str, version: &str, kind: &str) -> Option<&'static Message> {
    let package = PACKAGES.iter().find(|p| p.group == group && p.version == version && !version.is_empty())?;
    let messages = &MESSAGES[package.first..package.end];
    messages.binary_search_by(|m| m.name.cmp(kind)).ok().map(|at| &messages[at])
}

/// The message of a kind; nothing where the kind has no protobuf form.
#[must_use]
pub fn message(group: &str, version: &str, kind: &str) -> Option<&'static Message> {
    if META_KINDS.contains(&kind) {
        return in_package(META_GROUP, "v1", kind);
    }
    // The beta of bare metadata is the same message.
    let version = if group == META_GROUP { "v1" } else { version };
    in_package(group, version, kind)
}

/// Whether the kinds of a group and version have a protobuf form; those of custom resources have none.
#[must_use]
pub fn speaks(group: &str, version: &str) -> bool {
    PACKAGES.iter().any(|p| p.group == group && p.version == version && !version.is_empty())
}

/// The kind of a schema inside a schema.
pub(super) fn schema_kind() -> Kind {
    SCHEMA
}
