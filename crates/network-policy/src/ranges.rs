//! Ranges of addresses: blocks without their exceptions.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses of one family, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range {
    /// The first address.
    pub first: IpAddr,
    /// The last address.
    pub last: IpAddr,
}

impl Range {
    /// The address after the last, if there is one.
    #[must_use]
    pub fn end(&self) -> Option<IpAddr> {
        match self.last {
            IpAddr::V4(last) => u32::from(last).checked_add(1).map(|n| Ipv4Addr::from(n).into()),
            IpAddr::V6(last) => u128::from(last).checked_add(1).map(|n| Ipv6Addr::from(n).into()),
        }
    }
}

/// Family and both ends, as numbers.
type Numbers = (bool, u128, u128);

fn numbers(network: &IpNet) -> Numbers {
    let number = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    };
    (network.addr().is_ipv4(), number(network.network()), number(network.broadcast()))
}

fn address(v4: bool, number: u128) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if v4 => Ipv4Addr::from(number).into(),
        _ => Ipv6Addr::from(number).into(),
    }
}

/// What is left of a block without its exceptions, which may overlap.
fn without(block: Numbers, exceptions: &[IpNet]) -> Vec<Numbers> {
    let mut left = vec![block];
    for (v4, first, last) in exceptions.iter().map(numbers).filter(|e| e.0 == block.0) {
        left = left
            .into_iter()
            .flat_map(|(_, from, to)| {
                let before = (from < first).then(|| (v4, from, to.min(first.saturating_sub(1))));
                let after = (to > last).then(|| (v4, from.max(last.saturating_add(1)), to));
                [before, after]
            })
            .flatten()
            .collect();
    }
    left
}

/// The addresses that are in some block and in none of that block's exceptions: sorted, apart from each other.
#[must_use]
pub fn ranges(blocks: &[(IpNet, Vec<IpNet>)]) -> Vec<Range> {
    let mut all: Vec<Numbers> = blocks.iter().flat_map(|(block, except)| without(numbers(block), except)).collect();
    all.sort_unstable();
    let mut merged: Vec<Numbers> = Vec::new();
    for (v4, first, last) in all {
        match merged.last_mut() {
            Some((family, _, end)) if *family == v4 && first <= end.saturating_add(1) => *end = (*end).max(last),
            _ => merged.push((v4, first, last)),
        }
    }
    merged.into_iter().map(|(v4, first, last)| Range { first: address(v4, first), last: address(v4, last) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(blocks: &[(&str, &[&str])]) -> Vec<String> {
        let net = |text: &&str| text.parse::<IpNet>().expect("network");
        let blocks: Vec<_> = blocks.iter().map(|(b, e)| (net(b), e.iter().map(net).collect())).collect();
        ranges(&blocks).iter().map(|r| format!("{}-{}", r.first, r.last)).collect()
    }

    #[test]
    fn exceptions_are_cut_out() {
        assert_eq!(shown(&[("10.0.0.0/8", &[])]), ["10.0.0.0-10.255.255.255"]);
        assert_eq!(
            shown(&[("10.0.0.0/24", &["10.0.0.0/28", "10.0.0.8/29", "10.0.0.128/25"])]),
            ["10.0.0.16-10.0.0.127"]
        );
        assert_eq!(
            shown(&[("0.0.0.0/0", &["10.0.0.0/8", "0.0.0.0/8"])]),
            ["1.0.0.0-9.255.255.255", "11.0.0.0-255.255.255.255"]
        );
        assert_eq!(shown(&[("10.0.0.0/8", &["fd00::/8"])]), ["10.0.0.0-10.255.255.255"]);
    }

    #[test]
    fn one_blocks_exception_is_anothers_part() {
        assert_eq!(
            shown(&[("10.0.0.0/24", &["10.0.0.0/25"]), ("10.0.0.0/26", &[])]),
            ["10.0.0.0-10.0.0.63", "10.0.0.128-10.0.0.255"]
        );
        assert_eq!(shown(&[("10.0.0.0/25", &[]), ("10.0.0.128/25", &[])]), ["10.0.0.0-10.0.0.255"]);
    }

    #[test]
    fn both_families_and_their_ends() {
        assert_eq!(
            shown(&[("::/0", &[]), ("0.0.0.0/0", &[])]),
            ["::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "0.0.0.0-255.255.255.255"]
        );
        let all = ranges(&[("0.0.0.0/0".parse().expect("network"), vec![])]);
        assert_eq!(all[0].end(), None);
        let some = ranges(&[("fd00::/127".parse().expect("network"), vec![])]);
        assert_eq!(some[0].end(), Some("fd00::2".parse().expect("address")));
        // A small IPv6 number is not an IPv4 address.
        assert_eq!(shown(&[("::1/128", &[])]), ["::1-::1"]);
    }
}
