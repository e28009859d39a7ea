//! The API server: HTTP pipeline, authentication, authorization, admission, generic registry, watch cache, discovery,
//! OpenAPI, tables, metrics. The only crate that opens the store.
//!
//! A request runs through [`http::pipeline`] in reading order: TLS and authentication, flow control, authorization,
//! routing, then for a write `registry::write` (decode, defaults, mutating admission, prepare, validate, validating
//! admission, store transaction, reply). In-process components call [`Server::call`], which enters the same pipeline.

pub mod access;
pub mod admission;
mod aggregate;
pub mod audit;
pub mod authn;
pub mod authz;
mod bootstrap;
pub mod cluster;
pub mod component_status;
pub mod config;
mod crd;
pub mod debug;
mod discovery;
pub mod encryption;
mod exposition;
mod expressions;
pub mod flow;
pub mod http;
pub mod metrics;
mod metrics_api;
mod openapi;
mod outbound;
mod policy_status;
pub mod registry;
pub mod reloads;
pub mod request;
mod review_hook;
pub mod server;
pub mod subresource;
mod table;
pub mod watch_cache;
pub mod webhook_client;

pub use config::ServerConfig;
pub use server::{Server, StartError};
