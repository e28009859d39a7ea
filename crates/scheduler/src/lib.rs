//! kube-scheduler's job: for every pod without a node, filter the nodes, score what is left, bind; preempt where only
//! that helps; say why where nothing does.
//!
//! Semantics are those of upstream's default profile. State lives in two places only: the columnar [`snapshot`] of
//! nodes and placed pods, and the [`queue`] of waiting pods; both are kept by informer changes and by the scheduler's own
//! assumptions. One task decides, so decisions never race; bindings run concurrently.

pub mod affinity;
mod bind;
pub mod bits;
pub mod class;
pub mod config;
pub mod cycle;
pub mod decide;
mod decided;
mod defaults;
pub mod devices;
pub mod diagnosis;
mod evictions;
mod explain;
pub mod extender;
pub mod filter;
pub mod gang;
mod measured;
pub mod order;
pub mod pod;
pub mod preempt;
pub mod profile;
pub mod promises;
pub mod queue;
pub mod reach;
mod room;
mod run;
pub mod score;
pub mod snapshot;
pub mod spread;
pub mod volumes;

pub use run::{Explainer, SchedulerConfig, run};
