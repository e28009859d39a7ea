//! Small writes of one HTTP/2 connection, gathered into few large ones.
//!
//! HTTP/2 writes every frame of data by itself: one record of TLS and one system call for each event of each watch. Both cost
//! more than all else that an event needs. Here frames wait in a buffer until the connection has nothing more to write, and
//! where several streams are open, until all tasks that were ready to run have had their turn.

use crate::request::ResponseBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are held back at most: four full records of TLS, as many as its session takes at once.
const GATHERED_MAX: usize = 64 * 1024;
/// A buffer of up to this size is kept for the next answer; a connection that is idle has no more.
const KEPT_MAX: usize = 4 * 1024;

/// A stream whose writes wait until its [`Flushing`] lets them go. Both ends share it.
pub(super) struct Gathering<S>(Arc<Mutex<Gathered<S>>>);

struct Gathered<S> {
    stream: S,
    buffer: Vec<u8>,
    /// How much of the buffer the stream has taken.
    taken: usize,
    /// Whether all that was written is to reach the peer.
    flush: bool,
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new(), taken: 0, flush: false }
    }

    fn waiting(&self) -> usize {
        self.buffer.len() - self.taken
    }

    fn is_due(&self) -> bool {
        self.flush || self.waiting() > 0
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.waiting() > 0 {
            let taken = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.buffer[self.taken..]))?;
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.taken += taken;
        }
        self.taken = 0;
        self.buffer.clear();
        if self.buffer.capacity() > KEPT_MAX {
            self.buffer = Vec::new();
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.flush = false;
        Poll::Ready(Ok(()))
    }

    /// How much more may wait; Pending where the peer has to read first.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.waiting() >= GATHERED_MAX
            && let Poll::Ready(Err(e)) = self.poll_drain(cx)
        {
            return Poll::Ready(Err(e));
        }
        match GATHERED_MAX.saturating_sub(self.waiting()) {
            0 => Poll::Pending,
            room => Poll::Ready(Ok(room)),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        // One of two sizes, instead of one after the other.
        let size = if self.buffer.len() + bytes.len() <= KEPT_MAX { KEPT_MAX } else { GATHERED_MAX };
        self.buffer.reserve_exact(size.saturating_sub(self.buffer.len()));
        self.buffer.extend_from_slice(bytes);
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut this = self.0.lock();
        let length = ready!(this.poll_room(cx))?.min(bytes.len());
        this.take(&bytes[..length]);
        Poll::Ready(Ok(length))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut this = self.0.lock();
        let room = ready!(this.poll_room(cx))?;
        let mut length = 0;
        for slice in slices {
            let part = &slice[..slice.len().min(room - length)];
            this.take(part);
            length += part.len();
        }
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// HTTP/2 flushes after each frame; [`Flushing`] does it when there is no more.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().flush = true;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut this = self.0.lock();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().stream).poll_read(cx, buffer)
    }
}

/// A connection over a [`Gathering`] stream: whenever it has done what it could, what it wrote goes out.
pub(super) struct Flushing<C, S> {
    connection: Pin<Box<C>>,
    gathered: Arc<Mutex<Gathered<S>>>,
    open: Streams,
    /// Whether others had their turn since something began to wait.
    yielded: bool,
}

/// Wraps a stream for the connection that `connect` makes of it.
pub(super) fn gathering<C, S: AsyncWrite + Unpin>(
    stream: S,
    open: Streams,
    connect: impl FnOnce(Gathering<S>) -> C,
) -> Flushing<C, S> {
    let gathered = Arc::new(Mutex::new(Gathered::new(stream)));
    let connection = Box::pin(connect(Gathering(gathered.clone())));
    Flushing { connection, gathered, open, yielded: false }
}

