//! Regular expressions in RE2's syntax, as Go reads them, run by the `regex` crate.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use regex::{Regex, RegexBuilder};

/// The most memory, in bytes, that one compiled expression may take.
const SIZE_LIMIT: usize = 10 << 20;
/// Compiled expressions that are kept; most policies use a handful again and again.
const KEPT: usize = 256;
/// The highest number of repetitions that RE2 accepts.
const MAX_REPEAT: u32 = 1000;

static COMPILED: LazyLock<Mutex<HashMap<String, Arc<Regex>>>> = LazyLock::new(Mutex::default);

/// The compiled expression. Compiled ones are large: the last used are kept, and shared.
///
/// # Errors
/// `error parsing regexp: ...` as Go words it.
pub fn compile(pattern: &str) -> Result<Arc<Regex>, String> {
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = compiled.get(pattern) {
        return Ok(found.clone());
    }
    let error = |message: String| format!("error parsing regexp: {message}");
    let translated = translate(pattern).map_err(error)?;
    let built = RegexBuilder::new(&translated)
        .size_limit(SIZE_LIMIT)
        .build()
        .map_err(|_| error(format!("invalid or unsupported Perl syntax: `{pattern}`")))?;
    if compiled.len() >= KEPT {
        compiled.clear();
    }
    let built = Arc::new(built);
    compiled.insert(pattern.to_owned(), built.clone());
    Ok(built)
}

/// Writes RE2 syntax so that the crate reads it as RE2 does: classes are ASCII, and what only the crate gives a meaning
/// to is escaped.
fn translate(pattern: &str) -> Result<String, String> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut out = String::new();
    let mut i = 0;
    let mut depth = 0u32;
    // Whether something that can be repeated came before.
    let mut repeatable = false;
    while i < chars.len() {
        match chars[i] {
            '\\' => {
                i = escape(&chars, i, &mut out)?;
                repeatable = true;
            }
            '[' => {
                i = class(&chars, i, &mut out)?;
                repeatable = true;
            }
            '(' => {
                depth += 1;
                i = group(&chars, i, &mut out)?;
                repeatable = false;
                if out.ends_with(')') {
                    depth -= 1;
                }
            }
            ')' => {
                if depth == 0 {
                    return Err(format!("unexpected ): `{pattern}`"));
                }
                depth -= 1;
                out.push(')');
                i += 1;
                repeatable = true;
            }
            c @ ('*' | '+' | '?') => {
                if !repeatable {
                    return Err(format!("missing argument to repetition operator: `{c}`"));
                }
                i = repetition(&chars, i, i + 1, &mut out)?;
                // Further operators are consumed there or wrong.
            }
            '{' => match counted(&chars, i) {
                Some((end, low, high)) => {
                    let text: String = chars[i..end].iter().collect();
                    if low > MAX_REPEAT || high.is_some_and(|high| high > MAX_REPEAT || high < low) {
                        return Err(format!("invalid repeat count: `{text}`"));
                    }
                    if !repeatable {
                        return Err(format!("missing argument to repetition operator: `{text}`"));
                    }
                    i = repetition(&chars, i, end, &mut out)?;
                }
                None => {
                    out.push_str("\\{");
                    i += 1;
                    repeatable = true;
                }
            },
            '|' => {
                out.push('|');
                i += 1;
                repeatable = false;
            }
            c => {
                out.push(c);
                i += 1;
                repeatable = true;
            }
        }
    }
    if depth > 0 {
        return Err(format!("missing closing ): `{pattern}`"));
    }
    Ok(out)
}

/// Copies a repetition operator with its `?`; another operator behind it is an error.
fn repetition(chars: &[char], start: usize, end: usize, out: &mut String) -> Result<usize, String> {
    let mut end = end;
    if chars.get(end) == Some(&'?') {
        end += 1;
    }
    let next = match chars.get(end) {
        Some('*' | '+' | '?') => Some(end + 1),
        Some('{') => counted(chars, end).map(|(next, ..)| next),
        _ => None,
    };
    if let Some(next) = next {
        let text: String = chars[start..next].iter().collect();
        return Err(format!("invalid nested repetition operator: `{text}`"));
    }
    out.extend(&chars[start..end]);
    Ok(end)
}

