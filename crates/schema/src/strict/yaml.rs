//! The YAML reader: YAML to a tree that keeps order and duplicates, then the same checks as for JSON.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_saphyr::Options;
use serde_saphyr::options::DuplicateKeyPolicy;

use super::check::{Checker, Expected, Found};
use super::json::float;
use super::{DEPTH_MAX, DecodeError, NOT_YAML};
use crate::schema::Schema;

pub(super) fn parse<'a>(
    body: &[u8],
    schema: Option<Schema<'a>>,
    checker: &mut Checker<'a>,
) -> Result<Value, DecodeError> {
    let whole = String::from_utf8_lossy(body);
    let text = first_document(&whole);
    let tree = match serde_saphyr::from_str_with_options::<Tree>(text, options(DuplicateKeyPolicy::LastWins)) {
        Ok(tree) => tree,
        // A stream that has nothing in it is null, as an empty document is.
        Err(_) if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) => Tree::Null,
        Err(error) => {
            // Go's reader leaves the first line unsaid, and never says the column.
            let line = error.location().map(|location| location.line()).filter(|line| *line > 1);
            let line = line.map(|line| format!("line {line}: ")).unwrap_or_default();
            let told = error.without_snippet().to_string();
            let reason = told.rsplit_once(" at line ").map_or(told.as_str(), |(reason, _)| reason);
            return Err(DecodeError::Syntax(format!("{NOT_YAML}yaml: {line}{reason}")));
        }
    };
    let mut duplicates = Vec::new();
    let value = tree.into_value(schema.into(), checker, &mut duplicates);
    if !duplicates.is_empty() {
        let strict = serde_saphyr::from_str_with_options::<Tree>(text, options(DuplicateKeyPolicy::Error));
        let line = strict.err().and_then(|error| error.location().map(|location| location.line()));
        for (index, key) in duplicates.into_iter().enumerate() {
            // The reader tells the place of the first duplicate only.
            let place = match (index, line) {
                (0, Some(line)) => format!("line {line}: "),
                _ => String::new(),
            };
            checker.strict_text(format!("yaml: unmarshal errors:\n  {place}key {key:?} already set in map"));
        }
    }
    Ok(value)
}

/// The part of a stream up to the second document; what follows is not read, as upstream. A marker in the first column
/// ends a document whatever it stands in.
fn first_document(text: &str) -> &str {
    let mut begun = false;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let marker = |marker: &str| {
            line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        if begun && (marker("---") || marker("...")) {
            return &text[..at];
        }
        let blank = line.trim().is_empty() || line.starts_with(['#', '%']);
        begun = begun || !blank;
        at += line.len();
    }
    text
}

fn options(duplicate_keys: DuplicateKeyPolicy) -> Options {
    serde_saphyr::options! {
        legacy_octal_numbers: true,
        strict_booleans: false,
        with_snippet: false,
        duplicate_keys: duplicate_keys,
    }
}

enum Tree {
    Null,
    Boolean(bool),
    Integer(i64),
    Float(f64),
    String(String),
    Array(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

impl Tree {
    fn into_value<'a>(self, expected: Expected<'a>, checker: &mut Checker<'a>, duplicates: &mut Vec<String>) -> Value {
        match self {
            Tree::Null => {
                checker.found(&Found::Null, expected);
                Value::Null
            }
            Tree::Boolean(boolean) => {
                checker.found(&Found::Boolean, expected);
                Value::Bool(boolean)
            }
            Tree::Integer(number) => {
                checker.found(&Found::Number(Cow::Owned(number.to_string())), expected);
                Value::from(number)
            }
            Tree::Float(number) => {
                let value = float(number).unwrap_or(Value::Null);
                checker.found(&Found::Number(Cow::Owned(value.to_string())), expected);
                value
            }
            Tree::String(text) => {
                checker.found(&Found::String(&text), expected);
                Value::String(text)
            }
            Tree::Array(items) => {
                let inside = checker.found(&Found::Array, expected);
                let mut values = Vec::with_capacity(items.len());
                for (index, item) in items.into_iter().enumerate() {
                    let expected = checker.enter_item(index, inside);
                    values.push(item.into_value(expected, checker, duplicates));
                    checker.leave();
                }
                Value::Array(values)
            }
            Tree::Object(entries) => {
                let inside = checker.found(&Found::Object, expected);
                let mut map = Map::new();
                for (name, tree) in entries {
                    if map.contains_key(&name) {
                        duplicates.push(name.clone());
                    }
                    let expected = checker.enter(&name, inside, false);
                    let value = tree.into_value(expected, checker, duplicates);
                    checker.leave();
                    map.insert(name, value);
                }
                Value::Object(map)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Tree, D::Error> {
        Node { depth: 0 }.deserialize(deserializer)
    }
}

/// Reads one node at a depth.
#[derive(Clone, Copy)]
struct Node {
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Node {
    type Value = Tree;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML node")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_bool<E>(self, boolean: bool) -> Result<Tree, E> {
        Ok(Tree::Boolean(boolean))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Tree, E> {
        Ok(Tree::Integer(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Tree, E> {
        Ok(i64::try_from(number).map_or(Tree::Float(number as f64), Tree::Integer))
    }

    fn visit_i128<E>(self, number: i128) -> Result<Tree, E> {
        Ok(i64::try_from(number).map_or(Tree::Float(number as f64), Tree::Integer))
    }

    fn visit_u128<E>(self, number: u128) -> Result<Tree, E> {
        Ok(i64::try_from(number).map_or(Tree::Float(number as f64), Tree::Integer))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Tree, E> {
        Ok(Tree::Float(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
        Ok(Tree::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Tree, E> {
        Ok(Tree::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let inner = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(Tree::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let inner = self.deeper()?;
        let mut entries = Vec::new();
        while let Some(key) = access.next_key_seed(inner)? {
            let key = match key {
                Tree::String(text) => text,
                Tree::Boolean(boolean) => boolean.to_string(),
                Tree::Integer(number) => number.to_string(),
                Tree::Float(number) => float(number).unwrap_or(Value::Null).to_string(),
                Tree::Null => "null".to_owned(),
                Tree::Array(_) | Tree::Object(_) => {
                    return Err(serde::de::Error::custom("a mapping key must be a scalar"));
                }
            };
            entries.push((key, access.next_value_seed(inner)?));
        }
        Ok(Tree::Object(entries))
    }
}

impl Node {
    fn deeper<E: serde::de::Error>(self) -> Result<Node, E> {
        if self.depth >= DEPTH_MAX {
            return Err(E::custom("exceeded max depth"));
        }
        Ok(Node { depth: self.depth + 1 })
    }
}
