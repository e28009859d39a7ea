//! StatefulSet: numbered pods, each with its own name and its own storage.

use super::{int_or_percent, workload};
use crate::core::persistent_volume_claim as claims;
use crate::core::pod::validate::validate_pod_annotations;
use crate::core::pod::{default_pod_template, pod_template_warnings, validate_pod_template_spec};
use crate::kind::{Column, Context, Kind, ResourceInfo, SCALE, STATUS};
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::{Selector, SelectorOptions, validate_label_selector, validate_labels};
use crate::meta::object::{Meta, semantically_equal, validate_annotations};
use crate::meta::{names, table, text};
use k8s_openapi::api::apps::v1::{RollingUpdateStatefulSetStrategy, StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, PodTemplateSpec, Volume};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

const FROZEN: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
                      'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";

/// Limits of the counts in the status.
const LIMITS: &[(&str, &str, &str)] = &[
    ("readyReplicas", "replicas", "status.replicas"),
    ("currentReplicas", "replicas", "status.replicas"),
    ("updatedReplicas", "replicas", "status.replicas"),
    ("availableReplicas", "replicas", "status.replicas"),
    ("availableReplicas", "readyReplicas", "status.readyReplicas"),
];

fn canonicalize(s: &mut StatefulSet) -> Result<(), String> {
    s.spec.volume_claim_templates.iter_mut().flatten().try_for_each(claims::canonicalize)?;
    workload::canonicalize_template(Some(&mut s.spec.template))
}

