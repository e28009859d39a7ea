//! Rules: sequences of expressions that load, compare and act.

use std::time::Duration;

use super::{
    table::Family,
    value::{Value, Verdict},
    wire::Writer,
};

/// A register of 4 bytes; longer values occupy it and the ones after it. There are 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Register(pub u8);

impl Register {
    /// `NFT_REG32_00` and up.
    fn number(self) -> u32 {
        8 + u32::from(self.0)
    }

    /// The register `bytes` further on (rounded up to whole registers).
    #[must_use]
    pub fn after(self, bytes: usize) -> Register {
        Register(self.0 + bytes.div_ceil(4) as u8)
    }
}

/// The register that holds the verdict.
const VERDICT_REGISTER: u32 = 0;

/// Something known about a packet beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    /// The packet mark, 4 bytes.
    Mark,
    /// The interface it came in by, 16 bytes of name.
    InputName,
    /// The interface it leaves by, 16 bytes of name.
    OutputName,
    /// The transport protocol's number, 1 byte.
    Protocol,
}

impl Meta {
    fn key(self) -> u32 {
        match self {
            Meta::Mark => 3,
            Meta::InputName => 6,
            Meta::OutputName => 7,
            Meta::Protocol => 16,
        }
    }
}

/// Something known about the connection a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ct {
    /// State bits, 4 bytes: see [`CT_STATE_NEW`] and its like.
    State,
    /// Status bits, 4 bytes: see [`CT_STATUS_DNAT`].
    Status,
    /// The address the client asked for, before any rewriting.
    OriginalDestination(Family),
    /// The port the client asked for, 2 bytes.
    OriginalPort,
}

/// `ct state new`.
pub const CT_STATE_NEW: u32 = 1 << 3;
/// `ct state established`.
pub const CT_STATE_ESTABLISHED: u32 = 1 << 1;
/// `ct state related`.
pub const CT_STATE_RELATED: u32 = 1 << 2;
/// `ct status dnat`: the destination was rewritten.
pub const CT_STATUS_DNAT: u32 = 1 << 5;

/// How to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<=`, byte by byte from the first: for numbers in network order.
    AtMost,
    /// `>=`, likewise.
    AtLeast,
}

/// What `reject` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// ICMP "port unreachable", which a connecting TCP client sees as "connection refused".
    PortUnreachable,
    /// A TCP reset.
    TcpReset,
}

/// Which address a routing table lookup is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FibAddress {
    /// Where the packet comes from.
    Source,
    /// Where it goes to.
    Destination,
}

/// The address type "one of this machine's own".
pub const ADDRESS_TYPE_LOCAL: u32 = 2;

/// What a rule does to a set for the packet it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetUpdate {
    /// Adds the element, or renews its timeout.
    Update,
    /// Removes the element.
    Delete,
}

/// A rule being written. Each method appends one expression; a comparison that fails ends the rule.
#[derive(Debug, Default)]
pub struct Rule {
    expressions: Writer,
}

impl Rule {
    /// A rule without expressions.
    pub fn new() -> Rule {
        Rule::default()
    }

    pub(crate) fn encoded(&self) -> &[u8] {
        self.expressions.bytes()
    }

    fn expression(mut self, name: &str, write: impl FnOnce(&mut Writer)) -> Rule {
        let element = self.expressions.open(1);
        self.expressions.string(1, name);
        let data = self.expressions.open(2);
        write(&mut self.expressions);
        self.expressions.close(data);
        self.expressions.close(element);
        self
    }

    /// Loads the source address.
    #[must_use]
    pub fn load_source(self, family: Family, to: Register) -> Rule {
        let (source, _, length) = family.layout();
        self.load_payload(1, source, length, to)
    }

    /// Loads the destination address.
    #[must_use]
    pub fn load_destination(self, family: Family, to: Register) -> Rule {
        let (_, destination, length) = family.layout();
        self.load_payload(1, destination, length, to)
    }

