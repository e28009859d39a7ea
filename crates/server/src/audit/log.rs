//! The log back end: a file with an event per line, which is rotated by size; or standard output.

use super::event::Event;
use super::{Sink, Written};
use flate2::Compression;
use flate2::write::GzEncoder;
use gantry_api::clock::Clock;
use gantry_api::k8s_openapi::jiff::civil::DateTime;
use gantry_api::k8s_openapi::jiff::tz::TimeZone;
use gantry_api::k8s_openapi::jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How rotated files tell their time, between the name and the ending of the file.
const STAMP: &str = "%Y-%m-%dT%H-%M-%S%.3f";
/// Ending of rotated files that were compressed.
const COMPRESSED: &str = ".gz";

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JSON, whole.
    Json,
    /// A line of text with the most important.
    Legacy,
}

/// When files are rotated, and which are kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rotation {
    /// Bytes beyond which a file is not written on; 0 for no rotation.
    pub bytes_max: u64,
    /// Rotated files kept; 0 for all.
    pub backups_max: usize,
    /// Days that rotated files are kept; 0 for ever.
    pub days_max: u32,
    /// Whether rotated files are compressed.
    pub compress: bool,
}

enum Output {
    Standard,
    File { file: File, bytes: u64 },
}

/// The back end.
pub struct Log {
    path: PathBuf,
    format: Format,
    rotation: Rotation,
    clock: Clock,
    output: Mutex<Output>,
}

fn open(path: &Path) -> io::Result<Output> {
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let bytes = file.metadata()?.len();
    Ok(Output::File { file, bytes })
}

impl Log {
    /// Opens the file, or standard output where `path` is `-`.
    ///
    /// # Errors
    /// Where the file or its directory cannot be made or written.
    pub fn open(path: &Path, format: Format, rotation: Rotation, clock: Clock) -> io::Result<Self> {
        let output = if path == Path::new("-") { Output::Standard } else { open(path)? };
        Ok(Self { path: path.to_owned(), format, rotation, clock, output: Mutex::new(output) })
    }

    /// An event on a line, as the format has it.
    pub(super) fn line(&self, event: &Event, json: &str) -> String {
        match self.format {
            Format::Json => Event::line(json),
            Format::Legacy => event.legacy(),
        }
    }

    /// Writes lines; what cannot be written is reported and lost.
    pub(super) fn write_all(&self, lines: &[String]) {
        for line in lines {
            if let Err(e) = self.append(line) {
                super::report("log", &format!("{}: {e}", self.path.display()), 1);
            }
        }
    }

    fn append(&self, line: &str) -> io::Result<()> {
        let length = line.len() as u64;
        let mut output = self.output.lock();
        let limit = self.rotation.bytes_max;
        match &mut *output {
            Output::Standard => return io::stdout().lock().write_all(line.as_bytes()),
            Output::File { .. } if limit > 0 && length > limit => {
                let why = format!("write length {length} exceeds maximum file size {limit}");
                return Err(io::Error::other(why));
            }
            Output::File { bytes, .. } if limit > 0 && *bytes + length > limit => {
                let aside = self.set_aside()?;
                *output = open(&self.path)?;
                // The new file is there; what cannot be done with the old ones is done with the next.
                if let Err(e) = self.tidy(&aside) {
                    tracing::warn!(file = %aside.display(), error = %e, "old audit logs cannot be tidied up");
                }
            }
            Output::File { .. } => {}
        }
        if let Output::File { file, bytes } = &mut *output {
            file.write_all(line.as_bytes())?;
            *bytes += length;
        }
        Ok(())
    }

    /// The name of the file without its ending, and the ending.
    fn name(&self) -> (String, String) {
        let part = |p: Option<&std::ffi::OsStr>| p.map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
        let ending = part(self.path.extension());
        let ending = if ending.is_empty() { ending } else { format!(".{ending}") };
        (part(self.path.file_stem()), ending)
    }

