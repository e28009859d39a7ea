//! What does not fit its type where upstream makes the object from a tree instead of from text, as it does of the result
//! of a strategic merge patch: the texts of `runtime.DefaultUnstructuredConverter`.

use serde_json::Value;

use super::{check, literal};
use crate::schema::{Object, Rest, Scalar, Schema, Shape};

/// The first value of the wrong type: `cannot restore slice from map`, `unrecognized type: int32`.
#[must_use]
pub fn restore_error(value: &Value, schema: Schema<'_>) -> Option<String> {
    match (schema.shape(), value) {
        (_, Value::Null) | (Shape::Any, _) => None,
        (Shape::Object(object), Value::Object(map)) => {
            map.iter().find_map(|(name, child)| restore_error(child, object.child(name)?))
        }
        (Shape::Object(object), other) if is_map(&object) => {
            Some(format!("cannot restore map from {}", go_kind(other)))
        }
        (Shape::Object(_), other) => Some(format!("cannot restore struct from: {}", go_kind(other))),
        (Shape::List(list), Value::Array(items)) => items.iter().find_map(|item| restore_error(item, list.items)),
        (Shape::List(_), other) => Some(format!("cannot restore slice from {}", go_kind(other))),
        (Shape::Scalar(scalar), value) => scalar_error(scalar, value, schema),
    }
}

fn is_map(object: &Object<'_>) -> bool {
    object.name().is_empty() && matches!(object.rest(), Rest::Values(_) | Rest::Any)
}

fn scalar_error(scalar: Scalar, value: &Value, schema: Schema<'_>) -> Option<String> {
    let go_type = match scalar {
        Scalar::String => "string",
        Scalar::Int32 => "int32",
        Scalar::Int64 => "int64",
        Scalar::Number => "float64",
        Scalar::Boolean => "bool",
        Scalar::Bytes => {
            return match value {
                Value::String(text) => literal::base64_error(text)
                    .map(|at| format!("error decoding from json: illegal base64 data at input byte {at}")),
                other => Some(format!("cannot restore slice from {}", go_kind(other))),
            };
        }
        // These read JSON themselves.
        Scalar::Quantity | Scalar::Time | Scalar::MicroTime | Scalar::IntOrString => {
            return super::check(value, schema).err().map(|error| error.to_string());
        }
    };
    let fits = match (scalar, value) {
        (Scalar::String, Value::String(_)) | (Scalar::Boolean, Value::Bool(_)) | (Scalar::Number, Value::Number(_)) => {
            true
        }
        (Scalar::Int32, Value::Number(number)) => number.as_i64().is_some_and(|whole| i32::try_from(whole).is_ok()),
        (Scalar::Int64, Value::Number(number)) => number.is_i64(),
        _ => false,
    };
    // Go's own rules allow to convert these, JSON's do not.
    let convertible = matches!(value, Value::Number(number) if scalar != Scalar::Boolean
        && (scalar != Scalar::String || number.is_i64()));
    (!fits).then(|| {
        if convertible {
            format!("cannot convert {} to {go_type}", go_kind(value))
        } else {
            format!("unrecognized type: {go_type}")
        }
    })
}

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
        Value::Number(number) if number.is_i64() => "int64",
        Value::Number(_) => "float64",
        other => check::kind_of(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Definitions;
    use serde_json::json;

    #[test]
    fn what_a_strategic_merge_patch_must_not_put_there() {
        let pod = Definitions::builtin().schema_for("", "v1", "Pod").unwrap();
        let container = |c: Value| json!({"spec": {"containers": [c]}});
        for (value, wanted) in [
            (json!({"spec": {"containers": {}}}), Some("cannot restore slice from map")),
            (json!({"spec": "x"}), Some("cannot restore struct from: string")),
            (json!({"metadata": {"labels": []}}), Some("cannot restore map from slice")),
            (json!({"metadata": {"labels": {"a": 1}}}), Some("cannot convert int64 to string")),
            (json!({"metadata": {"labels": {"a": true}}}), Some("unrecognized type: string")),
            (json!({"spec": {"priority": "1"}}), Some("unrecognized type: int32")),
            (json!({"spec": {"priority": 1.5}}), Some("cannot convert float64 to int32")),
            (json!({"spec": {"hostNetwork": 1}}), Some("unrecognized type: bool")),
            (
                container(json!({"livenessProbe": {"httpGet": {"port": true}}})),
                Some("json: cannot unmarshal bool into Go value of type int32"),
            ),
            (container(json!({"name": "a", "tty": true, "ports": [{"containerPort": 80}]})), None),
            (json!({"spec": null, "metadata": {"labels": {"a": null}}}), None),
        ] {
            assert_eq!(restore_error(&value, pod).as_deref(), wanted, "{value}");
        }
        let secret = Definitions::builtin().schema_for("", "v1", "Secret").unwrap();
        assert_eq!(
            restore_error(&json!({"data": {"a": "!"}}), secret).unwrap(),
            "error decoding from json: illegal base64 data at input byte 0"
        );
    }
}
