//! Which Pod Security Standard a namespace asks for, by its labels.

use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::labels::Labels;
use std::fmt;

/// A Pod Security Standard, from the widest to the narrowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// A standard and the release whose form of it is meant; none for the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelVersion {
    /// The standard.
    pub level: Level,
    /// The minor number of release 1.x.
    pub version: Option<u32>,
}

/// The newest release whose standards are known; later ones are taken for it.
const NEWEST: u32 = 37;

impl LevelVersion {
    const DEFAULT: Self = Self { level: Level::Privileged, version: None };

    /// The release whose checks are made.
    #[must_use]
    pub fn checked_version(&self) -> u32 {
        self.version.map_or(NEWEST, |v| v.min(NEWEST))
    }
}

impl fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.version {
            Some(minor) => write!(f, "{level}:v1.{minor}"),
            None => write!(f, "{level}:latest"),
        }
    }
}

/// What a namespace asks for in each mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Pods that violate this are refused.
    pub enforce: LevelVersion,
    /// Violations of this are noted in the audit log.
    pub audit: LevelVersion,
    /// Violations of this are answered with a warning.
    pub warn: LevelVersion,
}

fn parse_level(text: &str) -> Result<Level, &'static str> {
    match text {
        "privileged" => Ok(Level::Privileged),
        "baseline" => Ok(Level::Baseline),
        "restricted" => Ok(Level::Restricted),
        _ => Err("must be one of privileged, baseline, restricted"),
    }
}

fn parse_version(text: &str) -> Result<Option<u32>, &'static str> {
    const BAD: &str = "must be \"latest\" or \"v1.x\"";
    if text == "latest" {
        return Ok(None);
    }
    let minor = text.strip_prefix("v1.").ok_or(BAD)?;
    let digits = minor.bytes().all(|b| b.is_ascii_digit()) && (minor == "0" || !minor.starts_with('0'));
    if digits { minor.parse().map(Some).map_err(|_| BAD) } else { Err(BAD) }
}

/// Reads the labels of a namespace. There is always a policy: what cannot be read is taken for `restricted` when enforced
/// and for `privileged` otherwise.
#[must_use]
pub fn of_labels(labels: Option<&Labels>) -> (Policy, ErrorList) {
    let mut errors = ErrorList::default();
    let default = LevelVersion::DEFAULT;
    let mut policy = Policy { enforce: default, audit: default, warn: default };
    let Some(labels) = labels else { return (policy, errors) };
    let at = Path::new("metadata").child("labels");
    let mut read = |mode: &str, into: &mut LevelVersion, fallback: Level| -> (Option<bool>, bool) {
        let key = format!("pod-security.kubernetes.io/{mode}");
        let level = labels.get(&key).map(|text| match parse_level(text) {
            Ok(level) => {
                into.level = level;
                true
            }
            Err(e) => {
                into.level = fallback;
                errors.invalid(&at.key(&key), text.as_str(), e);
                false
            }
        });
        let key = format!("pod-security.kubernetes.io/{mode}-version");
        let version = labels.get(&key).map(|text| {
            into.version = parse_version(text).unwrap_or_else(|e| {
                errors.invalid(&at.key(&key), text.as_str(), e);
                None
            });
        });
        (level, version.is_some())
    };
    let (enforced, _) = read("enforce", &mut policy.enforce, Level::Restricted);
    read("audit", &mut policy.audit, Level::Privileged);
    let (warned, warned_version) = read("warn", &mut policy.warn, Level::Privileged);
    // Who enforces something is warned of the same, unless he says otherwise.
    if warned.is_none() && enforced == Some(true) && policy.enforce.level > policy.warn.level {
        policy.warn.level = policy.enforce.level;
        if !warned_version {
            policy.warn.version = policy.enforce.version;
        }
    }
    (policy, errors)
}
