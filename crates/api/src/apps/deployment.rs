//! Deployment: keeps a number of equal pods running and rolls changes of their template out.

use super::{int_or_percent, workload};
use crate::core::pod::{default_pod_template, pod_template_warnings};
use crate::kind::{Column, Context, Kind, ResourceInfo, SCALE, STATUS};
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::{Selector, SelectorOptions, format_label_selector, validate_label_selector};
use crate::meta::{object, table};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

impl Kind for Deployment {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &[SCALE, STATUS],
        ..ResourceInfo::new("apps", "v1", "Deployment", "deployments", "deployment", true)
    };
    const COLUMNS: &'static [Column] = &[
        workload::NAME,
        workload::column("Ready", "string", "Number of the pod with ready state"),
        workload::column("Up-to-date", "string", "Pods of the present template."),
        workload::column("Available", "string", "Pods ready for at least minReadySeconds."),
        workload::AGE,
        workload::CONTAINERS,
        workload::IMAGES,
        workload::SELECTOR,
    ];
    crate::kind_codec!(canonical: |d: &mut Self| workload::canonicalize_template(Some(&mut d.spec.template)));

    fn set_defaults(&mut self) {
        let spec = &mut self.spec;
        spec.replicas.get_or_insert(1);
        let strategy = spec.strategy.get_or_insert_default();
        let kind = strategy.type_.get_or_insert_default();
        if kind.is_empty() {
            *kind = "RollingUpdate".into();
        }
        if kind == "RollingUpdate" {
            let quarter = || IntOrString::String("25%".into());
            let rolling = strategy.rolling_update.get_or_insert_default();
            rolling.max_surge.get_or_insert_with(quarter);
            rolling.max_unavailable.get_or_insert_with(quarter);
        }
        spec.revision_history_limit.get_or_insert(10);
        spec.progress_deadline_seconds.get_or_insert(600);
        default_pod_template(&mut spec.template);
    }

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.status = Some(Default::default());
        self.metadata.generation = Some(1);
    }

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        validate_spec(&mut e, &self.spec, &Path::new("spec"));
        e
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        let mut out = if old.is_none() { workload::name_warnings(&self.metadata) } else { Vec::new() };
        let path = Path::new("spec").child("template");
        out.extend(pod_template_warnings(&self.spec.template, old.map(|o| &o.spec.template), &path));
        out
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
        let changed = self.spec != old.spec || self.metadata.annotations != old.metadata.annotations;
        workload::bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = self.validate();
        let selector = |d: &Self| json!(d.spec.selector);
        object::immutable(&mut e, &Path::new("spec").child("selector"), &selector(self), &selector(old));
        e
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec.clone_from(&old.spec);
        self.metadata.labels.clone_from(&old.metadata.labels);
        self.metadata.generation = old.metadata.generation;
    }

    fn validate_status_update(&self, old: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        let path = Path::new("status");
        let s = self.status.clone().unwrap_or_default();
        workload::nonnegative(&mut e, &path.child("observedGeneration"), s.observed_generation.unwrap_or(0));
        workload::validate_counts(
            &mut e,
            &[
                ("replicas", s.replicas),
                ("updatedReplicas", s.updated_replicas),
                ("readyReplicas", s.ready_replicas),
                ("availableReplicas", s.available_replicas),
                ("unavailableReplicas", s.unavailable_replicas),
                ("terminatingReplicas", s.terminating_replicas),
                ("collisionCount", s.collision_count),
            ],
            &[
                ("updatedReplicas", "replicas", "status.replicas"),
                ("readyReplicas", "replicas", "status.replicas"),
                ("availableReplicas", "replicas", "status.replicas"),
                ("availableReplicas", "readyReplicas", "readyReplicas"),
            ],
        );
        let collisions = |d: &Self| d.status.as_ref().and_then(|s| s.collision_count);
        if let Some(before) = collisions(old) {
            let now = collisions(self);
            if now.is_none_or(|n| n < before) {
                e.invalid(&path.child("collisionCount"), json!(now), "cannot be decremented");
            }
        }
        e
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let spec = &self.spec;
        let s = self.status.clone().unwrap_or_default();
        let [containers, images] = workload::container_cells(Some(&spec.template));
        vec![
            self.metadata.name.clone().unwrap_or_default().into(),
            format!("{}/{}", s.ready_replicas.unwrap_or(0), spec.replicas.unwrap_or(0)).into(),
            s.updated_replicas.unwrap_or(0).into(),
            s.available_replicas.unwrap_or(0).into(),
            table::age(&self.metadata, now).into(),
            containers,
            images,
            format_label_selector(Some(&spec.selector)).into(),
        ]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["spec"], &["metadata", "labels"]])
    }

    fn desired_replicas(&self) -> Option<i32> {
        Some(self.spec.replicas.unwrap_or(1))
    }
}