    /// Loads the destination port.
    #[must_use]
    pub fn load_port(self, to: Register) -> Rule {
        self.load_payload(2, 2, 2, to)
    }

    fn load_payload(self, base: u32, offset: u32, length: u32, to: Register) -> Rule {
        self.expression("payload", |w| {
            w.u32(1, to.number());
            w.u32(2, base);
            w.u32(3, offset);
            w.u32(4, length);
        })
    }

    /// Loads something known about the packet.
    #[must_use]
    pub fn load_meta(self, what: Meta, to: Register) -> Rule {
        self.expression("meta", |w| {
            w.u32(1, to.number());
            w.u32(2, what.key());
        })
    }

    /// Sets the packet mark from a register.
    #[must_use]
    pub fn store_mark(self, from: Register) -> Rule {
        self.expression("meta", |w| {
            w.u32(2, Meta::Mark.key());
            w.u32(3, from.number());
        })
    }

    /// Loads something known about the connection.
    #[must_use]
    pub fn load_ct(self, what: Ct, to: Register) -> Rule {
        self.expression("ct", |w| {
            w.u32(1, to.number());
            w.u32(
                2,
                match what {
                    Ct::State => 0,
                    Ct::Status => 2,
                    Ct::OriginalPort => 12,
                    Ct::OriginalDestination(Family::Ipv4) => 20,
                    Ct::OriginalDestination(Family::Ipv6) => 22,
                },
            );
            if matches!(what, Ct::OriginalDestination(_) | Ct::OriginalPort) {
                w.u8(3, 0);
            }
        })
    }

    /// Loads a constant.
    #[must_use]
    pub fn load_value(self, value: &Value, to: Register) -> Rule {
        self.expression("immediate", |w| {
            w.u32(1, to.number());
            let data = w.open(2);
            w.attribute(1, value.as_bytes());
            w.close(data);
        })
    }

    /// Loads the type of an address by the routing tables ([`ADDRESS_TYPE_LOCAL`] and others), 4 bytes.
    #[must_use]
    pub fn load_address_type(self, of: FibAddress, to: Register) -> Rule {
        self.expression("fib", |w| {
            w.u32(1, to.number());
            w.u32(2, 3);
            w.u32(
                3,
                match of {
                    FibAddress::Source => 1,
                    FibAddress::Destination => 2,
                },
            );
        })
    }

    /// Loads a random number below `modulus`, 4 bytes.
    #[must_use]
    pub fn load_random(self, modulus: u32, to: Register) -> Rule {
        self.expression("numgen", |w| {
            w.u32(1, to.number());
            w.u32(2, modulus);
            w.u32(3, 1);
            w.u32(4, 0);
        })
    }

    /// `register = (register & mask) ^ xor`, for 4 bytes or more.
    #[must_use]
    pub fn bitwise(self, register: Register, mask: &Value, xor: &Value) -> Rule {
        self.expression("bitwise", |w| {
            w.u32(1, register.number());
            w.u32(2, register.number());
            w.u32(3, mask.len() as u32);
            for (kind, value) in [(4, mask), (5, xor)] {
                let data = w.open(kind);
                w.attribute(1, value.as_bytes());
                w.close(data);
            }
        })
    }

    /// Goes on only when a register compares so with a constant.
    #[must_use]
    pub fn compare(self, register: Register, how: Compare, with: &Value) -> Rule {
        self.expression("cmp", |w| {
            w.u32(1, register.number());
            w.u32(
                2,
                match how {
                    Compare::Equal => 0,
                    Compare::NotEqual => 1,
                    Compare::AtMost => 3,
                    Compare::AtLeast => 5,
                },
            );
            let data = w.open(3);
            w.attribute(1, with.as_bytes());
            w.close(data);
        })
    }

