//! The JSON reader. It is our own because the checks need the path and the order of appearance, and clients know the
//! upstream texts for what is not JSON. Invalid UTF-8 and lone surrogates become U+FFFD, as upstream.

use std::borrow::Cow;

use serde_json::{Map, Number, Value};

use super::check::{Checker, Expected, Found};
use super::{DEPTH_MAX, DecodeError};
use crate::schema::Schema;

/// Longest key a flow mapping of YAML may have without saying so.
const YAML_KEY_MAX: usize = 1_000;

pub(super) fn parse<'a>(
    body: &[u8],
    schema: Option<Schema<'a>>,
    checker: &mut Checker<'a>,
) -> Result<Value, DecodeError> {
    Reader::of(body).document(schema, checker)
}

/// Reads YAML that is JSON, several times as fast as the reader of YAML does. Nothing where that might see something else in
/// it: it tells of other mistakes in other words, and of some numbers and escapes it thinks differently.
pub(super) fn parse_as_yaml<'a>(body: &[u8], schema: Option<Schema<'a>>, checker: &mut Checker<'a>) -> Option<Value> {
    if !body.starts_with(b"{") || std::str::from_utf8(body).is_err() {
        return None;
    }
    let mut reader = Reader::of(body);
    let value = reader.document(schema, checker).ok()?;
    (!reader.peculiar).then_some(value)
}

struct Reader<'b> {
    body: &'b [u8],
    at: usize,
    depth: usize,
    /// Whether there was anything that YAML may read differently.
    peculiar: bool,
}

impl<'b> Reader<'b> {
    fn of(body: &'b [u8]) -> Reader<'b> {
        Reader { body, at: 0, depth: 0, peculiar: false }
    }

    fn document<'a>(&mut self, schema: Option<Schema<'a>>, checker: &mut Checker<'a>) -> Result<Value, DecodeError> {
        self.space();
        let value = self.value(schema.into(), checker)?;
        self.space();
        match self.body.get(self.at) {
            None => Ok(value),
            Some(_) => Err(self.unexpected("after top-level value")),
        }
    }

    fn peek(&self) -> Option<u8> {
        self.body.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// The error for the byte read next.
    fn unexpected(&self, context: &str) -> DecodeError {
        DecodeError::Syntax(match self.peek() {
            None => "unexpected end of JSON input".to_owned(),
            Some(byte) => format!("invalid character {} {context}", quoted(byte)),
        })
    }

    fn value<'a>(&mut self, expected: Expected<'a>, checker: &mut Checker<'a>) -> Result<Value, DecodeError> {
        match self.peek() {
            Some(b'{') => self.object(expected, checker),
            Some(b'[') => self.array(expected, checker),
            Some(b'"') => {
                let text = self.string()?;
                checker.found(&Found::String(&text), expected);
                Ok(Value::String(text.into_owned()))
            }
            Some(b'-' | b'0'..=b'9') => self.number(expected, checker),
            Some(b't') => {
                self.word("true")?;
                checker.found(&Found::Boolean, expected);
                Ok(Value::Bool(true))
            }
            Some(b'f') => {
                self.word("false")?;
                checker.found(&Found::Boolean, expected);
                Ok(Value::Bool(false))
            }
            Some(b'n') => {
                self.word("null")?;
                checker.found(&Found::Null, expected);
                Ok(Value::Null)
            }
            _ => Err(self.unexpected("looking for beginning of value")),
        }
    }

