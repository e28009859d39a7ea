//! Ranges of addresses: of one family, or one of each.

use anyhow::{Result, bail};
use ipnet::IpNet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// `IPv4` or `IPv6`.
#[must_use]
pub fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// A range, and in a dual-stack cluster one of the other family, written `FIRST,SECOND`. The first one's family is the
/// default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    /// The range of the default family.
    pub primary: IpNet,
    /// The range of the other family.
    pub secondary: Option<IpNet>,
}

impl Ranges {
    /// The ranges, the primary first.
    pub fn all(&self) -> impl Iterator<Item = IpNet> {
        std::iter::once(self.primary).chain(self.secondary)
    }

    /// The ranges as a list.
    #[must_use]
    pub fn to_vec(&self) -> Vec<IpNet> {
        self.all().collect()
    }

    /// Their families, the default first.
    pub fn families(&self) -> impl Iterator<Item = &'static str> {
        self.all().map(|range| family(range.addr()))
    }

    /// The same with every range replaced.
    ///
    /// # Errors
    /// The first that `change` makes.
    pub fn try_map(&self, change: impl Fn(IpNet) -> Result<IpNet>) -> Result<Self> {
        Ok(Self { primary: change(self.primary)?, secondary: self.secondary.map(change).transpose()? })
    }

    /// Sees that there is a range of every family that `others` have.
    ///
    /// # Errors
    /// Names both options and the family that is missing.
    pub fn cover(&self, own: &str, others: &Self, other: &str) -> Result<()> {
        match others.families().find(|f| !self.families().any(|have| have == *f)) {
            Some(missing) => bail!("{own} {self} has no {missing} range, but {other} {others} has one"),
            None => Ok(()),
        }
    }
}

impl FromStr for Ranges {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |part: &str| part.trim().parse::<IpNet>().map_err(|e| format!("{part:?}: {e}"));
        let (first, second) = text.split_once(',').map_or((text, None), |(first, second)| (first, Some(second)));
        let (primary, secondary) = (parse(first)?, second.map(parse).transpose()?);
        if secondary.is_some_and(|s| family(s.addr()) == family(primary.addr())) {
            return Err("two ranges must be one of IPv4 and one of IPv6".into());
        }
        Ok(Self { primary, secondary })
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.primary)?;
        self.secondary.map_or(Ok(()), |second| write!(f, ",{second}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(text: &str) -> Ranges {
        text.parse().unwrap()
    }

    #[test]
    fn one_of_each_family_at_most() {
        for text in ["10.96.0.0/16", "fd00::/112", "10.96.0.0/16,fd00::/112", "fd00::/112,10.96.0.0/16"] {
            assert_eq!(ranges(text).to_string(), text);
        }
        for bad in ["", "10.0.0.0", "10.0.0.0/8,", "10.0.0.0/8,11.0.0.0/8", "10.0.0.0/8,fd00::/64,fd01::/64"] {
            assert!(bad.parse::<Ranges>().is_err(), "{bad}");
        }
        assert_eq!(ranges("fd00::/112,10.96.0.0/16").families().collect::<Vec<_>>(), ["IPv6", "IPv4"]);
    }

    #[test]
    fn pods_have_the_families_of_services() {
        let (v4, dual) = (ranges("10.244.0.0/16"), ranges("10.96.0.0/16,fd00::/112"));
        assert!(dual.cover("a", &v4, "b").is_ok());
        let told = v4.cover("--pod-cidr", &dual, "--service-cidr").unwrap_err().to_string();
        assert_eq!(
            told,
            "--pod-cidr 10.244.0.0/16 has no IPv6 range, but --service-cidr 10.96.0.0/16,fd00::/112 has one"
        );
    }
}