impl Kind for StatefulSet {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["sts"],
        categories: &["all"],
        subresources: &[SCALE, STATUS],
        ..ResourceInfo::new("apps", "v1", "StatefulSet", "statefulsets", "statefulset", true)
    };
    const COLUMNS: &'static [Column] = &[
        workload::NAME,
        workload::column("Ready", "string", "Number of the pod with ready state"),
        workload::AGE,
        workload::CONTAINERS,
        workload::IMAGES,
    ];
    crate::kind_codec!(canonical: canonicalize);

    fn set_defaults(&mut self) {
        let spec = &mut self.spec;
        default_pod_template(&mut spec.template);
        for claim in spec.volume_claim_templates.iter_mut().flatten() {
            claim.set_defaults();
        }
        fill(&mut spec.pod_management_policy, "OrderedReady");
        let strategy = spec.update_strategy.get_or_insert_default();
        if text(&strategy.type_).is_empty() {
            strategy.type_ = Some("RollingUpdate".to_owned());
            strategy.rolling_update.get_or_insert_default();
        }
        if text(&strategy.type_) == "RollingUpdate"
            && let Some(rolling) = &mut strategy.rolling_update
        {
            rolling.partition.get_or_insert(0);
            rolling.max_unavailable.get_or_insert(IntOrString::Int(1));
        }
        let retention = spec.persistent_volume_claim_retention_policy.get_or_insert_default();
        fill(&mut retention.when_deleted, "Retain");
        fill(&mut retention.when_scaled, "Retain");
        spec.replicas.get_or_insert(1);
        spec.revision_history_limit.get_or_insert(10);
    }

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.status = Some(Default::default());
        self.metadata.generation = Some(1);
    }

    fn validate(&self) -> ErrorList {
        validate_spec(&self.spec, Leniency::default())
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        let path = Path::new("spec");
        if old.is_some_and(|o| o.metadata.generation == self.metadata.generation) {
            return Vec::new();
        }
        let before = old.map(|o| &o.spec.template);
        let mut out = pod_template_warnings(&self.spec.template, before, &path.child("template"));
        for (i, claim) in self.spec.volume_claim_templates.iter().flatten().enumerate() {
            let at = path.child("volumeClaimTemplates").index(i).child("Spec");
            out.extend(claim.spec.as_ref().map(|s| claims::spec_warnings(s, &at)).unwrap_or_default());
        }
        if self.spec.revision_history_limit.is_some_and(|l| l < 0) {
            out.push(
                "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended"
                    .to_owned(),
            );
        }
        out
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
        let changed = !semantically_equal(&self.spec, &old.spec);
        workload::bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        // Sets that older servers took in may stay as they are, but new faults may not come in.
        let any_name = Leniency { service_name: true, claims: true, template: false };
        let template_was_bad = !validate_spec(&old.spec, any_name).is_empty();
        let mut e = validate_spec(&self.spec, Leniency { template: template_was_bad, ..any_name });
        let mut allowed = self.spec.clone();
        let before = &old.spec;
        allowed.replicas = before.replicas;
        allowed.template.clone_from(&before.template);
        allowed.update_strategy.clone_from(&before.update_strategy);
        allowed.min_ready_seconds = before.min_ready_seconds;
        allowed.ordinals.clone_from(&before.ordinals);
        allowed.revision_history_limit = before.revision_history_limit;
        allowed.persistent_volume_claim_retention_policy.clone_from(&before.persistent_volume_claim_retention_policy);
        if !semantically_equal(&allowed, before) {
            e.forbidden(&Path::new("spec"), FROZEN);
        }
        e
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec.clone_from(&old.spec);
        self.metadata.generation = old.metadata.generation;
    }

    fn validate_status_update(&self, old: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        let s = self.status.clone().unwrap_or_default();
        let counts = [
            ("replicas", Some(s.replicas)),
            ("readyReplicas", s.ready_replicas),
            ("currentReplicas", s.current_replicas),
            ("updatedReplicas", s.updated_replicas),
            ("availableReplicas", s.available_replicas),
        ];
        workload::validate_counts(&mut e, &counts, &[]);
        let path = Path::new("status");
        workload::nonnegative(&mut e, &path.child("observedGeneration"), s.observed_generation.unwrap_or(0));
        workload::nonnegative(&mut e, &path.child("collisionCount"), i64::from(s.collision_count.unwrap_or(0)));
        let mut limits = ErrorList::default();
        workload::validate_counts(&mut limits, &counts, LIMITS);
        e.0.extend(limits.0.into_iter().filter(|f| f.body.contains("cannot be greater than")));
        let before = old.status.as_ref().and_then(|s| s.collision_count);
        workload::validate_collisions(&mut e, s.collision_count, before);
        e
    }

    fn validate_name(name: &str, prefix: bool) -> Vec<String> {
        names::dns1123_label(name, prefix)
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let ready = self.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0);
        let [containers, images] = workload::container_cells(Some(&self.spec.template));
        vec![
            self.metadata.name().into(),
            format!("{ready}/{}", self.spec.replicas.unwrap_or(0)).into(),
            table::age(&self.metadata, now).into(),
            containers,
            images,
        ]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["spec"]])
    }

    fn desired_replicas(&self) -> Option<i32> {
        Some(self.spec.replicas.unwrap_or(1))
    }
}

fn fill(value: &mut Option<String>, default: &str) {
    let value = value.get_or_insert_default();
    if value.is_empty() {
        default.clone_into(value);
    }
}

/// What an update lets pass because it may have been there before.
#[derive(Clone, Copy, Default)]
struct Leniency {
    service_name: bool,
    template: bool,
    claims: bool,
}

