//! Eviction signals and thresholds, in the notation of the kubelet's flags.

use gantry_api::meta::quantity::{Amount, Format};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What is watched for shortage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// `memory.available`.
    MemoryAvailable,
    /// `nodefs.available`.
    NodeFsAvailable,
    /// `nodefs.inodesFree`.
    NodeFsInodesFree,
    /// `imagefs.available`.
    ImageFsAvailable,
    /// `imagefs.inodesFree`.
    ImageFsInodesFree,
    /// `pid.available`.
    PidAvailable,
}

const SIGNALS: [(Signal, &str); 6] = [
    (Signal::MemoryAvailable, "memory.available"),
    (Signal::NodeFsAvailable, "nodefs.available"),
    (Signal::NodeFsInodesFree, "nodefs.inodesFree"),
    (Signal::ImageFsAvailable, "imagefs.available"),
    (Signal::ImageFsInodesFree, "imagefs.inodesFree"),
    (Signal::PidAvailable, "pid.available"),
];

/// The resource that runs short, as messages name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource {
    Memory,
    EphemeralStorage,
    Inodes,
    Pids,
}

impl Resource {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Resource::Memory => "memory",
            Resource::EphemeralStorage => "ephemeral-storage",
            Resource::Inodes => "inodes",
            Resource::Pids => "pids",
        }
    }

    pub(crate) fn is_disk(self) -> bool {
        matches!(self, Resource::EphemeralStorage | Resource::Inodes)
    }

    /// An amount of it in its own notation.
    pub(crate) fn amount(self, units: u64) -> Amount {
        let units = i64::try_from(units).unwrap_or(i64::MAX);
        match self {
            Resource::Memory | Resource::EphemeralStorage => Amount::from_bytes(units),
            Resource::Inodes | Resource::Pids => Amount::from_units(units, Format::DecimalSI),
        }
    }
}

impl Signal {
    fn parse(name: &str) -> Result<Self, String> {
        let found = SIGNALS.iter().find(|(_, n)| *n == name).map(|(s, _)| *s);
        found.ok_or_else(|| format!("unsupported eviction signal {name}"))
    }

    pub(crate) fn resource(self) -> Resource {
        match self {
            Signal::MemoryAvailable => Resource::Memory,
            Signal::NodeFsAvailable | Signal::ImageFsAvailable => Resource::EphemeralStorage,
            Signal::NodeFsInodesFree | Signal::ImageFsInodesFree => Resource::Inodes,
            Signal::PidAvailable => Resource::Pids,
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = SIGNALS.iter().find(|(s, _)| s == self).map_or("", |(_, n)| n);
        f.write_str(name)
    }
}

/// An amount, or a share of what there is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value {
    Quantity(Amount),
    /// 0 to 1.
    Share(f32),
}

impl Value {
    pub(crate) fn of(self, capacity: Amount) -> Amount {
        match self {
            Value::Quantity(amount) => amount,
            // The share is a 32-bit float upstream too, which shows in the amounts messages give.
            Value::Share(share) => Amount::from_bytes((capacity.value() as f64 * f64::from(share)) as i64),
        }
    }
}

/// Below which amount pods are evicted, and after how long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    pub(crate) signal: Signal,
    pub(crate) value: Value,
    /// How long it must last; zero for a hard threshold.
    pub(crate) grace: Duration,
    /// What must be free beyond the value before the shortage counts as over.
    pub(crate) minimum_reclaim: Option<Value>,
}

/// How the node reacts to shortage.
#[derive(Debug, Clone, PartialEq)]
pub struct EvictionConfig {
    /// All thresholds.
    pub thresholds: Vec<Threshold>,
    /// How long a node condition outlasts its cause.
    pub pressure_transition: Duration,
    /// Grace period of pods evicted by a soft threshold, at most their own.
    pub max_pod_grace: Duration,
}

/// The kubelet's default hard thresholds.
pub const DEFAULT_HARD: &str =
    "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%";

impl Default for EvictionConfig {
    fn default() -> Self {
        EvictionConfig {
            thresholds: thresholds(DEFAULT_HARD, "", "", "").unwrap_or_default(),
            pressure_transition: Duration::from_secs(300),
            max_pod_grace: Duration::ZERO,
        }
    }
}

/// Splits `a<b,c<d`.
fn pairs<'a>(text: &'a str, sign: char) -> Result<BTreeMap<&'a str, &'a str>, String> {
    let entries = text.split(',').filter(|e| !e.trim().is_empty());
    let pair = |e: &'a str| {
        let (key, value) = e.split_once(sign).ok_or_else(|| format!("malformed pair, expect string{sign}string"))?;
        Ok((key.trim(), value.trim()))
    };
    entries.map(pair).collect()
}

fn share(text: &str) -> Option<Result<f32, String>> {
    let number = text.strip_suffix('%')?;
    Some(number.parse::<f32>().map(|n| n / 100.0).map_err(|_| format!("{text:?} is not a percentage")))
}

