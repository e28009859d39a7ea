//! The shares of a range that nodes have, and those that are free.

use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A range is cut into no more shares than two to the power of this.
const MOST_BITS: u8 = 16;

/// A range, cut into shares of one length.
#[derive(Clone, Debug)]
pub struct Shares {
    range: IpNet,
    length: u8,
    taken: BTreeSet<u32>,
    /// Where the search for the next free one begins, so that one given back is not given out at once.
    next: u32,
}

impl Shares {
    /// All of them are free.
    ///
    /// # Errors
    /// Where shares of this length cannot be cut out of the range.
    pub fn new(range: IpNet, length: u8) -> Result<Self, String> {
        let range = range.trunc();
        if length < range.prefix_len() || length > range.max_prefix_len() {
            return Err(format!("shares of /{length} cannot be cut out of {range}"));
        }
        if length - range.prefix_len() > MOST_BITS {
            return Err("New CIDR set failed; the node CIDR size is too big".to_owned());
        }
        Ok(Self { range, length, taken: BTreeSet::new(), next: 0 })
    }

    fn count(&self) -> u32 {
        1 << (self.length - self.range.prefix_len())
    }

    fn share(&self, index: u32) -> IpNet {
        let shift = u32::from(self.range.max_prefix_len() - self.length);
        let offset = u128::from(index) << shift;
        let address = match self.range.network() {
            IpAddr::V4(first) => {
                // Within the range, so within the family.
                let offset = u32::try_from(offset).unwrap_or_default();
                IpAddr::V4(Ipv4Addr::from_bits(first.to_bits() | offset))
            }
            IpAddr::V6(first) => IpAddr::V6(Ipv6Addr::from_bits(first.to_bits() | offset)),
        };
        IpNet::new_assert(address, self.length)
    }

    /// The shares that have addresses in common with a range; none where it is elsewhere.
    fn touched(&self, other: &IpNet) -> Option<std::ops::RangeInclusive<u32>> {
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => u128::from(ip.to_bits()),
            IpAddr::V6(ip) => ip.to_bits(),
        };
        if self.range.addr().is_ipv4() != other.addr().is_ipv4() {
            return None;
        }
        let (own_first, own_last) = (bits(self.range.network()), bits(self.range.broadcast()));
        let (first, last) = (bits(other.network()).max(own_first), bits(other.broadcast()).min(own_last));
        let shift = u32::from(self.range.max_prefix_len() - self.length);
        let index = |address: u128| u32::try_from((address - own_first) >> shift).ok();
        (first <= last).then(|| Some(index(first)?..=index(last)?)).flatten()
    }

    /// Takes what is at `range`, whoever had it.
    ///
    /// # Errors
    /// Where it is outside.
    pub fn occupy(&mut self, range: &IpNet) -> Result<(), String> {
        let touched = self
            .touched(range)
            .ok_or_else(|| format!("cidr {range} is out the range of cluster cidr {}", self.range))?;
        self.taken.extend(touched);
        Ok(())
    }

    /// Takes back what is at `range`.
    pub fn release(&mut self, range: &IpNet) {
        for index in self.touched(range).into_iter().flatten() {
            self.taken.remove(&index);
        }
    }

    /// The next that is free; None where none is.
    pub fn take(&mut self) -> Option<IpNet> {
        let count = self.count();
        let index = (self.next..count).chain(0..self.next).find(|index| !self.taken.contains(index))?;
        self.taken.insert(index);
        self.next = (index + 1) % count;
        Some(self.share(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn shares_go_round() {
        let mut shares = Shares::new(net("10.244.0.0/22"), 24).unwrap();
        shares.occupy(&net("10.244.1.0/24")).unwrap();
        let mut taken: Vec<String> = std::iter::from_fn(|| shares.take()).map(|s| s.to_string()).collect();
        assert_eq!(taken, ["10.244.0.0/24", "10.244.2.0/24", "10.244.3.0/24"]);
        shares.release(&net("10.244.2.0/24"));
        shares.release(&net("10.244.0.0/24"));
        taken = std::iter::from_fn(|| shares.take()).map(|s| s.to_string()).collect();
        assert_eq!(taken, ["10.244.0.0/24", "10.244.2.0/24"]);
    }

    #[test]
    fn what_is_greater_or_smaller_than_a_share_takes_all_it_touches() {
        let mut shares = Shares::new(net("10.0.0.0/22"), 24).unwrap();
        shares.occupy(&net("10.0.1.128/25")).unwrap();
        shares.occupy(&net("10.0.2.0/23")).unwrap();
        assert_eq!((shares.take(), shares.take()), (Some(net("10.0.0.0/24")), None));
        shares.occupy(&net("10.0.0.0/8")).unwrap();
        let told = shares.occupy(&net("10.1.0.0/24")).unwrap_err();
        assert_eq!(told, "cidr 10.1.0.0/24 is out the range of cluster cidr 10.0.0.0/22");
        assert!(shares.occupy(&net("fd00::/64")).is_err());
    }

    #[test]
    fn lengths_are_bounded() {
        let mut six = Shares::new(net("fd00:244::/56"), 64).unwrap();
        assert_eq!([six.take(), six.take()], [Some(net("fd00:244::/64")), Some(net("fd00:244:0:1::/64"))]);
        let told = Shares::new(net("fd00::/40"), 64).unwrap_err();
        assert_eq!(told, "New CIDR set failed; the node CIDR size is too big");
        assert!(Shares::new(net("10.0.0.0/24"), 16).is_err());
        assert!(Shares::new(net("10.0.0.0/24"), 33).is_err());
    }
}
