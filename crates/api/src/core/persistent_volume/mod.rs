//! PersistentVolume: storage of the cluster, for claims to bind.

mod sources;

use crate::core::persistent_volume_claim::{
    BETA_STORAGE_CLASS, VOLUME_MODES, short_access_modes, validate_access_modes, validate_basic, validate_positive,
};
use crate::core::pod::validate::placement::validate_node_selector;
use crate::core::pod::{deprecated_node_label, validate::Sources};
use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS};
use crate::meta::field::{ErrorList, ErrorType, FieldError, Path};
use crate::meta::object::{Meta, differences, immutable, semantically_equal};
use crate::meta::quantity::canonicalize_list;
use crate::meta::{names, table, text};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeSpec, VolumeNodeAffinity};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

const MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";
const RECLAIM_POLICIES: &[&str] = &["Delete", "Recycle", "Retain"];
/// Fields of a spec that are not the source of the volume.
const NOT_SOURCES: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];
/// Node labels that were renamed, which an old volume's affinity may follow.
const RENAMED: &[(&str, &str)] = &[
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("beta.kubernetes.io/os", "kubernetes.io/os"),
    ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
    ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
];

impl Kind for PersistentVolume {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["pv"],
        subresources: &[STATUS],
        ..ResourceInfo::new("", "v1", "PersistentVolume", "persistentvolumes", "persistentvolume", false)
    };
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        table::text_column("Capacity", "Size of the volume.", 0),
        table::text_column("Access Modes", "How the volume can be mounted.", 0),
        table::text_column("Reclaim Policy", "What becomes of the volume when its claim goes.", 0),
        table::text_column("Status", "Whether a claim has the volume.", 0),
        table::text_column("Claim", "The claim that has the volume.", 0),
        table::text_column("StorageClass", "Storage class the volume belongs to.", 0),
        table::text_column("VolumeAttributesClass", "Volume attributes class the volume has.", 0),
        table::text_column("Reason", "Why the volume is in this state.", 0),
        table::AGE,
        table::text_column("VolumeMode", "Whether the volume is a file system or a block device.", 1),
    ];
    crate::kind_codec!(canonical: |v: &mut Self| canonicalize_list(v.spec.as_mut().and_then(|s| s.capacity.as_mut())));

    fn set_defaults(&mut self) {
        fill(&mut self.status.get_or_insert_default().phase, "Pending");
        let spec = self.spec.get_or_insert_default();
        fill(&mut spec.persistent_volume_reclaim_policy, "Retain");
        spec.volume_mode.get_or_insert_with(|| "Filesystem".to_owned());
        sources::set_defaults(spec);
    }

    fn prepare_for_create(&mut self, cx: &Context<'_>) {
        let status = self.status.insert(Default::default());
        status.phase = Some("Pending".to_owned());
        status.last_phase_transition_time = Some(crate::Time(cx.now));
    }

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        let spec = self.spec.clone().unwrap_or_default();
        validate_spec(&spec, self.metadata.name(), &Path::new("spec"), &mut e);
        e
    }

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        warnings(self)
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = self.validate();
        let (spec, before) = (self.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
        let mut compared = spec.clone();
        // The secret that growing needs may be added to a volume that lacks it.
        if let (Some(now), Some(was)) = (&mut compared.csi, &before.csi)
            && was.controller_expand_secret_ref.is_none()
        {
            now.controller_expand_secret_ref = None;
        }
        let (now, was) = (source_of(&compared), source_of(&before));
        if now != was {
            let changes = differences(&was, &now, "spec");
            let detail = format!("spec.persistentvolumesource is immutable after creation\n{changes}\n");
            e.forbidden(&Path::new("spec").child("persistentvolumesource"), &detail);
        }
        immutable(&mut e, &Path::new("volumeMode"), &json!(spec.volume_mode), &json!(before.volume_mode));
        if before.node_affinity.is_some() && !same_affinity(&spec.node_affinity, &before.node_affinity) {
            let detail = "field is immutable, except for updating from beta label to GA";
            e.invalid(&Path::new("nodeAffinity"), json!(spec.node_affinity), detail);
        }
        if before.volume_attributes_class_name.is_some() && spec.volume_attributes_class_name.is_none() {
            let at = Path::new("spec").child("volumeAttributesClassName");
            e.forbidden(&at, "update from non-nil value to nil is forbidden");
        }
        e
    }

    fn prepare_for_status_update(&mut self, old: &Self, cx: &Context<'_>) {
        self.spec.clone_from(&old.spec);
        let before = old.status.clone().unwrap_or_default();
        let status = self.status.get_or_insert_default();
        let (now, was) = (&status.last_phase_transition_time, &before.last_phase_transition_time);
        if status.phase == before.phase {
            if now.is_none() {
                status.last_phase_transition_time.clone_from(was);
            }
        } else if now.is_none() || now == was {
            status.last_phase_transition_time = Some(crate::Time(cx.now));
        }
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (self.spec.clone().unwrap_or_default(), self.status.clone().unwrap_or_default());
        let phase = if self.metadata.is_deleting() { "Terminating" } else { text(&status.phase) };
        let capacity = spec.capacity.as_ref().and_then(|c| c.get("storage")).map_or("0", |q| &q.0);
        let claim = spec.claim_ref.as_ref().map(|r| format!("{}/{}", text(&r.namespace), text(&r.name)));
        let class = self.metadata.annotation(BETA_STORAGE_CLASS).unwrap_or_else(|| text(&spec.storage_class_name));
        vec![
            self.metadata.name().into(),
            capacity.into(),
            short_access_modes(spec.access_modes.as_deref().unwrap_or_default()).into(),
            text(&spec.persistent_volume_reclaim_policy).into(),
            phase.into(),
            claim.unwrap_or_default().into(),
            class.into(),
            spec.volume_attributes_class_name.as_deref().unwrap_or("<unset>").into(),
            text(&status.reason).into(),
            table::age(&self.metadata, now).into(),
            spec.volume_mode.as_deref().unwrap_or("<unset>").into(),
        ]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["spec"]])
    }
}

