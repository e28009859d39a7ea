//! Whether merging a configuration into an object would change anything, and whether what was applied before is all still
//! applied: questions that are answered without copying, and nearly always with yes.

use serde_json::Value;

use super::path::compare_values;
use super::typed::{Atom, atom, child, is_atomic, keyed};
use crate::schema::{List, ListKind, Schema, Shape};

/// Longest list whose items are looked for one by one. Longer ones are left to what sorts them.
const ITEMS_MAX: usize = 64;

/// Whether a merge of `config` into `live` would succeed and return `live`. Where that takes a closer look to tell, no.
pub(super) fn covers(live: &Value, config: &Value, schema: Option<Schema<'_>>) -> bool {
    match (atom(schema, Some(config)), live, config) {
        (Atom::List(list), Value::Array(live), Value::Array(config)) => match keyed(list) {
            Some(list) => covers_items(list, live, config),
            None => live == config,
        },
        (Atom::Map(object), Value::Object(live), Value::Object(config)) if !is_atomic(object) => {
            let mut shared = 0;
            let fits = live.iter().all(|(name, value)| match config.get(name) {
                Some(wanted) => {
                    shared += 1;
                    covers(value, wanted, child(object, name))
                }
                None => can_be_told_apart(value, child(object, name)),
            });
            fits && shared == config.len()
        }
        _ => live == config,
    }
}

/// The same for lists: all items of the configuration are there, in its order.
fn covers_items(list: List<'_>, live: &[Value], config: &[Value]) -> bool {
    if live.len() > ITEMS_MAX || !are_distinct(list, live) {
        return false;
    }
    let mut wanted = config.iter().peekable();
    for item in live {
        match wanted.next_if(|next| is_keyed(list, next) && is_same_item(list, item, next)) {
            Some(next) if !covers(item, next, Some(list.items)) => return false,
            Some(_) => {}
            None if !can_be_told_apart(item, Some(list.items)) => return false,
            None => {}
        }
    }
    wanted.next().is_none()
}

/// Whether no list in a value has an item that lacks what it is told apart by.
fn can_be_told_apart(value: &Value, schema: Option<Schema<'_>>) -> bool {
    match (atom(schema, Some(value)), value) {
        (Atom::List(list), Value::Array(items)) => keyed(list).is_none_or(|list| {
            items.iter().all(|item| is_keyed(list, item) && can_be_told_apart(item, Some(list.items)))
        }),
        (Atom::Map(object), Value::Object(map)) if !is_atomic(object) => {
            map.iter().all(|(name, inner)| can_be_told_apart(inner, child(object, name)))
        }
        _ => true,
    }
}

/// Whether `merged`, what a merge of `config` made, has anything below what the configuration says is empty.
pub(super) fn fills_empty(merged: &Value, config: &Value, schema: Option<Schema<'_>>) -> bool {
    match atom(schema, Some(config)) {
        Atom::Scalar => false,
        Atom::List(list) => keyed(list).is_some_and(|list| {
            let items = merged.as_array().map(Vec::as_slice).unwrap_or_default();
            match config.as_array().filter(|wanted| !wanted.is_empty()) {
                Some(wanted) => wanted.len() > ITEMS_MAX || fills_empty_item(list, items, wanted),
                None => !items.is_empty(),
            }
        }),
        Atom::Map(object) if is_atomic(object) => false,
        Atom::Map(object) => match config.as_object().filter(|wanted| !wanted.is_empty()) {
            Some(wanted) => wanted.iter().any(|(name, wanted)| {
                merged.get(name).is_some_and(|inner| fills_empty(inner, wanted, child(object, name)))
            }),
            None => merged.as_object().is_some_and(|merged| !merged.is_empty()),
        },
    }
}

fn fills_empty_item(list: List<'_>, items: &[Value], wanted: &[Value]) -> bool {
    wanted.iter().enumerate().any(|(place, wanted)| {
        // Nearly always it is where the configuration has it.
        let mut there = items.get(place).into_iter().chain(items);
        let found = there.find(|item| is_same_item(list, item, wanted));
        found.is_none_or(|item| fills_empty(item, wanted, Some(list.items)))
    })
}

/// Whether an item has what it is told apart by.
fn is_keyed(list: List<'_>, item: &Value) -> bool {
    match list.kind {
        ListKind::Atomic => false,
        ListKind::Set => !matches!(item, Value::Object(_) | Value::Array(_) | Value::Null),
        ListKind::Map(keys) => item.is_object() && keys.iter().any(|key| key_of(list, item, key).is_some()),
    }
}

/// Whether two items are taken for one.
fn is_same_item(list: List<'_>, a: &Value, b: &Value) -> bool {
    match list.kind {
        ListKind::Atomic => false,
        ListKind::Set => compare_values(a, b).is_eq(),
        ListKind::Map(keys) => keys.iter().all(|key| match (key_of(list, a, key), key_of(list, b, key)) {
            (Some(a), Some(b)) => compare_values(a, b).is_eq(),
            (None, None) => true,
            _ => false,
        }),
    }
}

fn key_of<'v>(list: List<'v>, item: &'v Value, key: &str) -> Option<&'v Value> {
    item.get(key).or_else(|| match list.items.shape() {
        Shape::Object(object) => object.field(key)?.default,
        _ => None,
    })
}

fn are_distinct(list: List<'_>, items: &[Value]) -> bool {
    items
        .iter()
        .enumerate()
        .all(|(at, item)| is_keyed(list, item) && !items[..at].iter().any(|earlier| is_same_item(list, earlier, item)))
}
