//! DaemonSet: a pod on each node, or on each that fits.

use super::{int_or_percent, workload};
use crate::core::pod::{default_pod_template, pod_template_warnings, validate_pod_template_spec};
use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS};
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::{Selector, SelectorOptions, format_label_selector, format_labels, validate_label_selector};
use crate::meta::object::{Meta, immutable, semantically_equal};
use crate::meta::{table, text};
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, RollingUpdateDaemonSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// The annotation in which the number of template changes lives on; nobody but the server sets it after creation.
pub const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn template_generation(d: &DaemonSet) -> i64 {
    d.metadata.annotation(TEMPLATE_GENERATION).and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn set_template_generation(d: &mut DaemonSet, n: i64) {
    d.metadata.annotations.get_or_insert_default().insert(TEMPLATE_GENERATION.to_owned(), n.to_string());
}

fn canonicalize(d: &mut DaemonSet) -> Result<(), String> {
    if let Some(v) = d.metadata.annotation(TEMPLATE_GENERATION) {
        v.parse::<i64>().map_err(|_| format!("strconv.ParseInt: parsing {v:?}: invalid syntax"))?;
    }
    workload::canonicalize_template(Some(&mut d.spec.template))
}

impl Kind for DaemonSet {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["ds"],
        categories: &["all"],
        subresources: &[STATUS],
        ..ResourceInfo::new("apps", "v1", "DaemonSet", "daemonsets", "daemonset", true)
    };
    const COLUMNS: &'static [Column] = &[
        workload::NAME,
        workload::column("Desired", "integer", "How many nodes should run the pod."),
        workload::column("Current", "integer", "How many of them do."),
        workload::column("Ready", "integer", "On how many of them it is ready."),
        workload::column("Up-to-date", "integer", "On how many of them it has the present template."),
        workload::column("Available", "integer", "On how many it is ready for at least minReadySeconds."),
        workload::column("Node Selector", "string", "Labels of the nodes that are meant."),
        workload::AGE,
        workload::CONTAINERS,
        workload::IMAGES,
        workload::SELECTOR,
    ];
    crate::kind_codec!(canonical: canonicalize);

    fn set_defaults(&mut self) {
        let strategy = self.spec.update_strategy.get_or_insert_default();
        let kind = strategy.type_.get_or_insert_default();
        if kind.is_empty() {
            *kind = "RollingUpdate".into();
        }
        if kind == "RollingUpdate" {
            let rolling = strategy.rolling_update.get_or_insert_default();
            rolling.max_unavailable.get_or_insert(IntOrString::Int(1));
            rolling.max_surge.get_or_insert(IntOrString::Int(0));
        }
        self.spec.revision_history_limit.get_or_insert(10);
        default_pod_template(&mut self.spec.template);
    }

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.status = Some(Default::default());
        self.metadata.generation = Some(1);
        let changes = template_generation(self).max(1);
        set_template_generation(self, changes);
    }

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        validate_spec(&mut e, &self.spec, template_generation(self), &Path::new("spec"));
        e
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        let before = old.map(|o| &o.spec.template);
        pod_template_warnings(&self.spec.template, before, &Path::new("spec").child("template"))
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
        let template_changed = !semantically_equal(&self.spec.template, &old.spec.template);
        let before = old.metadata.annotation(TEMPLATE_GENERATION);
        if template_changed || before.is_some() {
            set_template_generation(self, template_generation(old) + i64::from(template_changed));
        }
        let changed = !semantically_equal(&self.spec, &old.spec);
        workload::bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = self.validate();
        let at = Path::new("spec").child("selector");
        immutable(&mut e, &at, &json!(self.spec.selector), &json!(old.spec.selector));
        e
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec.clone_from(&old.spec);
        self.metadata.generation = old.metadata.generation;
    }

    fn validate_status_update(&self, old: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        let path = Path::new("status");
        let s = self.status.clone().unwrap_or_default();
        for (name, value) in [
            ("currentNumberScheduled", i64::from(s.current_number_scheduled)),
            ("numberMisscheduled", i64::from(s.number_misscheduled)),
            ("desiredNumberScheduled", i64::from(s.desired_number_scheduled)),
            ("numberReady", i64::from(s.number_ready)),
            ("observedGeneration", s.observed_generation.unwrap_or(0)),
            ("updatedNumberScheduled", i64::from(s.updated_number_scheduled.unwrap_or(0))),
            ("numberAvailable", i64::from(s.number_available.unwrap_or(0))),
            ("numberUnavailable", i64::from(s.number_unavailable.unwrap_or(0))),
            ("collisionCount", i64::from(s.collision_count.unwrap_or(0))),
        ] {
            workload::nonnegative(&mut e, &path.child(name), value);
        }
        let before = old.status.as_ref().and_then(|s| s.collision_count);
        workload::validate_collisions(&mut e, s.collision_count, before);
        e
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let s = self.status.clone().unwrap_or_default();
        let [containers, images] = workload::container_cells(Some(&self.spec.template));
        let nodes = self.spec.template.spec.as_ref().and_then(|s| s.node_selector.as_ref());
        vec![
            self.metadata.name().into(),
            s.desired_number_scheduled.into(),
            s.current_number_scheduled.into(),
            s.number_ready.into(),
            s.updated_number_scheduled.unwrap_or(0).into(),
            s.number_available.unwrap_or(0).into(),
            format_labels(nodes).into(),
            table::age(&self.metadata, now).into(),
            containers,
            images,
            format_label_selector(Some(&self.spec.selector)).into(),
        ]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["spec"]])
    }
}

