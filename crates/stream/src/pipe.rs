//! Byte streams over bounded queues: the reading and writing ends that one multiplexed connection hands out.

use bytes::{Buf, Bytes};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, PollSender};

/// A readable half of a stream.
pub type BoxRead = Box<dyn AsyncRead + Send + Unpin>;
/// A writable half of a stream.
pub type BoxWrite = Box<dyn AsyncWrite + Send + Unpin>;

/// Most bytes sent in one frame or message, so that streams of one connection take turns.
pub(crate) const CHUNK: usize = 32 * 1024;

/// Chunks a stream holds for a reader that is slower than its peer; 1 MiB with full chunks.
pub(crate) const INBOUND_CHUNKS: usize = 32;

/// Chunks waiting for the connection, all streams together.
pub(crate) const OUTBOUND_CHUNKS: usize = 64;

/// What a stream asks its connection's writer to send.
#[derive(Debug)]
pub(crate) enum Outgoing<C> {
    /// Bytes of a stream.
    Data(u32, Bytes),
    /// The end of a stream.
    Fin(u32),
    /// A message of the connection itself.
    Control(C),
}

/// Reads what a connection's reader queued.
pub(crate) struct QueueReader {
    chunks: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl QueueReader {
    pub(crate) fn new(chunks: mpsc::Receiver<Bytes>) -> Self {
        Self { chunks, current: Bytes::new() }
    }
}

impl AsyncRead for QueueReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            match ready!(self.chunks.poll_recv(cx)) {
                Some(chunk) => self.current = chunk,
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = self.current.len().min(buf.remaining());
        buf.put_slice(&self.current[..n]);
        self.current.advance(n);
        Poll::Ready(Ok(()))
    }
}

/// Queues bytes for a connection's writer; shutting it down ends the stream.
pub(crate) struct QueueWriter<C: Send + 'static> {
    id: u32,
    queue: PollSender<Outgoing<C>>,
    ended: bool,
    /// Cancelled when the peer reset the stream.
    reset: CancellationToken,
}

impl<C: Send + 'static> QueueWriter<C> {
    pub(crate) fn new(id: u32, queue: mpsc::Sender<Outgoing<C>>, reset: CancellationToken) -> Self {
        Self { id, queue: PollSender::new(queue), ended: false, reset }
    }

    fn broken() -> io::Error {
        io::Error::new(io::ErrorKind::BrokenPipe, "the peer closed the stream")
    }
}

impl<C: Send + 'static> AsyncWrite for QueueWriter<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.ended || self.reset.is_cancelled() {
            return Poll::Ready(Err(Self::broken()));
        }
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(self.queue.poll_reserve(cx)).map_err(|_| Self::broken())?;
        let n = data.len().min(CHUNK);
        let message = Outgoing::Data(self.id, Bytes::copy_from_slice(&data[..n]));
        self.queue.send_item(message).map_err(|_| Self::broken())?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's writer flushes whenever its queue runs empty.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended || self.reset.is_cancelled() {
            return Poll::Ready(Ok(()));
        }
        ready!(self.queue.poll_reserve(cx)).map_err(|_| Self::broken())?;
        let id = self.id;
        self.queue.send_item(Outgoing::Fin(id)).map_err(|_| Self::broken())?;
        self.ended = true;
        Poll::Ready(Ok(()))
    }
}
