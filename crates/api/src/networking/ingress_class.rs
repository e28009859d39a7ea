//! IngressClass: which controller acts on an Ingress, with which parameters.

use crate::apps::workload::bump_generation;
use crate::kind::{Column, Context, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{Meta, immutable, semantically_equal};
use crate::meta::{names, table, text};
use crate::networking::validate_reference;
use k8s_openapi::api::networking::v1::{IngressClass, IngressClassParametersReference};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// Longest name of a controller.
const CONTROLLER_MAX: usize = 250;
const SCOPES: &[&str] = &["Cluster", "Namespace"];

fn validate_parameters(p: &IngressClassParametersReference, path: &Path, errors: &mut ErrorList) {
    validate_reference(p.api_group.as_deref(), &p.kind, &p.name, path, errors);
    let namespace = path.child("namespace");
    match p.scope.as_deref() {
        None => errors.required(&path.child("scope"), ""),
        Some("Namespace") => match &p.namespace {
            None => errors.required(&namespace, "`parameters.scope` is set to 'Namespace'"),
            Some(n) => names::push_invalid(errors, &namespace, n, &names::dns1123_label(n, false)),
        },
        Some("Cluster") => {
            if p.namespace.is_some() {
                errors.forbidden(&namespace, "`parameters.scope` is set to 'Cluster'");
            }
        }
        Some(other) => errors.not_supported(&path.child("scope"), other, SCOPES),
    }
}

fn controller(class: &IngressClass) -> &str {
    class.spec.as_ref().map(|s| text(&s.controller)).unwrap_or_default()
}

impl Kind for IngressClass {
    const INFO: ResourceInfo =
        ResourceInfo::new("networking.k8s.io", "v1", "IngressClass", "ingressclasses", "ingressclass", false);
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        table::text_column("Controller", "Who acts on Ingresses of the class.", 0),
        table::text_column("Parameters", "An object with more for the controller.", 0),
        table::AGE,
    ];
    crate::kind_codec!();

    fn set_defaults(&mut self) {
        if let Some(p) = self.spec.as_mut().and_then(|s| s.parameters.as_mut()) {
            p.scope.get_or_insert_with(|| "Cluster".to_owned());
        }
    }

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.metadata.generation = Some(1);
    }

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        let path = Path::new("spec");
        let name = controller(self);
        let at = path.child("controller");
        if name.len() > CONTROLLER_MAX {
            e.too_long(&at, CONTROLLER_MAX);
        }
        e.extend(names::domain_prefixed_path(&at, name));
        if let Some(p) = self.spec.as_ref().and_then(|s| s.parameters.as_ref()) {
            validate_parameters(p, &path.child("parameters"), &mut e);
        }
        e
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        let changed = !semantically_equal(&self.spec, &old.spec);
        bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        let at = Path::new("spec").child("controller");
        immutable(&mut e, &at, &json!(controller(self)), &json!(controller(old)));
        e.extend(self.validate());
        e
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let parameters = self.spec.as_ref().and_then(|s| s.parameters.as_ref()).map(|p| {
            let group = p.api_group.as_ref().map(|g| format!(".{g}")).unwrap_or_default();
            format!("{}{group}/{}", p.kind, p.name)
        });
        vec![
            self.metadata.name().into(),
            controller(self).into(),
            parameters.unwrap_or_else(|| "<none>".to_owned()).into(),
            table::age(&self.metadata, now).into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(spec: Value) -> IngressClass {
        let mut c = IngressClass::from_value(json!({"metadata": {"name": "c"}, "spec": spec})).unwrap();
        c.set_defaults();
        c
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn field_errors() {
        assert_eq!(texts(&class(json!({})).validate()), ["spec.controller: Required value"]);
        let c = class(json!({"controller": "x", "parameters": {"kind": "", "name": "a/b", "namespace": "n"}}));
        assert_eq!(
            texts(&c.validate()),
            [
                "spec.controller: Invalid value: \"x\": must be a domain-prefixed path (such as \"acme.io/foo\")",
                "spec.parameters.kind: Required value",
                "spec.parameters.name: Invalid value: \"a/b\": may not contain '/'",
                "spec.parameters.namespace: Forbidden: `parameters.scope` is set to 'Cluster'",
            ]
        );
        let of_scope = |scope: &str| {
            texts(
                &class(json!({"controller": "a.b/c", "parameters": {"kind": "K", "name": "n", "scope": scope}}))
                    .validate(),
            )
        };
        assert_eq!(
            of_scope("Namespace"),
            ["spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'"]
        );
        assert_eq!(
            of_scope("x"),
            ["spec.parameters.scope: Unsupported value: \"x\": supported values: \"Cluster\", \"Namespace\""]
        );
    }

    #[test]
    fn the_controller_is_fixed_and_the_row_tells_it() {
        let cx = Context { now: Timestamp::UNIX_EPOCH, username: "" };
        let mut old = class(json!({"controller": "a.b/c"}));
        old.prepare_for_create(&cx);
        let mut new =
            class(json!({"controller": "a.b/d", "parameters": {"apiGroup": "g.h", "kind": "K", "name": "n"}}));
        new.prepare_for_update(&old, &cx);
        assert_eq!(new.metadata.generation, Some(2));
        assert_eq!(
            texts(&new.validate_update(&old)),
            ["spec.controller: Invalid value: \"a.b/d\": field is immutable"]
        );
        assert_eq!(json!(new.cells(cx.now)), json!(["c", "a.b/d", "K.g.h/n", "<unknown>"]));
    }
}