fn validate_spec(e: &mut ErrorList, spec: &DaemonSetSpec, template_generation: i64, path: &Path) {
    let at = path.child("selector");
    let template = path.child("template");
    e.extend(validate_label_selector(Some(&spec.selector), SelectorOptions::default(), &at));
    let labels = spec.template.metadata.as_ref().and_then(|m| m.labels.as_ref());
    if Selector::from_label_selector(Some(&spec.selector)).is_ok_and(|s| !s.matches_optional(labels)) {
        let shown = labels.map_or(Value::Null, |l| json!(l));
        e.invalid(&template.child("metadata").child("labels"), shown, "`selector` does not match template `labels`");
    }
    if workload::is_blank(&spec.selector) {
        e.invalid(&at, json!(spec.selector), "empty selector is invalid for daemonset");
    }
    e.extend(validate_pod_template_spec(&spec.template, &template));
    workload::validate_lasting(e, &spec.template, "DaemonSet", &template.child("spec"));
    let min_ready = i64::from(spec.min_ready_seconds.unwrap_or(0));
    workload::nonnegative(e, &path.child("minReadySeconds"), min_ready);
    workload::nonnegative(e, &path.child("templateGeneration"), template_generation);
    let strategy = spec.update_strategy.clone().unwrap_or_default();
    let strategy_path = path.child("updateStrategy");
    match text(&strategy.type_) {
        "OnDelete" => {}
        "RollingUpdate" => {
            let path = strategy_path.child("rollingUpdate");
            match &strategy.rolling_update {
                None => e.required(&path, ""),
                Some(rolling) => validate_rolling_update(e, rolling, &path),
            }
        }
        _ => workload::unknown_strategy(e, &strategy_path, &json!(strategy), &["RollingUpdate", "OnDelete"]),
    }
    let limit = i64::from(spec.revision_history_limit.unwrap_or(0));
    workload::nonnegative(e, &path.child("revisionHistoryLimit"), limit);
}

