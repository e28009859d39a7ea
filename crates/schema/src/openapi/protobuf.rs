//! The few parts of the protobuf wire format the documents need.

use serde_json::Value;

/// A message being written. Absent and empty values are not written, as in proto3.
#[derive(Debug, Default)]
pub(super) struct Message(Vec<u8>);

impl Message {
    pub(super) fn new() -> Message {
        Message::default()
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn text(&mut self, field: u32, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    pub(super) fn string(&mut self, field: u32, value: Option<&Value>) {
        if let Some(text) = value.and_then(Value::as_str) {
            self.text(field, text);
        }
    }

    pub(super) fn strings(&mut self, field: u32, value: Option<&Value>) {
        for text in value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            self.bytes(field, text.as_bytes());
        }
    }

    pub(super) fn boolean(&mut self, field: u32, value: Option<&Value>) {
        if value.and_then(Value::as_bool) == Some(true) {
            self.varint(u64::from(field) << 3);
            self.varint(1);
        }
    }

    pub(super) fn integer(&mut self, field: u32, value: Option<&Value>) {
        if let Some(number) = value.and_then(Value::as_i64).filter(|number| *number != 0) {
            self.varint(u64::from(field) << 3);
            self.varint(number as u64);
        }
    }

    pub(super) fn double(&mut self, field: u32, value: Option<&Value>) {
        if let Some(number) = value.and_then(Value::as_f64).filter(|number| *number != 0.0) {
            self.varint(u64::from(field) << 3 | 1);
            self.0.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// A message inside, also when it is empty.
    pub(super) fn message(&mut self, field: u32, inner: Message) {
        self.bytes(field, &inner.0);
    }

    /// Map entries: messages with the name in field 1 and the value in field 2.
    pub(super) fn named(&mut self, field: u32, value: Option<&Value>, encode: impl Fn(&Value) -> Message) {
        for (name, value) in value.and_then(Value::as_object).into_iter().flatten() {
            let mut entry = Message::new();
            entry.text(1, name);
            entry.message(2, encode(value));
            self.message(field, entry);
        }
    }

    /// An arbitrary value, as YAML text in field 2 (JSON is YAML).
    pub(super) fn any(value: &Value) -> Message {
        let mut any = Message::new();
        any.text(2, &format!("{value}\n"));
        any
    }

    pub(super) fn optional_any(&mut self, field: u32, value: Option<&Value>) {
        if let Some(value) = value {
            self.message(field, Message::any(value));
        }
    }

    /// The members of an object whose names begin with `x-`.
    pub(super) fn extensions(&mut self, field: u32, object: &Value) {
        for (name, value) in object.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("x-")) {
            let mut entry = Message::new();
            entry.text(1, name);
            entry.message(2, Message::any(value));
            self.message(field, entry);
        }
    }
}

/// The items of a list member.
pub(super) fn items<'v>(object: &'v Value, name: &str) -> impl Iterator<Item = &'v Value> {
    object.get(name).and_then(Value::as_array).into_iter().flatten()
}
