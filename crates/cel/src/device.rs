//! Selectors of devices: what the expressions of device classes and of requests for devices may refer to.

use std::sync::{Arc, LazyLock};

use crate::decls::TypeProvider;
use crate::env::{Environment, Expected};
use crate::program::Program;
use crate::types::Type;

/// What evaluating a selector for one device may cost.
pub const COST_LIMIT: u64 = 1_000_000;

const DEVICE: &str = "kubernetes.DRADevice";

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
        Environment::kubernetes().provider(Arc::new(DeviceTypes)).variable("device", Type::object(DEVICE)).build()
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