fn validate_spec(e: &mut ErrorList, spec: &DeploymentSpec, path: &Path) {
    workload::nonnegative(e, &path.child("replicas"), i64::from(spec.replicas.unwrap_or(0)));
    let at = path.child("selector");
    let selector = &spec.selector;
    e.extend(validate_label_selector(Some(selector), SelectorOptions::default(), &at));
    if workload::is_blank(selector) {
        e.invalid(&at, json!(selector), "empty selector is invalid for deployment");
    }
    match Selector::from_label_selector(Some(selector)) {
        Err(_) => e.invalid(&at, json!(selector), "invalid label selector"),
        Ok(parsed) => {
            workload::validate_template(e, Some(&spec.template), Some(&parsed), "ReplicaSet", &path.child("template"));
        }
    }
    let strategy = spec.strategy.clone().unwrap_or_default();
    validate_strategy(e, &strategy, &path.child("strategy"));
    let numbers = [("minReadySeconds", spec.min_ready_seconds), ("revisionHistoryLimit", spec.revision_history_limit)];
    for (name, value) in numbers {
        workload::nonnegative(e, &path.child(name), i64::from(value.unwrap_or(0)));
    }
    if let Some(deadline) = spec.progress_deadline_seconds {
        let at = path.child("progressDeadlineSeconds");
        workload::nonnegative(e, &at, i64::from(deadline));
        if deadline <= spec.min_ready_seconds.unwrap_or(0) {
            e.invalid(&at, deadline, "must be greater than minReadySeconds");
        }
    }
}

fn validate_strategy(e: &mut ErrorList, strategy: &DeploymentStrategy, path: &Path) {
    let rolling_path = path.child("rollingUpdate");
    match strategy.type_.as_deref().unwrap_or_default() {
        "Recreate" => {
            if strategy.rolling_update.is_some() {
                e.forbidden(&rolling_path, "may not be specified when strategy `type` is 'Recreate'");
            }
        }
        "RollingUpdate" => match &strategy.rolling_update {
            None => e.required(&rolling_path, "this should be defaulted and never be nil"),
            Some(rolling) => validate_rolling_update(e, rolling, &rolling_path),
        },
        _ => workload::unknown_strategy(e, path, &json!(strategy), &["Recreate", "RollingUpdate"]),
    }
}

