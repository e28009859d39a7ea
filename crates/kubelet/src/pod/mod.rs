//! Pods: one worker each, and the pure parts it decides with.

pub(crate) mod admission;
pub(crate) mod backoff;
pub(crate) mod dns;
pub(crate) mod env;
mod env_file;
pub(crate) mod fields;
pub(crate) mod hooks;
pub(crate) mod images;
pub(crate) mod manager;
pub(crate) mod message;
pub(crate) mod names;
pub(crate) mod plan;
pub(crate) mod resize;
pub(crate) mod resources;
pub(crate) mod sandbox;
mod security;
mod start;
pub(crate) mod state;
pub(crate) mod status;
mod stop;
mod sysctl;
pub(crate) mod worker;
