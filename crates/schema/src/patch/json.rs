//! JSON patch (RFC 6902) with the reading upstream gives it: negative indices count from the end, `test` of an absent
//! member against null holds, and the texts of failures.

use serde_json::Value;

use super::{PatchError, Patched};
use crate::strict;

/// Most operations one patch may have.
pub const OPERATIONS_MAX: usize = 10_000;

/// Most bytes all `copy` operations of one patch may add together: the size limit of a request body.
pub const COPY_BYTES_MAX: usize = 3 << 20;

/// Applies a JSON patch.
///
/// # Errors
/// [`PatchError::BadRequest`] for a body that is no list of operations, [`PatchError::TooLarge`] for more than
/// [`OPERATIONS_MAX`] of them, [`PatchError::Rejected`] for an operation that does not apply.
pub fn json_patch(document: &Value, patch: &[u8]) -> Result<Patched, PatchError> {
    let bad = |text: String| PatchError::BadRequest(format!("error decoding patch: {text}"));
    let decoded = strict::decode_json(patch, None).map_err(|_| super::no_json())?;
    let Value::Array(operations) = decoded.value else {
        let found = strict::kind_of(&decoded.value);
        return Err(bad(format!("json: cannot unmarshal {found} into Go value of type []handlers.jsonPatchOp")));
    };
    let mut strict_errors: Vec<String> =
        decoded.strict_errors.into_iter().map(|error| format!("json patch {error}")).collect();
    for (index, operation) in operations.iter().enumerate() {
        let Value::Object(members) = operation else {
            let found = strict::kind_of(operation);
            return Err(bad(format!("json: cannot unmarshal {found} into Go value of type handlers.jsonPatchOp")));
        };
        for (name, value) in members {
            match name.as_str() {
                "op" | "path" | "from" if !value.is_string() && !value.is_null() => {
                    let found = strict::kind_of(value);
                    let text = format!(
                        "json: cannot unmarshal {found} into Go struct field jsonPatchOp.{name} of type string"
                    );
                    return Err(bad(text));
                }
                "op" | "path" | "from" | "value" => {}
                other if strict_errors.len() < strict::STRICT_ERRORS_MAX => {
                    strict_errors.push(format!("json patch unknown field \"[{index}].{other}\""));
                }
                _ => {}
            }
        }
    }
    if operations.len() > OPERATIONS_MAX {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
            operations.len()
        )));
    }
    let mut value = document.clone();
    let mut copied_bytes = 0;
    for operation in &operations {
        apply(&mut value, operation, &mut copied_bytes).map_err(|why| PatchError::Rejected { why })?;
    }
    Ok(Patched { value, strict_errors })
}

fn apply(document: &mut Value, operation: &Value, copied_bytes: &mut usize) -> Result<(), String> {
    let text = |member: &str| operation.get(member).and_then(Value::as_str);
    let op = text("op").unwrap_or("unknown");
    let missing = |what: &str| format!("{op} operation failed to decode {what}: missing value");
    let value = || operation.get("value").cloned().unwrap_or(Value::Null);
    match op {
        "add" => {
            let path = text("path").ok_or_else(|| missing("path"))?;
            let (parent, key) = find(document, path).ok_or_else(|| {
                format!("add operation does not apply: doc is missing path: \"{path}\": missing value")
            })?;
            add(parent, &key, value(), path).map_err(|error| format!("error in add for path: '{path}': {error}"))
        }
        "remove" => {
            let path = text("path").ok_or_else(|| missing("path"))?;
            let (parent, key) = find(document, path).ok_or_else(|| {
                format!("remove operation does not apply: doc is missing path: \"{path}\": missing value")
            })?;
            match remove(parent, &key) {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("error in remove for path: '{path}': {error}")),
            }
        }
        "replace" => {
            let path = text("path").ok_or_else(|| missing("path"))?;
            if path.is_empty() {
                *document = value();
                return Ok(());
            }
            let (parent, key) = find(document, path).ok_or_else(|| {
                format!("replace operation does not apply: doc is missing path: {path}: missing value")
            })?;
            let Ok(target) = get(parent, &key) else {
                return Err(format!("replace operation does not apply: doc is missing key: {path}: missing value"));
            };
            let value = value();
            if path.matches('/').count() + depth(&value) > strict::DEPTH_MAX {
                return Err("exceeded max depth".to_owned());
            }
            *target = value;
            Ok(())
        }
        "move" => {
            let from = text("from").ok_or_else(|| missing("from"))?;
            let path = text("path").ok_or_else(|| missing("path"))?;
            let (parent, key) = find(document, from).ok_or_else(|| {
                format!("move operation does not apply: doc is missing from path: {from}: missing value")
            })?;
            let moved = remove(parent, &key).map_err(|error| format!("error in move for path: '{key}': {error}"))?;
            let (parent, key) = find(document, path).ok_or_else(|| {
                format!("move operation does not apply: doc is missing destination path: {path}: missing value")
            })?;
            add(parent, &key, moved, path).map_err(|error| format!("error in move for path: '{path}': {error}"))
        }
        "copy" => {
            let from = text("from").ok_or_else(|| missing("from"))?;
            let path = text("path").ok_or_else(|| missing("path"))?;
            let (parent, key) = find(document, from).ok_or_else(|| {
                format!("copy operation does not apply: doc is missing from path: {from}: missing value")
            })?;
            let copy = get(parent, &key).map_err(|error| format!("error in copy for from: '{from}': {error}"))?.clone();
            *copied_bytes += copy.to_string().len();
            if *copied_bytes > COPY_BYTES_MAX {
                return Err(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied_bytes}, \
                     exceeding the limit {COPY_BYTES_MAX}"
                ));
            }
            let (parent, key) = find(document, path).ok_or_else(|| {
                format!("copy operation does not apply: doc is missing destination path: {path}: missing value")
            })?;
            add(parent, &key, copy, path).map_err(|error| format!("error while adding value during copy: {error}"))
        }
        "test" => {
            let path = text("path").ok_or_else(|| missing("path"))?;
            let failed = || Err(format!("testing value {path} failed: test failed"));
            if path.is_empty() {
                return if *document == value() { Ok(()) } else { failed() };
            }
            let (parent, key) = find(document, path)
                .ok_or_else(|| format!("test operation does not apply: is missing path: {path}: missing value"))?;
            let (expected, object) = (value(), parent.is_object());
            match get(parent, &key) {
                Ok(found) if *found == expected => Ok(()),
                Ok(_) => failed(),
                Err(_) if object && expected.is_null() => Ok(()),
                Err(_) if object => failed(),
                Err(error) => Err(format!("error in test for path: '{path}': {error}")),
            }
        }
        other => Err(format!("Unexpected kind: {other}")),
    }
}

