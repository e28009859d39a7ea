//! Values seen through their type: which paths a value has, how two values differ, how one merges into another, and
//! what is left of a value without some paths.
//!
//! A value without known type (`None`) is taken as it looks: objects merge field by field, lists are atomic.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::path::{PathElement, equal};
use super::set::{FieldSet, Part};
use crate::schema::{List, ListKind, Object, Rest, Scalar, Schema, Shape};

/// How one node is walked.
#[derive(Clone, Copy)]
pub(super) enum Atom<'a> {
    Scalar,
    /// A list, with its type when it is known.
    List(Option<List<'a>>),
    /// An object, with its type when it is known.
    Map(Option<Object<'a>>),
}

pub(super) fn atom<'a>(schema: Option<Schema<'a>>, value: Option<&Value>) -> Atom<'a> {
    match schema.map(Schema::shape) {
        Some(Shape::Scalar(_)) => Atom::Scalar,
        Some(Shape::List(list)) => Atom::List(Some(list)),
        Some(Shape::Object(object)) => Atom::Map(Some(object)),
        Some(Shape::Any) | None => match value {
            Some(Value::Array(_)) => Atom::List(None),
            Some(Value::Object(_) | Value::Null) | None => Atom::Map(None),
            Some(_) => Atom::Scalar,
        },
    }
}

fn same_atom(a: Atom<'_>, b: Atom<'_>) -> bool {
    matches!((a, b), (Atom::Scalar, Atom::Scalar) | (Atom::List(_), Atom::List(_)) | (Atom::Map(_), Atom::Map(_)))
}

pub(super) fn child<'a>(object: Option<Object<'a>>, name: &str) -> Option<Schema<'a>> {
    object.and_then(|object| object.child(name))
}

/// The list type to go by when its items are told apart; nothing for an atomic list.
pub(super) fn keyed(list: Option<List<'_>>) -> Option<List<'_>> {
    list.filter(|list| !matches!(list.kind, ListKind::Atomic))
}

pub(super) fn is_atomic(object: Option<Object<'_>>) -> bool {
    object.is_some_and(|object| object.atomic)
}

/// The paths a value has.
pub(super) fn field_set(value: &Value, schema: Option<Schema<'_>>) -> FieldSet {
    fields(value, schema).below
}

fn fields(value: &Value, schema: Option<Schema<'_>>) -> Part {
    let mut below = FieldSet::new();
    match atom(schema, Some(value)) {
        Atom::Scalar => return Part::itself(),
        Atom::List(list) => {
            let Some(list) = keyed(list) else { return Part::itself() };
            for (step, items) in by_step(list, items_of(Some(value))) {
                // Items that cannot be told apart are owned whole.
                let part = match items.as_slice() {
                    [item] => fields(item, Some(list.items)),
                    _ => Part::default(),
                };
                below.push(step, Part { member: true, ..part });
            }
        }
        Atom::Map(object) => {
            if is_atomic(object) {
                return Part::itself();
            }
            for (name, inner) in map_of(Some(value)).into_iter().flatten() {
                let declared = object.and_then(|object| object.field(name)).map(|field| field.schema);
                let mut part = fields(inner, declared.or_else(|| child(object, name)));
                part.member |= inner.is_null() || inner.as_object().is_some_and(Map::is_empty) || declared.is_none();
                below.push(PathElement::field(name), part);
            }
        }
    }
    Part { member: false, below }
}

/// The items of a list by what tells them apart, in order; those that lack it are left out.
fn by_step<'a>(list: List<'_>, items: &'a [Value]) -> Vec<(PathElement, Vec<&'a Value>)> {
    let mut steps: Vec<(PathElement, Vec<&Value>)> = Vec::with_capacity(items.len());
    for item in items {
        if let Ok(step) = PathElement::of_item(list, item) {
            steps.push((step, vec![item]));
        }
    }
    steps.sort_by(|a, b| a.0.cmp(&b.0));
    steps.dedup_by(|later, first| {
        let same = later.0 == first.0;
        if same {
            first.1.append(&mut later.1);
        }
        same
    });
    steps
}

/// How two values differ; no path is in two of the sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Paths only the new value has.
    pub added: FieldSet,
    /// Paths both have, with different values.
    pub modified: FieldSet,
    /// Paths only the old value has.
    pub removed: FieldSet,
}

