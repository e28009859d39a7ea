//! JSON to protobuf in one pass over the text, without a tree between.

use super::table::{Field, Kind, Message, Shape, message};
use super::text::{parse_duration, parse_time};
use super::wire::{close, open, put_bytes, put_double, put_head, put_number, varint_length};
use super::{MAGIC, ProtobufError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// Which kind a document is of.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct TypeMeta<'a> {
    #[serde(borrow)]
    api_version: Cow<'a, str>,
    #[serde(borrow)]
    kind: Cow<'a, str>,
}

/// A document that names its kind, in its envelope.
///
/// # Errors
/// [`ProtobufError::NotMarshalable`] for kinds without a protobuf form, [`ProtobufError::Json`] for what does not have
/// the fields of its kind.
pub fn encode(json: &[u8]) -> Result<Vec<u8>, ProtobufError> {
    let meta: TypeMeta<'_> = serde_json::from_slice(json).map_err(ProtobufError::json)?;
    // The oldest discovery documents do not say their version.
    let api_version = if meta.api_version.is_empty() { "v1" } else { &meta.api_version };
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let Some(message) = message(group, version, &meta.kind) else {
        return Err(ProtobufError::NotMarshalable(meta.kind.into_owned()));
    };
    let mut content = Vec::with_capacity(json.len());
    append(&mut content, message, json)?;
    let mut out = envelope(api_version, &meta.kind, content.len());
    out.reserve_exact(content.len() + ENVELOPE_END.len());
    out.extend_from_slice(&content);
    out.extend_from_slice(ENVELOPE_END);
    Ok(out)
}

/// The empty content encoding and content type, which every writer puts there.
pub const ENVELOPE_END: &[u8] = &[0x1a, 0, 0x22, 0];

/// What comes before `length` bytes of content; [`ENVELOPE_END`] comes behind them.
#[must_use]
pub fn envelope(api_version: &str, kind: &str, length: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    out.extend_from_slice(MAGIC);
    let start = open(&mut out, 1);
    put_bytes(&mut out, 1, api_version.as_bytes());
    put_bytes(&mut out, 2, kind.as_bytes());
    close(&mut out, start);
    put_head(&mut out, 2, length);
    out
}

/// Appends the fields of an object, without an envelope.
///
/// # Errors
/// [`ProtobufError::Json`] for what does not have the fields of the message.
pub fn append(out: &mut Vec<u8>, message: &'static Message, json: &[u8]) -> Result<(), ProtobufError> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    Fields { out, message }.deserialize(&mut deserializer).map_err(ProtobufError::json)
}

/// Appends an object as an item of a list.
///
/// # Errors
/// As [`append`].
pub fn append_item(out: &mut Vec<u8>, message: &'static Message, json: &[u8]) -> Result<(), ProtobufError> {
    // All lists have their items in the second field.
    let start = open(out, 2);
    append(out, message, json)?;
    close(out, start);
    Ok(())
}

/// One event of a watch as it is framed: length, type, and the object's document in protobuf.
#[must_use]
pub fn watch_frame(event: &str, object: &[u8]) -> Vec<u8> {
    let raw = 1 + varint_length(object.len() as u64) + object.len();
    let mut out = Vec::with_capacity(raw + event.len() + 16);
    out.extend_from_slice(&[0; 4]);
    put_bytes(&mut out, 1, event.as_bytes());
    put_head(&mut out, 2, raw);
    put_bytes(&mut out, 1, object);
    let length = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The fields of a message, without tag and length.
struct Fields<'o> {
    out: &'o mut Vec<u8>,
    message: &'static Message,
}

