//! A multiplexed SPDY connection: one task reads frames, one writes them, streams are pairs of bounded queues.
//!
//! Flow control: every byte taken in is granted again by WINDOW_UPDATE, but the peer's window is not waited for:
//! `moby/spdystream`, which client-go and kubectl use, never sends WINDOW_UPDATE, so that a sender that kept to the
//! initial 64 KiB would stop for good. Back-pressure is the transport's: a stream whose reader is slow stops the
//! connection after 1 MiB.

use super::frame::{Frame, FrameHeader, ResetStatus, encode_data};
use super::headers::{HeaderCompressor, HeaderDecompressor, Headers};
use crate::pipe::{CHUNK, INBOUND_CHUNKS, OUTBOUND_CHUNKS, Outgoing, QueueReader, QueueWriter};
use crate::{BoxRead, BoxWrite, Io, StreamError};
use bytes::{Bytes, BytesMut};
use std::collections::HashMap;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Streams open at once before further ones are refused.
const MAX_STREAMS: usize = 4096;

/// Received bytes after which a window is granted again: half of SPDY's initial window.
const GRANT_AFTER: u32 = 32 * 1024;

/// How long a closed connection waits for its peer to have read everything.
const LINGER: Duration = Duration::from_secs(5);

type Queue = mpsc::Sender<Outgoing<Control>>;

#[derive(Debug)]
enum Control {
    Frame(Frame),
    Close,
}

/// Which side of the connection this is; clients open odd streams, servers even ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Accepts streams.
    Server,
    /// Opens streams.
    Client,
}

/// A stream of a connection.
pub struct Stream {
    /// Stream id.
    pub id: u32,
    /// Headers it was opened with.
    pub headers: Headers,
    /// What the peer sends.
    pub reader: BoxRead,
    /// What the peer receives; shutting it down ends this direction.
    pub writer: BoxWrite,
    queue: Queue,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("id", &self.id).field("headers", &self.headers).finish_non_exhaustive()
    }
}

impl Stream {
    /// Sends the SYN_REPLY that clients wait for before they use the stream.
    ///
    /// # Errors
    /// Where the connection is closed.
    pub async fn accept(&mut self) -> Result<(), StreamError> {
        let reply = Frame::SynReply { stream: self.id, headers: Headers::default(), fin: false };
        self.queue.send(Outgoing::Control(Control::Frame(reply))).await.map_err(|_| StreamError::Closed)
    }

    /// Resets the stream.
    ///
    /// # Errors
    /// Where the connection is closed.
    pub async fn reset(&mut self, status: ResetStatus) -> Result<(), StreamError> {
        let reset = Frame::RstStream { stream: self.id, status };
        self.queue.send(Outgoing::Control(Control::Frame(reset))).await.map_err(|_| StreamError::Closed)
    }
}

/// A running connection.
pub struct Connection {
    incoming: mpsc::Receiver<Stream>,
    opened: mpsc::Sender<(u32, Inbound)>,
    queue: Queue,
    next_id: u32,
    closed: CancellationToken,
    done: CancellationToken,
}

struct Inbound {
    chunks: mpsc::Sender<Bytes>,
    reset: CancellationToken,
    ungranted: u32,
}

impl Connection {
    /// Starts the connection's tasks on `io`.
    ///
    /// # Errors
    /// Where header compression cannot be set up.
    pub fn start(io: impl Io, role: Role) -> Result<Self, StreamError> {
        let (read, write) = tokio::io::split(io);
        let (queue, outgoing) = mpsc::channel(OUTBOUND_CHUNKS);
        let (streams, incoming) = mpsc::channel(16);
        let (opened, own) = mpsc::channel(16);
        let (closed, done) = (CancellationToken::new(), CancellationToken::new());
        let compressor = HeaderCompressor::new()?;
        let writer_closed = closed.clone();
        let writer_done = done.clone();
        tokio::spawn(async move {
            if let Err(error) = write_frames(write, outgoing, compressor, writer_closed).await {
                tracing::debug!(%error, "SPDY writer ended");
            }
            writer_done.cancel();
        });
        let reader = Reader {
            io: BufReader::with_capacity(16 * 1024, read),
            streams: HashMap::new(),
            queue: queue.clone(),
            incoming: streams,
            own,
            last_stream: 0,
            ungranted: 0,
            role,
        };
        let reader_closed = closed.clone();
        tokio::spawn(async move {
            if let Err(error) = reader.run().await {
                tracing::debug!(%error, "SPDY reader ended");
            }
            reader_closed.cancel();
        });
        let next_id = if role == Role::Client { 1 } else { 2 };
        Ok(Self { incoming, opened, queue, next_id, closed, done })
    }

