//! Job: pods that run until so many of them have succeeded.

use super::{job_spec, job_status};
use crate::apps::workload;
use crate::core::pod::{default_pod_template, pod_template_warnings};
use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS};
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::{Selector, format_label_selector};
use crate::meta::object::{Meta, immutable, semantically_equal};
use crate::meta::{names, table, text};
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::{Affinity, PodTemplateSpec};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Label of a Job's pods: the Job's uid. What its generated selector selects.
pub const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
/// Label of a Job's pods: the Job's name.
pub const JOB_NAME: &str = "batch.kubernetes.io/job-name";
/// [`CONTROLLER_UID`] as it was before it had a prefix; still set.
pub const LEGACY_CONTROLLER_UID: &str = "controller-uid";
/// [`JOB_NAME`] as it was before it had a prefix; still set.
pub const LEGACY_JOB_NAME: &str = "job-name";

/// The `managedBy` of Jobs that the built-in controller runs.
pub const BUILT_IN_MANAGER: &str = "kubernetes.io/job-controller";

pub(super) fn canonicalize_spec(spec: Option<&mut JobSpec>) -> Result<(), String> {
    workload::canonicalize_template(spec.map(|s| &mut s.template))
}

impl Kind for Job {
    const INFO: ResourceInfo = ResourceInfo {
        categories: &["all"],
        subresources: &[STATUS],
        ..ResourceInfo::new("batch", "v1", "Job", "jobs", "job", true)
    };
    const COLUMNS: &'static [Column] = &[
        workload::NAME,
        workload::column("Status", "string", "What the job does, or how it ended."),
        workload::column("Completions", "string", "How many pods succeeded, of how many that must."),
        workload::column("Duration", "string", "How long the job has run or ran."),
        workload::AGE,
        workload::CONTAINERS,
        workload::IMAGES,
        workload::SELECTOR,
    ];
    crate::kind_codec!(canonical: |j: &mut Self| canonicalize_spec(j.spec.as_mut()));

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        default_templates(spec);
        if spec.completions.is_none() && spec.parallelism.is_none() {
            spec.completions = Some(1);
        }
        spec.parallelism.get_or_insert(1);
        let limit = if spec.backoff_limit_per_index.is_some() { i32::MAX } else { 6 };
        spec.backoff_limit.get_or_insert(limit);
        spec.completion_mode.get_or_insert_with(|| "NonIndexed".to_owned());
        spec.suspend.get_or_insert(false);
        let replacement = if spec.pod_failure_policy.is_some() { "Failed" } else { "TerminatingOrFailed" };
        spec.pod_replacement_policy.get_or_insert_with(|| replacement.to_owned());
        spec.manual_selector.get_or_insert(false);
        label_as_template(self);
    }

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        generate_selector(self);
        // Upstream fills in what is left out whenever it reads an object, so also after the template got these labels.
        label_as_template(self);
        self.status = Some(Default::default());
        self.metadata.generation = Some(1);
        // Gang scheduling is a feature that is off by default.
        self.spec.get_or_insert_default().scheduling = None;
    }

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        validate_generated_selector(self, true, &mut e);
        let spec = self.spec.clone().unwrap_or_default();
        job_spec::validate(&spec, &Path::new("spec"), &mut e);
        validate_hostnames(self, &spec, &mut e);
        e
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        if old.is_some_and(|o| o.metadata.generation == self.metadata.generation) {
            return Vec::new();
        }
        let mut out = if old.is_none() { workload::name_warnings(&self.metadata) } else { Vec::new() };
        if let Some(spec) = &self.spec {
            out.extend(spec_warnings(spec, old.and_then(|o| o.spec.as_ref()), &Path::new("spec")));
        }
        out
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
        if let Some(spec) = &mut self.spec {
            spec.scheduling = None;
        }
        let changed = !semantically_equal(&self.spec, &old.spec);
        workload::bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        let (spec, before) = (self.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
        let label = |key: &str| before.template.metadata.as_ref().and_then(|m| m.labels.as_ref()?.get(key)).is_some();
        validate_generated_selector(self, label(JOB_NAME) && label(CONTROLLER_UID), &mut e);
        let path = Path::new("spec");
        job_spec::validate(&spec, &path, &mut e);
        validate_hostnames(self, &spec, &mut e);
        validate_completions(&spec, &before, &path, &mut e);
        same(&mut e, &path.child("selector"), &spec.selector, &before.selector);
        let template = template_as_allowed(&spec, &before, old.status.as_ref());
        same(&mut e, &path.child("template"), &spec.template, &template);
        same(&mut e, &path.child("completionMode"), &spec.completion_mode, &before.completion_mode);
        same(&mut e, &path.child("podFailurePolicy"), &spec.pod_failure_policy, &before.pod_failure_policy);
        let at = path.child("backoffLimitPerIndex");
        same(&mut e, &at, &spec.backoff_limit_per_index, &before.backoff_limit_per_index);
        same(&mut e, &path.child("managedBy"), &spec.managed_by, &before.managed_by);
        same(&mut e, &path.child("successPolicy"), &spec.success_policy, &before.success_policy);
        e
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec.clone_from(&old.spec);
        self.metadata.generation = old.metadata.generation;
    }

    fn validate_status_update(&self, old: &Self) -> ErrorList {
        job_status::validate(self, old)
    }

    fn selectable_fields(&self) -> Vec<(&'static str, String)> {
        vec![("status.successful", self.status.as_ref().and_then(|s| s.succeeded).unwrap_or(0).to_string())]
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        let s = self.status.clone().unwrap_or_default();
        let succeeded = s.succeeded.unwrap_or(0);
        let completions = match (spec.completions, spec.parallelism.unwrap_or(0)) {
            (Some(n), _) => format!("{succeeded}/{n}"),
            (None, parallel) if parallel > 1 => format!("{succeeded}/1 of {parallel}"),
            (None, _) => format!("{succeeded}/1"),
        };
        let end = s.completion_time.as_ref().map_or(now, |t| t.0);
        let duration = s.start_time.as_ref().map(|t| table::human_duration(t.0, end)).unwrap_or_default();
        let [containers, images] = workload::container_cells(Some(&spec.template));
        vec![
            self.metadata.name().into(),
            display_status(self, &s).into(),
            completions.into(),
            duration.into(),
            table::age(&self.metadata, now).into(),
            containers,
            images,
            format_label_selector(spec.selector.as_ref()).into(),
        ]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["spec"]])
    }
}