impl<C, S, E> Future for Flushing<C, S>
where
    C: Future<Output = Result<(), E>>,
    S: AsyncWrite + Unpin,
    E: From<io::Error>,
{
    type Output = Result<(), E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        let this = self.get_mut();
        if let Poll::Ready(ended) = this.connection.as_mut().poll(cx) {
            // It has shut the stream down, which flushed it.
            return Poll::Ready(ended);
        }
        let mut gathered = this.gathered.lock();
        if !gathered.is_due() {
            return Poll::Pending;
        }
        // The other streams of an event that went to many have theirs ready after one round of the tasks.
        if this.open.several() && !this.yielded && gathered.waiting() < GATHERED_MAX {
            this.yielded = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.yielded = false;
        match gathered.poll_drain(cx) {
            Poll::Ready(Err(e)) => Poll::Ready(Err(e.into())),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    }
}

/// How many answers without an end in sight a connection has open: watches, followed logs, long lists.
#[derive(Clone, Default)]
pub(super) struct Streams(Arc<AtomicUsize>);

impl Streams {
    fn several(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 1
    }

    /// Counts an answer for as long as it lasts, unless its length is known.
    pub(super) fn count(&self, body: ResponseBody) -> Counted {
        let counted = body.size_hint().exact().is_none().then(|| {
            self.0.fetch_add(1, Ordering::Relaxed);
            Count(self.0.clone())
        });
        Counted { body, _counted: counted }
    }
}

struct Count(Arc<AtomicUsize>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer that its connection knows of.
pub(super) struct Counted {
    body: ResponseBody,
    _counted: Option<Count>,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::respond;
    use http_body_util::{BodyExt, StreamBody};
    use std::task::Waker;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    /// What reached the other end so far, by pieces.
    #[derive(Default)]
    struct Peer {
        pieces: Vec<usize>,
        flushed: usize,
        /// Bytes it takes before it says Pending.
        takes: usize,
    }

    impl AsyncWrite for Peer {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let this = self.get_mut();
            let taken = bytes.len().min(this.takes);
            if taken == 0 {
                return Poll::Pending;
            }
            this.takes -= taken;
            this.pieces.push(taken);
            Poll::Ready(Ok(taken))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.get_mut().flushed += 1;
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    type Writing = Pin<Box<dyn Future<Output = io::Result<()>>>>;

    /// A connection that writes pieces of these lengths, flushes after each, and then waits for ever.
    fn writes(open: Streams, takes: usize, lengths: Vec<usize>) -> Flushing<Writing, Peer> {
        gathering(Peer { takes, ..Peer::default() }, open, move |mut stream| -> Writing {
            Box::pin(async move {
                for length in lengths {
                    stream.write_all(&vec![b'x'; length]).await?;
                    stream.flush().await?;
                }
                std::future::pending().await
            })
        })
    }

    fn poll(connection: &mut Flushing<Writing, Peer>) -> (Vec<usize>, usize) {
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut *connection).poll(&mut cx).is_pending());
        let mut gathered = connection.gathered.lock();
        (std::mem::take(&mut gathered.stream.pieces), std::mem::take(&mut gathered.stream.flushed))
    }

    #[test]
    fn pieces_of_one_turn_go_out_as_one() {
        let mut connection = writes(Streams::default(), usize::MAX, vec![100, 2000, 9]);
        assert_eq!(poll(&mut connection), (vec![2109], 1));
        assert_eq!(poll(&mut connection), (vec![], 0), "nothing new, nothing to do");
        assert_eq!(connection.gathered.lock().buffer.capacity(), KEPT_MAX);
    }

    #[test]
    fn where_several_streams_are_open_others_run_first() {
        let open = Streams::default();
        let endless = || open.count(StreamBody::new(futures::stream::pending()).boxed());
        let one = endless();
        assert_eq!(poll(&mut writes(open.clone(), usize::MAX, vec![5])), (vec![5], 1), "one has nobody to wait for");
        let two = endless();
        let _whole = open.count(respond::full("all of it"));
        let mut connection = writes(open.clone(), usize::MAX, vec![5]);
        assert_eq!(poll(&mut connection), (vec![], 0));
        assert_eq!(poll(&mut connection), (vec![5], 1));
        drop((one, two));
        assert!(!open.several());
        assert_eq!(open.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn no_more_is_held_than_the_limit() {
        let mut connection = writes(Streams::default(), 70_000, vec![GATHERED_MAX * 2]);
        // What fits in is offered whole; then the peer takes no more.
        assert_eq!(poll(&mut connection), (vec![GATHERED_MAX, 70_000 - GATHERED_MAX], 1));
        assert_eq!(poll(&mut connection), (vec![], 0));
        assert_eq!(connection.gathered.lock().waiting(), GATHERED_MAX * 2 - 70_000);
        connection.gathered.lock().stream.takes = usize::MAX;
        assert_eq!(poll(&mut connection), (vec![GATHERED_MAX * 2 - 70_000], 1));
        assert_eq!(connection.gathered.lock().buffer.capacity(), 0, "large buffers are given back");
    }

    #[tokio::test]
    async fn what_waits_at_the_end_is_not_lost() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let connection = gathering(near, Streams::default(), |mut stream: Gathering<DuplexStream>| async move {
            stream.write_all(b"last words").await?;
            stream.shutdown().await
        });
        connection.await.unwrap();
        let mut said = String::new();
        far.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "last words");
    }
}