/// The container a pointer ends in and the last key; nothing when the way there is missing or no pointer.
fn find<'v>(document: &'v mut Value, path: &str) -> Option<(&'v mut Value, String)> {
    let mut parts = path.strip_prefix('/')?.split('/').map(|part| part.replace("~1", "/").replace("~0", "~"));
    let mut key = parts.next()?;
    let mut current = document;
    for next in parts {
        current = get(current, &key).ok()?;
        key = next;
    }
    (current.is_object() || current.is_array()).then_some((current, key))
}

fn index(key: &str, length: usize) -> Result<usize, String> {
    let number: i64 = key.parse().map_err(|_| format!("strconv.Atoi: parsing {key:?}: invalid syntax"))?;
    let invalid = || format!("Unable to access invalid index: {number}: invalid index referenced");
    let length = i64::try_from(length).map_err(|_| invalid())?;
    let number = if number < 0 { number + length } else { number };
    if (0..length).contains(&number) { usize::try_from(number).map_err(|_| invalid()) } else { Err(invalid()) }
}

fn get<'v>(container: &'v mut Value, key: &str) -> Result<&'v mut Value, String> {
    match container {
        Value::Object(map) => {
            map.get_mut(key).ok_or_else(|| format!("unable to get nonexistent key: {key}: missing value"))
        }
        Value::Array(items) => {
            let index = index(key, items.len())?;
            Ok(&mut items[index])
        }
        _ => Err("unknown object type".to_owned()),
    }
}

/// Levels of lists and objects in a value.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Adds below the container a pointer ended in.
fn add(container: &mut Value, key: &str, value: Value, path: &str) -> Result<(), String> {
    // Additions into additions would otherwise nest without end, and all that walks values recurses.
    if path.matches('/').count() + depth(&value) > strict::DEPTH_MAX {
        return Err("exceeded max depth".to_owned());
    }
    match container {
        Value::Object(map) => {
            map.insert(key.to_owned(), value);
            Ok(())
        }
        Value::Array(items) if key == "-" => {
            items.push(value);
            Ok(())
        }
        Value::Array(items) => {
            // One more than there are items: adding at the end is allowed.
            let at = index(key, items.len() + 1).map_err(|error| match error.strip_prefix("strconv") {
                Some(_) => format!("value was not a proper array index: '{key}': {error}"),
                None => error,
            })?;
            items.insert(at, value);
            Ok(())
        }
        _ => Err("unknown object type".to_owned()),
    }
}

fn remove(container: &mut Value, key: &str) -> Result<Value, String> {
    match container {
        Value::Object(map) => {
            map.remove(key).ok_or_else(|| format!("Unable to remove nonexistent key: {key}: missing value"))
        }
        Value::Array(items) => {
            let at = index(key, items.len())?;
            Ok(items.remove(at))
        }
        _ => Err("unknown object type".to_owned()),
    }
}
