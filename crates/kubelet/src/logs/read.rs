//! Reading a container's log: the last lines, since a time, following, across rotations.

use super::follow::subscribe;
use super::line::parse;
use super::rotate::files;
use bytes::{Bytes, BytesMut};
use k8s_openapi::jiff::Timestamp;
use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, BufReader};
use tokio::sync::mpsc;

/// Which part of a log to send.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Only the last so many lines.
    pub tail: Option<usize>,
    /// Only lines from this time on.
    pub since: Option<Timestamp>,
    /// Each line begins with its time.
    pub timestamps: bool,
    /// Go on as more is written.
    pub follow: bool,
    /// At most so many bytes.
    pub limit: Option<usize>,
    /// Only `Stdout` or `Stderr`.
    pub stream: Option<&'static str>,
}

const BLOCK: u64 = 64 * 1024;

/// The longest line that is passed on whole; runtimes write at most 16 KiB each.
const MAX_LINE: u64 = 1 << 20;

/// Where the last `lines` complete lines begin.
async fn tail_offset(file: &mut tokio::fs::File, lines: usize) -> io::Result<(u64, usize)> {
    let end = file.seek(SeekFrom::End(0)).await?;
    let (mut position, mut found) = (end, 0usize);
    let mut block = vec![0u8; BLOCK as usize];
    // A file that does not end in a newline has one more (unfinished) line.
    let mut unfinished = false;
    if end > 0 {
        file.seek(SeekFrom::Start(end - 1)).await?;
        unfinished = file.read_u8().await? != b'\n';
    }
    if lines == 0 {
        return Ok((end, 0));
    }
    let wanted = lines + usize::from(!unfinished);
    while position > 0 {
        let size = position.min(BLOCK);
        position -= size;
        file.seek(SeekFrom::Start(position)).await?;
        let part = &mut block[..size as usize];
        file.read_exact(part).await?;
        for (i, _) in part.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
            found += 1;
            if found == wanted {
                return Ok((position + i as u64 + 1, lines));
            }
        }
    }
    Ok((0, found + usize::from(unfinished)))
}

struct Open {
    file: tokio::fs::File,
    inode: u64,
}

/// Opens all files of a log, oldest first. One that is renamed or removed meanwhile makes it look again.
async fn open_all(path: &Path) -> io::Result<Vec<Open>> {
    'again: loop {
        let mut all = Vec::new();
        for file in files(path)? {
            match tokio::fs::File::open(&file).await {
                Ok(file) => {
                    let inode = file.metadata().await?.ino();
                    all.push(Open { file, inode });
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue 'again,
                Err(e) => return Err(e),
            }
        }
        return Ok(all);
    }
}