/// The end and the bounds of `{n}`, `{n,}` or `{n,m}`; anything else is literal text.
fn counted(chars: &[char], start: usize) -> Option<(usize, u32, Option<u32>)> {
    let close = start + chars[start..].iter().position(|c| *c == '}')?;
    let body: String = chars[start + 1..close].iter().collect();
    let number = |text: &str| -> Option<u32> {
        (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().unwrap_or(u32::MAX))
    };
    let (low, high) = match body.split_once(',') {
        None => (number(&body)?, Some(number(&body)?)),
        Some((low, "")) => (number(low)?, None),
        Some((low, high)) => (number(low)?, Some(number(high)?)),
    };
    Some((close + 1, low, high))
}

/// Copies the start of a group: `(`, `(?:`, `(?P<name>`, or flags.
fn group(chars: &[char], start: usize, out: &mut String) -> Result<usize, String> {
    if chars.get(start + 1) != Some(&'?') {
        out.push('(');
        return Ok(start + 1);
    }
    let rest: String = chars[start..].iter().take(64).collect();
    let named =
        rest.starts_with("(?P<") || (rest.starts_with("(?<") && !matches!(chars.get(start + 3), Some('=' | '!')));
    if named {
        let Some(length) = chars[start..].iter().position(|c| *c == '>') else {
            return Err(format!("invalid named capture: `{rest}`"));
        };
        out.extend(&chars[start..=start + length]);
        return Ok(start + length + 1);
    }
    let end = chars[start..].iter().position(|c| matches!(c, ':' | ')')).map(|length| start + length + 1);
    let flags: String = end.map(|end| chars[start + 2..end - 1].iter().collect()).unwrap_or_default();
    match end {
        Some(end) if flags.chars().all(|c| "imsU-".contains(c)) => {
            out.extend(&chars[start..end]);
            Ok(end)
        }
        _ => {
            let shown: String = rest.chars().take(3).collect();
            Err(format!("invalid or unsupported Perl syntax: `{shown}`"))
        }
    }
}

/// What an ASCII class is in the crate's syntax, inside or outside of brackets.
fn perl_class(letter: char) -> Option<(&'static str, &'static str)> {
    Some(match letter {
        'd' => ("0-9", "[0-9]"),
        'D' => ("[^0-9]", "[^0-9]"),
        'w' => ("0-9A-Za-z_", "[0-9A-Za-z_]"),
        'W' => ("[^0-9A-Za-z_]", "[^0-9A-Za-z_]"),
        's' => ("\\t\\n\\x0c\\r ", "[\\t\\n\\x0c\\r ]"),
        'S' => ("[^\\t\\n\\x0c\\r ]", "[^\\t\\n\\x0c\\r ]"),
        _ => return None,
    })
}

fn escape(chars: &[char], start: usize, out: &mut String) -> Result<usize, String> {
    let Some(&letter) = chars.get(start + 1) else {
        return Err("trailing backslash at end of expression: ``".into());
    };
    if let Some((_, outside)) = perl_class(letter) {
        out.push_str(outside);
        return Ok(start + 2);
    }
    match letter {
        'b' => out.push_str("(?-u:\\b)"),
        // A byte-wise boundary inside of a character is none the crate accepts; outside of ASCII both mean the same.
        'B' => out.push_str("\\B"),
        'A' | 'z' => out.extend(['\\', letter]),
        'Q' => {
            let rest: String = chars[start + 2..].iter().collect();
            let quoted = rest.split("\\E").next().unwrap_or_default();
            out.push_str(&regex::escape(quoted));
            let length = quoted.chars().count();
            let ended = if quoted.len() < rest.len() { 2 } else { 0 };
            return Ok(start + 2 + length + ended);
        }
        _ => return character(chars, start, out),
    }
    Ok(start + 2)
}

