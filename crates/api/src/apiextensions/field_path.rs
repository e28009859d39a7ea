//! Paths into objects of a schema, as rules and selectable fields name them: `.spec.size`, `.metadata['a.b']`.

use super::additional_schema;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{JSONSchemaProps, JSONSchemaPropsOrBool};

/// Splits at `.`, `[` and `]`, which are tokens themselves; quoted text is one token.
fn tokens(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let quoted = rest.starts_with('\'').then(|| {
            let bytes = rest.as_bytes();
            (1..bytes.len()).find(|i| bytes[*i] == b'\'' && bytes[*i - 1] != b'\\').map_or(rest.len(), |i| i + 1)
        });
        let end = quoted.unwrap_or_else(|| match rest.find(['.', '[', ']']) {
            Some(0) => 1,
            Some(i) => i,
            None => rest.len(),
        });
        out.push(&rest[..end]);
        rest = &rest[end..];
    }
    out
}

fn unescape(quoted: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('a') => out.push('\x07'),
            Some('b') => out.push('\x08'),
            Some('f') => out.push('\x0c'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('v') => out.push('\x0b'),
            Some(c @ ('\'' | '\\')) => out.push(c),
            Some(c) => return Err(format!("invalid string literal: invalid escape char \\{c}")),
            None => out.push('\\'),
        }
    }
    Ok(out)
}

/// Follows a path through a schema: the names on the way and the schema found, if it is a schema and not just allowed.
///
/// # Errors
/// Upstream's sentence for a path that is malformed or leads nowhere.
pub(super) fn follow<'a>(
    path: &str,
    root: &'a JSONSchemaProps,
    arrays: bool,
) -> Result<(Vec<String>, Option<&'a JSONSchemaProps>), String> {
    let nowhere = || "does not refer to a valid field".to_owned();
    let mut names = Vec::new();
    let mut at = Some(root);
    let list = tokens(path);
    let mut rest = list.iter().copied();
    let end = || "unexpected end of JSON path".to_owned();
    while let Some(token) = rest.next() {
        let name = match token {
            "[" if !arrays => return Err("array notation is not allowed".to_owned()),
            "[" => {
                let token = rest.next().ok_or_else(end)?;
                let inner = token.strip_prefix('\'').and_then(|t| t.strip_suffix('\''));
                let inner = inner.ok_or_else(|| format!("expected single quoted string but got {token}"))?;
                unescape(inner)?
            }
            "." => rest.next().ok_or_else(end)?.to_owned(),
            other => return Err(format!("expected [ or . but got: {other}")),
        };
        let schema = at.ok_or_else(nowhere)?;
        at = match (&schema.properties, &schema.additional_properties) {
            (Some(p), _) if !p.is_empty() => Some(p.get(&name).ok_or_else(nowhere)?),
            (_, Some(JSONSchemaPropsOrBool::Schema(_) | JSONSchemaPropsOrBool::Bool(_))) => additional_schema(schema),
            _ => return Err(nowhere()),
        };
        names.push(name);
        if token == "[" {
            let close = rest.next().ok_or_else(end)?;
            if close != "]" {
                return Err(format!("expected ] but got {close}"));
            }
        }
    }
    Ok((names, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths() {
        let schema: JSONSchemaProps = serde_json::from_value(json!({"properties": {"spec": {"properties":
            {"a.b": {"type": "string"}, "size": {"type": "integer"}}}, "labels": {"additionalProperties": {"type":
            "string"}}}}))
        .unwrap();
        let check = |path: &str, arrays: bool| follow(path, &schema, arrays).map(|(names, _)| names.join("/"));
        assert_eq!(check(".spec.size", false), Ok("spec/size".to_owned()));
        assert_eq!(check(".spec['a.b']", true), Ok("spec/a.b".to_owned()));
        assert_eq!(check(".labels.x", false), Ok("labels/x".to_owned()));
        for (path, why) in [
            (".spec['a.b']", "array notation is not allowed"),
            (".spec.", "unexpected end of JSON path"),
            ("spec", "expected [ or . but got: spec"),
            (".spec.none", "does not refer to a valid field"),
            (".spec.size.more", "does not refer to a valid field"),
        ] {
            assert_eq!(check(path, false), Err(why.to_owned()), "{path}");
        }
        assert_eq!(check(".spec[x]", true), Err("expected single quoted string but got x".to_owned()));
    }
}
