//! Objects that every cluster has, written when the server starts: system namespaces, priority classes, the default storage
//! class, the `kubernetes` Service with its endpoints, and the bootstrap RBAC policy.

use crate::admission::service_allocation;
use crate::cluster::resource_of;
use crate::config::ServerConfig;
use crate::registry::path_of;
use crate::server::{Server, StartError};
use crate::watch_cache::{EventType, Next, Selection, WatchCache};
use futures::future::try_join_all;
use gantry_api::k8s_openapi::api::networking::v1::ServiceCIDR;
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use gantry_api::kind::{Object, Resource, downcast_mut};
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use gantry_api::networking::service_cidr;
use gantry_api::storage::{binding, storage_class};
use serde_json::{Value, json};
use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Weak};
use tokio_util::sync::CancellationToken;

/// Namespaces made at start.
const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Writes what is missing and corrects what must be so.
///
/// # Errors
/// Where the store refuses.
pub async fn write(server: &Server) -> Result<(), StartError> {
    let namespaces = NAMESPACES.iter().map(|name| ("", "namespaces", json!({ "metadata": { "name": name } })));
    let classes = priority_classes().into_iter().map(|class| ("scheduling.k8s.io", "priorityclasses", class));
    try_join_all(namespaces.chain(classes).map(|(group, plural, o)| ensure(server, group, "v1", plural, o, None)))
        .await?;
    ensure(server, "storage.k8s.io", "v1", "storageclasses", local_path_class(), None).await?;
    // Together, so that they share commits of the store.
    try_join_all(crate::authz::bootstrap::objects(&server.config).into_iter().map(|o| reconcile(server, o))).await?;
    ensure(server, "", "v1", "configmaps", authentication_trust(&server.config), Some(&["data"])).await?;
    service_range(server).await?;
    service_allocation::repair(&server.services.cluster).await.map_err(failed("IP addresses of Services".into()))?;
    kubernetes(server).await
}

/// The range of addresses that the configuration gives Services. One of that name that is there already stays as it is.
async fn service_range(server: &Server) -> Result<(), StartError> {
    let name = service_cidr::DEFAULT;
    let cidrs: Vec<String> = server.config.service_cidrs().map(|range| range.trunc().to_string()).collect();
    let range = json!({ "metadata": { "name": name }, "spec": { "cidrs": cidrs } });
    ensure(server, "networking.k8s.io", "v1", "servicecidrs", range, None).await?;
    let now = server.services.cluster.clock.time();
    let mut change = |object: &mut dyn Object| {
        let Some(range) = downcast_mut::<ServiceCIDR>(object).filter(|r| !r.metadata.is_deleting()) else {
            return Ok(());
        };
        if cidrs.len() == 2 && service_cidr::cidrs(range) == &cidrs[..1] {
            // The cluster was of one family when it began.
            range.spec.get_or_insert_default().cidrs = Some(cidrs.clone());
        }
        if service_cidr::cidrs(range) != cidrs {
            tracing::warn!(stored = ?service_cidr::cidrs(range), configured = ?cidrs, "the default ServiceCIDR is another");
            return Ok(());
        }
        let conditions = range.status.get_or_insert_default().conditions.get_or_insert_default();
        if !conditions.iter().any(|c| c.type_ == service_cidr::READY) {
            conditions.push(Condition {
                type_: service_cidr::READY.into(),
                status: "True".into(),
                message: "Kubernetes default Service CIDR is ready".into(),
                last_transition_time: now.clone(),
                observed_generation: None,
                reason: String::new(),
            });
        }
        Ok(())
    };
    let resource = resource_of::<ServiceCIDR>();
    let written = server.registry.update_as_server(resource, "", name, false, &mut change).await;
    written.map_err(failed(format!("servicecidrs {name}")))?;
    // The first Service finds it in the cache.
    server.registry.caught_up().await?;
    Ok(())
}

/// What aggregated API servers are told about whom to believe: the client CA, and the front proxy's CA with the headers in
/// which it says who asks.
fn authentication_trust(config: &ServerConfig) -> Value {
    let mut data = json!({ "client-ca-file": config.client_ca_pem });
    if let Some(proxies) = &config.access.request_header {
        let lists = [
            ("requestheader-username-headers", &proxies.username_headers),
            ("requestheader-uid-headers", &proxies.uid_headers),
            ("requestheader-group-headers", &proxies.group_headers),
            ("requestheader-extra-headers-prefix", &proxies.extra_header_prefixes),
            ("requestheader-allowed-names", &proxies.allowed_names),
        ];
        for (key, list) in lists {
            data[key] = json!(list).to_string().into();
        }
        data["requestheader-client-ca-file"] = proxies.ca_pem.as_str().into();
    }
    let metadata = json!({ "name": "extension-apiserver-authentication", "namespace": "kube-system" });
    json!({ "metadata": metadata, "data": data })
}

