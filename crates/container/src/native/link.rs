//! Connections to shims.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Error, Result};
use crate::seqpacket::{self, MAX_MESSAGE};
use crate::shim::protocol::{Reply, Request, SOCKET_FILE};

/// One connection.
pub(super) struct Link {
    fd: AsyncFd<OwnedFd>,
    sandbox: String,
}

impl Link {
    /// Connects to the shim whose sandbox has the directory `dir`.
    pub(super) fn connect(dir: &Path, sandbox: &str) -> Result<Link> {
        let lost = |e: io::Error| Error::Shim { sandbox: sandbox.to_string(), reason: format!("connect: {e}") };
        let fd = seqpacket::connect(&dir.join(SOCKET_FILE)).map_err(lost)?;
        // SAFETY: plain calls on an open descriptor.
        unsafe {
            use std::os::fd::AsRawFd;
            let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
            libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK);
        }
        // SAFETY: the socket stays open and the same inside the AsyncFd, which owns it.
        let fd = unsafe { AsyncFd::register(fd) };
        Ok(Link { fd: fd.map_err(|e| lost(io::Error::from(e)))?, sandbox: sandbox.to_string() })
    }

    fn lost(&self, reason: impl ToString) -> Error {
        Error::Shim { sandbox: self.sandbox.clone(), reason: reason.to_string() }
    }

    pub(super) async fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let text = serde_json::to_vec(request).map_err(|e| self.lost(e))?;
        self.fd
            .async_io(Interest::WRITABLE, |fd| seqpacket::send(fd, &text, fds))
            .await
            .map_err(|e| self.lost(format!("send: {e}")))
    }

    /// The next message; `None` when the shim is gone.
    pub(super) async fn receive(&self) -> Result<Option<(Reply, Vec<OwnedFd>)>> {
        let mut buffer = vec![0; MAX_MESSAGE];
        let got = self.fd.async_io(Interest::READABLE, |fd| seqpacket::receive(fd, &mut buffer)).await;
        match got {
            Ok(Some((n, fds))) => {
                let reply = serde_json::from_slice(&buffer[..n]).map_err(|e| self.lost(format!("reply: {e}")))?;
                Ok(Some((reply, fds)))
            }
            Ok(None) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(e) => Err(self.lost(format!("receive: {e}"))),
        }
    }

    /// The next message, which must come and must not be an error. `container` names the object in errors.
    pub(super) async fn expect(&self, container: &str) -> Result<(Reply, Vec<OwnedFd>)> {
        match self.receive().await? {
            None => Err(self.lost("the connection ended")),
            Some((Reply::Error { message, not_found, start }, _)) => Err(if not_found {
                Error::NotFound { kind: "container", id: container.to_string() }
            } else if start {
                Error::Start { message }
            } else {
                self.lost(message)
            }),
            Some(other) => Ok(other),
        }
    }
}

/// One request, one reply.
pub(super) async fn call(dir: &Path, sandbox: &str, container: &str, request: &Request) -> Result<Reply> {
    let link = Link::connect(dir, sandbox)?;
    link.send(request, &[]).await?;
    Ok(link.expect(container).await?.0)
}
