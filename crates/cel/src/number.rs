//! Numbers as text, in the formats of Go's `strconv` and `fmt`, which error messages and `string()` show.

/// The shortest decimal digits and the decimal exponent of the first one.
fn digits(d: f64) -> (String, i32) {
    let text = format!("{:e}", d.abs());
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    (mantissa.replace('.', ""), exponent.parse().unwrap_or(0))
}

/// `%g` with the shortest digits that read back as the same number.
pub(crate) fn shortest(d: f64) -> String {
    if !d.is_finite() {
        return special(d);
    }
    let sign = if d.is_sign_negative() { "-" } else { "" };
    let (digits, exponent) = digits(d);
    // With the shortest digits Go decides as if the precision were six.
    if !(-4..6).contains(&exponent) {
        return format!("{sign}{}", scientific(&digits, exponent));
    }
    format!("{sign}{}", plain(&digits, exponent))
}

fn scientific(digits: &str, exponent: i32) -> String {
    let (head, tail) = digits.split_at(1);
    let point = if tail.is_empty() { "" } else { "." };
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{head}{point}{tail}e{sign}{:02}", exponent.abs())
}

fn plain(digits: &str, exponent: i32) -> String {
    if exponent < 0 {
        return format!("0.{}{digits}", "0".repeat(exponent.unsigned_abs() as usize - 1));
    }
    let whole = exponent.unsigned_abs() as usize + 1;
    if digits.len() <= whole {
        return format!("{digits}{}", "0".repeat(whole - digits.len()));
    }
    format!("{}.{}", &digits[..whole], &digits[whole..])
}

/// `%.{precision}e`.
pub(crate) fn exponent(d: f64, precision: usize) -> String {
    let text = format!("{d:.precision$e}");
    let Some((mantissa, exponent)) = text.split_once('e') else { return special(d) };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// How Go prints what is no number.
pub(crate) fn special(d: f64) -> String {
    if d.is_nan() {
        "NaN".into()
    } else if d > 0.0 {
        "+Inf".into()
    } else {
        "-Inf".into()
    }
}

/// `strconv.ParseFloat`, decimal and hexadecimal, without digit separators.
pub(crate) fn parse(text: &str) -> Option<f64> {
    let (negative, body) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = body.to_ascii_lowercase();
    let magnitude = match lower.as_str() {
        "inf" | "infinity" => f64::INFINITY,
        "nan" => return Some(f64::NAN),
        _ => {
            if !lower.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'+' | b'-')) {
                return None;
            }
            let parsed: f64 = lower.parse().ok()?;
            // Go refuses what only overflows to infinity.
            if parsed.is_infinite() {
                return None;
            }
            parsed
        }
    };
    Some(if negative { -magnitude } else { magnitude })
}

/// `strconv.Quote`: a Go string literal.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c == '\x7f' => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_print_as_go_prints_them() {
        for (d, text) in [
            (1.0, "1"),
            (1e6, "1e+06"),
            (123_456_789.0, "1.23456789e+08"),
            (100_000.0, "100000"),
            (0.0001, "0.0001"),
            (0.000_01, "1e-05"),
            (-2.5, "-2.5"),
            (f64::INFINITY, "+Inf"),
            (0.0, "0"),
        ] {
            assert_eq!(shortest(d), text);
        }
        assert_eq!(exponent(1_052.032_911_275, 6), "1.052033e+03");
    }
}
