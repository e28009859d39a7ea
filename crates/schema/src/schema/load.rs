//! Reads the embedded table the build script wrote.
//!
//! Lines of tab-separated columns. A definition and then its fields:
//!
//! ```text
//! D  <name>  <shape>  <flags>  <group/version/kind> …
//! F  <name>  <shape>  <flags>  <merge key>  <default as JSON>
//! ```
//!
//! Shape is a prefix code: `s` string, `y` bytes, `t` time, `u` micro time, `q` quantity, `p` int-or-string, `i` int32,
//! `l` int64, `n` number, `b` boolean, `x` anything, `e` object without fields, `o` object with the fields that follow,
//! `@<n> ` the n-th definition, `[a<item>` / `[s<item>` / `[m<key,key> <item>` atomic, set and map list, `{a<value>` /
//! `{g<value>` atomic and granular map. Flags: `a` atomic, `g` granular, `r` required, `m` merge, `p` replace,
//! `k` retainKeys.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::{Definitions, FieldNode, ListKindNode, ListNode, Node, NodeId, ObjectNode, RestNode, Scalar};

static STRUCTURE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/structure.tsv.zst"));

/// Length of the table when decompressed, in decimal.
const STRUCTURE_BYTES: &str = env!("GANTRY_STRUCTURE_BYTES");

/// Loads the embedded table. It is made at build time and loaded whole by the tests, so a defect in it is a defect of
/// the binary, not of any input.
pub(super) fn builtin() -> Definitions {
    let length = STRUCTURE_BYTES.parse().expect("the build script writes a number");
    let bytes = zstd::bulk::decompress(STRUCTURE, length).expect("embedded table decompresses");
    let text = String::from_utf8(bytes).expect("embedded table is UTF-8");
    parse(&text).expect("embedded table is well-formed")
}

fn parse(text: &str) -> Option<Definitions> {
    let count = text.lines().filter(|line| line.starts_with("D\t")).count();
    let mut loader = Loader { nodes: vec![Node::Any; count], shared: HashMap::new() };
    let mut names = HashMap::with_capacity(count);
    let mut kinds = HashMap::new();
    let mut fields: Vec<FieldNode> = Vec::new();
    let mut current: Option<usize> = None;
    let mut next = 0;
    for line in text.lines() {
        let mut columns = line.split('\t');
        match columns.next()? {
            "D" => {
                loader.finish(current.take(), &mut fields);
                let (name, mut shape) = (columns.next()?, columns.next()?);
                let (flags, gvks) = (columns.next()?, columns.next()?);
                loader.nodes[next] = if matches!(shape, "o" | "e") {
                    current = Some(next);
                    Node::Object(Box::new(ObjectNode {
                        name: name.into(),
                        fields: Box::default(),
                        rest: RestNode::Unknown,
                        atomic: flags.contains('a'),
                        implied: OnceLock::new(),
                    }))
                } else {
                    let id = loader.shape(&mut shape)?;
                    loader.nodes[id as usize].clone()
                };
                names.insert(name.into(), next as NodeId);
                for gvk in gvks.split(' ').filter(|gvk| !gvk.is_empty()) {
                    kinds.insert(gvk.into(), next as NodeId);
                }
                next += 1;
            }
            "F" => {
                let (name, mut shape, flags) = (columns.next()?, columns.next()?, columns.next()?);
                let (merge_key, default) = (columns.next()?, columns.next()?);
                let mut field = FieldNode::plain(name, loader.shape(&mut shape)?);
                for flag in flags.chars() {
                    match flag {
                        'r' => field.required = true,
                        'm' => field.merge = true,
                        'p' => field.replace = true,
                        'k' => field.retain_keys = true,
                        'a' => field.atomic = Some(true),
                        'g' => field.atomic = Some(false),
                        _ => return None,
                    }
                }
                field.merge_key = (!merge_key.is_empty()).then(|| merge_key.into());
                if !default.is_empty() {
                    field.default = Some(Box::new(serde_json::from_str(default).ok()?));
                }
                fields.push(field);
            }
            _ => return None,
        }
    }
    loader.finish(current, &mut fields);
    loader.nodes.shrink_to_fit();
    Some(Definitions { nodes: loader.nodes, names, kinds })
}

struct Loader {
    nodes: Vec<Node>,
    /// Leaves and the lists and maps of them are shared; key: their whole shape code.
    shared: HashMap<Box<str>, NodeId>,
}

impl Loader {
    fn finish(&mut self, current: Option<usize>, fields: &mut Vec<FieldNode>) {
        let mut fields = std::mem::take(fields);
        if let Some(index) = current
            && let Node::Object(object) = &mut self.nodes[index]
        {
            fields.sort_by(|a, b| a.name.cmp(&b.name));
            object.fields = fields.into_boxed_slice();
        }
    }

    /// Takes one shape off the front of `code`.
    fn shape(&mut self, code: &mut &str) -> Option<NodeId> {
        let whole = *code;
        if let Some(id) = self.shared.get(whole) {
            *code = "";
            return Some(*id);
        }
        let first = whole.chars().next()?;
        *code = &whole[1..];
        let node = match first {
            '@' => {
                let (index, rest) = code.split_once(' ')?;
                *code = rest;
                return index.parse().ok();
            }
            '[' => {
                let kind = code.chars().next()?;
                *code = &code[1..];
                let kind = match kind {
                    'a' => ListKindNode::Atomic,
                    's' => ListKindNode::Set,
                    'm' => {
                        let (keys, rest) = code.split_once(' ')?;
                        *code = rest;
                        ListKindNode::Map(keys.split(',').map(Into::into).collect())
                    }
                    _ => return None,
                };
                Node::List(Box::new(ListNode { items: self.shape(code)?, kind }))
            }
            '{' => {
                let atomic = code.starts_with('a');
                *code = &code[1..];
                let rest = RestNode::Values(self.shape(code)?);
                Node::Object(Box::new(ObjectNode {
                    name: Box::default(),
                    fields: Box::default(),
                    rest,
                    atomic,
                    implied: OnceLock::new(),
                }))
            }
            'e' => Node::Object(Box::new(ObjectNode {
                name: Box::default(),
                fields: Box::default(),
                rest: RestNode::Unknown,
                atomic: false,
                implied: OnceLock::new(),
            })),
            'x' => Node::Any,
            's' => Node::Scalar(Scalar::String),
            'y' => Node::Scalar(Scalar::Bytes),
            't' => Node::Scalar(Scalar::Time),
            'u' => Node::Scalar(Scalar::MicroTime),
            'q' => Node::Scalar(Scalar::Quantity),
            'p' => Node::Scalar(Scalar::IntOrString),
            'i' => Node::Scalar(Scalar::Int32),
            'l' => Node::Scalar(Scalar::Int64),
            'n' => Node::Scalar(Scalar::Number),
            'b' => Node::Scalar(Scalar::Boolean),
            _ => return None,
        };
        let id = self.nodes.len() as NodeId;
        self.nodes.push(node);
        if code.is_empty() {
            self.shared.insert(whole.into(), id);
        }
        Some(id)
    }
}
