//! Tables, chains, sets and maps.

use std::{borrow::Cow, net::IpAddr, time::Duration};

use ipnet::IpNet;

use super::value::{Value, Verdict};

/// The address family a table is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    pub(crate) fn number(self) -> u8 {
        match self {
            Family::Ipv4 => 2,
            Family::Ipv6 => 10,
        }
    }

    /// Offsets of source and destination in the header, and the length of an address.
    pub(crate) fn layout(self) -> (u32, u32, u32) {
        match self {
            Family::Ipv4 => (12, 16, 4),
            Family::Ipv6 => (8, 24, 16),
        }
    }

    /// Bytes of an address.
    pub fn address_length(self) -> usize {
        self.layout().2 as usize
    }
}

/// A table's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name, unique in the family and network namespace.
    pub name: String,
}

/// Where in a packet's way a base chain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Just arrived, before the routing decision.
    Prerouting,
    /// For this machine.
    Input,
    /// Passing through.
    Forward,
    /// Sent by this machine.
    Output,
    /// About to leave.
    Postrouting,
}

impl Hook {
    pub(crate) fn number(self) -> u32 {
        self as u32
    }
}

/// What a base chain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    /// Sees every packet, decides its fate.
    Filter,
    /// Sees the first packet of each connection, rewrites addresses.
    Nat,
}

impl ChainKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
        }
    }
}

/// How a base chain is hooked in. Its policy is to accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// What it is for.
    pub kind: ChainKind,
    /// Where.
    pub hook: Hook,
    /// Lower runs earlier.
    pub priority: i32,
}

/// The usual priority of destination rewriting.
pub const PRIORITY_DNAT: i32 = -100;
/// The usual priority of filters.
pub const PRIORITY_FILTER: i32 = 0;
/// The usual priority of source rewriting.
pub const PRIORITY_SNAT: i32 = 100;

/// One field of a set's key or a map's value. The kernel knows only lengths; the types are for `nft list`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// An address of a family.
    Address(Family),
    /// A transport protocol.
    Protocol,
    /// A port.
    Port,
    /// A number of 4 bytes in the machine's order.
    Number,
    /// An interface name.
    Interface,
}

impl Field {
    fn kind(self) -> u32 {
        match self {
            Field::Address(Family::Ipv4) => 7,
            Field::Address(Family::Ipv6) => 8,
            Field::Protocol => 12,
            Field::Port => 13,
            Field::Number => 19,
            Field::Interface => 41,
        }
    }

    fn length(self) -> usize {
        match self {
            Field::Address(family) => family.address_length(),
            Field::Protocol => 1,
            Field::Port => 2,
            Field::Number => 4,
            Field::Interface => libc::IFNAMSIZ,
        }
    }
}

/// The type number `nft` gives to a concatenation, and its length in registers.
pub(crate) fn kind_and_length(fields: &[Field]) -> (u32, u32) {
    let kind = fields.iter().fold(0, |kind, field| kind << 6 | field.kind());
    let length = match fields {
        [one] => one.length(),
        many => many.iter().map(|f| f.length().next_multiple_of(4)).sum(),
    };
    (kind, length as u32)
}

/// What a map leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapData {
    /// A value of these fields.
    Fields(Vec<Field>),
    /// A verdict.
    Verdict,
}

/// A named set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name, unique in the table.
    pub name: Cow<'static, str>,
    /// The fields of its key.
    pub key: Vec<Field>,
    /// What it leads to, if it is a map.
    pub data: Option<MapData>,
    /// Whether its elements are ranges, given as [`Element::range`].
    pub interval: bool,
    /// Whether rules change it, with elements that time out; then, the most elements it may have.
    pub dynamic: Option<u32>,
}

impl Set {
    /// A plain set.
    pub fn new(name: impl Into<Cow<'static, str>>, key: &[Field]) -> Set {
        Set { name: name.into(), key: key.to_vec(), data: None, interval: false, dynamic: None }
    }

    /// Makes it a map to values.
    #[must_use]
    pub fn to_fields(mut self, fields: &[Field]) -> Set {
        self.data = Some(MapData::Fields(fields.to_vec()));
        self
    }

    /// Makes it a map to verdicts.
    #[must_use]
    pub fn to_verdicts(mut self) -> Set {
        self.data = Some(MapData::Verdict);
        self
    }

    /// Makes its elements ranges.
    #[must_use]
    pub fn of_ranges(mut self) -> Set {
        self.interval = true;
        self
    }

    /// Lets rules change it.
    #[must_use]
    pub fn dynamic(mut self, size: u32) -> Set {
        self.dynamic = Some(size);
        self
    }
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// Its key.
    pub key: Value,
    /// What it leads to.
    pub data: ElementData,
    /// How long it lives, in sets with timeouts.
    pub timeout: Option<Duration>,
    /// Whether it is the end (exclusive) of a range.
    pub range_end: bool,
}

/// What an element leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ElementData {
    /// Nothing: the element of a set.
    None,
    /// A value.
    Value(Value),
    /// A verdict.
    Verdict(Verdict),
}

impl Element {
    /// An element of a plain set.
    pub fn of(key: Value) -> Element {
        Element { key, data: ElementData::None, timeout: None, range_end: false }
    }

    /// An element of a map to values.
    pub fn value(key: Value, value: Value) -> Element {
        Element { data: ElementData::Value(value), ..Element::of(key) }
    }

    /// An element of a map to verdicts.
    pub fn verdict(key: Value, verdict: Verdict) -> Element {
        Element { data: ElementData::Verdict(verdict), ..Element::of(key) }
    }

    /// Two elements of a set of ranges: `first` up to but without `end` (which is `None` at the end of the space).
    pub fn range(first: Value, end: Option<Value>) -> Vec<Element> {
        let mut elements = vec![Element::of(first)];
        if let Some(end) = end {
            elements.push(Element { range_end: true, ..Element::of(end) });
        }
        elements
    }
}

/// The elements of a set of ranges for networks, which may overlap.
pub fn network_ranges(networks: &[IpNet]) -> Vec<Element> {
    IpNet::aggregate(&networks.to_vec())
        .into_iter()
        .flat_map(|network| {
            let end = match network.broadcast() {
                IpAddr::V4(last) => u32::from(last).checked_add(1).map(|n| IpAddr::V4(n.into())),
                IpAddr::V6(last) => u128::from(last).checked_add(1).map(|n| IpAddr::V6(n.into())),
            };
            Element::range(Value::new().address(network.network()), end.map(|end| Value::new().address(end)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_keys() {
        let v4 = Field::Address(Family::Ipv4);
        assert_eq!(kind_and_length(&[v4]), (7, 4));
        assert_eq!(kind_and_length(&[Field::Port]), (13, 2));
        assert_eq!(kind_and_length(&[v4, Field::Protocol, Field::Port]), (7 << 12 | 12 << 6 | 13, 12));
        assert_eq!(kind_and_length(&[Field::Address(Family::Ipv6), Field::Port]).1, 20);
    }
}
