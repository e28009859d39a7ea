//! SPDY/3.1 as Kubernetes' clients speak it (`moby/spdystream`): framing, header compression and multiplexed streams.

mod connection;
mod dictionary;
mod frame;
mod headers;

pub use connection::{Connection, Role, Stream};
pub use frame::{Frame, FrameHeader, ResetStatus};
pub use headers::{HeaderCompressor, HeaderDecompressor, Headers};
