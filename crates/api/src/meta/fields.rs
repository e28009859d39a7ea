//! Field selectors: `spec.nodeName=n1,status.phase!=Failed`.

use std::fmt;

/// One comparison of a field with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// Field name, e.g. `spec.nodeName`.
    pub field: String,
    /// Value compared with.
    pub value: String,
    /// `true` for `=` and `==`, `false` for `!=`.
    pub equal: bool,
}

/// A conjunction of field comparisons. The default selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(pub Vec<Term>);

impl FieldSelector {
    /// Parses the value of the `fieldSelector` query parameter.
    ///
    /// # Errors
    /// The sentence upstream answers for a malformed selector.
    pub fn parse(selector: &str) -> Result<Self, String> {
        let mut parts = split_terms(selector);
        parts.sort();
        let mut terms = Vec::new();
        for part in parts.into_iter().filter(|p| !p.is_empty()) {
            let (field, value, equal) = split_term(&part)
                .ok_or_else(|| format!("invalid selector: '{selector}'; can't understand '{part}'"))?;
            terms.push(Term { field: field.to_owned(), value: unescape(value)?, equal });
        }
        Ok(Self(terms))
    }

    /// Whether everything is selected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the fields, given as (name, value) pairs, satisfy every term. An absent field has the empty value.
    #[must_use]
    pub fn matches<K: AsRef<str>, V: AsRef<str>>(&self, fields: &[(K, V)]) -> bool {
        self.0.iter().all(|t| {
            let actual = fields.iter().find(|(k, _)| k.as_ref() == t.field).map_or("", |(_, v)| v.as_ref());
            (actual == t.value) == t.equal
        })
    }

    /// The value the selector requires `field` to have, where it requires one exactly.
    #[must_use]
    pub fn requires_exact_match(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }
}

/// The sentence for a field that cannot be selected on.
#[must_use]
pub fn unsupported_field(field: &str) -> String {
    format!("field label not supported: {field}")
}

/// Splits at commas that no backslash escapes.
fn split_terms(selector: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in selector.chars() {
        if c == ',' && !escaped {
            parts.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts
}

/// Splits at the first operator that no backslash escapes.
fn split_term(term: &str) -> Option<(&str, &str, bool)> {
    let mut escaped = false;
    for (i, c) in term.char_indices() {
        if escaped {
            escaped = false;
            continue;
        }
        if c == '\\' {
            escaped = true;
            continue;
        }
        let rest = &term[i..];
        for (op, equal) in [("!=", false), ("==", true), ("=", true)] {
            if let Some(value) = rest.strip_prefix(op) {
                return Some((&term[..i], value, equal));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(e @ ('\\' | ',' | '=')) => out.push(e),
                Some(e) => return Err(format!("invalid field selector: invalid escape sequence: \\{e}")),
                None => return Err("invalid field selector: invalid escape sequence: \\".to_owned()),
            },
            ',' | '=' => {
                return Err(format!("invalid field selector: unescaped character in value: {c}"));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=")
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, t) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{}{}{}", t.field, if t.equal { "=" } else { "!=" }, escape(&t.value))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_matches() {
        let fields = [("spec.nodeName", "n1"), ("status.phase", "Running"), ("x", "a,b=c")];
        let cases = [
            ("", true),
            ("spec.nodeName=n1", true),
            ("spec.nodeName==n1,status.phase!=Failed", true),
            ("spec.nodeName!=n1", false),
            ("spec.nodeName=", false),
            ("absent=", true),
            ("x=a\\,b\\=c", true),
        ];
        for (text, want) in cases {
            let s = FieldSelector::parse(text).unwrap();
            assert_eq!(s.matches(&fields), want, "{text}");
            assert_eq!(FieldSelector::parse(&s.to_string()).unwrap(), s, "{text}");
        }
    }

    #[test]
    fn refuses_nonsense() {
        assert_eq!(FieldSelector::parse("a=1,b").unwrap_err(), "invalid selector: 'a=1,b'; can't understand 'b'");
        assert!(FieldSelector::parse("a=b\\c").is_err());
        assert!(FieldSelector::parse("a=b=c").is_err());
    }
}
