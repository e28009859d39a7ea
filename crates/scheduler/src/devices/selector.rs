//! CEL selectors of device classes and requests.

use super::pool::Offered;
use gantry_api::k8s_openapi::api::resource::v1::DeviceAttribute;
use gantry_cel::device::{COST_LIMIT, compile};
use gantry_cel::{Activation, EvalError, Key, Limits, Map, MapView, Program, Value};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Compiled expressions kept. There are about as many as device classes.
const KEPT: usize = 128;

/// A selector, or why it is none.
type Compiled = Arc<Result<Program, String>>;

/// Compiled selectors by their text.
#[derive(Default)]
pub struct Selectors(Mutex<HashMap<String, Compiled>>);

impl std::fmt::Debug for Selectors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Selectors({})", self.0.lock().len())
    }
}

impl Selectors {
    fn compiled(&self, text: &str) -> Compiled {
        let mut known = self.0.lock();
        if let Some(found) = known.get(text) {
            return found.clone();
        }
        if known.len() >= KEPT {
            known.clear();
        }
        let made = Arc::new(compile(text));
        known.insert(text.to_owned(), made.clone());
        made
    }

    /// Whether the selector selects the device.
    ///
    /// # Errors
    /// Why that cannot be told, as upstream words it after the name of the selector; the first part says which device it
    /// was, where that matters.
    pub fn matches(&self, text: &str, device: &Offered) -> Result<bool, String> {
        let program = self.compiled(text);
        let program = (*program).as_ref().map_err(|why| format!(": CEL compile error: {why}"))?;
        let at = |why: String| format!(" on device {}: CEL runtime error: {why}", device.id);
        let value = device.value.get_or_init(|| device_value(device)).clone().map_err(at)?;
        let variables = Activation::new().with("device", value);
        match program.eval(&variables, Limits { cost: Some(COST_LIMIT) }) {
            Ok((Value::Bool(selected), _)) => Ok(selected),
            Ok((other, _)) => {
                let name = other.type_name();
                let why = format!("type conversion error from '{name}' to 'bool'");
                Err(at(format!("CEL result of type {name} could not be converted to bool: {why}")))
            }
            Err(error) => Err(at(enhanced(&error))),
        }
    }
}

/// Says how to ask for what may not be there.
fn enhanced(error: &EvalError) -> String {
    let text = error.to_string();
    if !text.contains("no such key:") {
        return text;
    }
    format!(
        "{text}. consider using CEL optional chaining (.? followed by orValue()) or guarding the check with has() for \
         optional fields"
    )
}

/// Maps by domain. A domain that the device does not know has an empty map.
struct Domains(BTreeMap<String, Value>);

fn empty() -> Value {
    Value::map(BTreeMap::new())
}

impl MapView for Domains {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, key: &Key) -> Result<Option<Value>, EvalError> {
        let known = key.as_str().and_then(|domain| self.0.get(domain)).cloned();
        Ok(Some(known.unwrap_or_else(empty)))
    }

    fn keys(&self) -> Vec<Key> {
        self.0.keys().map(|domain| Key::String(domain.as_str().into())).collect()
    }

    fn contains(&self, key: &Key) -> Result<bool, EvalError> {
        Ok(key.as_str().is_some_and(|domain| self.0.contains_key(domain)))
    }
}

/// Names without a domain are in that of the driver.
fn by_domain(values: impl Iterator<Item = (String, Value)>, driver: &str) -> Value {
    let mut out: BTreeMap<String, BTreeMap<Key, Value>> = BTreeMap::new();
    for (name, value) in values {
        let (domain, id) = name.split_once('/').unwrap_or((driver, &name));
        out.entry(domain.to_owned()).or_default().insert(Key::String(id.into()), value);
    }
    let domains = out.into_iter().map(|(domain, ids)| (domain, Value::map(ids))).collect();
    Value::Map(Map::View(Arc::new(Domains(domains))))
}

