//! The protobuf encoding of Kubernetes' built-in kinds: JSON to protobuf and back, by a table of the messages
//! (`facts/protobuf.tsv`) that the build makes into statics. Neither way builds a tree.
//!
//! A document stands in an envelope: four bytes `k8s\0`, then a message with apiVersion, kind and the object's message.
//! The object's message has no apiVersion and kind of its own.
//!
//! ```
//! use gantry_schema::protobuf;
//!
//! let json = br#"{"apiVersion":"v1","kind":"ConfigMap","data":{"x":"y"},"metadata":{"name":"a"}}"#;
//! let bytes = protobuf::encode(json).unwrap();
//! assert!(bytes.starts_with(b"k8s\0"));
//! assert_eq!(protobuf::decode(&bytes).unwrap(), json);
//! ```

mod decode;
mod encode;
mod table;
#[cfg(test)]
mod tests;
mod text;
mod wire;

pub use decode::decode;
pub use encode::{ENVELOPE_END, append, append_item, encode, envelope, watch_frame};
pub use table::{Message, message, speaks};

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// What every document begins with.
const MAGIC: &[u8] = b"k8s\0";

/// Why something cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// It does not begin as documents do.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Prefix,
    /// There is nothing behind the beginning.
    #[error("empty body")]
    Empty,
    /// It ends inside a field.
    #[error("unexpected EOF")]
    Truncated,
    /// A number is longer than 64 bits.
    #[error("proto: integer overflow")]
    Overflow,
    /// A field has another wire type than its declaration.
    #[error("proto: wrong wireType = {wire} for field {field}")]
    WireType {
        /// The field.
        field: String,
        /// The wire type found.
        wire: u64,
    },
    /// The kind has no protobuf encoding that is known here.
    #[error(
        "no kind {kind:?} is registered for version {api_version:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\""
    )]
    Unknown {
        /// The kind.
        kind: String,
        /// Its version.
        api_version: String,
    },
    /// Nested too deeply.
    #[error("exceeded max depth")]
    TooDeep,
    /// JSON that is none, or does not have the fields of its kind.
    #[error("{0}")]
    Json(String),
    /// The kind to be written has no protobuf form.
    #[error(
        "object {0} does not implement the protobuf marshalling interface and cannot be encoded to a protobuf message"
    )]
    NotMarshalable(String),
}

impl ProtobufError {
    // By value, as `map_err` hands it over.
    #[allow(clippy::needless_pass_by_value)]
    fn json(e: serde_json::Error) -> Self {
        Self::Json(e.to_string())
    }
}