    /// The next stream the peer opens; `None` when the connection ended.
    pub async fn next(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }

    /// Cancelled when the peer is gone.
    #[must_use]
    pub fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    /// Opens a stream; its reply is not waited for.
    ///
    /// # Errors
    /// Where the connection is closed.
    pub async fn open(&mut self, headers: Headers) -> Result<Stream, StreamError> {
        let id = self.next_id;
        self.next_id += 2;
        let (stream, inbound) = new_stream(id, headers.clone(), &self.queue);
        self.opened.send((id, inbound)).await.map_err(|_| StreamError::Closed)?;
        let syn = Frame::SynStream { stream: id, headers, fin: false, unidirectional: false, priority: 0 };
        self.queue.send(Outgoing::Control(Control::Frame(syn))).await.map_err(|_| StreamError::Closed)?;
        Ok(stream)
    }

    /// Says GOAWAY after everything queued, ends the sending side and waits (at most 5 s) for the peer to close its own.
    pub async fn close(mut self) {
        if self.queue.send(Outgoing::Control(Control::Close)).await.is_ok() {
            self.done.cancelled().await;
        }
        // Streams the peer still opens are dropped, so that the reader reaches the peer's end.
        let drain = async { while self.incoming.recv().await.is_some() {} };
        let _ = tokio::time::timeout(LINGER, async { tokio::join!(self.closed.cancelled(), drain) }).await;
    }
}

fn new_stream(id: u32, headers: Headers, queue: &Queue) -> (Stream, Inbound) {
    let (chunks, receiver) = mpsc::channel(INBOUND_CHUNKS);
    let reset = CancellationToken::new();
    let stream = Stream {
        id,
        headers,
        reader: Box::new(QueueReader::new(receiver)),
        writer: Box::new(QueueWriter::new(id, queue.clone(), reset.clone())),
        queue: queue.clone(),
    };
    (stream, Inbound { chunks, reset, ungranted: 0 })
}

struct Reader<R> {
    io: BufReader<R>,
    streams: HashMap<u32, Inbound>,
    queue: Queue,
    incoming: mpsc::Sender<Stream>,
    own: mpsc::Receiver<(u32, Inbound)>,
    last_stream: u32,
    ungranted: u32,
    role: Role,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    async fn run(mut self) -> Result<(), StreamError> {
        let mut zlib = HeaderDecompressor::default();
        let mut payload = Vec::new();
        let mut head = [0u8; 8];
        loop {
            let first = self.io.read(&mut head).await?;
            if first == 0 {
                return Ok(());
            }
            self.io.read_exact(&mut head[first..]).await?;
            while let Ok((id, inbound)) = self.own.try_recv() {
                self.streams.insert(id, inbound);
            }
            match FrameHeader::decode(head)? {
                FrameHeader::Data { stream, fin, length } => self.data(stream, fin, length).await?,
                FrameHeader::Control { kind, flags, length } => {
                    payload.resize(length, 0);
                    self.io.read_exact(&mut payload).await?;
                    let frame = Frame::decode(kind, flags, &payload, &mut zlib)?;
                    self.control(frame).await?;
                }
            }
        }
    }

