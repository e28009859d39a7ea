//! CronJob: makes a Job whenever its schedule is due.

use super::job::{canonicalize_spec, default_templates, spec_warnings};
use super::job_spec;
use super::schedule::{Schedule, time_zone};
use crate::apps::workload::{self, nonnegative};
use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS};
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::format_label_selector;
use crate::meta::object::{Meta, semantically_equal};
use crate::meta::{table, text};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// Longest name: the Jobs' names are eleven bytes longer, and at most 63.
const MAX_NAME: usize = 52;

impl Kind for CronJob {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["cj"],
        categories: &["all"],
        subresources: &[STATUS],
        ..ResourceInfo::new("batch", "v1", "CronJob", "cronjobs", "cronjob", true)
    };
    const COLUMNS: &'static [Column] = &[
        workload::NAME,
        workload::column("Schedule", "string", "When jobs are made, in cron's notation."),
        workload::column("Timezone", "string", "On the clocks of which time zone."),
        workload::column("Suspend", "boolean", "Whether no further jobs are made."),
        workload::column("Active", "integer", "How many of its jobs run."),
        workload::column("Last Schedule", "string", "When a job was made last."),
        workload::AGE,
        workload::CONTAINERS,
        workload::IMAGES,
        workload::SELECTOR,
    ];
    crate::kind_codec!(canonical: |c: &mut Self| canonicalize_spec(c.spec.job_template.spec.as_mut()));

    fn set_defaults(&mut self) {
        let spec = &mut self.spec;
        let policy = spec.concurrency_policy.get_or_insert_default();
        if policy.is_empty() {
            *policy = "Allow".to_owned();
        }
        spec.suspend.get_or_insert(false);
        spec.successful_jobs_history_limit.get_or_insert(3);
        spec.failed_jobs_history_limit.get_or_insert(1);
        default_templates(spec.job_template.spec.get_or_insert_default());
    }

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.status = Some(Default::default());
        self.metadata.generation = Some(1);
        drop_disabled(&mut self.spec);
    }

    fn validate(&self) -> ErrorList {
        let mut e = validate_spec(&self.spec, None);
        if self.metadata.name().len() > MAX_NAME {
            let at = Path::new("metadata").child("name");
            e.invalid(&at, self.metadata.name(), "must be no more than 52 characters");
        }
        e
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        if old.is_some_and(|o| o.metadata.generation == self.metadata.generation) {
            return Vec::new();
        }
        let mut out = if old.is_none() { workload::name_warnings(&self.metadata) } else { Vec::new() };
        if let Some(spec) = &self.spec.job_template.spec {
            let before = old.and_then(|o| o.spec.job_template.spec.as_ref());
            out.extend(spec_warnings(spec, before, &Path::new("spec").child("jobTemplate").child("spec")));
        }
        if self.spec.schedule.contains("TZ") {
            out.push(
                "CRON_TZ or TZ used in spec.schedule is not officially supported, see \
                 https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
                    .to_owned(),
            );
        }
        out
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
        drop_disabled(&mut self.spec);
        let changed = !semantically_equal(&self.spec, &old.spec);
        workload::bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        validate_spec(&self.spec, Some(&old.spec))
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec = old.spec.clone();
        self.metadata.generation = old.metadata.generation;
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let spec = &self.spec;
        let status = self.status.clone().unwrap_or_default();
        let job = spec.job_template.spec.as_ref();
        let [containers, images] = workload::container_cells(job.map(|j| &j.template));
        let suspend = spec.suspend.map_or("<unset>", |s| if s { "True" } else { "False" });
        let last = status.last_schedule_time.map_or_else(|| "<none>".to_owned(), |t| table::since(Some(t.0), now));
        vec![
            self.metadata.name().into(),
            spec.schedule.as_str().into(),
            spec.time_zone.as_deref().unwrap_or("<none>").into(),
            suspend.into(),
            status.active.as_ref().map_or(0, Vec::len).into(),
            last.into(),
            table::age(&self.metadata, now).into(),
            containers,
            images,
            format_label_selector(job.and_then(|j| j.selector.as_ref())).into(),
        ]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["spec"]])
    }
}

