//! What the administrator says about admission: which plugins run, and `AdmissionConfiguration` files
//! (`apiserver.config.k8s.io/v1`, `--admission-control-config-file`).

use super::event_rate_limit::EventLimits;
use super::image_policy::ImagePolicy;
use super::plugins;
use super::pod_security::Settings as PodSecurity;
use super::resource_quota::Limited;
use crate::review_hook::HookEndpoint;
use gantry_api::k8s_openapi::api::core::v1::Toleration;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;

/// Settings of admission.
#[derive(Clone, Debug, Default)]
pub struct AdmissionConfig {
    /// Plugins that run though they are off by default (`--enable-admission-plugins`).
    pub enable: Vec<String>,
    /// Plugins that do not run (`--disable-admission-plugins`).
    pub disable: Vec<String>,
    /// Defaults and exemptions of PodSecurity.
    pub pod_security: PodSecurity,
    /// Node selectors by namespace for PodNodeSelector; `clusterDefaultNodeSelector` is for namespaces that name none.
    pub node_selectors: BTreeMap<String, String>,
    /// What may be used only where a quota bounds it.
    pub limited_resources: Vec<Limited>,
    /// What PodTolerationRestriction does in namespaces that do not say it themselves.
    pub tolerations: Tolerations,
    /// How many events EventRateLimit lets through.
    pub event_limits: EventLimits,
    /// Whom ImagePolicyWebhook asks; None where the file does not say.
    pub image_policy: Option<ImagePolicy>,
}

/// What an `AdmissionConfiguration` names, read for it; the server itself reads no files.
pub struct Files<'r> {
    /// The text of a file.
    pub text: &'r dyn Fn(&str) -> Result<String, String>,
    /// Where the webhook of a kubeconfig is.
    pub endpoint: &'r dyn Fn(&str) -> Result<HookEndpoint, String>,
}

