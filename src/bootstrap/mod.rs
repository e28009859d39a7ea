//! What must exist before anything runs: the data directory, its lock, the cluster's keys and certificates.

pub mod data_dir;
pub mod pki;
pub mod traces;

pub use data_dir::DataDir;
pub use pki::Pki;
