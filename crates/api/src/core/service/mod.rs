//! Service: a stable name and address for a set of pods.

use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS, Subresource, Verb};
use crate::meta::field::ErrorList;
use crate::meta::labels::format_labels;
use crate::meta::object::Meta;
use crate::meta::{names, table, text};
use k8s_openapi::api::core::v1::{Service, ServiceSpec, ServiceStatus};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

mod defaults;
mod validate;
mod warnings;

pub(crate) use validate::{validate_non_special_ip, validate_protocol};

pub use defaults::{needs_cluster_ip, needs_health_check_port, needs_node_port};
pub use validate::cluster_ip_errors;

/// The cluster IP of a headless service.
pub const HEADLESS: &str = "None";

const PROXY: &[Verb] = &[Verb::Create, Verb::Delete, Verb::Get, Verb::Patch, Verb::Update];

/// Whether the service has no address of its own, only those of its endpoints.
#[must_use]
pub fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ips.as_deref().is_some_and(|ips| ips == [HEADLESS])
        || (spec.cluster_ips.as_ref().is_none_or(Vec::is_empty) && text(&spec.cluster_ip) == HEADLESS)
}

/// Whether clients outside the cluster can reach the service.
#[must_use]
pub fn is_externally_accessible(spec: &ServiceSpec) -> bool {
    let external_ips = spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty());
    matches!(text(&spec.type_), "LoadBalancer" | "NodePort") || (text(&spec.type_) == "ClusterIP" && external_ips)
}

fn external_ips(service: &Service, spec: &ServiceSpec) -> String {
    let own = spec.external_ips.clone().unwrap_or_default();
    match text(&spec.type_) {
        "ClusterIP" | "NodePort" if own.is_empty() => "<none>".to_owned(),
        "ClusterIP" | "NodePort" => own.join(","),
        "LoadBalancer" => {
            let ingress =
                service.status.iter().flat_map(|s| s.load_balancer.iter().flat_map(|l| l.ingress.iter().flatten()));
            let mut found: Vec<String> = ingress
                .map(|i| if text(&i.ip).is_empty() { text(&i.hostname) } else { text(&i.ip) }.to_owned())
                .filter(|s| !s.is_empty())
                .collect();
            found.sort();
            found.dedup();
            found.extend(own);
            if found.is_empty() { "<pending>".to_owned() } else { found.join(",") }
        }
        "ExternalName" => text(&spec.external_name).to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

fn ports(spec: &ServiceSpec) -> String {
    let parts: Vec<String> = spec
        .ports
        .iter()
        .flatten()
        .map(|p| match p.node_port.unwrap_or(0) {
            0 => format!("{}/{}", p.port, text(&p.protocol)),
            node_port => format!("{}:{node_port}/{}", p.port, text(&p.protocol)),
        })
        .collect();
    if parts.is_empty() { "<none>".to_owned() } else { parts.join(",") }
}

impl Kind for Service {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["svc"],
        categories: &["all"],
        subresources: &[
            Subresource { name: "proxy", gvk: Some(("", "v1", "ServiceProxyOptions")), verbs: PROXY },
            STATUS,
        ],
        create_on_update: true,
        ..ResourceInfo::new("", "v1", "Service", "services", "service", true)
    };
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        table::text_column("Type", "How the service is exposed: ClusterIP, NodePort, LoadBalancer or ExternalName.", 0),
        table::text_column("Cluster-IP", "The virtual address of the service.", 0),
        table::text_column("External-IP", "Addresses by which the service is reached from outside.", 0),
        table::text_column("Port(s)", "The ports the service listens on.", 0),
        table::AGE,
        table::text_column("Selector", "Labels of the pods the service leads to.", 1),
    ];
    crate::kind_codec!();

    fn set_defaults(&mut self) {
        defaults::set_defaults(self);
    }
    fn prepare_for_create(&mut self, _cx: &Context<'_>) {
        self.status = Some(ServiceStatus { load_balancer: Some(Default::default()), conditions: None });
        defaults::normalize_new(self.spec.get_or_insert_default());
    }
    fn validate(&self) -> ErrorList {
        validate::validate(self)
    }
    fn warnings(&self, _old: Option<&Self>) -> Vec<String> {
        warnings::warnings(self)
    }
    fn prepare_for_update(&mut self, old: &Self, _cx: &Context<'_>) {
        self.status = old.status.clone();
        if self.spec.as_ref().map(|s| text(&s.type_)) != Some("LoadBalancer")
            && let Some(status) = &mut self.status
        {
            // Taking the balancer down takes its time; its addresses no longer mean anything.
            status.load_balancer = Some(Default::default());
        }
        defaults::carry_over(self.spec.get_or_insert_default(), &old.spec.clone().unwrap_or_default());
    }
    fn validate_update(&self, old: &Self) -> ErrorList {
        validate::validate_update(self, old)
    }
    fn prepare_for_status_update(&mut self, old: &Self, _cx: &Context<'_>) {
        self.spec = old.spec.clone();
    }
    fn validate_status_update(&self, _old: &Self) -> ErrorList {
        validate::validate_status(self)
    }
    fn validate_name(name: &str, prefix: bool) -> Vec<String> {
        names::dns1123_label(name, prefix)
    }
    fn selectable_fields(&self) -> Vec<(&'static str, String)> {
        let spec = self.spec.as_ref();
        vec![
            ("spec.clusterIP", spec.map(|s| text(&s.cluster_ip)).unwrap_or_default().to_owned()),
            ("spec.type", spec.map(|s| text(&s.type_)).unwrap_or_default().to_owned()),
        ]
    }
    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let no_spec = ServiceSpec::default();
        let spec = self.spec.as_ref().unwrap_or(&no_spec);
        let first =
            spec.cluster_ips.as_ref().and_then(|ips| ips.first()).map_or(text(&spec.cluster_ip), String::as_str);
        vec![
            self.metadata.name().into(),
            text(&spec.type_).into(),
            if first.is_empty() { "<none>".into() } else { first.into() },
            external_ips(self, spec).into(),
            ports(spec).into(),
            table::age(&self.metadata, now).into(),
            format_labels(spec.selector.as_ref()).into(),
        ]
    }
    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["spec"]])
    }
}

#[cfg(test)]
mod tests;
