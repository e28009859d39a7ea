//! Writes and their effect on ownership.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::covers;
use super::managed::{self, Managed, ManagerId, Owned};
use super::path::{self, PathElement};
use super::set::FieldSet;
use super::typed::{self, Comparison};
use crate::go_text;
use crate::schema::Schema;

/// Annotation in which client-side apply keeps what it applied last.
pub const LAST_APPLIED_ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Most bytes all annotations of an object may have together.
const ANNOTATIONS_BYTES_MAX: usize = 256 << 10;

/// Manager of what an object without ownership had before it was first applied to.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// The manager that moves an object from client-side to server-side apply.
const KUBECTL: &str = "kubectl";

/// Other versions of a kind, for owners that wrote through them.
pub trait Versions {
    /// The object in another version (`autoscaling/v1`); nothing when that version is not served, and then its owners
    /// are forgotten.
    fn convert(&self, object: &Value, api_version: &str) -> Option<Value>;

    /// The type of the kind in that version.
    fn schema(&self, api_version: &str) -> Option<Schema<'_>>;
}

/// A kind that has one version only.
#[derive(Debug, Clone, Copy, Default)]
pub struct SingleVersion;

impl Versions for SingleVersion {
    fn convert(&self, _object: &Value, _api_version: &str) -> Option<Value> {
        None
    }

    fn schema(&self, _api_version: &str) -> Option<Schema<'_>> {
        None
    }
}

/// A field two managers want different values for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The manager that has it, as messages name it: `"kubectl-client-side-apply" using apps/v1`.
    pub manager: String,
    /// `.spec.template.spec.containers[name="a"].image`
    pub field: String,
    id: ManagerId,
    path: Vec<PathElement>,
}

impl Conflict {
    /// Message of the status cause (its type is `FieldManagerConflict`).
    pub fn message(&self) -> String {
        format!("conflict with {}", self.manager)
    }
}

/// Why an apply fails.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The request is wrong: 400.
    #[error("{0}")]
    BadRequest(String),
    /// Others own fields with other values: 409, reason `Conflict`, with one cause per conflict. Retryable with force.
    #[error("{}", conflict_message(.0))]
    Conflict(Vec<Conflict>),
    /// The configuration does not fit its type, or the stored ownership is damaged: upstream's 500 with an empty reason.
    #[error("{0}")]
    Unfit(String),
}

/// Message of a 409.
pub fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", one.manager, one.field);
    }
    let mut lines = Vec::new();
    let mut current = None;
    for conflict in conflicts {
        if current != Some(&conflict.id) {
            current = Some(&conflict.id);
            lines.push(format!("conflicts with {}:", conflict.manager));
        }
        lines.push(format!("- {}", conflict.field));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// Ownership of the fields of one kind, seen from one endpoint (the main resource or a subresource).
#[derive(Clone, Copy)]
pub struct FieldManager<'a> {
    /// Type of the kind.
    pub schema: Schema<'a>,
    /// `apps/v1`, or `v1` for the core group.
    pub api_version: &'a str,
    /// `Deployment`
    pub kind: &'a str,
    /// Empty for the main resource.
    pub subresource: &'a str,
    /// Fields this endpoint does not write, which nobody comes to own through it.
    pub reset_fields: Option<&'a FieldSet>,
    /// Other versions served.
    pub versions: &'a dyn Versions,
}

impl std::fmt::Debug for FieldManager<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FieldManager({}, {} {:?})", self.api_version, self.kind, self.subresource)
    }
}

/// An object and its version while it is compared in several.
struct Versioned {
    api_version: String,
    object: Value,
}

/// How two objects differ.
struct Comparisons<'a> {
    /// The version of this endpoint.
    own: &'a str,
    /// In that version.
    whole: Comparison,
    /// The same without the fields this endpoint does not write, where there are such and somebody owns fields in it.
    kept: Option<Comparison>,
    /// In other versions, without those fields.
    others: BTreeMap<String, Comparison>,
}

