//! What every controller is made of: shared caches fed by watches ([`informer`]), a rate-limited work queue ([`queue`]),
//! the loop that works off keys ([`runner`]), plans and their executor ([`plan`]), [`expectations`] against stale caches,
//! and [`events`].

pub mod backoff;
pub mod error;
pub mod events;
pub mod expectations;
pub mod informer;
pub mod measured;
pub mod owner;
pub mod plan;
pub mod queue;
pub mod runner;
pub mod store;

pub use error::Error;
pub use events::{EventRecorder, EventType, reference};
pub use expectations::Expectations;
pub use informer::{Change, Informer, Informers, Synced, wait_synced};
pub use plan::{Action, Plan};
pub use queue::Queue;
pub use runner::{Controller, Outcome};
pub use store::{Index, Store};
