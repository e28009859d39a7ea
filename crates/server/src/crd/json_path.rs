//! Simple JSON paths, as printer columns and selectable fields use them (`k8s.io/client-go/util/jsonpath`):
//! fields, indices, slices, wildcards, descent and filters.

use serde_json::Value;

/// A parsed path.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonPath(Vec<Step>);

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Fields(Vec<String>),
    Index(i64),
    Slice(Option<i64>, Option<i64>, i64),
    Wildcard,
    Descend,
    Filter(Filter),
}

#[derive(Debug, Clone, PartialEq)]
struct Filter {
    left: Operand,
    rest: Option<(Compare, Operand)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Compare {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Path(JsonPath),
    Literal(Value),
}

impl JsonPath {
    /// Reads a path; None where it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<JsonPath> {
        let text = text.trim();
        let text = text.strip_prefix(['$', '@']).unwrap_or(text);
        let mut steps = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix("..") {
                steps.push(Step::Descend);
                rest = if after.starts_with('[') { after } else { field(after, &mut steps)? };
            } else if let Some(after) = rest.strip_prefix('.') {
                rest = if after.starts_with('[') || after.is_empty() { after } else { field(after, &mut steps)? };
            } else if let Some(after) = rest.strip_prefix('[') {
                let end = closing(after)?;
                steps.push(bracket(after[..end].trim())?);
                rest = &after[end + 1..];
            } else {
                rest = field(rest, &mut steps)?;
            }
        }
        Some(JsonPath(steps))
    }

    /// What the path leads to, in order.
    #[must_use]
    pub fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        let mut found = vec![value];
        for step in &self.0 {
            found = found.into_iter().flat_map(|v| step.apply(v)).collect();
        }
        found
    }
}

/// A name up to the next delimiter; a backslash takes the next character as it is.
fn field<'t>(text: &'t str, steps: &mut Vec<Step>) -> Option<&'t str> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    let mut end = text.len();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => name.push(chars.next()?.1),
            '.' | '[' => {
                end = i;
                break;
            }
            c if c.is_whitespace() || matches!(c, ']' | '}' | '|') => return None,
            c => name.push(c),
        }
    }
    match name.as_str() {
        "" => return None,
        "*" => steps.push(Step::Wildcard),
        _ => steps.push(Step::Field(name)),
    }
    Some(&text[end..])
}

/// The place of the bracket that closes the one before `text`.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    let mut escaped = false;
    for (i, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(i),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn unquoted(text: &str) -> Option<String> {
    let text = text.trim();
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let inner = text[1..].strip_suffix(quote)?;
    Some(inner.replace("\\'", "'").replace("\\\"", "\"").replace("\\\\", "\\"))
}

fn bracket(inner: &str) -> Option<Step> {
    if inner == "*" {
        return Some(Step::Wildcard);
    }
    if let Some(filter) = inner.strip_prefix("?(").and_then(|f| f.strip_suffix(')')) {
        return Some(Step::Filter(read_filter(filter)?));
    }
    if inner.starts_with(['\'', '"']) {
        let mut names = Vec::new();
        for part in inner.split(',') {
            names.push(unquoted(part)?);
        }
        return Some(if names.len() == 1 { Step::Field(names.remove(0)) } else { Step::Fields(names) });
    }
    if inner.contains(':') {
        let parts: Vec<&str> = inner.split(':').map(str::trim).collect();
        let part = |i: usize| -> Option<Option<i64>> {
            match parts.get(i).copied().unwrap_or_default() {
                "" => Some(None),
                text => Some(Some(text.parse().ok()?)),
            }
        };
        let step = part(2)?.unwrap_or(1);
        return (parts.len() <= 3 && step > 0).then_some(Step::Slice(part(0)?, part(1)?, step));
    }
    inner.parse().ok().map(Step::Index)
}

fn read_filter(text: &str) -> Option<Filter> {
    let operators = [
        ("==", Compare::Equal),
        ("!=", Compare::Unequal),
        ("<=", Compare::LessOrEqual),
        (">=", Compare::GreaterOrEqual),
        ("<", Compare::Less),
        (">", Compare::Greater),
    ];
    let mut quote = None;
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, _) => {
                let found = operators.iter().find(|(o, _)| text[i..].starts_with(o));
                if let Some((operator, compare)) = found {
                    let right = operand(&text[i + operator.len()..])?;
                    return Some(Filter { left: operand(&text[..i])?, rest: Some((*compare, right)) });
                }
            }
        }
    }
    Some(Filter { left: operand(text)?, rest: None })
}

