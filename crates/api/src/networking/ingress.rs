//! Ingress: HTTP routes from outside to Services. A controller that is not part of the cluster acts on it.

use crate::apps::workload::bump_generation;
use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{Meta, semantically_equal};
use crate::meta::{names, table, text};
use crate::networking::validate_reference;
use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, HTTPIngressRuleValue, Ingress, IngressBackend, IngressLoadBalancerIngress, IngressRule,
    IngressServiceBackend, IngressSpec,
};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The class's older place.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const PATH_TYPES: &[&str] = &["Exact", "ImplementationSpecific", "Prefix"];
const BAD_SEQUENCES: &[&str] = &["//", "/./", "/../", "%2f", "%2F"];
const BAD_SUFFIXES: &[&str] = &["/..", "/."];
/// At most this many hosts are shown in a row.
const SHOWN: usize = 3;

/// What a changed Ingress may keep of the stored one although it would be refused today.
#[derive(Clone, Copy, Default)]
struct Leniency {
    secret_names: bool,
    wildcard_rules: bool,
}

impl Leniency {
    fn of(old: &Ingress) -> Self {
        let Some(spec) = &old.spec else { return Self::default() };
        let rules = spec.rules.as_deref().unwrap_or_default();
        let bad_rule = |r: &IngressRule| {
            let mut e = ErrorList::default();
            validate_rule_value(r.http.as_ref(), &Path::new(""), &mut e);
            !e.is_empty()
        };
        Self {
            secret_names: spec.tls.iter().flatten().any(|t| !secret_name_errors(text(&t.secret_name)).is_empty()),
            wildcard_rules: rules.iter().any(|r| text(&r.host).contains('*') && bad_rule(r)),
        }
    }
}

fn secret_name_errors(name: &str) -> Vec<String> {
    if name.is_empty() { Vec::new() } else { names::dns1123_subdomain(name, false) }
}

/// Adds the errors of a host, which may start with `*.`.
fn validate_host(host: &str, path: &Path, errors: &mut ErrorList) {
    let found = if host.contains('*') {
        names::wildcard_dns1123_subdomain(host)
    } else {
        names::dns1123_subdomain(host, false)
    };
    names::push_invalid(errors, path, host, &found);
}

fn validate_service(s: &IngressServiceBackend, path: &Path, errors: &mut ErrorList) {
    let at = path.child("service");
    if s.name.is_empty() {
        errors.required(&at.child("name"), "");
    } else {
        names::push_invalid(errors, &at.child("name"), &s.name, &names::dns1123_label(&s.name, false));
    }
    let port = s.port.clone().unwrap_or_default();
    let (name, number) = (text(&port.name), port.number.unwrap_or(0));
    match (name.is_empty(), number) {
        (false, n) if n != 0 => errors.invalid(path, "", "cannot set both port name & port number"),
        (false, _) => {
            names::push_invalid(errors, &at.child("port").child("name"), name, &names::port_name(name));
        }
        (true, 0) => errors.required(path, "port name or number is required"),
        (true, n) => {
            for message in names::port_number(n) {
                errors.invalid(&at.child("port").child("number"), n, &message);
            }
        }
    }
}

fn validate_backend(b: &IngressBackend, path: &Path, errors: &mut ErrorList) {
    match (&b.resource, &b.service) {
        (Some(_), Some(_)) => errors.invalid(path, "", "cannot set both resource and service backends"),
        (Some(r), None) => {
            validate_reference(r.api_group.as_deref(), &r.kind, &r.name, &path.child("resource"), errors);
        }
        (None, Some(s)) => validate_service(s, path, errors),
        (None, None) => errors.invalid(path, "", "resource or service backend is required"),
    }
}

