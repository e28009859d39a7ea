//! How calls end.

use http::{HeaderMap, HeaderValue};

/// Why a call failed, as grpc-go numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u32);

/// Go's names of the codes, by number.
const NAMES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

impl Code {
    /// No failure.
    pub const OK: Self = Self(0);
    /// The other side gave no better reason.
    pub const UNKNOWN: Self = Self(2);
    /// It took too long.
    pub const DEADLINE_EXCEEDED: Self = Self(4);
    /// A message is longer than what is accepted.
    pub const RESOURCE_EXHAUSTED: Self = Self(8);
    /// There is no such method.
    pub const UNIMPLEMENTED: Self = Self(12);
    /// What was answered breaks the protocol.
    pub const INTERNAL: Self = Self(13);
    /// Nobody answers.
    pub const UNAVAILABLE: Self = Self(14);
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "Code({})", self.0),
        }
    }
}

/// A call that failed. Shown as Go's clients show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The sort of failure.
    pub code: Code,
    /// What the other side says about it.
    pub message: String,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rpc error: code = {} desc = {}", self.code, self.message)
    }
}

impl std::error::Error for Status {}

impl Status {
    /// A failure.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// What a server says of a method (`/package.Service/Method`) that it does not have, where `services` are those it
    /// has.
    #[must_use]
    pub fn unknown_method(path: &str, services: &[&str]) -> Self {
        let message = match path.trim_start_matches('/').rsplit_once('/') {
            None => format!("malformed method name: {path:?}"),
            Some((service, method)) if services.contains(&service) => {
                format!("unknown method {method} for service {service}")
            }
            Some((service, _)) => format!("unknown service {service}"),
        };
        Self::new(Code::UNIMPLEMENTED, message)
    }

    /// What the trailers (or, where there is no body, the headers) of an answer say; None where they say nothing.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        let code = text("grpc-status")?.parse().map_or(Code::UNKNOWN, Code);
        Some(Self { code, message: percent_decoded(text("grpc-message").unwrap_or_default()) })
    }

    /// The trailers that say it.
    pub(crate) fn trailers(code: Code, message: &str) -> HeaderMap {
        let mut out = HeaderMap::new();
        out.insert("grpc-status", HeaderValue::from(code.0));
        if let Some(value) = HeaderValue::from_str(&percent_encoded(message)).ok().filter(|_| !message.is_empty()) {
            out.insert("grpc-message", value);
        }
        out
    }
}

fn percent_encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// What is not encoded as it should be stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let encoded = tail.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        if let Some(byte) = encoded.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            out.push(byte);
            rest = &tail[2..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
