//! Streams of exec and attach. The descriptors are the process' own pipes or terminal: data does not pass the shim.

use std::future::Future;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};

use super::link::{Link, call};
use crate::error::{Error, IoContext, Result};
use crate::runtime::{Session, SessionControl};
use crate::shim::protocol::{Reply, Request};

/// The end of a session: its code, or why it is not known.
type End = Option<std::result::Result<i32, String>>;

/// Our end and the other end of a pipe.
fn pipe_pair() -> Result<(io::PipeReader, io::PipeWriter)> {
    io::pipe().ctx("creating", "a pipe")
}

fn receiver(fd: io::PipeReader, end: watch::Receiver<End>) -> Result<Box<dyn AsyncRead + Send + Unpin>> {
    let pipe = pipe::Receiver::from_owned_fd(fd.into()).ctx("opening", "a pipe")?;
    Ok(Box::new(UntilEnd { pipe, ended: Some(Box::pin(until_end(end))) }))
}

fn sender(fd: io::PipeWriter) -> Result<Box<dyn AsyncWrite + Send + Unpin>> {
    Ok(Box::new(pipe::Sender::from_owned_fd(fd.into()).ctx("opening", "a pipe")?))
}

async fn until_end(mut end: watch::Receiver<End>) {
    // An error means the sender is gone, which is an end too.
    let _ = end.wait_for(Option::is_some).await;
}

/// A pipe whose end is the process' end: a child that keeps the other side open does not keep the reader waiting.
struct UntilEnd {
    pipe: pipe::Receiver,
    ended: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl AsyncRead for UntilEnd {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(result) = Pin::new(&mut self.pipe).poll_read(cx, buf) {
            return Poll::Ready(result);
        }
        if let Some(ended) = &mut self.ended {
            ready!(ended.as_mut().poll(cx));
            self.ended = None;
        }
        // What was written before the end is in the pipe by now. Asked directly: the reactor may not have heard of it.
        match nix::unistd::read(&self.pipe, buf.initialize_unfilled()) {
            Ok(n) => {
                buf.advance(n);
                Poll::Ready(Ok(()))
            }
            Err(nix::Error::EAGAIN) => Poll::Ready(Ok(())),
            Err(e) => Poll::Ready(Err(e.into())),
        }
    }
}