fn validate_path(p: &HTTPIngressPath, path: &Path, errors: &mut ErrorList) {
    let at = path.child("path");
    let value = text(&p.path);
    match p.path_type.as_str() {
        "" => return errors.required(&path.child("pathType"), "pathType must be specified"),
        "Exact" | "Prefix" => {
            if !value.starts_with('/') {
                errors.invalid(&at, value, "must be an absolute path");
            }
            for bad in BAD_SEQUENCES.iter().filter(|b| value.contains(**b)) {
                errors.invalid(&at, value, &format!("must not contain '{bad}'"));
            }
            for bad in BAD_SUFFIXES.iter().filter(|b| value.ends_with(**b)) {
                errors.invalid(&at, value, &format!("cannot end with '{bad}'"));
            }
        }
        "ImplementationSpecific" => {
            if !value.is_empty() && !value.starts_with('/') {
                errors.invalid(&at, value, "must be an absolute path");
            }
        }
        other => errors.not_supported(&path.child("pathType"), other, PATH_TYPES),
    }
    validate_backend(&p.backend, &path.child("backend"), errors);
}

fn validate_rule_value(http: Option<&HTTPIngressRuleValue>, path: &Path, errors: &mut ErrorList) {
    let Some(http) = http else { return };
    let path = path.child("http").child("paths");
    if http.paths.is_empty() {
        errors.required(&path, "");
    }
    for (i, p) in http.paths.iter().enumerate() {
        validate_path(p, &path.index(i), errors);
    }
}

fn validate_spec(spec: &IngressSpec, lenient: Leniency) -> ErrorList {
    let mut e = ErrorList::default();
    let path = Path::new("spec");
    let rules = spec.rules.as_deref().unwrap_or_default();
    if rules.is_empty() && spec.default_backend.is_none() {
        e.invalid(&path, json!(spec.rules), "either `defaultBackend` or `rules` must be specified");
    }
    if let Some(b) = &spec.default_backend {
        validate_backend(b, &path.child("defaultBackend"), &mut e);
    }
    for (i, r) in rules.iter().enumerate() {
        let path = path.child("rules").index(i);
        let host = text(&r.host);
        if !host.is_empty() {
            if names::parse_ip(host).is_some() {
                e.invalid(&path.child("host"), host, "must be a DNS name, not an IP address");
            }
            validate_host(host, &path.child("host"), &mut e);
        }
        if !(host.contains('*') && lenient.wildcard_rules) {
            validate_rule_value(r.http.as_ref(), &path, &mut e);
        }
    }
    for (i, tls) in spec.tls.iter().flatten().enumerate() {
        let path = path.child("tls").index(i);
        for (j, host) in tls.hosts.iter().flatten().enumerate() {
            validate_host(host, &path.child("hosts").index(j), &mut e);
        }
        if !lenient.secret_names {
            let name = text(&tls.secret_name);
            names::push_invalid(&mut e, &path.child("secretName"), name, &secret_name_errors(name));
        }
    }
    if let Some(class) = &spec.ingress_class_name {
        let found = names::dns1123_subdomain(class, false);
        names::push_invalid(&mut e, &path.child("ingressClassName"), class, &found);
    }
    e
}

fn points(i: &Ingress) -> &[IngressLoadBalancerIngress] {
    let status = i.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    status.and_then(|l| l.ingress.as_deref()).unwrap_or_default()
}

/// Hosts of the rules, `*` where none names one.
fn shown_hosts(rules: &[IngressRule]) -> String {
    let named: Vec<(usize, &str)> =
        rules.iter().map(|r| text(&r.host)).enumerate().filter(|(_, h)| !h.is_empty()).take(SHOWN).collect();
    if named.is_empty() {
        return "*".to_owned();
    }
    let list = named.iter().map(|(_, h)| *h).collect::<Vec<_>>().join(",");
    // Rules after the last shown one count as more even where they name no host, as upstream counts.
    let more = named.len() == SHOWN && named[SHOWN - 1].0 + 1 < rules.len();
    if more { format!("{list} + {} more...", rules.len() - SHOWN) } else { list }
}