impl Comparisons<'_> {
    /// What counts for owners that wrote through a version; nothing where that is not served.
    fn of(&self, api_version: &str) -> Option<&Comparison> {
        match api_version == self.own {
            true => Some(self.kept.as_ref().unwrap_or(&self.whole)),
            false => self.others.get(api_version),
        }
    }

    /// What others than `id` own and the apply gives another value.
    fn conflicts(&self, owners: &Managed, id: &ManagerId) -> Vec<Conflict> {
        let mut conflicts = Vec::new();
        for (other, owned) in owners.iter().filter(|(other, _)| *other != id) {
            let Some(comparison) = self.of(&owned.api_version) else {
                continue;
            };
            let taken = owned.set.intersection(&comparison.modified).with(owned.set.intersection(&comparison.added));
            conflicts.extend(taken.paths().into_iter().map(|path| Conflict {
                manager: other.describe(),
                field: path::display(&path),
                id: other.clone(),
                path,
            }));
        }
        conflicts
    }

    /// Takes what was changed or removed from all owners but `except`, and forgets those of versions not served.
    fn yield_to(&self, owners: &mut Managed, except: Option<&ManagerId>) {
        owners.retain(|id, owned| {
            if Some(id) == except {
                return !owned.set.is_empty();
            }
            let Some(comparison) = self.of(&owned.api_version) else {
                return false;
            };
            owned.lose(&comparison.modified);
            owned.lose(&comparison.added);
            owned.lose(&comparison.removed);
            !owned.set.is_empty()
        });
    }
}

impl<'a> FieldManager<'a> {
    /// Sets `metadata.managedFields` of an object that is about to be written by anything but apply. `live` is absent
    /// for a create. `now` is RFC 3339 in whole seconds.
    ///
    /// An object whose ownership was given up (`managedFields: []`) stays without until it is applied to.
    pub fn update(&self, live: Option<&Value>, mut new: Value, manager: &str, now: &str) -> Value {
        let empty = Value::Object(Map::new());
        let live = live.unwrap_or(&empty);
        let given = managed::strip(&mut new);
        let stored = managed::entries(live);
        let live_managed = || managed::decode(stored.cloned(), true).unwrap_or_default();
        let mut owners = if self.subresource.is_empty() && managed::is_reset(given.as_ref()) {
            Managed::new()
        } else if given.is_some() && given.as_ref() == stored {
            managed::decode(given, true).unwrap_or_default()
        } else if self.subresource.is_empty() {
            match managed::decode(given, false) {
                Ok(owners) if !owners.is_empty() => owners,
                // Clients that do not know the field drop it, or send it damaged.
                _ => live_managed(),
            }
        } else {
            // Ownership cannot be set by hand through a subresource.
            live_managed()
        };
        let exists = live.pointer("/metadata/uid").and_then(Value::as_str).is_some_and(|uid| !uid.is_empty());
        if !owners.is_empty() || !exists {
            let id = ManagerId::new(manager, false, self.api_version, self.subresource);
            self.track(live, &new, &mut owners, id, now);
        }
        managed::encode(&mut new, owners);
        new
    }

    /// Merges an applied configuration into the live object; the result has its `metadata.managedFields` set. None where it is
    /// the live object as it is. `live` is absent when there is no object of the name yet. `now` is RFC 3339 in whole seconds.
    ///
    /// Defaults are not set here, and the result may differ from the live object in nothing but its ownership.
    ///
    /// # Errors
    /// See [`ApplyError`].
    pub fn apply(
        &self,
        live: Option<Value>,
        config: &Value,
        manager: &str,
        force: bool,
        now: &str,
    ) -> Result<Option<Value>, ApplyError> {
        let (mut merged, owners, same) = self.applied(live, config, manager, force, now)?;
        if same {
            return Ok(None);
        }
        managed::encode(&mut merged, owners);
        Ok(Some(merged))
    }