fn validate_spec(spec: &StatefulSetSpec, leniency: Leniency) -> ErrorList {
    let mut e = ErrorList::default();
    let path = Path::new("spec");
    validate_policies(&mut e, spec, &path);
    workload::nonnegative(&mut e, &path.child("replicas"), i64::from(spec.replicas.unwrap_or(0)));
    let min_ready = i64::from(spec.min_ready_seconds.unwrap_or(0));
    workload::nonnegative(&mut e, &path.child("minReadySeconds"), min_ready);
    let start = spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0);
    workload::nonnegative(&mut e, &path.child("ordinals.start"), i64::from(start));
    let service = text(&spec.service_name);
    if !leniency.service_name && !service.is_empty() {
        names::push_invalid(&mut e, &path.child("serviceName"), service, &names::dns1123_label(service, false));
    }
    let at = path.child("selector");
    e.extend(validate_label_selector(Some(&spec.selector), SelectorOptions::default(), &at));
    if workload::is_blank(&spec.selector) {
        e.invalid(&at, json!(spec.selector), "empty selector is invalid for statefulset");
    }
    let template = path.child("template");
    match Selector::from_label_selector(Some(&spec.selector)) {
        Err(_) => e.invalid(&at, json!(spec.selector), ""),
        Ok(selector) => {
            let labels = spec.template.metadata.as_ref().and_then(|m| m.labels.as_ref());
            if !selector.is_empty() && !selector.matches_optional(labels) {
                let shown = labels.map_or(Value::Null, |l| json!(l));
                let at = template.child("metadata").child("labels");
                e.invalid(&at, shown, "`selector` does not match template `labels`");
            }
            if leniency.template {
                validate_template_metadata(&mut e, &spec.template, &template);
            } else {
                e.extend(validate_pod_template_spec(&with_claims(spec), &template));
            }
        }
    }
    workload::validate_lasting(&mut e, &spec.template, "StatefulSet", &template.child("spec"));
    if !leniency.claims {
        for (i, claim) in spec.volume_claim_templates.iter().flatten().enumerate() {
            let at = path.child("volumeClaimTemplates").index(i).child("spec");
            claims::validate_spec(&claim.spec.clone().unwrap_or_default(), false, &at, &mut e);
        }
    }
    e
}

fn validate_policies(e: &mut ErrorList, spec: &StatefulSetSpec, path: &Path) {
    let at = path.child("podManagementPolicy");
    match text(&spec.pod_management_policy) {
        "" => e.required(&at, ""),
        "OrderedReady" | "Parallel" => {}
        other => e.invalid(&at, other, "must be 'OrderedReady' or 'Parallel'"),
    }
    let at = path.child("updateStrategy");
    let strategy = spec.update_strategy.clone().unwrap_or_default();
    let rolling_path = at.child("rollingUpdate");
    match (text(&strategy.type_), &strategy.rolling_update) {
        ("", _) => e.required(&at, ""),
        ("OnDelete", Some(rolling)) => {
            let shown = workload::shown_as(&[
                ("Partition", json!(rolling.partition.unwrap_or(0))),
                ("MaxUnavailable", json!(rolling.max_unavailable)),
            ]);
            workload::invalid_shown(e, &rolling_path, &shown, "only allowed for updateStrategy 'RollingUpdate'");
        }
        ("RollingUpdate", Some(rolling)) => validate_rolling_update(e, rolling, &rolling_path),
        ("OnDelete" | "RollingUpdate", None) => {}
        _ => {
            let shown = workload::shown_strategy(&json!(strategy));
            workload::invalid_shown(e, &at, &shown, "must be 'RollingUpdate' or 'OnDelete'");
        }
    }
    if let Some(retention) = &spec.persistent_volume_claim_retention_policy {
        let path = path.child("persistentVolumeClaimRetentionPolicy");
        for (field, policy) in [("whenDeleted", &retention.when_deleted), ("whenScaled", &retention.when_scaled)] {
            if !matches!(text(policy), "Retain" | "Delete") {
                e.not_supported(&path.child(field), text(policy), &["Retain", "Delete"]);
            }
        }
    }
}

fn validate_rolling_update(e: &mut ErrorList, rolling: &RollingUpdateStatefulSetStrategy, path: &Path) {
    workload::nonnegative(e, &path.child("partition"), i64::from(rolling.partition.unwrap_or(0)));
    let Some(unavailable) = &rolling.max_unavailable else { return };
    let at = path.child("maxUnavailable");
    int_or_percent::validate(e, &at, unavailable);
    if int_or_percent::is_zero(unavailable) {
        e.invalid(&at, int_or_percent::shown(unavailable), "cannot be 0");
    }
    int_or_percent::validate_at_most_100(e, &at, unavailable);
}

fn validate_template_metadata(e: &mut ErrorList, template: &PodTemplateSpec, path: &Path) {
    let meta = template.metadata.clone().unwrap_or_default();
    e.extend(validate_labels(meta.labels.as_ref(), &path.child("labels")));
    e.extend(validate_annotations(meta.annotations.as_ref(), &path.child("annotations")));
    let spec = template.spec.clone().unwrap_or_default();
    validate_pod_annotations(&meta, &spec, &path.child("annotations"), e);
}

