//! The CEL expressions in objects that are written: what does not compile is a field error.

use crate::admission::expression::{Compiler, Declared};
use gantry_api::kind::{Object, Resource};
use gantry_api::meta::expression::Role;
use gantry_api::meta::field::ErrorList;

/// Field errors of the expressions in an object that is otherwise valid.
#[must_use]
pub fn check(resource: &dyn Resource, object: &dyn Object, old: Option<&dyn Object>) -> ErrorList {
    let mut errors = ErrorList::default();
    let mut compiler = Compiler::default();
    for expression in resource.expressions(object, old) {
        let role = &expression.role;
        // The kinds that have these are not served.
        if matches!(role, Role::SchemaRule(_) | Role::SchemaMessage(_) | Role::DeviceSelector) {
            continue;
        }
        let declared = Declared {
            params: expression.params,
            authorizer: expression.authorizer,
            patches: matches!(role, Role::ApplyConfiguration | Role::JsonPatch),
        };
        // Conditions come before the variables of a policy, and are not told of them.
        let with_variables = !matches!(role, Role::MatchCondition);
        let compiled = compiler.compile(&expression.text, role, declared, with_variables);
        if let Some(why) = compiled.error() {
            errors.invalid(&expression.path, expression.text.as_str(), why);
        }
    }
    errors
}
