//! PersistentVolumeClaim: a request for storage, and the volume that answers it.

use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS};
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::{SelectorOptions, validate_label_selector};
use crate::meta::object::{Meta, differences, immutable, semantically_equal};
use crate::meta::quantity::{Amount, ResourceList, amount_of, canonicalize_list};
use crate::meta::{names, table, text};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, TypedLocalObjectReference, TypedObjectReference,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// The annotation that named the storage class before the field did. Still honoured.
pub const BETA_STORAGE_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// Access modes, as messages list them.
pub(crate) const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// Volume modes, as messages list them.
pub(crate) const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
const RESIZE_STATUSES: &[&str] = &[
    "ControllerResizeFailed",
    "ControllerResizeInProgress",
    "NodeResizeFailed",
    "NodeResizeInProgress",
    "NodeResizePending",
];

impl Kind for PersistentVolumeClaim {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["pvc"],
        subresources: &[STATUS],
        ..ResourceInfo::new("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", "persistentvolumeclaim", true)
    };
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        table::text_column("Status", "Phase of the claim.", 0),
        table::text_column("Volume", "Name of the volume that backs the claim.", 0),
        table::text_column("Capacity", "Size of the volume that backs the claim.", 0),
        table::text_column("Access Modes", "How the volume can be mounted.", 0),
        table::text_column("StorageClass", "Storage class the claim asks for.", 0),
        table::text_column("VolumeAttributesClass", "Volume attributes class the claim asks for.", 0),
        table::AGE,
        table::text_column("VolumeMode", "Whether the volume is a file system or a block device.", 1),
    ];
    crate::kind_codec!(canonical: canonicalize);

    fn set_defaults(&mut self) {
        let phase = self.status.get_or_insert_default().phase.get_or_insert_default();
        if phase.is_empty() {
            *phase = "Pending".to_owned();
        }
        default_spec(self.spec.get_or_insert_default());
    }

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        let status = self.status.insert(Default::default());
        status.phase = Some("Pending".to_owned());
        settle_data_sources(self.spec.get_or_insert_default(), None);
    }

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        validate_spec(&self.spec.clone().unwrap_or_default(), false, &Path::new("spec"), &mut e);
        e
    }

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        self.spec.as_ref().map(|s| spec_warnings(s, &Path::new("spec"))).unwrap_or_default()
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
        settle_data_sources(self.spec.get_or_insert_default(), old.spec.as_ref());
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        validate_update(self, old)
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec.clone_from(&old.spec);
    }

    fn validate_status_update(&self, _: &Self) -> ErrorList {
        validate_status(self)
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (self.spec.clone().unwrap_or_default(), self.status.clone().unwrap_or_default());
        let phase = if self.metadata.is_deleting() { "Terminating" } else { text(&status.phase) };
        let (mut capacity, mut modes) = (String::new(), String::new());
        if !text(&spec.volume_name).is_empty() {
            capacity = status.capacity.as_ref().and_then(|c| c.get("storage")).map_or("0".to_owned(), |q| q.0.clone());
            modes = short_access_modes(status.access_modes.as_deref().unwrap_or_default());
        }
        vec![
            self.metadata.name().into(),
            phase.into(),
            text(&spec.volume_name).into(),
            capacity.into(),
            modes.into(),
            storage_class(self).unwrap_or_default().into(),
            spec.volume_attributes_class_name.as_deref().unwrap_or("<unset>").into(),
            table::age(&self.metadata, now).into(),
            spec.volume_mode.as_deref().unwrap_or("<unset>").into(),
        ]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["spec"]])
    }
}

/// The storage class a claim asks for: the elder annotation, else the field; None where it names none.
#[must_use]
pub fn storage_class(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim
        .metadata
        .annotation(BETA_STORAGE_CLASS)
        .or_else(|| claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref()))
}

/// Access modes as `kubectl get` shows them: each once, `RWO,ROX,RWX,RWOP`.
#[must_use]
pub fn short_access_modes(modes: &[String]) -> String {
    let short =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let has = |mode: &str| modes.iter().any(|m| m == mode);
    short.iter().filter(|(mode, _)| has(mode)).map(|(_, s)| *s).collect::<Vec<_>>().join(",")
}