fn validate_rolling_update(e: &mut ErrorList, rolling: &RollingUpdateDaemonSet, path: &Path) {
    let zero = IntOrString::Int(0);
    let unavailable = rolling.max_unavailable.as_ref().unwrap_or(&zero);
    let surge = rolling.max_surge.as_ref().unwrap_or(&zero);
    let (at, surge_at) = (path.child("maxUnavailable"), path.child("maxSurge"));
    int_or_percent::validate(e, &at, unavailable);
    int_or_percent::validate(e, &surge_at, surge);
    int_or_percent::validate_at_most_100(e, &at, unavailable);
    int_or_percent::validate_at_most_100(e, &surge_at, surge);
    match (int_or_percent::is_zero(unavailable), int_or_percent::is_zero(surge)) {
        (false, false) => {
            e.invalid(&surge_at, int_or_percent::shown(surge), "may not be set when maxUnavailable is non-zero");
        }
        (true, true) => e.required(&at, "cannot be 0 when maxSurge is 0"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CX: Context<'static> = Context { now: Timestamp::UNIX_EPOCH, username: "u" };

    fn daemon_set() -> DaemonSet {
        let mut d = <DaemonSet as Kind>::from_value(json!({
            "metadata": {"name": "agent", "namespace": "n"},
            "spec": {
                "selector": {"matchLabels": {"app": "agent"}},
                "template": {
                    "metadata": {"labels": {"app": "agent"}},
                    "spec": {"nodeSelector": {"disk": "ssd"}, "containers": [{"name": "c", "image": "i"}]},
                },
            },
        }))
        .unwrap();
        d.set_defaults();
        d
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_are_upstreams() {
        let mut d = daemon_set();
        assert_eq!(
            json!(d.spec.update_strategy),
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}})
        );
        assert_eq!(d.spec.revision_history_limit, Some(10));
        d.prepare_for_create(&CX);
        assert_eq!(d.metadata.annotation(TEMPLATE_GENERATION), Some("1"));
        assert!(d.validate().is_empty(), "{:?}", d.validate());
    }

    #[test]
    fn faults_have_upstreams_words() {
        type Change = fn(&mut DaemonSetSpec);
        let cases: &[(Change, &[&str])] = &[
            (
                |s| s.selector = Default::default(),
                &["spec.selector: Invalid value: {}: empty selector is invalid for daemonset"],
            ),
            (
                |s| s.template.metadata = None,
                &["spec.template.metadata.labels: Invalid value: null: `selector` does not match template `labels`"],
            ),
            (
                |s| s.template.spec.as_mut().unwrap().restart_policy = Some("Never".into()),
                &["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""],
            ),
            (
                |s| s.template.spec.as_mut().unwrap().active_deadline_seconds = Some(1),
                &[
                    "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in DaemonSet is not Supported",
                ],
            ),
            (
                |s| s.min_ready_seconds = Some(-1),
                &["spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                |s| s.revision_history_limit = Some(-1),
                &["spec.revisionHistoryLimit: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                |s| s.update_strategy.as_mut().unwrap().rolling_update = None,
                &["spec.updateStrategy.rollingUpdate: Required value"],
            ),
            (
                |s| {
                    let strategy = s.update_strategy.as_mut().unwrap();
                    strategy.rolling_update.as_mut().unwrap().max_surge = Some(IntOrString::Int(1));
                },
                &[
                    "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero",
                ],
            ),
            (
                |s| {
                    let strategy = s.update_strategy.as_mut().unwrap();
                    strategy.rolling_update.as_mut().unwrap().max_unavailable = Some(IntOrString::String("0%".into()));
                },
                &["spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0"],
            ),
            (
                |s| {
                    s.update_strategy = serde_json::from_value(json!({"type": "x"})).unwrap();
                    s.min_ready_seconds = Some(-1);
                },
                &[
                    "spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0",
                    "spec.updateStrategy: Unsupported value: {\"Type\":\"x\",\"RollingUpdate\":null}: supported values: \
                     \"RollingUpdate\", \"OnDelete\"",
                ],
            ),
        ];
        for (change, want) in cases {
            let mut d = daemon_set();
            change(&mut d.spec);
            assert_eq!(texts(&d.validate()), *want);
        }
    }

    #[test]
    fn the_template_has_a_generation_of_its_own_and_the_selector_stays() {
        let mut old = daemon_set();
        old.prepare_for_create(&CX);
        let mut paced = old.clone();
        paced.spec.min_ready_seconds = Some(3);
        paced.metadata.annotations = None;
        paced.prepare_for_update(&old, &CX);
        assert_eq!(paced.metadata.generation, Some(2));
        assert_eq!(paced.metadata.annotation(TEMPLATE_GENERATION), Some("1"));
        let mut rolled = old.clone();
        rolled.spec.template.spec.as_mut().unwrap().containers[0].image = Some("j".into());
        rolled.prepare_for_update(&old, &CX);
        assert_eq!(rolled.metadata.annotation(TEMPLATE_GENERATION), Some("2"));
        let mut moved = old.clone();
        let labels = Some([("app".to_owned(), "y".to_owned())].into());
        moved.spec.template.metadata.as_mut().unwrap().labels.clone_from(&labels);
        moved.spec.selector.match_labels = labels;
        let told = texts(&moved.validate_update(&old));
        assert_eq!(told, ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"y\"}}: field is immutable"]);
        let mut counted = old.clone();
        counted.status.as_mut().unwrap().collision_count = Some(2);
        assert!(counted.validate_status_update(&old).is_empty());
        let told = texts(&old.validate_status_update(&counted));
        assert_eq!(told, ["status.collisionCount: Invalid value: 0: cannot be decremented"]);
    }

    #[test]
    fn table_row() {
        let cells = daemon_set().cells(Timestamp::UNIX_EPOCH);
        assert_eq!(cells.len(), DaemonSet::COLUMNS.len());
        assert_eq!(cells[6], "disk=ssd");
        assert_eq!(cells[10], "app=agent");
    }
}