impl Comparison {
    /// Without these fields and all below them.
    #[must_use]
    pub fn without(&self, fields: &FieldSet) -> Comparison {
        Comparison {
            added: self.added.recursive_difference(fields),
            modified: self.modified.recursive_difference(fields),
            removed: self.removed.recursive_difference(fields),
        }
    }
}

/// How two values differ at one place.
#[derive(Default)]
struct Delta {
    added: Part,
    modified: Part,
    removed: Part,
}

impl Delta {
    fn with(self, other: Delta) -> Delta {
        Delta {
            added: self.added.with(other.added),
            modified: self.modified.with(other.modified),
            removed: self.removed.with(other.removed),
        }
    }
}

/// How the parts of two values differ; steps come in order.
#[derive(Default)]
struct Below {
    added: FieldSet,
    modified: FieldSet,
    removed: FieldSet,
}

impl Below {
    fn push(&mut self, step: impl Fn() -> PathElement, delta: Delta) {
        self.added.push_with(&step, delta.added);
        self.modified.push_with(&step, delta.modified);
        self.removed.push_with(&step, delta.removed);
    }

    fn whole(self) -> Delta {
        let part = |below| Part { member: false, below };
        Delta { added: part(self.added), modified: part(self.modified), removed: part(self.removed) }
    }
}

/// Compares two values of a type.
pub(super) fn compare(old: &Value, new: &Value, schema: Option<Schema<'_>>) -> Comparison {
    let delta = compare_at(Some(old), Some(new), schema);
    Comparison { added: delta.added.below, modified: delta.modified.below, removed: delta.removed.below }
}

fn compare_at(old: Option<&Value>, new: Option<&Value>, schema: Option<Schema<'_>>) -> Delta {
    if old == new {
        return Delta::default();
    }
    let (old_atom, new_atom) = (atom(schema, old), atom(schema, new));
    let (mut delta, leaf) = match (old, new) {
        (_, None) => compare_atom(old_atom, old, new),
        (None, Some(_)) => compare_atom(new_atom, old, new),
        (Some(_), Some(_)) if same_atom(old_atom, new_atom) => compare_atom(new_atom, old, new),
        (Some(_), Some(_)) => {
            let (as_old, _) = compare_atom(old_atom, old, new);
            let (as_new, leaf) = compare_atom(new_atom, old, new);
            (as_old.with(as_new), leaf)
        }
    };
    if !leaf {
        delta.added.member |= old.is_none();
        delta.removed.member |= new.is_none();
    }
    delta
}

/// Compares two values in one way of walking; and whether they were taken as a leaf.
fn compare_atom(atom: Atom<'_>, old: Option<&Value>, new: Option<&Value>) -> (Delta, bool) {
    match atom {
        Atom::Scalar => {}
        Atom::List(list) => {
            let (old_items, new_items) = (items_of(old), items_of(new));
            if let Some(list) = keyed(list)
                && !(old_items.is_empty() && new_items.is_empty())
            {
                return (compare_items(list, old_items, new_items), false);
            }
        }
        Atom::Map(object) => {
            let (old_map, new_map) = (map_of(old), map_of(new));
            let empty = |map: Option<&Map<String, Value>>| map.is_none_or(Map::is_empty);
            let leaf = is_atomic(object) || (empty(old_map) && empty(new_map));
            if !leaf {
                return (compare_maps(object, old_map, new_map), false);
            }
        }
    }
    let mut delta = Delta::default();
    match (old, new) {
        (None, _) => delta.added = Part::itself(),
        (_, None) => delta.removed = Part::itself(),
        (Some(old), Some(new)) if !equal(old, new) => delta.modified = Part::itself(),
        _ => {}
    }
    (delta, true)
}

/// Walks the fields of two objects side by side, and with them those fields that are there without being said.
fn compare_maps(
    object: Option<Object<'_>>,
    old: Option<&Map<String, Value>>,
    new: Option<&Map<String, Value>>,
) -> Delta {
    let mut below = Below::default();
    let mut olds = old.into_iter().flatten().peekable();
    let mut news = new.into_iter().flatten().peekable();
    let mut implied = object.map(|object| object.implied()).unwrap_or_default().iter().peekable();
    loop {
        let names = [olds.peek().map(|(name, _)| name.as_str()), news.peek().map(|(name, _)| name.as_str())];
        let said = names.into_iter().flatten().min();
        let name = match (said, implied.peek()) {
            (Some(said), Some(field)) => said.min(&field.name),
            (Some(said), None) => said,
            (None, Some(field)) => &field.name,
            (None, None) => break,
        };
        let absent = implied.next_if(|field| &*field.name == name).map(|field| field.value());
        if said != Some(name) && absent.is_some_and(Value::is_null) {
            continue;
        }
        let old_inner = olds.next_if(|(field, _)| *field == name).map(|(_, value)| value);
        let new_inner = news.next_if(|(field, _)| *field == name).map(|(_, value)| value);
        let old_inner = old_inner.or(absent.filter(|_| old.is_some()));
        let new_inner = new_inner.or(absent.filter(|_| new.is_some()));
        let delta = compare_at(old_inner, new_inner, child(object, name));
        below.push(|| PathElement::field(name), delta);
    }
    below.whole()
}

