//! Validation rules of schemas (`x-kubernetes-validations`): compiled once per schema, evaluated on every write.
//!
//! Source: KEP-2876, and `k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel` for texts and order.

use super::schema::{Additional, Node};
use crate::admission::expression::OUT_OF_BUDGET;
use gantry_api::meta::field::{ErrorList, ErrorType, FieldError};
use gantry_cel::{
    Activation, Environment, Issue, JsonView, Limits, Phase, Program, RUNTIME_COST_BUDGET, Schema, SchemaProvider,
    Type, Value as Cel,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

/// Longest message an expression may make, in bytes.
const MESSAGE_MAX: usize = 5 * 1024;

static BASE: LazyLock<Environment> = LazyLock::new(|| Environment::kubernetes().build());

/// What expressions of a schema may refer to.
pub struct Scope {
    schema: Arc<Schema>,
    provider: Arc<SchemaProvider>,
}

impl Scope {
    /// The scope of a schema given as JSON, which is that of a resource or of a value in one. None where expressions
    /// cannot see such values.
    #[must_use]
    pub fn of(schema: &Value, resource: bool) -> Option<Scope> {
        let schema = Arc::new(Schema::from_openapi(schema, "selfType", resource)?);
        let provider = Arc::new(SchemaProvider::new().with("self", &schema).with("oldSelf", &schema));
        Some(Scope { schema, provider })
    }

    fn compile(&self, text: &str, optional_old: bool, result: Type) -> Result<Program, Vec<Issue>> {
        let own = self.schema.cel_type();
        let old = if optional_old { Type::optional(own.clone()) } else { own.clone() };
        let environment = BASE.extend().provider(self.provider.clone()).variable("self", own).variable("oldSelf", old);
        environment.build().compile(text, result)
    }

    /// Compiles a rule.
    ///
    /// # Errors
    /// Upstream's sentence about what does not compile.
    pub fn rule(&self, text: &str, optional_old: bool) -> Result<Program, String> {
        self.compile(text, optional_old, Type::Bool).map_err(|issues| match issues.first().map(|i| i.phase) {
            Some(Phase::Output) => "cel expression must evaluate to a bool".to_owned(),
            Some(Phase::Plan) => format!("program instantiation failed: {}", joined(&issues)),
            _ => format!("compilation failed: {}", joined(&issues)),
        })
    }

    /// Compiles the expression of a rule's message.
    ///
    /// # Errors
    /// Upstream's sentence about what does not compile.
    pub fn message(&self, text: &str, optional_old: bool) -> Result<Program, String> {
        self.compile(text, optional_old, Type::String).map_err(|issues| match issues.first().map(|i| i.phase) {
            Some(Phase::Output) => "messageExpression must evaluate to a string".to_owned(),
            Some(Phase::Plan) => format!("messageExpression instantiation failed: {}", joined(&issues)),
            _ => format!("messageExpression compilation failed: {}", joined(&issues)),
        })
    }

    /// The most that one evaluation may cost, and how often values of this schema fit into a request.
    #[must_use]
    pub fn estimate(&self, program: &Program) -> (u64, u64) {
        const REQUEST_BYTES_MAX: u64 = 3 * 1024 * 1024;
        (program.estimate(self.provider.as_ref()).max, REQUEST_BYTES_MAX / (self.schema.min_octets() + 1))
    }
}

fn joined(issues: &[Issue]) -> String {
    issues.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// One rule.
struct Rule {
    program: Result<Program, String>,
    message_program: Option<Program>,
    text: String,
    message: String,
    message_expression: String,
    reason: String,
    field_path: String,
    uses_old: bool,
    optional_old: bool,
}

impl Rule {
    fn read(scope: &Scope, rule: &Value) -> Option<Rule> {
        let text = |key: &str| rule.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (body, expression) = (text("rule"), text("messageExpression"));
        if body.trim().is_empty() {
            return None;
        }
        let optional_old = rule.get("optionalOldSelf").and_then(Value::as_bool).unwrap_or(false);
        let program = scope.rule(&body, optional_old);
        let message_program = (!expression.is_empty()).then(|| scope.message(&expression, optional_old).ok()).flatten();
        Some(Rule {
            uses_old: program.as_ref().is_ok_and(|p| p.mentions("oldSelf")),
            program,
            message_program,
            message: text("message").trim().to_owned(),
            message_expression: expression,
            reason: text("reason"),
            field_path: normalized_path(&text("fieldPath")),
            text: body.trim().to_owned(),
            optional_old,
        })
    }

    /// How errors name the rule.
    fn name(&self) -> &str {
        if self.message.is_empty() { &self.text } else { &self.message }
    }
}

/// `.a['b.c']` as `a[b.c]`, the way field errors name places.
fn normalized_path(path: &str) -> String {
    let path = path.strip_prefix('.').unwrap_or(path);
    path.replace("['", "[").replace("']", "]")
}

/// The rules of a schema and of all schemas in it.
pub struct Rules {
    scope: Option<Scope>,
    own: Vec<Rule>,
    /// `object`, `array`, `string`, …, as errors show it.
    kind: String,
    node: Arc<Node>,
    items: Option<Box<Rules>>,
    additional: Option<Box<Rules>>,
    properties: BTreeMap<String, Rules>,
    all_of: Vec<Rules>,
}

/// A value with what it was before, as far as that is known.
#[derive(Clone, Copy)]
struct Pair<'v> {
    new: &'v Value,
    old: Option<&'v Value>,
}

impl Pair<'_> {
    fn unchanged(self) -> bool {
        self.old == Some(self.new)
    }
}

