//! A shim's one loop: everything that can happen is a descriptor in `poll`.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use super::container::{Container, Phase};
use super::protocol::{CONTAINER_FILE, Reply, Request, SandboxRecord};
use crate::files;
use crate::init::spec::{InitMessage, SPEC_FILE};
use crate::runtime::Exit;
use crate::seqpacket::{self, MAX_MESSAGE};

/// Time without an event after which memory is given back…
const IDLE: Duration = Duration::from_secs(1);
/// …but not more often than this: what is needed again has to be mapped again. The pause grows up to it.
const MOST_PAUSE: Duration = Duration::from_secs(300);

pub(super) struct Connection {
    socket: OwnedFd,
    subscribed: bool,
}

pub(super) struct Exec {
    pub(super) connection: u64,
    pub(super) channel: Option<OwnedFd>,
    pub(super) pid: i32,
    pub(super) master: Option<OwnedFd>,
    pub(super) started: bool,
    pub(super) failed: bool,
    pub(super) ended: Option<i32>,
}

/// What a descriptor in the poll set stands for.
enum Source {
    Listener,
    Signals,
    Connection(u64),
    Channel(String),
    ExecChannel(u64),
    Stream(String, usize),
    Stdin(String),
    SessionInput(String, u64),
    SessionOutput(String, u64),
    Oom(String),
}

/// When memory is given back.
#[derive(Default)]
pub(super) struct Trimming {
    memory: super::memory::Program,
    /// It was given back since the last event.
    done: bool,
    /// When it was last, and how long to leave it since then.
    last: Option<(Instant, Duration)>,
}

impl Trimming {
    fn busy(&mut self) {
        self.done = false;
    }

    /// Nothing has happened for as long as [`Trimming::patience`] said, or a counter was to be looked at.
    fn idle(&mut self) {
        let now = Instant::now();
        if self.done || self.last.is_some_and(|(at, pause)| now < at + pause) {
            return;
        }
        self.memory.give_back();
        self.done = true;
        let pause = self.last.map_or(IDLE, |(_, pause)| (pause * 2).min(MOST_PAUSE));
        self.last = Some((now, pause));
    }

    /// Milliseconds to wait for an event; for ever where there is nothing to give back.
    fn patience(&self) -> i32 {
        if self.done {
            return -1;
        }
        let pause = self.last.map_or(IDLE, |(at, pause)| (at + pause).saturating_duration_since(Instant::now()));
        i32::try_from(pause.max(IDLE).as_millis() + 1).unwrap_or(i32::MAX)
    }
}

pub(super) struct Shim {
    pub(super) record: SandboxRecord,
    pub(super) exe: OwnedFd,
    pub(super) listener: OwnedFd,
    pub(super) signals: File,
    pub(super) pause: Option<i32>,
    pub(super) connections: BTreeMap<u64, Connection>,
    pub(super) next: u64,
    pub(super) containers: BTreeMap<String, Container>,
    pub(super) execs: BTreeMap<u64, Exec>,
    /// Exit statuses of processes whose helper has not yet told their id.
    pub(super) unclaimed: HashMap<i32, (i32, i32)>,
    /// Helper process ids.
    pub(super) helpers: Vec<i32>,
    pub(super) closing: Option<u64>,
    pub(super) buffer: Vec<u8>,
    pub(super) trimming: Trimming,
}