/// A terminal's master.
struct Terminal {
    fd: Arc<AsyncFd<std::fs::File>>,
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            let space = buf.initialize_unfilled();
            match guard.try_io(|fd| fd.get_ref().read(space)) {
                Ok(Ok(n)) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                // The last user of the terminal is gone.
                Ok(Err(e)) if e.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(cx))?;
            match guard.try_io(|fd| fd.get_ref().write(buf)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

enum Resizer {
    /// The terminal itself.
    Master(Arc<AsyncFd<std::fs::File>>),
    /// Ask the shim.
    Shim {
        dir: PathBuf,
        sandbox: String,
        container: String,
    },
    None,
}

struct Control {
    end: watch::Receiver<End>,
    resizer: Resizer,
    /// Dropping it ends the connection, and with it the exec.
    _alive: oneshot::Sender<()>,
    sandbox: String,
}

#[async_trait]
impl SessionControl for Control {
    async fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        match &self.resizer {
            Resizer::None => Ok(()),
            Resizer::Master(fd) => {
                let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                use std::os::fd::AsRawFd;
                // SAFETY: `size` is valid for the call.
                let result = unsafe { libc::ioctl(fd.get_ref().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
                if result < 0 {
                    return Err(Error::io("resizing", "a terminal", io::Error::last_os_error()));
                }
                Ok(())
            }
            Resizer::Shim { dir, sandbox, container } => {
                let request = Request::Resize { container: container.clone(), columns, rows };
                call(dir, sandbox, container, &request).await.map(drop)
            }
        }
    }

    async fn wait(&self) -> Result<i32> {
        let mut end = self.end.clone();
        let gone = || Error::Shim { sandbox: self.sandbox.clone(), reason: "the connection ended".into() };
        let end = end.wait_for(Option::is_some).await.map_err(|_| gone())?.clone();
        match end {
            Some(Ok(code)) => Ok(code),
            Some(Err(reason)) => Err(Error::Shim { sandbox: self.sandbox.clone(), reason }),
            None => Err(gone()),
        }
    }
}

/// Waits on the connection for the end, for as long as somebody holds the session's control.
fn watch_end(link: Link, end: watch::Sender<End>, mut dropped: oneshot::Receiver<()>) {
    tokio::spawn(async move {
        loop {
            let message = tokio::select! {
                message = link.receive() => message,
                _ = &mut dropped => return,
            };
            let value = match message {
                Ok(Some((Reply::Exited { code }, _))) => Ok(code),
                Ok(Some((Reply::Error { message, .. }, _))) => Err(message),
                Ok(Some(_)) => continue,
                Ok(None) => Err("the shim is gone".to_string()),
                Err(e) => Err(e.to_string()),
            };
            // Nobody waiting is fine.
            let _ = end.send(Some(value));
            return;
        }
    });
}

/// Starts an exec whose `ExecSpec` is in the file `spec`.
pub(super) async fn exec(
    link: Link,
    sandbox: &str,
    container: &str,
    spec: PathBuf,
    config: &crate::runtime::ExecConfig,
) -> Result<Session> {
    let request = Request::Exec { container: container.to_string(), spec, tty: config.tty };
    let (end_sender, end) = watch::channel(None);
    let (alive, dropped) = oneshot::channel();
    let (mut stdin, mut stderr) = (None, None);
    let stdout: Option<Box<dyn AsyncRead + Send + Unpin>>;
    let resizer;
    if config.tty {
        link.send(&request, &[]).await?;
        let (_, fds) = link.expect(container).await?;
        let lost = || Error::Shim { sandbox: sandbox.to_string(), reason: "no terminal came".into() };
        let master: OwnedFd = fds.into_iter().next().ok_or_else(lost)?;
        nonblocking(&master)?;
        // SAFETY: the file stays open and the same inside the AsyncFd, which owns it.
        let fd = unsafe { AsyncFd::register(std::fs::File::from(master)) };
        let fd = Arc::new(fd.map_err(|e| Error::io("opening", "a terminal", io::Error::from(e)))?);
        if config.stdin {
            stdin = Some(Box::new(Terminal { fd: fd.clone() }) as Box<dyn AsyncWrite + Send + Unpin>);
        }
        stdout = Some(Box::new(Terminal { fd: fd.clone() }));
        resizer = Resizer::Master(fd);
    } else {
        let (in_read, in_write) = pipe_pair()?;
        let (out_read, out_write) = pipe_pair()?;
        let (err_read, err_write) = pipe_pair()?;
        link.send(&request, &[in_read.as_fd(), out_write.as_fd(), err_write.as_fd()]).await?;
        drop((in_read, out_write, err_write));
        link.expect(container).await?;
        if config.stdin {
            stdin = Some(sender(in_write)?);
        }
        stdout = Some(receiver(out_read, end.clone())?);
        stderr = Some(receiver(err_read, end.clone())?);
        resizer = Resizer::None;
    }
    watch_end(link, end_sender, dropped);
    let control = Arc::new(Control { end, resizer, _alive: alive, sandbox: sandbox.to_string() });
    Ok(Session { stdin, stdout, stderr, control })
}

/// Attaches to a container's streams.
pub(super) async fn attach(
    link: Link,
    dir: PathBuf,
    sandbox: &str,
    container: &str,
    [stdin, stdout, stderr]: [bool; 3],
    tty: bool,
) -> Result<Session> {
    let (end_sender, end) = watch::channel(None);
    let (alive, dropped) = oneshot::channel();
    let (in_read, in_write) = pipe_pair()?;
    let (out_read, out_write) = pipe_pair()?;
    let (err_read, err_write) = pipe_pair()?;
    let stderr = stderr && !tty;
    let mut fds = Vec::new();
    if stdin {
        fds.push(in_read.as_fd());
    }
    if stdout {
        fds.push(out_write.as_fd());
    }
    if stderr {
        fds.push(err_write.as_fd());
    }
    link.send(&Request::Attach { container: container.to_string(), stdin, stdout, stderr }, &fds).await?;
    drop((in_read, out_write, err_write));
    link.expect(container).await?;
    let resizer = if tty {
        Resizer::Shim { dir, sandbox: sandbox.to_string(), container: container.to_string() }
    } else {
        Resizer::None
    };
    let session = Session {
        stdin: stdin.then(|| sender(in_write)).transpose()?,
        stdout: stdout.then(|| receiver(out_read, end.clone())).transpose()?,
        stderr: stderr.then(|| receiver(err_read, end.clone())).transpose()?,
        control: Arc::new(Control { end, resizer, _alive: alive, sandbox: sandbox.to_string() }),
    };
    watch_end(link, end_sender, dropped);
    Ok(session)
}

fn nonblocking(fd: &OwnedFd) -> Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: plain calls on an open descriptor.
    unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        if flags < 0 || libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) < 0 {
            return Err(Error::io("opening", "a terminal", io::Error::last_os_error()));
        }
    }
    Ok(())
}
