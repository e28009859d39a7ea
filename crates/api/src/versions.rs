//! Which versions of the API are served: the stable ones always, beta and alpha ones when `--runtime-config` asks for them.

use crate::kind::{Resource, ResourceInfo};
use crate::kinds;
use std::collections::{BTreeMap, BTreeSet};

/// A resource by group, version and plural name.
type Gvr = (&'static str, &'static str, &'static str);

/// The kinds that are off by default and were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versions(BTreeSet<Gvr>);

/// How mature a version is, by its name; `api/ga`, `api/beta` and `api/alpha` stand for all of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Maturity {
    Stable,
    Beta,
    Alpha,
}

fn maturity(version: &str) -> Maturity {
    if version.contains("alpha") {
        Maturity::Alpha
    } else if version.contains("beta") {
        Maturity::Beta
    } else {
        Maturity::Stable
    }
}

fn gvr(info: &ResourceInfo) -> Gvr {
    (info.group, info.version, info.plural)
}

/// Truth as kube-apiserver's flags spell it; a key alone is true.
fn truth(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "" | "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        other => {
            Err(format!("invalid value of {key}: {other}, err: strconv.ParseBool: parsing {other:?}: invalid syntax"))
        }
    }
}

const WHOLE: [(&str, Option<Maturity>); 4] = [
    ("api/all", None),
    ("api/ga", Some(Maturity::Stable)),
    ("api/beta", Some(Maturity::Beta)),
    ("api/alpha", Some(Maturity::Alpha)),
];

/// A key, its parts, and whether what it names is on.
type Setting<'a> = (&'a str, Vec<&'a str>, bool);

impl Versions {
    /// Reads the pairs of `--runtime-config`: `api/beta=true`, `group/version=true`, `group/version/resource=true`.
    ///
    /// # Errors
    /// What is wrong, as kube-apiserver words it; and what cannot be had or not be done without.
    pub fn parse(pairs: &[String]) -> Result<Self, String> {
        let mut settings: BTreeMap<&str, &str> = BTreeMap::new();
        for pair in pairs.iter().map(|p| p.trim()).filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            settings.insert(key.trim(), value.trim());
        }
        if settings.len() == 1 && settings.get("api/all") == Some(&"false") {
            return Err("invalid runtime-config with only api/all=false".into());
        }
        let mut out = Self::default();
        for (key, meant) in WHOLE {
            let Some(value) = settings.remove(key) else { continue };
            let on = match value {
                "true" => true,
                "false" => false,
                _ => return Err(format!("invalid value {key}={value}")),
            };
            out.set_all(key, meant, on)?;
        }
        let specific = Self::specific(&settings)?;
        // Single resources are the most particular, so they come last.
        for (key, parts, on) in
            specific.iter().filter(|s| s.1.len() == 2).chain(specific.iter().filter(|s| s.1.len() == 3))
        {
            out.set(key, parts, *on)?;
        }
        Ok(out)
    }

    /// The keys that name a version or a resource, in parts.
    fn specific<'a>(settings: &BTreeMap<&'a str, &'a str>) -> Result<Vec<Setting<'a>>, String> {
        let mut out = Vec::new();
        let mut unknown = BTreeSet::new();
        for (key, value) in settings {
            let parts: Vec<&str> = key.split('/').collect();
            if !(2..=3).contains(&parts.len()) || parts[1].is_empty() {
                return Err(format!("runtime-config invalid key {key}"));
            }
            if !known().any(|i| i.group == parts[0]) {
                unknown.insert(format!("{}/{}", parts[0], parts[1]));
                continue;
            }
            if !known().any(|i| (i.group, i.version) == (parts[0], parts[1])) {
                return Err(format!("group version {}/{} that has not been registered", parts[0], parts[1]));
            }
            if let Some(resource) = parts.get(2) {
                if resource.to_lowercase() != **resource {
                    return Err(format!(
                        "invalid key {key}: group/version/resource and resource is always lowercase plural, not {resource:?}"
                    ));
                }
                if !known().any(|i| (i.group, i.version, i.plural) == (parts[0], parts[1], resource)) {
                    return Err(format!("{key}: there is no such resource"));
                }
            }
            out.push((*key, parts, truth(key, value)?));
        }
        if unknown.is_empty() {
            Ok(out)
        } else {
            Err(format!("unknown api groups {}", unknown.into_iter().collect::<Vec<_>>().join(",")))
        }
    }

    fn set_all(&mut self, key: &str, meant: Option<Maturity>, on: bool) -> Result<(), String> {
        let matches = |info: &ResourceInfo| meant.is_none_or(|m| maturity(info.version) == m);
        match (meant, on) {
            (Some(Maturity::Stable), true) => {}
            (None | Some(Maturity::Stable), false) => return Err(indispensable(key)),
            (_, false) => self.0.retain(|(_, version, _)| meant.is_none_or(|m| maturity(version) != m)),
            (_, true) => {
                let asked: BTreeSet<Gvr> =
                    kinds::OPTIONAL.iter().map(|r| r.info()).filter(|i| matches(i)).map(gvr).collect();
                if asked.is_empty() {
                    return Err(format!("{key}=true: there is no version of that kind to serve"));
                }
                self.0.extend(asked);
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &str, parts: &[&str], on: bool) -> Result<(), String> {
        let named = |i: &ResourceInfo| {
            (i.group, i.version) == (parts[0], parts[1]) && parts.get(2).is_none_or(|plural| *plural == i.plural)
        };
        if !on && kinds::ALL.iter().any(|r| named(r.info())) {
            return Err(indispensable(key));
        }
        for info in kinds::OPTIONAL.iter().map(|r| r.info()).filter(|i| named(i)) {
            if on {
                self.0.insert(gvr(info));
            } else {
                self.0.remove(&gvr(info));
            }
        }
        Ok(())
    }

    /// Whether a kind that is off by default was asked for.
    #[must_use]
    pub fn includes(&self, info: &ResourceInfo) -> bool {
        self.0.contains(&gvr(info))
    }

    /// The built-in kinds that are served.
    #[must_use]
    pub fn served(&self) -> Vec<&'static dyn Resource> {
        let asked = kinds::OPTIONAL.iter().filter(|r| self.includes(r.info()));
        kinds::ALL.iter().chain(asked).copied().collect()
    }
}

