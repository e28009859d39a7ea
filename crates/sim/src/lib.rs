//! The control plane in one process, on one thread, under virtual time, from one seed: API server over the memory
//! store, all controllers, the scheduler, and [`hollow`] nodes that run pods in name only.
//!
//! Two runs from one seed write the same bytes at the same virtual instants ([`log`] holds them), so whatever goes
//! wrong can be had again from its seed. What must hold in every run, whatever the seed, is told by [`check`].
//!
//! Everything must run inside a current-thread tokio runtime whose clock is paused.

pub mod check;
pub mod control_plane;
pub mod faults;
pub mod hollow;
mod keys;
mod lab;
pub mod log;
pub mod measured;
pub mod mortal;

pub use control_plane::{ControlPlane, Plan, StartError};
pub use faults::Faults;
pub use hollow::{HollowNode, HollowSpec, Pace};
pub use log::{Change, EventLog, Stuck, World};
