//! Which plugins run: those that are on by default, with what the administrator turned on and off.
//!
//! Names and defaults are kube-apiserver's, in the order in which it runs them.

use super::configuration::AdmissionConfig;
use super::measured::{Measured, Timed};
use super::{Chain, MutatingPlugin, ValidatingPlugin};
use std::sync::Arc;

/// A plugin that upstream has.
struct Known {
    name: &'static str,
    /// Whether it runs unless it is turned off.
    by_default: bool,
    /// Whether it is here at all.
    here: bool,
}

const fn on(name: &'static str) -> Known {
    Known { name, by_default: true, here: true }
}

const fn off(name: &'static str) -> Known {
    Known { name, by_default: false, here: true }
}

const fn absent(name: &'static str) -> Known {
    Known { name, by_default: false, here: false }
}

const KNOWN: &[Known] = &[
    off("AlwaysAdmit"),
    off("NamespaceAutoProvision"),
    on("NamespaceLifecycle"),
    off("NamespaceExists"),
    off("LimitPodHardAntiAffinityTopology"),
    on("LimitRanger"),
    on("ServiceAccount"),
    // Upstream leaves it off because not every cluster's nodes have identities of their own; here they do.
    on("NodeRestriction"),
    on("TaintNodesByCondition"),
    off("AlwaysPullImages"),
    off("ImagePolicyWebhook"),
    on("PodSecurity"),
    off("PodNodeSelector"),
    on("Priority"),
    on("DefaultTolerationSeconds"),
    off("PodTolerationRestriction"),
    off("EventRateLimit"),
    off("ExtendedResourceToleration"),
    on("DefaultStorageClass"),
    on("StorageObjectInUseProtection"),
    on("PodGroupProtection"),
    off("OwnerReferencesPermissionEnforcement"),
    on("PersistentVolumeClaimResize"),
    on("RuntimeClass"),
    on("CertificateApproval"),
    on("CertificateSigning"),
    on("ClusterTrustBundleAttest"),
    on("CertificateSubjectRestriction"),
    on("DefaultIngressClass"),
    off("DenyServiceExternalIPs"),
    on("PodTopologyLabels"),
    absent("PodGroupWorkloadExists"),
    absent("NodeDeclaredFeatureValidator"),
    absent("JobValidation"),
    absent("PodResizeValidator"),
    on("MutatingAdmissionPolicy"),
    on("MutatingAdmissionWebhook"),
    on("ValidatingAdmissionPolicy"),
    on("ValidatingAdmissionWebhook"),
    on("ResourceQuota"),
    off("AlwaysDeny"),
];

fn known(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|k| k.name == name)
}

/// What is wrong with the lists of plugins to turn on and off.
///
/// # Errors
/// Names the flag and the plugin.
pub(super) fn check(config: &AdmissionConfig) -> Result<(), String> {
    for (flag, names) in [("enable", &config.enable), ("disable", &config.disable)] {
        if let Some(name) = names.iter().find(|n| known(n).is_none()) {
            return Err(format!("--{flag}-admission-plugins: plugin {name:?} is unknown"));
        }
    }
    // Turning off what is not here changes nothing; turning it on would promise something.
    if let Some(name) = config.enable.iter().find(|n| known(n).is_some_and(|k| !k.here)) {
        return Err(format!("--enable-admission-plugins: plugin {name:?} is not available"));
    }
    let both: Vec<&str> = config.enable.iter().filter(|n| config.disable.contains(n)).map(String::as_str).collect();
    if both.is_empty() {
        return Ok(());
    }
    Err(format!("[{}] in enable-admission-plugins and disable-admission-plugins overlapped", both.join(" ")))
}

/// Whether the plugin runs. What upstream has no plugin for is part of the server and cannot be turned off.
pub(super) fn runs(name: &str, config: &AdmissionConfig) -> bool {
    let Some(known) = known(name) else { return true };
    let named = |list: &[String]| list.iter().any(|n| n == name);
    !named(&config.disable) && (known.by_default || named(&config.enable))
}

/// The plugins of the lists that run.
pub(super) fn select(
    mut mutating: Vec<Box<dyn MutatingPlugin>>,
    mut validating: Vec<Box<dyn ValidatingPlugin>>,
    config: &AdmissionConfig,
    measured: Arc<Measured>,
) -> Chain {
    mutating.retain(|p| runs(p.name(), config));
    validating.retain(|p| runs(p.name(), config));
    let mutating = mutating.into_iter().map(Timed::new).collect();
    Chain { mutating, validating: validating.into_iter().map(Timed::new).collect(), measured }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(enable: &[&str], disable: &[&str]) -> AdmissionConfig {
        let owned = |l: &[&str]| l.iter().map(|n| (*n).to_owned()).collect();
        AdmissionConfig { enable: owned(enable), disable: owned(disable), ..Default::default() }
    }

    #[test]
    fn what_is_turned_on_and_off() {
        let c = config(&["AlwaysPullImages"], &["LimitRanger", "EventRateLimit"]);
        assert_eq!(check(&c), Ok(()));
        let cases = [
            ("AlwaysPullImages", true),
            ("LimitRanger", false),
            ("AlwaysDeny", false),
            ("ResourceQuota", true),
            ("RBACEscalation", true),
        ];
        for (name, want) in cases {
            assert_eq!(runs(name, &c), want, "{name}");
        }
    }

    #[test]
    fn mistakes_name_flag_and_plugin() {
        let cases = [
            (config(&["Nonsense"], &[]), "--enable-admission-plugins: plugin \"Nonsense\" is unknown"),
            (config(&[], &["Nonsense"]), "--disable-admission-plugins: plugin \"Nonsense\" is unknown"),
            (config(&["JobValidation"], &[]), "--enable-admission-plugins: plugin \"JobValidation\" is not available"),
            (
                config(&["LimitRanger"], &["LimitRanger"]),
                "[LimitRanger] in enable-admission-plugins and disable-admission-plugins overlapped",
            ),
        ];
        for (c, want) in cases {
            assert_eq!(check(&c).unwrap_err(), want);
        }
    }
}