    /// Goes on only when one of `bits` is set in a register of 4 bytes (which is overwritten).
    #[must_use]
    pub fn any_bit(self, register: Register, bits: u32) -> Rule {
        self.bitwise(register, &Value::new().number(bits), &Value::new().number(0)).compare(
            register,
            Compare::NotEqual,
            &Value::new().number(0),
        )
    }

    /// Goes on only when the key in a register is in a set.
    #[must_use]
    pub fn is_in(self, set: &str, key: Register) -> Rule {
        self.lookup(set, key, None, false)
    }

    /// Goes on only when the key in a register is not in a set.
    #[must_use]
    pub fn is_not_in(self, set: &str, key: Register) -> Rule {
        self.lookup(set, key, None, true)
    }

    /// Goes on only when a map has the key, loading its value.
    #[must_use]
    pub fn map(self, map: &str, key: Register, to: Register) -> Rule {
        self.lookup(map, key, Some(to.number()), false)
    }

    /// Follows the verdict a map has for the key; goes on when it has none.
    #[must_use]
    pub fn verdict_map(self, map: &str, key: Register) -> Rule {
        self.lookup(map, key, Some(VERDICT_REGISTER), false)
    }

    fn lookup(self, set: &str, key: Register, to: Option<u32>, inverted: bool) -> Rule {
        self.expression("lookup", |w| {
            w.string(1, set);
            w.u32(2, key.number());
            if let Some(to) = to {
                w.u32(3, to);
            }
            if inverted {
                w.u32(5, 1);
            }
        })
    }

    /// Changes a dynamic map for the packet at hand.
    #[must_use]
    pub fn update_map(
        self,
        what: SetUpdate,
        map: &str,
        key: Register,
        data: Register,
        timeout: Option<Duration>,
    ) -> Rule {
        self.expression("dynset", |w| {
            w.string(1, map);
            w.u32(
                3,
                match what {
                    SetUpdate::Update => 1,
                    SetUpdate::Delete => 2,
                },
            );
            w.u32(4, key.number());
            w.u32(5, data.number());
            if let Some(timeout) = timeout {
                w.u64(6, timeout.as_millis() as u64);
            }
        })
    }

    /// Rewrites the destination to the address and port in registers.
    #[must_use]
    pub fn dnat(self, family: Family, address: Register, port: Register) -> Rule {
        self.expression("nat", |w| {
            w.u32(1, 1);
            w.u32(2, u32::from(family.number()));
            w.u32(3, address.number());
            w.u32(5, port.number());
        })
    }

    /// Rewrites the source to the address of the interface the packet leaves by, with a random port.
    #[must_use]
    pub fn masquerade(self) -> Rule {
        // NF_NAT_RANGE_PROTO_RANDOM_FULLY: two connections racing for one port would lose a packet.
        self.expression("masq", |w| w.u32(1, 1 << 4))
    }

    /// Refuses the packet and says so.
    #[must_use]
    pub fn reject(self, family: Family, answer: Reject) -> Rule {
        self.expression("reject", |w| match answer {
            Reject::PortUnreachable => {
                w.u32(1, 0);
                // ICMP_PORT_UNREACH, ICMPV6_PORT_UNREACH
                w.u8(2, if family == Family::Ipv6 { 4 } else { 3 });
            }
            Reject::TcpReset => {
                w.u32(1, 1);
                w.u8(2, 0);
            }
        })
    }

    /// Ends with a verdict.
    #[must_use]
    pub fn verdict(self, verdict: &Verdict) -> Rule {
        self.expression("immediate", |w| {
            w.u32(1, VERDICT_REGISTER);
            let data = w.open(2);
            write_verdict(w, verdict);
            w.close(data);
        })
    }
}

/// Writes a verdict as nf_tables data.
pub(crate) fn write_verdict(w: &mut Writer, verdict: &Verdict) {
    let nest = w.open(2);
    w.attribute(1, &verdict.code().to_be_bytes());
    if let Some(chain) = verdict.chain() {
        w.string(2, chain);
    }
    w.close(nest);
}
