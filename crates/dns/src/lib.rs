//! The cluster's DNS: names of Services, endpoints and pods from the API, everything else from the host's resolvers.
//!
//! Follows the Kubernetes specification "DNS-Based Service Discovery", version 1.1.0. [`zone`] answers from indexed
//! maps and does no IO; [`serve`] speaks DNS over UDP and TCP; [`forward`] asks the host's resolvers.

pub mod forward;
mod message;
mod run;
pub mod serve;
pub mod zone;

pub use run::{DnsConfig, DnsError, run, run_with};
