//! The CEL expressions in objects that are written: what does not compile, or would cost too much, is a field error.

use crate::admission::expression::{Compiler, Declared};
use crate::crd::{Scope, validate_defaults};
use gantry_api::k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use gantry_api::kind::{Object, Resource, downcast};
use gantry_api::meta::expression::{Expression, Role, SchemaRule};
use gantry_api::meta::field::{ErrorList, Path};
use gantry_cel::{Program, STATIC_COST_LIMIT, STATIC_CRD_COST_LIMIT, device};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Rules of a definition that errors about all of them together name.
const MOST_EXPENSIVE_MAX: usize = 4;

/// Field errors of the expressions in an object that is otherwise valid, and of what else about it only they can tell.
#[must_use]
pub fn check(resource: &dyn Resource, object: &dyn Object, old: Option<&dyn Object>) -> ErrorList {
    let mut errors = ErrorList::default();
    let definition = downcast::<CustomResourceDefinition>(object);
    let mut costs = Costs::default();
    let mut compiler = Compiler::default();
    for expression in resource.expressions(object, old) {
        match &expression.role {
            Role::SchemaRule(rule) | Role::SchemaMessage(rule) => {
                schema_rule(&expression, rule, definition, &mut costs, &mut errors);
            }
            Role::DeviceSelector => device_selector(&expression, &mut errors),
            role => {
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
        }
    }
    costs.report(&mut errors);
    if let Some(definition) = definition.filter(|_| errors.is_empty()) {
        errors.extend(validate_defaults(definition));
    }
    errors
}

fn device_selector(expression: &Expression, errors: &mut ErrorList) {
    match device::compile(&expression.text) {
        Err(why) => errors.invalid(&expression.path, expression.text.as_str(), &why),
        Ok(program) if device::worst_cost(&program) > device::COST_LIMIT => {
            errors.forbidden(&expression.path, "too complex, exceeds cost limit");
        }
        Ok(_) => {}
    }
}

/// What the rules of each schema are estimated to cost together.
#[derive(Default)]
struct Costs(BTreeMap<String, (u64, Vec<(Path, u64)>)>);

impl Costs {
    fn observe(&mut self, root: &str, path: &Path, cost: u64) {
        let (total, expensive) = self.0.entry(root.to_owned()).or_default();
        *total = total.saturating_add(cost);
        if cost >= STATIC_CRD_COST_LIMIT / 100 {
            expensive.push((path.clone(), cost));
            expensive.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
            expensive.truncate(MOST_EXPENSIVE_MAX);
        }
    }

    fn report(self, errors: &mut ErrorList) {
        for (root, (total, expensive)) in self.0 {
            if total <= STATIC_CRD_COST_LIMIT {
                continue;
            }
            for (path, _) in expensive {
                errors.forbidden(
                    &path,
                    "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema",
                );
            }
            let name = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
            errors.forbidden(&Path::new(&root), &exceeded(name, total, STATIC_CRD_COST_LIMIT));
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "the quotient is shown with one digit")]
fn exceeded(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and \
         maxLength where arrays, maps, and strings are declared)"
    )
}

/// The schema's root in the path of something in it, and the rest.
fn split_root(path: &str) -> (&str, &str) {
    const ROOT: &str = "openAPIV3Schema";
    path.find(ROOT).map_or((path, ""), |at| path.split_at(at + ROOT.len()))
}

/// How many values a schema can have in one object, following the path to it from its root; None where there is no bound.
fn cardinality(root: &Value, path: &str) -> Option<u64> {
    let (mut schema, mut rest, mut times) = (root, path, 1_u64);
    loop {
        let most = match schema["type"].as_str() {
            Some("object") if !schema["additionalProperties"].is_null() => schema["maxProperties"].as_u64(),
            Some("array") => schema["maxItems"].as_u64(),
            _ => Some(1),
        };
        if let Some(after) = rest.strip_prefix(".properties[") {
            let properties = schema["properties"].as_object()?;
            let step = |name: &str| after.strip_prefix(name).and_then(|r| r.strip_prefix(']'));
            let (name, after) = properties.keys().find_map(|name| Some((name, step(name)?)))?;
            schema = &properties[name];
            rest = after;
        } else if let Some(after) = rest.strip_prefix(".items.") {
            schema = &schema["items"];
            rest = &rest[rest.len() - after.len() - 1..];
        } else if let Some(after) = rest.strip_prefix(".additionalProperties.") {
            schema = &schema["additionalProperties"];
            rest = &rest[rest.len() - after.len() - 1..];
        } else {
            return Some(times);
        }
        times = times.saturating_mul(most?);
    }
}

/// The root schema a path of a definition starts in, as JSON.
fn root_schema(definition: &CustomResourceDefinition, root: &str) -> Value {
    let versions = &definition.spec.versions;
    let index = root.strip_prefix("spec.versions[").and_then(|r| r.split(']').next()).and_then(|i| i.parse().ok());
    let version = versions.get(index.unwrap_or(0));
    let schema = version.and_then(|v| v.schema.as_ref()).and_then(|s| s.open_api_v3_schema.as_ref());
    schema.map_or(Value::Null, |s| serde_json::to_value(s).unwrap_or_default())
}

