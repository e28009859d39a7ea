//! The `batch` API group: one file per kind, and what Jobs need more room for.

pub mod cron_job;
pub mod indexes;
pub mod job;
mod job_spec;
mod job_status;
pub mod schedule;
