//! Ports of the node that lead to a pod.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

/// A transport protocol that host ports and services can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
    /// Stream Control Transmission Protocol.
    Sctp,
}

impl Protocol {
    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => libc::IPPROTO_TCP as u8,
            Protocol::Udp => libc::IPPROTO_UDP as u8,
            Protocol::Sctp => libc::IPPROTO_SCTP as u8,
        }
    }

    /// Reads the name used in Kubernetes objects (`TCP`, `UDP`, `SCTP`); `None` for anything else.
    pub fn parse(name: &str) -> Option<Protocol> {
        match name {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

/// A port of the node that is forwarded to a port of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostPort {
    /// The node address it listens on; `None` (or an unspecified address) for every local address.
    pub host_ip: Option<IpAddr>,
    /// The node's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// The transport protocol.
    pub protocol: Protocol,
}

impl HostPort {
    /// The address it is bound to, with "every address" always as `None`.
    pub(crate) fn bound_address(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }

    /// Whether both cannot be open on one node: same port and protocol, and overlapping addresses.
    pub fn conflicts_with(&self, other: &HostPort) -> bool {
        self.host_port == other.host_port
            && self.protocol == other.protocol
            && match (self.bound_address(), other.bound_address()) {
                (Some(a), Some(b)) => a == b,
                _ => true,
            }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bound_address() {
            Some(ip) => write!(f, "{ip}:{}/{}", self.host_port, self.protocol),
            None => write!(f, "*:{}/{}", self.host_port, self.protocol),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(ip: Option<&str>, port: u16, protocol: Protocol) -> HostPort {
        HostPort { host_ip: ip.map(|ip| ip.parse().expect("address")), host_port: port, container_port: 80, protocol }
    }

    #[test]
    fn conflicts() {
        let cases = [
            (port(None, 80, Protocol::Tcp), port(None, 80, Protocol::Tcp), true),
            (port(None, 80, Protocol::Tcp), port(None, 80, Protocol::Udp), false),
            (port(None, 80, Protocol::Tcp), port(None, 81, Protocol::Tcp), false),
            (port(Some("127.0.0.1"), 80, Protocol::Tcp), port(Some("10.0.0.1"), 80, Protocol::Tcp), false),
            (port(Some("127.0.0.1"), 80, Protocol::Tcp), port(Some("0.0.0.0"), 80, Protocol::Tcp), true),
        ];
        for (a, b, want) in cases {
            assert_eq!(a.conflicts_with(&b), want, "{a} {b}");
            assert_eq!(b.conflicts_with(&a), want, "{b} {a}");
        }
    }
}
