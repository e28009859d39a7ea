//! The process under test: `gantry up` or `gantry server` on a data directory of its own.

use super::keep_alive::KeepAlive;
use super::{Bench, process};
use anyhow::{Context, Result, bail};
use gantry_client::{Client, Credentials, Https, HttpsConfig, Kubeconfig, TokenSource};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long anything may take before it counts as broken. Never a measure of speed.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// How long Gantry may take to end after SIGTERM.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// Lines of output kept.
const LINES_MAX: usize = 2_000;

type Lines = Vec<(Instant, String)>;

/// A running Gantry. Everything it made is gone when the value is dropped.
pub struct Gantry {
    child: Child,
    binary: PathBuf,
    data: tempfile::TempDir,
    node: bool,
    http2: bool,
    spawned: Instant,
    output: watch::Receiver<Lines>,
}

impl Gantry {
    /// Starts `gantry up` on an empty data directory and returns at once.
    pub fn spawn_up(bench: &Bench) -> Result<Self> {
        Self::spawn(bench, "up", &["--node-name", "node-1"])
    }

    /// Starts `gantry up` and waits until its node is Ready.
    pub async fn up(bench: &Bench) -> Result<Self> {
        let mut gantry = Self::spawn_up(bench)?;
        gantry.said("is Ready").await?;
        Ok(gantry)
    }

    /// Starts `gantry server` and waits until the API server says that it is ready.
    pub async fn server(bench: &Bench) -> Result<Self> {
        Self::server_with(bench, &[]).await
    }

    /// The same with further options.
    pub async fn server_with(bench: &Bench, options: &[&str]) -> Result<Self> {
        let mut gantry = Self::spawn(bench, "server", options)?;
        gantry.said("API server").await?;
        let client = gantry.client()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match client.call(http::Method::GET, "/readyz", None, bytes::Bytes::new()).await {
                Ok(_) => return Ok(gantry),
                Err(error) if Instant::now() > deadline => return Err(error).context("the API server is not ready"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    fn spawn(bench: &Bench, role: &str, options: &[&str]) -> Result<Self> {
        let data = tempfile::Builder::new()
            .prefix("gantry-bench-")
            .tempdir_in(&bench.directory)
            .with_context(|| format!("cannot make a data directory in {}", bench.directory.display()))?;
        let spawned = Instant::now();
        let mut child = Command::new(&bench.binary)
            .arg(role)
            .args(["--data-dir".as_ref(), data.path().as_os_str()])
            .args(["--kubeconfig".as_ref(), data.path().join("kubeconfig").as_os_str()])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", bench.binary.display()))?;
        let (sender, output) = watch::channel(Lines::new());
        let sender = Arc::new(sender);
        if let Some(stdout) = child.stdout.take() {
            follow(stdout, sender.clone());
        }
        if let Some(stderr) = child.stderr.take() {
            follow(stderr, sender);
        }
        Ok(Self { child, binary: bench.binary.clone(), data, node: role == "up", http2: bench.http2, spawned, output })
    }

    /// When the process was started.
    pub fn spawned(&self) -> Instant {
        self.spawned
    }

    /// Waits until a line of output holds `text`, and returns how long after the start that was.
    ///
    /// # Errors
    /// Where it ends or takes too long; with what it said instead.
    pub async fn said(&mut self, text: &str) -> Result<Duration> {
        let at = |lines: &Lines| lines.iter().find(|(_, line)| line.contains(text)).map(|(at, _)| *at);
        let waiting = self.output.wait_for(|lines| at(lines).is_some());
        let found = match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(Ok(lines)) => at(&lines),
            Ok(Err(_)) | Err(_) => None,
        };
        match found {
            Some(at) => Ok(at - self.spawned),
            None => bail!("gantry did not say {text:?}:\n{}", self.log()),
        }
    }

    fn log(&self) -> String {
        let lines = self.output.borrow();
        let last: Vec<&str> = lines.iter().rev().take(30).map(|(_, line)| line.as_str()).collect();
        last.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// A client of the administrator, with a connection of its own.
    ///
    /// # Errors
    /// Where the kubeconfig cannot be used.
    pub fn client(&self) -> Result<Client> {
        self.client_as(None)
    }

    fn config(&self) -> Result<HttpsConfig> {
        let kubeconfig = Kubeconfig::read(&self.data.path().join("kubeconfig"))?;
        Ok(kubeconfig.https(None, self.data.path())?)
    }

    /// The administrator's, or where there is a token, its owner's.
    fn client_as(&self, token: Option<&str>) -> Result<Client> {
        let mut config = self.config()?;
        if let Some(token) = token {
            config.credentials = Credentials::Token(TokenSource::Fixed(token.to_owned()));
        }
        Ok(Client::new(Arc::new(Https::new(&config)?), "gantry-bench"))
    }

    /// Clients of a token's owner. They are not connected yet: each connects where it is first used, and its connection
    /// lives with that runtime.
    ///
    /// # Errors
    /// Where the kubeconfig cannot be used.
    pub fn clients_of(&self, token: &str, count: usize) -> Result<Vec<Client>> {
        (0..count).map(|_| self.client_as(Some(token))).collect()
    }

    /// Several of them, each with a connection that is up already.
    ///
    /// # Errors
    /// Where the server cannot be reached.
    pub async fn clients(&self, count: usize) -> Result<Vec<Client>> {
        connected(count, || self.client()).await
    }

    /// The same for load: each sends one request at a time and reads short answers (see [`KeepAlive`]), unless
    /// `--http2` asks for clients like others.
    ///
    /// # Errors
    /// Where the server cannot be reached.
    pub async fn load_clients(&self, count: usize) -> Result<Vec<Client>> {
        if self.http2 {
            return self.clients(count).await;
        }
        let config = self.config()?;
        connected(count, || Ok(Client::new(Arc::new(KeepAlive::new(&config)?), "gantry-bench"))).await
    }

    /// The main process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the data directory takes of the disk, in bytes.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn disk(&self) -> Result<u64> {
        process::disk(self.data.path())
    }

    /// CPU time of the main process so far.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn cpu(&self) -> Result<Duration> {
        process::cpu(self.pid()).with_context(|| format!("gantry has ended:\n{}", self.log()))
    }

    /// The shims of this Gantry's pods.
    ///
    /// # Errors
    /// Where `/proc` cannot be read.
    pub fn shims(&self) -> Result<Vec<u32>> {
        let data = self.data.path().to_string_lossy();
        process::find(|arguments| matches!(arguments, ["shim", directory, ..] if directory.starts_with(&*data)))
    }

    /// Resident memory of the main process and proportional memory of its shims, in bytes.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn memory(&self) -> Result<u64> {
        let mut sum = process::resident(self.pid()).with_context(|| format!("gantry has ended:\n{}", self.log()))?;
        for shim in self.shims()? {
            sum += process::proportional(shim)?;
        }
        Ok(sum)
    }