/// The template with a volume for each claim, as the pods will have it; a claim hides a volume of its name.
fn with_claims(spec: &StatefulSetSpec) -> PodTemplateSpec {
    let mut template = spec.template.clone();
    let Some(pod) = &mut template.spec else { return template };
    let names: Vec<&str> = spec.volume_claim_templates.iter().flatten().map(|c| c.metadata.name()).collect();
    if names.is_empty() {
        return template;
    }
    let volumes = pod.volumes.get_or_insert_default();
    volumes.retain(|v| !names.contains(&v.name.as_str()));
    volumes.extend(names.into_iter().map(|name| Volume {
        name: name.to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: name.to_owned(),
            read_only: Some(false),
        }),
        ..Default::default()
    }));
    template
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stateful_set() -> StatefulSet {
        let mut s = <StatefulSet as Kind>::from_value(json!({
            "metadata": {"name": "db", "namespace": "n"},
            "spec": {
                "serviceName": "db",
                "selector": {"matchLabels": {"app": "db"}},
                "template": {
                    "metadata": {"labels": {"app": "db"}},
                    "spec": {"containers": [{"name": "c", "image": "i", "volumeMounts": [
                        {"name": "data", "mountPath": "/data"}]}]},
                },
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                    "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1024Mi"}}}}],
            },
        }))
        .unwrap();
        s.set_defaults();
        s
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_are_upstreams() {
        let s = stateful_set();
        assert_eq!((s.spec.replicas, s.spec.revision_history_limit), (Some(1), Some(10)));
        assert_eq!(
            json!({"policy": s.spec.pod_management_policy, "strategy": s.spec.update_strategy,
                "retention": s.spec.persistent_volume_claim_retention_policy}),
            json!({"policy": "OrderedReady",
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0, "maxUnavailable": 1}},
                "retention": {"whenDeleted": "Retain", "whenScaled": "Retain"}})
        );
        let claim = &s.spec.volume_claim_templates.as_ref().unwrap()[0];
        assert_eq!(json!(claim.status), json!({"phase": "Pending"}));
        assert_eq!(claim.spec.as_ref().unwrap().volume_mode.as_deref(), Some("Filesystem"));
        assert_eq!(json!(claim.spec)["resources"]["requests"]["storage"], "1Gi");
        assert!(s.validate().is_empty(), "{:?}", s.validate());
    }

    #[test]
    fn faults_have_upstreams_words() {
        type Change = fn(&mut StatefulSetSpec);
        let cases: &[(Change, &[&str])] = &[
            (
                |s| s.pod_management_policy = Some("x".into()),
                &["spec.podManagementPolicy: Invalid value: \"x\": must be 'OrderedReady' or 'Parallel'"],
            ),
            (
                |s| s.update_strategy = serde_json::from_value(json!({"type": "x"})).unwrap(),
                &[
                    "spec.updateStrategy: Invalid value: {\"Type\":\"x\",\"RollingUpdate\":null}: must be 'RollingUpdate' or \
                   'OnDelete'",
                ],
            ),
            (
                |s| s.update_strategy.as_mut().unwrap().type_ = Some("OnDelete".into()),
                &[
                    "spec.updateStrategy.rollingUpdate: Invalid value: {\"Partition\":0,\"MaxUnavailable\":1}: only allowed for \
                   updateStrategy 'RollingUpdate'",
                ],
            ),
            (
                |s| {
                    let rolling = s.update_strategy.as_mut().unwrap().rolling_update.as_mut().unwrap();
                    rolling.partition = Some(-1);
                    rolling.max_unavailable = Some(IntOrString::Int(0));
                },
                &[
                    "spec.updateStrategy.rollingUpdate.partition: Invalid value: -1: must be greater than or equal to 0",
                    "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: 0: cannot be 0",
                ],
            ),
            (
                |s| {
                    let retention = s.persistent_volume_claim_retention_policy.as_mut().unwrap();
                    retention.when_scaled = Some("x".into());
                },
                &[
                    "spec.persistentVolumeClaimRetentionPolicy.whenScaled: Unsupported value: \"x\": supported values: \"Retain\", \
                   \"Delete\"",
                ],
            ),
            (|s| s.replicas = Some(-1), &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]),
            (
                |s| s.ordinals = serde_json::from_value(json!({"start": -1})).unwrap(),
                &["spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                |s| s.service_name = Some("a.b".into()),
                &["spec.serviceName: Invalid value: \"a.b\": must not contain dots"],
            ),
            (
                |s| s.selector = Default::default(),
                &["spec.selector: Invalid value: {}: empty selector is invalid for statefulset"],
            ),
            (
                |s| s.volume_claim_templates = None,
                &["spec.template.spec.containers[0].volumeMounts[0].name: Not found: \"data\""],
            ),
            (
                |s| s.template.spec.as_mut().unwrap().restart_policy = Some("OnFailure".into()),
                &["spec.template.spec.restartPolicy: Unsupported value: \"OnFailure\": supported values: \"Always\""],
            ),
            (
                |s| s.volume_claim_templates.as_mut().unwrap()[0].spec.as_mut().unwrap().access_modes = None,
                &["spec.volumeClaimTemplates[0].spec.accessModes: Required value: at least 1 access mode is required"],
            ),
        ];
        for (change, want) in cases {
            let mut s = stateful_set();
            change(&mut s.spec);
            assert_eq!(texts(&s.validate()), *want);
        }
    }

    #[test]
    fn only_seven_fields_change() {
        let mut old = stateful_set();
        old.prepare_for_create(&Context { now: Timestamp::UNIX_EPOCH, username: "u" });
        let mut new = old.clone();
        new.spec.replicas = Some(3);
        new.spec.revision_history_limit = Some(1);
        new.spec.min_ready_seconds = Some(1);
        new.spec.template.spec.as_mut().unwrap().containers[0].image = Some("j".into());
        assert!(new.validate_update(&old).is_empty(), "{:?}", new.validate_update(&old));
        new.prepare_for_update(&old, &Context { now: Timestamp::UNIX_EPOCH, username: "u" });
        assert_eq!(new.metadata.generation, Some(2));
        let mut moved = old.clone();
        moved.spec.service_name = Some("other".into());
        assert_eq!(texts(&moved.validate_update(&old)), [format!("spec: Forbidden: {FROZEN}")]);
    }

    #[test]
    fn what_was_bad_may_stay_bad() {
        let mut old = stateful_set();
        old.spec.service_name = Some("Not_A_Label".into());
        let mut new = old.clone();
        new.spec.replicas = Some(2);
        assert!(new.validate_update(&old).is_empty(), "{:?}", new.validate_update(&old));
        old.spec.template.spec.as_mut().unwrap().containers.clear();
        let mut new = old.clone();
        new.spec.replicas = Some(2);
        assert!(new.validate_update(&old).is_empty(), "{:?}", new.validate_update(&old));
        let good = stateful_set();
        let mut new = good.clone();
        new.spec.template.spec.as_mut().unwrap().containers.clear();
        assert_eq!(texts(&new.validate_update(&good)), ["spec.template.spec.containers: Required value"]);
    }

    #[test]
    fn status_counts_are_checked() {
        let old = stateful_set();
        let mut s = old.clone();
        s.status = serde_json::from_value(json!({"replicas": 1, "readyReplicas": 2, "availableReplicas": 3})).unwrap();
        assert_eq!(
            texts(&s.validate_status_update(&old)),
            [
                "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas",
                "status.availableReplicas: Invalid value: 3: cannot be greater than status.replicas",
                "status.availableReplicas: Invalid value: 3: cannot be greater than status.readyReplicas",
            ]
        );
    }

    #[test]
    fn table_row_and_name() {
        let cells = stateful_set().cells(Timestamp::UNIX_EPOCH);
        assert_eq!(cells.len(), StatefulSet::COLUMNS.len());
        assert_eq!(cells[1], "0/1");
        assert_eq!(StatefulSet::validate_name("a.b", false), ["must not contain dots"]);
    }
}