fn fill(value: &mut Option<String>, default: &str) {
    let value = value.get_or_insert_default();
    if value.is_empty() {
        default.clone_into(value);
    }
}

/// The part of a spec that says what the volume is.
fn source_of(spec: &PersistentVolumeSpec) -> Value {
    let mut value = json!(spec);
    if let Value::Object(fields) = &mut value {
        fields.retain(|name, _| !NOT_SOURCES.contains(&name.as_str()));
    }
    value
}

/// Whether the affinities agree when the old one's renamed labels are read by their new names.
fn same_affinity(new: &Option<VolumeNodeAffinity>, old: &Option<VolumeNodeAffinity>) -> bool {
    if semantically_equal(new, old) {
        return true;
    }
    let Some(mut renamed) = old.clone() else { return false };
    for term in renamed.required.iter_mut().flat_map(|r| &mut r.node_selector_terms) {
        for r in term.match_expressions.iter_mut().flatten() {
            if let Some((_, name)) = RENAMED.iter().find(|(elder, _)| *elder == r.key) {
                (*name).clone_into(&mut r.key);
            }
        }
    }
    semantically_equal(new, &Some(renamed))
}

fn validate_spec(spec: &PersistentVolumeSpec, name: &str, path: &Path, e: &mut ErrorList) {
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    let at = path.child("accessModes");
    if modes.is_empty() {
        e.required(&at, "");
    }
    validate_access_modes(modes, &at, e);
    let capacity = spec.capacity.clone().unwrap_or_default();
    let at = path.child("capacity");
    if capacity.is_empty() {
        e.required(&at, "");
    }
    if !capacity.contains_key("storage") || capacity.len() > 1 {
        let shown = spec.capacity.as_ref().map_or(Value::Null, |c| json!(c));
        e.0.push(FieldError {
            r#type: ErrorType::NotSupported,
            field: at.as_str().to_owned(),
            body: format!("Unsupported value: {shown}: supported values: \"storage\""),
        });
    }
    for (name, q) in &capacity {
        validate_basic(q, &at.key(name), e);
        validate_positive(q, &at.key(name), e);
    }
    let policy = text(&spec.persistent_volume_reclaim_policy);
    let policy_path = path.child("persistentVolumeReclaimPolicy");
    if !policy.is_empty() && !RECLAIM_POLICIES.contains(&policy) {
        e.not_supported(&policy_path, policy, RECLAIM_POLICIES);
    }
    if let Some(affinity) = &spec.node_affinity {
        let at = path.child("nodeAffinity").child("required");
        match &affinity.required {
            None => e.required(&at, "must specify required node constraints"),
            Some(selector) => validate_node_selector(selector, &at, e),
        }
    }
    let mut sources = Sources::new(path, e);
    sources::validate(spec, name, &mut sources);
    if !sources.found {
        e.required(path, "must specify a volume type");
    }
    let root = spec.host_path.as_ref().is_some_and(|h| h.path.split('/').all(|part| matches!(part, "" | ".")));
    if root && spec.host_path.as_ref().is_some_and(|h| h.path.starts_with('/')) && policy == "Recycle" {
        e.forbidden(&policy_path, "may not be 'recycle' for a hostPath mount of '/'");
    }
    let class = text(&spec.storage_class_name);
    if !class.is_empty() {
        names::push_invalid(e, &path.child("storageClassName"), class, &names::dns1123_subdomain(class, false));
    }
    if let Some(mode) = spec.volume_mode.as_deref().filter(|m| !VOLUME_MODES.contains(m)) {
        e.not_supported(&path.child("volumeMode"), mode, VOLUME_MODES);
    }
    if let Some(class) = &spec.volume_attributes_class_name {
        let at = path.child("volumeAttributesClassName");
        if class.is_empty() {
            e.required(&at, "an empty string is disallowed");
        } else {
            names::push_invalid(e, &at, class, &names::dns1123_subdomain(class, false));
        }
        if spec.csi.is_none() {
            e.required(&path.child("csi"), "has to be specified when using volumeAttributesClassName");
        }
    }
}