/// Where an evaluation is: the pair at hand if it has a counterpart, and the nearest one around it.
#[derive(Clone, Copy, Default)]
struct Correlation<'v> {
    current: Option<Pair<'v>>,
    parent: Option<Pair<'v>>,
}

impl<'v> Correlation<'v> {
    /// Whether errors of transition-free rules are forgiven because nothing changed here.
    fn forgives(self) -> bool {
        self.current.or(self.parent).is_some_and(Pair::unchanged)
    }

    fn below(self, new: &'v Value, old: Option<&'v Value>) -> Self {
        match self.current {
            None => self,
            Some(_) => Self { current: old.map(|o| Pair { new, old: Some(o) }), parent: self.current },
        }
    }
}

/// What all evaluations of one write share.
struct Run {
    errors: ErrorList,
    budget: u64,
}

/// The end of all evaluation.
struct Exhausted;

impl Rules {
    /// The rules of a schema given as JSON and read; None where there is none at all.
    #[must_use]
    pub fn build(schema: &Value, node: &Arc<Node>, resource: bool) -> Option<Rules> {
        Self::build_from(schema, schema, node, resource)
    }

    /// `validation` holds the rules, `structure` what they are about, and `node` is that read; the first two differ inside
    /// of `allOf`.
    fn build_from(validation: &Value, structure: &Value, node: &Arc<Node>, resource: bool) -> Option<Rules> {
        let listed = validation["x-kubernetes-validations"].as_array().map(Vec::as_slice).unwrap_or_default();
        let scope = if listed.is_empty() { None } else { Scope::of(structure, resource) };
        let own: Vec<Rule> = scope.iter().flat_map(|s| listed.iter().filter_map(|r| Rule::read(s, r))).collect();
        let below = |key: &str, node: &Arc<Node>| {
            let validation = validation.get(key).filter(|v| v.is_object())?;
            Self::build_from(validation, &structure[key], node, node.embedded).map(Box::new)
        };
        let items = node.items.as_ref().and_then(|node| below("items", node));
        let additional = match &node.additional {
            Additional::Values(node) => below("additionalProperties", node),
            _ => None,
        };
        let mut properties = BTreeMap::new();
        for (name, property) in validation["properties"].as_object().into_iter().flatten() {
            let Some(node) = node.properties.get(name) else { continue };
            let structure = &structure["properties"][name.as_str()];
            if let Some(rules) = Self::build_from(property, structure, node, node.embedded) {
                properties.insert(name.clone(), rules);
            }
        }
        let all_of = validation["allOf"].as_array().into_iter().flatten();
        let all_of: Vec<Rules> = all_of.filter_map(|v| Self::build_from(v, structure, node, resource)).collect();
        let nothing =
            own.is_empty() && items.is_none() && additional.is_none() && properties.is_empty() && all_of.is_empty();
        (!nothing).then(|| Rules {
            scope,
            own,
            kind: structure["type"].as_str().unwrap_or_default().to_owned(),
            node: node.clone(),
            items,
            additional,
            properties,
            all_of,
        })
    }