    async fn data(&mut self, stream: u32, fin: bool, mut length: usize) -> Result<(), StreamError> {
        if !self.streams.contains_key(&stream) && stream > self.last_stream && stream % 2 == 1 {
            self.send(Frame::RstStream { stream, status: ResetStatus::INVALID_STREAM }).await?;
        }
        self.ungranted += length as u32;
        if let Some(inbound) = self.streams.get_mut(&stream) {
            inbound.ungranted += length as u32;
        }
        // A frame may be 16 MiB long: it is passed on in pieces, never held whole.
        while length > 0 {
            let mut chunk = BytesMut::with_capacity(length.min(CHUNK));
            let mut limited = (&mut self.io).take(length.min(CHUNK) as u64);
            while limited.limit() > 0 {
                if limited.read_buf(&mut chunk).await? == 0 {
                    return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
                }
            }
            length -= chunk.len();
            if let Some(inbound) = self.streams.get(&stream) {
                // An error means that nobody reads this stream: its bytes are dropped.
                let _ = inbound.chunks.send(chunk.freeze()).await;
            }
        }
        if fin {
            self.streams.remove(&stream);
        }
        self.grant(stream);
        Ok(())
    }

    /// Grants what was taken in. When the writer is busy it is granted with a later frame.
    fn grant(&mut self, stream: u32) {
        let due = |ungranted: &mut u32, id: u32, queue: &Queue| {
            if *ungranted >= GRANT_AFTER {
                let frame = Frame::WindowUpdate { stream: id, delta: *ungranted };
                if queue.try_send(Outgoing::Control(Control::Frame(frame))).is_ok() {
                    *ungranted = 0;
                }
            }
        };
        if let Some(inbound) = self.streams.get_mut(&stream) {
            due(&mut inbound.ungranted, stream, &self.queue);
        }
        due(&mut self.ungranted, 0, &self.queue);
    }

    async fn control(&mut self, frame: Frame) -> Result<(), StreamError> {
        match frame {
            Frame::SynStream { stream, headers, fin, .. } => {
                if stream == 0 || stream <= self.last_stream || self.streams.contains_key(&stream) {
                    return self.send(Frame::RstStream { stream, status: ResetStatus::PROTOCOL_ERROR }).await;
                }
                self.last_stream = stream;
                if self.streams.len() >= MAX_STREAMS {
                    return self.send(Frame::RstStream { stream, status: ResetStatus::REFUSED_STREAM }).await;
                }
                let (opened, inbound) = new_stream(stream, headers, &self.queue);
                if !fin {
                    self.streams.insert(stream, inbound);
                }
                if self.incoming.send(opened).await.is_err() {
                    self.streams.remove(&stream);
                    return self.send(Frame::RstStream { stream, status: ResetStatus::REFUSED_STREAM }).await;
                }
            }
            Frame::SynReply { stream, fin: true, .. } | Frame::Headers { stream, fin: true, .. } => {
                self.streams.remove(&stream);
            }
            Frame::RstStream { stream, .. } => {
                if let Some(inbound) = self.streams.remove(&stream) {
                    inbound.reset.cancel();
                }
            }
            // Clients' pings are odd, servers' even: only the peer's own are sent back.
            Frame::Ping(id) if (id % 2 == 1) == (self.role == Role::Server) => self.send(Frame::Ping(id)).await?,
            Frame::SynReply { .. }
            | Frame::Headers { .. }
            | Frame::Ping(_)
            | Frame::Settings
            | Frame::GoAway { .. }
            | Frame::WindowUpdate { .. }
            | Frame::Unknown(_) => {}
        }
        Ok(())
    }

    async fn send(&mut self, frame: Frame) -> Result<(), StreamError> {
        self.queue.send(Outgoing::Control(Control::Frame(frame))).await.map_err(|_| StreamError::Closed)
    }
}