/// Gang scheduling is a feature that is off by default.
fn drop_disabled(spec: &mut CronJobSpec) {
    if let Some(job) = &mut spec.job_template.spec {
        job.scheduling = None;
    }
}

fn validate_spec(spec: &CronJobSpec, old: Option<&CronJobSpec>) -> ErrorList {
    let mut e = ErrorList::default();
    let path = Path::new("spec");
    let at = path.child("schedule");
    let schedule = spec.schedule.as_str();
    if schedule.is_empty() {
        e.required(&at, "");
    } else {
        if let Err(why) = Schedule::parse(schedule) {
            e.invalid(&at, schedule, &why);
        }
        // Only what older servers took in keeps its zone inside the schedule.
        let had = old.is_some_and(|o| o.schedule.contains("TZ"));
        match (schedule.contains("TZ"), had) {
            (true, false) => {
                e.invalid(&at, schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead")
            }
            (true, true) if spec.time_zone.is_some() => {
                e.invalid(&at, schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule");
            }
            _ => {}
        }
    }
    nonnegative(&mut e, &path.child("startingDeadlineSeconds"), spec.starting_deadline_seconds.unwrap_or(0));
    if old.is_none_or(|o| o.time_zone != spec.time_zone) {
        validate_time_zone(spec.time_zone.as_deref(), &path.child("timeZone"), &mut e);
    }
    let at = path.child("concurrencyPolicy");
    match text(&spec.concurrency_policy) {
        "" => e.required(&at, ""),
        "Allow" | "Forbid" | "Replace" => {}
        other => e.not_supported(&at, other, &["Allow", "Forbid", "Replace"]),
    }
    let at = path.child("jobTemplate").child("spec");
    let job = spec.job_template.spec.clone().unwrap_or_default();
    job_spec::validate_template(&job, &at, &mut e);
    if let Some(selector) = &job.selector {
        e.invalid(&at.child("selector"), json!(selector), "`selector` will be auto-generated");
    }
    if job.manual_selector == Some(true) {
        e.0.push(crate::meta::field::FieldError {
            r#type: crate::meta::field::ErrorType::NotSupported,
            field: at.child("manualSelector").as_str().to_owned(),
            body: "Unsupported value: true: supported values: \"nil\", \"false\"".to_owned(),
        });
    }
    for (name, limit) in [
        ("successfulJobsHistoryLimit", spec.successful_jobs_history_limit),
        ("failedJobsHistoryLimit", spec.failed_jobs_history_limit),
    ] {
        nonnegative(&mut e, &path.child(name), i64::from(limit.unwrap_or(0)));
    }
    e
}

fn validate_time_zone(zone: Option<&str>, path: &Path, e: &mut ErrorList) {
    let Some(zone) = zone else { return };
    if zone.is_empty() {
        return e.invalid(path, zone, "timeZone must be nil or non-empty string");
    }
    let well_formed = |part: &str| {
        !matches!(part, "." | "..")
            && !part.starts_with('-')
            && (1..=14).contains(&part.len())
            && part.bytes().all(|c| c.is_ascii_alphanumeric() || b".-_+".contains(&c))
    };
    if !zone.split('/').all(well_formed) {
        return e.invalid(path, zone, &format!("unknown time zone {zone}"));
    }
    if zone.eq_ignore_ascii_case("Local") {
        let detail = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        e.invalid(path, zone, detail);
    }
    // Upstream can load the host's own zone under this very name, and has refused it above.
    if zone != "Local"
        && let Err(why) = time_zone(zone)
    {
        e.invalid(path, zone, &why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron_job(spec: &Value) -> CronJob {
        let mut full = json!({"schedule": "*/5 * * * *", "jobTemplate": {"spec": {"template": {"spec": {
            "restartPolicy": "OnFailure", "containers": [{"name": "c", "image": "i"}]}}}}});
        for (k, v) in spec.as_object().unwrap() {
            full[k] = v.clone();
        }
        let mut c = <CronJob as Kind>::from_value(json!({"metadata": {"name": "tick"}, "spec": full})).unwrap();
        c.set_defaults();
        c
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_are_upstreams() {
        let c = cron_job(&json!({}));
        let s = &c.spec;
        assert_eq!(
            json!([s.concurrency_policy, s.suspend, s.successful_jobs_history_limit, s.failed_jobs_history_limit]),
            json!(["Allow", false, 3, 1])
        );
        let job = s.job_template.spec.as_ref().unwrap();
        assert_eq!((job.completions, job.backoff_limit), (None, None), "the Job itself gets its defaults");
        assert!(job.template.spec.as_ref().unwrap().dns_policy.is_some());
        assert!(c.validate().is_empty(), "{:?}", c.validate());
    }

    #[test]
    fn faults_have_upstreams_words() {
        let cases: [(Value, &[&str]); 10] = [
            (json!({"schedule": ""}), &["spec.schedule: Required value"]),
            (
                json!({"schedule": "* * *"}),
                &["spec.schedule: Invalid value: \"* * *\": expected exactly 5 fields, found 3: [* * *]"],
            ),
            (
                json!({"schedule": "TZ=UTC 0 * * * *"}),
                &[
                    "spec.schedule: Invalid value: \"TZ=UTC 0 * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field \
                   instead",
                ],
            ),
            (
                json!({"timeZone": ""}),
                &["spec.timeZone: Invalid value: \"\": timeZone must be nil or non-empty string"],
            ),
            (
                json!({"timeZone": "Mars/Base"}),
                &["spec.timeZone: Invalid value: \"Mars/Base\": unknown time zone Mars/Base"],
            ),
            (
                json!({"timeZone": "Local"}),
                &["spec.timeZone: Invalid value: \"Local\": timeZone must be an explicit time zone as defined in \
                   https://www.iana.org/time-zones"],
            ),
            (
                json!({"concurrencyPolicy": "x"}),
                &[
                    "spec.concurrencyPolicy: Unsupported value: \"x\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
                ],
            ),
            (
                json!({"startingDeadlineSeconds": -1, "failedJobsHistoryLimit": -1}),
                &[
                    "spec.startingDeadlineSeconds: Invalid value: -1: must be greater than or equal to 0",
                    "spec.failedJobsHistoryLimit: Invalid value: -1: must be greater than or equal to 0",
                ],
            ),
            (
                json!({"jobTemplate": {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}}}),
                &[
                    "spec.jobTemplate.spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
                ],
            ),
            (
                json!({"jobTemplate": {"spec": {"selector": {}, "manualSelector": true, "template": {"spec": {
                    "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}}),
                &[
                    "spec.jobTemplate.spec.selector: Invalid value: {}: `selector` will be auto-generated",
                    "spec.jobTemplate.spec.manualSelector: Unsupported value: true: supported values: \"nil\", \"false\"",
                ],
            ),
        ];
        for (spec, want) in cases {
            assert_eq!(texts(&cron_job(&spec).validate()), want);
        }
        let mut long = cron_job(&json!({}));
        long.metadata.name = Some("x".repeat(53));
        assert!(texts(&long.validate())[0].ends_with("must be no more than 52 characters"));
        assert!(long.validate_update(&long).is_empty(), "older ones may keep their names");
    }

    #[test]
    fn what_older_servers_took_in_may_stay() {
        let old = cron_job(&json!({"schedule": "CRON_TZ=UTC 0 * * * *", "timeZone": "Old/Zone"}));
        let told = texts(&old.validate_update(&old));
        assert_eq!(
            told,
            [
                "spec.schedule: Invalid value: \"CRON_TZ=UTC 0 * * * *\": cannot use both timeZone field and TZ or CRON_TZ in \
              schedule"
            ]
        );
        let mut fine = old.clone();
        fine.spec.time_zone = None;
        assert!(fine.validate_update(&old).is_empty());
    }

    #[test]
    fn table_row() {
        let mut c = cron_job(&json!({"timeZone": "Europe/Berlin", "suspend": true}));
        let cells = c.cells(Timestamp::UNIX_EPOCH);
        assert_eq!(
            &cells[..6],
            &[json!("tick"), json!("*/5 * * * *"), json!("Europe/Berlin"), json!("True"), json!(0), json!("<none>")]
        );
        assert_eq!(cells.len(), CronJob::COLUMNS.len());
        c.status = serde_json::from_value(json!({"lastScheduleTime": "1970-01-01T00:00:00Z"})).unwrap();
        assert_eq!(c.cells(Timestamp::from_second(90).unwrap())[5], "90s");
    }
}