impl Fields<'_> {
    /// Writes the value of `name`; whether there is such a field.
    fn put<'de, A: MapAccess<'de>>(
        out: &mut Vec<u8>,
        message: &'static Message,
        name: &str,
        map: &mut A,
    ) -> Result<bool, A::Error> {
        if let Some(field) = message.field(name) {
            map.next_value_seed(FieldValue { out, field })?;
            return Ok(true);
        }
        for inline in message.inline() {
            if let Some(inner) = inline.kind.message().filter(|m| m.has(name)) {
                // Each field of an inline message comes in an occurrence of its own: readers merge those.
                let start = open(out, inline.number);
                Self::put(out, inner, name, map)?;
                close(out, start);
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn put_all<'de, A: MapAccess<'de>>(self, map: &mut A) -> Result<(), A::Error> {
        while let Some(Text(name)) = map.next_key()? {
            if !Self::put(self.out, self.message, &name, map)? {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object ({})", self.message.name)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.put_all(&mut map)
    }
}

/// All values of a field.
struct FieldValue<'o> {
    out: &'o mut Vec<u8>,
    field: &'static Field,
}

impl<'de> DeserializeSeed<'de> for FieldValue<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.field.shape {
            Shape::Single => {
                One { out: self.out, kind: self.field.kind, number: self.field.number, name: self.field.name }
                    .deserialize(deserializer)
            }
            Shape::Repeated | Shape::Map => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for FieldValue<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.field.shape == Shape::Map { "an object" } else { "a list" };
        write!(f, "{what} for {}", self.field.name)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Field { kind, number, name, .. } = *self.field;
        if self.field.shape == Shape::Map {
            return Err(A::Error::custom(format_args!("a list for {name}")));
        }
        while list.next_element_seed(One { out: self.out, kind, number, name })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Field { kind, number, name, .. } = *self.field;
        if self.field.shape == Shape::Repeated {
            return Err(A::Error::custom(format_args!("an object for {name}")));
        }
        while let Some(Text(key)) = map.next_key()? {
            let start = open(self.out, number);
            put_bytes(self.out, 1, key.as_bytes());
            map.next_value_seed(One { out: self.out, kind, number: 2, name })?;
            close(self.out, start);
        }
        Ok(())
    }
}

/// One value with its tag.
struct One<'o> {
    out: &'o mut Vec<u8>,
    kind: Kind,
    number: u16,
    name: &'static str,
}

impl One<'_> {
    fn within(self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = open(self.out, self.number);
        write(self.out);
        close(self.out, start);
    }

    fn wrong<E: Error>(&self, what: &str) -> E {
        E::custom(format_args!("{what} for {}", self.name))
    }

    fn put_int<E: Error>(self, value: i64) -> Result<(), E> {
        let number = self.number;
        match self.kind {
            Kind::Int => put_number(self.out, number, value.cast_unsigned()),
            Kind::Double => put_double(self.out, number, value as f64),
            Kind::IntOrString => self.within(|out| {
                put_number(out, 1, 0);
                put_number(out, 2, value.cast_unsigned());
            }),
            Kind::Quantity => self.within(|out| put_bytes(out, 1, value.to_string().as_bytes())),
            _ => return Err(self.wrong("an integer")),
        }
        Ok(())
    }

    fn put_time<E: Error>(self, text: &str, micro: bool) -> Result<(), E> {
        let Some((seconds, nanos)) = parse_time(text) else { return Err(self.wrong("no time")) };
        self.within(|out| {
            put_number(out, 1, seconds.cast_unsigned());
            put_number(out, 2, if micro { (nanos / 1000 * 1000).cast_unsigned() } else { 0 });
        });
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for One<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.kind == Kind::Raw {
            let raw = <&RawValue>::deserialize(deserializer)?.get();
            if raw != "null" {
                self.within(|out| put_bytes(out, 1, raw.as_bytes()));
            }
            return Ok(());
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for One<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value for {}", self.name)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        match self.kind {
            Kind::Bool => put_number(self.out, self.number, value.into()),
            Kind::SchemaOrBool => self.within(|out| put_number(out, 1, value.into())),
            _ => return Err(self.wrong("a boolean")),
        }
        Ok(())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.put_int(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        match (self.kind, i64::try_from(value)) {
            (_, Ok(value)) => self.put_int(value),
            (Kind::Double, Err(_)) => self.visit_f64(value as f64),
            (_, Err(_)) => Err(self.wrong("too large an integer")),
        }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        match self.kind {
            Kind::Double => put_double(self.out, self.number, value),
            Kind::Quantity => self.within(|out| put_bytes(out, 1, value.to_string().as_bytes())),
            _ => return Err(self.wrong("a fraction")),
        }
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        match self.kind {
            Kind::String => put_bytes(self.out, self.number, text.as_bytes()),
            Kind::Bytes => {
                let Ok(bytes) = STANDARD.decode(text) else { return Err(self.wrong("no base64")) };
                put_bytes(self.out, self.number, &bytes);
            }
            Kind::Quantity => self.within(|out| put_bytes(out, 1, text.as_bytes())),
            Kind::IntOrString => self.within(|out| {
                put_number(out, 1, 1);
                put_number(out, 2, 0);
                put_bytes(out, 3, text.as_bytes());
            }),
            Kind::Time => return self.put_time(text, false),
            Kind::MicroTime => return self.put_time(text, true),
            Kind::Duration => {
                let Some(nanos) = parse_duration(text) else { return Err(self.wrong("no duration")) };
                self.within(|out| put_number(out, 1, nanos.cast_unsigned()));
            }
            _ => return Err(self.wrong("a string")),
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let (number, inner) = match self.kind {
            Kind::Strings => (1, Kind::String),
            Kind::SchemaOrStrings => (2, Kind::String),
            Kind::SchemaOrArray => (2, super::table::schema_kind()),
            _ => return Err(self.wrong("a list")),
        };
        let start = open(self.out, self.number);
        while list.next_element_seed(One { out: self.out, kind: inner, number, name: self.name })?.is_some() {}
        close(self.out, start);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let start = open(self.out, self.number);
        let outer = match self.kind {
            Kind::Message(_) => None,
            Kind::SchemaOrArray | Kind::SchemaOrStrings => Some(1),
            Kind::SchemaOrBool => {
                put_number(self.out, 1, 1);
                Some(2)
            }
            _ => return Err(self.wrong("an object")),
        };
        let inner = outer.map(|number| open(self.out, number));
        let kind = if inner.is_some() { super::table::schema_kind() } else { self.kind };
        let Some(message) = kind.message() else { return Err(self.wrong("an object")) };
        Fields { out: self.out, message }.put_all(&mut map)?;
        if let Some(inner) = inner {
            close(self.out, inner);
        }
        close(self.out, start);
        Ok(())
    }
}