async fn write_frames<W: AsyncWrite + Unpin>(
    mut io: W,
    mut outgoing: mpsc::Receiver<Outgoing<Control>>,
    mut zlib: HeaderCompressor,
    closed: CancellationToken,
) -> Result<(), StreamError> {
    let mut out = BytesMut::with_capacity(64 * 1024);
    loop {
        let message = tokio::select! {
            biased;
            message = outgoing.recv() => message,
            // The peer is gone: what is still queued has no reader.
            () = closed.cancelled() => None,
        };
        let mut message = message;
        let mut last = message.is_none();
        while let Some(next) = message {
            match next {
                Outgoing::Data(stream, data) => encode_data(&mut out, stream, false, &data),
                Outgoing::Fin(stream) => encode_data(&mut out, stream, true, &[]),
                Outgoing::Control(Control::Frame(frame)) => frame.encode(&mut out, &mut zlib)?,
                Outgoing::Control(Control::Close) => {
                    Frame::GoAway { last_stream: 0, status: 0 }.encode(&mut out, &mut zlib)?;
                    last = true;
                    break;
                }
            }
            if out.len() >= 64 * 1024 {
                break;
            }
            message = outgoing.try_recv().ok();
        }
        io.write_all(&out).await?;
        out.clear();
        io.flush().await?;
        if last {
            outgoing.close();
            // The peer may have closed first: nothing is lost then.
            let _ = io.shutdown().await;
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Connection, Connection) {
        let (a, b) = tokio::io::duplex(16 * 1024);
        (Connection::start(a, Role::Server).unwrap(), Connection::start(b, Role::Client).unwrap())
    }

    fn headers(kind: &str) -> Headers {
        Headers(vec![("streamtype".into(), kind.into())])
    }

    #[tokio::test]
    async fn streams_carry_bytes_both_ways_and_end_separately() {
        let (mut server, mut client) = pair();
        let mut ours = client.open(headers("data")).await.unwrap();
        let mut theirs = server.next().await.unwrap();
        assert_eq!(theirs.headers.get("streamType"), Some("data"));
        theirs.accept().await.unwrap();
        ours.writer.write_all(b"request").await.unwrap();
        ours.writer.shutdown().await.unwrap();
        let mut got = Vec::new();
        theirs.reader.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"request");
        theirs.writer.write_all(b"answer").await.unwrap();
        theirs.writer.shutdown().await.unwrap();
        got.clear();
        ours.reader.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"answer");
    }

    /// More than any window or queue holds, on two streams at once, read in turn.
    #[tokio::test]
    async fn megabytes_pass_unharmed() {
        let (mut server, mut client) = pair();
        let big: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        let ours = client.open(headers("a")).await.unwrap();
        let theirs = server.next().await.unwrap();
        let sent = big.clone();
        let mut writer = ours.writer;
        tokio::spawn(async move {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        let (mut from, mut to) = (theirs.reader, theirs.writer);
        tokio::spawn(async move {
            tokio::io::copy(&mut from, &mut to).await.unwrap();
            to.shutdown().await.unwrap();
        });
        let mut reader = ours.reader;
        let mut got = Vec::new();
        reader.read_to_end(&mut got).await.unwrap();
        assert!(got == big, "{} of {} bytes came back", got.len(), big.len());
    }

    #[tokio::test]
    async fn closing_delivers_what_was_written_first() {
        let (mut server, mut client) = pair();
        let mut ours = client.open(headers("error")).await.unwrap();
        let mut theirs = server.next().await.unwrap();
        theirs.writer.write_all(b"status").await.unwrap();
        theirs.writer.shutdown().await.unwrap();
        drop(theirs);
        let closing = tokio::spawn(server.close());
        let mut got = Vec::new();
        ours.reader.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"status");
        client.close().await;
        closing.await.unwrap();
    }

    #[tokio::test]
    async fn a_reset_stream_refuses_writes() {
        let (mut server, mut client) = pair();
        let mut ours = client.open(headers("data")).await.unwrap();
        let mut theirs = server.next().await.unwrap();
        ours.reset(ResetStatus::CANCEL).await.unwrap();
        let mut buffer = [0; 1];
        assert_eq!(theirs.reader.read(&mut buffer).await.unwrap(), 0);
        assert!(theirs.writer.write_all(b"x").await.is_err());
    }

    #[tokio::test]
    async fn pings_come_back_and_reused_ids_are_reset() {
        let (a, mut raw) = tokio::io::duplex(16 * 1024);
        let mut server = Connection::start(a, Role::Server).unwrap();
        let (mut zlib, mut out) = (HeaderCompressor::new().unwrap(), BytesMut::new());
        let syn = Frame::SynStream { stream: 3, headers: headers("x"), fin: false, unidirectional: false, priority: 0 };
        for frame in [Frame::Ping(1), syn.clone(), syn] {
            frame.encode(&mut out, &mut zlib).unwrap();
        }
        raw.write_all(&out).await.unwrap();
        assert_eq!(server.next().await.unwrap().id, 3);
        let mut answer = [0; 12 + 16];
        raw.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[..12], [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]);
        assert_eq!(answer[12..], [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 1]);
    }
}