fn warnings(volume: &PersistentVolume) -> Vec<String> {
    let Some(spec) = &volume.spec else { return Vec::new() };
    let path = Path::new("spec");
    let mut out = Vec::new();
    let annotations = Path::new("metadata").child("annotations");
    for (key, since, field) in
        [(BETA_STORAGE_CLASS, "v1.8", "storageClassName"), (MOUNT_OPTIONS, "v1.31", "mountOptions")]
    {
        if volume.metadata.annotation(key).is_some() {
            let at = annotations.key(key);
            out.push(format!("{at}: deprecated since {since}; use \"{field}\" attribute instead"));
        }
    }
    if text(&spec.persistent_volume_reclaim_policy) == "Recycle" {
        let at = path.child("persistentVolumeReclaimPolicy");
        out.push(format!(
            "{at}: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning."
        ));
    }
    let terms = spec.node_affinity.iter().flat_map(|a| &a.required).flat_map(|r| &r.node_selector_terms);
    for (i, term) in terms.enumerate() {
        let at = path.child("nodeAffinity").child("required").child("nodeSelectorTerms").index(i);
        for (j, r) in term.match_expressions.iter().flatten().enumerate() {
            if let Some(advice) = deprecated_node_label(&r.key) {
                out.push(format!("{}: {} is {advice}", at.child("matchExpressions").index(j).child("key"), r.key));
            }
        }
    }
    out.extend(sources::warnings(spec, &path));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(spec: &Value) -> PersistentVolume {
        let mut full = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1024Mi"}});
        if ["nfs", "csi", "local"].iter().all(|s| spec.get(s).is_none()) {
            full["hostPath"] = json!({"path": "/data"});
        }
        for (k, v) in spec.as_object().unwrap() {
            full[k] = v.clone();
        }
        let mut v = <PersistentVolume as Kind>::from_value(json!({"metadata": {"name": "v"}, "spec": full})).unwrap();
        v.set_defaults();
        v
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_are_upstreams() {
        let mut v = volume(&json!({}));
        let spec = v.spec.clone().unwrap();
        assert_eq!(
            json!([spec.persistent_volume_reclaim_policy, spec.volume_mode, spec.host_path]),
            json!(["Retain", "Filesystem", {"path": "/data", "type": ""}])
        );
        assert_eq!(json!(spec.capacity), json!({"storage": "1Gi"}));
        assert!(v.validate().is_empty(), "{:?}", v.validate());
        v.prepare_for_create(&Context { now: Timestamp::UNIX_EPOCH, username: "u" });
        assert_eq!(json!(v.status), json!({"phase": "Pending", "lastPhaseTransitionTime": "1970-01-01T00:00:00Z"}));
    }

    #[test]
    fn faults_have_upstreams_words() {
        let cases: [(Value, &[&str]); 11] = [
            (json!({"accessModes": []}), &["spec.accessModes: Required value"]),
            (
                json!({"capacity": {"cpu": "1"}}),
                &["spec.capacity: Unsupported value: {\"cpu\":\"1\"}: supported values: \"storage\""],
            ),
            (
                json!({"capacity": {"storage": "0"}}),
                &["spec.capacity[storage]: Invalid value: \"0\": must be greater than zero"],
            ),
            (
                json!({"persistentVolumeReclaimPolicy": "x"}),
                &[
                    "spec.persistentVolumeReclaimPolicy: Unsupported value: \"x\": supported values: \"Delete\", \"Recycle\", \
                   \"Retain\"",
                ],
            ),
            (json!({"hostPath": null}), &["spec: Required value: must specify a volume type"]),
            (
                json!({"hostPath": {"path": "/a"}, "nfs": {"server": "s", "path": "/p"}}),
                &["spec.nfs: Forbidden: may not specify more than 1 volume type"],
            ),
            (
                json!({"hostPath": {"path": "//"}, "persistentVolumeReclaimPolicy": "Recycle"}),
                &["spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'"],
            ),
            (
                json!({"local": {"path": "/a"}}),
                &["spec.nodeAffinity: Required value: Local volume requires node affinity"],
            ),
            (
                json!({"csi": {"driver": "", "volumeHandle": ""}}),
                &[
                    "spec.csi.driver: Required value",
                    "spec.csi.driver: Invalid value: \"\": a lowercase RFC 1123 subdomain must consist of lower case \
                     alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. \
                     'example.com', regex used for validation is \
                     '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
                    "spec.csi.volumeHandle: Required value",
                ],
            ),
            (
                json!({"nodeAffinity": {}}),
                &["spec.nodeAffinity.required: Required value: must specify required node constraints"],
            ),
            (
                json!({"volumeAttributesClassName": "gold"}),
                &["spec.csi: Required value: has to be specified when using volumeAttributesClassName"],
            ),
        ];
        for (spec, want) in cases {
            assert_eq!(texts(&volume(&spec).validate()), want);
        }
    }

    #[test]
    fn the_source_stays_and_labels_may_be_renamed() {
        let affinity = |key: &str| json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": key, "operator": "In", "values": ["a"]}]}]}});
        let old = volume(&json!({"nodeAffinity": affinity("failure-domain.beta.kubernetes.io/zone")}));
        let new = volume(&json!({"nodeAffinity": affinity("topology.kubernetes.io/zone"), "storageClassName": "fast"}));
        assert!(new.validate_update(&old).is_empty(), "{:?}", new.validate_update(&old));
        let other = volume(&json!({"nodeAffinity": affinity("x"), "hostPath": {"path": "/other"}}));
        let told = texts(&other.validate_update(&old));
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(
            told[0].starts_with(
                "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation\n"
            ),
            "{told:?}"
        );
        assert!(told[1].ends_with("field is immutable, except for updating from beta label to GA"), "{told:?}");
    }

    #[test]
    fn the_time_of_a_phase_is_kept() {
        let cx = |s| Context { now: Timestamp::from_second(s).unwrap(), username: "u" };
        let mut old = volume(&json!({}));
        old.prepare_for_create(&cx(1));
        let mut new = old.clone();
        new.status.as_mut().unwrap().phase = Some("Bound".into());
        new.prepare_for_status_update(&old, &cx(5));
        let since = |v: &PersistentVolume| v.status.as_ref().unwrap().last_phase_transition_time.as_ref().unwrap().0;
        assert_eq!(since(&new), Timestamp::from_second(5).unwrap());
        let mut again = new.clone();
        again.status.as_mut().unwrap().last_phase_transition_time = None;
        again.prepare_for_status_update(&new, &cx(9));
        assert_eq!(since(&again), Timestamp::from_second(5).unwrap());
    }

    #[test]
    fn table_row() {
        let v = volume(&json!({"claimRef": {"namespace": "n", "name": "c"}, "storageClassName": "fast"}));
        let cells = v.cells(Timestamp::UNIX_EPOCH);
        let want = ["v", "1Gi", "RWO", "Retain", "Pending", "n/c", "fast", "<unset>", "", "<unknown>", "Filesystem"];
        assert_eq!(cells, want.map(Value::from));
        let old = volume(&json!({"persistentVolumeReclaimPolicy": "Recycle"}));
        assert!(
            old.warnings(None)[0]
                .starts_with("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated.")
        );
    }
}
