//! DynamicResources: the devices that pods claim (KEP-4381), chosen together with the node.
//!
//! Drivers publish what they have in slices ([`pool`]). Claims ask for devices of classes, with selectors ([`selector`])
//! and constraints ([`constraint`]). The [`allocate`] search finds devices on one node; what was found is promised to the
//! claim at once ([`taken`]) and written to it before the pod is bound.

pub mod allocate;
mod attempt;
mod bind;
pub mod capacity;
pub mod constraint;
mod explain;
mod extended;
mod known;
mod outcome;
pub mod pool;
pub mod selector;
pub mod taken;
mod want;

pub(crate) use attempt::PLUGIN;
pub use attempt::{PodDevices, Reserved};
pub(crate) use known::{Devices, News, uses};