    /// The object an apply leads to, without its entries, and those; and whether both are known to be the live ones.
    pub(super) fn applied(
        &self,
        live: Option<Value>,
        config: &Value,
        manager: &str,
        force: bool,
        now: &str,
    ) -> Result<(Value, Managed, bool), ApplyError> {
        self.check_config(config)?;
        let exists = live.is_some();
        let mut object = live.unwrap_or_else(|| Value::Object(Map::new()));
        let entries = managed::strip(&mut object);
        let written = managed::count_as_written(entries.as_ref());
        let mut owners = managed::decode(entries, true)
            .map_err(|error| ApplyError::Unfit(format!("failed to decode managed fields: {error}")))?;
        if owners.is_empty() && exists {
            let empty = Value::Object(Map::new());
            let id = ManagerId::new(BEFORE_FIRST_APPLY, false, self.api_version, self.subresource);
            self.track(&empty, &object, &mut owners, id, now);
        }
        let id = ManagerId::new(manager, true, self.api_version, self.subresource);
        let mut set = typed::field_set(config, Some(self.schema));
        if let Some(fields) = self.reset_fields {
            set.subtract_whole(fields);
        }
        let is_applied = self.is_applied(&object, config, &owners, &id, &set);
        #[cfg(test)]
        if is_applied {
            let mut left = owners.clone();
            let merged = self.merge(&object, config, &mut left, (&id, set.clone()), force, now).ok();
            assert_eq!(merged.as_ref(), Some(&object), "the short way leads elsewhere");
            assert!(left.iter().map(unstored).eq(owners.iter().map(unstored)), "{left:?} and not {owners:?}");
        }
        if is_applied && manager != KUBECTL {
            let same = written == Some(owners.len());
            return Ok((object, owners, same));
        }
        let mut again = (manager == KUBECTL).then(|| set.clone());
        let mut result = match is_applied {
            true => Ok(std::mem::take(&mut object)),
            false => self.merge(&object, config, &mut owners, (&id, set), force, now),
        };
        if let Err(ApplyError::Conflict(conflicts)) = &result
            && let Some(set) = again.take()
            && let Some(allowed) = self.owned_by_last_applied(&object)
        {
            let left: Vec<Conflict> =
                conflicts.iter().filter(|conflict| !allowed.has(&conflict.path)).cloned().collect();
            result = if left.is_empty() {
                self.merge(&object, config, &mut owners, (&id, set), true, now)
            } else {
                Err(ApplyError::Conflict(left))
            };
        }
        let mut merged = result?;
        if manager == KUBECTL {
            renew_last_applied(&mut merged, config);
        }
        Ok((merged, owners, false))
    }

    /// Whether an apply would leave all as it is: the object has what is applied, its manager has applied the same fields
    /// before, and nobody wrote through another version. `set` are the fields of `config`.
    fn is_applied(&self, live: &Value, config: &Value, owners: &Managed, id: &ManagerId, set: &FieldSet) -> bool {
        let Some(last) = owners.get(id) else { return false };
        let known = |owned: &Owned| owned.api_version == self.api_version && !owned.set.is_empty();
        owners.values().all(known)
            && covers::covers(live, config, Some(self.schema))
            && last.set.is_subset(set)
            && set.is_subset_but(&UNTRACKED, &last.set)
            && !covers::fills_empty(live, config, Some(self.schema))
    }

    fn describe(&self, config: &Value) -> String {
        let part =
            |name: &str| config.pointer(&format!("/metadata/{name}")).and_then(Value::as_str).unwrap_or_default();
        format!("{}/{}; {}, Kind={}", part("namespace"), part("name"), group_version(self.api_version), self.kind)
    }