    /// Field errors of an object, given what it was before. `prefix` is the place of the value.
    #[must_use]
    pub fn check(&self, prefix: &str, object: &Arc<Value>, old: Option<&Arc<Value>>) -> ErrorList {
        let mut run = Run { errors: ErrorList::default(), budget: RUNTIME_COST_BUDGET };
        let (new, old_view) = (JsonView::new(object.clone()), old.map(|o| JsonView::new(o.clone())));
        let correlation = match old {
            Some(o) => Correlation { current: Some(Pair { new: object, old: Some(o) }), parent: None },
            None => Correlation::default(),
        };
        // Running out of budget has left its error.
        let _ = self.visit(prefix, &new, old_view.as_ref(), correlation, &mut run);
        run.errors
    }

    fn visit(
        &self,
        path: &str,
        new: &JsonView,
        old: Option<&JsonView>,
        correlation: Correlation<'_>,
        run: &mut Run,
    ) -> Result<(), Exhausted> {
        if new.is_null() {
            return Ok(());
        }
        self.evaluate(path, new, old, correlation, run)?;
        for rules in &self.all_of {
            let outer = Correlation { current: None, parent: correlation.parent };
            rules.visit(path, new, old, outer, run)?;
        }
        match &**new {
            Value::Array(items) => {
                let Some(rules) = &self.items else { return Ok(()) };
                for (i, item) in items.iter().enumerate() {
                    let before = old.and_then(|o| o.part(|list| self.node.same_element(item, list)));
                    let Some(view) = new.element(i) else { continue };
                    let below = correlation.below(item, before.as_deref());
                    rules.visit(&format!("{path}[{i}]"), &view, before.as_ref(), below, run)?;
                }
                Ok(())
            }
            Value::Object(map) => {
                let child = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                for (name, value) in map {
                    let (rules, at) = match (self.properties.get(name), &self.additional) {
                        (Some(rules), _) => (rules, child(name)),
                        (None, Some(rules)) if !self.node.properties.contains_key(name) => {
                            debug_assert!(!matches!(self.node.additional, Additional::Unsaid));
                            (&**rules, format!("{path}[{name}]"))
                        }
                        _ => continue,
                    };
                    let before = old.filter(|_| !self.node.atomic_map).and_then(|o| o.field(name));
                    let Some(view) = new.field(name) else { continue };
                    let below = correlation.below(value, before.as_deref());
                    rules.visit(&at, &view, before.as_ref(), below, run)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn add(&self, run: &mut Run, path: &str, detail: &str) {
        run.errors.0.push(self.error(path, detail));
    }

    fn error(&self, path: &str, detail: &str) -> FieldError {
        let body = format!("Invalid value: {:?}: {detail}", self.kind);
        FieldError { r#type: ErrorType::Invalid, field: place(path), body }
    }

    fn evaluate(
        &self,
        path: &str,
        new: &JsonView,
        old: Option<&JsonView>,
        correlation: Correlation<'_>,
        run: &mut Run,
    ) -> Result<(), Exhausted> {
        let Some(scope) = self.scope.as_ref().filter(|_| !self.own.is_empty()) else { return Ok(()) };
        if run.budget == 0 {
            self.add(run, path, OUT_OF_BUDGET);
            return Err(Exhausted);
        }
        let value = |view: &JsonView| scope.schema.value(view.clone());
        let own = match value(new) {
            Ok(own) => own,
            Err(e) => {
                self.add(run, path, &e.to_string());
                return Ok(());
            }
        };
        let before = match old.filter(|o| !o.is_null()).map(value) {
            Some(Ok(before)) => Some(before),
            _ => None,
        };
        for rule in &self.own {
            let program = match &rule.program {
                Ok(program) => program,
                Err(why) => {
                    self.add(run, path, &format!("rule compile error: {why}"));
                    continue;
                }
            };
            if rule.uses_old && before.is_none() && !rule.optional_old {
                continue;
            }
            let mut variables = Activation::new().with("self", own.clone());
            if rule.optional_old {
                variables.set("oldSelf", Cel::Optional(before.clone().map(Arc::new)));
            } else if let Some(before) = &before {
                variables.set("oldSelf", before.clone());
            }
            let outcome = program.run(&variables, Limits::PER_CALL);
            if outcome.cost > run.budget {
                self.add(run, path, OUT_OF_BUDGET);
                return Err(Exhausted);
            }
            run.budget -= outcome.cost;
            match outcome.result {
                Ok(Cel::Bool(true)) => {}
                Ok(_) => self.failed(rule, path, new, &variables, correlation, run)?,
                Err(e) => {
                    let (e, name) = (e.to_string(), rule.name());
                    if e.starts_with("no such overload") {
                        let detail = format!(
                            "'{e}': call arguments did not match a supported operator, function or macro signature for \
                             rule: {name}"
                        );
                        self.add(run, path, &detail);
                    } else if e.starts_with("operation cancelled: actual cost limit exceeded") {
                        let detail = format!(
                            "'{e}': no further validation rules will be run due to call cost exceeds limit for rule: {name}"
                        );
                        self.add(run, path, &detail);
                        return Err(Exhausted);
                    } else {
                        self.add(run, path, &format!("{e} evaluating rule: {name}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Reports a rule that does not hold.
    fn failed(
        &self,
        rule: &Rule,
        path: &str,
        new: &JsonView,
        variables: &Activation,
        correlation: Correlation<'_>,
        run: &mut Run,
    ) -> Result<(), Exhausted> {
        let path = match rule.field_path.as_str() {
            "" => path.to_owned(),
            below if path.is_empty() => below.to_owned(),
            below => format!("{path}.{below}"),
        };
        let forgiven = !rule.uses_old && correlation.forgives();
        let mut end = Ok(());
        let error = match self.message_of(rule, variables, run) {
            Message::Made(detail) => self.error_for_reason(rule, &path, new, &detail),
            Message::None if rule.message.is_empty() => {
                self.error_for_reason(rule, &path, new, &format!("failed rule: {}", rule.text))
            }
            Message::None => self.error_for_reason(rule, &path, new, &rule.message),
            Message::TooExpensive(why) => {
                end = Err(Exhausted);
                self.error(&path, &why)
            }
        };
        if !forgiven {
            run.errors.0.push(error);
        }
        end
    }

    fn error_for_reason(&self, rule: &Rule, path: &str, new: &JsonView, detail: &str) -> FieldError {
        // The value of objects and lists would be long and tell little.
        let value = match self.kind.as_str() {
            "object" | "array" => String::new(),
            _ => match &**new {
                Value::String(s) => format!(": {s:?}"),
                other => format!(": {other}"),
            },
        };
        let (r#type, body) = match rule.reason.as_str() {
            "FieldValueForbidden" => (ErrorType::Forbidden, format!("Forbidden: {detail}")),
            "FieldValueRequired" => (ErrorType::Required, format!("Required value: {detail}")),
            "FieldValueDuplicate" => (ErrorType::Duplicate, format!("Duplicate value{value}")),
            _ => (ErrorType::Invalid, format!("Invalid value{value}: {detail}")),
        };
        FieldError { r#type, field: place(path), body }
    }

    fn message_of(&self, rule: &Rule, variables: &Activation, run: &mut Run) -> Message {
        let Some(program) = &rule.message_program else { return Message::None };
        let outcome = program.run(variables, Limits::PER_CALL);
        if outcome.cost > run.budget {
            return Message::TooExpensive(
                "messageExpression evaluation failed due to running out of cost budget, no further validation rules will \
                 be run"
                    .to_owned(),
            );
        }
        match outcome.result {
            Err(e) if e.to_string().starts_with("operation cancelled: actual cost limit exceeded") => {
                Message::TooExpensive(format!(
                    "no further validation rules will be run due to call cost exceeds limit for messageExpression: {:?}",
                    rule.message_expression
                ))
            }
            Ok(Cel::String(text)) => {
                run.budget -= outcome.cost;
                let text = text.trim();
                let fine = !text.is_empty() && text.len() <= MESSAGE_MAX && !text.contains('\n');
                if fine { Message::Made(text.to_owned()) } else { Message::None }
            }
            other => {
                run.budget -= outcome.cost;
                tracing::debug!(expression = rule.message_expression, result = ?other, "messageExpression made no message");
                Message::None
            }
        }
    }
}

enum Message {
    Made(String),
    None,
    TooExpensive(String),
}

fn place(path: &str) -> String {
    if path.is_empty() { "<nil>".to_owned() } else { path.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(schema: &Value, new: Value, old: Option<Value>) -> Vec<String> {
        let rules = Rules::build(schema, &Arc::new(Node::read(schema)), true).expect("there are rules");
        let errors = rules.check("", &Arc::new(new), old.map(Arc::new).as_ref());
        errors.0.iter().map(ToString::to_string).collect()
    }

    fn schema(rules: &Value) -> Value {
        json!({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-validations": rules,
            "properties": {"min": {"type": "integer"}, "max": {"type": "integer"}, "name": {"type": "string"}}}}})
    }

    #[test]
    fn rules_refuse_with_their_messages() {
        let s = schema(&json!([
            {"rule": "self.min <= self.max", "message": "min above max"},
            {"rule": "self.max < 10"},
            {"rule": "self.min > 0", "messageExpression": "'min is ' + string(self.min)", "fieldPath": ".min",
                "reason": "FieldValueForbidden"},
        ]));
        assert!(found(&s, json!({"spec": {"min": 1, "max": 2}}), None).is_empty());
        assert_eq!(
            found(&s, json!({"spec": {"min": 0, "max": -1}}), None),
            ["spec: Invalid value: min above max", "spec.min: Forbidden: min is 0"]
        );
        assert_eq!(
            found(&s, json!({"spec": {"min": 1, "max": 20}}), None),
            ["spec: Invalid value: failed rule: self.max < 10"]
        );
        let missing = found(&s, json!({"spec": {}}), None);
        assert_eq!(missing[0], "spec: Invalid value: \"object\": no such key: min evaluating rule: min above max");
    }

    #[test]
    fn transitions_are_judged_only_with_a_past() {
        let s = schema(&json!([{"rule": "self.name == oldSelf.name", "message": "name is immutable"}]));
        assert!(found(&s, json!({"spec": {"name": "a"}}), None).is_empty());
        assert_eq!(
            found(&s, json!({"spec": {"name": "b"}}), Some(json!({"spec": {"name": "a"}}))),
            ["spec: Invalid value: name is immutable"]
        );
        let s = schema(&json!([{"rule": "!oldSelf.hasValue() || self.name == oldSelf.value().name",
            "optionalOldSelf": true, "message": "m"}]));
        assert!(found(&s, json!({"spec": {"name": "a"}}), None).is_empty());
        let changed = found(&s, json!({"spec": {"name": "b"}}), Some(json!({"spec": {"name": "a"}})));
        assert_eq!(changed, ["spec: Invalid value: m"]);
    }

    #[test]
    fn what_did_not_change_is_forgiven() {
        let s = schema(&json!([{"rule": "self.max < 10", "message": "too large"}]));
        let old = json!({"spec": {"max": 20}, "other": 1});
        assert!(found(&s, json!({"spec": {"max": 20}, "other": 2}), Some(old.clone())).is_empty());
        assert_eq!(found(&s, json!({"spec": {"max": 21}}), Some(old)), ["spec: Invalid value: too large"]);
    }

    #[test]
    fn rules_reach_into_lists_and_maps() {
        let s = json!({"type": "object", "properties": {
            "list": {"type": "array", "items": {"type": "string", "x-kubernetes-validations": [{"rule": "self != 'x'"}]}},
            "map": {"type": "object", "additionalProperties": {"type": "integer",
                "x-kubernetes-validations": [{"rule": "self > 0"}]}}}});
        assert_eq!(
            found(&s, json!({"list": ["a", "x"], "map": {"k": 0}}), None),
            [
                "list[1]: Invalid value: \"x\": failed rule: self != 'x'",
                "map[k]: Invalid value: 0: failed rule: self > 0",
            ]
        );
    }

    #[test]
    fn what_does_not_compile_says_so() {
        let scope = Scope::of(&json!({"type": "object", "properties": {"a": {"type": "integer"}}}), false).unwrap();
        let why = scope.rule("self.b > 0", false).err().unwrap();
        assert!(why.starts_with("compilation failed: ERROR: <input>:1:5: undefined field 'b'"), "{why}");
        assert_eq!(scope.rule("self.a", false).err().unwrap(), "cel expression must evaluate to a bool");
        assert_eq!(scope.message("self.a", false).err().unwrap(), "messageExpression must evaluate to a string");
    }
}