/// `podtolerationrestriction.admission.k8s.io/v1alpha1` Configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerations {
    /// Given to every new pod.
    #[serde(default)]
    pub default: Vec<Toleration>,
    /// What pods may tolerate; everything where it is empty.
    #[serde(default, rename = "whitelist")]
    pub allowed: Vec<Toleration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    plugins: Vec<Plugin>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plugin {
    name: String,
    #[serde(default)]
    path: String,
    configuration: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeSelectors {
    #[serde(default, rename = "podNodeSelectorPluginConfig")]
    selectors: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    #[serde(default, rename = "limitedResources")]
    limited_resources: Vec<Limited>,
}

fn yaml(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str(text).map_err(|e| e.to_string())
}

/// Takes `apiVersion` and `kind` off a document, which must be of one of these.
fn typed<T: DeserializeOwned>(mut document: Value, kind: &str, versions: &[&str]) -> Result<T, String> {
    let fields = document.as_object_mut().ok_or("not an object")?;
    let mut take = |name: &str| fields.remove(name).and_then(|v| v.as_str().map(ToOwned::to_owned)).unwrap_or_default();
    let (version, found) = (take("apiVersion"), take("kind"));
    if found != kind || !versions.contains(&version.as_str()) {
        return Err(format!("no kind {found:?} is registered for version {version:?}"));
    }
    serde_json::from_value(document).map_err(|e| e.to_string())
}

impl AdmissionConfig {
    /// Takes over an `AdmissionConfiguration`.
    ///
    /// # Errors
    /// Names the plugin and the field.
    pub fn configure(&mut self, text: &str, files: &Files<'_>) -> Result<(), String> {
        let versions = ["apiserver.config.k8s.io/v1", "apiserver.k8s.io/v1alpha1"];
        let file: File = typed(yaml(text)?, "AdmissionConfiguration", &versions)?;
        for plugin in file.plugins {
            let Plugin { name, path, configuration } = plugin;
            let wrong = |why: String| format!("plugin {name:?}: {why}");
            let document = match configuration.filter(|c| !c.is_null()) {
                Some(document) => document,
                None if path.is_empty() => continue,
                None => yaml(&(files.text)(&path).map_err(wrong)?).map_err(wrong)?,
            };
            self.plugin(&name, document, files).map_err(wrong)?;
        }
        Ok(())
    }

    fn plugin(&mut self, name: &str, document: Value, files: &Files<'_>) -> Result<(), String> {
        match name {
            "PodSecurity" => {
                let group = "pod-security.admission.config.k8s.io";
                let versions = ["v1", "v1beta1", "v1alpha1"].map(|v| format!("{group}/{v}"));
                let versions: Vec<&str> = versions.iter().map(String::as_str).collect();
                let file = typed(document, "PodSecurityConfiguration", &versions)?;
                self.pod_security = PodSecurity::read(file)?;
            }
            "PodNodeSelector" => {
                let file: NodeSelectors = serde_json::from_value(document).map_err(|e| e.to_string())?;
                self.node_selectors = file.selectors;
            }
            "PodTolerationRestriction" => {
                let group = "podtolerationrestriction.admission.k8s.io/v1alpha1";
                self.tolerations = typed(document, "Configuration", &[group])?;
            }
            "ResourceQuota" => {
                let file: Limits = typed(document, "ResourceQuotaConfiguration", &["apiserver.config.k8s.io/v1"])?;
                if let Some(i) = file.limited_resources.iter().position(|l| l.resource.is_empty()) {
                    return Err(format!("limitedResources[{i}].resource: Required value"));
                }
                self.limited_resources = file.limited_resources;
            }
            "EventRateLimit" if plugins::runs(name, self) => {
                let version = "eventratelimit.admission.k8s.io/v1alpha1";
                self.event_limits = typed(document, "Configuration", &[version])?;
            }
            "ImagePolicyWebhook" if plugins::runs(name, self) => {
                self.image_policy = Some(ImagePolicy::read(document, files.endpoint)?);
            }
            // As upstream: what is said of a plugin that does not run is not looked at.
            other if !plugins::runs(other, self) => {}
            _ => return Err("takes no configuration here".into()),
        }
        Ok(())
    }

    /// What is wrong with the settings.
    ///
    /// # Errors
    /// Names the flag and the plugin.
    pub fn check(&self) -> Result<(), String> {
        plugins::check(self)
    }

    /// Whether all that run have been told what they need, once the file has been read.
    ///
    /// # Errors
    /// Names the plugin, and what it lacks.
    pub fn check_whole(&self) -> Result<(), String> {
        let lacks = |name: &str, why: &str| Err(format!("couldn't init admission plugin {name:?}: {why}"));
        if plugins::runs("EventRateLimit", self)
            && let Err(why) = self.event_limits.check()
        {
            return lacks("EventRateLimit", &why);
        }
        if plugins::runs("ImagePolicyWebhook", self) && self.image_policy.is_none() {
            return lacks("ImagePolicyWebhook", "no config specified");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::pod_security::Level;

    fn read(text: &str) -> Result<AdmissionConfig, String> {
        let mut config = AdmissionConfig::default();
        let files = |path: &str| match path {
            "selectors.yaml" => Ok("podNodeSelectorPluginConfig: {clusterDefaultNodeSelector: a=b}".to_owned()),
            other => Err(format!("{other} is not there")),
        };
        let endpoint = |_: &str| Err("no kubeconfig".to_owned());
        config.configure(
            &format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\n{text}"),
            &Files { text: &files, endpoint: &endpoint },
        )?;
        Ok(config)
    }

    #[test]
    fn plugins_that_need_a_configuration() {
        let with = |enable: &str, text: &str| {
            let mut config = AdmissionConfig { enable: vec![enable.into()], ..AdmissionConfig::default() };
            let endpoint = |_: &str| Ok(HookEndpoint { url: "https://127.0.0.1:1/".into(), ..HookEndpoint::default() });
            let files = Files { text: &|path| Err(path.to_owned()), endpoint: &endpoint };
            if !text.is_empty() {
                config.configure(text, &files)?;
            }
            config.check_whole()
        };
        let file = |name: &str, configuration: &str| {
            format!(
                "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\n\
                 plugins: [{{name: {name}, configuration: {configuration}}}]"
            )
        };
        let of_events = |limits: &str| {
            let text = format!(
                "{{apiVersion: eventratelimit.admission.k8s.io/v1alpha1, kind: Configuration, limits: [{limits}]}}"
            );
            with("EventRateLimit", &file("EventRateLimit", &text))
        };
        assert_eq!(of_events("{type: Server, qps: 1, burst: 2}"), Ok(()));
        assert_eq!(
            of_events("{type: Server, qps: 1, burst: 0}").unwrap_err(),
            "couldn't init admission plugin \"EventRateLimit\": limits[0].burst: Invalid value: 0: must be positive"
        );
        assert!(with("EventRateLimit", "").unwrap_err().contains("limits: Invalid value: null: must not be empty"));
        assert_eq!(
            with("ImagePolicyWebhook", "").unwrap_err(),
            "couldn't init admission plugin \"ImagePolicyWebhook\": no config specified"
        );
        let hook = file("ImagePolicyWebhook", "{imagePolicy: {kubeConfigFile: k}}");
        assert_eq!(with("ImagePolicyWebhook", &hook), Ok(()));
    }

    #[test]
    fn plugins_are_configured_in_line_and_by_files() {
        let config = read(
            "plugins:\n- name: PodNodeSelector\n  path: selectors.yaml\n- name: EventRateLimit\n  configuration: {any: thing}\n\
             - name: PodSecurity\n  configuration:\n    apiVersion: pod-security.admission.config.k8s.io/v1\n    \
             kind: PodSecurityConfiguration\n    defaults: {enforce: baseline, warn-version: v1.20}\n    \
             exemptions: {namespaces: [kube-system]}\n",
        )
        .unwrap();
        assert_eq!(config.node_selectors["clusterDefaultNodeSelector"], "a=b");
        assert_eq!(config.pod_security.defaults.enforce.level, Level::Baseline);
        assert_eq!(config.pod_security.defaults.warn.version, Some(20));
        assert_eq!(config.pod_security.namespaces, ["kube-system"]);
    }

    #[test]
    fn mistakes_name_plugin_and_field() {
        let of_security = |fields: &str| {
            format!(
                "plugins: [{{name: PodSecurity, configuration: {{apiVersion: pod-security.admission.config.k8s.io/v1, \
                 kind: PodSecurityConfiguration, {fields}}}}}]"
            )
        };
        let cases = [
            (
                "plugins: [{name: PodNodeSelector, path: gone}]".to_owned(),
                "plugin \"PodNodeSelector\": gone is not there",
            ),
            (
                "plugins: [{name: LimitRanger, configuration: {a: b}}]".to_owned(),
                "plugin \"LimitRanger\": takes no configuration here",
            ),
            ("extra: 1".to_owned(), "unknown field `extra`"),
            (of_security("defaults: {enforce: strict}"), "defaults.enforce: Invalid value: \"strict\": must be one of"),
            (
                of_security("exemptions: {usernames: ['']}"),
                "exemptions.usernames[0]: Invalid value: \"\": username must not be empty",
            ),
            (of_security("exemptions: {namespaces: [a, a]}"), "exemptions.namespaces[1]: Duplicate value: \"a\""),
        ];
        for (text, want) in cases {
            let told = read(&text).unwrap_err();
            assert!(told.contains(want), "{told}");
        }
        assert!(
            AdmissionConfig::default()
                .configure("kind: Other", &Files { text: &|_| Err(String::new()), endpoint: &|_| Err(String::new()) })
                .unwrap_err()
                .contains("\"Other\"")
        );
    }
}
