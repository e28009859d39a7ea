//! exec and attach: stdin, stdout, stderr, terminal size and the final status, over either carrier.
//!
//! Protocols: `v4.channel.k8s.io` to `channel.k8s.io` over SPDY, `v5.channel.k8s.io` to `channel.k8s.io` and the
//! `base64` ones over WebSocket.

use crate::handshake::{self, Agreement, Carrier, WebSocketProtocol};
use crate::process::{Process, TerminalSize};
use crate::spdy::{Connection, ResetStatus, Role};
use crate::status::Outcome;
use crate::websocket::{Channels, Direction, Encoding};
use crate::{BoxRead, BoxWrite, Io, Rejection, StreamError};
use http::Response;
use http::request::Parts;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
const V4_BASE64: &str = "v4.base64.channel.k8s.io";
const V3: &str = "v3.channel.k8s.io";
const V2: &str = "v2.channel.k8s.io";
const V1: &str = "channel.k8s.io";
const V1_BASE64: &str = "base64.channel.k8s.io";

const OVER_SPDY: &[&str] = &[V4, V3, V2, V1];
const OVER_WEBSOCKET: &[WebSocketProtocol] = &[
    WebSocketProtocol { name: V5, encoding: Encoding::Binary, tunnel: false },
    WebSocketProtocol { name: V4, encoding: Encoding::Binary, tunnel: false },
    WebSocketProtocol { name: V4_BASE64, encoding: Encoding::Base64, tunnel: false },
    WebSocketProtocol { name: V1, encoding: Encoding::Binary, tunnel: false },
    WebSocketProtocol { name: V1_BASE64, encoding: Encoding::Base64, tunnel: false },
];

/// How long a client may take to open its streams.
const CREATION_TIMEOUT: Duration = Duration::from_secs(30);

/// A terminal size message is a short line of JSON; more than this is not one.
const MAX_RESIZE_LINE: u64 = 4096;

/// Which streams a request asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streams {
    /// Send stdin.
    pub stdin: bool,
    /// Receive stdout.
    pub stdout: bool,
    /// Receive stderr.
    pub stderr: bool,
    /// With a terminal.
    pub tty: bool,
}

impl Streams {
    /// Drops stderr where there is a terminal, as upstream does, and demands at least one stream.
    ///
    /// # Errors
    /// 400 where no stream is left.
    pub fn checked(mut self) -> Result<Self, Rejection> {
        if self.tty {
            self.stderr = false;
        }
        if !self.stdin && !self.stdout && !self.stderr {
            return Err(Rejection {
                status: http::StatusCode::BAD_REQUEST,
                message: "you must specify at least 1 of stdin, stdout, stderr".into(),
                accepted: &[],
            });
        }
        Ok(self)
    }
}

/// An exec or attach request whose protocol is agreed on.
#[derive(Debug, Clone)]
pub struct Upgrade {
    agreement: Agreement,
    streams: Streams,
}

/// Agrees with the client on a protocol.
///
/// # Errors
/// The answer to give where no upgrade is asked for or no protocol is common.
pub fn negotiate(parts: &Parts, streams: Streams) -> Result<Upgrade, Rejection> {
    let streams = streams.checked()?;
    let agreement = if handshake::is_websocket(parts) {
        handshake::websocket(parts, OVER_WEBSOCKET)?
    } else {
        handshake::spdy(parts, OVER_SPDY)?
    };
    Ok(Upgrade { agreement, streams })
}

impl Upgrade {
    /// The `101 Switching Protocols` answer.
    #[must_use]
    pub fn response(&self) -> Response<()> {
        self.agreement.response()
    }

    /// Takes over the upgraded connection and waits (30 s at most) until the client has opened its streams.
    ///
    /// # Errors
    /// Where the connection breaks, the client opens other streams or takes too long.
    pub async fn accept(self, io: impl Io) -> Result<RemoteCommand, StreamError> {
        let with_status = matches!(self.agreement.protocol.as_str(), V5 | V4 | V4_BASE64);
        match self.agreement.carrier {
            Carrier::Spdy => {
                let with_resize = matches!(self.agreement.protocol.as_str(), V4 | V3);
                let connection = Connection::start(io, Role::Server)?;
                let accepting = over_spdy(connection, self.streams, with_resize, with_status);
                tokio::time::timeout(CREATION_TIMEOUT, accepting).await.map_err(|_| StreamError::CreationTimeout)?
            }
            Carrier::WebSocket { encoding, .. } => {
                Ok(over_websocket(io, encoding, &self.agreement.protocol, self.streams, with_status).await)
            }
            Carrier::Tunnel { .. } => Err(StreamError::Protocol("remote commands are not tunnelled".into())),
        }
    }
}

