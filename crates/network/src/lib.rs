//! The node's network: pod interfaces, addresses, host ports, masquerading, and the netlink encoders
//! (nf_tables, conntrack) that they and the service proxy stand on.
//!
//! This crate knows no Kubernetes types. A pod is a key, a network namespace path and a few host ports.
//! Nothing here runs another program: links, addresses and routes go through rtnetlink, packet rules through the
//! nf_tables encoder in [`nft`], connection tracking through [`conntrack`].
//!
//! # How a pod is connected
//!
//! Each pod gets one veth pair. The pod's end is `eth0` with a /32 (or /128) address and a default route over the
//! link-local next hop `169.254.1.1` (`fe80::1`), whose hardware address is a static neighbour entry; the host's end
//! carries no address, only a host route to the pod. There is no bridge: every packet is routed, so that service
//! rules see traffic between pods of one node exactly like any other.

pub mod conntrack;
mod error;
mod hostport;
mod ipam;
mod link;
mod namespace;
pub mod nft;
mod node_table;
mod pod;
mod state;
mod sysctl;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use error::NetworkError;
pub use hostport::{HostPort, Protocol};
pub use ipnet::IpNet;
pub use namespace::in_network_namespace;
pub use pod::{AttachOptions, NodeNetwork, NodeNetworkConfig, PodAddresses};