/// Puts the quantities of a claim in canonical form.
pub(crate) fn canonicalize(claim: &mut PersistentVolumeClaim) -> Result<(), String> {
    if let Some(r) = claim.spec.as_mut().and_then(|s| s.resources.as_mut()) {
        canonicalize_list(r.limits.as_mut())?;
        canonicalize_list(r.requests.as_mut())?;
    }
    let Some(status) = &mut claim.status else { return Ok(()) };
    canonicalize_list(status.capacity.as_mut())?;
    canonicalize_list(status.allocated_resources.as_mut())
}

/// Defaults of a claim's spec, also of one inside a pod or StatefulSet.
pub(crate) fn default_spec(spec: &mut PersistentVolumeClaimSpec) {
    spec.volume_mode.get_or_insert_with(|| "Filesystem".to_owned());
}

/// `dataSource` keeps only what it was made for (claims and snapshots) and `dataSourceRef` mirrors it; references into
/// other namespaces belong to a feature that is off.
fn settle_data_sources(spec: &mut PersistentVolumeClaimSpec, old: Option<&PersistentVolumeClaimSpec>) {
    let foreign = spec.data_source_ref.as_ref().is_some_and(|r| !text(&r.namespace).is_empty());
    if foreign && old.is_none_or(|o| o.data_source_ref.is_none()) {
        spec.data_source_ref = None;
    }
    let known = spec.data_source.as_ref().is_some_and(|s| match text(&s.api_group) {
        "" => s.kind == "PersistentVolumeClaim",
        group => group == "snapshot.storage.k8s.io" && s.kind == "VolumeSnapshot",
    });
    if !known && old.is_none_or(|o| o.data_source.is_none()) {
        spec.data_source = None;
    }
    match (&spec.data_source, &spec.data_source_ref) {
        (Some(s), None) => {
            spec.data_source_ref = Some(TypedObjectReference {
                api_group: s.api_group.clone(),
                kind: s.kind.clone(),
                name: s.name.clone(),
                namespace: None,
            });
        }
        (None, Some(r)) => {
            spec.data_source = Some(TypedLocalObjectReference {
                api_group: r.api_group.clone(),
                kind: r.kind.clone(),
                name: r.name.clone(),
            });
        }
        _ => {}
    }
}

/// Warnings about a claim's spec at `path`.
pub(crate) fn spec_warnings(spec: &PersistentVolumeClaimSpec, path: &Path) -> Vec<String> {
    let resources = spec.resources.clone().unwrap_or_default();
    let mut out = Vec::new();
    for (field, list) in [("requests", &resources.requests), ("limits", &resources.limits)] {
        if amount_of(list.as_ref(), "storage").milli_value() % 1000 != 0 {
            let shown = &list.as_ref().expect("it holds an amount")["storage"].0;
            let at = path.child("resources").child(field).key("storage");
            out.push(format!("{at}: fractional byte value {shown:?} is invalid, must be an integer"));
        }
    }
    out
}

fn validate_class(name: &str, path: &Path, e: &mut ErrorList) {
    names::push_invalid(e, path, name, &names::dns1123_subdomain(name, false));
}

/// Adds the errors of access modes, but not that of none.
pub(crate) fn validate_access_modes(modes: &[String], path: &Path, e: &mut ErrorList) {
    for mode in modes.iter().filter(|m| !ACCESS_MODES.contains(&m.as_str())) {
        e.not_supported(path, mode, ACCESS_MODES);
    }
    let exclusive = modes.iter().any(|m| m == "ReadWriteOncePod");
    if exclusive && modes.iter().any(|m| m != "ReadWriteOncePod" && ACCESS_MODES.contains(&m.as_str())) {
        e.forbidden(path, "may not use ReadWriteOncePod with other access modes");
    }
}

