//! Protobuf to the JSON it stands for.
//!
//! The fields of a message may stand in any order and more than once. They are noted on a stack that all messages
//! share, brought into order, and written as text at once. Occurrences of a message add up, and the sum of two messages
//! is what their bytes say one after the other.

use super::table::{Field, Kind, Message, Shape, message, schema_kind};
use super::text;
use super::wire::{Wire, fields, take_varint};
use super::{MAGIC, ProtobufError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::io::Write as _;

/// Deepest nesting of messages, as for JSON bodies.
const DEPTH_MAX: usize = 120;

/// Turns a document in its envelope into JSON with `apiVersion` and `kind`.
///
/// # Errors
/// What is wrong with the document.
pub fn decode(body: &[u8]) -> Result<Vec<u8>, ProtobufError> {
    let Some(rest) = body.strip_prefix(MAGIC) else { return Err(ProtobufError::Prefix) };
    if rest.is_empty() {
        return Err(ProtobufError::Empty);
    }
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in fields(rest) {
        match field? {
            (1, Wire::Bytes(type_meta)) => {
                for field in fields(type_meta) {
                    match field? {
                        (1, Wire::Bytes(b)) => api_version = String::from_utf8_lossy(b).into_owned(),
                        (2, Wire::Bytes(b)) => kind = String::from_utf8_lossy(b).into_owned(),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(b)) => raw = b,
            _ => {}
        }
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let Some(message) = message(group, version, &kind) else {
        return Err(ProtobufError::Unknown { kind, api_version });
    };
    let mut decoder = Decoder { out: Vec::with_capacity(body.len() * 2), stack: Vec::new() };
    decoder.out.push(b'{');
    decoder.name("apiVersion", true);
    decoder.string(api_version.as_bytes());
    decoder.name("kind", false);
    decoder.string(kind.as_bytes());
    decoder.fields(message, raw, &mut false, 0)?;
    decoder.out.push(b'}');
    Ok(decoder.out)
}

struct Decoder<'a> {
    out: Vec<u8>,
    /// Fields noted and not yet written: index in their message, and value.
    stack: Vec<(u16, Wire<'a>)>,
}

impl<'a> Decoder<'a> {
    fn string(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        // Writing into memory does not fail.
        let _ = serde_json::to_writer(&mut self.out, text.as_ref());
    }

    fn name(&mut self, name: &str, first: bool) {
        if !first {
            self.out.push(b',');
        }
        self.string(name.as_bytes());
        self.out.push(b':');
    }

    fn display(&mut self, value: impl std::fmt::Display) {
        // As above.
        let _ = write!(self.out, "{value}");
    }

    /// Writes the fields of a message without braces; `first` is whether none has been written yet.
    fn fields(
        &mut self,
        message: &'static Message,
        bytes: &'a [u8],
        first: &mut bool,
        depth: usize,
    ) -> Result<(), ProtobufError> {
        if depth > DEPTH_MAX {
            return Err(ProtobufError::TooDeep);
        }
        let base = self.stack.len();
        for item in fields(bytes) {
            let (number, wire) = item?;
            // Fields of newer versions are dropped, as every reader does.
            if let Some(index) = message.index(number) {
                self.stack.push((index, wire));
            }
        }
        self.write_noted(message, base, first, depth)
    }

    fn write_noted(
        &mut self,
        message: &'static Message,
        base: usize,
        first: &mut bool,
        depth: usize,
    ) -> Result<(), ProtobufError> {
        let end = self.stack.len();
        if !self.stack[base..].is_sorted_by_key(|(index, _)| *index) {
            self.stack[base..].sort_by_key(|(index, _)| *index);
        }
        let mut at = base;
        while at < end {
            let index = self.stack[at].0;
            let until = at + self.stack[at..end].iter().take_while(|(i, _)| *i == index).count();
            let field = &message.fields[usize::from(index)];
            match field.shape {
                Shape::Single if field.inline => {
                    let inner = field.kind.message().ok_or(ProtobufError::TooDeep)?;
                    let base = self.stack.len();
                    for occurrence in at..until {
                        let bytes = self.bytes_at(occurrence, field)?;
                        for item in fields(bytes) {
                            let (number, wire) = item?;
                            if let Some(index) = inner.index(number) {
                                self.stack.push((index, wire));
                            }
                        }
                    }
                    self.write_noted(inner, base, first, depth + 1)?;
                }
                Shape::Single => self.single(field, at..until, first, depth)?,
                Shape::Repeated => {
                    self.name(field.name, std::mem::take(first));
                    self.out.push(b'[');
                    let mut first_item = true;
                    for occurrence in at..until {
                        self.item(field, self.stack[occurrence].1, &mut first_item, depth)?;
                    }
                    self.out.push(b']');
                }
                Shape::Map => {
                    self.name(field.name, std::mem::take(first));
                    self.out.push(b'{');
                    for occurrence in at..until {
                        let entry = self.bytes_at(occurrence, field)?;
                        self.entry(field, entry, occurrence == at, depth)?;
                    }
                    self.out.push(b'}');
                }
            }
            at = until;
        }
        self.stack.truncate(base);
        Ok(())
    }

    fn bytes_at(&self, at: usize, field: &Field) -> Result<&'a [u8], ProtobufError> {
        match self.stack[at].1 {
            Wire::Bytes(bytes) => Ok(bytes),
            wire => Err(wrong(field, wire)),
        }
    }

    fn single(
        &mut self,
        field: &'static Field,
        occurrences: std::ops::Range<usize>,
        first: &mut bool,
        depth: usize,
    ) -> Result<(), ProtobufError> {
        let last = self.stack[occurrences.end - 1].1;
        if is_absent(field, last) {
            return Ok(());
        }
        if let Some(message) = field.kind.message() {
            self.name(field.name, std::mem::take(first));
            self.out.push(b'{');
            let base = self.stack.len();
            for occurrence in occurrences {
                let bytes = self.bytes_at(occurrence, field)?;
                for item in fields(bytes) {
                    let (number, wire) = item?;
                    if let Some(index) = message.index(number) {
                        self.stack.push((index, wire));
                    }
                }
            }
            if depth >= DEPTH_MAX {
                return Err(ProtobufError::TooDeep);
            }
            self.write_noted(message, base, &mut true, depth + 1)?;
            self.out.push(b'}');
            return Ok(());
        }
        let before = self.out.len();
        self.name(field.name, *first);
        if self.value(field, last, depth)? {
            *first = false;
        } else {
            self.out.truncate(before);
        }
        Ok(())
    }

    fn item(
        &mut self,
        field: &'static Field,
        wire: Wire<'a>,
        first: &mut bool,
        depth: usize,
    ) -> Result<(), ProtobufError> {
        if let (Kind::Int | Kind::Bool, Wire::Bytes(mut packed)) = (field.kind, wire) {
            while !packed.is_empty() {
                let value = take_varint(&mut packed)?;
                self.item(field, Wire::Varint(value), first, depth)?;
            }
            return Ok(());
        }
        if !std::mem::take(first) {
            self.out.push(b',');
        }
        self.value_or_null(field, wire, depth)
    }

    fn entry(
        &mut self,
        field: &'static Field,
        entry: &'a [u8],
        first: bool,
        depth: usize,
    ) -> Result<(), ProtobufError> {
        let (mut key, mut found) = (&[][..], None);
        for item in fields(entry) {
            match item? {
                (1, Wire::Bytes(b)) => key = b,
                (2, wire) => found = Some(wire),
                _ => {}
            }
        }
        if !first {
            self.out.push(b',');
        }
        self.string(key);
        self.out.push(b':');
        self.value_or_null(field, found.unwrap_or(Wire::Bytes(&[])), depth)
    }

    fn value_or_null(&mut self, field: &'static Field, wire: Wire<'a>, depth: usize) -> Result<(), ProtobufError> {
        if !self.value(field, wire, depth)? {
            self.out.extend_from_slice(b"null");
        }
        Ok(())
    }

    /// Writes one value; false where it stands for none.
    fn value(&mut self, field: &'static Field, wire: Wire<'a>, depth: usize) -> Result<bool, ProtobufError> {
        match (field.kind, wire) {
            (Kind::String, Wire::Bytes(b)) => self.string(b),
            (Kind::Bytes, Wire::Bytes(b)) => {
                self.out.push(b'"');
                self.out.extend_from_slice(STANDARD.encode(b).as_bytes());
                self.out.push(b'"');
            }
            (Kind::Bool, Wire::Varint(v)) => self.display(v != 0),
            (Kind::Int, Wire::Varint(v)) => self.display(v.cast_signed()),
            (Kind::Double, Wire::Fixed(v)) => {
                let value = f64::from_bits(v);
                if !value.is_finite() {
                    return Ok(false);
                }
                // As above.
                let _ = serde_json::to_writer(&mut self.out, &value);
            }
            (Kind::String | Kind::Bytes | Kind::Bool | Kind::Int | Kind::Double, wire) => {
                return Err(wrong(field, wire));
            }
            (kind, Wire::Bytes(b)) => return self.special(kind, b, depth),
            (_, wire) => return Err(wrong(field, wire)),
        }
        Ok(true)
    }

    /// Messages whose JSON is no object with their fields, and all others.
    fn special(&mut self, kind: Kind, bytes: &'a [u8], depth: usize) -> Result<bool, ProtobufError> {
        match kind {
            Kind::Quantity => match last_bytes(bytes, 1)? {
                Some(text) if !text.is_empty() => self.string(text),
                _ => self.string(b"0"),
            },
            Kind::IntOrString => match last_number(bytes, 1)? {
                1 => self.string(last_bytes(bytes, 3)?.unwrap_or_default()),
                _ => self.display(last_number(bytes, 2)?.cast_signed() as i32),
            },
            Kind::Time | Kind::MicroTime => {
                let (seconds, nanos) = (last_number(bytes, 1)?.cast_signed(), last_number(bytes, 2)?.cast_signed());
                let micro = kind == Kind::MicroTime;
                let Some(text) = text::time(seconds, nanos, micro) else { return Ok(false) };
                self.string(text.as_bytes());
            }
            Kind::Duration => {
                let text = text::duration(last_number(bytes, 1)?.cast_signed());
                self.string(text.as_bytes());
            }
            Kind::Raw => {
                let raw = last_bytes(bytes, 1)?.unwrap_or_default();
                if raw.is_empty() {
                    return Ok(false);
                }
                if serde_json::from_slice::<serde::de::IgnoredAny>(raw).is_err() {
                    return Err(ProtobufError::Json("raw content is no JSON".into()));
                }
                self.out.extend_from_slice(raw);
            }
            Kind::Strings => self.strings(bytes, 1)?,
            Kind::SchemaOrArray | Kind::SchemaOrBool | Kind::SchemaOrStrings => {
                return self.schema_or(kind, bytes, depth);
            }
            kind => {
                let message = kind.message().ok_or(ProtobufError::TooDeep)?;
                self.out.push(b'{');
                self.fields(message, bytes, &mut true, depth + 1)?;
                self.out.push(b'}');
            }
        }
        Ok(true)
    }

    fn schema_or(&mut self, kind: Kind, bytes: &'a [u8], depth: usize) -> Result<bool, ProtobufError> {
        let schema = last_bytes(bytes, if kind == Kind::SchemaOrBool { 2 } else { 1 })?;
        match (schema, kind) {
            (Some(schema), _) => return self.special(schema_kind(), schema, depth),
            (None, Kind::SchemaOrBool) => self.display(last_number(bytes, 1)? != 0),
            (None, Kind::SchemaOrStrings) => self.strings(bytes, 2)?,
            (None, _) => {
                self.out.push(b'[');
                let mut first = true;
                for item in fields(bytes) {
                    if let (2, Wire::Bytes(schema)) = item? {
                        if !std::mem::take(&mut first) {
                            self.out.push(b',');
                        }
                        self.special(schema_kind(), schema, depth)?;
                    }
                }
                self.out.push(b']');
            }
        }
        Ok(true)
    }

    fn strings(&mut self, bytes: &[u8], number: u64) -> Result<(), ProtobufError> {
        self.out.push(b'[');
        let mut first = true;
        for item in fields(bytes) {
            if let (n, Wire::Bytes(text)) = item?
                && n == number
            {
                if !std::mem::take(&mut first) {
                    self.out.push(b',');
                }
                self.string(text);
            }
        }
        self.out.push(b']');
        Ok(())
    }
}

/// Whether a single value stands for an absent one.
fn is_absent(field: &Field, wire: Wire<'_>) -> bool {
    if field.zero_counts {
        return false;
    }
    match (field.kind, wire) {
        (Kind::String | Kind::Bytes, Wire::Bytes(b)) => b.is_empty(),
        (Kind::Int | Kind::Bool, Wire::Varint(v)) => v == 0,
        (Kind::Double, Wire::Fixed(v)) => v == 0,
        _ => false,
    }
}

fn last_bytes(bytes: &[u8], number: u64) -> Result<Option<&[u8]>, ProtobufError> {
    let mut found = None;
    for item in fields(bytes) {
        if let (n, Wire::Bytes(b)) = item?
            && n == number
        {
            found = Some(b);
        }
    }
    Ok(found)
}

fn last_number(bytes: &[u8], number: u64) -> Result<u64, ProtobufError> {
    let mut found = 0;
    for item in fields(bytes) {
        if let (n, Wire::Varint(v)) = item?
            && n == number
        {
            found = v;
        }
    }
    Ok(found)
}

fn wrong(field: &Field, wire: Wire<'_>) -> ProtobufError {
    let wire = match wire {
        Wire::Varint(_) => 0,
        Wire::Fixed(_) => 1,
        Wire::Bytes(_) => 2,
    };
    ProtobufError::WireType { field: field.name.to_owned(), wire }
}
