//! One container in a shim: its process, streams, log and attached sessions.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::SystemTime;

use super::cri_log::{Log, Stream};
use super::protocol::{ContainerProgress, PROGRESS_FILE, ShimContainer};
use crate::cgroup::{Cgroup, oom_kill_counter};
use crate::files;
use crate::runtime::Exit;

/// Bytes that may wait for a slow reader before the container has to.
const BACKLOG: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Creating,
    Created,
    Starting,
    Running,
    Exited,
}

/// A session attached to the container's streams.
pub(super) struct Attached {
    /// The connection that asked for it.
    pub(super) connection: u64,
    pub(super) input: Option<File>,
    pub(super) outputs: [Option<Output>; 2],
}

pub(super) struct Output {
    pub(super) file: File,
    pub(super) waiting: Vec<u8>,
}

impl Output {
    /// Writes what can be written now; false when the reader is gone.
    pub(super) fn flush(&mut self) -> bool {
        while !self.waiting.is_empty() {
            match self.file.write(&self.waiting) {
                Ok(0) => return false,
                Ok(n) => {
                    self.waiting.drain(..n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.waiting = Vec::new();
        true
    }
}

pub(super) struct Container {
    pub(super) dir: PathBuf,
    pub(super) spec: ShimContainer,
    pub(super) phase: Phase,
    pub(super) progress: ContainerProgress,
    /// Socket to the helper and then the new process, until it executes its program.
    pub(super) channel: Option<OwnedFd>,
    /// Connection that waits for the answer to create or start.
    pub(super) waiting: Option<u64>,
    pub(super) stdin: Option<File>,
    /// Input read from sessions and not yet taken by the container.
    pub(super) stdin_backlog: Vec<u8>,
    pub(super) stdin_closing: bool,
    /// stdout and stderr; with a terminal the first is its master.
    pub(super) streams: [Option<File>; 2],
    pub(super) log: Option<Log>,
    pub(super) attached: Vec<Attached>,
    pub(super) oom: Option<OomWatch>,
    pub(super) oom_killed: bool,
}

impl Container {
    pub(super) fn new(dir: PathBuf, spec: ShimContainer) -> io::Result<Container> {
        let log = match &spec.log_path {
            Some(path) => Some(
                Log::open(path).map_err(|e| io::Error::new(e.kind(), format!("log file {}: {e}", path.display())))?,
            ),
            None => None,
        };
        let oom = OomWatch::new(&spec.cgroup);
        Ok(Container {
            dir,
            spec,
            phase: Phase::Creating,
            progress: ContainerProgress::default(),
            channel: None,
            waiting: None,
            stdin: None,
            stdin_backlog: Vec::new(),
            stdin_closing: false,
            streams: [None, None],
            log,
            attached: Vec::new(),
            oom,
            oom_killed: false,
        })
    }

    /// Writes how far it is. Only an end must survive a power cut: what runs does not.
    pub(super) fn save(&self) {
        let path = self.dir.join(PROGRESS_FILE);
        // The main process learns the exit from our event too; a full disk must not stop us here.
        let _ = match self.progress.exit {
            Some(_) => files::write_json(&path, &self.progress),
            None => files::replace_json_volatile(&path, &self.progress),
        };
    }

    /// False while a session's backlog is full: then the container waits, as it would at a terminal.
    pub(super) fn wants_output(&self, index: usize) -> bool {
        self.attached.iter().all(|a| a.outputs[index].as_ref().is_none_or(|o| o.waiting.len() < BACKLOG))
    }

    /// Sessions are only read while the container takes what they sent.
    pub(super) fn wants_input(&self) -> bool {
        self.stdin_backlog.len() < BACKLOG
    }

    /// Reads once from a stream; `false` at its end.
    pub(super) fn pump(&mut self, index: usize, buffer: &mut [u8]) -> bool {
        let Some(file) = &mut self.streams[index] else {
            return false;
        };
        match file.read(buffer) {
            Ok(n) if n > 0 => {
                self.deliver(index, &buffer[..n]);
                true
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => true,
            // A terminal whose last user is gone answers EIO.
            _ => {
                self.streams[index] = None;
                self.end_stream(index);
                false
            }
        }
    }

    fn stream(index: usize) -> Stream {
        if index == 0 { Stream::Stdout } else { Stream::Stderr }
    }

    fn deliver(&mut self, index: usize, data: &[u8]) {
        if let Some(log) = &mut self.log {
            log.write(Self::stream(index), data);
        }
        for attached in &mut self.attached {
            if let Some(output) = &mut attached.outputs[index] {
                output.waiting.extend_from_slice(data);
                if !output.flush() {
                    attached.outputs[index] = None;
                }
            }
        }
    }

    fn end_stream(&mut self, index: usize) {
        if let Some(log) = &mut self.log {
            log.finish(Self::stream(index));
        }
    }

    /// Reads what is left in the pipes after the end of the process, and closes them.
    pub(super) fn drain(&mut self, buffer: &mut [u8]) {
        for index in 0..2 {
            while let Some(file) = &mut self.streams[index] {
                match file.read(buffer) {
                    Ok(n) if n > 0 => self.deliver(index, &buffer[..n]),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    _ => {
                        self.streams[index] = None;
                        self.end_stream(index);
                    }
                }
            }
        }
        self.stdin = None;
        self.stdin_backlog = Vec::new();
        self.log = None;
    }

    /// Takes input of one session.
    pub(super) fn take_input(&mut self, session: usize, buffer: &mut [u8]) {
        let Some(attached) = self.attached.get_mut(session) else {
            return;
        };
        let Some(input) = &mut attached.input else {
            return;
        };
        match input.read(buffer) {
            Ok(n) if n > 0 => {
                self.stdin_backlog.extend_from_slice(&buffer[..n]);
                self.feed();
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            _ => {
                attached.input = None;
                if self.spec.stdin_once && !self.spec.tty {
                    self.stdin_closing = true;
                    self.feed();
                }
            }
        }
    }

    /// Passes waiting input on.
    pub(super) fn feed(&mut self) {
        let target = if self.spec.tty { &mut self.streams[0] } else { &mut self.stdin };
        let Some(file) = target else {
            self.stdin_backlog.clear();
            return;
        };
        while !self.stdin_backlog.is_empty() {
            match file.write(&self.stdin_backlog) {
                Ok(n) if n > 0 => {
                    self.stdin_backlog.drain(..n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                _ => {
                    self.stdin_backlog.clear();
                    if !self.spec.tty {
                        self.stdin = None;
                    }
                    return;
                }
            }
        }
        if self.stdin_closing {
            self.stdin = None;
        }
    }

    pub(super) fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        match (&self.streams[0], self.spec.tty) {
            (Some(master), true) => set_size(master, columns, rows),
            _ => Ok(()),
        }
    }

    /// Signals the first process, or all.
    pub(super) fn signal(&self, signal: i32, all: bool) -> io::Result<()> {
        if self.phase == Phase::Exited || self.progress.pid == 0 {
            return Ok(());
        }
        if all
            && signal == libc::SIGKILL
            && self.spec.kill_rest
            && let Ok(cgroup) = Cgroup::at(&self.spec.cgroup)
        {
            cgroup.kill();
        }
        // SAFETY: plain call; the process is our unreaped child, so the id is still its own.
        if unsafe { libc::kill(self.progress.pid, signal) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Notes the end of the first process.
    pub(super) fn ended(&mut self, code: i32, signal: i32, buffer: &mut [u8]) -> Exit {
        if self.spec.kill_rest
            && let Ok(cgroup) = Cgroup::at(&self.spec.cgroup)
        {
            cgroup.kill();
        }
        self.drain(buffer);
        if let Some(oom) = &mut self.oom {
            self.oom_killed |= oom.happened();
        }
        self.oom = None;
        self.channel = None;
        self.phase = Phase::Exited;
        // A container that was never started cannot have run out of memory by its own doing.
        let oom_killed = self.oom_killed && code != 0;
        let reason = match (oom_killed, code) {
            (true, _) => "OOMKilled",
            (_, 0) => "Completed",
            _ => "Error",
        };
        let exit = Exit {
            code,
            signal,
            oom_killed,
            reason: reason.into(),
            message: String::new(),
            finished_at: SystemTime::now(),
        };
        self.finish(exit)
    }

    /// Notes an end with a reason of its own.
    pub(super) fn finish(&mut self, exit: Exit) -> Exit {
        self.phase = Phase::Exited;
        self.progress.exit = Some(exit.clone());
        self.save();
        exit
    }
}

pub(super) fn set_size(terminal: &impl AsRawFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` is valid for the call.
    if unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Wakes when the kernel kills for want of memory in a cgroup.
pub(super) struct OomWatch {
    /// eventfd (version 1) or inotify (version 2).
    pub(super) wake: File,
    counter: PathBuf,
    seen: u64,
    /// Looks still to be taken: version 1 wakes us before it kills, and the count grows only afterwards.
    pub(super) looks: u8,
    /// Version 1: must stay open for the eventfd to be triggered.
    _control: Option<File>,
}

impl OomWatch {
    fn new(cgroup: &str) -> Option<OomWatch> {
        let cgroup = Cgroup::at(cgroup).ok()?;
        let dir = cgroup.directory("memory")?;
        use std::os::fd::FromRawFd;
        if cgroup.is_v2() {
            let counter = dir.join("memory.events");
            let path = std::ffi::CString::new(counter.to_str()?).ok()?;
            // SAFETY: the new descriptor is owned at once; the path is a valid C string.
            let wake = unsafe {
                let fd = libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK);
                if fd < 0 {
                    return None;
                }
                let wake = File::from_raw_fd(fd);
                if libc::inotify_add_watch(fd, path.as_ptr(), libc::IN_MODIFY) < 0 {
                    return None;
                }
                wake
            };
            return Some(OomWatch { wake, counter, seen: 0, looks: 0, _control: None });
        }
        let counter = dir.join("memory.oom_control");
        let control = File::open(&counter).ok()?;
        // SAFETY: the new descriptor is owned at once.
        let wake = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return None;
            }
            File::from_raw_fd(fd)
        };
        let line = format!("{} {}", wake.as_raw_fd(), control.as_raw_fd());
        fs::write(dir.join("cgroup.event_control"), line).ok()?;
        Some(OomWatch { wake, counter, seen: 0, looks: 0, _control: Some(control) })
    }

    /// True when the count has grown since the last call.
    pub(super) fn happened(&mut self) -> bool {
        let now = oom_kill_counter(&self.counter);
        let grown = now > self.seen;
        self.seen = now;
        grown
    }

    /// Clears the wake-up.
    pub(super) fn clear(&mut self) {
        let mut buffer = [0; 512];
        while matches!(self.wake.read(&mut buffer), Ok(n) if n == buffer.len()) {}
    }
}
