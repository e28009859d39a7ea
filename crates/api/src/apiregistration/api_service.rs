//! APIService: who serves a version of a group.

use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS};
use crate::meta::conditions::STATUSES;
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{Meta, reset_for_status};
use crate::meta::{names, table, text};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{APIService, APIServiceCondition, APIServiceStatus};
use serde_json::Value;

const AVAILABLE: &str = "Available";

impl Kind for APIService {
    const INFO: ResourceInfo = ResourceInfo {
        categories: &["api-extensions"],
        subresources: &[STATUS],
        unconditional_update: false,
        ..ResourceInfo::new("apiregistration.k8s.io", "v1", "APIService", "apiservices", "apiservice", false)
    };
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        table::text_column("Service", "The Service that serves the version; Local is this server.", 0),
        table::text_column("Available", "Whether the version is served.", 0),
        table::AGE,
    ];
    crate::kind_codec!();

    fn set_defaults(&mut self) {
        if let Some(s) = self.spec.as_mut().and_then(|s| s.service.as_mut()) {
            s.port.get_or_insert(443);
        }
    }

    fn prepare_for_create(&mut self, cx: &Context<'_>) {
        let mut status = APIServiceStatus::default();
        if self.spec.as_ref().is_none_or(|s| s.service.is_none()) {
            let now = Timestamp::from_second(cx.now.as_second()).unwrap_or(cx.now);
            status.conditions = Some(vec![APIServiceCondition {
                type_: AVAILABLE.to_owned(),
                status: "True".to_owned(),
                last_transition_time: Some(Time(now)),
                reason: Some("Local".to_owned()),
                message: Some("Local APIServices are always available".to_owned()),
            }]);
        }
        self.status = Some(status);
    }

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        let spec = self.spec.clone().unwrap_or_default();
        let (group, version) = (text(&spec.group), text(&spec.version));
        let name = self.metadata.name();
        let required = format!("{version}.{group}");
        if !name.is_empty() && name != required && names::path_segment(name, false).is_empty() {
            let detail = format!("must be `spec.version+\".\"+spec.group`: {required:?}");
            e.invalid(&Path::new("metadata").child("name"), name, &detail);
        }
        let path = Path::new("spec");
        let at = path.child("group");
        if !group.is_empty() {
            names::push_invalid(&mut e, &at, group, &names::dns1123_subdomain(group, false));
        } else if version != "v1" {
            e.required(&at, "only v1 may have an empty group and it better be legacy kube");
        }
        names::push_invalid(&mut e, &path.child("version"), version, &names::dns1035_label(version, false));
        let minimum = spec.group_priority_minimum;
        if !(1..=20_000).contains(&minimum) {
            e.invalid(&path.child("groupPriorityMinimum"), minimum, "must be positive and less than 20000");
        }
        if !(1..=1000).contains(&spec.version_priority) {
            let detail = "must be positive and less than 1000";
            e.invalid(&path.child("versionPriority"), spec.version_priority, detail);
        }
        let bundle = spec.ca_bundle.as_ref().map_or(0, |b| b.0.len());
        let insecure = spec.insecure_skip_tls_verify == Some(true);
        let at_insecure = path.child("insecureSkipTLSVerify");
        let Some(service) = &spec.service else {
            if bundle != 0 {
                let detail = "local APIServices may not have a caBundle";
                e.invalid(&path.child("caBundle"), format!("{bundle} bytes"), detail);
            }
            if insecure {
                e.invalid(&at_insecure, true, "local APIServices may not have insecureSkipTLSVerify");
            }
            return e;
        };
        let at = path.child("service");
        for (field, value) in [("namespace", &service.namespace), ("name", &service.name)] {
            if text(value).is_empty() {
                e.required(&at.child(field), "");
            }
        }
        let port = service.port.unwrap_or(0);
        let found = names::port_number(port);
        if !found.is_empty() {
            e.invalid(&at.child("port"), port, &format!("port is not valid: {}", found.join(", ")));
        }
        if insecure && bundle > 0 {
            e.invalid(&at_insecure, true, "may not be true if caBundle is present");
        }
        e
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec.clone_from(&old.spec);
        reset_for_status(&mut self.metadata, &old.metadata);
    }

    fn validate_status_update(&self, _: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        let conditions = self.status.iter().flat_map(|s| s.conditions.iter().flatten());
        for (i, c) in conditions.enumerate().filter(|(_, c)| !STATUSES.contains(&c.status.as_str())) {
            let path = Path::new("status").child("conditions").index(i).child("status");
            e.not_supported(&path, &c.status, &["True", "False", "Unknown"]);
        }
        e
    }

    // Any name that fits a path; that it is `version.group` is a rule over the spec.
    fn validate_name(name: &str, prefix: bool) -> Vec<String> {
        names::path_segment(name, prefix)
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let service = self.spec.as_ref().and_then(|s| s.service.as_ref());
        let service =
            service.map_or_else(|| "Local".to_owned(), |s| format!("{}/{}", text(&s.namespace), text(&s.name)));
        let conditions = self.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let available = conditions.into_iter().find(|c| c.type_ == AVAILABLE).map(|c| match text(&c.reason) {
            reason if c.status != "True" && !reason.is_empty() => format!("{} ({reason})", c.status),
            _ => c.status.clone(),
        });
        vec![
            self.metadata.name().into(),
            service.into(),
            available.unwrap_or_else(|| "Unknown".to_owned()).into(),
            table::age(&self.metadata, now).into(),
        ]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["metadata"], &["spec"]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const CX: Context<'static> = Context { now: Timestamp::UNIX_EPOCH, username: "" };

    fn service(name: &str, spec: Value) -> APIService {
        let mut s = APIService::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
        s.set_defaults();
        s.prepare_for_create(&CX);
        s
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn field_errors() {
        let bad = service(
            "x",
            json!({"group": "", "version": "v2", "groupPriorityMinimum": 0, "versionPriority": 1001,
            "caBundle": "AAAA", "insecureSkipTLSVerify": true}),
        );
        assert_eq!(
            texts(&bad.validate()),
            [
                "metadata.name: Invalid value: \"x\": must be `spec.version+\".\"+spec.group`: \"v2.\"",
                "spec.group: Required value: only v1 may have an empty group and it better be legacy kube",
                "spec.groupPriorityMinimum: Invalid value: 0: must be positive and less than 20000",
                "spec.versionPriority: Invalid value: 1001: must be positive and less than 1000",
                "spec.caBundle: Invalid value: \"3 bytes\": local APIServices may not have a caBundle",
                "spec.insecureSkipTLSVerify: Invalid value: true: local APIServices may not have insecureSkipTLSVerify",
            ]
        );
        let remote = service(
            "v1.a.b",
            json!({"group": "a.b", "version": "v1", "groupPriorityMinimum": 1,
            "versionPriority": 1, "service": {"port": 0}, "insecureSkipTLSVerify": true, "caBundle": "AAAA"}),
        );
        assert_eq!(
            texts(&remote.validate()),
            [
                "spec.service.namespace: Required value",
                "spec.service.name: Required value",
                "spec.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive",
                "spec.insecureSkipTLSVerify: Invalid value: true: may not be true if caBundle is present",
            ]
        );
    }

    #[test]
    fn local_ones_are_available_at_once() {
        let base = json!({"group": "a.b", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1});
        let local = service("v1.a.b", base.clone());
        assert!(local.validate().is_empty());
        assert_eq!(json!(local.cells(CX.now)), json!(["v1.a.b", "Local", "True", "<unknown>"]));
        let mut spec = base;
        spec["service"] = json!({"namespace": "n", "name": "s"});
        let mut remote = service("v1.a.b", spec);
        assert_eq!(remote.spec.as_ref().unwrap().service.as_ref().unwrap().port, Some(443));
        assert_eq!(json!(remote.cells(CX.now)), json!(["v1.a.b", "n/s", "Unknown", "<unknown>"]));
        let old = remote.clone();
        remote.status = APIService::from_value(json!({"status": {"conditions": [{"type": "Available",
            "status": "False", "reason": "MissingEndpoints"}, {"type": "x", "status": "maybe"}]}}))
        .unwrap()
        .status;
        assert_eq!(remote.cells(CX.now)[2], "False (MissingEndpoints)");
        assert_eq!(
            texts(&remote.validate_status_update(&old)),
            ["status.conditions[1].status: Unsupported value: \"maybe\": supported values: \"True\", \"False\", \
                 \"Unknown\""]
        );
        remote.prepare_for_update(&old, &CX);
        assert_eq!(remote.status, old.status);
    }
}
