//! Query strings.

use std::fmt::Write;

/// Parameters of a query string, escaped as they are added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(String);

impl Query {
    /// Adds `name=value`.
    pub fn push(&mut self, name: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.push_str(name);
        self.0.push('=');
        self.0.push_str(&escape(value));
    }

    /// Adds `name=value` where there is a value that is not empty.
    pub fn push_some(&mut self, name: &str, value: Option<&str>) {
        if let Some(v) = value.filter(|v| !v.is_empty()) {
            self.push(name, v);
        }
    }

    /// `path?query`, or `path` where there are no parameters.
    #[must_use]
    pub fn on(&self, path: &str) -> String {
        if self.0.is_empty() { path.to_owned() } else { format!("{path}?{}", self.0) }
    }
}

/// Percent-encodes all but RFC 3986's unreserved characters.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(b)),
            other => {
                let _ = write!(out, "%{other:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::Query;

    #[test]
    fn values_are_escaped_and_empty_ones_left_out() {
        let mut q = Query::default();
        assert_eq!(q.on("/p"), "/p");
        q.push_some("labelSelector", Some("a in (b,c)"));
        q.push_some("continue", Some(""));
        q.push_some("fieldSelector", None);
        q.push("limit", "5");
        assert_eq!(q.on("/p"), "/p?labelSelector=a%20in%20%28b%2Cc%29&limit=5");
    }
}
