//! Which address a pod gets.
//!
//! Addresses are handed out round-robin: one that was just freed comes back only after all others had their turn, so
//! that a client with a stale address meets nobody rather than a stranger.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use crate::NetworkError;

/// How many offsets of a very large (IPv6) range are used; no node has more pods.
const LARGEST_RANGE: u128 = 1 << 20;

/// The usable addresses of one pod CIDR.
#[derive(Debug, Clone)]
pub(crate) struct Range {
    cidr: IpNet,
    first: u128,
    size: u128,
}

impl Range {
    /// Takes a CIDR apart. The first address after the network address belongs to the node.
    pub(crate) fn new(cidr: IpNet) -> Result<Range, NetworkError> {
        let cidr = cidr.trunc();
        let host_bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len());
        if host_bits < 3 {
            return Err(NetworkError::Config(format!(
                "pod CIDR {cidr} is too small: at most a /{} leaves room for pods",
                cidr.max_prefix_len() - 3
            )));
        }
        let total = if host_bits >= 64 { LARGEST_RANGE } else { 1u128 << host_bits };
        // Offsets 0 (network), 1 (the node) and, for IPv4, the last (broadcast) are never given to pods.
        let reserved_at_end = u128::from(cidr.addr().is_ipv4());
        let size = total.min(LARGEST_RANGE) - 2 - if total <= LARGEST_RANGE { reserved_at_end } else { 0 };
        Ok(Range { cidr, first: to_number(cidr.addr()), size })
    }

    /// The CIDR.
    pub(crate) fn cidr(&self) -> IpNet {
        self.cidr
    }

    /// The node's own address in the range: the first after the network address.
    pub(crate) fn gateway(&self) -> IpAddr {
        self.nth(1)
    }

    /// Whether a pod may hold the address.
    pub(crate) fn is_usable(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address) && (2..self.size + 2).contains(&(to_number(address).wrapping_sub(self.first)))
    }

    /// The next free address after `last`, going round once.
    pub(crate) fn allocate(&self, last: Option<IpAddr>, used: &HashSet<IpAddr>) -> Result<IpAddr, NetworkError> {
        let start = match last {
            Some(last) if self.is_usable(last) => to_number(last) - self.first - 2 + 1,
            _ => 0,
        };
        (0..self.size)
            .map(|step| self.nth((start + step) % self.size + 2))
            .find(|address| !used.contains(address))
            .ok_or(NetworkError::Exhausted { cidr: self.cidr, used: self.size as usize })
    }

    fn nth(&self, offset: u128) -> IpAddr {
        let number = self.first + offset;
        match self.cidr {
            IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(number as u32)),
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
        }
    }
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(cidr: &str) -> Range {
        Range::new(cidr.parse().expect("cidr")).expect("range")
    }

    #[test]
    fn hands_out_every_address_once_then_says_so() {
        let range = range("10.1.0.0/29");
        assert_eq!(range.gateway().to_string(), "10.1.0.1");
        let mut used = HashSet::new();
        let mut last = None;
        let mut got = Vec::new();
        for _ in 0..5 {
            let ip = range.allocate(last, &used).expect("address");
            used.insert(ip);
            last = Some(ip);
            got.push(ip.to_string());
        }
        assert_eq!(got, ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]);
        let error = range.allocate(last, &used).expect_err("exhausted");
        assert_eq!(error.to_string(), "no free address in pod CIDR 10.1.0.0/29: all 5 usable addresses are in use");
    }

    #[test]
    fn a_freed_address_waits_its_turn() {
        let range = range("10.1.0.0/29");
        let mut used: HashSet<IpAddr> = ["10.1.0.2", "10.1.0.3"].map(|a| a.parse().expect("ip")).into();
        let freed: IpAddr = "10.1.0.3".parse().expect("ip");
        used.remove(&freed);
        let next = range.allocate(Some(freed), &used).expect("address");
        assert_eq!(next.to_string(), "10.1.0.4");
        let wrapped = range.allocate(Some("10.1.0.6".parse().expect("ip")), &used).expect("address");
        assert_eq!(wrapped.to_string(), "10.1.0.3");
    }

    #[test]
    fn ranges_of_both_families() {
        for (cidr, gateway, size) in [
            ("10.244.0.0/24", "10.244.0.1", 253),
            ("fd00:10::/64", "fd00:10::1", (1 << 20) - 2),
            ("fd00::/112", "fd00::1", 65534),
        ] {
            let range = range(cidr);
            assert_eq!(range.gateway().to_string(), gateway);
            assert_eq!(range.size, size, "{cidr}");
            assert!(!range.is_usable(range.gateway()));
        }
        assert!(Range::new("10.0.0.0/30".parse().expect("cidr")).is_err());
    }
}