/// Defaults of the pod template and of the failure policy's patterns, which CronJobs' templates get too.
pub(super) fn default_templates(spec: &mut JobSpec) {
    default_pod_template(&mut spec.template);
    let rules = spec.pod_failure_policy.iter_mut().flat_map(|p| &mut p.rules);
    for pattern in rules.flat_map(|r| r.on_pod_conditions.iter_mut().flatten()) {
        let status = pattern.status.get_or_insert_default();
        if status.is_empty() {
            *status = "True".to_owned();
        }
    }
}

/// Warnings about a Job's spec at `path`, also inside a CronJob.
pub(super) fn spec_warnings(spec: &JobSpec, old: Option<&JobSpec>, path: &Path) -> Vec<String> {
    let mut out = Vec::new();
    let many = spec.completions.unwrap_or(0) > 100_000 && spec.parallelism.unwrap_or(0) > 10_000;
    if job_spec::is_indexed(spec) && many {
        out.push(format!(
            "{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, \
             Kubernetes might not be able to track completedIndexes when a big number of indexes fail"
        ));
    }
    out.extend(pod_template_warnings(&spec.template, old.map(|o| &o.template), &path.child("template")));
    out
}

fn display_status(job: &Job, status: &JobStatus) -> &'static str {
    if job_status::is_true(status, "Complete") {
        return "Complete";
    }
    if job_status::is_true(status, "Failed") {
        return "Failed";
    }
    if job.metadata.is_deleting() {
        return "Terminating";
    }
    for condition in ["Suspended", "FailureTarget", "SuccessCriteriaMet"] {
        if job_status::is_true(status, condition) {
            return condition;
        }
    }
    "Running"
}

/// A Job without labels has those of its pods.
fn label_as_template(j: &mut Job) {
    let labels = j.spec.as_ref().and_then(|s| s.template.metadata.as_ref()?.labels.clone());
    if j.metadata.labels.as_ref().is_none_or(BTreeMap::is_empty) && labels.is_some() {
        j.metadata.labels = labels;
    }
}

/// Labels the pods with the Job's name and uid, and selects them by the uid, unless the user selects (`manualSelector`).
fn generate_selector(job: &mut Job) {
    let (name, uid) = (job.metadata.name().to_owned(), job.metadata.uid().to_owned());
    let spec = job.spec.get_or_insert_default();
    if spec.manual_selector == Some(true) {
        return;
    }
    let labels = spec.template.metadata.get_or_insert_default().labels.get_or_insert_default();
    for (key, value) in
        [(LEGACY_JOB_NAME, &name), (JOB_NAME, &name), (LEGACY_CONTROLLER_UID, &uid), (CONTROLLER_UID, &uid)]
    {
        labels.entry(key.to_owned()).or_insert_with(|| value.clone());
    }
    let selected = spec.selector.get_or_insert_default().match_labels.get_or_insert_default();
    selected.entry(CONTROLLER_UID.to_owned()).or_insert(uid);
}