/// The file of a log that follows the one of `inode`; the oldest there is where that is gone. `None` while it is the last.
async fn next_file(path: &Path, inode: u64) -> io::Result<Option<Open>> {
    match tokio::fs::metadata(path).await {
        Ok(meta) if meta.ino() == inode => return Ok(None),
        Ok(_) => {}
        // Renamed, and not opened anew yet.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    }
    let mut all = open_all(path).await?;
    let next = all.iter().position(|o| o.inode == inode).map_or(0, |at| at + 1);
    Ok((next < all.len()).then(|| all.swap_remove(next)))
}

struct Sender {
    out: mpsc::Sender<Bytes>,
    options: Options,
    left: usize,
    /// The last line sent was partial: the next one of its stream goes on.
    partial: bool,
    since_reached: bool,
}

impl Sender {
    /// False where nothing more is wanted.
    async fn line(&mut self, raw: &[u8]) -> bool {
        let Some(line) = parse(raw) else { return true };
        if !self.since_reached {
            if let (Some(since), Some(at)) = (self.options.since, line.at())
                && at < since
            {
                return true;
            }
            self.since_reached = true;
        }
        if self.options.stream.is_some_and(|s| s != line.stream) {
            return true;
        }
        let mut text = BytesMut::with_capacity(raw.len() + 1);
        if self.options.timestamps && !self.partial {
            text.extend_from_slice(line.time.as_bytes());
            text.extend_from_slice(b" ");
        }
        text.extend_from_slice(line.text);
        if !line.partial {
            text.extend_from_slice(b"\n");
        }
        self.partial = line.partial;
        text.truncate(self.left);
        self.left -= text.len();
        self.out.send(text.freeze()).await.is_ok() && self.left > 0
    }
}

/// Sends what `options` ask for into `out`, until the end of the log, the reader's going away, or (following) `ended`
/// resolves and everything written by then is sent.
pub(crate) async fn stream(
    path: PathBuf,
    options: Options,
    out: mpsc::Sender<Bytes>,
    ended: impl Future<Output = ()>,
) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/")).to_path_buf();
    // Subscribed before the first read, so that no change is missed.
    let subscription = if options.follow { Some(subscribe(&directory)?) } else { None };
    let left = options.limit.unwrap_or(usize::MAX);
    let mut sender = Sender { out: out.clone(), left, partial: false, since_reached: options.since.is_none(), options };
    if sender.left == 0 {
        return Ok(());
    }
    let mut all = open_all(&path).await?;
    if all.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.display())));
    }
    let mut offset = 0;
    if let Some(mut lines) = sender.options.tail {
        // From the newest file back, until there are enough lines.
        let mut first = all.len();
        while first > 0 {
            first -= 1;
            let (at, got) = tail_offset(&mut all[first].file, lines).await?;
            offset = at;
            lines -= got.min(lines);
            if lines == 0 {
                break;
            }
        }
        all.drain(..first);
    }
    let mut current = None;
    for Open { mut file, inode } in all {
        file.seek(SeekFrom::Start(offset)).await?;
        offset = 0;
        let mut reader = BufReader::with_capacity(BLOCK as usize, file);
        let mut rest = Vec::new();
        if !copy(&mut reader, &mut rest, &mut sender).await? {
            return Ok(());
        }
        current = Some((reader, rest, inode));
    }
    let (Some(subscription), Some((mut reader, mut rest, mut inode))) = (subscription, current) else {
        return Ok(());
    };
    tokio::pin!(ended);
    let mut last = false;
    loop {
        if !copy(&mut reader, &mut rest, &mut sender).await? {
            return Ok(());
        }
        // Rotated: the old file is read to its end by now, the new one comes next.
        if let Some(next) = next_file(&path, inode).await? {
            if !copy(&mut reader, &mut rest, &mut sender).await? {
                return Ok(());
            }
            inode = next.inode;
            reader = BufReader::with_capacity(BLOCK as usize, next.file);
            rest.clear();
            continue;
        }
        if last {
            return Ok(());
        }
        tokio::select! {
            () = subscription.changed() => {}
            () = &mut ended => last = true,
            () = out.closed() => return Ok(()),
        }
    }
}

/// Sends complete lines up to the end of the file; what is unfinished stays in `rest`.
async fn copy(reader: &mut BufReader<tokio::fs::File>, rest: &mut Vec<u8>, sender: &mut Sender) -> io::Result<bool> {
    loop {
        let n = reader.take(MAX_LINE).read_until(b'\n', rest).await?;
        if n == 0 {
            return Ok(true);
        }
        if rest.last() == Some(&b'\n') {
            rest.pop();
            if !sender.line(rest).await {
                return Ok(false);
            }
            rest.clear();
        } else if rest.len() as u64 >= MAX_LINE {
            rest.clear();
        }
    }
}

