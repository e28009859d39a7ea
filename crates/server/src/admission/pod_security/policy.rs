//! Which Pod Security Standard a namespace asks for, by its labels.

use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::labels::Labels;
use std::fmt;

/// A Pod Security Standard, from the widest to the narrowest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Level {
    #[default]
    Privileged,
    Baseline,
    Restricted,
}

/// A standard and the release whose form of it is meant; none for the newest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LevelVersion {
    /// The standard.
    pub level: Level,
    /// The minor number of release 1.x.
    pub version: Option<u32>,
}

/// The newest release whose standards are known; later ones are taken for it.
const NEWEST: u32 = 37;

impl LevelVersion {
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Pods that violate this are refused.
    pub enforce: LevelVersion,
    /// Violations of this are noted in the audit log.
    pub audit: LevelVersion,
    /// Violations of this are answered with a warning.
    pub warn: LevelVersion,
}

impl Policy {
    /// Whether nothing is asked for in any mode.
    #[must_use]
    pub fn is_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|m| m.level == Level::Privileged)
    }
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

/// The namespace's label for a mode.
fn label(mode: &str) -> String {
    format!("pod-security.kubernetes.io/{mode}")
}

/// Reads one mode into `into`; whether its level was named rightly, where it was named, and whether its version was.
fn read(
    values: &Labels,
    key: &str,
    path: &dyn Fn(&str) -> Path,
    (into, fallback): (&mut LevelVersion, Level),
    errors: &mut ErrorList,
) -> (Option<bool>, bool) {
    let level = values.get(key).map(|text| match parse_level(text) {
        Ok(level) => {
            into.level = level;
            true
        }
        Err(e) => {
            into.level = fallback;
            errors.invalid(&path(key), text.as_str(), e);
            false
        }
    });
    let key = format!("{key}-version");
    let version = values.get(&key).map(|text| {
        into.version = parse_version(text).unwrap_or_else(|e| {
            errors.invalid(&path(&key), text.as_str(), e);
            None
        });
    });
    (level, version.is_some())
}

/// Reads the labels of a namespace. There is always a policy: what the labels leave out is as in `defaults`, and what
/// cannot be read is taken for `restricted` when enforced and for `privileged` otherwise.
#[must_use]
pub fn of_labels(labels: Option<&Labels>, defaults: &Policy) -> (Policy, ErrorList) {
    let mut errors = ErrorList::default();
    let mut policy = *defaults;
    let Some(labels) = labels else { return (policy, errors) };
    let at = Path::new("metadata").child("labels");
    let path = |key: &str| at.key(key);
    let enforce = (&mut policy.enforce, Level::Restricted);
    let (enforced, _) = read(labels, &label("enforce"), &path, enforce, &mut errors);
    read(labels, &label("audit"), &path, (&mut policy.audit, Level::Privileged), &mut errors);
    let warn = (&mut policy.warn, Level::Privileged);
    let (warned, warned_version) = read(labels, &label("warn"), &path, warn, &mut errors);
    // Who enforces something is warned of the same, unless he says otherwise.
    if warned.is_none() && enforced == Some(true) && policy.enforce.level > policy.warn.level {
        policy.warn.level = policy.enforce.level;
        if !warned_version {
            policy.warn.version = policy.enforce.version;
        }
    }
    (policy, errors)
}

/// Reads the defaults of a configuration file.
#[must_use]
pub fn of_defaults(values: &Labels) -> (Policy, ErrorList) {
    let mut errors = ErrorList::default();
    let mut policy = Policy::default();
    let path = |key: &str| Path::new("defaults").child(key);
    for (mode, into) in [("enforce", &mut policy.enforce), ("audit", &mut policy.audit), ("warn", &mut policy.warn)] {
        read(values, mode, &path, (into, Level::Privileged), &mut errors);
    }
    (policy, errors)
}

/// The modes that the labels name and that ask for something: `enforce=baseline:latest, warn=restricted:v1.30`.
#[must_use]
pub fn named(labels: Option<&Labels>, policy: &Policy) -> String {
    let has = |key: &str| labels.is_some_and(|l| l.contains_key(key));
    let modes = [("enforce", policy.enforce), ("audit", policy.audit), ("warn", policy.warn)];
    let named = modes.iter().filter(|(mode, of)| {
        let key = label(mode);
        of.level != Level::Privileged && (has(&key) || has(&format!("{key}-version")))
    });
    named.map(|(mode, of)| format!("{mode}={of}")).collect::<Vec<_>>().join(", ")
}
