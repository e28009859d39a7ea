//! String and bytes literals to what they mean.

/// The text of a string literal, quotes and a raw prefix included.
///
/// # Errors
/// What is wrong with an escape sequence.
pub(crate) fn string(literal: &str) -> Result<String, String> {
    let (body, raw) = body(literal);
    if raw {
        return Ok(body);
    }
    let mut out = String::new();
    each(&body, false, |unit| match unit {
        Unit::Char(c) => out.push(c),
        Unit::Byte(b) => out.push(char::from(b)),
    })?;
    Ok(out)
}

/// The octets of a bytes literal without its `b`.
///
/// # Errors
/// What is wrong with an escape sequence.
pub(crate) fn bytes(literal: &str) -> Result<Vec<u8>, String> {
    let (body, raw) = body(literal);
    if raw {
        return Ok(body.into_bytes());
    }
    let mut out = Vec::new();
    each(&body, true, |unit| match unit {
        Unit::Char(c) => out.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
        Unit::Byte(b) => out.push(b),
    })?;
    Ok(out)
}

enum Unit {
    Char(char),
    Byte(u8),
}

/// What is between the quotes, and whether escapes have no meaning in it.
fn body(literal: &str) -> (String, bool) {
    let text = literal.replace("\r\n", "\n").replace('\r', "\n");
    let (text, raw) = match text.strip_prefix(['r', 'R']) {
        Some(rest) => (rest, true),
        None => (text.as_str(), false),
    };
    let quotes = if text.len() >= 6 && (text.starts_with("'''") || text.starts_with("\"\"\"")) { 3 } else { 1 };
    (text.get(quotes..text.len() - quotes).unwrap_or_default().to_owned(), raw)
}

fn each(body: &str, is_bytes: bool, mut emit: impl FnMut(Unit)) -> Result<(), String> {
    let mut chars = body.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            emit(Unit::Char(c));
            continue;
        }
        let simple = match chars.next() {
            Some('a') => '\x07',
            Some('b') => '\x08',
            Some('f') => '\x0c',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('v') => '\x0b',
            Some(c @ ('\\' | '\'' | '"' | '`' | '?')) => c,
            Some('x' | 'X') => {
                emit(code(digits(&mut chars, 2, 16)?, is_bytes)?);
                continue;
            }
            Some(wide @ ('u' | 'U')) => {
                if is_bytes {
                    return Err("unable to unescape string".into());
                }
                emit(code(digits(&mut chars, if wide == 'u' { 4 } else { 8 }, 16)?, false)?);
                continue;
            }
            Some(first @ '0'..='3') => {
                let rest =
                    digits(&mut chars, 2, 8).map_err(|_| "unable to unescape octal sequence in string".to_owned())?;
                emit(code(first.to_digit(8).unwrap_or(0) * 64 + rest, is_bytes)?);
                continue;
            }
            None => return Err("unable to unescape string, found '\\' as last character".into()),
            Some(_) => return Err("unable to unescape string".into()),
        };
        emit(Unit::Char(simple));
    }
    Ok(())
}

fn digits(chars: &mut std::str::Chars<'_>, count: usize, radix: u32) -> Result<u32, String> {
    let mut value = 0u32;
    for _ in 0..count {
        let digit = chars.next().and_then(|c| c.to_digit(radix)).ok_or("unable to unescape string")?;
        value = value.wrapping_mul(radix).wrapping_add(digit);
    }
    Ok(value)
}

fn code(value: u32, is_bytes: bool) -> Result<Unit, String> {
    if is_bytes {
        return u8::try_from(value).map(Unit::Byte).map_err(|_| "unable to unescape string".to_owned());
    }
    char::from_u32(value).map(Unit::Char).ok_or_else(|| "invalid unicode code point".to_owned())
}
