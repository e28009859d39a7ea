//! As much of the text format of protocol buffers as conformance vectors need.

/// A message: its fields in order, and the text it was read from.
#[derive(Clone, Debug, Default)]
pub struct Message {
    fields: Vec<(String, Field)>,
    source: String,
}

/// The value of a field.
#[derive(Clone, Debug)]
pub enum Field {
    /// A number or an identifier.
    Scalar(String),
    /// The octets of a string.
    Bytes(Vec<u8>),
    /// A message.
    Message(Message),
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Message {
    /// Reads a file.
    pub fn parse(text: &str) -> Result<Message, String> {
        let mut reader = Reader { text: text.as_bytes(), at: 0 };
        let message = reader.fields()?;
        if reader.at < text.len() { Err(format!("unexpected text at {}", reader.at)) } else { Ok(message) }
    }

    /// The text of the message.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// All fields, in order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Field)> {
        self.fields.iter().map(|(name, field)| (name.as_str(), field))
    }

    /// Whether there is such a field.
    pub fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|(field, _)| field == name)
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Field> {
        self.fields.iter().filter(move |(field, _)| field == name).map(|(_, value)| value)
    }

    /// The messages of a repeated field.
    pub fn messages(&self, name: &str) -> Vec<Message> {
        let message = |field: &Field| match field {
            Field::Message(message) => Some(message.clone()),
            _ => None,
        };
        self.all(name).filter_map(message).collect()
    }

    /// The message of a field.
    pub fn message(&self, name: &str) -> Option<Message> {
        self.messages(name).into_iter().next()
    }

    /// The number or identifier of a field.
    pub fn scalar(&self, name: &str) -> Option<String> {
        self.all(name).find_map(|field| match field {
            Field::Scalar(text) => Some(text.clone()),
            _ => None,
        })
    }

    /// Whether a field is true.
    pub fn bool(&self, name: &str) -> bool {
        self.scalar(name).as_deref() == Some("true")
    }

    /// The octets of a field.
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        self.all(name).find_map(|field| match field {
            Field::Bytes(bytes) => Some(bytes.clone()),
            _ => None,
        })
    }

    /// The text of a field.
    pub fn string(&self, name: &str) -> Option<String> {
        self.bytes(name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Reader<'_> {
    fn peek(&mut self) -> Option<u8> {
        loop {
            match self.text.get(self.at) {
                Some(b' ' | b'\n' | b'\r' | b'\t' | b',' | b';') => self.at += 1,
                Some(b'#') => {
                    while self.text.get(self.at).is_some_and(|b| *b != b'\n') {
                        self.at += 1;
                    }
                }
                other => return other.copied(),
            }
        }
    }

    fn fields(&mut self) -> Result<Message, String> {
        let start = self.at;
        let mut message = Message::default();
        while let Some(next) = self.peek() {
            if next == b'}' || next == b'>' {
                break;
            }
            let name = self.word()?;
            if self.peek() == Some(b':') {
                self.at += 1;
            }
            if self.peek() == Some(b'[') {
                self.at += 1;
                while self.peek().is_some_and(|b| b != b']') {
                    let value = self.value()?;
                    message.fields.push((name.clone(), value));
                }
                self.at += 1;
            } else {
                let value = self.value()?;
                message.fields.push((name, value));
            }
        }
        message.source = String::from_utf8_lossy(&self.text[start..self.at]).into_owned();
        Ok(message)
    }

    /// A field's name, or an extension or type URL in brackets.
    fn word(&mut self) -> Result<String, String> {
        self.peek();
        let start = self.at;
        if self.text.get(self.at) == Some(&b'[') {
            while self.text.get(self.at).is_some_and(|b| *b != b']') {
                self.at += 1;
            }
            self.at += 1;
        } else {
            let part = |b: &u8| b.is_ascii_alphanumeric() || b"_-+.".contains(b);
            while self.text.get(self.at).is_some_and(part) {
                self.at += 1;
            }
        }
        if self.at == start {
            return Err(format!("expected a word at {start}"));
        }
        Ok(String::from_utf8_lossy(&self.text[start..self.at]).into_owned())
    }

    fn value(&mut self) -> Result<Field, String> {
        match self.peek() {
            Some(b'{' | b'<') => {
                self.at += 1;
                let message = self.fields()?;
                self.at += 1;
                Ok(Field::Message(message))
            }
            Some(b'"' | b'\'') => {
                let mut bytes = Vec::new();
                // Adjacent strings are one.
                while let Some(quote @ (b'"' | b'\'')) = self.peek() {
                    self.at += 1;
                    self.string(quote, &mut bytes)?;
                }
                Ok(Field::Bytes(bytes))
            }
            Some(_) => self.word().map(Field::Scalar),
            None => Err("unexpected end".into()),
        }
    }

    fn string(&mut self, quote: u8, into: &mut Vec<u8>) -> Result<(), String> {
        loop {
            let byte = *self.text.get(self.at).ok_or("unfinished string")?;
            self.at += 1;
            if byte == quote {
                return Ok(());
            }
            if byte != b'\\' {
                into.push(byte);
                continue;
            }
            let letter = *self.text.get(self.at).ok_or("unfinished escape")?;
            self.at += 1;
            match letter {
                b'n' => into.push(b'\n'),
                b'r' => into.push(b'\r'),
                b't' => into.push(b'\t'),
                b'a' => into.push(7),
                b'b' => into.push(8),
                b'f' => into.push(12),
                b'v' => into.push(11),
                b'x' | b'X' => {
                    let code = self.digits(2, 16);
                    into.push(u8::try_from(code).unwrap_or(0));
                }
                b'u' | b'U' => {
                    let code = self.digits(if letter == b'u' { 4 } else { 8 }, 16);
                    let c = char::from_u32(code).ok_or("no such character")?;
                    into.extend(c.to_string().as_bytes());
                }
                b'0'..=b'7' => {
                    self.at -= 1;
                    let code = self.digits(3, 8);
                    into.push(u8::try_from(code).unwrap_or(0));
                }
                other => into.push(other),
            }
        }
    }

    fn digits(&mut self, most: usize, radix: u32) -> u32 {
        let mut value = 0;
        for _ in 0..most {
            match self.text.get(self.at).and_then(|b| char::from(*b).to_digit(radix)) {
                Some(digit) => value = value * radix + digit,
                None => break,
            }
            self.at += 1;
        }
        value
    }
}