fn validate_rolling_update(e: &mut ErrorList, rolling: &RollingUpdateDeployment, path: &Path) {
    let zero = IntOrString::Int(0);
    let unavailable = rolling.max_unavailable.as_ref().unwrap_or(&zero);
    let surge = rolling.max_surge.as_ref().unwrap_or(&zero);
    let at = path.child("maxUnavailable");
    int_or_percent::validate(e, &at, unavailable);
    int_or_percent::validate(e, &path.child("maxSurge"), surge);
    if int_or_percent::is_zero(unavailable) && int_or_percent::is_zero(surge) {
        e.invalid(&at, int_or_percent::shown(unavailable), "may not be 0 when `maxSurge` is 0");
    }
    int_or_percent::validate_at_most_100(e, &at, unavailable);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment() -> Deployment {
        let mut d = Deployment::from_value(json!({
            "metadata": {"name": "web", "namespace": "n"},
            "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "image": "i"}]},
                },
            },
        }))
        .unwrap();
        d.set_defaults();
        d
    }

    fn spec(d: &mut Deployment) -> &mut DeploymentSpec {
        &mut d.spec
    }

    #[test]
    fn defaults_are_upstreams() {
        let mut d = deployment();
        let s = spec(&mut d);
        assert_eq!((s.replicas, s.revision_history_limit, s.progress_deadline_seconds), (Some(1), Some(10), Some(600)));
        let strategy = s.strategy.clone().unwrap();
        assert_eq!(strategy.type_.as_deref(), Some("RollingUpdate"));
        assert_eq!(strategy.rolling_update.unwrap().max_surge, Some(IntOrString::String("25%".into())));
        assert!(d.validate().is_empty(), "{:?}", d.validate());
    }

    #[test]
    fn faults_have_upstreams_words() {
        type Change = fn(&mut DeploymentSpec);
        let cases: &[(Change, &str)] = &[
            (|s| s.replicas = Some(-1), "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
            (
                |s| s.selector = Default::default(),
                "spec.selector: Invalid value: {}: empty selector is invalid for deployment",
            ),
            (
                |s| {
                    s.selector.match_labels.as_mut().unwrap().insert("app".into(), "x".into());
                },
                "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`",
            ),
            (
                |s| s.template.spec.as_mut().unwrap().restart_policy = Some("Never".into()),
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ),
            (
                |s| s.progress_deadline_seconds = Some(0),
                "spec.progressDeadlineSeconds: Invalid value: 0: must be greater than minReadySeconds",
            ),
            (
                |s| s.strategy.as_mut().unwrap().type_ = Some("Recreate".into()),
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
            ),
            (
                |s| s.strategy.as_mut().unwrap().type_ = Some("x".into()),
                "spec.strategy: Unsupported value: {\"Type\":\"x\",\"RollingUpdate\":{\"MaxUnavailable\":\"25%\",\
                 \"MaxSurge\":\"25%\"}}: supported values: \"Recreate\", \"RollingUpdate\"",
            ),
            (
                |s| {
                    let r = s.strategy.as_mut().unwrap().rolling_update.as_mut().unwrap();
                    r.max_surge = Some(IntOrString::Int(0));
                    r.max_unavailable = Some(IntOrString::Int(0));
                },
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ),
        ];
        for (change, want) in cases {
            let mut d = deployment();
            change(spec(&mut d));
            let texts: Vec<String> = d.validate().0.iter().map(ToString::to_string).collect();
            assert_eq!(texts, [*want]);
        }
    }

    #[test]
    fn generation_counts_changes_of_spec_and_annotations_and_the_selector_stays() {
        let cx = Context { now: Timestamp::UNIX_EPOCH, username: "u" };
        let mut old = deployment();
        old.prepare_for_create(&cx);
        let mut same = old.clone();
        same.status.as_mut().unwrap().replicas = Some(9);
        same.prepare_for_update(&old, &cx);
        assert_eq!((same.metadata.generation, same.status.as_ref().unwrap().replicas), (Some(1), None));
        let mut annotated = old.clone();
        annotated.metadata.annotations = Some([("a".to_owned(), "b".to_owned())].into());
        annotated.prepare_for_update(&old, &cx);
        assert_eq!(annotated.metadata.generation, Some(2));
        let mut moved = old.clone();
        spec(&mut moved).selector.match_labels = Some([("app".to_owned(), "y".to_owned())].into());
        spec(&mut moved).template.metadata.as_mut().unwrap().labels = Some([("app".to_owned(), "y".to_owned())].into());
        let texts: Vec<String> = moved.validate_update(&old).0.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"y\"}}: field is immutable"]);
    }

    #[test]
    fn status_counts_are_checked() {
        let mut d = deployment();
        let status = d.status.get_or_insert_default();
        status.replicas = Some(1);
        status.ready_replicas = Some(2);
        let old = deployment();
        let texts: Vec<String> = d.validate_status_update(&old).0.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas"]);
    }

    #[test]
    fn table_row() {
        let d = deployment();
        let cells = d.cells(Timestamp::UNIX_EPOCH);
        assert_eq!(cells.len(), Deployment::COLUMNS.len());
        assert_eq!(cells[1], "0/1");
        assert_eq!(cells[7], "app=web");
    }
}
