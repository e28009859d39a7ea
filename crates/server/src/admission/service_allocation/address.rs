//! The pool of cluster IPs.

use gantry_api::entropy::Entropy;
use ipnet::IpNet;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Most addresses of a range that are used; larger IPv6 ranges are cut, as upstream does.
const SIZE_MAX: u128 = 1 << 20;

/// Addresses of one range with their owners.
pub(super) struct AddressPool {
    range: IpNet,
    first: u128,
    count: u128,
    owners: HashMap<IpAddr, String>,
    recent: Vec<IpAddr>,
}

fn to_number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

impl AddressPool {
    pub(super) fn new(range: IpNet) -> Self {
        let size = 1u128 << (range.max_prefix_len() - range.prefix_len()).min(127);
        // The network address is never used; of IPv4 ranges neither is the broadcast address.
        let unusable = if range.addr().is_ipv4() { 2 } else { 1 };
        let count = size.saturating_sub(unusable).min(SIZE_MAX);
        Self { range, first: to_number(range.network()) + 1, count, owners: HashMap::new(), recent: Vec::new() }
    }

    /// `IPv4` or `IPv6`.
    pub(super) fn family(&self) -> &'static str {
        if self.range.addr().is_ipv4() { "IPv4" } else { "IPv6" }
    }

    fn at(&self, offset: u128) -> IpAddr {
        let n = self.first + offset;
        if self.range.addr().is_ipv4() {
            IpAddr::V4(Ipv4Addr::from(u32::try_from(n).unwrap_or(u32::MAX)))
        } else {
            IpAddr::V6(Ipv6Addr::from(n))
        }
    }

    /// Counts in an address of a stored Service, wherever it is from.
    pub(super) fn mark(&mut self, ip: IpAddr, owner: &str) {
        self.owners.entry(ip).or_insert_with(|| owner.to_owned());
    }

    /// Takes this address.
    pub(super) fn allocate(&mut self, ip: IpAddr, owner: &str) -> Result<(), String> {
        match self.owners.get(&ip) {
            Some(have) if have == owner => return Ok(()),
            Some(_) => return Err("provided IP is already allocated".into()),
            None => {}
        }
        let offset = to_number(ip).checked_sub(self.first);
        let inside = ip.is_ipv4() == self.range.addr().is_ipv4() && offset.is_some_and(|o| o < self.count);
        if !inside {
            return Err(format!(
                "the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}",
                self.range.trunc()
            ));
        }
        self.take(ip, owner);
        Ok(())
    }

    fn take(&mut self, ip: IpAddr, owner: &str) {
        self.owners.insert(ip, owner.to_owned());
        self.recent.push(ip);
    }

    /// Takes any free address: from the upper part of the range first, so that the lower is free for those that people
    /// choose.
    pub(super) fn allocate_next(&mut self, owner: &str, entropy: &Entropy) -> Result<IpAddr, String> {
        let lower = (self.count / 16).clamp(16, 256);
        let lower = if self.count > lower { lower } else { 0 };
        for (from, to) in [(lower, self.count), (0, lower)] {
            let length = to - from;
            let start = u128::from(entropy.below(u64::try_from(length).unwrap_or(u64::MAX)));
            for i in 0..length {
                let ip = self.at(from + (start + i) % length);
                if !self.owners.contains_key(&ip) {
                    self.take(ip, owner);
                    return Ok(ip);
                }
            }
        }
        Err("range is full".into())
    }

    /// Gives an address back, if it is the owner's.
    pub(super) fn release(&mut self, ip: IpAddr, owner: &str) {
        if self.owners.get(&ip).is_some_and(|o| o == owner) {
            self.owners.remove(&ip);
        }
    }

    /// A point to return to with [`Self::undo_since`].
    pub(super) fn mark_point(&self) -> usize {
        self.recent.len()
    }

    pub(super) fn undo_since(&mut self, point: usize) {
        for ip in self.recent.split_off(point) {
            self.owners.remove(&ip);
        }
    }

    /// Forgets the points.
    pub(super) fn settle(&mut self) {
        self.recent.clear();
    }
}
