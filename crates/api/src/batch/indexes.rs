//! Lists of completion indexes as Jobs write them: `1,3-5,7`.

/// Parses a list of indexes below `completions` into closed intervals, in order.
///
/// # Errors
/// Upstream's sentence for the first fault: not a number, too large, or not increasing.
pub fn parse(text: &str, completions: i32) -> Result<Vec<(i32, i32)>, String> {
    let mut out: Vec<(i32, i32)> = Vec::new();
    if text.is_empty() {
        return Ok(out);
    }
    for part in text.split(',') {
        let (first, last) = interval(part, completions)?;
        if let Some((_, before)) = out.last().filter(|(_, before)| *before >= first) {
            return Err(format!("non-increasing order, previous: {before}, current: {first}"));
        }
        out.push((first, last));
    }
    Ok(out)
}

/// How many indexes the intervals hold.
#[must_use]
pub fn count(intervals: &[(i32, i32)]) -> i32 {
    intervals.iter().map(|(first, last)| last - first + 1).sum()
}

/// The first index that both lists hold; what does not parse is passed over.
#[must_use]
pub(super) fn overlap(completed: &str, failed: &str, completions: i32) -> Option<i32> {
    let good =
        |text: &str| -> Vec<(i32, i32)> { text.split(',').filter_map(|p| interval(p, completions).ok()).collect() };
    let (completed, failed) = (good(completed), good(failed));
    let (mut c, mut f) = (completed.iter().peekable(), failed.iter().peekable());
    while let (Some((c_first, c_last)), Some((f_first, f_last))) = (c.peek(), f.peek()) {
        if c_first <= f_last && f_first <= c_last {
            return Some(*c_first.max(f_first));
        }
        if c_first <= f_first {
            c.next();
        } else {
            f.next();
        }
    }
    None
}

fn interval(part: &str, completions: i32) -> Result<(i32, i32), String> {
    let ends: Vec<&str> = part.split('-').collect();
    let index = |text: &str| -> Result<i32, String> {
        let n: i64 = text.parse().map_err(|_| format!("cannot convert string to integer for index: {text:?}"))?;
        if n >= i64::from(completions) {
            return Err(format!("too large index: {text:?}"));
        }
        i32::try_from(n).map_err(|_| format!("cannot convert string to integer for index: {text:?}"))
    };
    match ends[..] {
        [one] => index(one).map(|n| (n, n)),
        [first, last] => {
            let (first, last) = (index(first)?, index(last)?);
            if first >= last {
                return Err(format!("non-increasing order, previous: {first}, current: {last}"));
            }
            Ok((first, last))
        }
        _ => Err(format!(
            "the fragment {part:?} violates the requirement that an index interval can have at most two parts separated by '-'"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_faults_told() {
        assert_eq!(parse("", 5), Ok(vec![]));
        assert_eq!(parse("0,2-3", 5).map(|i| count(&i)), Ok(3));
        for (text, want) in [
            ("x", "cannot convert string to integer for index: \"x\""),
            ("5", "too large index: \"5\""),
            ("3-1", "non-increasing order, previous: 3, current: 1"),
            ("1,1", "non-increasing order, previous: 1, current: 1"),
            (
                "1-2-3",
                "the fragment \"1-2-3\" violates the requirement that an index interval can have at most two parts separated by '-'",
            ),
        ] {
            assert_eq!(parse(text, 5), Err(want.to_owned()));
        }
        assert_eq!(overlap("0-2,4", "3-4", 5), Some(4));
        assert_eq!(overlap("0-2", "3", 5), None);
        assert_eq!(overlap("", "3", 5), None);
    }
}