fn attribute_value(a: &DeviceAttribute) -> Result<Value, String> {
    let version = |text: &String| Value::semver(text).map_err(|why| format!("parse semantic version: {why}"));
    if let Some(ints) = &a.ints {
        return Ok(Value::list(ints.iter().map(|i| Value::Int(*i)).collect()));
    }
    if let Some(bools) = &a.bools {
        return Ok(Value::list(bools.iter().map(|b| Value::Bool(*b)).collect()));
    }
    if let Some(strings) = &a.strings {
        return Ok(Value::strings(strings.iter().map(String::as_str)));
    }
    if let Some(versions) = &a.versions {
        return Ok(Value::list(versions.iter().map(version).collect::<Result<_, _>>()?));
    }
    match (a.int, a.bool, &a.string, &a.version) {
        (Some(int), ..) => Ok(Value::Int(int)),
        (_, Some(bool), ..) => Ok(Value::Bool(bool)),
        (_, _, Some(string), _) => Ok(Value::from(string.as_str())),
        (.., Some(text)) => version(text),
        _ => Err("unsupported attribute value".to_owned()),
    }
}

fn device_value(device: &Offered) -> Result<Value, String> {
    let spec = device.device();
    let driver = &*device.id.driver;
    let mut attributes = Vec::new();
    for (name, a) in spec.attributes.iter().flatten() {
        attributes.push((name.clone(), attribute_value(a).map_err(|why| format!("attribute {name}: {why}"))?));
    }
    let mut capacity = Vec::new();
    for (name, c) in spec.capacity.iter().flatten() {
        capacity.push((name.clone(), Value::quantity(&c.value.0)?));
    }
    let field = |name: &str, value: Value| (Key::String(name.into()), value);
    Ok(Value::map(BTreeMap::from([
        field("driver", driver.into()),
        field("attributes", by_domain(attributes.into_iter(), driver)),
        field("capacity", by_domain(capacity.into_iter(), driver)),
        field("allowMultipleAllocations", device.is_shared().into()),
    ])))
}

#[cfg(test)]
mod tests {
    use super::super::pool::{Inventory, NodeFacts};
    use super::*;
    use serde_json::json;

    #[test]
    fn of_devices() {
        let slice = json!({"metadata": {"name": "s"}, "spec": {"driver": "gpu.example.com", "allNodes": true,
            "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": [{"name": "d",
                "attributes": {"model": {"string": "a100"}, "other.example.com/index": {"int": 3},
                    "driverVersion": {"version": "1.2.3"}, "ok": {"bool": true}},
                "capacity": {"memory": {"value": "40Gi"}}}]}});
        let inventory = Inventory::new(vec![Arc::new(serde_json::from_value(slice).unwrap())], &[]);
        let labels = BTreeMap::new();
        let pools = inventory.pools(NodeFacts { name: "n", labels: &labels });
        let selectors = Selectors::default();
        let on = |text: &str| selectors.matches(text, pools[0].devices[0]);
        for (text, want) in [
            ("device.driver == 'gpu.example.com'", true),
            ("device.attributes['gpu.example.com'].model == 'a100'", true),
            ("device.attributes['other.example.com'].index > 3", false),
            ("device.attributes['gpu.example.com'].driverVersion.isGreaterThan(semver('1.2.0'))", true),
            ("device.capacity['gpu.example.com'].memory.compareTo(quantity('40Gi')) >= 0", true),
            ("'x.example.com' in device.attributes", false),
            ("device.attributes['x.example.com'].?model.orValue('') == 'a100'", false),
            ("device.attributes['gpu.example.com'].ok", true),
            ("device.allowMultipleAllocations", false),
        ] {
            assert_eq!(on(text), Ok(want), "{text}");
        }
        let why = on("device.attributes['x.example.com'].model == 'a'").unwrap_err();
        assert_eq!(
            why,
            " on device gpu.example.com/p/d: CEL runtime error: no such key: model. consider using CEL optional \
             chaining (.? followed by orValue()) or guarding the check with has() for optional fields"
        );
        let why = on("device.attributes['gpu.example.com'].model").unwrap_err();
        assert!(
            why.ends_with(
                "CEL result of type string could not be converted to bool: type conversion error from \
                               'string' to 'bool'"
            ),
            "{why}"
        );
        assert!(on("device.nothing").unwrap_err().starts_with(": CEL compile error: compilation failed: "));
        assert!(on("device.driver").unwrap_err().ends_with("must evaluate to bool or the unknown type, not string"));
    }
}