    /// Waits until the main process uses less than a twentieth of a core for two seconds.
    ///
    /// # Errors
    /// Where it ends.
    pub async fn settle(&self) -> Result<()> {
        let window = Duration::from_secs(2);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let before = self.cpu()?;
            tokio::time::sleep(window).await;
            if self.cpu()? - before < window / 20 {
                return Ok(());
            }
            if Instant::now() > deadline {
                eprintln!("  note: gantry is still busy after {} s", PATIENCE.as_secs());
                return Ok(());
            }
        }
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        if let Err(error) = nix::sys::signal::kill(pid, signal) {
            eprintln!("cannot signal gantry ({pid}): {error}");
        }
    }
}

impl Drop for Gantry {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.signal(nix::sys::signal::Signal::SIGTERM);
            let deadline = Instant::now() + STOP_WITHIN;
            while let Ok(None) = self.child.try_wait() {
                if Instant::now() > deadline {
                    eprintln!("gantry did not end within {} s of SIGTERM:\n{}", STOP_WITHIN.as_secs(), self.log());
                    self.signal(nix::sys::signal::Signal::SIGKILL);
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            if let Err(error) = self.child.wait() {
                eprintln!("cannot wait for gantry: {error}");
            }
        }
        if self.node {
            let down = Command::new(&self.binary)
                .arg("down")
                .args(["--data-dir".as_ref(), self.data.path().as_os_str()])
                .output();
            match down {
                Ok(output) if output.status.success() => {}
                Ok(output) => eprintln!("gantry down failed: {}", String::from_utf8_lossy(&output.stderr)),
                Err(error) => eprintln!("cannot run gantry down: {error}"),
            }
        }
    }
}

async fn connected(count: usize, client: impl Fn() -> Result<Client>) -> Result<Vec<Client>> {
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        let client = client()?;
        client.call(http::Method::GET, "/readyz", None, bytes::Bytes::new()).await?;
        clients.push(client);
    }
    Ok(clients)
}

/// Reads lines, with the time each came, until the stream ends.
fn follow(stream: impl Read + Send + 'static, lines: Arc<watch::Sender<Lines>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let at = Instant::now();
            lines.send_modify(|lines| {
                if lines.len() == LINES_MAX {
                    // The first lines tell of the start, the last ones of the end.
                    lines.remove(LINES_MAX / 2);
                }
                lines.push((at, line));
            });
        }
    });
}
