//! NetworkPolicies, enforced on the node by nf_tables.
//!
//! [`compile`] reads policies and pods; [`model`] knows, purely, which chains, sets and elements follow from them and
//! what has to change; [`apply`] changes that in the kernel, in one transaction; [`Enforcer`] keeps it up with the API
//! and holds a new pod back until it is behind its policies.
//!
//! # What is in the kernel
//!
//! One table per address family. Packets that pass through the node meet two chains: `egress` looks the source up among
//! the node's pods, `ingress` the destination. A pod that no policy selects is let through; one that some select is led
//! to the chain of just these policies, which jumps to the chain of each and drops what none of them lets through. A
//! pod that nothing is known of yet is not reached and reaches nobody: the default is closed. Peers are sets of addresses,
//! one for each selection that policies name, whoever names it.
//!
//! What the node itself sends to its pods and gets from them never passes through, so it is never stopped: probes,
//! cluster DNS, host-network pods. A connection that was let through once goes on.

pub mod apply;
pub mod compile;
pub mod model;
mod ranges;
mod rules;
mod run;
mod sets;
#[cfg(test)]
mod testing;

pub use run::{Config, Enforcer, PolicyError, remove};
