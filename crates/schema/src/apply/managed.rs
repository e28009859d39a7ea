//! `metadata.managedFields`: who owns which fields, decoded and encoded.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::set::FieldSet;

/// Most entries of operation `Update` an object keeps; the oldest are merged beyond it.
pub const UPDATE_MANAGERS_MAX: usize = 10;

/// Manager name of the merged oldest entries.
const ANCIENT_CHANGES: &str = "ancient-changes";

/// What tells one entry from another. Someone who applies has one entry whatever the version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ManagerId {
    pub(super) manager: String,
    pub(super) applied: bool,
    /// Empty for an entry of operation `Apply`.
    pub(super) api_version: String,
    pub(super) subresource: String,
}

impl ManagerId {
    pub(super) fn new(manager: &str, applied: bool, api_version: &str, subresource: &str) -> ManagerId {
        ManagerId {
            manager: if manager.is_empty() { "unknown" } else { manager }.to_owned(),
            applied,
            api_version: if applied { String::new() } else { api_version.to_owned() },
            subresource: subresource.to_owned(),
        }
    }

    /// How a conflict names the manager: `"kubectl" using apps/v1`.
    pub(super) fn describe(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if !self.applied {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

/// The fields of one entry.
#[derive(Debug, Clone)]
pub(super) struct Owned {
    pub(super) api_version: String,
    pub(super) set: FieldSet,
    /// RFC 3339; absent in an entry that never changed the object.
    pub(super) time: Option<String>,
    /// The set as it is stored, where it has not changed since it was read.
    pub(super) stored: Option<Value>,
}

impl Owned {
    /// A set that is not stored yet.
    pub(super) fn new(api_version: &str, set: FieldSet, time: Option<String>) -> Owned {
        Owned { api_version: api_version.to_owned(), set, time, stored: None }
    }

    /// Takes paths away.
    pub(super) fn lose(&mut self, paths: &FieldSet) {
        if self.set.subtract(paths) {
            self.stored = None;
        }
    }

    /// Adds paths.
    pub(super) fn gain(&mut self, paths: FieldSet) {
        if !paths.is_subset(&self.set) {
            self.set = std::mem::take(&mut self.set).with(paths);
            self.stored = None;
        }
    }
}

/// All entries of an object.
pub(super) type Managed = BTreeMap<ManagerId, Owned>;

/// The raw entries of an object.
pub(super) fn entries(object: &Value) -> Option<&Value> {
    object.get("metadata")?.get("managedFields")
}

/// Whether a request asks for all ownership to be forgotten: an empty list, or one empty entry.
pub(super) fn is_reset(entries: Option<&Value>) -> bool {
    match entries.and_then(Value::as_array).map(Vec::as_slice) {
        Some([]) => true,
        Some([entry]) => entry.as_object().is_some_and(|entry| entry.values().all(Value::is_null)),
        _ => false,
    }
}

/// Reads entries. Where they are `as_stored`, sets that do not change are written as they were read.
///
/// # Errors
/// The first malformed entry, in upstream's words.
pub(super) fn decode(entries: Option<Value>, as_stored: bool) -> Result<Managed, String> {
    let Some(Value::Array(entries)) = entries else { return Ok(Managed::new()) };
    let mut managed = Managed::new();
    for (index, mut entry) in entries.into_iter().enumerate() {
        let fields = entry.get_mut("fieldsV1").map(Value::take);
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
        let applied = match text("operation") {
            "Apply" => true,
            "Update" => false,
            _ => return Err("operation must be `Apply` or `Update`".to_owned()),
        };
        if text("apiVersion").is_empty() {
            return Err("apiVersion must not be empty".to_owned());
        }
        match text("fieldsType") {
            "FieldsV1" => {}
            "" => {
                return Err(format!("missing fieldsType in managed fields entry {index}"));
            }
            other => {
                return Err(format!("invalid fieldsType {other:?} in managed fields entry {index}"));
            }
        }
        let set = fields.as_ref().map_or_else(|| Ok(FieldSet::new()), FieldSet::from_fields_v1);
        let set = set.map_err(|error| {
            format!("error decoding versioned set of {:?}: error decoding set: {error}", text("manager"))
        })?;
        let id = ManagerId {
            manager: text("manager").to_owned(),
            applied,
            api_version: if applied { String::new() } else { text("apiVersion").to_owned() },
            subresource: text("subresource").to_owned(),
        };
        let time = entry.get("time").and_then(Value::as_str).map(str::to_owned);
        let stored = fields.filter(|fields| as_stored && fields.is_object());
        managed.insert(id, Owned { api_version: text("apiVersion").to_owned(), set, time, stored });
    }
    Ok(managed)
}

/// How many entries there are, where [`encode`] would write them in this order and with what they say.
pub(super) fn count_as_written(entries: Option<&Value>) -> Option<usize> {
    fn text<'e>(entry: &'e Value, name: &str) -> Option<&'e str> {
        entry.get(name).and_then(Value::as_str)
    }
    fn place(entry: &Value) -> (bool, Option<&str>, [&str; 3]) {
        let others = ["manager", "apiVersion", "subresource"].map(|name| text(entry, name).unwrap_or_default());
        (text(entry, "operation") != Some("Apply"), text(entry, "time"), others)
    }
    let entries = entries?.as_array()?;
    let is_whole = |entry: &Value| {
        let said = |name: &str| text(entry, name).is_some_and(|text| !text.is_empty());
        said("manager")
            && entry.get("fieldsV1").is_some_and(Value::is_object)
            && (said("subresource") || entry.get("subresource").is_none())
    };
    let in_order = entries.is_sorted_by(|a, b| place(a) <= place(b));
    (in_order && entries.iter().all(is_whole)).then_some(entries.len())
}

/// Writes the entries to an object, sorted by operation, time, manager, version and subresource.
pub(super) fn encode(object: &mut Value, managed: Managed) {
    strip(object);
    if managed.is_empty() {
        return;
    }
    let mut sorted: Vec<(ManagerId, Owned)> = managed.into_iter().collect();
    sorted.sort_by(|(a_id, a), (b_id, b)| {
        (!a_id.applied, &a.time, &a_id.manager, &a.api_version, &a_id.subresource).cmp(&(
            !b_id.applied,
            &b.time,
            &b_id.manager,
            &b.api_version,
            &b_id.subresource,
        ))
    });
    let list = sorted.into_iter().map(|(id, owned)| {
        let mut entry = json!({
            "manager": id.manager,
            "operation": if id.applied { "Apply" } else { "Update" },
            "apiVersion": owned.api_version,
            "fieldsType": "FieldsV1",
        });
        entry["fieldsV1"] = owned.stored.unwrap_or_else(|| owned.set.to_fields_v1());
        if let Some(time) = owned.time {
            entry["time"] = Value::String(time);
        }
        if !id.subresource.is_empty() {
            entry["subresource"] = Value::String(id.subresource);
        }
        entry
    });
    let list = list.collect();
    if let Some(object) = object.as_object_mut() {
        let metadata = object.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert("managedFields".to_owned(), list);
        }
    }
}