/// The last `lines` lines' text, at most the last `bytes` bytes of it.
pub(crate) async fn last_lines(path: &Path, lines: usize, bytes: usize) -> io::Result<String> {
    let (out, mut parts) = mpsc::channel(16);
    let options = Options { tail: Some(lines), ..Options::default() };
    let reading = tokio::spawn(stream(path.to_path_buf(), options, out, std::future::ready(())));
    let mut text = Vec::new();
    while let Some(part) = parts.recv().await {
        text.extend_from_slice(&part);
    }
    reading.await.map_err(io::Error::other)??;
    let start = text.len().saturating_sub(bytes);
    Ok(String::from_utf8_lossy(&text[start..]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn entry(second: u32, text: &str) -> String {
        format!("2026-01-01T00:00:{second:02}Z stdout F {text}\n")
    }

    async fn read(path: &Path, options: Options) -> String {
        let (out, mut parts) = mpsc::channel(1);
        let task = tokio::spawn(stream(path.to_path_buf(), options, out, std::future::ready(())));
        let mut text = Vec::new();
        while let Some(p) = parts.recv().await {
            text.extend_from_slice(&p);
        }
        task.await.unwrap().unwrap();
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn tail_since_limit_and_timestamps_across_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(dir.path().join("0.log.20260101-000000.000"), entry(1, "a") + &entry(2, "b")).unwrap();
        let partial = "2026-01-01T00:00:04Z stderr P d\n2026-01-01T00:00:04Z stderr F dd\n";
        std::fs::write(&path, entry(3, "c") + partial + "garbage\n").unwrap();
        let all = Options::default();
        assert_eq!(read(&path, all.clone()).await, "a\nb\nc\nddd\n");
        for (tail, want) in
            [(0, ""), (1, ""), (3, "ddd\n"), (4, "c\nddd\n"), (5, "b\nc\nddd\n"), (50, "a\nb\nc\nddd\n")]
        {
            assert_eq!(read(&path, Options { tail: Some(tail), ..all.clone() }).await, want, "{tail}");
        }
        let since = "2026-01-01T00:00:03Z".parse().ok();
        assert_eq!(read(&path, Options { since, ..all.clone() }).await, "c\nddd\n");
        assert_eq!(read(&path, Options { limit: Some(3), ..all.clone() }).await, "a\nb");
        assert_eq!(read(&path, Options { stream: Some("stderr"), ..all.clone() }).await, "ddd\n");
        let timed = read(&path, Options { timestamps: true, tail: Some(4), ..all }).await;
        assert_eq!(timed, "2026-01-01T00:00:03Z c\n2026-01-01T00:00:04Z ddd\n");
        assert_eq!(last_lines(&path, 80, 4).await.unwrap(), "ddd\n");
    }

    #[tokio::test]
    async fn following_sees_appends_rotation_and_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, entry(1, "a")).unwrap();
        let (out, mut parts) = mpsc::channel(8);
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let options = Options { follow: true, ..Options::default() };
        let task = tokio::spawn(stream(path.clone(), options, out, async {
            let _ = ended.await;
        }));
        assert_eq!(parts.recv().await.unwrap(), "a\n");
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        let b = entry(2, "b");
        file.write_all(&b.as_bytes()[..10]).unwrap();
        file.write_all(&b.as_bytes()[10..]).unwrap();
        assert_eq!(parts.recv().await.unwrap(), "b\n");
        std::fs::rename(&path, dir.path().join("0.log.20260101-000000.000")).unwrap();
        file.write_all(entry(3, "late").as_bytes()).unwrap();
        assert_eq!(parts.recv().await.unwrap(), "late\n");
        std::fs::write(&path, entry(4, "new")).unwrap();
        assert_eq!(parts.recv().await.unwrap(), "new\n");
        // Two rotations at once: what lies between is not passed over.
        std::fs::write(dir.path().join("next"), entry(5, "between")).unwrap();
        std::fs::rename(&path, dir.path().join("0.log.20260101-000001.000")).unwrap();
        std::fs::rename(dir.path().join("next"), dir.path().join("0.log.20260101-000002.000")).unwrap();
        std::fs::write(&path, entry(6, "newest")).unwrap();
        assert_eq!(parts.recv().await.unwrap(), "between\n");
        assert_eq!(parts.recv().await.unwrap(), "newest\n");
        end.send(()).unwrap();
        assert!(parts.recv().await.is_none());
        task.await.unwrap().unwrap();
    }
}
