//! Selectors of devices: what the expressions of device classes and of requests for devices may refer to.

use std::sync::{Arc, LazyLock};

use crate::cost::{Node, SizeHints, SizeRange};
use crate::decls::TypeProvider;
use crate::env::{Environment, Expected};
use crate::library::Library;
use crate::program::Program;
use crate::types::Type;

/// What evaluating a selector for one device may cost.
pub const COST_LIMIT: u64 = 1_000_000;

const DEVICE: &str = "kubernetes.DRADevice";
/// The longest domain of an attribute, and the longest name of a driver.
const DOMAIN_MAX: u64 = 63;
/// The longest name of an attribute without its domain.
const NAME_MAX: u64 = 32;
/// The most attributes and capacities of a device.
const ATTRIBUTES_MAX: u64 = 32;
/// The longest value of an attribute.
const VALUE_MAX: u64 = 64;

/// The types of `device`.
struct DeviceTypes;

impl TypeProvider for DeviceTypes {
    fn find_type(&self, name: &str) -> Option<Type> {
        (name == DEVICE).then(|| Type::object(DEVICE))
    }

    fn find_field(&self, type_name: &str, field: &str) -> Option<Type> {
        let by_domain = |of: Type| Type::map(Type::String, Type::map(Type::String, of));
        match (type_name, field) {
            (DEVICE, "driver") => Some(Type::String),
            (DEVICE, "attributes") => Some(by_domain(Type::Dyn)),
            (DEVICE, "capacity") => Some(by_domain(Type::object("kubernetes.Quantity"))),
            (DEVICE, "allowMultipleAllocations") => Some(Type::Bool),
            _ => None,
        }
    }
}

/// Compiles a selector; its one variable is `device`. The type of an attribute is known when it is evaluated only, so a
/// selector may also be just one.
///
/// # Errors
/// Why it is none, as upstream words it.
pub fn compile(text: &str) -> Result<Program, String> {
    static ENVIRONMENT: LazyLock<Environment> = LazyLock::new(|| {
        let environment = Environment::kubernetes().library(Library::Bindings).provider(Arc::new(DeviceTypes));
        environment.variable("device", Type::object(DEVICE)).build()
    });
    let program = ENVIRONMENT.compile(text, Expected::Any).map_err(|issues| {
        let all: Vec<String> = issues.iter().map(ToString::to_string).collect();
        format!("compilation failed: {}", all.join("\n"))
    })?;
    match program.output_type() {
        Type::Bool | Type::Dyn => Ok(program),
        other => Err(format!("must evaluate to bool or the unknown type, not {other}")),
    }
}

/// The most that evaluating a selector may cost, for the largest device that there can be.
#[must_use]
pub fn worst_cost(program: &Program) -> u64 {
    program.estimate(&DeviceSizes).max
}

/// How large the parts of a device can be.
struct DeviceSizes;

/// A part of a device.
#[derive(Clone, Copy)]
enum Part {
    Device,
    /// Attributes or capacities by domain, then by name.
    Domains(&'static Part),
    Names(&'static Part),
    Attribute,
    /// Where size does not matter: flags and quantities.
    Other,
    /// A text of at most this length.
    Text(u64),
}

impl Part {
    /// What a step of a path leads to.
    fn step(self, step: &str) -> Option<Part> {
        match (self, step) {
            (Part::Device, "driver") | (Part::Domains(_), "@keys") => Some(Part::Text(DOMAIN_MAX)),
            (Part::Device, "attributes") => Some(Part::Domains(&Part::Attribute)),
            (Part::Device, "capacity") => Some(Part::Domains(&Part::Other)),
            (Part::Device, "allowMultipleAllocations") => Some(Part::Other),
            (Part::Domains(of), "@values" | "@items") => Some(Part::Names(of)),
            (Part::Names(_), "@keys") => Some(Part::Text(NAME_MAX)),
            (Part::Names(of), "@values" | "@items") => Some(*of),
            // Attributes are alike, whatever their names.
            (Part::Names(Part::Attribute), _) => Some(Part::Attribute),
            _ => None,
        }
    }

    fn max(self) -> u64 {
        match self {
            Part::Device | Part::Other => 0,
            Part::Domains(_) | Part::Names(_) => ATTRIBUTES_MAX,
            Part::Attribute => VALUE_MAX,
            Part::Text(max) => max,
        }
    }
}

impl SizeHints for DeviceSizes {
    fn size(&self, node: &Node<'_>) -> Option<SizeRange> {
        let (variable, path) = node.path.split_first()?;
        let part = path.iter().try_fold(Part::Device, |part, step| part.step(step)).filter(|_| variable == "device")?;
        Some(SizeRange { min: 0, max: part.max() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors() {
        let cost = |text: &str| compile(text).map(|p| worst_cost(&p));
        assert!(cost("device.driver == 'gpu.example.com'").is_ok_and(|c| c < 100));
        let bound = "cel.bind(gpu, device.attributes['gpu.example.com'], gpu.model == 'a' && gpu.cores > 3)";
        assert!(cost(bound).is_ok_and(|c| c < 1000));
        let memory = "device.capacity['gpu.example.com'].memory.compareTo(quantity('8Gi')) >= 0";
        assert!(cost(memory).is_ok_and(|c| c < 1000));
        assert_eq!(cost("device.attributes['gpu.example.com'].shared"), cost("device.attributes['x'].y"));
        assert_eq!(cost("device.driver").unwrap_err(), "must evaluate to bool or the unknown type, not string");
    }

    #[test]
    fn too_much_work_is_seen() {
        let nested = "device.attributes.all(a, device.attributes.all(b, device.attributes.all(c, \
                      device.attributes.all(d, a + b + c + d != 'x'))))";
        let program = compile(nested).unwrap();
        assert!(worst_cost(&program) > COST_LIMIT, "{}", worst_cost(&program));
        let once = compile("device.attributes.all(a, a != 'x')").unwrap();
        assert!(worst_cost(&once) < COST_LIMIT);
    }
}
