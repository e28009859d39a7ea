//! What can go wrong in the node's network, each case naming the object it happened to.

use std::{io, net::IpAddr, path::PathBuf};

use ipnet::IpNet;

/// An error of the node's network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The configuration cannot work, whatever the machine's state.
    #[error("network configuration: {0}")]
    Config(String),
    /// Another instance on this machine uses a part of a range.
    #[error("{what} {range} overlaps {taken}, which another gantry on this machine uses")]
    Overlap {
        /// `pod CIDR` or `service CIDR`.
        what: &'static str,
        /// The range.
        range: IpNet,
        /// The other's range or address.
        taken: String,
    },
    /// Every address of a pod CIDR is in use.
    #[error("no free address in pod CIDR {cidr}: all {used} usable addresses are in use")]
    Exhausted {
        /// The pod CIDR.
        cidr: IpNet,
        /// How many addresses are in use.
        used: usize,
    },
    /// A host port that another pod holds already.
    #[error("host port {what} is already in use by pod {holder}")]
    HostPortTaken {
        /// `address:port/protocol`.
        what: String,
        /// The pod that holds it.
        holder: String,
    },
    /// A rtnetlink request failed.
    #[error("{what}: {source}")]
    Netlink {
        /// What was being done, to which object.
        what: String,
        /// The answer of the kernel.
        source: rtnetlink::Error,
    },
    /// An nf_tables transaction failed.
    #[error(transparent)]
    Nft(#[from] crate::nft::NftError),
    /// A file, socket or namespace operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, to which object.
        what: String,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The state on disk is not readable.
    #[error("network state {path}: {reason}")]
    State {
        /// The file.
        path: PathBuf,
        /// Why it cannot be used.
        reason: String,
    },
    /// An address is recorded for two pods, or lies outside the pod CIDRs.
    #[error("address {address} of pod {pod}: {reason}")]
    Address {
        /// The address.
        address: IpAddr,
        /// The pod's key.
        pod: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl NetworkError {
    /// Wraps an operating system error with what was being done.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
        let what = what.into();
        move |source| NetworkError::Io { what, source }
    }

    /// Wraps a rtnetlink error with what was being done.
    pub(crate) fn netlink(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
        let what = what.into();
        move |source| NetworkError::Netlink { what, source }
    }
}