fn validate_generated_selector(job: &Job, prefixed: bool, e: &mut ErrorList) {
    let spec = job.spec.clone().unwrap_or_default();
    let Some(selector) = spec.selector.as_ref().filter(|_| spec.manual_selector != Some(true)) else { return };
    let (name, uid) = (job.metadata.name(), job.metadata.uid());
    if uid.is_empty() {
        e.required(&Path::new("metadata").child("uid"), "");
    }
    let mut expected = vec![(LEGACY_CONTROLLER_UID, uid), (LEGACY_JOB_NAME, name)];
    if prefixed {
        expected.extend([(CONTROLLER_UID, uid), (JOB_NAME, name)]);
    }
    let labels = spec.template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
    let path = Path::new("spec").child("template").child("metadata").child("labels");
    for (key, want) in &expected {
        match labels.get(*key) {
            None => e.required(&path.key(key), &format!("must be '{want}'")),
            Some(found) if found != want => e.invalid(&path.key(key), json!(labels), &format!("must be '{want}'")),
            Some(_) => {}
        }
    }
    let generated: BTreeMap<String, String> =
        expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    if Selector::from_label_selector(Some(selector)).is_ok_and(|s| !s.matches(&generated)) {
        e.invalid(&Path::new("spec").child("selector"), json!(selector), "`selector` not auto-generated");
    }
}

/// The pods of an indexed Job are called after it and their index, and that must be a host name.
fn validate_hostnames(job: &Job, spec: &JobSpec, e: &mut ErrorList) {
    let Some(completions) = spec.completions.filter(|n| *n > 0 && job_spec::is_indexed(spec)) else { return };
    let longest = format!("{}-{}", job.metadata.name(), completions - 1);
    if !names::dns1123_label(&longest, false).is_empty() {
        let detail = format!("will not able to create pod with invalid DNS label: {longest}");
        e.invalid(&Path::new("metadata").child("name"), job.metadata.name(), &detail);
    }
}

fn same<T: PartialEq + serde::Serialize>(e: &mut ErrorList, path: &Path, new: &T, old: &T) {
    if !semantically_equal(new, old) {
        immutable(e, path, &json!(new), &json!(old));
    }
}

/// Completions stay, except that an indexed Job grows and shrinks together with its parallelism.
fn validate_completions(spec: &JobSpec, old: &JobSpec, path: &Path, e: &mut ErrorList) {
    let at = path.child("completions");
    if !job_spec::is_indexed(spec) {
        return same(e, &at, &spec.completions, &old.completions);
    }
    if let Some(n) = spec.completions
        && spec.completions != old.completions
        && spec.completions != spec.parallelism
    {
        e.invalid(&at, n, "can only be modified in tandem with spec.parallelism");
    }
}

/// The old template with everything taken from the new one that may change now: while a Job is suspended and none of its
/// pods are left, where they may run and what they need is open.
fn template_as_allowed(spec: &JobSpec, old: &JobSpec, status: Option<&JobStatus>) -> PodTemplateSpec {
    let mut template = old.template.clone();
    let stopped = status.is_none_or(|s| s.start_time.is_none() || s.active.unwrap_or(0) == 0);
    let (Some(pod), Some(wanted)) = (&mut template.spec, &spec.template.spec) else { return template };
    if old.suspend != Some(true) || !stopped {
        return template;
    }
    pod.affinity = match (&wanted.affinity, pod.affinity.take()) {
        (None, None) => None,
        (None, Some(before)) => {
            let rest = Affinity { node_affinity: None, ..before };
            (rest != Affinity::default()).then_some(rest)
        }
        (Some(now), None) => Some(Affinity { node_affinity: now.node_affinity.clone(), ..Default::default() }),
        (Some(now), Some(before)) => Some(Affinity { node_affinity: now.node_affinity.clone(), ..before }),
    };
    pod.node_selector.clone_from(&wanted.node_selector);
    pod.tolerations.clone_from(&wanted.tolerations);
    pod.scheduling_gates.clone_from(&wanted.scheduling_gates);
    for (c, w) in pod.containers.iter_mut().zip(&wanted.containers) {
        c.resources.clone_from(&w.resources);
    }
    for (c, w) in pod.init_containers.iter_mut().flatten().zip(wanted.init_containers.iter().flatten()) {
        c.resources.clone_from(&w.resources);
    }
    let given = spec.template.metadata.clone().unwrap_or_default();
    let meta = template.metadata.get_or_insert_default();
    meta.labels = given.labels;
    meta.annotations = given.annotations;
    template
}

/// Whether the built-in controller runs the Job.
#[must_use]
pub fn is_ours(job: &Job) -> bool {
    let manager = job.spec.as_ref().map_or("", |s| text(&s.managed_by));
    manager.is_empty() || manager == BUILT_IN_MANAGER
}

#[cfg(test)]
mod tests;
