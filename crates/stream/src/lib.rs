//! The server side of Kubernetes' streaming requests (exec, attach, port-forward), independent of what carries the bytes.
//!
//! A handler asks [`handshake`] which protocol the client wants, answers `101 Switching Protocols` with the response that
//! gives, and hands the upgraded connection to [`remote_command::Upgrade::accept`] or [`port_forward::Upgrade::serve`].
//! Two carriers are spoken: SPDY/3.1 ([`spdy`], what client-go before 1.31 and many tools use) and WebSocket
//! ([`websocket`]), whose `SPDY/3.1+portforward.k8s.io` subprotocol carries SPDY inside binary messages ([`tunnel`]).

pub mod handshake;
pub mod one_way;
mod pipe;
pub mod port_forward;
pub mod process;
pub mod remote_command;
pub mod spdy;
pub mod status;
pub mod tunnel;
pub mod websocket;

pub use handshake::Rejection;
pub use pipe::{BoxRead, BoxWrite};
pub use process::{Control, Process};

/// A connection's bytes, both ways: an upgraded HTTP connection, or one end of a duplex.
pub trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Why a streaming connection ended before its work was done.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection broke or was closed.
    #[error("connection: {0}")]
    Io(#[from] std::io::Error),
    /// The peer sent what its protocol does not allow.
    #[error("protocol: {0}")]
    Protocol(String),
    /// The peer did not open the streams it asked for in time.
    #[error("timed out waiting for client to create streams")]
    CreationTimeout,
    /// The peer went away.
    #[error("the client closed the connection")]
    Closed,
}
