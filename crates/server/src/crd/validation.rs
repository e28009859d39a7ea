//! Whether a custom object fits its schema, in the words of kube-openapi's validator.
//!
//! An update is judged with the stored object beside it: what did not change and was wrong before stays allowed
//! (KEP-4008, ratcheting).

use super::format;
use super::schema::{Additional, ListType, Node};
use gantry_api::meta::field::{ErrorList, ErrorType, FieldError, Path};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// What a schema has to say of a value: its complaints, and how much of it did fit.
#[derive(Default)]
struct Verdict {
    errors: Vec<FieldError>,
    matches: usize,
}

impl Verdict {
    fn add(&mut self, other: Verdict) {
        self.errors.extend(other.errors);
        self.matches += other.matches;
    }
}

/// Field errors of a value. Errors are reported below `prefix`, while their texts name the place within the value, as
/// upstream's do.
#[must_use]
pub fn validate(prefix: &str, value: &Value, old: Option<&Value>, schema: &Node) -> ErrorList {
    let errors = Judge { prefix }.value("", value, old, schema).errors;
    ErrorList(errors)
}

/// The value as errors show it.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "\"null\"".to_owned(),
        Value::String(s) => format!("{s:?}"),
        Value::Number(n) => number_text(n.as_f64().unwrap_or(0.0), n.as_i64()),
        other => other.to_string(),
    }
}

/// A number as Go's `%v` writes it.
fn number_text(value: f64, whole: Option<i64>) -> String {
    if let Some(whole) = whole {
        return whole.to_string();
    }
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e21).contains(&magnitude) {
        let text = format!("{value:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |d| ('-', d));
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    value.to_string()
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_i64() || n.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Whether a float is a whole number that JSON can say.
fn is_whole(value: f64) -> bool {
    value.is_finite() && value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x.as_f64() == y.as_f64(),
        _ => a == b,
    }
}

struct Judge<'a> {
    prefix: &'a str,
}