/// Takes the entries off an object.
pub(super) fn strip(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

/// Merges the oldest `Update` entries of the same version until no more than [`UPDATE_MANAGERS_MAX`] are left.
pub(super) fn cap(managed: &mut Managed) {
    let mut updaters: Vec<ManagerId> = managed.keys().filter(|id| !id.applied).cloned().collect();
    let mut count = updaters.len();
    if count <= UPDATE_MANAGERS_MAX {
        return;
    }
    updaters.sort_by(|a, b| (&managed[a].time, a).cmp(&(&managed[b].time, b)));
    let mut first_of_version: BTreeMap<String, ManagerId> = BTreeMap::new();
    for id in updaters {
        if count <= UPDATE_MANAGERS_MAX {
            return;
        }
        let version = managed[&id].api_version.clone();
        let Some(first) = first_of_version.get(&version) else {
            first_of_version.insert(version, id);
            continue;
        };
        let bucket = ManagerId::new(ANCIENT_CHANGES, false, &version, "");
        if !managed.contains_key(&bucket)
            && let Some(owned) = managed.remove(first)
        {
            managed.insert(bucket.clone(), owned);
        }
        // The bucket itself may be the entry at hand, when it is not the oldest.
        if id != bucket
            && let Some(taken) = managed.remove(&id)
            && let Some(owned) = managed.get_mut(&bucket)
        {
            owned.gain(taken.set);
            // The merged entry is as recent as the last one merged into it.
            owned.time = taken.time;
            count -= 1;
        }
    }
}
