//! Arguments of the plugins, with upstream's defaults and validation.

use crate::profile::{Profile, SpreadDefaults, Strategy};
use gantry_api::k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use gantry_api::meta::names;
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;

/// The greatest score of a point of a shape.
const SHAPE_SCORE_MAX: i64 = 10;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodAffinityArgs {
    hard_pod_affinity_weight: Option<i64>,
    ignore_preferred_terms_of_existing_pods: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NodeAffinityArgs {
    added_affinity: Option<NodeAffinity>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SpreadArgs {
    #[serde(default)]
    default_constraints: Vec<TopologySpreadConstraint>,
    defaulting_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PreemptionArgs {
    min_candidate_nodes_percentage: Option<i64>,
    min_candidate_nodes_absolute: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FitArgs {
    #[serde(default)]
    ignored_resources: Vec<String>,
    #[serde(default)]
    ignored_resource_groups: Vec<String>,
    scoring_strategy: Option<ScoringStrategy>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ScoringStrategy {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    resources: Vec<Resource>,
    requested_to_capacity_ratio: Option<Ratio>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resource {
    name: String,
    #[serde(default)]
    weight: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Ratio {
    #[serde(default)]
    shape: Vec<Point>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Point {
    #[serde(default)]
    utilization: i64,
    #[serde(default)]
    score: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BalancedArgs {
    #[serde(default)]
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VolumeArgs {
    bind_timeout_seconds: Option<i64>,
    shape: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DeviceArgs {
    filter_timeout: Option<String>,
    binding_timeout: Option<String>,
}

fn read<T: serde::de::DeserializeOwned>(args: Value) -> Result<T, String> {
    serde_json::from_value(args).map_err(|e| format!(": {e}"))
}

/// A duration such as `1m30s`.
pub(super) fn duration(text: &str, at: &str) -> Result<Duration, String> {
    let wrong = || format!(".{at}: invalid duration {text:?}");
    let span: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(span).map_err(|_| wrong())
}

/// Whether a name may be that of a label.
fn label_name(name: &str, at: &str) -> Result<(), String> {
    names::qualified_name(name).first().map_or(Ok(()), |why| Err(format!("{at}: Invalid value: {name:?}: {why}")))
}

/// Puts the arguments of a plugin into a profile.
///
/// # Errors
/// What is wrong, beginning with the field (`.field: …`) or, where they cannot be read, with `: `.
pub(super) fn apply(profile: &mut Profile, plugin: &str, args: Value) -> Result<(), String> {
    match plugin {
        "InterPodAffinity" => {
            let args: PodAffinityArgs = read(args)?;
            let weight = args.hard_pod_affinity_weight.unwrap_or(1);
            if !(0..=100).contains(&weight) {
                return Err(format!(".hardPodAffinityWeight: Invalid value: {weight}: not in valid range [0, 100]"));
            }
            profile.hard_affinity_weight = weight;
            profile.ignore_preferred_of_placed = args.ignore_preferred_terms_of_existing_pods.unwrap_or(false);
        }
        "NodeAffinity" => profile.added_affinity = read::<NodeAffinityArgs>(args)?.added_affinity,
        "PodTopologySpread" => profile.spread_defaults = spread(read(args)?)?,
        "DefaultPreemption" => preemption(profile, &read(args)?)?,
        "NodeResourcesFit" => fit(profile, read(args)?)?,
        "NodeResourcesBalancedAllocation" => {
            let args: BalancedArgs = read(args)?;
            for (i, resource) in args.resources.iter().enumerate() {
                let at = format!(".resources[{i}]");
                if args.resources[..i].iter().any(|r| r.name == resource.name) {
                    return Err(format!("{at}.name: Duplicate value: {:?}", resource.name));
                }
                if !matches!(resource.weight, 0 | 1) {
                    return Err(format!("{at}.weight: Invalid value: {}: must be 1", resource.weight));
                }
            }
            if !args.resources.is_empty() {
                profile.balanced_resources = args.resources.into_iter().map(|r| r.name).collect();
            }
        }
        "VolumeBinding" => {
            let args: VolumeArgs = read(args)?;
            if let Some(shape) = args.shape.filter(|s| !s.is_null()) {
                let why = "unexpected field `shape`, remove it or turn on the feature gate StorageCapacityScoring";
                return Err(format!(".shape: Invalid value: {shape}: {why}"));
            }
            if let Some(seconds) = args.bind_timeout_seconds {
                let seconds = u64::try_from(seconds).map_err(|_| {
                    let why = "invalid BindTimeoutSeconds, should not be a negative value";
                    format!(".bindTimeoutSeconds: Invalid value: {seconds}: {why}")
                })?;
                profile.bind_timeout = Duration::from_secs(seconds);
            }
        }
        "DynamicResources" => {
            let args: DeviceArgs = read(args)?;
            let limits = &mut profile.devices;
            limits.filter = args.filter_timeout.map_or(Ok(limits.filter), |t| duration(&t, "filterTimeout"))?;
            limits.binding = args.binding_timeout.map_or(Ok(limits.binding), |t| duration(&t, "bindingTimeout"))?;
            if limits.binding < Duration::from_secs(1) {
                return Err(".bindingTimeout: must be at least 1 second".into());
            }
        }
        other => return Err(format!(": {other} has no arguments")),
    }
    Ok(())
}

fn spread(args: SpreadArgs) -> Result<SpreadDefaults, String> {
    let SpreadArgs { default_constraints: list, defaulting_type } = args;
    let is_list = match defaulting_type.as_deref().unwrap_or("System") {
        "List" => true,
        "System" if list.is_empty() => false,
        "System" => {
            return Err(".defaultingType: Invalid value: \"System\": when .defaultConstraints are not empty".into());
        }
        other => {
            let supported = "supported values: \"System\", \"List\"";
            return Err(format!(".defaultingType: Unsupported value: {other:?}: {supported}"));
        }
    };
    for (i, constraint) in list.iter().enumerate() {
        let at = format!(".defaultConstraints[{i}]");
        let (skew, key, action) = (constraint.max_skew, &constraint.topology_key, &constraint.when_unsatisfiable);
        if skew <= 0 {
            return Err(format!("{at}.maxSkew: Invalid value: {skew}: not in valid range (0, inf)"));
        }
        if key.is_empty() {
            return Err(format!("{at}.topologyKey: Required value: can not be empty"));
        }
        label_name(key, &format!("{at}.topologyKey"))?;
        match action.as_str() {
            "" => return Err(format!("{at}.whenUnsatisfiable: Required value: can not be empty")),
            "DoNotSchedule" | "ScheduleAnyway" => {}
            other => {
                let supported = "supported values: \"DoNotSchedule\", \"ScheduleAnyway\"";
                return Err(format!("{at}.whenUnsatisfiable: Unsupported value: {other:?}: {supported}"));
            }
        }
        if constraint.label_selector.is_some() {
            let why = "constraint must not define a selector, as they deduced for each pod";
            return Err(format!("{at}.labelSelector: Forbidden: {why}"));
        }
        if list[..i].iter().any(|o| o.topology_key == *key && o.when_unsatisfiable == *action) {
            return Err(format!("{at}: Duplicate value: \"{{{key}, {action}}}\""));
        }
    }
    Ok(if is_list { SpreadDefaults::List(list) } else { SpreadDefaults::System })
}

fn preemption(profile: &mut Profile, args: &PreemptionArgs) -> Result<(), String> {
    const PERCENTAGE: &str = "minCandidateNodesPercentage";
    const ABSOLUTE: &str = "minCandidateNodesAbsolute";
    let percentage = args.min_candidate_nodes_percentage.unwrap_or(10);
    let absolute = args.min_candidate_nodes_absolute.unwrap_or(100);
    if !(0..=100).contains(&percentage) {
        return Err(format!(".{PERCENTAGE}: Invalid value: {percentage}: not in valid range [0, 100]"));
    }
    if absolute < 0 {
        return Err(format!(".{ABSOLUTE}: Invalid value: {absolute}: not in valid range [0, inf)"));
    }
    if percentage == 0 && absolute == 0 {
        return Err(format!(".{PERCENTAGE}: Invalid value: 0: cannot be zero at the same time as {ABSOLUTE}"));
    }
    profile.candidates_percentage = usize::try_from(percentage).unwrap_or(0);
    profile.candidates_min = usize::try_from(absolute).unwrap_or(usize::MAX);
    Ok(())
}

fn fit(profile: &mut Profile, args: FitArgs) -> Result<(), String> {
    for (i, resource) in args.ignored_resources.iter().enumerate() {
        label_name(resource, &format!(".ignoredResources[{i}]"))?;
    }
    for (i, group) in args.ignored_resource_groups.iter().enumerate() {
        let at = format!(".ignoredResourceGroups[{i}]");
        if group.contains('/') {
            return Err(format!("{at}: Invalid value: {group:?}: resource group name can't contain '/'"));
        }
        label_name(group, &at)?;
    }
    profile.ignored_resources = args.ignored_resources.into_iter().collect();
    profile.ignored_groups = args.ignored_resource_groups.into_iter().collect();
    let Some(strategy) = args.scoring_strategy else { return Ok(()) };
    let at = ".scoringStrategy";
    for (i, resource) in strategy.resources.iter().enumerate() {
        if !(0..=100).contains(&resource.weight) {
            let (name, weight) = (&resource.name, resource.weight);
            let why = format!("resource weight of {name} not in valid range (0, 100]");
            return Err(format!("{at}.resources[{i}].weight: Invalid value: {weight}: {why}"));
        }
    }
    let ratio = strategy.requested_to_capacity_ratio;
    profile.strategy = match (strategy.r#type.as_str(), ratio) {
        ("LeastAllocated" | "MostAllocated", Some(_)) => {
            let why = "must be nil when type is not RequestedToCapacityRatio";
            return Err(format!("{at}.requestedToCapacityRatio: Forbidden: {why}"));
        }
        ("LeastAllocated", None) => Strategy::LeastAllocated,
        ("MostAllocated", None) => Strategy::MostAllocated,
        ("RequestedToCapacityRatio", Some(ratio)) => {
            shape(&ratio.shape, &format!("{at}.requestedToCapacityRatio.shape"))?;
            let scale = 100 / SHAPE_SCORE_MAX;
            Strategy::Ratio(ratio.shape.iter().map(|p| (p.utilization, p.score * scale)).collect())
        }
        ("RequestedToCapacityRatio", None) => {
            let why = "must be specified when type is RequestedToCapacityRatio";
            return Err(format!("{at}.requestedToCapacityRatio: Required value: {why}"));
        }
        (other, _) => {
            let supported = "\"LeastAllocated\", \"MostAllocated\", \"RequestedToCapacityRatio\"";
            return Err(format!("{at}.type: Unsupported value: {other:?}: supported values: {supported}"));
        }
    };
    if !strategy.resources.is_empty() {
        profile.resources = strategy.resources.into_iter().map(|r| (r.name, r.weight.max(1))).collect();
    }
    Ok(())
}

fn shape(points: &[Point], at: &str) -> Result<(), String> {
    if points.is_empty() {
        return Err(format!("{at}: Required value: at least one point must be specified"));
    }
    for (i, pair) in points.windows(2).enumerate() {
        if pair[0].utilization >= pair[1].utilization {
            let (at, value) = (format!("{at}[{}].utilization", i + 1), pair[1].utilization);
            return Err(format!("{at}: Invalid value: {value}: values must be sorted in increasing order"));
        }
    }
    for (i, point) in points.iter().enumerate() {
        for (field, value, max) in [("utilization", point.utilization, 100), ("score", point.score, SHAPE_SCORE_MAX)] {
            if !(0..=max).contains(&value) {
                return Err(format!("{at}[{i}].{field}: Invalid value: {value}: not in valid range [0, {max}]"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn applied(plugin: &str, args: Value) -> Result<Profile, String> {
        let mut profile = Profile::new("p");
        apply(&mut profile, plugin, args).map(|()| profile)
    }

    #[test]
    fn arguments_reach_the_profile() {
        let ratio = json!({"scoringStrategy": {"type": "RequestedToCapacityRatio",
            "resources": [{"name": "example.com/gpu", "weight": 3}, {"name": "cpu"}],
            "requestedToCapacityRatio": {"shape": [{"utilization": 0, "score": 0}, {"utilization": 100, "score": 10}]}},
            "ignoredResources": ["example.com/x"], "ignoredResourceGroups": ["example.org"]});
        let fit = applied("NodeResourcesFit", ratio).unwrap();
        assert_eq!(fit.strategy, Strategy::Ratio(vec![(0, 0), (100, 100)]));
        assert_eq!(fit.resources, [("example.com/gpu".to_owned(), 3), ("cpu".to_owned(), 1)]);
        assert!(fit.ignores("example.com/x") && fit.ignores("example.org/y") && !fit.ignores("example.com/y"));
        let balanced = json!({"resources": [{"name": "cpu", "weight": 1}, {"name": "ephemeral-storage"}]});
        let balanced = applied("NodeResourcesBalancedAllocation", balanced).unwrap();
        assert_eq!(balanced.balanced_resources, ["cpu", "ephemeral-storage"]);
        assert_eq!(applied("VolumeBinding", json!({"bindTimeoutSeconds": 5})).unwrap().bind_timeout.as_secs(), 5);
        let few = json!({"minCandidateNodesPercentage": 0, "minCandidateNodesAbsolute": 3});
        let few = applied("DefaultPreemption", few).unwrap();
        assert_eq!((few.candidates_percentage, few.candidates_min), (0, 3));
    }

    #[test]
    fn faults_have_upstreams_words() {
        const RATIO: &str = ".scoringStrategy.requestedToCapacityRatio";
        let constraint = |more: Value| {
            let mut c = json!({"maxSkew": 1, "topologyKey": "k", "whenUnsatisfiable": "DoNotSchedule"});
            c.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"defaultingType": "List", "defaultConstraints": [c]})
        };
        let scoring = |strategy: Value| json!({ "scoringStrategy": strategy });
        let twice = json!({"maxSkew": 1, "topologyKey": "k", "whenUnsatisfiable": "DoNotSchedule"});
        let ratio = |points: Value| {
            scoring(json!({"type": "RequestedToCapacityRatio", "requestedToCapacityRatio": {"shape": points}}))
        };
        for (plugin, args, want) in [
            (
                "InterPodAffinity",
                json!({"hardPodAffinityWeight": 101}),
                ".hardPodAffinityWeight: Invalid value: 101: not in valid range [0, 100]".to_owned(),
            ),
            (
                "DefaultPreemption",
                json!({"minCandidateNodesPercentage": 0, "minCandidateNodesAbsolute": 0}),
                ".minCandidateNodesPercentage: Invalid value: 0: cannot be zero at the same time as \
                 minCandidateNodesAbsolute"
                    .to_owned(),
            ),
            (
                "PodTopologySpread",
                json!({"defaultConstraints": [twice]}),
                ".defaultingType: Invalid value: \"System\": when .defaultConstraints are not empty".to_owned(),
            ),
            (
                "PodTopologySpread",
                constraint(json!({"maxSkew": 0})),
                ".defaultConstraints[0].maxSkew: Invalid value: 0: not in valid range (0, inf)".to_owned(),
            ),
            (
                "PodTopologySpread",
                constraint(json!({"labelSelector": {}})),
                ".defaultConstraints[0].labelSelector: Forbidden: constraint must not define a selector, as they \
                 deduced for each pod"
                    .to_owned(),
            ),
            (
                "PodTopologySpread",
                json!({"defaultingType": "List", "defaultConstraints": [twice, twice]}),
                ".defaultConstraints[1]: Duplicate value: \"{k, DoNotSchedule}\"".to_owned(),
            ),
            (
                "NodeResourcesFit",
                scoring(json!({"type": "Best"})),
                ".scoringStrategy.type: Unsupported value: \"Best\": supported values: \"LeastAllocated\", \
                 \"MostAllocated\", \"RequestedToCapacityRatio\""
                    .to_owned(),
            ),
            (
                "NodeResourcesFit",
                scoring(json!({"type": "LeastAllocated", "resources": [{"name": "cpu", "weight": 101}]})),
                ".scoringStrategy.resources[0].weight: Invalid value: 101: resource weight of cpu not in valid range \
                 (0, 100]"
                    .to_owned(),
            ),
            (
                "NodeResourcesFit",
                scoring(json!({"type": "RequestedToCapacityRatio"})),
                format!("{RATIO}: Required value: must be specified when type is RequestedToCapacityRatio"),
            ),
            (
                "NodeResourcesFit",
                ratio(json!([])),
                format!("{RATIO}.shape: Required value: at least one point must be specified"),
            ),
            (
                "NodeResourcesFit",
                ratio(json!([{"utilization": 5, "score": 1}, {"utilization": 5, "score": 2}])),
                format!("{RATIO}.shape[1].utilization: Invalid value: 5: values must be sorted in increasing order"),
            ),
            (
                "NodeResourcesFit",
                ratio(json!([{"utilization": 5, "score": 11}])),
                format!("{RATIO}.shape[0].score: Invalid value: 11: not in valid range [0, 10]"),
            ),
            (
                "NodeResourcesFit",
                json!({"ignoredResourceGroups": ["a/b"]}),
                ".ignoredResourceGroups[0]: Invalid value: \"a/b\": resource group name can't contain '/'".to_owned(),
            ),
            (
                "NodeResourcesBalancedAllocation",
                json!({"resources": [{"name": "cpu", "weight": 2}]}),
                ".resources[0].weight: Invalid value: 2: must be 1".to_owned(),
            ),
            (
                "VolumeBinding",
                json!({"bindTimeoutSeconds": -1}),
                ".bindTimeoutSeconds: Invalid value: -1: invalid BindTimeoutSeconds, should not be a negative value"
                    .to_owned(),
            ),
            ("ImageLocality", json!({}), ": ImageLocality has no arguments".to_owned()),
        ] {
            assert_eq!(applied(plugin, args).unwrap_err(), want);
        }
    }
}