fn items_of(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn map_of(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

fn compare_items(list: List<'_>, old: &[Value], new: &[Value]) -> Delta {
    let mut below = Below::default();
    let mut olds = by_step(list, old).into_iter().peekable();
    let mut news = by_step(list, new).into_iter().peekable();
    loop {
        let order = match (olds.peek(), news.peek()) {
            (Some(old), Some(new)) => old.0.cmp(&new.0),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => break,
        };
        let old = if order.is_le() { olds.next() } else { None };
        let new = if order.is_ge() { news.next() } else { None };
        let Some(step) = old.as_ref().or(new.as_ref()).map(|(step, _)| step) else { break };
        below.push(|| step.clone(), compare_item(list, old.as_ref().map(|o| &*o.1), new.as_ref().map(|n| &*n.1)));
    }
    below.whole()
}

/// Compares the items under one step, of which there are several where they cannot be told apart.
fn compare_item(list: List<'_>, old: Option<&[&Value]>, new: Option<&[&Value]>) -> Delta {
    let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
    let (first_old, first_new) = (old.first().copied(), new.first().copied());
    let items = Some(list.items);
    match (old.len(), new.len()) {
        (0 | 1, 0 | 1) => compare_at(first_old, first_new, items),
        // Items that cannot be told apart are compared together, as one value.
        (2.., 2..) => {
            let same = old.len() == new.len() && old.iter().zip(new).all(|(old, new)| equal(old, new));
            Delta { modified: Part { member: !same, ..Part::default() }, ..Delta::default() }
        }
        (2.., _) => {
            let delta = first_new.map(|new| compare_at(None, Some(new), items)).unwrap_or_default();
            delta.with(Delta { removed: Part::itself(), ..Delta::default() })
        }
        (_, _) => {
            let delta = first_old.map(|old| compare_at(Some(old), None, items)).unwrap_or_default();
            delta.with(Delta { added: Part::itself(), ..Delta::default() })
        }
    }
}

/// Merges an applied configuration into the live value.
///
/// # Errors
/// An item of a list that cannot be told apart, with its path.
pub(super) fn merge(live: &Value, config: &Value, schema: Option<Schema<'_>>) -> Result<Value, String> {
    let merged = merge_at(Some(live), Some(config), schema).map_err(|errors| join(&errors))?;
    Ok(merged.unwrap_or(Value::Null))
}

type Errors = Vec<(String, String)>;

fn join(errors: &Errors) -> String {
    let text = |(path, message): &(String, String)| match path.as_str() {
        "" => message.clone(),
        path => format!("{path}: {message}"),
    };
    match errors.as_slice() {
        [one] => text(one),
        many => {
            let lines: Vec<String> = many.iter().map(|error| format!("  {}", text(error))).collect();
            format!("errors:\n{}", lines.join("\n"))
        }
    }
}

fn prefixed(step: &PathElement, errors: Errors) -> Errors {
    errors.into_iter().map(|(path, message)| (format!("{step}{path}"), message)).collect()
}

fn merge_at(live: Option<&Value>, config: Option<&Value>, schema: Option<Schema<'_>>) -> Result<Option<Value>, Errors> {
    let atom = if config.is_some() { atom(schema, config) } else { atom(schema, live) };
    match atom {
        Atom::Scalar => {}
        Atom::List(list) => {
            let (live_items, config_items) = (items_of(live), items_of(config));
            if let Some(list) = keyed(list)
                && !(live_items.is_empty() && config_items.is_empty())
            {
                return merge_items(list, live_items, config_items);
            }
        }
        Atom::Map(object) => {
            let empty = Map::new();
            let (live_map, config_map) = (map_of(live).unwrap_or(&empty), map_of(config).unwrap_or(&empty));
            let leaf = is_atomic(object) || (live_map.is_empty() && config_map.is_empty());
            if !leaf {
                let mut out = Vec::with_capacity(live_map.len().max(config_map.len()));
                let mut errors = Errors::new();
                let (mut lives, mut configs) = (live_map.iter().peekable(), config_map.iter().peekable());
                while let Some(name) = [lives.peek(), configs.peek()].into_iter().flatten().map(|(name, _)| *name).min()
                {
                    let live = lives.next_if(|(next, _)| *next == name).map(|(_, value)| value);
                    let config = configs.next_if(|(next, _)| *next == name).map(|(_, value)| value);
                    match merge_at(live, config, child(object, name)) {
                        Ok(Some(value)) => out.push((name.clone(), value)),
                        Ok(None) => {}
                        Err(inner) => errors.extend(prefixed(&PathElement::field(name), inner)),
                    }
                }
                if !errors.is_empty() {
                    return Err(errors);
                }
                // Built at once, as the names come in order.
                return Ok((!out.is_empty()).then(|| Value::Object(out.into_iter().collect())));
            }
        }
    }
    Ok(config.or(live).cloned())
}

/// Merges lists by item. Items of the configuration keep their relative order; items only the server has stay where
/// they stand relative to their neighbours.
fn merge_items(list: List<'_>, live: &[Value], config: &[Value]) -> Result<Option<Value>, Errors> {
    let mut errors = Errors::new();
    let mut steps_of = |items: &[Value], duplicates_allowed: bool| {
        let mut steps: Vec<(PathElement, usize)> = Vec::with_capacity(items.len());
        let mut count: BTreeMap<PathElement, (usize, usize)> = BTreeMap::new();
        for (index, item) in items.iter().enumerate() {
            match PathElement::of_item(list, item) {
                Err(reason) => errors.push((String::new(), format!("element {index}: {reason}"))),
                Ok(step) => {
                    let entry = count.entry(step.clone()).or_insert((0, index));
                    entry.0 += 1;
                    if entry.0 > 1 && !duplicates_allowed {
                        errors.push((String::new(), format!("duplicate entries for key {step}")));
                        continue;
                    }
                    steps.push((step, index));
                }
            }
        }
        (steps, count)
    };
    let (config_steps, in_config) = steps_of(config, false);
    let (live_steps, in_live) = steps_of(live, true);
    if !errors.is_empty() {
        return Err(errors);
    }
    // An item that is in the live list more than once is not merged with the new one but replaced by it.
    let live_item = |step: &PathElement| match in_live.get(step) {
        Some((1, index)) => live.get(*index),
        _ => None,
    };
    let mut shared = config_steps.iter().map(|(step, _)| step).filter(|step| in_live.contains_key(*step));
    let mut next_shared = shared.next();
    let mut merged: BTreeSet<&PathElement> = BTreeSet::new();
    let mut out = Vec::with_capacity(live.len().max(config.len()));
    let mut take = |step: &PathElement, live: Option<&Value>, config: Option<&Value>| -> Result<(), Errors> {
        let value = merge_at(live, config, Some(list.items)).map_err(|inner| prefixed(step, inner))?;
        out.extend(value);
        Ok(())
    };
    let (mut left, mut right) = (0, 0);
    while left < live_steps.len() || right < config_steps.len() {
        if let (Some((live_step, _)), Some((config_step, index))) = (live_steps.get(left), config_steps.get(right)) {
            if live_step == config_step {
                merged.insert(config_step);
                take(config_step, live_item(config_step), config.get(*index))?;
                left += 1;
                right += 1;
                next_shared = shared.next();
                continue;
            }
            if in_config.contains_key(live_step) && next_shared.is_some_and(|next| next != live_step) {
                left += 1;
                continue;
            }
        }
        if let Some((live_step, index)) = live_steps.get(left) {
            if !in_config.contains_key(live_step) {
                take(live_step, live.get(*index), None)?;
                left += 1;
                continue;
            }
            if merged.contains(live_step) {
                left += 1;
            }
        }
        if let Some((config_step, index)) = config_steps.get(right) {
            merged.insert(config_step);
            take(config_step, live_item(config_step), config.get(*index))?;
            right += 1;
            if next_shared == Some(config_step) {
                next_shared = shared.next();
            }
        }
    }
    Ok((!out.is_empty()).then_some(Value::Array(out)))
}

/// What is left of a value without some paths. An object or list of which nothing is left goes as well.
pub(super) fn remove(value: &Value, gone: &FieldSet, schema: Option<Schema<'_>>) -> Option<Value> {
    match atom(schema, Some(value)) {
        Atom::Scalar => Some(value.clone()),
        Atom::List(list) => {
            let (Some(list), Value::Array(items)) = (keyed(list), value) else {
                return None;
            };
            let mut left = Vec::with_capacity(items.len());
            for item in items {
                let Ok(step) = PathElement::of_item(list, item) else {
                    left.push(item.clone());
                    continue;
                };
                if gone.has_member(&step) {
                    continue;
                }
                match gone.below(&step) {
                    Some(below) => left.extend(remove(item, below, Some(list.items))),
                    None => left.push(item.clone()),
                }
            }
            (!left.is_empty()).then_some(Value::Array(left))
        }
        Atom::Map(object) => {
            let Value::Object(map) = value else {
                return None;
            };
            if is_atomic(object) {
                return None;
            }
            let mut left = Map::new();
            for (name, inner) in map {
                let step = PathElement::field(name);
                if gone.has_member(&step) {
                    continue;
                }
                let kept = match gone.below(&step) {
                    Some(below) => remove(inner, below, child(object, name)),
                    None => Some(inner.clone()),
                };
                if let Some(kept) = kept {
                    left.insert(name.clone(), kept);
                }
            }
            (!left.is_empty()).then_some(Value::Object(left))
        }
    }
}

/// Checks an applied configuration against its type.
///
/// # Errors
/// Unknown fields, wrong types, items that cannot be told apart: `.spec.foo: field not declared in schema`.
pub(super) fn validate(value: &Value, schema: Schema<'_>) -> Result<(), String> {
    let mut errors = Errors::new();
    validate_at(value, Some(schema), &mut String::new(), &mut errors);
    if errors.is_empty() { Ok(()) } else { Err(join(&errors)) }
}

fn validate_at(value: &Value, schema: Option<Schema<'_>>, path: &mut String, errors: &mut Errors) {
    if value.is_null() {
        return;
    }
    let mut fail = |path: &str, message: String| errors.push((path.to_owned(), message));
    let shown = || crate::go_text::format(value);
    match schema.map(Schema::shape) {
        None | Some(Shape::Any) => {}
        Some(Shape::Scalar(scalar)) => match scalar {
            Scalar::String | Scalar::Bytes if !value.is_string() => {
                fail(path, format!("expected string, got &value.valueUnstructured{{Value:{}}}", shown()));
            }
            Scalar::Int32 | Scalar::Int64 | Scalar::Number if !value.is_number() => {
                let found = crate::go_text::type_name(value);
                fail(path, format!("expected numeric (int or float), got {found}"));
            }
            Scalar::Boolean if !value.is_boolean() => fail(path, format!("expected boolean, got {}", shown())),
            _ if value.is_array() || value.is_object() => fail(path, format!("expected any scalar, got {}", shown())),
            _ => {}
        },
        Some(Shape::List(list)) => {
            let Value::Array(items) = value else {
                return fail(path, format!("expected list, got {}", shown()));
            };
            let mut seen = BTreeSet::new();
            for (index, item) in items.iter().enumerate() {
                let step = match keyed(Some(list)) {
                    None => PathElement::Index(i64::try_from(index).unwrap_or(i64::MAX)),
                    Some(list) => match PathElement::of_item(list, item) {
                        Ok(step) => {
                            if !seen.insert(step.clone()) {
                                errors.push((path.clone(), format!("duplicate entries for key {step}")));
                            }
                            step
                        }
                        Err(reason) => {
                            errors.push((path.clone(), format!("element {index}: {reason}")));
                            return;
                        }
                    },
                };
                let length = path.len();
                path.push_str(&step.to_string());
                validate_at(item, Some(list.items), path, errors);
                path.truncate(length);
            }
        }
        Some(Shape::Object(object)) => {
            let Value::Object(map) = value else {
                return fail(path, format!("expected map, got {}", shown()));
            };
            for (name, inner) in map {
                let length = path.len();
                path.push('.');
                path.push_str(name);
                match (object.child(name), object.rest()) {
                    (None, Rest::Unknown) => errors.push((path.clone(), "field not declared in schema".to_owned())),
                    (inner_schema, _) => validate_at(inner, inner_schema, path, errors),
                }
                path.truncate(length);
            }
        }
    }
}
