//! Why a text is no JSON object, in the words of Go's `encoding/json`, which clients are shown.

/// What may stand at a place of the text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    Object,
    Array,
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
    inside: Vec<Inside>,
}

const END: &str = "unexpected end of JSON input";

/// A character as Go quotes it; bytes beyond ASCII count as the character of that number.
fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => r#"'"'"#.to_owned(),
        b'\\' => r"'\\'".to_owned(),
        b'\n' => r"'\n'".to_owned(),
        b'\r' => r"'\r'".to_owned(),
        b'\t' => r"'\t'".to_owned(),
        0x20..0x7f | 0xa1..=0xac | 0xae.. => format!("'{}'", char::from(byte)),
        0x00..0x20 | 0x7f => match byte {
            7 => r"'\a'".to_owned(),
            8 => r"'\b'".to_owned(),
            11 => r"'\v'".to_owned(),
            12 => r"'\f'".to_owned(),
            _ => format!(r"'\x{byte:02x}'"),
        },
        _ => format!(r"'\u{byte:04x}'"),
    }
}

impl Scanner<'_> {
    /// The next character, if it is not the end; where it may not stand there, `place` says where that is.
    fn fault(&self, place: &str) -> String {
        match self.bytes.get(self.at) {
            Some(byte) => format!("invalid character {} {place}", quoted(*byte)),
            None => END.to_owned(),
        }
    }

    fn space(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn is(&self, byte: u8) -> bool {
        self.bytes.get(self.at) == Some(&byte)
    }

    fn string(&mut self) -> Result<(), String> {
        self.at += 1;
        loop {
            match self.bytes.get(self.at) {
                None => return Err(END.to_owned()),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.at += 1;
                    match self.bytes.get(self.at) {
                        Some(b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"') => self.at += 1,
                        Some(b'u') => {
                            self.at += 1;
                            for _ in 0..4 {
                                if !self.bytes.get(self.at).is_some_and(u8::is_ascii_hexdigit) {
                                    return Err(self.fault("in \\u hexadecimal character escape"));
                                }
                                self.at += 1;
                            }
                        }
                        _ => return Err(self.fault("in string escape code")),
                    }
                }
                Some(0x00..0x20) => return Err(self.fault("in string literal")),
                Some(_) => self.at += 1,
            }
        }
    }

    fn digits(&mut self, place: &str) -> Result<(), String> {
        if !self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            return Err(self.fault(place));
        }
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), String> {
        if self.is(b'-') {
            self.at += 1;
        }
        if self.is(b'0') {
            self.at += 1;
        } else {
            self.digits("in numeric literal")?;
        }
        if self.is(b'.') {
            self.at += 1;
            self.digits("after decimal point in numeric literal")?;
        }
        if self.is(b'e') || self.is(b'E') {
            self.at += 1;
            if self.is(b'+') || self.is(b'-') {
                self.at += 1;
            }
            self.digits("in exponent of numeric literal")?;
        }
        Ok(())
    }

    fn literal(&mut self, word: &str) -> Result<(), String> {
        for (i, byte) in word.bytes().enumerate() {
            if !self.is(byte) {
                let expected = &word[i..=i];
                return Err(self.fault(&format!("in literal {word} (expecting '{expected}')")));
            }
            self.at += 1;
        }
        Ok(())
    }

    /// A value up to the end of the first that is whole: of an object or array its first value.
    fn value(&mut self) -> Result<(), String> {
        loop {
            self.space();
            let begun = match self.bytes.get(self.at) {
                Some(b'{') => (Inside::Object, b'}'),
                Some(b'[') => (Inside::Array, b']'),
                Some(b'"') => return self.string(),
                Some(b'-' | b'0'..=b'9') => return self.number(),
                Some(b't') => return self.literal("true"),
                Some(b'f') => return self.literal("false"),
                Some(b'n') => return self.literal("null"),
                _ => return Err(self.fault("looking for beginning of value")),
            };
            self.at += 1;
            self.space();
            if self.is(begun.1) {
                self.at += 1;
                return Ok(());
            }
            self.inside.push(begun.0);
            if begun.0 == Inside::Object {
                self.key()?;
            }
        }
    }

    fn key(&mut self) -> Result<(), String> {
        self.space();
        if !self.is(b'"') {
            return Err(self.fault("looking for beginning of object key string"));
        }
        self.string()?;
        self.space();
        if !self.is(b':') {
            return Err(self.fault("after object key"));
        }
        self.at += 1;
        Ok(())
    }

    fn whole(&mut self) -> Result<(), String> {
        self.value()?;
        while let Some(inside) = self.inside.last().copied() {
            self.space();
            let (end, place) = match inside {
                Inside::Object => (b'}', "after object key:value pair"),
                Inside::Array => (b']', "after array element"),
            };
            if self.is(end) {
                self.at += 1;
                self.inside.pop();
            } else if self.is(b',') {
                self.at += 1;
                if inside == Inside::Object {
                    self.key()?;
                }
                self.value()?;
            } else {
                return Err(self.fault(place));
            }
        }
        self.space();
        if self.at < self.bytes.len() { Err(self.fault("after top-level value")) } else { Ok(()) }
    }
}

/// Why this is no JSON object that could be taken for a `map[string]interface{}`; null can.
#[must_use]
pub fn of_object(bytes: &[u8]) -> Option<String> {
    let mut scanner = Scanner { bytes, at: 0, inside: Vec::new() };
    if let Err(why) = scanner.whole() {
        return Some(why);
    }
    let first = bytes.iter().find(|b| !b.is_ascii_whitespace())?;
    let found = match first {
        b'{' | b'n' => return None,
        b'[' => "array",
        b'"' => "string",
        b't' | b'f' => "bool",
        _ => "number",
    };
    Some(format!("json: cannot unmarshal {found} into Go value of type map[string]interface {{}}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_the_words_of_go() {
        let of = |text: &str| of_object(text.as_bytes());
        for fine in ["{}", " { \"a\" : [ 1 , -2.5e+3 , {\"b\":[]} ] , \"c\\u00e4\" : null } ", "null", "{\"a\":true}"] {
            assert_eq!(of(fine), None, "{fine}");
        }
        let cases = [
            ("", END),
            ("{\"a\":", END),
            ("hello", "invalid character 'h' looking for beginning of value"),
            ("{a: 1}", "invalid character 'a' looking for beginning of object key string"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\":1 \"b\"}", "invalid character '\"' after object key:value pair"),
            ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
            ("[1 2]", "invalid character '2' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("{} x", "invalid character 'x' after top-level value"),
            ("nope", "invalid character 'o' in literal null (expecting 'u')"),
            ("{\"a\":01}", "invalid character '1' after object key:value pair"),
            ("{\"a\":1.}", "invalid character '}' after decimal point in numeric literal"),
            ("{\"a\":\"\\x\"}", "invalid character 'x' in string escape code"),
            ("{\"a\":\"\n\"}", "invalid character '\\n' in string literal"),
            ("'a'", "invalid character '\\'' looking for beginning of value"),
            ("\u{e4}", "invalid character '\u{c3}' looking for beginning of value"),
            ("[]", "json: cannot unmarshal array into Go value of type map[string]interface {}"),
            ("7", "json: cannot unmarshal number into Go value of type map[string]interface {}"),
            ("\"x\"", "json: cannot unmarshal string into Go value of type map[string]interface {}"),
        ];
        for (text, want) in cases {
            assert_eq!(of(text).as_deref(), Some(want), "{text}");
        }
    }

    #[test]
    fn depth_costs_no_stack() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(of_object(deep.as_bytes()).is_some());
    }
}
