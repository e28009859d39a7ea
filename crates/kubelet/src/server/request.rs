//! Query parameters.

/// Decoded query parameters in order.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'+' => out.push(b' '),
            b'%' => {
                let hex = text.get(i + 1..i + 3).and_then(|h| u8::from_str_radix(h, 16).ok());
                match hex {
                    Some(byte) => {
                        out.push(byte);
                        i += 2;
                    }
                    None => out.push(b'%'),
                }
            }
            other => out.push(other),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|p| !p.is_empty());
        Query(
            pairs
                .map(|p| {
                    let (name, value) = p.split_once('=').unwrap_or((p, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    /// The first value that is not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.all(name).find(|v| !v.is_empty())
    }

    /// All values.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// `1` and `true` (and the parameter without a value) are yes.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.all(name).any(|v| matches!(v, "1" | "true" | "t" | "T" | "TRUE" | "True" | ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let q = Query::parse("command=sh&command=-c&command=echo+a%20b%26&tty=1&stdin=false&x=&bad=%zz&");
        assert_eq!(q.all("command").collect::<Vec<_>>(), ["sh", "-c", "echo a b&"]);
        assert!(q.flag("tty") && !q.flag("stdin") && !q.flag("none"));
        assert_eq!((q.get("x"), q.get("bad")), (None, Some("%zz")));
    }
}