impl Kind for Ingress {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["ing"],
        subresources: &[STATUS],
        ..ResourceInfo::new("networking.k8s.io", "v1", "Ingress", "ingresses", "ingress", true)
    };
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        table::text_column("Class", "The name of the IngressClass.", 0),
        table::text_column("Hosts", "Hosts that are routed.", 0),
        table::text_column("Address", "Addresses of the load balancer.", 0),
        table::text_column("Ports", "Ports that are open.", 0),
        table::AGE,
    ];
    crate::kind_codec!();

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.status = Some(Default::default());
        self.metadata.generation = Some(1);
    }

    fn validate(&self) -> ErrorList {
        let spec = self.spec.clone().unwrap_or_default();
        let mut e = validate_spec(&spec, Leniency::default());
        if let (Some(old), Some(new)) = (self.metadata.annotation(CLASS_ANNOTATION), &spec.ingress_class_name)
            && old != new
        {
            let path = Path::new("annotations").child(CLASS_ANNOTATION);
            e.invalid(&path, old, "must match `ingressClassName` when both are specified");
        }
        e
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        if old.is_some() || self.metadata.annotation(CLASS_ANNOTATION).is_none() {
            return Vec::new();
        }
        vec![format!("annotation \"{CLASS_ANNOTATION}\" is deprecated, please use 'spec.ingressClassName' instead")]
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
        let changed = !semantically_equal(&self.spec, &old.spec);
        bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        validate_spec(&self.spec.clone().unwrap_or_default(), Leniency::of(old))
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec.clone_from(&old.spec);
    }

    fn validate_status_update(&self, old: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        let path = Path::new("status").child("loadBalancer").child("ingress");
        for (i, p) in points(self).iter().enumerate() {
            let path = path.index(i);
            let (ip, host) = (text(&p.ip), text(&p.hostname));
            if !ip.is_empty() && !points(old).iter().any(|o| text(&o.ip) == ip) {
                names::push_invalid(&mut e, &path.child("ip"), ip, &names::ip_address(ip));
            }
            if !host.is_empty() {
                let path = path.child("hostname");
                names::push_invalid(&mut e, &path, host, &names::dns1123_subdomain(host, false));
                if names::parse_ip(host).is_some() {
                    e.invalid(&path, host, "must be a DNS name, not an IP address");
                }
            }
        }
        e
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        let address = |p: &IngressLoadBalancerIngress| {
            let ip = text(&p.ip);
            if ip.is_empty() { text(&p.hostname).to_owned() } else { ip.to_owned() }
        };
        let addresses: BTreeSet<String> = points(self).iter().map(address).filter(|a| !a.is_empty()).collect();
        let ports = if spec.tls.as_ref().is_none_or(Vec::is_empty) { "80" } else { "80, 443" };
        vec![
            self.metadata.name().into(),
            spec.ingress_class_name.unwrap_or_else(|| "<none>".to_owned()).into(),
            shown_hosts(spec.rules.as_deref().unwrap_or_default()).into(),
            addresses.into_iter().collect::<Vec<_>>().join(",").into(),
            ports.into(),
            table::age(&self.metadata, now).into(),
        ]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["spec"]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ingress(spec: Value) -> Ingress {
        Ingress::from_value(json!({"metadata": {"name": "i"}, "spec": spec})).unwrap()
    }

    fn service(name: &str, port: Value) -> Value {
        json!({"service": {"name": name, "port": port}})
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn field_errors() {
        assert_eq!(
            texts(&ingress(json!({})).validate()),
            ["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"]
        );
        let i = ingress(json!({
            "defaultBackend": service("", json!({})),
            "rules": [
                {"host": "1.2.3.4", "http": {"paths": []}},
                {"host": "*", "http": {"paths": [{"backend": {}}]}},
                {"http": {"paths": [
                    {"pathType": "Prefix", "path": "a//b/..",
                        "backend": service("web", json!({"name": "x", "number": 1}))},
                    {"pathType": "x", "backend": {}},
                    {"pathType": "ImplementationSpecific", "path": "a",
                        "backend": {"resource": {"kind": "K", "name": ""}}}]}}],
            "tls": [{"hosts": ["*.a"], "secretName": "s_"}]}));
        let found = texts(&i.validate());
        let told = |start: &str| found.iter().any(|t| t.starts_with(start));
        let wildcard = told("spec.rules[1].host: Invalid value: \"*\": a wildcard DNS-1123 subdomain");
        let secret = told("spec.tls[0].secretName: Invalid value: \"s_\": a lowercase RFC 1123");
        assert!(wildcard && secret, "{found:?}");
        let short: Vec<&str> = found.iter().map(String::as_str).filter(|t| t.len() < 120).collect();
        assert_eq!(
            short,
            [
                "spec.defaultBackend.service.name: Required value",
                "spec.defaultBackend: Required value: port name or number is required",
                "spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address",
                "spec.rules[0].http.paths: Required value",
                "spec.rules[1].http.paths[0].pathType: Required value: pathType must be specified",
                "spec.rules[2].http.paths[0].path: Invalid value: \"a//b/..\": must be an absolute path",
                "spec.rules[2].http.paths[0].path: Invalid value: \"a//b/..\": must not contain '//'",
                "spec.rules[2].http.paths[0].path: Invalid value: \"a//b/..\": cannot end with '/..'",
                "spec.rules[2].http.paths[0].backend: Invalid value: \"\": cannot set both port name & port number",
                "spec.rules[2].http.paths[1].backend: Invalid value: \"\": resource or service backend is required",
                "spec.rules[2].http.paths[2].path: Invalid value: \"a\": must be an absolute path",
                "spec.rules[2].http.paths[2].backend.resource.name: Required value",
            ]
        );
    }

    #[test]
    fn both_classes_must_agree_and_the_annotation_is_old() {
        let mut i = ingress(json!({"ingressClassName": "a", "defaultBackend": service("w", json!({"number": 1}))}));
        i.metadata.annotations = Some([(CLASS_ANNOTATION.to_owned(), "b".to_owned())].into());
        assert_eq!(
            texts(&i.validate()),
            ["annotations.kubernetes.io/ingress.class: Invalid value: \"b\": must match `ingressClassName` when \
                 both are \
              specified"]
        );
        assert_eq!(
            i.warnings(None),
            ["annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead"]
        );
        assert!(i.validate_update(&i).is_empty() && i.warnings(Some(&i)).is_empty());
    }

    #[test]
    fn update_rules_status_and_row() {
        let cx = Context { now: Timestamp::UNIX_EPOCH, username: "" };
        let rule = |h: &str| json!({"host": h});
        let mut old = ingress(json!({"rules": [rule("a.b"), rule("c.d"), rule("e.f"), rule("g.h")],
            "tls": [{"secretName": "s"}]}));
        old.prepare_for_create(&cx);
        let mut new = old.clone();
        new.status = Ingress::from_value(json!({"status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.9"},
            {"hostname": "1.2.3.4"}, {"ip": "x"}]}}}))
        .unwrap()
        .status;
        assert_eq!(
            texts(&new.validate_status_update(&old)),
            [
                "status.loadBalancer.ingress[1].hostname: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP \
                 address",
                "status.loadBalancer.ingress[2].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 \
                 or \
                 2001:db8::ffff)",
            ]
        );
        assert!(new.validate_status_update(&new).0.len() == 1);
        assert_eq!(
            json!(new.cells(cx.now)),
            json!(["i", "<none>", "a.b,c.d,e.f + 1 more...", "1.2.3.4,10.0.0.9,x", "80, 443", "<unknown>"])
        );
        new.spec.as_mut().unwrap().tls = None;
        new.prepare_for_update(&old, &cx);
        assert_eq!((new.metadata.generation, &new.status), (Some(2), &old.status));
    }
}
