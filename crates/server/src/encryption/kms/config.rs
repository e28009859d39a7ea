//! The part `kms` of a provider's configuration.

use crate::access::parse_duration;
use gantry_api::meta::field::{ErrorList, Path};
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// How long a service may take to answer where nothing else is configured.
const TIMEOUT: Duration = Duration::from_secs(3);

/// `KMSConfiguration`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    #[serde(default)]
    api_version: String,
    /// Name of the provider.
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    cachesize: Option<i32>,
    #[serde(default)]
    endpoint: String,
    #[serde(default)]
    timeout: Option<String>,
}

impl Config {
    /// Whether it speaks of version 1, which is deprecated and off.
    #[must_use]
    pub fn is_v1(&self) -> bool {
        matches!(self.api_version.as_str(), "" | "v1")
    }

    /// How long the service may take; None for what is no length of time.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout.as_deref().map_or(Some(TIMEOUT), |text| {
            // No less than nothing is told as nothing.
            match text.strip_prefix('-') {
                Some(length) => parse_duration(length).map(|_| Duration::ZERO),
                None => parse_duration(text),
            }
        })
    }

    /// The socket of the endpoint. `/@name` is a name in the abstract namespace.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        let path = self.endpoint.strip_prefix("unix:").unwrap_or(&self.endpoint);
        let path = match path.strip_prefix("//") {
            Some(rest) => rest.find('/').map_or("", |slash| &rest[slash..]),
            None => path,
        };
        path.strip_prefix('/').filter(|rest| rest.starts_with('@')).unwrap_or(path).into()
    }
}

/// What comes before the first colon, as Go's `url.Parse` sees it.
fn scheme(endpoint: &str) -> Result<&str, String> {
    match endpoint.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '+' | '-' | '.')) {
        Some(0) if endpoint.starts_with(':') => Err(format!("parse {endpoint:?}: missing protocol scheme")),
        Some(at) if endpoint[at..].starts_with(':') && endpoint.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            Ok(&endpoint[..at])
        }
        _ => Ok(""),
    }
}

/// Checks the configuration of a provider; `names` are those of the providers before it.
pub fn check(config: &Config, path: &Path, names: &[String], errors: &mut ErrorList) {
    let (name, at) = (&config.name, path.child("name"));
    if name.is_empty() {
        errors.required(&at, "name is a mandatory field for a provider");
    }
    if !config.is_v1() {
        if name.contains(':') {
            let why = format!("invalid KMS provider name {name}, must not contain ':'");
            errors.invalid(&at, name.as_str(), &why);
        }
        if names.contains(name) {
            errors.invalid(&at, name.as_str(), &format!("duplicate KMS provider name {name}, names must be unique"));
        }
    }
    let given = config.timeout.as_deref().unwrap_or_default();
    let at = path.child("timeout");
    match config.timeout() {
        Some(Duration::ZERO) => {
            let shown = if given == "0" { "0s" } else { given };
            errors.invalid(&at, shown, "timeout should be a positive value");
        }
        Some(_) => {}
        None => errors.invalid(&at, given, &format!("time: invalid duration {given:?}")),
    }
    let (endpoint, at) = (config.endpoint.as_str(), path.child("endpoint"));
    if endpoint.is_empty() {
        errors.invalid(&at, "", "endpoint is a mandatory field for a kms");
    } else {
        match scheme(endpoint) {
            Ok("unix") => {}
            Ok(other) => {
                let why = format!("unsupported scheme {other:?} for KMS provider, only unix is supported");
                errors.invalid(&at, endpoint, &why);
            }
            Err(error) => errors.invalid(&at, endpoint, &format!("invalid endpoint for kms provider, error: {error}")),
        }
    }
    let at = path.child("cachesize");
    match config.cachesize {
        Some(size) if !config.is_v1() => errors.invalid(&at, size, "cachesize is not supported in v2"),
        Some(0) => errors.invalid(&at, 0, "cachesize should be a positive value, or negative to disable"),
        _ => {}
    }
    if !config.is_v1() && config.api_version != "v2" {
        let why = "unsupported apiVersion apiVersion for KMS provider, only v1 and v2 are supported";
        errors.invalid(&path.child("apiVersion"), config.api_version.as_str(), why);
    }
}
