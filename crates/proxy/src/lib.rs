//! The service proxy: turns Services and EndpointSlices into nf_tables rules of this node.
//!
//! [`compile`] decides, purely, what each Service means on this node; [`lower`] spells that out as elements of a fixed
//! set of maps; [`apply`] brings the kernel there element by element. There is no chain per service: a handful of
//! chains, one per number of endpoints, look the endpoint up by `(address, protocol, port, random number)`, so that ten
//! thousand services are a few maps, and one more is a few elements.

pub mod apply;
pub mod compile;
mod endpoints;
mod health;
pub mod lower;
mod rules;
mod run;
mod stale;

pub use run::{ProxyConfig, ProxyError, remove, run, run_with};