    fn check_config(&self, config: &Value) -> Result<(), ApplyError> {
        let part = |name: &str| config.get(name).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind) = (part("apiVersion"), part("kind"));
        if (api_version, kind) != (self.api_version, self.kind) {
            let found = format!("{}, Kind={kind}", group_version(api_version));
            return Err(ApplyError::BadRequest(format!("invalid object type: {found}")));
        }
        if managed::entries(config).is_some_and(Value::is_array) {
            return Err(ApplyError::BadRequest("metadata.managedFields must be nil".to_owned()));
        }
        typed::validate(config, self.schema).map_err(|error| {
            ApplyError::Unfit(format!("failed to create typed patch object ({}): {error}", self.describe(config)))
        })
    }

    /// Updates ownership for a write from `live` to `new`. The entries in them do not count: they are nobody's.
    fn track(&self, live: &Value, new: &Value, owners: &mut Managed, id: ManagerId, now: &str) {
        let Comparison { added, modified, .. } = self.yield_to(live, new, owners, None);
        let mut changed = modified.with(added);
        if let Some(fields) = self.reset_fields {
            changed.subtract_whole(fields);
        }
        changed.subtract(&UNTRACKED);
        if !changed.is_empty() {
            let owned = owners.entry(id).or_insert_with(|| Owned::new(self.api_version, FieldSet::new(), None));
            owned.gain(changed);
            owned.time = Some(now.to_owned());
        }
        managed::cap(owners);
    }

    /// Takes from all owners but `except` what a write changed or removed, and forgets those of versions not served.
    /// Returns how the objects differ in this endpoint's version.
    fn yield_to(&self, live: &Value, new: &Value, owners: &mut Managed, except: Option<&ManagerId>) -> Comparison {
        let comparisons = self.compare_all(live, new, owners, except);
        comparisons.yield_to(owners, except);
        comparisons.whole
    }

    /// How the objects differ in each version that has an owner.
    fn compare_all(&self, live: &Value, new: &Value, owners: &Managed, except: Option<&ManagerId>) -> Comparisons<'_> {
        let whole = typed::compare(live, new, Some(self.schema));
        let mut kept = None;
        let mut others = BTreeMap::new();
        for (_, Owned { api_version, .. }) in owners.iter().filter(|(id, _)| Some(*id) != except) {
            if api_version == self.api_version {
                kept = kept.or_else(|| self.reset_fields.map(|fields| whole.without(fields)));
                continue;
            }
            if others.contains_key(api_version) {
                continue;
            }
            let convert = |object: &Value| {
                let mut object = object.clone();
                managed::strip(&mut object);
                self.versions.convert(&object, api_version)
            };
            if let (Some(live), Some(new), Some(schema)) =
                (convert(live), convert(new), self.versions.schema(api_version))
            {
                let comparison = typed::compare(&live, &new, Some(schema));
                let comparison = match self.reset_fields {
                    Some(fields) => comparison.without(fields),
                    None => comparison,
                };
                others.insert(api_version.clone(), comparison);
            }
        }
        Comparisons { own: self.api_version, whole, kept, others }
    }

    /// One apply on an object without its entries, by a manager, of a configuration that has these fields. Conflicts leave
    /// the owners as they were.
    fn merge(
        &self,
        live: &Value,
        config: &Value,
        owners: &mut Managed,
        (id, set): (&ManagerId, FieldSet),
        force: bool,
        now: &str,
    ) -> Result<Value, ApplyError> {
        let merged = typed::merge(live, config, Some(self.schema))
            .map_err(|error| ApplyError::Unfit(format!("failed to merge config: {error}")))?;
        let last = owners.remove(id);
        let time = last.as_ref().and_then(|last| last.time.clone());
        owners.insert(id.clone(), Owned::new(self.api_version, set, time));
        let merged = match &last {
            Some(last) if !last.set.is_empty() => self.prune(merged, config, owners, last, id),
            _ => merged,
        };
        let comparisons = self.compare_all(live, &merged, owners, Some(id));
        if !force {
            let conflicts = comparisons.conflicts(owners, id);
            if !conflicts.is_empty() {
                owners.remove(id);
                owners.extend(last.map(|last| (id.clone(), last)));
                return Err(ApplyError::Conflict(conflicts));
            }
        }
        comparisons.yield_to(owners, Some(id));
        let changed = !path::equal(live, &merged);
        if let Some(owned) = owners.get_mut(id) {
            owned.lose(&UNTRACKED);
            if let Some(last) = last.filter(|last| last.api_version == owned.api_version && last.set == owned.set) {
                owned.stored = last.stored;
            }
            if changed {
                owned.time = Some(now.to_owned());
            }
            if owned.set.is_empty() {
                owners.remove(id);
            }
        }
        Ok(merged)
    }

    fn in_version(&self, from: &Versioned, api_version: &str) -> Option<Versioned> {
        let object = if from.api_version == api_version {
            from.object.clone()
        } else {
            self.versions.convert(&from.object, api_version)?
        };
        Some(Versioned { api_version: api_version.to_owned(), object })
    }

    fn schema_in(&self, api_version: &str) -> Option<Schema<'_>> {
        if api_version == self.api_version { Some(self.schema) } else { self.versions.schema(api_version) }
    }

    /// Takes away what this manager applied last time, does not apply now, and nobody else owns. Among the
    /// owners, `id` has the fields of `config`, which it applies now.
    fn prune(&self, merged: Value, config: &Value, owners: &Managed, last: &Owned, id: &ManagerId) -> Value {
        // All it applied it still applies. Then only what is empty in its eyes and filled in by nobody might go.
        if owners.get(id).is_some_and(|owned| last.set.is_subset(&owned.set))
            && owners.values().chain([last]).all(|owned| owned.api_version == self.api_version)
            && !covers::fills_empty(&merged, config, Some(self.schema))
        {
            #[cfg(test)]
            assert_eq!(self.prune_fully(merged.clone(), owners, last), merged, "the short way leads elsewhere");
            return merged;
        }
        self.prune_fully(merged, owners, last)
    }

    /// The same whatever it applied last time.
    fn prune_fully(&self, merged: Value, owners: &Managed, last: &Owned) -> Value {
        let whole = Versioned { api_version: self.api_version.to_owned(), object: merged };
        let version = last.api_version.as_str();
        let (Some(converted), Some(schema)) = (self.in_version(&whole, version), self.schema_in(version)) else {
            return whole.object;
        };
        let root = |value: Option<Value>| value.unwrap_or_else(|| Value::Object(Map::new()));
        let last_set = last.set.with_named_fields(Some(schema));
        let mut pruned = Versioned {
            api_version: version.to_owned(),
            object: root(typed::remove(&converted.object, &last_set, Some(schema))),
        };
        // What others own comes back, the version of the last apply first: other versions may need those fields to be
        // converted to.
        let mut by_version: Vec<(&str, FieldSet)> = Vec::new();
        for owned in owners.values() {
            match by_version.iter_mut().find(|(version, _)| *version == owned.api_version) {
                Some((_, set)) => *set = set.union(&owned.set),
                None => by_version.push((&owned.api_version, owned.set.clone())),
            }
        }
        by_version.sort_by_key(|(owner_version, _)| *owner_version != version);
        let mut current = Versioned { api_version: version.to_owned(), object: converted.object.clone() };
        for (owner_version, owned) in by_version {
            let (Some(all), Some(left), Some(schema)) = (
                self.in_version(&current, owner_version),
                self.in_version(&pruned, owner_version),
                self.schema_in(owner_version),
            ) else {
                continue;
            };
            let named = |set: &FieldSet| set.with_named_fields(Some(schema));
            let all_set = named(&typed::field_set(&all.object, Some(schema)));
            let left_set = named(&typed::field_set(&left.object, Some(schema)));
            let gone = all_set.difference(&left_set.union(&named(&owned)));
            let object = root(typed::remove(&all.object, &gone, Some(schema)));
            pruned = Versioned { api_version: owner_version.to_owned(), object };
            current = all;
        }
        // What nobody owns, or was not this manager's, comes back as well.
        let Some(left) = self.in_version(&pruned, version) else {
            return whole.object;
        };
        let named = |set: &FieldSet| set.with_named_fields(Some(schema));
        let all_set = named(&typed::field_set(&converted.object, Some(schema)));
        let left_set = named(&typed::field_set(&left.object, Some(schema)));
        let gone = all_set.difference(&left_set).intersection(&last_set);
        let object = root(typed::remove(&converted.object, &gone, Some(schema)));
        let result = Versioned { api_version: version.to_owned(), object };
        match self.in_version(&result, self.api_version) {
            Some(result) => result.object,
            None => whole.object,
        }
    }

    /// The fields client-side apply wrote and nobody changed since: those a server-side apply may take without force.
    fn owned_by_last_applied(&self, live: &Value) -> Option<FieldSet> {
        let annotation = live.pointer("/metadata/annotations")?.get(LAST_APPLIED_ANNOTATION)?.as_str()?;
        let last: Value = serde_json::from_str(annotation).ok()?;
        if last.get("apiVersion")?.as_str()? != self.api_version {
            return None;
        }
        typed::validate(&last, self.schema).ok()?;
        let set = typed::field_set(&last, Some(self.schema));
        let differing = typed::compare(&last, live, Some(self.schema));
        Some(set.difference(&differing.modified).difference(&differing.added).difference(&differing.removed))
    }
}

