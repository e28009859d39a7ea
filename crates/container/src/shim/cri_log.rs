//! Log files in the CRI format: `<RFC 3339 time> <stdout|stderr> <F|P> <line>`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest line; longer ones are split into partial (`P`) lines.
const MAX_LINE: usize = 16 * 1024;

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// Splits output into lines and frames them.
#[derive(Default)]
pub(crate) struct Framer {
    rest: [Vec<u8>; 2],
}

impl Framer {
    /// Appends the frames of all lines completed by `data` to `out`.
    pub(crate) fn push(&mut self, stream: Stream, mut data: &[u8], now: SystemTime, out: &mut Vec<u8>) {
        let rest = &mut self.rest[stream as usize];
        while let Some(end) = data.iter().position(|b| *b == b'\n') {
            rest.extend_from_slice(&data[..end]);
            data = &data[end + 1..];
            split_long(rest, stream, now, out);
            frame(stream, true, rest, now, out);
            rest.clear();
        }
        rest.extend_from_slice(data);
        split_long(rest, stream, now, out);
        if rest.is_empty() && rest.capacity() > 4096 {
            *rest = Vec::new();
        }
    }

    /// Appends what is left without a newline, as a partial line.
    pub(crate) fn finish(&mut self, stream: Stream, now: SystemTime, out: &mut Vec<u8>) {
        let rest = std::mem::take(&mut self.rest[stream as usize]);
        if !rest.is_empty() {
            frame(stream, false, &rest, now, out);
        }
    }
}

fn split_long(rest: &mut Vec<u8>, stream: Stream, now: SystemTime, out: &mut Vec<u8>) {
    while rest.len() > MAX_LINE {
        frame(stream, false, &rest[..MAX_LINE], now, out);
        rest.drain(..MAX_LINE);
    }
}

fn frame(stream: Stream, full: bool, line: &[u8], now: SystemTime, out: &mut Vec<u8>) {
    timestamp(now, out);
    out.push(b' ');
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(if full { b" F " } else { b" P " });
    out.extend_from_slice(line);
    out.push(b'\n');
}

/// Appends a time as `2006-01-02T15:04:05.000000000Z`.
pub(crate) fn timestamp(time: SystemTime, out: &mut Vec<u8>) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days to a civil date, counting years from March so that the leap day comes last.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", since.subsec_nanos());
}

/// An open log file.
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    framer: Framer,
    frames: Vec<u8>,
}

impl Log {
    /// Opens `path` for appending, with its directory.
    pub(crate) fn open(path: &Path) -> io::Result<Log> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        Ok(Log { path: path.to_path_buf(), file: open(path)?, framer: Framer::default(), frames: Vec::new() })
    }

    /// Opens the path anew after it was renamed.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        Ok(())
    }

    pub(crate) fn write(&mut self, stream: Stream, data: &[u8]) {
        self.framer.push(stream, data, SystemTime::now(), &mut self.frames);
        self.flush();
    }

    pub(crate) fn finish(&mut self, stream: Stream) {
        self.framer.finish(stream, SystemTime::now(), &mut self.frames);
        self.flush();
    }

    fn flush(&mut self) {
        // On a full disk output is lost rather than the container stopped; there is nowhere to say so.
        let _ = self.file.write_all(&self.frames);
        self.frames.clear();
        self.frames.shrink_to(8 * 1024);
    }
}

fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    #[test]
    fn times() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000005Z"),
            (951_782_400, "2000-02-29T00:00:00.000000005Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000005Z"),
            (1_709_251_200, "2024-03-01T00:00:00.000000005Z"),
            (4_102_444_799, "2099-12-31T23:59:59.000000005Z"),
        ];
        for (seconds, want) in cases {
            let mut out = Vec::new();
            timestamp(UNIX_EPOCH + Duration::new(seconds, 5), &mut out);
            assert_eq!(text(&out), want);
        }
    }

    #[test]
    fn lines_are_framed_across_writes_and_streams() {
        let mut framer = Framer::default();
        let mut out = Vec::new();
        let at = UNIX_EPOCH;
        framer.push(Stream::Stdout, b"one\ntw", at, &mut out);
        framer.push(Stream::Stderr, b"err\n\n", at, &mut out);
        framer.push(Stream::Stdout, b"o\nrest", at, &mut out);
        framer.finish(Stream::Stdout, at, &mut out);
        framer.finish(Stream::Stderr, at, &mut out);
        let t = "1970-01-01T00:00:00.000000000Z";
        assert_eq!(
            text(&out),
            format!("{t} stdout F one\n{t} stderr F err\n{t} stderr F \n{t} stdout F two\n{t} stdout P rest\n")
        );
    }

    #[test]
    fn long_lines_are_split() {
        let mut framer = Framer::default();
        let mut out = Vec::new();
        let mut line = vec![b'x'; MAX_LINE * 2 + 3];
        line.push(b'\n');
        framer.push(Stream::Stdout, &line, UNIX_EPOCH, &mut out);
        let tags: Vec<(String, usize)> = text(&out)
            .lines()
            .map(|l| {
                let mut parts = l.splitn(4, ' ').skip(2);
                (parts.next().unwrap().to_string(), parts.next().unwrap().len())
            })
            .collect();
        assert_eq!(tags, [("P".into(), MAX_LINE), ("P".into(), MAX_LINE), ("F".into(), 3)]);
    }
}