enum Carried {
    Spdy(Connection),
    /// With the channel of the empty message that tells clients that the command runs.
    WebSocket(Channels, usize),
}

/// The streams of an accepted exec or attach.
pub struct RemoteCommand {
    /// What the client types.
    pub stdin: Option<BoxRead>,
    /// Where output goes.
    pub stdout: Option<BoxWrite>,
    /// Where error output goes.
    pub stderr: Option<BoxWrite>,
    /// Terminal sizes as the client reports them, with a terminal only.
    pub resize: Option<mpsc::Receiver<TerminalSize>>,
    error: Option<BoxWrite>,
    /// Our direction of the stdin stream. Clients send until it ends, so it ends with the command.
    stdin_end: Option<BoxWrite>,
    with_status: bool,
    carried: Carried,
}

async fn over_spdy(
    mut connection: Connection,
    streams: Streams,
    with_resize: bool,
    with_status: bool,
) -> Result<RemoteCommand, StreamError> {
    let wants_resize = streams.tty && with_resize;
    let expected = 1
        + usize::from(streams.stdin)
        + usize::from(streams.stdout)
        + usize::from(streams.stderr)
        + usize::from(wants_resize);
    let mut stdin_end = None;
    let (mut stdin, mut stdout, mut stderr, mut error, mut resize) = (None, None, None, None, None);
    for _ in 0..expected {
        let mut stream = connection.next().await.ok_or(StreamError::Closed)?;
        let kind = stream.headers.get("streamType").unwrap_or_default().to_owned();
        let duplicate = match kind.as_str() {
            "stdin" => stdin.is_some(),
            "stdout" => stdout.is_some(),
            "stderr" => stderr.is_some(),
            "error" => error.is_some(),
            "resize" => resize.is_some(),
            _ => {
                stream.reset(ResetStatus::REFUSED_STREAM).await?;
                return Err(StreamError::Protocol(format!("invalid stream type {kind:?}")));
            }
        };
        if duplicate {
            return Err(StreamError::Protocol(format!("stream {kind:?} was opened twice")));
        }
        stream.accept().await?;
        match kind.as_str() {
            "stdin" => {
                stdin = Some(stream.reader);
                stdin_end = Some(stream.writer);
            }
            "stdout" => stdout = Some(stream.writer),
            "stderr" => stderr = Some(stream.writer),
            "error" => error = Some(stream.writer),
            _ => resize = Some(terminal_sizes(stream.reader, connection.closed())),
        }
    }
    Ok(RemoteCommand {
        stdin,
        stdout,
        stderr,
        resize,
        error,
        stdin_end,
        with_status,
        carried: Carried::Spdy(connection),
    })
}

async fn over_websocket(
    io: impl Io,
    encoding: Encoding,
    protocol: &str,
    streams: Streams,
    with_status: bool,
) -> RemoteCommand {
    let read = |wanted| Direction { read: wanted, write: false };
    let write = |wanted| Direction { read: false, write: wanted };
    let directions =
        [read(streams.stdin), write(streams.stdout), write(streams.stderr), write(true), read(streams.tty)];
    let mut channels = Channels::start(io, encoding, protocol == V5, &directions).await;
    let greeted_on = if streams.stdout {
        1
    } else if streams.stderr {
        2
    } else {
        3
    };
    let closed = channels.closed();
    RemoteCommand {
        stdin: channels.channels[0].reader.take(),
        stdout: channels.channels[1].writer.take(),
        stderr: channels.channels[2].writer.take(),
        error: channels.channels[3].writer.take(),
        resize: channels.channels[4].reader.take().map(|r| terminal_sizes(r, closed)),
        stdin_end: None,
        with_status,
        carried: Carried::WebSocket(channels, greeted_on),
    }
}

