//! `KubeSchedulerConfiguration`: profiles, their plugins, weights and arguments. What is not done here is refused by
//! name, not passed over.

mod args;
mod extenders;

use crate::extender::ExtenderConfig;
use crate::profile::{Filter, Profile};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";
const KIND: &str = "KubeSchedulerConfiguration";

/// How the scheduler works.
#[derive(Clone, Debug, PartialEq)]
pub struct Configuration {
    /// Who places which pods.
    pub profiles: Vec<Profile>,
    /// How long a pod waits after its first failed attempt; twice as long after each further one…
    pub backoff_initial: Duration,
    /// …up to this.
    pub backoff_max: Duration,
    /// Who is asked besides.
    pub extenders: Vec<ExtenderConfig>,
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            profiles: vec![Profile::new("default-scheduler")],
            backoff_initial: Duration::from_secs(1),
            backoff_max: Duration::from_secs(10),
            extenders: Vec::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    api_version: String,
    kind: String,
    percentage_of_nodes_to_score: Option<i64>,
    pod_initial_backoff_seconds: Option<i64>,
    pod_max_backoff_seconds: Option<i64>,
    #[serde(default)]
    profiles: Vec<ProfileDocument>,
    leader_election: Option<LeaderElection>,
    #[serde(default)]
    extenders: Vec<extenders::Document>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LeaderElection {
    leader_elect: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ProfileDocument {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<i64>,
    #[serde(default)]
    plugins: Plugins,
    #[serde(default)]
    plugin_config: Vec<PluginConfig>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Plugins {
    #[serde(default)]
    filter: PluginSet,
    #[serde(default)]
    post_filter: PluginSet,
    #[serde(default)]
    score: PluginSet,
    #[serde(default)]
    multi_point: PluginSet,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PluginSet {
    #[serde(default)]
    enabled: Vec<Plugin>,
    #[serde(default)]
    disabled: Vec<Plugin>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Plugin {
    name: String,
    #[serde(default)]
    weight: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PluginConfig {
    name: String,
    #[serde(default)]
    args: BTreeMap<String, Value>,
}

const FILTERS: [(&str, Filter); 13] = [
    ("NodeUnschedulable", Filter::NodeUnschedulable),
    ("NodeName", Filter::NodeName),
    ("TaintToleration", Filter::TaintToleration),
    ("NodeAffinity", Filter::NodeAffinity),
    ("NodePorts", Filter::NodePorts),
    ("NodeResourcesFit", Filter::NodeResourcesFit),
    ("VolumeRestrictions", Filter::VolumeRestrictions),
    ("NodeVolumeLimits", Filter::NodeVolumeLimits),
    ("VolumeBinding", Filter::VolumeBinding),
    ("VolumeZone", Filter::VolumeZone),
    ("PodTopologySpread", Filter::PodTopologySpread),
    ("InterPodAffinity", Filter::InterPodAffinity),
    ("DynamicResources", Filter::DynamicResources),
];

/// Plugins that score, with their weights in the default profile.
const SCORES: [(&str, i64); 8] = [
    ("TaintToleration", 3),
    ("NodeAffinity", 2),
    ("PodTopologySpread", 2),
    ("InterPodAffinity", 2),
    ("NodeResourcesFit", 1),
    ("NodeResourcesBalancedAllocation", 1),
    ("ImageLocality", 1),
    ("DynamicResources", 1),
];

const PREEMPTION: &str = "DefaultPreemption";

/// Without these nothing would be placed.
const ESSENTIAL: [&str; 3] = ["PrioritySort", "SchedulingGates", "DefaultBinder"];

/// Which plugins of one extension point run, by name, with weights: those there are by default, less what is disabled,
/// and what is enabled.
fn run<'a>(
    at: &str,
    defaults: impl Iterator<Item = (&'a str, i64)>,
    sets: [&PluginSet; 2],
    known: &BTreeSet<&'a str>,
) -> Result<BTreeMap<String, i64>, String> {
    let mut out: BTreeMap<String, i64> = defaults.map(|(name, weight)| (name.to_owned(), weight)).collect();
    for set in sets {
        for plugin in &set.disabled {
            match plugin.name.as_str() {
                "*" => out.clear(),
                name if ESSENTIAL.contains(&name) => return Err(format!("{at}: {name} cannot be disabled")),
                name => drop(out.remove(name)),
            }
        }
        for plugin in set.enabled.iter().filter(|p| known.contains(p.name.as_str())) {
            out.insert(plugin.name.clone(), if plugin.weight == 0 { 1 } else { plugin.weight });
        }
    }
    Ok(out)
}

fn percentage(n: Option<i64>, at: &str) -> Result<Option<u8>, String> {
    let Some(n) = n else { return Ok(None) };
    match u8::try_from(n) {
        Ok(n) if n <= 100 => Ok(Some(n)),
        _ => Err(format!("{at}: Invalid value: {n}: not in valid range [0-100]")),
    }
}

fn seconds(n: Option<i64>, default: Duration, at: &str) -> Result<Duration, String> {
    match n {
        None => Ok(default),
        Some(n) if n > 0 => Ok(Duration::from_secs(n.unsigned_abs())),
        Some(n) => Err(format!("{at}: Invalid value: {n}: must be greater than 0")),
    }
}

impl Configuration {
    /// Reads a configuration file's document.
    ///
    /// # Errors
    /// What is wrong with it, or not supported, by field.
    pub fn from_value(document: Value) -> Result<Self, String> {
        let document: Document = serde_json::from_value(document).map_err(|e| e.to_string())?;
        if (document.api_version.as_str(), document.kind.as_str()) != (API_VERSION, KIND) {
            let (version, kind) = (document.api_version, document.kind);
            return Err(format!("{version}, {kind}: only {API_VERSION}, {KIND} is read"));
        }
        if document.leader_election.is_some_and(|l| l.leader_elect) {
            return Err("leaderElection.leaderElect: one scheduler runs, in the server's own process".into());
        }
        let general = percentage(document.percentage_of_nodes_to_score, "percentageOfNodesToScore")?.unwrap_or(0);
        let default = Self::default();
        let initial =
            seconds(document.pod_initial_backoff_seconds, default.backoff_initial, "podInitialBackoffSeconds")?;
        let max = seconds(document.pod_max_backoff_seconds, default.backoff_max, "podMaxBackoffSeconds")?;
        if max < initial {
            let max = max.as_secs();
            let why = "must be greater than or equal to PodInitialBackoffSeconds";
            return Err(format!("podMaxBackoffSeconds: Invalid value: {max}: {why}"));
        }
        let mut profiles: Vec<Profile> = Vec::new();
        for (index, p) in document.profiles.into_iter().enumerate() {
            let at = format!("profiles[{index}]");
            let profile = profile(p, general).map_err(|e| format!("{at}.{e}"))?;
            if profiles.iter().any(|known| known.name == profile.name) {
                return Err(format!("{at}.schedulerName: Duplicate value: {:?}", profile.name));
            }
            profiles.push(profile);
        }
        if profiles.is_empty() {
            profiles.push(Profile { percentage: general, ..Profile::new("default-scheduler") });
        }
        let (extenders, ignored) = extenders::read(document.extenders)?;
        profiles.iter_mut().for_each(|p| p.ignored_resources.extend(ignored.iter().cloned()));
        Ok(Self { profiles, backoff_initial: initial, backoff_max: max, extenders })
    }
}

fn profile(document: ProfileDocument, general: u8) -> Result<Profile, String> {
    let mut out = Profile::new(document.scheduler_name.as_deref().unwrap_or("default-scheduler"));
    if out.name.is_empty() {
        return Err("schedulerName: Required value".into());
    }
    let own = percentage(document.percentage_of_nodes_to_score, "percentageOfNodesToScore")?;
    out.percentage = own.unwrap_or(general);

    let Plugins { filter, post_filter, score, multi_point } = document.plugins;
    let filters: BTreeSet<&str> = FILTERS.iter().map(|(name, _)| *name).collect();
    let scores: BTreeSet<&str> = SCORES.iter().map(|(name, _)| *name).collect();
    let others: BTreeSet<&str> = ESSENTIAL.into_iter().chain([PREEMPTION, "*"]).collect();
    let whole: BTreeSet<&str> = filters.iter().chain(&scores).chain(&others).copied().collect();
    let only_preemption = BTreeSet::from([PREEMPTION, "*"]);
    for (at, set, known) in [
        ("filter", &filter, &filters),
        ("postFilter", &post_filter, &only_preemption),
        ("score", &score, &scores),
        ("multiPoint", &multi_point, &whole),
    ] {
        for plugin in set.enabled.iter().chain(&set.disabled).filter(|p| p.name != "*") {
            if !known.contains(plugin.name.as_str()) {
                return Err(format!("plugins.{at}: {} does not exist", plugin.name));
            }
        }
    }
    let running = run("plugins.filter", FILTERS.iter().map(|(n, _)| (*n, 0)), [&multi_point, &filter], &filters)?;
    out.disabled = FILTERS.iter().filter(|(n, _)| !running.contains_key(*n)).map(|(_, f)| *f).collect();
    let preemption = std::iter::once((PREEMPTION, 0));
    out.preempts = !run("plugins.postFilter", preemption, [&multi_point, &post_filter], &only_preemption)?.is_empty();
    let weights = run("plugins.score", SCORES.iter().copied(), [&multi_point, &score], &scores)?;
    let weight = |name: &str| weights.get(name).copied().unwrap_or(0);
    if let Some((name, weight)) = weights.iter().find(|(_, w)| **w < 0) {
        return Err(format!("plugins.score: {name}: weight {weight} is negative"));
    }
    out.weights.taints = weight("TaintToleration");
    out.weights.node_affinity = weight("NodeAffinity");
    out.weights.spread = weight("PodTopologySpread");
    out.weights.pod_affinity = weight("InterPodAffinity");
    out.weights.fit = weight("NodeResourcesFit");
    out.weights.balanced = weight("NodeResourcesBalancedAllocation");
    out.weights.images = weight("ImageLocality");
    out.weights.devices = weight("DynamicResources");

    for (index, PluginConfig { name, mut args }) in document.plugin_config.into_iter().enumerate() {
        args.remove("apiVersion");
        args.remove("kind");
        let args = Value::from_iter(args);
        args::apply(&mut out, &name, args).map_err(|e| format!("pluginConfig[{index}].args{e}"))?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{SpreadDefaults, Strategy};
    use serde_json::json;

    fn read_profiles(profiles: &Value) -> Result<Configuration, String> {
        Configuration::from_value(json!({"apiVersion": API_VERSION, "kind": KIND, "profiles": profiles}))
    }

    #[test]
    fn an_empty_document_is_the_default() {
        assert_eq!(read_profiles(&json!([])).unwrap(), Configuration::default());
        assert_eq!(read_profiles(&json!([{}])).unwrap(), Configuration::default());
    }

    #[test]
    fn plugins_and_arguments() {
        let found = read_profiles(&json!([
            {"schedulerName": "packed", "percentageOfNodesToScore": 30,
             "plugins": {
                "score": {"disabled": [{"name": "*"}], "enabled": [{"name": "NodeResourcesFit", "weight": 5}]},
                "filter": {"disabled": [{"name": "TaintToleration"}]},
                "postFilter": {"disabled": [{"name": "DefaultPreemption"}]}},
             "pluginConfig": [
                {"name": "NodeResourcesFit", "args": {"kind": "NodeResourcesFitArgs", "scoringStrategy":
                    {"type": "MostAllocated", "resources": [{"name": "cpu", "weight": 2}]}}},
                {"name": "PodTopologySpread", "args": {"defaultingType": "List"}},
                {"name": "DynamicResources", "args": {"filterTimeout": "0s", "bindingTimeout": "1m30s"}}]},
            {"plugins": {"multiPoint": {"disabled": [{"name": "ImageLocality"}],
                "enabled": [{"name": "TaintToleration", "weight": 7}]}}},
        ]))
        .unwrap();
        let (packed, other) = (&found.profiles[0], &found.profiles[1]);
        assert_eq!((packed.name.as_str(), packed.percentage, packed.preempts), ("packed", 30, false));
        assert_eq!((packed.weights.fit, packed.weights.taints, packed.weights.images), (5, 0, 0));
        assert_eq!(packed.disabled, [Filter::TaintToleration]);
        assert_eq!(packed.strategy, Strategy::MostAllocated);
        assert_eq!(packed.resources, [("cpu".to_owned(), 2)]);
        assert_eq!(packed.spread_defaults, SpreadDefaults::List(Vec::new()));
        assert_eq!((packed.devices.filter, packed.devices.binding.as_secs()), (Duration::ZERO, 90));
        assert_eq!((other.name.as_str(), other.weights.taints, other.weights.images), ("default-scheduler", 7, 0));
        assert!(other.disabled.is_empty() && other.preempts);
    }

    #[test]
    fn refusals_name_the_field() {
        for (profiles, want) in [
            (json!([{}, {}]), "profiles[1].schedulerName: Duplicate value: \"default-scheduler\""),
            (json!([{"percentageOfNodesToScore": 101}]), "not in valid range [0-100]"),
            (json!([{"plugins": {"reserve": {}}}]), "unknown field `reserve`"),
            (json!([{"plugins": {"score": {"enabled": [{"name": "Mine"}]}}}]), "plugins.score: Mine does not exist"),
            (json!([{"plugins": {"multiPoint": {"disabled": [{"name": "DefaultBinder"}]}}}]), "cannot be disabled"),
            (
                json!([{"pluginConfig": [{"name": "ImageLocality", "args": {}}]}]),
                "args: ImageLocality has no arguments",
            ),
        ] {
            let error = read_profiles(&profiles).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
        let whole = |more: Value| {
            let mut document = json!({"apiVersion": API_VERSION, "kind": KIND});
            document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            Configuration::from_value(document)
        };
        assert!(whole(json!({"parallelism": 16})).unwrap_err().contains("unknown field `parallelism`"));
        assert!(whole(json!({"podMaxBackoffSeconds": 0})).is_err());
        assert!(whole(json!({"podInitialBackoffSeconds": 5, "podMaxBackoffSeconds": 2})).is_err());
        assert_eq!(whole(json!({"podMaxBackoffSeconds": 60})).unwrap().backoff_max, Duration::from_secs(60));
        assert!(Configuration::from_value(json!({"apiVersion": "v1", "kind": "Pod"})).is_err());
    }
}
