//! The bounds of schemas (`minimum`, `maximum`, `multipleOf`) as upstream writes them: they are floating point numbers,
//! but whole ones are written without a fraction, `1` and not `1.0`.

use serde_json::{Number, Value};

/// A number without a fraction that was written with one.
fn whole(number: &Number) -> Option<Number> {
    let float = number.as_f64().filter(|_| number.is_f64())?;
    // Printed, a whole float has no fraction.
    float.to_string().parse::<i64>().ok().map(Number::from)
}

/// Writes the whole bounds of a schema and of those inside it as whole numbers. Values in `default`, `enum` and
/// `example` stay as they were sent.
pub fn shorten_bounds(schema: &mut Value) {
    for (name, value) in schema.as_object_mut().into_iter().flatten() {
        match (name.as_str(), value) {
            ("maximum" | "minimum" | "multipleOf", Value::Number(number)) => {
                if let Some(short) = whole(number) {
                    *number = short;
                }
            }
            ("properties" | "patternProperties" | "definitions" | "dependencies", Value::Object(schemas)) => {
                schemas.values_mut().for_each(shorten_bounds);
            }
            ("allOf" | "anyOf" | "oneOf" | "items", Value::Array(schemas)) => {
                schemas.iter_mut().for_each(shorten_bounds)
            }
            ("not" | "items" | "additionalProperties" | "additionalItems", schema) => shorten_bounds(schema),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whole_bounds_have_no_fraction() {
        let schema = |whole: Value, default: Value| {
            let bounds = json!({"minimum": whole, "maximum": 1.5, "multipleOf": 1e300, "default": default});
            json!({
                "properties": {"minimum": bounds, "default": bounds},
                "items": {"not": bounds, "allOf": [bounds]},
                "additionalProperties": true,
                "dependencies": {"a": ["b"], "c": bounds},
                "default": {"properties": {"a": {"minimum": 2.0}}},
            })
        };
        let mut given = schema(json!(-7.0), json!(3.0));
        shorten_bounds(&mut given);
        assert_eq!(given.to_string(), schema(json!(-7), json!(3.0)).to_string());
    }
}
