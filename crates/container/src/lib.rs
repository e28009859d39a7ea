//! Images, sandboxes and containers on one machine. Knows no Kubernetes.
//!
//! The interface is [`runtime::Runtime`] and [`image_service::ImageService`]; [`native::NativeRuntime`] and
//! [`images::ImageStore`] implement it. Every sandbox has a small process of its own, the [`shim`], which outlives the
//! process that made it; [`init`] is what becomes a container's first process.
#![warn(missing_docs)]

pub mod cgroup;
pub mod error;
mod files;
pub mod image_service;
pub mod images;
pub mod init;
pub mod native;
pub mod runtime;
pub mod self_image;
mod seqpacket;
pub mod shim;

pub use error::{Error, Result};
pub use init::container_init_main;
pub use self_image::self_main;
pub use shim::shim_main;
