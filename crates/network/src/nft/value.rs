//! Values of set elements and registers.

use std::{fmt, net::IpAddr};

/// The most bytes a key or a value can have: all 16 registers of 4 bytes.
const CAPACITY: usize = 64;

/// A key or a value, possibly made of several fields, each of which starts at a register boundary (4 bytes).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value {
    length: u8,
    bytes: [u8; CAPACITY],
}

impl Value {
    /// An empty value.
    pub const fn new() -> Value {
        Value { length: 0, bytes: [0; CAPACITY] }
    }

    /// Takes bytes as they are; `None` when there are more than 64.
    pub fn from_bytes(bytes: &[u8]) -> Option<Value> {
        (bytes.len() <= CAPACITY).then(|| Value::new().field(bytes))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// Bytes of the value.
    pub fn len(&self) -> usize {
        usize::from(self.length)
    }

    /// Whether nothing was put in.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends an address of either family.
    #[must_use]
    pub fn address(self, ip: IpAddr) -> Value {
        match ip {
            IpAddr::V4(v4) => self.field(&v4.octets()),
            IpAddr::V6(v6) => self.field(&v6.octets()),
        }
    }

    /// Appends one byte, such as a protocol number.
    #[must_use]
    pub fn byte(self, value: u8) -> Value {
        self.field(&[value])
    }

    /// Appends a port.
    #[must_use]
    pub fn port(self, value: u16) -> Value {
        self.field(&value.to_be_bytes())
    }

    /// Appends a number in the machine's byte order, as marks, counters and `numgen` have it.
    #[must_use]
    pub fn number(self, value: u32) -> Value {
        self.field(&value.to_ne_bytes())
    }

    /// Appends an interface name, padded with zeros to the 16 bytes the kernel compares.
    #[must_use]
    pub fn interface(self, name: &str) -> Value {
        let mut bytes = [0; libc::IFNAMSIZ];
        let length = name.len().min(libc::IFNAMSIZ - 1);
        bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
        self.field(&bytes)
    }

    /// Appends raw bytes as one field.
    ///
    /// # Panics
    /// When the value would grow beyond the 64 bytes that registers hold: a mistake in a rule set's design, not in data.
    #[must_use]
    pub fn field(mut self, field: &[u8]) -> Value {
        let start = usize::from(self.length).next_multiple_of(4);
        self.bytes[start..start + field.len()].copy_from_slice(field);
        // The kernel counts a last short field in full when it follows others, and as it is when it stands alone.
        let end = if start == 0 { field.len() } else { (start + field.len()).next_multiple_of(4) };
        self.length = end as u8;
        self
    }
}

impl Default for Value {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.as_bytes() {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// Let through this hook.
    Accept,
    /// Thrown away without a word.
    Drop,
    /// Back to the calling chain.
    Return,
    /// On to a chain, coming back when it ends.
    Jump(String),
    /// On to a chain, without coming back.
    Goto(String),
}

impl Verdict {
    pub(crate) fn code(&self) -> i32 {
        match self {
            Verdict::Accept => libc::NF_ACCEPT,
            Verdict::Drop => libc::NF_DROP,
            Verdict::Return => -5,
            Verdict::Jump(_) => -3,
            Verdict::Goto(_) => -4,
        }
    }

    pub(crate) fn chain(&self) -> Option<&str> {
        match self {
            Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
            _ => None,
        }
    }

    pub(crate) fn decode(code: i32, chain: Option<String>) -> Option<Verdict> {
        match (code, chain) {
            (libc::NF_ACCEPT, _) => Some(Verdict::Accept),
            (libc::NF_DROP, _) => Some(Verdict::Drop),
            (-5, _) => Some(Verdict::Return),
            (-3, Some(chain)) => Some(Verdict::Jump(chain)),
            (-4, Some(chain)) => Some(Verdict::Goto(chain)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_start_at_registers() {
        let key = Value::new().address("10.0.0.1".parse().expect("ip")).byte(6).port(80);
        assert_eq!(key.as_bytes(), [10, 0, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0]);
        assert_eq!(Value::new().port(80).as_bytes(), [0, 80]);
        assert_eq!(Value::new().byte(6).port(80).as_bytes(), [6, 0, 0, 0, 0, 80, 0, 0]);
        assert_eq!(Value::new().interface("eth0").len(), 16);
        assert!(Value::from_bytes(&[0; 65]).is_none());
    }
}