/// Adds the errors of a claim's spec (`ValidatePersistentVolumeClaimSpec`), also of one inside a pod or StatefulSet.
/// `any_api_group` lets data sources with a malformed group pass, as they must where the old object had one.
pub(crate) fn validate_spec(spec: &PersistentVolumeClaimSpec, any_api_group: bool, path: &Path, e: &mut ErrorList) {
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    let modes_path = path.child("accessModes");
    if modes.is_empty() {
        e.required(&modes_path, "at least 1 access mode is required");
    }
    e.extend(validate_label_selector(spec.selector.as_ref(), SelectorOptions::default(), &path.child("selector")));
    validate_access_modes(modes, &modes_path, e);
    let requests = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    let storage_path = path.child("resources").key("storage");
    match requests.and_then(|r| r.get("storage")) {
        None => e.required(&storage_path, ""),
        Some(q) => validate_positive(q, &storage_path, e),
    }
    if let Some(class) = spec.storage_class_name.as_deref().filter(|c| !c.is_empty()) {
        validate_class(class, &path.child("storageClassName"), e);
    }
    if let Some(mode) = spec.volume_mode.as_deref().filter(|m| !VOLUME_MODES.contains(m)) {
        e.not_supported(&path.child("volumeMode"), mode, VOLUME_MODES);
    }
    if let Some(s) = &spec.data_source {
        validate_data_source((&s.name, &s.kind, text(&s.api_group)), any_api_group, &path.child("dataSource"), e);
    }
    if let Some(r) = &spec.data_source_ref {
        let path = path.child("dataSourceRef");
        validate_data_source((&r.name, &r.kind, text(&r.api_group)), any_api_group, &path, e);
        if let Some(namespace) = r.namespace.as_deref().filter(|n| !n.is_empty()) {
            names::push_invalid(e, &path.child("namespace"), namespace, &names::dns1123_label(namespace, false));
        }
    }
    if let (Some(s), Some(r)) = (&spec.data_source, &spec.data_source_ref) {
        // The value upstream shows here is a path, which encodes as an empty object.
        if !text(&r.namespace).is_empty() {
            e.invalid(path, json!({}), "may not be specified when dataSourceRef.namespace is specified");
        } else if (&s.api_group, &s.kind, &s.name) != (&r.api_group, &r.kind, &r.name) {
            e.invalid(path, json!({}), "must match dataSourceRef");
        }
    }
    if let Some(class) = spec.volume_attributes_class_name.as_deref().filter(|c| !c.is_empty()) {
        validate_class(class, &path.child("volumeAttributesClassName"), e);
    }
}

/// Adds `must be greater than zero` where it is not.
pub(crate) fn validate_positive(q: &Quantity, path: &Path, e: &mut ErrorList) {
    if Amount::parse(&q.0).is_ok_and(|a| a.sign() <= 0) {
        e.invalid(path, q.0.as_str(), "must be greater than zero");
    }
}