    fn directory(&self) -> &Path {
        self.path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// Renames the file, and returns its new name.
    fn set_aside(&self) -> io::Result<PathBuf> {
        let (stem, ending) = self.name();
        let mut now = self.clock.now();
        let aside = loop {
            let stamp = now.to_zoned(TimeZone::UTC).strftime(STAMP).to_string();
            let aside = self.directory().join(format!("{stem}-{stamp}{ending}"));
            let compressed = PathBuf::from(format!("{}{COMPRESSED}", aside.display()));
            if !aside.exists() && !compressed.exists() {
                break aside;
            }
            now += SignedDuration::from_millis(1);
        };
        std::fs::rename(&self.path, &aside)?;
        Ok(aside)
    }

    /// Compresses the file that was set aside, and removes those that are too old or too many.
    fn tidy(&self, aside: &Path) -> io::Result<()> {
        if self.rotation.compress {
            compress(aside)?;
        }
        let (stem, ending) = self.name();
        let mut old: Vec<(Timestamp, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(self.directory())? {
            let path = entry?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let bare = name.strip_suffix(COMPRESSED).unwrap_or(&name);
            let stamp =
                bare.strip_prefix(&stem).and_then(|s| s.strip_prefix('-')).and_then(|s| s.strip_suffix(&ending));
            let time = stamp.and_then(|s| DateTime::strptime(STAMP, s).ok()?.to_zoned(TimeZone::UTC).ok());
            if let Some(time) = time {
                old.push((time.timestamp(), path));
            }
        }
        old.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
        let oldest =
            self.clock.now().saturating_sub(SignedDuration::from_hours(24 * i64::from(self.rotation.days_max)));
        let oldest = oldest.unwrap_or(Timestamp::MIN);
        for (i, (time, path)) in old.iter().enumerate() {
            let too_many = self.rotation.backups_max > 0 && i >= self.rotation.backups_max;
            if too_many || self.rotation.days_max > 0 && *time < oldest {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn compress(path: &Path) -> io::Result<()> {
    let target = PathBuf::from(format!("{}{COMPRESSED}", path.display()));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
    let mut encoder = GzEncoder::new(file, Compression::default());
    io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    std::fs::remove_file(path)
}

impl Sink for Log {
    fn name(&self) -> &'static str {
        "log"
    }

    fn write(&self, event: &Event, json: &str) -> Result<Written, String> {
        self.append(&self.line(event, json)).map_err(|e| format!("{}: {e}", self.path.display()))?;
        Ok(Written::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn names(directory: &Path) -> Vec<String> {
        let all = std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut all: Vec<String> = all.collect();
        all.sort();
        all
    }

    #[tokio::test(start_paused = true)]
    async fn files_are_rotated_and_old_ones_go() {
        let directory = std::env::temp_dir().join(format!("gantry-audit-{}", std::process::id()));
        let path = directory.join("audit.log");
        let clock = Clock::starting_at("2026-01-01T00:00:00Z".parse().unwrap());
        let rotation = Rotation { bytes_max: 10, backups_max: 2, days_max: 3, compress: false };
        let log = Log::open(&path, Format::Json, rotation, clock).unwrap();
        assert!(log.append("far too long for a file").unwrap_err().to_string().contains("maximum file size 10"));
        for text in ["first\n", "second\n", "third\n"] {
            log.append(text).unwrap();
        }
        assert_eq!(
            names(&directory),
            ["audit-2026-01-01T00-00-00.000.log", "audit-2026-01-01T00-00-00.001.log", "audit.log"]
        );
        tokio::time::advance(Duration::from_secs(3600)).await;
        log.append("fourth\n").unwrap();
        assert_eq!(
            names(&directory),
            ["audit-2026-01-01T00-00-00.001.log", "audit-2026-01-01T01-00-00.000.log", "audit.log"],
            "two at most"
        );
        drop(log);
        tokio::time::advance(Duration::from_secs(100 * 3600)).await;
        let log = Log::open(&path, Format::Json, Rotation { compress: true, ..rotation }, clock).unwrap();
        log.append("fifth\n").unwrap();
        assert_eq!(names(&directory), ["audit-2026-01-05T05-00-00.000.log.gz", "audit.log"], "three days at most");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "fifth\n");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
