//! Container logs in CRI format (`<RFC 3339 time> <stream> <P|F> <text>`): reading, following, rotating.

mod follow;
mod line;
mod read;
mod rotate;

pub use follow::{Subscription, subscribe};
pub(crate) use read::{Options, last_lines, stream};
pub(crate) use rotate::{files, remove, rotate};
