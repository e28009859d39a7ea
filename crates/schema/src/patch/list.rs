//! Lists in a strategic merge patch: items of the patch meet items of the server by merge key (or by value, for
//! scalars), and the result is put in order: items the patch names in the patch's order, the others where they were.

use serde_json::{Map, Value};

use super::PatchError;
use super::strategic::{self, BAD_ELEMENT_ORDER, PATCH};
use crate::go_text;
use crate::schema::Schema;

/// Type of a list's items and what tells them apart.
#[derive(Clone, Copy)]
pub(super) struct ItemType<'a> {
    pub(super) schema: Option<Schema<'a>>,
    pub(super) merge_key: Option<&'a str>,
}

/// Whether a list holds objects; lists of lists and mixed lists are not supported.
fn holds_objects(lists: &[&[Value]]) -> Result<bool, PatchError> {
    let mut objects = None;
    for item in lists.iter().flat_map(|list| list.iter()) {
        match item {
            Value::Array(_) => {
                return Err(PatchError::Rejected { why: "lists of lists are not supported".to_owned() });
            }
            item => {
                let object = item.is_object();
                if *objects.get_or_insert(object) != object {
                    return Err(PatchError::Internal(
                        "list element types are not identical: map[string]interface {} and scalar".to_owned(),
                    ));
                }
            }
        }
    }
    Ok(objects.unwrap_or(false))
}

fn object(item: &Value) -> Result<&Map<String, Value>, PatchError> {
    item.as_object().ok_or_else(|| strategic::wrong_argument("map[string]interface {}", item))
}

fn key_of<'v>(item: &'v Value, key: &str) -> Result<&'v Value, PatchError> {
    object(item)?.get(key).ok_or_else(|| {
        PatchError::Internal(format!("map: {} does not contain declared merge key: {key}", go_text::format(item)))
    })
}

/// Merges `change` into `current`; with `delete_list` the change is a list of scalars to take away.
pub(super) fn merge(
    mut current: Vec<Value>,
    change: Vec<Value>,
    items: ItemType<'_>,
    delete_list: bool,
) -> Result<Vec<Value>, PatchError> {
    if current.is_empty() && change.is_empty() {
        return Ok(current);
    }
    if !holds_objects(&[&current, &change])? {
        if delete_list {
            current.retain(|item| !change.contains(item));
            return Ok(current);
        }
        let server = current.clone();
        for item in &change {
            current.push(item.clone());
        }
        let mut merged: Vec<Value> = Vec::with_capacity(current.len());
        for item in current {
            if !merged.contains(&item) {
                merged.push(item);
            }
        }
        return in_order(merged, &change, &server, None);
    }
    let Some(key) = items.merge_key else {
        return Err(PatchError::Internal("cannot merge lists without merge key for type struct".to_owned()));
    };
    let change = obey_directives(&mut current, change, key)?;
    let server = current.clone();
    for item in &change {
        let wanted = key_of(item, key)?;
        let mut found = None;
        for (index, other) in current.iter().enumerate() {
            let Some(other) = other.as_object() else {
                return Err(PatchError::Internal(format!("value for key {index} is not a map.")));
            };
            if other.get(key) == Some(wanted) {
                found = Some(index);
                break;
            }
        }
        let item = object(item)?.clone();
        match found {
            Some(index) => {
                let original = match current[index].take() {
                    Value::Object(map) => map,
                    _ => Map::new(),
                };
                current[index] = Value::Object(strategic::merge_map(original, item, items.schema)?);
            }
            None => current.extend(strategic::without_directives(Value::Object(item))),
        }
    }
    in_order(current, &change, &server, Some(key))
}

/// Carries out `$patch` items and returns the others.
fn obey_directives(current: &mut Vec<Value>, change: Vec<Value>, key: &str) -> Result<Vec<Value>, PatchError> {
    let mut plain = Vec::with_capacity(change.len());
    let mut replace = false;
    for item in change {
        match item.get(PATCH).cloned() {
            None => plain.push(item),
            Some(directive) if directive == "delete" => {
                let gone = key_of(&item, key)?.clone();
                for (index, other) in current.iter().enumerate() {
                    if !other.is_object() {
                        return Err(PatchError::Internal(format!("value for key {index} is not a map.")));
                    }
                }
                current.retain(|other| other.get(key) != Some(&gone));
            }
            Some(directive) if directive == "replace" => replace = true,
            Some(directive) if directive == "merge" => {
                return Err(PatchError::Internal("merging lists cannot yet be specified in the patch".to_owned()));
            }
            Some(directive) => {
                return Err(PatchError::Internal(format!(
                    "unknown patch type: {} in map: {}",
                    go_text::format(&directive),
                    go_text::format(&item)
                )));
            }
        }
    }
    if replace {
        *current = without_directives(std::mem::take(&mut plain));
    }
    Ok(plain)
}

/// A list taken whole from a patch. An item that is nothing but a directive was about the list and is no item of it.
pub(super) fn without_directives(items: Vec<Value>) -> Vec<Value> {
    let is_item = |item: &Value| item.as_object().is_none_or(|o| o.len() != 1 || !o.contains_key(strategic::PATCH));
    items.into_iter().filter(is_item).filter_map(strategic::without_directives).collect()
}

/// Place of an item in a list, by merge key or by value.
fn position(list: &[Value], item: &Value, key: Option<&str>) -> Option<usize> {
    match key {
        None => list.iter().position(|other| other == item),
        Some(key) => {
            let wanted = item.get(key)?;
            list.iter().position(|other| other.get(key) == Some(wanted))
        }
    }
}

/// Orders a merged list: items in `order` by it, the others by `server`, and the two interleaved so that a server item
/// comes first when it stood before the next ordered one.
pub(super) fn in_order(
    merged: Vec<Value>,
    order: &[Value],
    server: &[Value],
    key: Option<&str>,
) -> Result<Vec<Value>, PatchError> {
    if let Some(key) = key {
        for item in merged.iter().chain(order) {
            key_of(item, key)?;
        }
    }
    let (mut ordered, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| position(order, item, key).is_some());
    ordered.sort_by_key(|item| position(order, item, key));
    others.sort_by_key(|item| position(server, item, key).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(ordered.len() + others.len());
    let (mut ordered, mut others) = (ordered.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(next), Some(other)) = (ordered.peek(), others.peek()) {
        let before = match (position(server, other, key), position(server, next, key)) {
            (Some(other), Some(next)) => other < next,
            _ => false,
        };
        out.extend(if before { others.next() } else { ordered.next() });
    }
    out.extend(ordered);
    out.extend(others);
    Ok(out)
}

/// Checks that the items of a patch list stand in the order the directive says, and that it names them all.
pub(super) fn check_order(change: &[Value], order: &[Value], key: Option<&str>) -> Result<(), PatchError> {
    if change.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut places = order.iter();
    for item in change.iter().filter(|item| item.get(PATCH).is_none()) {
        let same = |other: &Value| match key {
            None => Ok(other == item),
            Some(key) => Ok::<bool, PatchError>(key_of(other, key)? == key_of(item, key)?),
        };
        loop {
            match places.next() {
                Some(other) if same(other)? => break,
                Some(_) => {}
                None => {
                    let text = format!(
                        "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                        go_text::format(&Value::Array(change.to_vec())),
                        go_text::format(&Value::Array(order.to_vec()))
                    );
                    return Err(PatchError::Internal(text));
                }
            }
        }
    }
    if order.iter().any(Value::is_array) {
        return Err(PatchError::BadRequest(BAD_ELEMENT_ORDER.to_owned()));
    }
    Ok(())
}