/// Stable versions cannot be switched off: controllers and nodes live in the same process and need them.
fn indispensable(key: &str) -> String {
    format!("{key}=false: stable versions are always served")
}

fn known() -> impl Iterator<Item = &'static ResourceInfo> {
    kinds::ALL.iter().chain(kinds::OPTIONAL).map(|r| r.info())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<String>, String> {
        let pairs: Vec<String> = text.split(',').map(str::to_owned).collect();
        Versions::parse(&pairs).map(|v| v.0.iter().map(|(g, v, p)| format!("{g}/{v}/{p}")).collect())
    }

    #[test]
    fn what_is_on() {
        let (group, workload) = ("scheduling.k8s.io/v1beta1/podgroups", "scheduling.k8s.io/v1beta1/workloads");
        for (text, want) in [
            ("", vec![]),
            ("api/ga=true,apps/v1=true", vec![]),
            ("api/beta=true", vec![group, workload]),
            ("api/all=true", vec![group, workload]),
            ("scheduling.k8s.io/v1beta1", vec![group, workload]),
            ("scheduling.k8s.io/v1beta1=1", vec![group, workload]),
            ("api/beta=true,scheduling.k8s.io/v1beta1=false", vec![]),
            ("scheduling.k8s.io/v1beta1/podgroups=true", vec![group]),
            ("scheduling.k8s.io/v1beta1/workloads=false,scheduling.k8s.io/v1beta1=true", vec![group]),
        ] {
            assert_eq!(parse(text).unwrap(), want, "{text}");
        }
        let some = Versions::parse(&["scheduling.k8s.io/v1beta1/podgroups".to_owned()]).unwrap();
        let served: Vec<_> = some.served().iter().map(|r| r.info().plural).collect();
        assert!(served.contains(&"podgroups") && served.contains(&"pods") && !served.contains(&"workloads"));
    }

    #[test]
    fn faults() {
        for (text, want) in [
            ("api/all=false", "invalid runtime-config with only api/all=false"),
            ("api/beta=yes", "invalid value api/beta=yes"),
            ("api/alpha=true", "api/alpha=true: there is no version of that kind to serve"),
            ("v1=true", "runtime-config invalid key v1"),
            ("a/b/c/d=true", "runtime-config invalid key a/b/c/d"),
            ("x.example/v1=true,b/v2", "unknown api groups b/v2,x.example/v1"),
            ("batch/v1beta1=true", "group version batch/v1beta1 that has not been registered"),
            ("apps/v1=false", "apps/v1=false: stable versions are always served"),
            (
                "scheduling.k8s.io/v1beta1=x",
                "invalid value of scheduling.k8s.io/v1beta1: x, err: strconv.ParseBool: parsing \"x\": invalid syntax",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err(), want);
        }
    }
}