fn operand(text: &str) -> Option<Operand> {
    let text = text.trim();
    if text.starts_with('@') || text.starts_with('$') {
        return JsonPath::parse(text).map(Operand::Path);
    }
    match unquoted(text) {
        Some(string) => Some(Operand::Literal(string.into())),
        None => serde_json::from_str(text).ok().map(Operand::Literal),
    }
}

impl Filter {
    fn holds(&self, value: &Value) -> bool {
        let of = |operand: &Operand| -> Option<Value> {
            match operand {
                Operand::Literal(literal) => Some(literal.clone()),
                Operand::Path(path) => path.find(value).first().map(|v| (*v).clone()),
            }
        };
        let Some(left) = of(&self.left) else { return false };
        let Some((compare, right)) = &self.rest else { return true };
        let Some(right) = of(right) else { return false };
        let order = match (&left, &right) {
            (Value::Number(a), Value::Number(b)) => a.as_f64().zip(b.as_f64()).and_then(|(a, b)| a.partial_cmp(&b)),
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            (a, b) => (a == b).then_some(std::cmp::Ordering::Equal),
        };
        match compare {
            Compare::Equal => order.is_some_and(std::cmp::Ordering::is_eq),
            Compare::Unequal => !order.is_some_and(std::cmp::Ordering::is_eq),
            Compare::Less => order.is_some_and(std::cmp::Ordering::is_lt),
            Compare::LessOrEqual => order.is_some_and(std::cmp::Ordering::is_le),
            Compare::Greater => order.is_some_and(std::cmp::Ordering::is_gt),
            Compare::GreaterOrEqual => order.is_some_and(std::cmp::Ordering::is_ge),
        }
    }
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => Vec::new(),
    }
}

impl Step {
    fn apply<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        match self {
            Step::Field(name) => value.get(name).into_iter().collect(),
            Step::Fields(names) => names.iter().filter_map(|n| value.get(n)).collect(),
            Step::Wildcard => children(value),
            Step::Descend => {
                let mut out = vec![value];
                for child in children(value) {
                    out.extend(self.apply(child));
                }
                out
            }
            Step::Index(index) => {
                let Some(items) = value.as_array() else { return Vec::new() };
                let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
                let at = if *index < 0 { index + length } else { *index };
                usize::try_from(at).ok().and_then(|i| items.get(i)).into_iter().collect()
            }
            Step::Slice(from, to, step) => {
                let Some(items) = value.as_array() else { return Vec::new() };
                let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
                let at = |i: i64| usize::try_from(if i < 0 { i + length } else { i }).unwrap_or(0).min(items.len());
                let (from, to) = (at(from.unwrap_or(0)), at(to.unwrap_or(length)));
                let step = usize::try_from(*step).unwrap_or(1).max(1);
                items.get(from..to).unwrap_or_default().iter().step_by(step).collect()
            }
            Step::Filter(filter) => value.as_array().into_iter().flatten().filter(|item| filter.holds(item)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_lead_where_kubectl_goes() {
        let value = json!({"metadata": {"annotations": {"a.b/c": "x"}}, "spec": {"n": 3, "list": [1, 2, 3, 4]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]}});
        for (path, expected) in [
            (".spec.n", json!([3])),
            (".spec.list[0]", json!([1])),
            (".spec.list[-1]", json!([4])),
            (".spec.list[1:3]", json!([2, 3])),
            (".spec.list[*]", json!([1, 2, 3, 4])),
            (".spec.none", json!([])),
            (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
            (".status.conditions[?(@.type=='Other')].status", json!(["False"])),
            (".status.conditions[?(@.missing)].status", json!([])),
            (r".metadata.annotations.a\.b/c", json!(["x"])),
            (".metadata.annotations['a.b/c']", json!(["x"])),
            (
                "..status",
                json!([{"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]},
                "True", "False"]),
            ),
        ] {
            let found: Vec<Value> = JsonPath::parse(path).unwrap().find(&value).into_iter().cloned().collect();
            assert_eq!(Value::Array(found), expected, "{path}");
        }
        for bad in [".a[", ".a[x]", ".a b"] {
            assert_eq!(JsonPath::parse(bad), None, "{bad}");
        }
    }
}
