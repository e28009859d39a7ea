//! Strategic merge patch: a merge patch whose lists merge as the type says, and whose directives say the rest.
//!
//! | directive | where | meaning |
//! |---|---|---|
//! | `$patch: replace` | object | the patch replaces the object |
//! | `$patch: delete` | object | the object becomes empty |
//! | `$patch: replace` | list item | the patch's other items replace the list |
//! | `$patch: delete` | list item | the item with this merge key goes |
//! | `$deleteFromPrimitiveList/f` | object | these scalars go from list `f` |
//! | `$setElementOrder/f` | object | the order of list `f` |
//! | `$retainKeys` | object | fields not named here go |

use serde_json::{Map, Value};

use super::list::{self, ItemType};
use super::{PatchError, Patched};
use crate::go_text;
use crate::schema::{Field, Schema, Shape};
use crate::strict;

pub(super) const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_PRIMITIVE_LIST: &str = "$deleteFromPrimitiveList/";
const SET_ELEMENT_ORDER: &str = "$setElementOrder/";

const BAD_RETAIN_KEYS: &str = "invalid patch format of retainKeys";
pub(super) const BAD_ELEMENT_ORDER: &str = "invalid patch format of setElementOrder list";
const BAD_PRIMITIVE_LIST: &str = "invalid patch format of primitive list";

/// Applies a strategic merge patch to an object of type `schema`.
///
/// # Errors
/// [`PatchError::BadRequest`] for a malformed patch or directive, [`PatchError::Internal`] for a list item without its
/// merge key and what else upstream answers with 500, [`PatchError::Rejected`] for lists of lists and unknown
/// directives.
pub fn strategic_merge_patch(document: &Value, patch: &[u8], schema: Schema<'_>) -> Result<Patched, PatchError> {
    let decoded = strict::decode_json(patch, None).map_err(|_| super::no_json())?;
    let patch = match decoded.value {
        Value::Object(patch) => patch,
        Value::Null => return Ok(Patched { value: document.clone(), strict_errors: decoded.strict_errors }),
        other => return Err(PatchError::BadRequest(super::no_map(&other))),
    };
    let value = merge(document.clone(), patch, schema)?;
    Ok(Patched { value, strict_errors: decoded.strict_errors })
}

/// The same for a decoded patch.
///
/// # Errors
/// As [`strategic_merge_patch`].
pub fn merge(document: Value, patch: Map<String, Value>, schema: Schema<'_>) -> Result<Value, PatchError> {
    let original = match document {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    merge_map(original, patch, Some(schema)).map(Value::Object)
}

/// What the type says about one field of a patch.
struct Metadata<'a> {
    schema: Option<Schema<'a>>,
    merge: bool,
    replace: bool,
    merge_key: Option<&'a str>,
}

/// A type that is not known (raw or untyped content) merges like a map of anything, and its lists are replaced.
fn look_up<'a>(schema: Option<Schema<'a>>, name: &str) -> Result<Metadata<'a>, PatchError> {
    let untyped = Metadata { schema: None, merge: false, replace: false, merge_key: None };
    let Some(schema) = schema else {
        return Ok(untyped);
    };
    let Shape::Object(object) = schema.shape() else {
        return Ok(untyped);
    };
    match object.field(name) {
        Some(Field { schema, merge, replace, merge_key, .. }) => {
            Ok(Metadata { schema: Some(schema), merge, replace, merge_key })
        }
        None if object.name().is_empty() => Ok(Metadata { schema: object.child(name), ..untyped }),
        None => {
            let kind = object.name().rsplit('.').next().unwrap_or_default();
            Err(PatchError::Internal(format!("unable to find api field in struct {kind} for the json field {name:?}")))
        }
    }
}

