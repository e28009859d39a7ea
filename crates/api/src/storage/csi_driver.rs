//! CSIDriver: what the cluster must know of a storage driver.

use crate::apps::workload::bump_generation;
use crate::kind::{Column, Context, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{Meta, immutable, semantically_equal};
use crate::meta::table;
use k8s_openapi::api::storage::v1::{CSIDriver, TokenRequest};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

const FS_GROUP_POLICIES: &[&str] = &["File", "None", "ReadWriteOnceWithFSType"];
const LIFECYCLE_MODES: &[&str] = &["Persistent", "Ephemeral"];
/// Limits of a token's life in seconds.
const TOKEN_SECONDS: std::ops::RangeInclusive<i64> = 600..=1 << 32;

fn validate_token_requests(requests: &[TokenRequest], path: &Path, errors: &mut ErrorList) {
    for (i, r) in requests.iter().enumerate() {
        let path = path.index(i);
        if requests[..i].iter().any(|o| o.audience == r.audience) {
            errors.duplicate(&path.child("audience"), r.audience.as_str());
            continue;
        }
        let Some(seconds) = r.expiration_seconds else { continue };
        let path = path.child("expirationSeconds");
        if seconds < *TOKEN_SECONDS.start() {
            errors.invalid(&path, seconds, "may not specify a duration less than 10 minutes");
        }
        if seconds > *TOKEN_SECONDS.end() {
            errors.invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds");
        }
    }
}

impl Kind for CSIDriver {
    const INFO: ResourceInfo = ResourceInfo {
        unconditional_update: false,
        ..ResourceInfo::new("storage.k8s.io", "v1", "CSIDriver", "csidrivers", "csidriver", false)
    };
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        table::column("AttachRequired", "boolean", "Whether volumes are attached before they are mounted."),
        table::column("PodInfoOnMount", "boolean", "Whether the driver is told of the pod it mounts for."),
        table::column("StorageCapacity", "boolean", "Whether scheduling looks at the capacity the driver reports."),
        table::text_column("TokenRequests", "Audiences of the service account tokens the driver needs.", 0),
        table::column("RequiresRepublish", "boolean", "Whether volumes are published again and again."),
        table::text_column("Modes", "The sorts of volumes the driver has.", 0),
        table::AGE,
    ];
    crate::kind_codec!();

    fn set_defaults(&mut self) {
        let spec = &mut self.spec;
        spec.attach_required.get_or_insert(true);
        spec.pod_info_on_mount.get_or_insert(false);
        spec.storage_capacity.get_or_insert(false);
        spec.fs_group_policy.get_or_insert_with(|| "ReadWriteOnceWithFSType".to_owned());
        let modes = spec.volume_lifecycle_modes.get_or_insert_default();
        if modes.is_empty() {
            modes.push("Persistent".to_owned());
        }
        spec.requires_republish.get_or_insert(false);
        spec.se_linux_mount.get_or_insert(false);
        spec.prevent_pod_scheduling_if_missing.get_or_insert(false);
    }

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.metadata.generation = Some(1);
    }

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        let (spec, path) = (&self.spec, Path::new("spec"));
        let required = [
            ("attachedRequired", spec.attach_required),
            ("podInfoOnMount", spec.pod_info_on_mount),
            ("storageCapacity", spec.storage_capacity),
        ];
        for (field, _) in required.iter().filter(|(_, v)| v.is_none()) {
            e.required(&path.child(field), "");
        }
        if let Some(policy) = spec.fs_group_policy.as_deref().filter(|p| !FS_GROUP_POLICIES.contains(p)) {
            e.not_supported(&path.child("fsGroupPolicy"), policy, FS_GROUP_POLICIES);
        }
        let tokens = spec.token_requests.as_deref().unwrap_or_default();
        validate_token_requests(tokens, &path.child("tokenRequests"), &mut e);
        for mode in spec.volume_lifecycle_modes.iter().flatten().filter(|m| !LIFECYCLE_MODES.contains(&m.as_str())) {
            e.not_supported(&path.child("volumeLifecycleModes"), mode, LIFECYCLE_MODES);
        }
        if spec.se_linux_mount.is_none() {
            e.required(&path.child("seLinuxMount"), "");
        }
        if let Some(seconds) = spec.node_allocatable_update_period_seconds.filter(|s| *s < 10) {
            let detail = "must be greater than or equal to 10 seconds";
            e.invalid(&path.child("nodeAllocatableUpdatePeriodSeconds"), seconds, detail);
        }
        if let Some(value) = spec.service_account_token_in_secrets.filter(|_| tokens.is_empty()) {
            let detail = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
            e.invalid(&path.child("serviceAccountTokenInSecrets"), value, detail);
        }
        e
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        let changed = !semantically_equal(&self.spec, &old.spec);
        bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = self.validate();
        let path = Path::new("spec");
        let attach = |d: &Self| json!(d.spec.attach_required);
        let modes = |d: &Self| json!(d.spec.volume_lifecycle_modes);
        immutable(&mut e, &path.child("attachedRequired"), &attach(self), &attach(old));
        immutable(&mut e, &path.child("volumeLifecycleModes"), &modes(self), &modes(old));
        e
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let spec = &self.spec;
        let modes = spec.volume_lifecycle_modes.as_deref().unwrap_or_default().join(",");
        let tokens = spec.token_requests.as_ref().map_or_else(
            || "<unset>".to_owned(),
            |r| r.iter().map(|r| r.audience.as_str()).collect::<Vec<_>>().join(","),
        );
        vec![
            self.metadata.name().into(),
            spec.attach_required.unwrap_or(true).into(),
            spec.pod_info_on_mount.unwrap_or(false).into(),
            spec.storage_capacity.unwrap_or(false).into(),
            tokens.into(),
            spec.requires_republish.unwrap_or(false).into(),
            if modes.is_empty() { "<none>".into() } else { modes.into() },
            table::age(&self.metadata, now).into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver(spec: Value) -> CSIDriver {
        let mut d = CSIDriver::from_value(json!({"metadata": {"name": "d"}, "spec": spec})).unwrap();
        d.set_defaults();
        d
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_and_row() {
        let d = driver(json!({}));
        assert!(d.validate().is_empty());
        assert_eq!(
            json!(d.cells(Timestamp::UNIX_EPOCH)),
            json!(["d", true, false, false, "<unset>", false, "Persistent", "<unknown>"])
        );
        assert_eq!(d.spec.fs_group_policy.as_deref(), Some("ReadWriteOnceWithFSType"));
    }

    #[test]
    fn field_errors() {
        let d = driver(json!({"fsGroupPolicy": "x", "volumeLifecycleModes": ["Y"],
            "nodeAllocatableUpdatePeriodSeconds": 9, "tokenRequests": [{"audience": "a", "expirationSeconds": 1},
                {"audience": "a"}, {"audience": "b", "expirationSeconds": 4_294_967_297_i64}]}));
        assert_eq!(
            texts(&d.validate()),
            [
                "spec.fsGroupPolicy: Unsupported value: \"x\": supported values: \"File\", \"None\", \
                 \"ReadWriteOnceWithFSType\"",
                "spec.tokenRequests[0].expirationSeconds: Invalid value: 1: may not specify a duration less than 10 \
                 minutes",
                "spec.tokenRequests[1].audience: Duplicate value: \"a\"",
                "spec.tokenRequests[2].expirationSeconds: Invalid value: 4294967297: may not specify a duration larger \
                 than 2^32 seconds",
                "spec.volumeLifecycleModes: Unsupported value: \"Y\": supported values: \"Persistent\", \"Ephemeral\"",
                "spec.nodeAllocatableUpdatePeriodSeconds: Invalid value: 9: must be greater than or equal to 10 \
                 seconds",
            ]
        );
        assert_eq!(
            texts(&driver(json!({"serviceAccountTokenInSecrets": true})).validate()),
            ["spec.serviceAccountTokenInSecrets: Invalid value: true: serviceAccountTokenInSecrets is set but no \
              tokenRequests are specified"]
        );
    }

    #[test]
    fn attachment_is_immutable_and_changes_count() {
        let cx = Context { now: Timestamp::UNIX_EPOCH, username: "" };
        let mut old = driver(json!({}));
        old.prepare_for_create(&cx);
        let mut new = driver(json!({"attachRequired": false}));
        new.prepare_for_update(&old, &cx);
        assert_eq!(new.metadata.generation, Some(2));
        assert_eq!(
            texts(&new.validate_update(&old)),
            ["spec.attachedRequired: Invalid value: false: field is immutable"]
        );
    }
}
