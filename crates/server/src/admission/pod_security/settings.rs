//! Defaults and exemptions that the administrator gives PodSecurity (`PodSecurityConfiguration`,
//! `pod-security.admission.config.k8s.io/v1`).

use super::policy::{self, Policy};
use gantry_api::k8s_openapi::api::core::v1::PodSpec;
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::labels::Labels;
use gantry_api::meta::names;
use serde::Deserialize;

/// What PodSecurity holds namespaces to that do not say it themselves, and whom it lets alone.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// For modes that a namespace has no label for.
    pub defaults: Policy,
    /// Users whose pods are not looked at.
    pub usernames: Vec<String>,
    /// Namespaces whose pods are not looked at.
    pub namespaces: Vec<String>,
    /// Runtime classes whose pods are not looked at.
    pub runtime_classes: Vec<String>,
}

/// The file's form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    #[serde(default)]
    defaults: Labels,
    #[serde(default)]
    exemptions: Exemptions,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Exemptions {
    #[serde(default)]
    usernames: Vec<String>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default)]
    runtime_classes: Vec<String>,
}

const MODES: [&str; 6] = ["enforce", "enforce-version", "audit", "audit-version", "warn", "warn-version"];

/// Adds the errors of a list of names: those the rule has, and repetitions.
fn check(list: &[String], name: &str, rule: &dyn Fn(&str) -> Vec<String>, errors: &mut ErrorList) {
    let path = Path::new("exemptions").child(name);
    for (i, one) in list.iter().enumerate() {
        let wrong = rule(one);
        if !wrong.is_empty() {
            errors.invalid(&path.index(i), one.as_str(), &wrong.join(", "));
        } else if list[..i].contains(one) {
            errors.duplicate(&path.index(i), one.as_str());
        }
    }
}

impl Settings {
    /// Takes over a file.
    ///
    /// # Errors
    /// Names the fields.
    pub fn read(file: File) -> Result<Self, String> {
        let File { defaults, exemptions } = file;
        if let Some(unknown) = defaults.keys().find(|k| !MODES.contains(&k.as_str())) {
            return Err(format!("unknown field \"defaults.{unknown}\""));
        }
        let Exemptions { usernames, namespaces, runtime_classes } = exemptions;
        let (defaults, mut errors) = policy::of_defaults(&defaults);
        check(&namespaces, "namespaces", &|n| names::dns1123_label(n, false), &mut errors);
        check(&runtime_classes, "runtimeClasses", &|n| names::dns1123_subdomain(n, false), &mut errors);
        let empty = |name: &str| {
            if name.is_empty() { vec!["username must not be empty".to_owned()] } else { Vec::new() }
        };
        check(&usernames, "usernames", &empty, &mut errors);
        if errors.is_empty() {
            return Ok(Self { defaults, usernames, namespaces, runtime_classes });
        }
        Err(errors.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
    }

    /// Whether this user's pods, or those of this namespace, are let alone.
    #[must_use]
    pub fn exempts(&self, namespace: &str, user: &str) -> bool {
        self.exempts_namespace(namespace) || self.usernames.iter().any(|u| u == user)
    }

    /// Whether the pods of this namespace are let alone.
    #[must_use]
    pub fn exempts_namespace(&self, namespace: &str) -> bool {
        self.namespaces.iter().any(|n| n == namespace)
    }

    /// Whether pods of this runtime class are let alone.
    #[must_use]
    pub fn exempts_class(&self, spec: &PodSpec) -> bool {
        spec.runtime_class_name.as_ref().is_some_and(|c| self.runtime_classes.contains(c))
    }
}
