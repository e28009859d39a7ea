//! One line of a log file.

use k8s_openapi::jiff::Timestamp;

/// A line as the runtime wrote it. `text` ends in a newline unless the line goes on (`partial`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    pub time: &'a str,
    pub stream: &'a str,
    pub partial: bool,
    pub text: &'a [u8],
}

/// Parses a line without its newline; `None` for what is no CRI line.
pub(crate) fn parse(raw: &[u8]) -> Option<Line<'_>> {
    let mut parts = raw.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok().filter(|s| matches!(*s, "stdout" | "stderr"))?;
    // Tags are separated by colons; the first says whether the line is complete.
    let tags = std::str::from_utf8(parts.next()?).ok()?;
    let partial = match tags.split(':').next()? {
        "P" => true,
        "F" => false,
        _ => return None,
    };
    Some(Line { time, stream, partial, text: parts.next().unwrap_or_default() })
}

impl Line<'_> {
    pub(crate) fn at(&self) -> Option<Timestamp> {
        self.time.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cri_lines() {
        let l = parse(b"2026-01-02T03:04:05.678901234Z stdout F hello world").unwrap();
        assert_eq!((l.stream, l.partial, l.text), ("stdout", false, &b"hello world"[..]));
        assert_eq!(l.at().unwrap().subsec_nanosecond(), 678_901_234);
        let l = parse(b"2026-01-02T03:04:05+02:00 stderr P:x part").unwrap();
        assert!(l.partial && l.stream == "stderr");
        assert_eq!(parse(b"2026-01-02T03:04:05Z stdout F").unwrap().text, b"");
        for bad in [&b""[..], b"x", b"t stdin F x", b"t stdout Q x", b"t stdout"] {
            assert!(parse(bad).is_none(), "{bad:?}");
        }
    }
}