/// An entry without how it is stored.
#[cfg(test)]
fn unstored<'o>((id, owned): (&'o ManagerId, &'o Owned)) -> (&'o ManagerId, &'o str, &'o FieldSet, Option<&'o str>) {
    (id, &owned.api_version, &owned.set, owned.time.as_deref())
}

/// `apps/v1`, or `/v1` for the core group, as upstream prints a group and version.
fn group_version(api_version: &str) -> String {
    if api_version.contains('/') { api_version.to_owned() } else { format!("/{api_version}") }
}

/// Fields that are nobody's: they identify the object or are kept by the server.
static UNTRACKED: LazyLock<FieldSet> = LazyLock::new(|| {
    FieldSet::from_paths(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "clusterName"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ])
});

/// Keeps the annotation of client-side apply in step, so that one may go back to it.
fn renew_last_applied(object: &mut Value, config: &Value) {
    let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) else {
        return;
    };
    match annotations.get(LAST_APPLIED_ANNOTATION).and_then(Value::as_str) {
        None | Some("") => return,
        Some(_) => {}
    }
    let mut config = config.clone();
    if let Some(own) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        own.remove(LAST_APPLIED_ANNOTATION);
    }
    annotations.insert(LAST_APPLIED_ANNOTATION.to_owned(), Value::from(format!("{config}\n")));
    let bytes: usize = annotations.iter().map(|(name, value)| name.len() + go_text::format(value).len()).sum();
    if bytes > ANNOTATIONS_BYTES_MAX {
        annotations.remove(LAST_APPLIED_ANNOTATION);
    }
}