fn schema_rule(
    expression: &Expression,
    rule: &SchemaRule,
    definition: Option<&CustomResourceDefinition>,
    costs: &mut Costs,
    errors: &mut ErrorList,
) {
    let listed = rule.schema.x_kubernetes_validations.as_ref().and_then(|r| r.get(rule.rule));
    let (Some(validation), Some(definition)) = (listed, definition) else { return };
    let path = &expression.path;
    let (root, below) = split_root(path.as_str());
    let schema = serde_json::to_value(&rule.schema).unwrap_or_default();
    let is_root = below.starts_with(".x-kubernetes-validations");
    let resource = is_root || rule.schema.x_kubernetes_embedded_resource == Some(true);
    let Some(scope) = Scope::of(&schema, resource) else {
        let why = "internal error: failed to construct type information for x-kubernetes-validations rules: unable to \
                   convert structural schema to CEL declarations";
        return errors.internal(path, why);
    };
    let optional_old = validation.optional_old_self == Some(true);
    let is_message = matches!(expression.role, Role::SchemaMessage(_));
    let compiled = match is_message {
        true => scope.message(&expression.text, optional_old),
        false => scope.rule(&expression.text, optional_old),
    };
    let program: Program = match compiled {
        Ok(program) => program,
        Err(why) => {
            // Upstream shows the whole rule, in the form it has inside of the server.
            let shown = json!({
                "Rule": validation.rule, "Message": validation.message.as_deref().unwrap_or_default(),
                "MessageExpression": validation.message_expression.as_deref().unwrap_or_default(),
                "Reason": validation.reason, "FieldPath": validation.field_path.as_deref().unwrap_or_default(),
                "OptionalOldSelf": validation.optional_old_self,
            });
            return errors.invalid(path, shown, &why);
        }
    };
    let (cost, unbounded) = scope.estimate(&program);
    if is_message {
        if cost > STATIC_COST_LIMIT && !expression.stored {
            errors.forbidden(path, &exceeded("estimated messageExpression cost", cost, STATIC_COST_LIMIT));
        }
        return costs.observe(root, path, cost);
    }
    let times = cardinality(&root_schema(definition, root), below).unwrap_or(unbounded);
    let cost = cost.saturating_mul(times);
    if cost > STATIC_COST_LIMIT && !expression.stored {
        errors.forbidden(path, &exceeded("estimated rule cost", cost, STATIC_COST_LIMIT));
    }
    costs.observe(root, path, cost);
    if program.mentions("oldSelf") {
        if let Some(within) = &rule.uncorrelatable {
            let why = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {within}");
            errors.invalid(path, expression.text.as_str(), &why);
        }
    } else if let Some(optional) = validation.optional_old_self {
        let at = path.as_str().strip_suffix("rule").unwrap_or(path.as_str());
        let at = Path::new(&format!("{at}optionalOldSelf"));
        errors.invalid(&at, optional, "may not be set if oldSelf is not used in rule");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(schema: &Value) -> Vec<String> {
        let resource = gantry_api::kinds::find("apiextensions.k8s.io", "v1", "customresourcedefinitions").unwrap();
        let crd = json!({"metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Cluster",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
        let object = resource.decode_value(crd).unwrap();
        check(resource, object.as_ref(), None).0.iter().map(ToString::to_string).collect()
    }

    fn with(rule: Value, extra: Value) -> Value {
        let mut list = json!({"type": "array", "items": {"type": "string", "x-kubernetes-validations": [rule]}});
        if let (Some(list), Value::Object(extra)) = (list.as_object_mut(), extra) {
            list.extend(extra);
        }
        json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"list": list}}}})
    }

    #[test]
    fn rules_compile_and_stay_within_their_budget() {
        assert!(found(&with(json!({"rule": "self != ''"}), json!({"maxItems": 10}))).is_empty());
        let wrong = found(&with(json!({"rule": "self.x"}), json!({})));
        let place =
            "spec.validation.openAPIV3Schema.properties[spec].properties[list].items.x-kubernetes-validations[0]";
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].starts_with(&format!("{place}.rule: Invalid value: {{\"")), "{wrong:?}");
        assert!(wrong[0].contains("compilation failed: ERROR: <input>:1:5:"), "{wrong:?}");
        let costly = found(&with(json!({"rule": "self.matches('^(a|b)*$')"}), json!({})));
        assert!(
            costly[0]
                .starts_with(&format!("{place}.rule: Forbidden: estimated rule cost exceeds budget by factor of ")),
            "{costly:?}"
        );
        let old = found(&with(
            json!({"rule": "self == oldSelf"}),
            json!({"maxItems": 2, "items": {"type": "string",
            "maxLength": 5, "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}),
        ));
        assert_eq!(
            old,
            [format!(
                "{place}.rule: Invalid value: \"self == oldSelf\": oldSelf cannot be used on the uncorrelatable portion of \
                 the schema within spec.validation.openAPIV3Schema.properties[spec].properties[list]"
            )]
        );
    }

    #[test]
    fn defaults_fit_their_schemas() {
        let schema = |default: Value| {
            json!({"type": "object", "properties": {"spec": {"type": "object", "default": default,
                "properties": {"n": {"type": "integer", "maximum": 5}}}}})
        };
        assert!(found(&schema(json!({"n": 1}))).is_empty());
        let place = "spec.validation.openAPIV3Schema.properties[spec].default";
        assert_eq!(
            found(&schema(json!({"x": 1}))),
            [format!("{place}: Invalid value: {{\"x\":1}}: must not have unknown fields")]
        );
        assert_eq!(
            found(&schema(json!({"n": 6}))),
            [format!("{place}.n: Invalid value: 6: n in body should be less than or equal to 5")]
        );
    }
}