pub(super) fn merge_map(
    mut original: Map<String, Value>,
    mut patch: Map<String, Value>,
    schema: Option<Schema<'_>>,
) -> Result<Map<String, Value>, PatchError> {
    match patch.remove(PATCH) {
        None => {}
        Some(directive) if directive == "replace" => return Ok(patch),
        Some(directive) if directive == "delete" => return Ok(Map::new()),
        Some(directive) => return Err(unknown_directive(&directive, &patch)),
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_order(&mut original, &mut patch, schema)?;
    for (name, change) in patch {
        let (name, delete_list) = match name.strip_prefix(DELETE_FROM_PRIMITIVE_LIST) {
            Some("") => return Err(PatchError::BadRequest(BAD_PRIMITIVE_LIST.to_owned())),
            Some(list) => (list.to_owned(), true),
            None => (name, false),
        };
        if change.is_null() {
            original.remove(&name);
            continue;
        }
        let Some(current) = original.get_mut(&name) else {
            if !delete_list && let Some(value) = without_directives(change) {
                original.insert(name, value);
            }
            continue;
        };
        let merged = match (current.take(), change) {
            (Value::Object(current), Value::Object(change)) => {
                let metadata = look_up(schema, &name)?;
                if metadata.replace {
                    Value::Object(change)
                } else {
                    Value::Object(merge_map(current, change, metadata.schema)?)
                }
            }
            (Value::Array(current), Value::Array(change)) => {
                let metadata = look_up(schema, &name)?;
                Value::Array(merge_list(current, change, &metadata, delete_list)?)
            }
            (current, _) if delete_list => current,
            (_, change) => without_directives(change).unwrap_or(Value::Null),
        };
        original.insert(name, merged);
    }
    Ok(original)
}

fn merge_list(
    current: Vec<Value>,
    change: Vec<Value>,
    metadata: &Metadata<'_>,
    delete_list: bool,
) -> Result<Vec<Value>, PatchError> {
    if !metadata.merge {
        return Ok(change);
    }
    let items = match metadata.schema.map(Schema::shape) {
        Some(Shape::List(list)) => Some(list.items),
        _ => None,
    };
    list::merge(current, change, ItemType { schema: items, merge_key: metadata.merge_key }, delete_list)
}

fn unknown_directive(directive: &Value, patch: &Map<String, Value>) -> PatchError {
    let mut whole = patch.clone();
    whole.insert(PATCH.to_owned(), directive.clone());
    PatchError::Internal(format!(
        "unknown patch type: {} in map: {}",
        go_text::format(directive),
        go_text::format(&Value::Object(whole))
    ))
}

fn retain_keys(original: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<(), PatchError> {
    let Some(directive) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let bad = || PatchError::BadRequest(BAD_RETAIN_KEYS.to_owned());
    let Value::Array(retained) = directive else {
        return Err(bad());
    };
    let retains = |name: &str| retained.iter().any(|key| key == name);
    for (name, change) in patch.iter() {
        let directive = name.starts_with(DELETE_FROM_PRIMITIVE_LIST) || name.starts_with(SET_ELEMENT_ORDER);
        if !change.is_null() && !directive && !retains(name) {
            return Err(bad());
        }
    }
    original.retain(|name, _| retains(name));
    Ok(())
}

/// Merges the lists that have an order directive, and takes them out of the patch.
fn set_element_order(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    schema: Option<Schema<'_>>,
) -> Result<(), PatchError> {
    let directives: Vec<String> = patch.keys().filter(|name| name.starts_with(SET_ELEMENT_ORDER)).cloned().collect();
    for directive in directives {
        let Some(order) = patch.remove(&directive) else {
            continue;
        };
        let name = &directive[SET_ELEMENT_ORDER.len()..];
        let list_of = |value: Option<Value>| match value {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(wrong_argument("[]interface {}", &other)),
        };
        let Some(order) = list_of(Some(order))? else {
            continue;
        };
        let change = list_of(patch.remove(name))?;
        let current = match (original.get(name), &change) {
            (None, _) => None,
            (found, _) => list_of(found.cloned())?,
        };
        let metadata = look_up(schema, name)?;
        if let Some(change) = &change {
            list::check_order(change, &order, metadata.merge_key)?;
        }
        let (merged, server) = match (current, change) {
            (None, None) => continue,
            (Some(current), None) => (current.clone(), current),
            (None, Some(change)) => (list::without_directives(change), Vec::new()),
            (Some(current), Some(change)) => (merge_list(current.clone(), change, &metadata, false)?, current),
        };
        let ordered = list::in_order(merged, &order, &server, metadata.merge_key)?;
        original.insert(name.to_owned(), Value::Array(ordered));
    }
    Ok(())
}

pub(super) fn wrong_argument(expected: &str, found: &Value) -> PatchError {
    PatchError::Internal(format!("expected a {expected}, but received a {}", go_text::type_name(found)))
}

/// A value taken whole from a patch: nulls and directives in it are obeyed or dropped. Nothing when it deletes itself.
pub(super) fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(mut map) => {
            if map.remove(PATCH).is_some_and(|directive| directive == "delete") {
                return None;
            }
            let clean = map
                .into_iter()
                .filter(|(name, value)| !value.is_null() && !is_directive(name))
                .filter_map(|(name, value)| without_directives(value).map(|value| (name, value)))
                .collect();
            Some(Value::Object(clean))
        }
        Value::Array(items) => Some(Value::Array(list::without_directives(items))),
        other => Some(other),
    }
}

fn is_directive(name: &str) -> bool {
    name == RETAIN_KEYS || name.starts_with(DELETE_FROM_PRIMITIVE_LIST) || name.starts_with(SET_ELEMENT_ORDER)
}