fn validate_data_source((name, kind, group): (&str, &str, &str), any_group: bool, path: &Path, e: &mut ErrorList) {
    for (field, value) in [("name", name), ("kind", kind)] {
        if value.is_empty() {
            e.required(&path.child(field), "");
        }
    }
    if group.is_empty() {
        if kind != "PersistentVolumeClaim" {
            e.invalid(path, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup");
        }
    } else if !any_group {
        names::push_invalid(e, &path.child("apiGroup"), group, &names::dns1123_subdomain(group, false));
    }
}

/// Whether the class only moves from the annotation to the field, or is set for the first time.
fn class_may_be_set(new: &PersistentVolumeClaim, old: &PersistentVolumeClaim) -> bool {
    let field = |c: &PersistentVolumeClaim| c.spec.as_ref().and_then(|s| s.storage_class_name.clone());
    let annotated = old.metadata.annotation(BETA_STORAGE_CLASS);
    field(old).is_none() && field(new).is_some_and(|c| annotated.is_none_or(|a| a == c))
}

fn class_moves_from_annotation(new: &PersistentVolumeClaim, old: &PersistentVolumeClaim) -> bool {
    let Some(before) = old.metadata.annotation(BETA_STORAGE_CLASS) else { return false };
    class_may_be_set(new, old) && new.metadata.annotation(BETA_STORAGE_CLASS).is_none_or(|now| now == before)
}

fn validate_update(new: &PersistentVolumeClaim, old: &PersistentVolumeClaim) -> ErrorList {
    let mut e = ErrorList::default();
    let path = Path::new("spec");
    let (spec, before) = (new.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    let grouped = before.data_source.as_ref().is_some_and(|s| s.api_group.is_some())
        || before.data_source_ref.as_ref().is_some_and(|r| r.api_group.is_some());
    validate_spec(&spec, grouped, &path, &mut e);
    let (mut wanted, mut was) = (spec.clone(), before.clone());
    if text(&was.volume_name).is_empty() {
        // The volume is chosen once.
        was.volume_name.clone_from(&wanted.volume_name);
    }
    if class_moves_from_annotation(new, old) {
        wanted.storage_class_name = None;
    } else {
        let annotation =
            |c: &PersistentVolumeClaim| c.metadata.annotation(BETA_STORAGE_CLASS).unwrap_or_default().to_owned();
        if annotation(new) != annotation(old) {
            let at = Path::new("metadata").child("annotations").key(BETA_STORAGE_CLASS);
            e.invalid(&at, annotation(new), "field is immutable");
        }
        if class_may_be_set(new, old) {
            wanted.storage_class_name.clone_from(&was.storage_class_name);
        }
    }
    let storage =
        |s: &PersistentVolumeClaimSpec| s.resources.as_ref().and_then(|r| r.requests.as_ref()?.get("storage").cloned());
    let bound = new.status.as_ref().is_some_and(|s| text(&s.phase) == "Bound");
    if bound && let Some(requests) = wanted.resources.as_mut().and_then(|r| r.requests.as_mut()) {
        requests.insert("storage".to_owned(), storage(&before).unwrap_or_else(|| Quantity("0".to_owned())));
    }
    wanted.volume_attributes_class_name.clone_from(&was.volume_attributes_class_name);
    if !semantically_equal(&wanted, &was) {
        let detail =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        let changes = differences(&json!(was), &json!(wanted), "spec");
        e.forbidden(&path, &format!("{detail}\n{changes}\n"));
    }
    let amount =
        |s: &PersistentVolumeClaimSpec| amount_of(s.resources.as_ref().and_then(|r| r.requests.as_ref()), "storage");
    if amount(&spec) < amount(&before) {
        let capacity: Option<&ResourceList> = old.status.as_ref().and_then(|s| s.capacity.as_ref());
        if amount(&spec) <= amount_of(capacity, "storage") {
            let at = path.child("resources").child("requests").child("storage");
            e.forbidden(&at, "field can not be less than status.capacity");
        }
    }
    immutable(&mut e, &Path::new("volumeMode"), &json!(spec.volume_mode), &json!(before.volume_mode));
    if before.volume_attributes_class_name.is_some() {
        let at = path.child("volumeAttributesClassName");
        match spec.volume_attributes_class_name.as_deref() {
            None => e.forbidden(&at, "update from non-nil value to nil is forbidden"),
            Some("") if spec.volume_attributes_class_name != before.volume_attributes_class_name => {
                e.forbidden(&at, "update from non-nil value to an empty string is forbidden");
            }
            Some(_) => {}
        }
    }
    e
}

/// Adds `must be a valid resource quantity` where it is negative.
pub(crate) fn validate_basic(q: &Quantity, path: &Path, e: &mut ErrorList) -> bool {
    let value = Amount::parse(&q.0).map_or(0, |a| a.value());
    if value < 0 {
        e.invalid(path, value, "must be a valid resource quantity");
    }
    value >= 0
}

fn validate_resource_key(key: &str, path: &Path, e: &mut ErrorList) -> bool {
    let bad = names::qualified_name(key);
    names::push_invalid(e, path, key, &bad);
    if bad.is_empty() && key != "storage" && crate::core::pod::validate::resources::is_native(key) {
        e.not_supported(path, key, &["storage"]);
        return false;
    }
    bad.is_empty()
}

fn validate_status(claim: &PersistentVolumeClaim) -> ErrorList {
    let mut e = ErrorList::default();
    if claim.spec.as_ref().and_then(|s| s.access_modes.as_ref()).is_none_or(Vec::is_empty) {
        e.required(&Path::new("Spec").child("accessModes"), "");
    }
    let path = Path::new("status");
    let status = claim.status.clone().unwrap_or_default();
    for (name, q) in status.capacity.iter().flatten() {
        validate_basic(q, &path.child("capacity").key(name), &mut e);
    }
    // The path upstream reports lacks the plural.
    let at = path.child("allocatedResourceStatus");
    for (name, state) in status.allocated_resource_statuses.iter().flatten() {
        validate_resource_key(name, &at, &mut e);
        if !RESIZE_STATUSES.contains(&state.as_str()) {
            e.not_supported(&at, name, RESIZE_STATUSES);
        }
    }
    let at = path.child("allocatedResources");
    for (name, q) in status.allocated_resources.iter().flatten() {
        if validate_resource_key(name, &at, &mut e) {
            validate_basic(q, &at.key(name), &mut e);
        }
    }
    e
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(spec: Value) -> PersistentVolumeClaim {
        let mut full = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        for (k, v) in spec.as_object().unwrap() {
            full[k] = v.clone();
        }
        let mut c =
            <PersistentVolumeClaim as Kind>::from_value(json!({"metadata": {"name": "c"}, "spec": full})).unwrap();
        c.set_defaults();
        c
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_and_data_sources() {
        let mut c = claim(json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "other"}}));
        assert_eq!(c.spec.as_ref().unwrap().volume_mode.as_deref(), Some("Filesystem"));
        assert_eq!(c.status.as_ref().unwrap().phase.as_deref(), Some("Pending"));
        c.prepare_for_create(&Context { now: Timestamp::UNIX_EPOCH, username: "u" });
        assert_eq!(c.spec.as_ref().unwrap().data_source_ref.as_ref().unwrap().name, "other");
        assert!(c.validate().is_empty(), "{:?}", c.validate());
        let mut odd = claim(json!({"dataSource": {"kind": "Pod", "name": "p"}}));
        odd.prepare_for_create(&Context { now: Timestamp::UNIX_EPOCH, username: "u" });
        assert!(odd.spec.unwrap().data_source.is_none());
    }

    #[test]
    fn faults_have_upstreams_words() {
        let cases = [
            (json!({"accessModes": []}), "spec.accessModes: Required value: at least 1 access mode is required"),
            (
                json!({"accessModes": ["x"]}),
                "spec.accessModes: Unsupported value: \"x\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
            ),
            (
                json!({"accessModes": ["ReadWriteOncePod", "ReadWriteOnce"]}),
                "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
            ),
            (json!({"resources": {}}), "spec.resources[storage]: Required value"),
            (
                json!({"resources": {"requests": {"storage": "0"}}}),
                "spec.resources[storage]: Invalid value: \"0\": must be greater than zero",
            ),
            (
                json!({"volumeMode": "x"}),
                "spec.volumeMode: Unsupported value: \"x\": supported values: \"Block\", \"Filesystem\"",
            ),
            (
                json!({"dataSourceRef": {"kind": "Pod", "name": "p"}}),
                "spec.dataSourceRef: Invalid value: \"Pod\": must be 'PersistentVolumeClaim' when referencing the default apiGroup",
            ),
            (
                json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "a"},
                    "dataSourceRef": {"kind": "PersistentVolumeClaim", "name": "b"}}),
                "spec: Invalid value: {}: must match dataSourceRef",
            ),
        ];
        for (spec, want) in cases {
            assert_eq!(texts(&claim(spec).validate()), [want]);
        }
    }

    #[test]
    fn a_bound_claim_grows_and_little_else() {
        let mut old = claim(json!({"storageClassName": "fast"}));
        old.status = serde_json::from_value(json!({"phase": "Bound", "capacity": {"storage": "1Gi"}})).unwrap();
        let change = |spec: Value| {
            let mut new = claim(spec);
            new.status.clone_from(&old.status);
            texts(&new.validate_update(&old))
        };
        let bigger = json!({"requests": {"storage": "2Gi"}});
        let none: [&str; 0] = [];
        assert_eq!(change(json!({"storageClassName": "fast", "resources": bigger, "volumeName": "pv"})), none);
        assert_eq!(
            change(json!({"storageClassName": "fast", "resources": {"requests": {"storage": "1Mi"}}})),
            ["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"]
        );
        let told = change(json!({"storageClassName": "slow"}));
        assert_eq!(told.len(), 1);
        assert!(
            told[0].starts_with("spec: Forbidden: spec is immutable after creation except resources.requests and"),
            "{told:?}"
        );
        let block = change(json!({"storageClassName": "fast", "volumeMode": "Block"}));
        assert_eq!(block[1], "volumeMode: Invalid value: \"Block\": field is immutable");
        let mut pending = old.clone();
        pending.status = None;
        let mut new = claim(json!({"storageClassName": "fast", "resources": bigger}));
        new.status = None;
        assert_eq!(new.validate_update(&pending).0.len(), 1, "only a bound claim grows");
    }

    #[test]
    fn a_class_is_set_once() {
        let old = claim(json!({}));
        let new = claim(json!({"storageClassName": "fast"}));
        assert!(new.validate_update(&old).is_empty(), "{:?}", new.validate_update(&old));
    }

    #[test]
    fn table_row() {
        let mut c = claim(json!({"volumeName": "pv", "storageClassName": "fast"}));
        c.status = serde_json::from_value(
            json!({"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"]}),
        )
        .unwrap();
        let cells = c.cells(Timestamp::UNIX_EPOCH);
        assert_eq!(
            &cells[..7],
            &[json!("c"), json!("Bound"), json!("pv"), json!("1Gi"), json!("RWO,RWX"), json!("fast"), json!("<unset>")]
        );
        assert_eq!(cells.len(), PersistentVolumeClaim::COLUMNS.len());
    }
}
