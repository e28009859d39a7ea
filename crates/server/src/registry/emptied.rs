//! What was sent empty is shown empty in field errors. An empty list or map is left out before an object is checked, as it
//! says nothing and is not stored; but upstream's errors still tell `[]` and `{}` from what was not there at all, `null`.

use super::draft::{Body, Change, Encoding};
use gantry_api::meta::status::ApiError;
use gantry_schema::strict;
use serde_json::Value;

/// How errors begin that show a value which is not there.
const SHOWN: [&str; 2] = ["Invalid value: null", "Unsupported value: null"];

/// The field at a path as errors write it (`spec.rules[0].labels`). Keys in brackets do not count: none is a collection.
fn field<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(object, |object, part| {
        let (name, indexes) = part.split_once('[').unwrap_or((part, ""));
        let indexes = indexes.split(['[', ']']).filter(|i| !i.is_empty());
        indexes.map(str::parse::<usize>).try_fold(object.get(name)?, |list, index| list.get(index.ok()?))
    })
}

/// How an error shows what was sent at a path, where that is an empty collection. No `spec` is one; the error about a
/// `spec` that shows null is an ingress', and shows its rules.
fn empty_at(sent: &Value, path: &str) -> Option<&'static str> {
    match field(sent, if path == "spec" { "spec.rules" } else { path })? {
        Value::Array(items) if items.is_empty() => Some("[]"),
        Value::Object(fields) if fields.is_empty() => Some("{}"),
        _ => None,
    }
}

/// The error with `[]` and `{}` where the change has them.
pub(super) fn shown(mut error: ApiError, change: &Change) -> ApiError {
    let (Change::Create(body) | Change::Update(body)) = change else { return error };
    let causes = error.details.as_mut().and_then(|d| d.causes.as_mut());
    let mut sent = None;
    for cause in causes.into_iter().flatten() {
        let (Some(path), Some(text)) = (&cause.field, &mut cause.message) else { continue };
        let Some(null) = SHOWN.iter().find(|shown| text.starts_with(**shown)) else { continue };
        let Some(empty) = empty_at(sent.get_or_insert_with(|| decoded(body)), path) else { continue };
        let told = format!("{}{empty}{}", null.trim_end_matches("null"), &text[null.len()..]);
        error.message = error.message.replace(&format!("{path}: {text}"), &format!("{path}: {told}"));
        *text = told;
    }
    error
}

/// The body, which has been read once already.
fn decoded(body: &Body) -> Value {
    let found = match body.encoding {
        Encoding::Json => strict::decode_json(&body.bytes, None),
        Encoding::Yaml => strict::decode_yaml(&body.bytes, None),
    };
    found.map_or(Value::Null, |decoded| decoded.value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::meta::field::{ErrorList, Path};
    use serde_json::json;

    #[test]
    fn what_was_sent_empty_is_told_from_what_was_not_sent() {
        let tell = |sent: Value, path: &str| {
            let mut errors = ErrorList::default();
            errors.invalid(&Path::new(path), Value::Null, "why");
            errors.required(&Path::new("other"), "");
            let body = Body { bytes: sent.to_string().into(), encoding: Encoding::Json };
            let error = shown(ApiError::invalid("", "K", "n", &errors), &Change::Create(body));
            let cause = error.details.unwrap().causes.unwrap().remove(0).message.unwrap();
            assert!(error.message.contains(&format!("{path}: {cause}")), "{}", error.message);
            cause
        };
        let labels = |labels: Value| json!({"spec": {"list": [{}, {"labels": labels}]}});
        let cases = [
            (labels(json!({})), "Invalid value: {}: why"),
            (labels(json!([])), "Invalid value: []: why"),
            (labels(json!({"a": "b"})), "Invalid value: null: why"),
            (json!({"spec": {"list": []}}), "Invalid value: null: why"),
            (json!({}), "Invalid value: null: why"),
        ];
        for (sent, want) in cases {
            assert_eq!(tell(sent, "spec.list[1].labels"), want);
        }
        assert_eq!(tell(json!({"spec": {}}), "spec"), "Invalid value: null: why");
        assert_eq!(tell(json!({"spec": {"rules": []}}), "spec"), "Invalid value: []: why");
    }
}
