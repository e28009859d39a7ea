//! Syntax of the strings that have one: times, quantities, base64; errors in upstream's wording.

/// Text of a quantity that does not match at all.
pub(super) const QUANTITY_FORMAT: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
const QUANTITY_NUMERIC: &str = "unable to parse numeric part of quantity";
const QUANTITY_SUFFIX: &str = "unable to parse quantity's suffix";

/// Checks a quantity: sign, digits with at most one point, and one of the known suffixes or an exponent.
pub(super) fn check_quantity(text: &str) -> Result<(), &'static str> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let digits_end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(digits_end);
    if !number.bytes().any(|byte| byte.is_ascii_digit()) {
        return Err(QUANTITY_FORMAT);
    }
    if number.bytes().filter(|byte| *byte == b'.').count() > 1 {
        // A second point ends the number, and no suffix begins with a point.
        return Err(QUANTITY_NUMERIC);
    }
    let letters = suffix.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-' || c == '+');
    if !letters.chars().all(|c| "eEinumkKMGTP".contains(c)) {
        return Err(QUANTITY_FORMAT);
    }
    let known = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if known.contains(&suffix) {
        return Ok(());
    }
    match suffix.strip_prefix(['e', 'E']) {
        Some(exponent) if exponent.parse::<i64>().is_ok() => Ok(()),
        _ => Err(QUANTITY_SUFFIX),
    }
}

/// Offset of the first byte that makes `text` no padded base64; nothing when it is fine. Line breaks are allowed.
pub(super) fn base64_error(text: &str) -> Option<usize> {
    let mut symbols = 0usize;
    let mut padding = 0usize;
    for (offset, byte) in text.bytes().enumerate() {
        match byte {
            b'\r' | b'\n' => {}
            b'=' => {
                padding += 1;
                // Padding completes a group of four that has at least two symbols.
                if symbols % 4 < 2 || symbols % 4 + padding > 4 {
                    return Some(offset);
                }
            }
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' if padding == 0 => symbols += 1,
            _ => return Some(offset),
        }
    }
    let complete = (symbols + padding).is_multiple_of(4);
    if complete { None } else { Some(text.len()) }
}

/// Checks an RFC 3339 time. `micro` allows what both forms of time allow; the layout in the error text differs.
pub(super) fn check_time(text: &str, micro: bool) -> Result<(), String> {
    let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    let fail = |rest: &str, element: &str| {
        Err(format!("parsing time {text:?} as {layout:?}: cannot parse {rest:?} as {element:?}"))
    };
    let range = |what: &str| Err(format!("parsing time {text:?}: {what} out of range"));
    // (literal before, digits, element of the layout, least, greatest, name)
    let parts: [(&str, usize, &str, u32, u32, &str); 6] = [
        ("", 4, "2006", 0, 9999, "year"),
        ("-", 2, "01", 1, 12, "month"),
        ("-", 2, "02", 1, 31, "day"),
        ("T", 2, "15", 0, 23, "hour"),
        (":", 2, "04", 0, 59, "minute"),
        (":", 2, "05", 0, 59, "second"),
    ];
    let mut rest = text;
    let mut numbers = [0u32; 6];
    for (index, (separator, width, element, least, greatest, name)) in parts.into_iter().enumerate() {
        let Some(after) = rest.strip_prefix(separator) else {
            return fail(rest, separator);
        };
        let digits = after.get(..width).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let Some(number) = digits.and_then(|digits| digits.parse().ok()) else {
            return fail(after, element);
        };
        if number < least || number > greatest {
            return range(name);
        }
        numbers[index] = number;
        rest = &after[width..];
    }
    if let Some(after) = rest.strip_prefix('.') {
        let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        if end == 0 {
            return fail(rest, "Z07:00");
        }
        rest = &after[end..];
    } else if micro {
        return fail(rest, ".000000");
    }
    let [year, month, day, ..] = numbers;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if day > days {
        return range("day");
    }
    if rest == "Z" {
        return Ok(());
    }
    let bytes = rest.as_bytes();
    let offset = bytes.len() >= 6
        && matches!(bytes[0], b'+' | b'-')
        && bytes[3] == b':'
        && [1, 2, 4, 5].iter().all(|index| bytes[*index].is_ascii_digit());
    match (offset, bytes.len()) {
        (true, 6) => Ok(()),
        (true, _) => Err(format!("parsing time {text:?}: extra text: {:?}", &rest[6..])),
        (false, _) => match rest.strip_prefix('Z') {
            Some(extra) => Err(format!("parsing time {text:?}: extra text: {extra:?}")),
            None => fail(rest, "Z07:00"),
        },
    }
}