/// The `kubernetes` Service and where it leads.
async fn kubernetes(server: &Server) -> Result<(), StartError> {
    let Some((ip, port)) = server.config.advertise else { return Ok(()) };
    ensure(server, "", "v1", "services", kubernetes_service(&server.config, port), None).await?;
    if ip.is_loopback() || ip.is_unspecified() {
        tracing::warn!(%ip, "pods cannot reach this address: the kubernetes Service gets no endpoints");
        return Ok(());
    }
    let (endpoints, slice) = kubernetes_endpoints(ip, port);
    ensure(server, "", "v1", "endpoints", endpoints, Some(&["subsets"])).await?;
    ensure(server, "discovery.k8s.io", "v1", "endpointslices", slice, Some(&["endpoints", "ports"])).await
}

/// Brings the `kubernetes` Service, its endpoints and the range of its address back when somebody deletes them, until the server stops.
pub fn keep(server: &Arc<Server>) {
    let kept = [
        ("", "services", "default"),
        ("", "endpoints", "default"),
        ("discovery.k8s.io", "endpointslices", "default"),
        ("networking.k8s.io", "servicecidrs", ""),
    ];
    for (group, plural, namespace) in kept {
        let found = gantry_api::kinds::find(group, "v1", plural).and_then(|r| server.registry.cache(r).ok());
        if let Some(cache) = found {
            tokio::spawn(keep_one(Arc::downgrade(server), cache.clone(), namespace, server.stopping().clone()));
        }
    }
}

async fn keep_one(server: Weak<Server>, cache: Arc<WatchCache>, namespace: &'static str, stop: CancellationToken) {
    let selection = Selection { namespace: namespace.into(), name: Some("kubernetes".into()), ..Default::default() };
    let Ok((_, changes)) = cache.subscribe(selection, None) else { return };
    loop {
        // In order: an unordered choice draws lots, and two runs from one seed would end differently.
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            next = poll_fn(|cx| changes.poll_next(cx)) => next,
        };
        match next {
            Next::Event(event, _) if event.entry.event() == EventType::Deleted => {
                let Some(server) = server.upgrade() else { return };
                let kept = match service_range(&server).await {
                    Ok(()) => kubernetes(&server).await,
                    failed => failed,
                };
                if let Err(e) = kept {
                    tracing::error!(error = %e, "the kubernetes Service or its range could not be brought back");
                }
            }
            Next::Event(..) => {}
            Next::Closed(_) => return,
        }
    }
}

fn priority_classes() -> Vec<Value> {
    let class = |name: &str, value: i64, description: &str| json!({ "metadata": { "name": name }, "value": value, "description": description, "globalDefault": false });
    vec![
        class(
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ]
}

/// The class of claims that name none: directories on the node of the pod.
fn local_path_class() -> Value {
    json!({
        "metadata": { "name": "local-path", "annotations": { (storage_class::IS_DEFAULT): "true" } },
        "provisioner": binding::LOCAL_PATH, "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer",
    })
}

/// The first usable address of the range.
#[must_use]
pub fn first_address(config: &ServerConfig) -> IpAddr {
    match config.service_cidr.network() {
        IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip).wrapping_add(1)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip).wrapping_add(1)).into(),
    }
}

fn kubernetes_service(config: &ServerConfig, port: u16) -> Value {
    let ip = first_address(config);
    json!({
        "metadata": { "name": "kubernetes", "namespace": "default", "labels": { "component": "apiserver", "provider": "kubernetes" } },
        "spec": {
            "type": "ClusterIP", "clusterIP": ip.to_string(), "clusterIPs": [ip.to_string()], "sessionAffinity": "None",
            "ipFamilies": [if ip.is_ipv4() { "IPv4" } else { "IPv6" }], "ipFamilyPolicy": "SingleStack",
            "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": port }],
        },
    })
}

fn kubernetes_endpoints(ip: IpAddr, port: u16) -> (Value, Value) {
    let endpoints = json!({
        "metadata": { "name": "kubernetes", "namespace": "default", "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } },
        "subsets": [{ "addresses": [{ "ip": ip.to_string() }], "ports": [{ "name": "https", "port": port, "protocol": "TCP" }] }],
    });
    let slice = json!({
        "metadata": { "name": "kubernetes", "namespace": "default", "labels": { "kubernetes.io/service-name": "kubernetes" } },
        "addressType": if ip.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{ "addresses": [ip.to_string()], "conditions": { "ready": true } }],
        "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
    });
    (endpoints, slice)
}

