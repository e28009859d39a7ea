//! Execs and attached sessions in a shim.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;

use super::container::{Attached, Output, Phase};
use super::protocol::Reply;
use super::server::{Exec, Shim, kill_exec, nonblocking};
use crate::init::spec::InitMessage;
use crate::seqpacket;

impl Shim {
    pub(super) fn exec(&mut self, connection: u64, container: String, spec: &Path, tty: bool, fds: Vec<OwnedFd>) {
        let Some(c) = self.containers.get(&container) else {
            return self.not_found(connection, &container);
        };
        if c.phase != Phase::Running {
            return self.refuse(connection, format!("container {container} is not running"));
        }
        let mut stdio = [Stdio::null(), Stdio::null(), Stdio::null()];
        if !tty {
            for (slot, fd) in stdio.iter_mut().zip(fds) {
                *slot = Stdio::from(fd);
            }
        }
        let pid = c.progress.pid.to_string();
        let result = seqpacket::pair().and_then(|(ours, theirs)| {
            self.spawn(&["exec", &pid, &spec.to_string_lossy()], stdio, &theirs)?;
            nonblocking(ours)
        });
        match result {
            Ok(channel) => {
                let exec = Exec {
                    connection,
                    channel: Some(channel.into()),
                    pid: 0,
                    master: None,
                    started: false,
                    failed: false,
                    ended: None,
                };
                self.execs.insert(self.next, exec);
                self.next += 1;
            }
            Err(e) => self.refuse(connection, format!("helper: {e}")),
        }
    }

    pub(super) fn exec_channel(&mut self, id: u64) {
        let mut message = [0; 8192];
        while let Some(exec) = self.execs.get_mut(&id) {
            let Some(channel) = &exec.channel else { return };
            let event = match seqpacket::receive(channel, &mut message) {
                Ok(Some((length, fds))) => serde_json::from_slice(&message[..length]).ok().map(|m| (m, fds)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                _ => None,
            };
            match event {
                Some((InitMessage::Pid(pid), _)) => {
                    exec.pid = pid;
                    if let Some((code, signal)) = self.unclaimed.remove(&pid) {
                        exec.ended = Some(if signal > 0 { 128 + signal } else { code });
                    }
                    if !self.connections.contains_key(&exec.connection) {
                        kill_exec(exec);
                    }
                }
                Some((InitMessage::Terminal, fds)) => exec.master = fds.into_iter().next(),
                Some((InitMessage::Failed(message), _)) => {
                    exec.channel = None;
                    exec.failed = true;
                    let connection = exec.connection;
                    self.reply(connection, &Reply::Error { message, not_found: false, start: true }, None);
                }
                Some(_) => {}
                None => {
                    exec.channel = None;
                    if exec.pid == 0 {
                        exec.failed = true;
                        let connection = exec.connection;
                        self.refuse(connection, "the helper ended early");
                    } else {
                        exec.started = true;
                        let (connection, master) = (exec.connection, exec.master.take());
                        self.reply(connection, &Reply::Started, master.as_ref());
                    }
                }
            }
        }
    }

    pub(super) fn attach(&mut self, connection: u64, container: &str, wanted: [bool; 3], fds: Vec<OwnedFd>) {
        let Some(c) = self.containers.get_mut(container) else {
            return self.not_found(connection, container);
        };
        if !matches!(c.phase, Phase::Running | Phase::Created | Phase::Starting) {
            return self.refuse(connection, format!("container {container} is not running"));
        }
        let mut fds = fds.into_iter();
        let mut next = |want: bool| -> io::Result<Option<File>> {
            if !want {
                return Ok(None);
            }
            let fd = fds.next().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
            nonblocking(fd).map(Some)
        };
        let streams = (|| io::Result::Ok([next(wanted[0])?, next(wanted[1])?, next(wanted[2])?]))();
        match streams {
            Ok([input, out, err]) => {
                let output = |file: Option<File>| file.map(|file| Output { file, waiting: Vec::new() });
                let outputs = [output(out), output(err)];
                c.attached.push(Attached { connection, input, outputs });
                self.reply(connection, &Reply::Ok, None);
            }
            Err(e) => self.refuse(connection, format!("streams: {e}")),
        }
    }
}