impl Shim {
    pub(super) fn new(record: SandboxRecord, exe: OwnedFd, listener: OwnedFd, pause: Option<i32>) -> io::Result<Shim> {
        use std::os::fd::FromRawFd;
        // SAFETY: a valid set; the new descriptor is owned at once.
        let signals = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(&mut set, signal);
            }
            libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            File::from_raw_fd(fd)
        };
        Ok(Shim {
            record,
            exe,
            listener,
            signals,
            pause,
            connections: BTreeMap::new(),
            next: 1,
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            unclaimed: HashMap::new(),
            helpers: Vec::new(),
            closing: None,
            buffer: vec![0; 16 * 1024],
            trimming: Trimming::default(),
        })
    }

    pub(super) fn run(mut self) -> ! {
        loop {
            let (mut set, sources) = self.poll_set();
            // SAFETY: `set` is valid for its length.
            let ready = unsafe { libc::poll(set.as_mut_ptr(), set.len() as libc::nfds_t, self.patience()) };
            if ready < 0 {
                continue; // interrupted
            }
            if ready == 0 {
                self.trimming.idle();
            } else {
                self.trimming.busy();
            }
            for (entry, source) in set.iter().zip(sources) {
                if entry.revents != 0 {
                    self.handle(source, entry.revents);
                }
            }
            self.look_for_oom();
            self.settle();
            if let Some(connection) = self.closing
                && !self.containers.values().any(|c| c.phase != Phase::Exited)
                && self.execs.values().all(|e| e.ended.is_some() || e.pid == 0)
            {
                self.reply(connection, &Reply::Ok, None);
                if let Some(pause) = self.pause {
                    // SAFETY: plain call on our own child.
                    unsafe { libc::kill(pause, libc::SIGKILL) };
                }
                std::process::exit(0);
            }
        }
    }

    fn poll_set(&self) -> (Vec<libc::pollfd>, Vec<Source>) {
        let mut set = Vec::new();
        let mut sources = Vec::new();
        let mut add = |fd: RawFd, events: i16, source: Source| {
            set.push(libc::pollfd { fd, events, revents: 0 });
            sources.push(source);
        };
        // Channels before signals: what a process said comes before its end.
        for (id, c) in &self.containers {
            if let Some(channel) = &c.channel {
                add(channel.as_raw_fd(), libc::POLLIN, Source::Channel(id.clone()));
            }
            for (index, stream) in c.streams.iter().enumerate() {
                if let Some(file) = stream {
                    let mut events = if c.wants_output(index) { libc::POLLIN } else { 0 };
                    if c.spec.tty && !c.stdin_backlog.is_empty() {
                        events |= libc::POLLOUT;
                    }
                    if events != 0 {
                        add(file.as_raw_fd(), events, Source::Stream(id.clone(), index));
                    }
                }
            }
            if let Some(stdin) = &c.stdin
                && !c.stdin_backlog.is_empty()
            {
                add(stdin.as_raw_fd(), libc::POLLOUT, Source::Stdin(id.clone()));
            }
            for session in &c.attached {
                if let Some(input) = &session.input
                    && c.wants_input()
                {
                    add(input.as_raw_fd(), libc::POLLIN, Source::SessionInput(id.clone(), session.connection));
                }
                for output in session.outputs.iter().flatten() {
                    if !output.waiting.is_empty() {
                        add(
                            output.file.as_raw_fd(),
                            libc::POLLOUT,
                            Source::SessionOutput(id.clone(), session.connection),
                        );
                    }
                }
            }
            if let Some(oom) = &c.oom {
                add(oom.wake.as_raw_fd(), libc::POLLIN, Source::Oom(id.clone()));
            }
        }
        for (id, exec) in &self.execs {
            if let Some(channel) = &exec.channel {
                add(channel.as_raw_fd(), libc::POLLIN, Source::ExecChannel(*id));
            }
        }
        add(self.signals.as_raw_fd(), libc::POLLIN, Source::Signals);
        for (id, connection) in &self.connections {
            add(connection.socket.as_raw_fd(), libc::POLLIN, Source::Connection(*id));
        }
        add(self.listener.as_raw_fd(), libc::POLLIN, Source::Listener);
        (set, sources)
    }

    fn handle(&mut self, source: Source, events: i16) {
        match source {
            Source::Listener => {
                if let Ok(socket) = seqpacket::accept(&self.listener) {
                    self.connections.insert(self.next, Connection { socket, subscribed: false });
                    self.next += 1;
                }
            }
            Source::Signals => self.take_signals(),
            Source::Connection(id) => self.take_request(id),
            Source::Channel(id) => self.container_channel(&id),
            Source::ExecChannel(id) => self.exec_channel(id),
            Source::Stream(id, index) => {
                if let Some(c) = self.containers.get_mut(&id) {
                    if events & libc::POLLOUT != 0 {
                        c.feed();
                    }
                    if events & !libc::POLLOUT != 0 {
                        c.pump(index, &mut self.buffer);
                    }
                }
            }
            Source::Stdin(id) => {
                if let Some(c) = self.containers.get_mut(&id) {
                    c.feed();
                }
            }
            Source::SessionInput(id, connection) => {
                if let Some(c) = self.containers.get_mut(&id)
                    && let Some(index) = c.attached.iter().position(|a| a.connection == connection)
                {
                    c.take_input(index, &mut self.buffer);
                }
            }
            Source::SessionOutput(id, connection) => {
                if let Some(c) = self.containers.get_mut(&id)
                    && let Some(session) = c.attached.iter_mut().find(|a| a.connection == connection)
                {
                    for slot in &mut session.outputs {
                        if slot.as_mut().is_some_and(|o| !o.flush()) {
                            *slot = None;
                        }
                    }
                }
            }
            Source::Oom(id) => {
                if let Some(c) = self.containers.get_mut(&id)
                    && let Some(oom) = &mut c.oom
                {
                    oom.clear();
                    oom.looks = 100;
                }
            }
        }
    }

    /// How long to poll: for ever, unless a look at an OOM counter or the trimming after some work is due.
    fn patience(&self) -> i32 {
        let due = self.containers.values().any(|c| c.oom.as_ref().is_some_and(|o| o.looks > 0));
        if due { 20 } else { self.trimming.patience() }
    }

    fn look_for_oom(&mut self) {
        let mut told = Vec::new();
        for (id, c) in &mut self.containers {
            if let Some(oom) = &mut c.oom
                && oom.looks > 0
            {
                oom.looks -= 1;
                if oom.happened() {
                    oom.looks = 0;
                    c.oom_killed = true;
                    told.push(id.clone());
                }
            }
        }
        for container in told {
            self.broadcast(&Reply::ContainerOom { container });
        }
    }

    // --- connections ---

    pub(super) fn reply(&mut self, connection: u64, reply: &Reply, fd: Option<&OwnedFd>) {
        let Some(to) = self.connections.get(&connection) else {
            return;
        };
        let Ok(text) = serde_json::to_vec(reply) else {
            return;
        };
        let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
        if seqpacket::send(&to.socket, &text, &fds).is_err() {
            self.disconnect(connection);
        }
    }

    pub(super) fn refuse(&mut self, connection: u64, message: impl ToString) {
        self.reply(connection, &Reply::Error { message: message.to_string(), not_found: false, start: false }, None);
    }

    pub(super) fn not_found(&mut self, connection: u64, container: &str) {
        let message = format!("container {container} not found");
        self.reply(connection, &Reply::Error { message, not_found: true, start: false }, None);
    }

    pub(super) fn broadcast(&mut self, reply: &Reply) {
        let to: Vec<u64> = self.connections.iter().filter(|(_, c)| c.subscribed).map(|(id, _)| *id).collect();
        for id in to {
            self.reply(id, reply, None);
        }
    }

    /// The other end is gone: its exec is killed, its session detached.
    fn disconnect(&mut self, connection: u64) {
        self.connections.remove(&connection);
        if let Some(exec) = self.execs.values().find(|e| e.connection == connection) {
            kill_exec(exec);
        }
        for container in self.containers.values_mut() {
            if let Some(index) = container.attached.iter().position(|a| a.connection == connection) {
                let session = container.attached.remove(index);
                if session.input.is_some() && container.spec.stdin_once && !container.spec.tty {
                    container.stdin_closing = true;
                    container.feed();
                }
            }
        }
    }

    fn take_request(&mut self, id: u64) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let mut message = vec![0; MAX_MESSAGE];
        let (length, fds) = match seqpacket::receive(&connection.socket, &mut message) {
            Ok(Some(got)) => got,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            _ => return self.disconnect(id),
        };
        match serde_json::from_slice::<Request>(&message[..length]) {
            Ok(request) => self.request(id, request, fds),
            Err(e) => self.refuse(id, format!("request: {e}")),
        }
    }

    fn request(&mut self, id: u64, request: Request, fds: Vec<OwnedFd>) {
        match request {
            Request::Subscribe => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.subscribed = true;
                }
                let containers = self.containers.keys().cloned().collect();
                self.reply(
                    id,
                    &Reply::Snapshot { pause: self.pause.unwrap_or(0), pid: std::process::id() as i32, containers },
                    None,
                );
            }
            Request::Create { container } => {
                if self.containers.contains_key(&container) {
                    return self.refuse(id, format!("container {container} already exists"));
                }
                if self.closing.is_some() {
                    return self.refuse(id, "the sandbox is being stopped");
                }
                match self.create(&container, id) {
                    Ok(made) => {
                        self.containers.insert(container, made);
                    }
                    Err(e) => self.refuse(id, e),
                }
            }
            Request::Start { container } => match self.containers.get_mut(&container) {
                None => self.not_found(id, &container),
                Some(c) if c.phase != Phase::Created => {
                    let phase = c.phase;
                    self.refuse(id, format!("container {container} is {phase:?}"))
                }
                Some(c) => {
                    c.phase = Phase::Starting;
                    c.waiting = Some(id);
                    // Before the start, so that nothing the program does comes earlier.
                    c.progress.started_at = Some(SystemTime::now());
                    let start = serde_json::to_vec(&InitMessage::Start).unwrap_or_default();
                    if let Some(channel) = &c.channel {
                        // A failure means the process is gone, which the channel's end will tell.
                        let _ = seqpacket::send(channel, &start, &[]);
                    }
                }
            },
            Request::Signal { container, signal, all } => match self.containers.get(&container) {
                None => self.not_found(id, &container),
                Some(c) => match c.signal(signal, all) {
                    Ok(()) => self.reply(id, &Reply::Ok, None),
                    Err(e) if e.raw_os_error() == Some(libc::ESRCH) => self.reply(id, &Reply::Ok, None),
                    Err(e) => self.refuse(id, format!("signal {signal}: {e}")),
                },
            },
            Request::Exec { container, spec, tty } => self.exec(id, container, &spec, tty, fds),
            Request::Attach { container, stdin, stdout, stderr } => {
                self.attach(id, &container, [stdin, stdout, stderr], fds)
            }
            Request::Resize { container, columns, rows } => match self.containers.get(&container) {
                None => self.not_found(id, &container),
                Some(c) => match c.resize(columns, rows) {
                    Ok(()) => self.reply(id, &Reply::Ok, None),
                    Err(e) => self.refuse(id, format!("resize: {e}")),
                },
            },
            Request::ReopenLog { container } => match self.containers.get_mut(&container) {
                None => self.not_found(id, &container),
                Some(c) => match c.log.as_mut().map_or(Ok(()), |log| log.reopen()) {
                    Ok(()) => self.reply(id, &Reply::Ok, None),
                    Err(e) => self.refuse(id, format!("reopen log: {e}")),
                },
            },
            Request::Forget { container } => {
                if self.containers.get(&container).is_none_or(|c| c.phase == Phase::Exited) {
                    self.containers.remove(&container);
                    self.reply(id, &Reply::Ok, None);
                } else {
                    self.refuse(id, format!("container {container} is running"));
                }
            }
            Request::Shutdown => {
                self.closing = Some(id);
                self.kill_all();
            }
        }
    }

    fn kill_all(&mut self) {
        for container in self.containers.values() {
            // Gone already is as good.
            let _ = container.signal(libc::SIGKILL, true);
        }
        for exec in self.execs.values() {
            kill_exec(exec);
        }
    }

    // --- helpers ---

    pub(super) fn spawn(&mut self, args: &[&str], stdio: [Stdio; 3], channel: &OwnedFd) -> io::Result<()> {
        let [stdin, stdout, stderr] = stdio;
        let socket = channel.as_raw_fd();
        let mut command = Command::new(format!("/proc/self/fd/{}", self.exe.as_raw_fd()));
        command.arg0("gantry").arg("container-init").args(args).env_clear();
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        // SAFETY: dup2 and fcntl are async-signal-safe. Everything else we have open closes itself at execution.
        unsafe {
            command.pre_exec(move || {
                let result = if socket == 3 { libc::fcntl(3, libc::F_SETFD, 0) } else { libc::dup2(socket, 3) };
                if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        // Not waited for through this handle: all children are reaped in one place.
        let child = command.spawn()?;
        self.helpers.push(child.id() as i32);
        Ok(())
    }

    fn create(&mut self, id: &str, connection: u64) -> Result<Container, String> {
        let dir = self.record.containers_dir.join(id);
        let spec = files::read_json(&dir.join(CONTAINER_FILE)).map_err(|e| e.to_string())?;
        let mut container = Container::new(dir.clone(), spec).map_err(|e| e.to_string())?;
        let text = |e: io::Error| format!("streams: {e}");
        let mut stdio = [Stdio::null(), Stdio::null(), Stdio::null()];
        if !container.spec.tty {
            if container.spec.stdin {
                let (reader, writer) = io::pipe().map_err(text)?;
                stdio[0] = Stdio::from(OwnedFd::from(reader));
                container.stdin = Some(nonblocking(writer.into()).map_err(text)?);
            }
            for index in 0..2 {
                let (reader, writer) = io::pipe().map_err(text)?;
                stdio[index + 1] = Stdio::from(OwnedFd::from(writer));
                container.streams[index] = Some(nonblocking(reader.into()).map_err(text)?);
            }
        }
        let (ours, theirs) = seqpacket::pair().map_err(|e| format!("socket: {e}"))?;
        let spec_path = dir.join(SPEC_FILE);
        self.spawn(&["create", &spec_path.to_string_lossy()], stdio, &theirs).map_err(|e| format!("helper: {e}"))?;
        container.channel = Some(OwnedFd::from(nonblocking(ours).map_err(text)?));
        container.waiting = Some(connection);
        Ok(container)
    }

    fn container_channel(&mut self, id: &str) {
        let mut message = [0; 8192];
        while let Some(c) = self.containers.get_mut(id) {
            let Some(channel) = &c.channel else { return };
            let event = match seqpacket::receive(channel, &mut message) {
                Ok(Some((length, fds))) => serde_json::from_slice(&message[..length]).ok().map(|m| (m, fds)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                _ => None,
            };
            match event {
                Some((InitMessage::Pid(pid), _)) => {
                    c.progress.pid = pid;
                    c.save();
                    if let Some((code, signal)) = self.unclaimed.remove(&pid) {
                        // It ended before we knew its id: what it had to say is behind this message.
                        self.container_channel(id);
                        return self.container_ended(id, code, signal);
                    }
                }
                Some((InitMessage::Terminal, fds)) => {
                    c.streams[0] = fds.into_iter().next().and_then(|fd| nonblocking(fd).ok());
                }
                Some((InitMessage::Ready, _)) => {
                    c.phase = Phase::Created;
                }
                Some((InitMessage::Failed(message), _)) => {
                    return self.container_failed(id, message);
                }
                Some((InitMessage::Start, _)) => {}
                None => return self.channel_ended(id),
            }
            // Ready may overtake the id, which another process sends.
            if let Some(c) = self.containers.get_mut(id)
                && c.phase == Phase::Created
                && c.progress.pid != 0
                && let Some(connection) = c.waiting.take()
            {
                let pid = c.progress.pid;
                self.reply(connection, &Reply::Created { pid }, None);
            }
        }
    }

    /// The process executed its program, or died before.
    fn channel_ended(&mut self, id: &str) {
        let Some(c) = self.containers.get_mut(id) else {
            return;
        };
        c.channel = None;
        match c.phase {
            Phase::Starting => {
                c.phase = Phase::Running;
                c.save();
                if let Some(connection) = c.waiting.take() {
                    self.reply(connection, &Reply::Ok, None);
                }
            }
            Phase::Creating => self.container_failed(id, "the container's process ended while it was set up".into()),
            _ => {}
        }
    }

    fn container_failed(&mut self, id: &str, message: String) {
        let Some(c) = self.containers.get_mut(id) else {
            return;
        };
        c.channel = None;
        let creating = c.phase == Phase::Creating;
        let waiting = c.waiting.take();
        let error = Reply::Error { message: message.clone(), not_found: false, start: true };
        if creating {
            // As if it had never been; whatever process there is ends by itself.
            self.containers.remove(id);
        } else {
            c.drain(&mut self.buffer);
            let exit = c.finish(Exit {
                code: 128,
                signal: 0,
                oom_killed: false,
                reason: "StartError".into(),
                message,
                finished_at: SystemTime::now(),
            });
            self.broadcast(&Reply::ContainerExited { container: id.to_string(), exit });
        }
        if let Some(connection) = waiting {
            self.reply(connection, &error, None);
        }
    }

    // --- ends ---

    fn take_signals(&mut self) {
        let mut info = [0u8; std::mem::size_of::<libc::signalfd_siginfo>()];
        while matches!(self.signals.read(&mut info), Ok(n) if n == info.len()) {
            let signal = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]) as i32;
            if signal == libc::SIGTERM || signal == libc::SIGINT {
                self.closing.get_or_insert(0);
                self.kill_all();
            }
        }
        // What processes said before they ended comes first.
        for id in self.containers.keys().cloned().collect::<Vec<_>>() {
            self.container_channel(&id);
        }
        for id in self.execs.keys().copied().collect::<Vec<_>>() {
            self.exec_channel(id);
        }
        self.reap();
    }

    fn reap(&mut self) {
        loop {
            let mut status = 0;
            // SAFETY: `status` is valid for the call.
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
            if pid <= 0 {
                break;
            }
            let (code, signal) = if libc::WIFSIGNALED(status) {
                (128 + libc::WTERMSIG(status), libc::WTERMSIG(status))
            } else {
                (libc::WEXITSTATUS(status), 0)
            };
            if let Some(index) = self.helpers.iter().position(|h| *h == pid) {
                self.helpers.swap_remove(index);
            } else if self.pause == Some(pid) {
                // With its first process the namespace and all in it are gone; nothing can be started here any more.
                self.pause = None;
                self.closing.get_or_insert(0);
                self.kill_all();
            } else if let Some(id) =
                self.containers.iter().find(|(_, c)| c.progress.pid == pid).map(|(id, _)| id.clone())
            {
                self.container_channel(&id);
                self.container_ended(&id, code, signal);
            } else if let Some(exec) = self.execs.values_mut().find(|e| e.pid == pid) {
                exec.ended = Some(code);
            } else if !self.helpers.is_empty() || self.someone_waits_for_an_id() {
                self.unclaimed.insert(pid, (code, signal));
            }
        }
        if self.helpers.is_empty() && !self.someone_waits_for_an_id() {
            self.unclaimed.clear();
        }
    }

    fn someone_waits_for_an_id(&self) -> bool {
        self.containers.values().any(|c| c.channel.is_some() && c.progress.pid == 0)
            || self.execs.values().any(|e| e.channel.is_some() && e.pid == 0)
    }

    fn container_ended(&mut self, id: &str, code: i32, signal: i32) {
        let Some(c) = self.containers.get_mut(id) else {
            return;
        };
        if c.phase == Phase::Exited {
            return; // its start failed, which has been told
        }
        let waiting = c.waiting.take();
        let exit = c.ended(code, signal, &mut self.buffer);
        if let Some(connection) = waiting {
            self.refuse(connection, format!("the container ended with code {code}"));
        }
        self.broadcast(&Reply::ContainerExited { container: id.to_string(), exit });
    }

    /// Ends sessions and execs whose last word has been passed on.
    fn settle(&mut self) {
        let mut done: Vec<(u64, i32)> = Vec::new();
        for c in self.containers.values_mut() {
            let Some(exit) = &c.progress.exit else {
                continue;
            };
            let code = exit.code;
            c.attached.retain(|a| {
                let waits = a.outputs.iter().flatten().any(|o| !o.waiting.is_empty());
                if !waits {
                    done.push((a.connection, code));
                }
                waits
            });
        }
        let mut over = Vec::new();
        for (id, exec) in &self.execs {
            match exec.ended {
                Some(code) if exec.started => {
                    done.push((exec.connection, code));
                    over.push(*id);
                }
                Some(_) if exec.failed => over.push(*id),
                None if exec.failed && exec.pid == 0 => over.push(*id),
                _ => {}
            }
        }
        for id in over {
            self.execs.remove(&id);
        }
        for (connection, code) in done {
            self.reply(connection, &Reply::Exited { code }, None);
        }
    }
}

pub(super) fn kill_exec(exec: &Exec) {
    if exec.pid > 0 && exec.ended.is_none() {
        // SAFETY: plain calls; the process is our unreaped child and leads its own group.
        unsafe {
            libc::kill(-exec.pid, libc::SIGKILL);
            libc::kill(exec.pid, libc::SIGKILL);
        }
    }
}

pub(super) fn nonblocking(fd: OwnedFd) -> io::Result<File> {
    // SAFETY: plain calls on an open descriptor.
    unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        if flags < 0 || libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(File::from(fd))
}