/// Copies an escape sequence that stands for one character or a Unicode class.
fn character(chars: &[char], start: usize, out: &mut String) -> Result<usize, String> {
    let letter = chars[start + 1];
    let invalid = |end: usize| {
        let text: String = chars[start..end.min(chars.len())].iter().collect();
        Err(format!("invalid escape sequence: `{text}`"))
    };
    match letter {
        'a' | 'f' | 't' | 'n' | 'r' | 'v' => out.extend(['\\', letter]),
        'x' | 'p' | 'P' => {
            let end = if chars.get(start + 2) == Some(&'{') {
                match chars[start..].iter().position(|c| *c == '}') {
                    Some(length) => start + length + 1,
                    None => return invalid(chars.len()),
                }
            } else {
                start + if letter == 'x' { 4 } else { 3 }
            };
            if end > chars.len() {
                return invalid(end);
            }
            out.extend(&chars[start..end]);
            return Ok(end);
        }
        '0'..='7' => {
            let digits: String = chars[start + 1..].iter().take(3).take_while(|c| c.is_digit(8)).collect();
            if letter != '0' && digits.len() == 1 {
                return invalid(start + 2);
            }
            let code = u32::from_str_radix(&digits, 8).unwrap_or(0);
            out.push_str(&format!("\\x{{{code:x}}}"));
            return Ok(start + 1 + digits.len());
        }
        // With a backslash these are boundaries of words to the crate.
        '<' | '>' => out.push(letter),
        c if c.is_ascii_punctuation() => out.extend(['\\', c]),
        _ => return invalid(start + 2),
    }
    Ok(start + 2)
}

/// Copies a class in brackets. The crate would see operators and nested classes where RE2 sees characters.
fn class(chars: &[char], start: usize, out: &mut String) -> Result<usize, String> {
    let missing = || {
        let text: String = chars[start..].iter().collect();
        format!("missing closing ]: `{text}`")
    };
    out.push('[');
    let mut i = start + 1;
    if chars.get(i) == Some(&'^') {
        out.push('^');
        i += 1;
    }
    let mut first = true;
    loop {
        match *chars.get(i).ok_or_else(missing)? {
            ']' if !first => {
                out.push(']');
                return Ok(i + 1);
            }
            '[' if chars.get(i + 1) == Some(&':') => {
                let rest: String = chars[i..].iter().collect();
                match rest.find(":]") {
                    Some(length) => {
                        let named = &rest[..length + 2];
                        out.push_str(named);
                        i += named.chars().count();
                    }
                    None => {
                        out.push_str("\\[");
                        i += 1;
                    }
                }
            }
            '\\' => {
                let Some(&letter) = chars.get(i + 1) else { return Err(missing()) };
                i = match perl_class(letter) {
                    Some((inside, _)) => {
                        out.push_str(inside);
                        i + 2
                    }
                    None => character(chars, i, out)?,
                };
            }
            c @ ('[' | ']' | '&' | '~') => {
                out.extend(['\\', c]);
                i += 1;
            }
            '-' if first || chars.get(i + 1) == Some(&']') || chars.get(i + 1) == Some(&'-') => {
                out.push_str("\\-");
                i += 1;
            }
            c => {
                out.push(c);
                i += 1;
            }
        }
        first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        compile(pattern).unwrap().is_match(text)
    }

    #[test]
    fn classes_are_ascii() {
        assert!(matches(r"^\d\w\s$", "1a "));
        assert!(!matches(r"^\d$", "٣"));
        assert!(!matches(r"^\w$", "é"));
        assert!(matches(r"^[\w.-]+$", "a.b-c_1"));
        assert!(matches(r"\bfoo\b", "a foo b"));
    }

    #[test]
    fn what_only_the_crate_knows_is_literal() {
        assert!(matches("^[a&&b]+$", "a&b"));
        assert!(matches("^[[a]+$", "[a"));
        assert!(matches("^a{,2}$", "a{,2}"));
        assert!(matches("^{x}$", "{x}"));
        assert!(matches(r"^\Qa.b\E+$", "a.bb"));
        assert!(matches(r"^\<[\<\>]\>$", "<>>"));
    }

    #[test]
    fn errors_are_gos() {
        for (pattern, message) in [
            ("a(b", "error parsing regexp: missing closing ): `a(b`"),
            ("a)b", "error parsing regexp: unexpected ): `a)b`"),
            ("[a", "error parsing regexp: missing closing ]: `[a`"),
            ("*", "error parsing regexp: missing argument to repetition operator: `*`"),
            ("a**", "error parsing regexp: invalid nested repetition operator: `**`"),
            ("a{1001}", "error parsing regexp: invalid repeat count: `{1001}`"),
            ("(?=a)", "error parsing regexp: invalid or unsupported Perl syntax: `(?=`"),
            (r"\1", r"error parsing regexp: invalid escape sequence: `\1`"),
        ] {
            assert_eq!(compile(pattern).unwrap_err(), message, "{pattern}");
        }
    }
}