fn failed(object: String) -> impl FnOnce(ApiError) -> StartError {
    move |e| StartError::Bootstrap { object, message: e.message }
}

/// Creates the object unless the cache already has it, which spares every start after the first its writes.
async fn create(server: &Server, resource: &'static dyn Resource, object: Box<dyn Object>) -> Result<(), ApiError> {
    let info = resource.info();
    let path = path_of(resource, object.meta().namespace(), object.meta().name());
    if server.registry.cache(resource)?.get(&path).is_some() {
        return Err(ApiError::already_exists(info.group, info.plural, object.meta().name()));
    }
    server.registry.create_as_server(resource, object).await.map(drop)
}

/// Creates the object where it is missing; where it is there, sets the `enforced` top-level fields.
async fn ensure(
    server: &Server,
    group: &str,
    version: &str,
    plural: &str,
    value: Value,
    enforced: Option<&[&str]>,
) -> Result<(), StartError> {
    // A kind that this build does not serve has no objects.
    let Some(resource) = gantry_api::kinds::find(group, version, plural) else { return Ok(()) };
    let what = format!("{plural} {}", value["metadata"]["name"].as_str().unwrap_or_default());
    let object = resource.decode_value(value.clone()).map_err(|e| failed(what.clone())(ApiError::internal(e)))?;
    let (namespace, name) = (object.meta().namespace().to_owned(), object.meta().name().to_owned());
    match create(server, resource, object).await {
        Ok(()) => Ok(()),
        Err(e) if e.is("AlreadyExists") => {
            let Some(enforced) = enforced else { return Ok(()) };
            let mut change = |object: &mut dyn Object| set_fields(resource, object, &value, enforced);
            server
                .registry
                .update_as_server(resource, &namespace, &name, false, &mut change)
                .await
                .map_err(failed(what))?;
            Ok(())
        }
        Err(e) => Err(failed(what)(e)),
    }
}

fn set_fields(
    resource: &dyn Resource,
    object: &mut dyn Object,
    value: &Value,
    fields: &[&str],
) -> Result<(), ApiError> {
    let mut now = object.to_value();
    for field in fields {
        now[*field] = value[*field].clone();
    }
    let changed = resource.decode_value(now).map_err(ApiError::internal)?;
    resource.assign(object, changed.as_ref());
    // What was stored has its defaults; without them every start would write the object again.
    resource.set_defaults(object);
    Ok(())
}

/// Creates a policy object, or adds what an existing one lacks unless it opted out of reconciliation.
async fn reconcile(server: &Server, object: Box<dyn Object>) -> Result<(), StartError> {
    let value = object.to_value();
    let kind = value["kind"].as_str().unwrap_or_default();
    let Some(resource) = gantry_api::kinds::ALL
        .iter()
        .copied()
        .find(|r| r.info().kind == kind && r.info().api_version() == value["apiVersion"].as_str().unwrap_or_default())
    else {
        return Ok(());
    };
    let what = format!("{} {}", resource.info().plural, object.meta().name());
    let (namespace, name) = (object.meta().namespace().to_owned(), object.meta().name().to_owned());
    match create(server, resource, object).await {
        Ok(()) => Ok(()),
        Err(e) if e.is("AlreadyExists") => {
            let mut change = |present: &mut dyn Object| {
                if present.meta().annotation("rbac.authorization.kubernetes.io/autoupdate") == Some("false") {
                    return Ok(());
                }
                let mut merged = present.to_value();
                // The rules of an aggregated role follow from the roles it gathers.
                let aggregated = !merged["aggregationRule"].is_null();
                for field in ["rules", "subjects"].into_iter().filter(|f| *f != "rules" || !aggregated) {
                    for wanted in value[field].as_array().into_iter().flatten() {
                        let list = merged.as_object_mut().map(|m| m.entry(field).or_insert_with(|| json!([])));
                        if let Some(list) = list.and_then(Value::as_array_mut).filter(|l| !l.contains(wanted)) {
                            list.push(wanted.clone());
                        }
                    }
                }
                let merged = resource.decode_value(merged).map_err(ApiError::internal)?;
                resource.assign(present, merged.as_ref());
                Ok(())
            };
            server
                .registry
                .update_as_server(resource, &namespace, &name, false, &mut change)
                .await
                .map_err(failed(what))?;
            Ok(())
        }
        Err(e) => Err(failed(what)(e)),
    }
}
