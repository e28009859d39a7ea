//! gRPC as plugins on this machine speak it: calls with one answer or a stream of them, without TLS and without
//! compression, over hyper's HTTP/2 (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).
//!
//! It knows no service. Messages are [`prost::Message`]s that its users describe.

mod client;
mod frame;
mod server;
mod status;

pub use client::{Channel, Streaming, Target};
pub use prost::Message;
pub use server::{Answer, Service, serve};
pub use status::{Code, Status};

#[cfg(test)]
mod tests;