    fn descend(&mut self) -> Result<(), DecodeError> {
        self.at += 1;
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(DecodeError::Syntax("exceeded max depth".to_owned()));
        }
        self.space();
        Ok(())
    }

    fn object<'a>(&mut self, expected: Expected<'a>, checker: &mut Checker<'a>) -> Result<Value, DecodeError> {
        let inside = checker.found(&Found::Object, expected);
        self.descend()?;
        let mut map = Map::new();
        if self.peek() == Some(b'}') {
            self.at += 1;
            self.depth -= 1;
            return Ok(Value::Object(map));
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.unexpected("looking for beginning of object key string"));
            }
            let name = self.string()?.into_owned();
            self.space();
            if self.peek() != Some(b':') {
                return Err(self.unexpected("after object key"));
            }
            self.at += 1;
            self.space();
            let duplicate = map.contains_key(&name);
            // YAML counts keys that stand there twice wherever they stand, merges by one name, and has no long ones.
            self.peculiar |= duplicate || name == "<<" || name.len() > YAML_KEY_MAX;
            let expected = checker.enter(&name, inside, duplicate);
            let value = self.value(expected, checker)?;
            checker.leave();
            map.insert(name, value);
            self.space();
            match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    self.space();
                }
                Some(b'}') => {
                    self.at += 1;
                    self.depth -= 1;
                    return Ok(Value::Object(map));
                }
                _ => return Err(self.unexpected("after object key:value pair")),
            }
        }
    }

    fn array<'a>(&mut self, expected: Expected<'a>, checker: &mut Checker<'a>) -> Result<Value, DecodeError> {
        let inside = checker.found(&Found::Array, expected);
        self.descend()?;
        let mut items = Vec::new();
        if self.peek() == Some(b']') {
            self.at += 1;
            self.depth -= 1;
            return Ok(Value::Array(items));
        }
        loop {
            let expected = checker.enter_item(items.len(), inside);
            items.push(self.value(expected, checker)?);
            checker.leave();
            self.space();
            match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    self.space();
                }
                Some(b']') => {
                    self.at += 1;
                    self.depth -= 1;
                    return Ok(Value::Array(items));
                }
                _ => return Err(self.unexpected("after array element")),
            }
        }
    }

    fn word(&mut self, word: &'static str) -> Result<(), DecodeError> {
        for (index, wanted) in word.bytes().enumerate() {
            if self.peek() != Some(wanted) {
                let wanted = char::from(wanted);
                return Err(self.unexpected(&match index {
                    0 => "looking for beginning of value".to_owned(),
                    _ => format!("in literal {word} (expecting '{wanted}')"),
                }));
            }
            self.at += 1;
        }
        Ok(())
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at - start
    }

    fn number<'a>(&mut self, expected: Expected<'a>, checker: &mut Checker<'a>) -> Result<Value, DecodeError> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => {
                self.digits();
            }
            _ => return Err(self.unexpected("in numeric literal")),
        }
        let mut integer = true;
        if self.peek() == Some(b'.') {
            integer = false;
            self.at += 1;
            if self.digits() == 0 {
                return Err(self.unexpected("after decimal point in numeric literal"));
            }
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            integer = false;
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if self.digits() == 0 {
                return Err(self.unexpected("in exponent of numeric literal"));
            }
        }
        // Only ASCII was consumed.
        let text = String::from_utf8_lossy(&self.body[start..self.at]);
        let value = if integer && let Ok(number) = text.parse::<i64>() {
            Value::from(number)
        } else {
            self.peculiar = true;
            match text.parse::<f64>().ok().and_then(float) {
                Some(value) => value,
                None => {
                    let text = format!("json: cannot unmarshal number {text} into Go value of type float64");
                    return Err(DecodeError::Type(text));
                }
            }
        };
        checker.found(&Found::Number(text), expected);
        Ok(value)
    }

    fn string(&mut self) -> Result<Cow<'b, str>, DecodeError> {
        self.at += 1;
        let start = self.at;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => {
                    let text = String::from_utf8_lossy(&self.body[start..self.at]);
                    self.at += 1;
                    return Ok(text);
                }
                b'\\' => break,
                0..0x20 => return Err(self.unexpected("in string literal")),
                _ => self.at += 1,
            }
        }
        let mut bytes = self.body[start..self.at].to_vec();
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => {
                    self.at += 1;
                    let text = match String::from_utf8(bytes) {
                        Ok(text) => text,
                        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
                    };
                    return Ok(Cow::Owned(text));
                }
                b'\\' => {
                    self.at += 1;
                    self.escape(&mut bytes)?;
                }
                0..0x20 => return Err(self.unexpected("in string literal")),
                _ => {
                    bytes.push(byte);
                    self.at += 1;
                }
            }
        }
        Err(self.unexpected("in string literal"))
    }

    fn escape(&mut self, bytes: &mut Vec<u8>) -> Result<(), DecodeError> {
        self.peculiar |= self.peek() == Some(b'/');
        let plain = match self.peek() {
            Some(byte @ (b'"' | b'\\' | b'/')) => byte,
            Some(b'b') => 0x08,
            Some(b'f') => 0x0c,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'u') => {
                self.at += 1;
                let unit = self.hex4()?;
                self.peculiar |= (0xd800..0xe000).contains(&unit);
                let mut decoded = char::from_u32(unit);
                if (0xd800..0xdc00).contains(&unit) && self.body[self.at..].starts_with(b"\\u") {
                    let before = self.at;
                    self.at += 2;
                    let low = self.hex4()?;
                    if (0xdc00..0xe000).contains(&low) {
                        decoded = char::from_u32(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00));
                    } else {
                        self.at = before;
                    }
                }
                let decoded = decoded.unwrap_or(char::REPLACEMENT_CHARACTER);
                bytes.extend_from_slice(decoded.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(self.unexpected("in string escape code")),
        };
        bytes.push(plain);
        self.at += 1;
        Ok(())
    }

    fn hex4(&mut self) -> Result<u32, DecodeError> {
        let mut unit = 0;
        for _ in 0..4 {
            let Some(digit) = self.peek().and_then(|byte| char::from(byte).to_digit(16)) else {
                return Err(self.unexpected("in \\u hexadecimal character escape"));
            };
            unit = unit * 16 + digit;
            self.at += 1;
        }
        Ok(unit)
    }
}

/// A float as it goes out on the wire: whole ones without a point. Nothing for infinities.
pub(super) fn float(number: f64) -> Option<Value> {
    /// Below this every whole float is exact as an integer.
    const EXACT_MAX: f64 = 1e15;
    if number.fract() == 0.0 && number.abs() < EXACT_MAX {
        return Some(Value::from(number as i64));
    }
    Number::from_f64(number).map(Value::Number)
}

fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b'\\' => r"'\\'".to_owned(),
        b'\n' => r"'\n'".to_owned(),
        b'\r' => r"'\r'".to_owned(),
        b'\t' => r"'\t'".to_owned(),
        0..0x20 | 0x7f => format!("'\\x{byte:02x}'"),
        0x80..0xa0 => format!("'\\u{byte:04x}'"),
        _ => format!("'{}'", char::from(byte)),
    }
}