fn value(signal: Signal, text: &str) -> Result<Option<Value>, String> {
    // These switch a threshold off.
    if matches!(text, "0%" | "100%") {
        return Ok(None);
    }
    if let Some(share) = share(text) {
        let share = share?;
        return match share {
            s if s < 0.0 => Err(format!("eviction percentage threshold {signal} must be >= 0%: {text}")),
            s if s > 1.0 => Err(format!("eviction percentage threshold {signal} must be <= 100%: {text}")),
            s => Ok(Some(Value::Share(s))),
        };
    }
    let amount = Amount::parse(text)?;
    if amount.sign() <= 0 {
        return Err(format!("eviction threshold {signal} must be positive: {}", amount.to_quantity().0));
    }
    Ok(Some(Value::Quantity(amount)))
}

fn statements(text: &str) -> Result<Vec<Threshold>, String> {
    let mut all = Vec::new();
    for (name, text) in pairs(text, '<')? {
        let signal = Signal::parse(name)?;
        if let Some(value) = value(signal, text)? {
            all.push(Threshold { signal, value, grace: Duration::ZERO, minimum_reclaim: None });
        }
    }
    Ok(all)
}

/// Reads the texts of `--eviction-hard`, `--eviction-soft`, `--eviction-soft-grace-period` and
/// `--eviction-minimum-reclaim`.
///
/// # Errors
/// Says which part is wrong, as the kubelet does.
pub fn thresholds(hard: &str, soft: &str, soft_grace: &str, minimum_reclaim: &str) -> Result<Vec<Threshold>, String> {
    let mut all = statements(hard)?;
    let mut graces = BTreeMap::new();
    for (name, text) in pairs(soft_grace, '=')? {
        let signal = Signal::parse(name)?;
        let grace = duration(text)?;
        graces.insert(signal, grace);
    }
    for mut threshold in statements(soft)? {
        let signal = threshold.signal;
        let missing = || format!("grace period must be specified for the soft eviction threshold {signal}");
        threshold.grace = *graces.get(&signal).ok_or_else(missing)?;
        all.push(threshold);
    }
    for (name, text) in pairs(minimum_reclaim, '=')? {
        let signal = Signal::parse(name)?;
        let reclaim = match share(text) {
            Some(share) => match share? {
                s if s <= 0.0 => {
                    return Err(format!("eviction percentage minimum reclaim {signal} must be positive: {text}"));
                }
                s => Value::Share(s),
            },
            None => match Amount::parse(text)? {
                amount if amount.sign() < 0 => {
                    return Err(format!("negative eviction minimum reclaim specified for {signal}"));
                }
                amount => Value::Quantity(amount),
            },
        };
        for t in all.iter_mut().filter(|t| t.signal == signal) {
            t.minimum_reclaim = Some(reclaim);
        }
    }
    Ok(all)
}

/// Reads a duration in Go's notation (`1m30s`, `1.5h`, `200ms`, `0`).
///
/// # Errors
/// In Go's words.
pub fn duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if let Some(positive) = text.strip_prefix('-') {
        duration(positive)?;
        return Err(format!("invalid eviction grace period specified: {text}, must be a positive value"));
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            other => return Err(format!("time: unknown unit {other:?} in duration {text:?}")),
        };
        rest = &rest[letters..];
        total = total
            .checked_add(Duration::try_from_secs_f64(number * unit).map_err(|_| invalid())?)
            .ok_or_else(invalid)?;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_as_the_flags_have_them() {
        let all = EvictionConfig::default().thresholds;
        assert_eq!(all.len(), 5);
        let disk = all.iter().find(|t| t.signal == Signal::NodeFsAvailable).unwrap();
        assert_eq!(disk.value.of(Amount::from_bytes(1_000_000_000)).value(), 100_000_001, "a 32-bit tenth");
        let all = thresholds(
            "memory.available<1Gi,nodefs.available<0%",
            "memory.available<2Gi",
            "memory.available=1m30s",
            "memory.available=500Mi",
        )
        .unwrap();
        assert_eq!(all.iter().map(|t| t.grace.as_secs()).collect::<Vec<_>>(), [0, 90]);
        assert!(all.iter().all(|t| t.minimum_reclaim == Some(Value::Quantity(Amount::from_bytes(500 << 20)))));
    }

    #[test]
    fn mistakes_are_named() {
        for (hard, soft, grace, reclaim, want) in [
            ("mem<1", "", "", "", "unsupported eviction signal mem"),
            ("memory.available", "", "", "", "malformed pair, expect string<string"),
            ("memory.available<0", "", "", "", "eviction threshold memory.available must be positive: 0"),
            (
                "memory.available<101%",
                "",
                "",
                "",
                "eviction percentage threshold memory.available must be <= 100%: 101%",
            ),
            (
                "",
                "memory.available<1",
                "",
                "",
                "grace period must be specified for the soft eviction threshold memory.available",
            ),
            ("", "", "memory.available=5", "", "time: missing unit in duration \"5\""),
            ("", "", "", "memory.available=-1", "negative eviction minimum reclaim specified for memory.available"),
        ] {
            assert_eq!(thresholds(hard, soft, grace, reclaim).unwrap_err(), want);
        }
        assert_eq!(duration("1h0m0.5s"), Ok(Duration::from_millis(3_600_500)));
    }
}