impl Judge<'_> {
    fn place(&self, path: &str) -> String {
        let path = path.trim_start_matches('.');
        match (self.prefix, path) {
            ("", "") => "<nil>".to_owned(),
            (prefix, "") => prefix.to_owned(),
            ("", path) => path.to_owned(),
            (prefix, path) => format!("{prefix}.{path}"),
        }
    }

    fn invalid(&self, out: &mut Verdict, path: &str, value: &Value, detail: &str) {
        let body = format!("Invalid value: {}: {detail}", shown(value));
        out.errors.push(FieldError { r#type: ErrorType::Invalid, field: self.place(path), body });
    }

    fn type_error(&self, out: &mut Verdict, path: &str, wanted: &str, found: &str) {
        let body = format!("Invalid value: {found:?}: {path} in body must be of type {wanted}: {found:?}");
        out.errors.push(FieldError { r#type: ErrorType::TypeInvalid, field: self.place(path), body });
    }

    /// An error about the schema as a whole: upstream has no field for these.
    fn whole(&self, out: &mut Verdict, message: String) {
        let field = if self.prefix.is_empty() { "<nil>" } else { self.prefix };
        let body = format!("Invalid value: \"\": {message}");
        out.errors.push(FieldError { r#type: ErrorType::Invalid, field: field.to_owned(), body });
    }

    fn value(&self, path: &str, value: &Value, old: Option<&Value>, schema: &Node) -> Verdict {
        // What was so before may stay so.
        if old == Some(value) {
            return Verdict { errors: Vec::new(), matches: 1 };
        }
        let mut out = Verdict::default();
        self.kind(&mut out, path, value, schema);
        if !value.is_null() {
            self.logic(&mut out, path, value, schema);
            match value {
                Value::String(s) => self.string(&mut out, path, s, value, schema),
                Value::Number(n) => self.number(&mut out, path, n, value, schema),
                Value::Array(items) => self.list(&mut out, path, items, old, schema),
                _ => {}
            }
        }
        if !schema.limits.enumeration.is_empty() && !schema.limits.enumeration.iter().any(|e| same(e, value)) {
            let supported: Vec<String> = schema
                .limits
                .enumeration
                .iter()
                .map(|e| e.as_str().map_or_else(|| e.to_string(), str::to_owned))
                .collect();
            let supported: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
            let body = format!("Unsupported value: {}: supported values: {}", shown(value), supported.join(", "));
            out.errors.push(FieldError { r#type: ErrorType::NotSupported, field: self.place(path), body });
        }
        if let Value::Object(map) = value {
            self.object(&mut out, path, map, old, schema);
        }
        out.matches += 1;
        out
    }

    fn kind(&self, out: &mut Verdict, path: &str, value: &Value, schema: &Node) {
        let has = |t: &str| schema.types.contains(&t);
        let wanted = schema.types.join(",");
        if value.is_null() {
            if !schema.types.is_empty() && !schema.nullable {
                return self.type_error(out, path, &wanted, "null");
            }
            out.matches += 1;
            return;
        }
        if schema.types.is_empty() {
            return;
        }
        let found = type_of(value);
        let whole = matches!(value, Value::Number(n) if n.as_f64().is_some_and(is_whole)) && has("integer");
        let wider = found == "integer" && has("number");
        if !(has(found) || whole || wider) {
            // A text of some format is not held against the type of a schema that is no number.
            let texts = matches!(value, Value::String(_) | Value::Array(_)) && !schema.format.is_empty();
            if texts && !has("number") && !has("integer") {
                out.matches += 1;
                return;
            }
            return self.type_error(out, path, &wanted, found);
        }
        out.matches += 1;
    }

    fn logic(&self, out: &mut Verdict, path: &str, value: &Value, schema: &Node) {
        let judged =
            |list: &[Node]| -> Vec<Verdict> { list.iter().map(|s| self.value(path, value, None, s)).collect() };
        let best = |failed: Vec<Verdict>| failed.into_iter().reduce(|a, b| if b.matches > a.matches { b } else { a });
        if !schema.limits.any_of.is_empty() {
            let verdicts = judged(&schema.limits.any_of);
            if verdicts.iter().all(|v| !v.errors.is_empty()) {
                self.whole(out, format!("{path:?} must validate at least one schema (anyOf)"));
                out.add(best(verdicts).unwrap_or_default());
            }
        }
        if !schema.limits.one_of.is_empty() {
            let verdicts = judged(&schema.limits.one_of);
            match verdicts.iter().filter(|v| v.errors.is_empty()).count() {
                1 => {}
                0 => {
                    self.whole(
                        out,
                        format!("{path:?} must validate one and only one schema (oneOf). Found none valid"),
                    );
                    out.add(best(verdicts).unwrap_or_default());
                }
                n => {
                    let found = format!("Found {n} valid alternatives");
                    self.whole(out, format!("{path:?} must validate one and only one schema (oneOf). {found}"));
                }
            }
        }
        if !schema.limits.all_of.is_empty() {
            let verdicts = judged(&schema.limits.all_of);
            let fine = verdicts.iter().filter(|v| v.errors.is_empty()).count();
            let all = fine == verdicts.len();
            verdicts.into_iter().for_each(|v| out.add(v));
            if !all {
                let none = if fine == 0 { ". None validated" } else { "" };
                self.whole(out, format!("{path:?} must validate all the schemas (allOf){none}"));
            }
        }
        if let Some(not) = &schema.limits.not
            && self.value(path, value, None, not).errors.is_empty()
        {
            self.whole(out, format!("{path:?} must not validate the schema (not)"));
        }
        out.matches += 1;
    }

    fn string(&self, out: &mut Verdict, path: &str, s: &str, value: &Value, schema: &Node) {
        let length = i64::try_from(s.chars().count()).unwrap_or(i64::MAX);
        if let Some(max) = schema.limits.max_length.filter(|max| length > *max) {
            let body = format!("Too long: may not be more than {max} bytes");
            out.errors.push(FieldError { r#type: ErrorType::TooLong, field: self.place(path), body });
        } else if let Some(min) = schema.limits.min_length.filter(|min| length < *min) {
            self.invalid(out, path, value, &format!("{path} in body should be at least {min} chars long"));
        } else if let Some(pattern) = &schema.limits.pattern {
            match pattern.regex() {
                Ok(regex) if regex.is_match(s) => out.matches += 1,
                Ok(_) => self.invalid(out, path, value, &format!("{path} in body should match '{}'", pattern.text)),
                Err(why) => {
                    let detail =
                        format!("{path} in body should match '{}, but pattern is invalid: {why}'", pattern.text);
                    self.invalid(out, path, value, &detail);
                }
            }
        } else {
            out.matches += 1;
        }
        if !schema.format.is_empty() && !format::fits(schema.format, s) {
            let detail = format!("{path} in body must be of type {}: {s:?}", schema.format);
            let body = format!("Invalid value: {}: {detail}", shown(value));
            out.errors.push(FieldError { r#type: ErrorType::TypeInvalid, field: self.place(path), body });
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "bounds saturate as upstream's conversion does")]
    fn number(&self, out: &mut Verdict, path: &str, n: &serde_json::Number, value: &Value, schema: &Node) {
        let (whole, data) = (n.as_i64(), n.as_f64().unwrap_or(0.0));
        let beyond = match schema.format {
            "int32" => whole.is_some_and(|i| i32::try_from(i).is_err()),
            "float" => data.abs() > f64::from(f32::MAX),
            _ => false,
        };
        if beyond {
            let kind = schema.types.first().copied().unwrap_or_default();
            self.whole(out, format!("Checked value must be of type {kind} with format {} in {path}", schema.format));
        }
        // Bounds of integers are integers.
        let bound_text =
            |bound: f64| if whole.is_some() { (bound as i64).to_string() } else { number_text(bound, None) };
        let order = |bound: f64| match whole {
            Some(i) => i.cmp(&(bound as i64)),
            None => data.total_cmp(&bound),
        };
        if let Some(factor) = schema.limits.multiple_of {
            let fits = match whole {
                Some(i) if factor >= 1.0 => i % (factor as i64) == 0,
                _ => is_whole(if factor < 1.0 { 1.0 / factor * data } else { data / factor }),
            };
            if factor <= 0.0 {
                self.invalid(
                    out,
                    path,
                    &json!(factor),
                    &format!("factor MultipleOf declared for {path} must be positive: {}", number_text(factor, None)),
                );
            } else if !fits {
                let detail = format!("{path} in body should be a multiple of {}", bound_text(factor));
                self.invalid(out, path, value, &detail);
            }
        }
        if let Some(max) = schema.limits.maximum {
            let over = order(max).is_gt() || (schema.limits.exclusive_maximum && order(max).is_eq());
            if over {
                let than = if schema.limits.exclusive_maximum { "less than" } else { "less than or equal to" };
                self.invalid(out, path, value, &format!("{path} in body should be {than} {}", bound_text(max)));
            }
        }
        if let Some(min) = schema.limits.minimum {
            let under = order(min).is_lt() || (schema.limits.exclusive_minimum && order(min).is_eq());
            if under {
                let than = if schema.limits.exclusive_minimum { "greater than" } else { "greater than or equal to" };
                self.invalid(out, path, value, &format!("{path} in body should be {than} {}", bound_text(min)));
            }
        }
        out.matches += 1;
    }

    fn list(&self, out: &mut Verdict, path: &str, items: &[Value], old: Option<&Value>, schema: &Node) {
        if let Some(below) = &schema.items {
            for (i, item) in items.iter().enumerate() {
                let before = old.and_then(|o| schema.same_element(item, o));
                out.add(self.value(&format!("{path}[{i}]"), item, before, below));
            }
        }
        let size = i64::try_from(items.len()).unwrap_or(i64::MAX);
        if let Some(min) = schema.limits.min_items.filter(|min| size < *min) {
            let detail = format!("{path} in body should have at least {min} items");
            self.invalid(out, path, &size.into(), &detail);
        }
        self.too_many(out, path, size, schema.limits.max_items);
        if schema.limits.unique_items && items.iter().enumerate().any(|(i, a)| items[..i].contains(a)) {
            self.invalid(out, path, &"".into(), &format!("{path} in body shouldn't contain duplicates"));
        }
        out.matches += 1;
    }

    fn too_many(&self, out: &mut Verdict, path: &str, size: i64, max: Option<i64>) {
        if let Some(max) = max.filter(|max| size > *max) {
            let body = format!("Too many: {size}: must have at most {max} item{}", if max == 1 { "" } else { "s" });
            out.errors.push(FieldError { r#type: ErrorType::TooMany, field: self.place(path), body });
        }
    }

    fn object(&self, out: &mut Verdict, path: &str, map: &Map<String, Value>, old: Option<&Value>, schema: &Node) {
        let size = i64::try_from(map.len()).unwrap_or(i64::MAX);
        if let Some(min) = schema.limits.min_properties.filter(|min| size < *min) {
            let detail = format!("{path} in body should have at least {min} properties");
            self.invalid(out, path, &size.into(), &detail);
        }
        self.too_many(out, path, size, schema.limits.max_properties);
        let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let before = |name: &str| old.filter(|_| !schema.atomic_map).and_then(|o| o.get(name));
        for (name, value) in map.iter().filter(|(name, _)| !schema.properties.contains_key(*name)) {
            match &schema.additional {
                Additional::None => {
                    let detail = format!("{path}.{name} in body is a forbidden property");
                    self.invalid(out, path, &"".into(), &detail);
                }
                Additional::Values(values) => {
                    out.add(self.value(&format!("{path}.{name}"), value, before(name), values));
                }
                Additional::Unsaid | Additional::Any => {}
            }
        }
        for (name, property) in &schema.properties {
            if let Some(value) = map.get(name) {
                out.add(self.value(&below(name), value, before(name), property));
            }
        }
        for name in schema.required.iter().filter(|name| !map.contains_key(*name)) {
            let field = self.place(&below(name));
            out.errors.push(FieldError { r#type: ErrorType::Required, field, body: "Required value".into() });
        }
        out.matches += 1;
    }
}

/// Field errors of lists whose elements must be unique.
#[must_use]
pub fn validate_lists(value: &Value, schema: &Node) -> ErrorList {
    let mut out = ErrorList::default();
    lists(&Path::new(""), value, schema, &mut out);
    out
}

fn lists(path: &Path, value: &Value, schema: &Node, out: &mut ErrorList) {
    match value {
        Value::Object(map) => {
            for (name, child) in map {
                match (schema.properties.get(name), &schema.additional) {
                    (Some(below), _) => lists(&path.child(name), child, below, out),
                    (None, Additional::Values(below)) => lists(&path.key(name), child, below, out),
                    _ => {}
                }
            }
        }
        Value::Array(items) => {
            match &schema.list_type {
                ListType::Atomic => {}
                ListType::Set => {
                    for i in repeated(items.iter()) {
                        out.duplicate(&path.index(i), items[i].clone());
                    }
                }
                ListType::Map(keys) => {
                    if let Some(i) = items.iter().position(|v| !v.is_object() && !v.is_null()) {
                        let detail = "must be an object for an array of list-type map";
                        out.invalid(&path.index(i), items[i].clone(), detail);
                    } else {
                        let identities: Vec<Value> = items.iter().map(|item| identity(item, keys)).collect();
                        for i in repeated(identities.iter()) {
                            out.duplicate(&path.index(i), identities[i].clone());
                        }
                    }
                }
            }
            if let Some(below) = &schema.items {
                for (i, item) in items.iter().enumerate() {
                    lists(&path.index(i), item, below, out);
                }
            }
        }
        _ => {}
    }
}

fn identity(item: &Value, keys: &[String]) -> Value {
    keys.iter().filter_map(|k| Some((k.clone(), item.get(k)?.clone()))).collect::<Map<_, _>>().into()
}

/// The index of the second occurrence of everything that occurs more than once.
fn repeated<'v>(values: impl Iterator<Item = &'v Value>) -> Vec<usize> {
    let mut seen: HashMap<String, u32> = HashMap::new();
    let mut out = Vec::new();
    for (i, value) in values.enumerate() {
        let times = seen.entry(value.to_string()).or_default();
        *times += 1;
        if *times == 2 {
            out.push(i);
        }
    }
    out
}

/// Field errors of the resources embedded in a value: apiVersion, kind and metadata.
#[must_use]
pub fn validate_embedded(path: &Path, value: &Value, schema: &Node) -> ErrorList {
    let mut out = ErrorList::default();
    embedded(path, value, schema, &mut out);
    out
}

fn embedded(path: &Path, value: &Value, schema: &Node, out: &mut ErrorList) {
    match value {
        Value::Object(map) => {
            if schema.embedded {
                type_and_metadata(path, map, out);
            }
            for (name, child) in map {
                match (schema.properties.get(name), &schema.additional) {
                    (Some(below), _) => embedded(&path.child(name), child, below, out),
                    (None, Additional::Values(below)) => embedded(&path.key(name), child, below, out),
                    _ => {}
                }
            }
        }
        Value::Array(items) => {
            let Some(below) = &schema.items else { return };
            for (i, item) in items.iter().enumerate() {
                embedded(&path.index(i), item, below, out);
            }
        }
        _ => {}
    }
}

fn type_and_metadata(path: &Path, map: &Map<String, Value>, out: &mut ErrorList) {
    for name in ["apiVersion", "kind"] {
        let at = path.child(name);
        match map.get(name) {
            None => out.required(&at, ""),
            Some(Value::String(s)) if s.is_empty() => out.invalid(&at, "", "must not be empty"),
            Some(Value::String(s)) if name == "kind" => {
                let wrong = gantry_api::meta::names::dns1035_label(&s.to_lowercase(), false);
                if !wrong.is_empty() {
                    let detail = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
                    out.invalid(&at, s.as_str(), &detail);
                }
            }
            Some(Value::String(s)) if s.matches('/').count() > 1 => {
                out.invalid(&at, s.as_str(), &format!("unexpected GroupVersion string: {s}"));
            }
            Some(Value::String(_)) => {}
            Some(other) => out.invalid(&at, other.clone(), "must be a string"),
        }
    }
    let Some(metadata) = map.get("metadata") else { return };
    let at = path.child("metadata");
    match serde_json::from_value::<gantry_api::ObjectMeta>(metadata.clone()) {
        Ok(mut meta) => {
            if meta.name.as_deref().is_none_or(str::is_empty) {
                meta.name = Some("fakename".into());
            }
            let namespaced = meta.namespace.as_deref().is_some_and(|n| !n.is_empty());
            let found = gantry_api::meta::object::validate_create(&meta, namespaced, &|name, prefix| {
                gantry_api::meta::names::path_segment(name, prefix)
            });
            let below = found.0.into_iter().map(|e| FieldError {
                field: e.field.strip_prefix("metadata").map_or_else(|| e.field.clone(), |rest| format!("{at}{rest}")),
                ..e
            });
            out.0.extend(below);
        }
        Err(e) => out.invalid(&at, metadata.clone(), &e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(schema: &Value, value: &Value, old: Option<&Value>) -> Vec<String> {
        validate("", value, old, &Node::read(schema)).0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_restriction_has_its_text() {
        let schema = json!({"type": "object", "required": ["spec"], "properties": {"spec": {"type": "object",
            "required": ["must"], "properties": {
                "i": {"type": "integer", "minimum": 1, "maximum": 10},
                "f": {"type": "number", "minimum": 0.5, "exclusiveMinimum": true, "multipleOf": 0.25},
                "s": {"type": "string", "minLength": 2, "maxLength": 4, "pattern": "^a"},
                "e": {"type": "string", "enum": ["one", "two"]},
                "l": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "string"}},
                "m": {"type": "object", "maxProperties": 1, "additionalProperties": {"type": "integer"}},
                "p": {"x-kubernetes-int-or-string": true},
                "u": {"type": "string", "format": "uuid"},
                "i32": {"type": "integer", "format": "int32"},
                "b": {"type": "boolean", "nullable": true}}}}});
        let of = |spec: Value| {
            let mut spec = spec;
            spec["must"] = json!(1);
            found(&schema, &json!({"spec": spec}), None)
        };
        assert_eq!(found(&schema, &json!({}), None), ["spec: Required value"]);
        assert_eq!(found(&schema, &json!({"spec": {}}), None), ["spec.must: Required value"]);
        for (spec, error) in [
            (
                json!({"i": "string"}),
                "spec.i: Invalid value: \"string\": spec.i in body must be of type integer: \"string\"",
            ),
            (
                json!({"i": 1.5}),
                "spec.i: Invalid value: \"number\": spec.i in body must be of type integer: \"number\"",
            ),
            (json!({"i": 0}), "spec.i: Invalid value: 0: spec.i in body should be greater than or equal to 1"),
            (json!({"i": 11}), "spec.i: Invalid value: 11: spec.i in body should be less than or equal to 10"),
            (json!({"f": 0.5}), "spec.f: Invalid value: 0.5: spec.f in body should be greater than 0.5"),
            (json!({"f": 0.6}), "spec.f: Invalid value: 0.6: spec.f in body should be a multiple of 0.25"),
            (json!({"s": "a"}), "spec.s: Invalid value: \"a\": spec.s in body should be at least 2 chars long"),
            (json!({"s": "aaaaa"}), "spec.s: Too long: may not be more than 4 bytes"),
            (json!({"s": "bbb"}), "spec.s: Invalid value: \"bbb\": spec.s in body should match '^a'"),
            (json!({"e": "three"}), "spec.e: Unsupported value: \"three\": supported values: \"one\", \"two\""),
            (json!({"l": []}), "spec.l: Invalid value: 0: spec.l in body should have at least 1 items"),
            (json!({"l": ["a", "b", "c"]}), "spec.l: Too many: 3: must have at most 2 items"),
            (
                json!({"l": [1]}),
                "spec.l[0]: Invalid value: \"integer\": spec.l[0] in body must be of type string: \"integer\"",
            ),
            (
                json!({"m": {"a": "x"}}),
                "spec.m.a: Invalid value: \"string\": spec.m.a in body must be of type integer: \"string\"",
            ),
            (json!({"m": {"a": 1, "b": 2}}), "spec.m: Too many: 2: must have at most 1 item"),
            (
                json!({"p": true}),
                "spec.p: Invalid value: \"boolean\": spec.p in body must be of type integer,string: \"boolean\"",
            ),
            (json!({"u": "x"}), "spec.u: Invalid value: \"x\": spec.u in body must be of type uuid: \"x\""),
            (json!({"i": null}), "spec.i: Invalid value: \"null\": spec.i in body must be of type integer: \"null\""),
            (
                json!({"i32": 3_000_000_000_i64}),
                "<nil>: Invalid value: \"\": Checked value must be of type integer with format int32 in spec.i32",
            ),
        ] {
            assert_eq!(of(spec.clone()), [error], "{spec}");
        }
        assert!(of(json!({"i": 1.0, "f": 1, "s": "aa", "e": "one", "l": ["x"], "p": "80%", "b": null})).is_empty());
        assert!(of(json!({"p": 80})).is_empty());
    }

    #[test]
    fn logic_says_how_it_failed() {
        let schema = json!({"type": "object", "properties": {"x": {"type": "integer",
            "anyOf": [{"minimum": 5}, {"multipleOf": 2}], "not": {"enum": [8]}}}});
        assert_eq!(
            found(&schema, &json!({"x": 3}), None),
            [
                "<nil>: Invalid value: \"\": \"x\" must validate at least one schema (anyOf)",
                "x: Invalid value: 3: x in body should be greater than or equal to 5",
            ]
        );
        assert_eq!(
            found(&schema, &json!({"x": 8}), None),
            ["<nil>: Invalid value: \"\": \"x\" must not validate the schema (not)"]
        );
        let one = json!({"type": "object", "properties": {"a": {}, "b": {}},
            "oneOf": [{"required": ["a"]}, {"required": ["b"]}]});
        assert_eq!(
            found(&one, &json!({"a": 1, "b": 1}), None),
            [
                "<nil>: Invalid value: \"\": \"\" must validate one and only one schema (oneOf). Found 2 valid alternatives"
            ]
        );
    }

    #[test]
    fn what_did_not_change_may_stay_wrong() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "string", "minLength": 3},
            "b": {"type": "string"}, "l": {"type": "array", "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "properties": {
            "k": {"type": "string"}, "v": {"type": "integer", "minimum": 5}}}}}});
        let old = json!({"a": "x", "b": "1", "l": [{"k": "one", "v": 1}, {"k": "two", "v": 2}]});
        let moved = json!({"a": "x", "b": "2", "l": [{"k": "two", "v": 2}, {"k": "one", "v": 1}]});
        assert!(found(&schema, &moved, Some(&old)).is_empty());
        let worse = json!({"a": "y", "b": "2", "l": [{"k": "two", "v": 3}]});
        assert_eq!(
            found(&schema, &worse, Some(&old)),
            [
                "a: Invalid value: \"y\": a in body should be at least 3 chars long",
                "l[0].v: Invalid value: 3: l[0].v in body should be greater than or equal to 5",
            ]
        );
    }

    #[test]
    fn sets_and_maps_have_each_element_once() {
        let schema = Node::read(&json!({"type": "object", "properties": {
            "s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "m": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}}}}}}));
        let errors = validate_lists(&json!({"s": ["a", "b", "a", "a"], "m": [{"k": "1"}, {"k": "1"}, {}]}), &schema);
        let texts: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["m[1]: Duplicate value: {\"k\":\"1\"}", "s[2]: Duplicate value: \"a\""]);
    }

    #[test]
    fn embedded_resources_say_what_they_are() {
        let schema = Node::read(&json!({"type": "object", "properties": {"o": {"type": "object",
            "x-kubernetes-embedded-resource": true}}}));
        let errors =
            validate_embedded(&Path::new(""), &json!({"o": {"kind": "A B", "metadata": {"name": "x"}}}), &schema);
        assert_eq!(errors.0.len(), 2, "{errors:?}");
        assert_eq!(errors.0[0].to_string(), "o.apiVersion: Required value");
    }
}