/// Decodes the JSON documents (`{"Width":80,"Height":24}`) of a resize stream; what is not one is passed over.
fn terminal_sizes(reader: BoxRead, closed: CancellationToken) -> mpsc::Receiver<TerminalSize> {
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(async move {
        let mut reader = BufReader::new(reader);
        let mut document = Vec::new();
        loop {
            document.clear();
            // A document ends with its brace; newlines between documents are optional.
            let mut limited = (&mut reader).take(MAX_RESIZE_LINE);
            let read = tokio::select! {
                read = limited.read_until(b'}', &mut document) => read,
                () = closed.cancelled() => return,
            };
            match read {
                Ok(n) if n > 0 => {}
                _ => return,
            }
            let Ok(size) = serde_json::from_slice::<serde_json::Value>(&document) else {
                continue;
            };
            let field = |name: &str| size.get(name).and_then(|v| v.as_u64()).and_then(|n| u16::try_from(n).ok());
            if let (Some(width), Some(height)) = (field("Width"), field("Height"))
                && sender.send(TerminalSize { width, height }).await.is_err()
            {
                return;
            }
        }
    });
    receiver
}

impl RemoteCommand {
    /// Cancelled when the client is gone.
    #[must_use]
    pub fn closed(&self) -> CancellationToken {
        match &self.carried {
            Carried::Spdy(c) => c.closed(),
            Carried::WebSocket(c, _) => c.closed(),
        }
    }

    /// Ends the output streams, reports how the command ended and closes the connection.
    pub async fn finish(mut self, outcome: Outcome) {
        for stream in [&mut self.stdin_end, &mut self.stdout, &mut self.stderr].into_iter().flatten() {
            // A client that is gone needs no end.
            let _ = stream.shutdown().await;
        }
        if let Some(mut error) = self.error.take() {
            let text = if self.with_status { outcome.to_status().to_string() } else { outcome.to_text() };
            if let Err(error) = error.write_all(text.as_bytes()).await {
                tracing::debug!(%error, "the client left before the command's status");
            }
            let _ = error.shutdown().await;
        }
        // Nobody reads stdin any more: the reader must not wait for it.
        drop((self.stdin.take(), self.resize.take()));
        match self.carried {
            Carried::Spdy(connection) => connection.close().await,
            Carried::WebSocket(channels, _) => channels.close().await,
        }
    }

    /// Copies between the client and `process` until the process has ended and all its output is sent, then finishes.
    /// Returns early when the client goes away; dropping `process` then is the caller's way of ending it.
    pub async fn run(mut self, process: Process) {
        let Process { stdin, stdout, stderr, control } = process;
        let closed = self.closed();
        // Not with the handshake: kubectl before 1.34 reads messages while it still makes its streams, and says of an early
        // one that its stream is unknown. Starting the process gives it the time.
        if let Carried::WebSocket(channels, on) = &mut self.carried
            && let Err(error) = channels.greet(*on).await
        {
            tracing::debug!(%error, "the client left before its command ran");
        }
        let feeding = match (self.stdin.take(), stdin) {
            (Some(mut from), Some(mut to)) => Some(tokio::spawn(async move {
                // Its failure means that the process closed its stdin, which ends nothing else.
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            })),
            (from, to) => {
                drop((from, to));
                None
            }
        };
        let resizing = self.resize.take().map(|mut sizes| {
            let control = control.clone();
            tokio::spawn(async move {
                while let Some(size) = sizes.recv().await {
                    control.resize(size).await;
                }
            })
        });
        let output = async {
            let (out, err) = (copy(stdout, self.stdout.as_mut()), copy(stderr, self.stderr.as_mut()));
            let ((), (), code) = tokio::join!(out, err, control.wait());
            code
        };
        let outcome = tokio::select! {
            code = output => Some(match code {
                Ok(code) => Outcome::of_exit(code),
                Err(message) => Outcome::Failed(message),
            }),
            () = closed.cancelled() => None,
        };
        for task in [feeding, resizing].into_iter().flatten() {
            task.abort();
        }
        if let Some(outcome) = outcome {
            self.finish(outcome).await;
        }
    }
}

async fn copy(from: Option<BoxRead>, to: Option<&mut BoxWrite>) {
    if let Some(mut from) = from {
        let copied = match to {
            Some(to) => tokio::io::copy(&mut from, to).await,
            None => tokio::io::copy(&mut from, &mut tokio::io::sink()).await,
        };
        if let Err(error) = copied {
            tracing::debug!(%error, "output of a remote command ended early");
        }
    }
}

#[cfg(test)]
mod tests;
