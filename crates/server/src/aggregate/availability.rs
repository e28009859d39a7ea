//! Whether the server behind an APIService answers: its condition, with upstream's reasons and sentences
//! (`k8s.io/kube-aggregator/pkg/controllers/status/remote`).

use super::{AVAILABLE, Remote, download, proxy};
use crate::authn::UserInfo;
use crate::cluster::{Cluster, resource_of};
use crate::server::Server;
use crate::watch_cache::{Selection, Subscription};
use futures::FutureExt;
use gantry_api::k8s_openapi::api::core::v1::Service;
use gantry_api::k8s_openapi::api::discovery::v1::EndpointSlice;
use gantry_api::k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{APIService, APIServiceCondition};
use gantry_api::kind::{Object, Resource, downcast_mut};
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use http::HeaderMap;
use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// An answer to the question should come quickly.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How often a server is asked at once; one answer is enough.
const ATTEMPTS: usize = 5;
/// A server that answers is asked again after this, because nothing tells when it stops to; one that does not, after a
/// pause that doubles from [`RETRY_FIRST`] up to this.
const ASK_EVERY: Duration = Duration::from_secs(30);
const RETRY_FIRST: Duration = Duration::from_millis(5);
/// What a server serves is asked again after this.
const DOWNLOAD_EVERY: u32 = 2;

struct Verdict {
    status: &'static str,
    reason: &'static str,
    message: String,
}

fn verdict(status: &'static str, reason: &'static str, message: String) -> Verdict {
    Verdict { status, reason, message }
}

/// The user the aggregator is to the servers behind it.
pub(super) fn own_identity() -> UserInfo {
    UserInfo {
        username: "system:kube-aggregator".into(),
        groups: vec![crate::authn::MASTERS.into()],
        ..UserInfo::default()
    }
}

/// Asks a remote again and again, keeps its condition and what is known of what it serves, until `end`.
pub(super) async fn keep(server: Weak<Server>, remote: Arc<Remote>, end: CancellationToken) {
    let Some(changes) = server.upgrade().map(|s| Changes::of(&s, &remote)) else { return };
    let mut pause = RETRY_FIRST;
    let mut rounds = 0_u32;
    loop {
        let passed = tokio::select! {
            biased;
            () = end.cancelled() => return,
            passed = once(&server, &remote, rounds.is_multiple_of(DOWNLOAD_EVERY)) => passed,
        };
        let wait = match passed {
            None => return,
            Some(true) => {
                pause = RETRY_FIRST;
                rounds += 1;
                ASK_EVERY
            }
            Some(false) => {
                rounds = 0;
                let now = pause;
                pause = (pause * 2).min(ASK_EVERY);
                now
            }
        };
        tokio::select! {
            biased;
            () = end.cancelled() => return,
            () = changes.next() => pause = RETRY_FIRST,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Asks once; None where the server or the object is gone, else whether the remote answers.
async fn once(server: &Weak<Server>, remote: &Arc<Remote>, again: bool) -> Option<bool> {
    let me = server.upgrade()?;
    let verdict = judge(&me, remote).await;
    let passed = verdict.status == "True";
    match write(&me, &remote.name, &verdict).await {
        Ok(()) => {}
        Err(e) if e.is("NotFound") => return None,
        Err(e) => tracing::error!(name = remote.name, error = %e.message, "status could not be written"),
    }
    let known = remote.found.load_full();
    let found = match (passed, &known) {
        (false, _) => None,
        (true, Some(known)) if !again => Some(known.clone()),
        (true, _) => match download::ask(&me, remote).await {
            Ok(found) => Some(Arc::new(found)),
            Err(why) => {
                tracing::debug!(name = remote.name, why, "what an aggregated server serves is not known");
                None
            }
        },
    };
    if found.as_deref() != known.as_deref() {
        remote.found.store(found);
        me.republish();
    }
    Some(passed)
}

async fn judge(server: &Server, remote: &Remote) -> Verdict {
    let cluster = &server.services.cluster;
    if let Some(failed) = check_service(cluster, remote).await {
        return failed;
    }
    let outbound = match &remote.outbound {
        Ok(outbound) => outbound,
        Err(why) => return verdict("False", "FailedDiscoveryCheck", why.clone()),
    };
    let attempt = || async {
        let (host, port) = proxy::resolve(server, remote).await?;
        let url = format!("https://{}{}", crate::webhook_client::authority(&host, port), remote.root());
        let mut headers = HeaderMap::new();
        proxy::set_user(&mut headers, &own_identity());
        let answer = outbound.get(&url, headers, ANSWER_WITHIN).await;
        let failed = |why: String| format!("failing or missing response from {url}: {why}");
        let status = answer.map_err(failed)?.status;
        if status.is_success() { Ok(()) } else { Err(failed(format!("bad status from {url}: {}", status.as_u16()))) }
    };
    let attempts = (0..ATTEMPTS).map(|_| attempt().boxed());
    match futures::future::select_ok(attempts).await {
        Ok(_) => verdict("True", "Passed", "all checks passed".into()),
        Err(why) => verdict("False", "FailedDiscoveryCheck", why),
    }
}

/// What is wrong with the Service, if anything.
async fn check_service(cluster: &Cluster, remote: &Remote) -> Option<Verdict> {
    let Remote { namespace, service: name, port, .. } = remote;
    let unknown = |reason, e: ApiError| {
        let message = format!("service/{name} in {namespace:?} cannot be checked due to: {}", e.message);
        Some(verdict("Unknown", reason, message))
    };
    let service = match cluster.get::<Service>(namespace, name).await {
        Ok(Some(service)) => service,
        Ok(None) => {
            let message = format!("service/{name} in {namespace:?} is not present");
            return Some(verdict("False", "ServiceNotFound", message));
        }
        Err(e) => return unknown("ServiceAccessError", e),
    };
    let spec = service.spec.unwrap_or_default();
    if spec.type_.as_deref().unwrap_or("ClusterIP") != "ClusterIP" {
        return None;
    }
    let Some(found) = spec.ports.iter().flatten().find(|p| p.port == *port) else {
        let message = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return Some(verdict("False", "ServicePortError", message));
    };
    let port_name = found.name.clone().unwrap_or_default();
    let slices = match slices_of(cluster, namespace, name).await {
        Ok(slices) => slices,
        Err(e) => return unknown("EndpointsAccessError", e),
    };
    if slices.is_empty() {
        let message = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return Some(verdict("False", "EndpointsNotFound", message));
    }
    if !slices.iter().any(|s| has_endpoint(s, &port_name)) {
        let message = format!(
            "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
        );
        return Some(verdict("False", "MissingEndpoints", message));
    }
    None
}

/// The EndpointSlices of a Service.
pub(super) async fn slices_of(cluster: &Cluster, namespace: &str, name: &str) -> Result<Vec<EndpointSlice>, ApiError> {
    let mut slices = cluster.list::<EndpointSlice>(namespace).await?;
    slices.retain(|s| s.metadata.label("kubernetes.io/service-name") == Some(name));
    Ok(slices)
}

fn has_endpoint(slice: &EndpointSlice, port_name: &str) -> bool {
    let ready = |e: &gantry_api::k8s_openapi::api::discovery::v1::Endpoint| {
        e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
    };
    slice.endpoints.iter().flatten().any(ready)
        && slice.ports.iter().flatten().any(|p| p.name.as_deref() == Some(port_name) && p.port.is_some())
}

/// Says of an APIService that names no Service, or none any more, that this server has it.
pub(super) async fn local(server: &Server, name: &str) {
    let verdict = verdict("True", "Local", "Local APIServices are always available".into());
    match write(server, name, &verdict).await {
        Err(e) if !e.is("NotFound") => tracing::error!(name, error = %e.message, "status could not be written"),
        _ => {}
    }
}

/// Writes the condition, unless it says so already.
async fn write(server: &Server, name: &str, verdict: &Verdict) -> Result<(), ApiError> {
    let now = server.registry.clock.time();
    let says = |service: &APIService| {
        let conditions = service.status.iter().flat_map(|s| s.conditions.iter().flatten());
        conditions.into_iter().any(|c| {
            c.type_ == AVAILABLE
                && c.status == verdict.status
                && c.reason.as_deref() == Some(verdict.reason)
                && c.message.as_deref() == Some(verdict.message.as_str())
        })
    };
    let present = server.services.cluster.get::<APIService>("", name).await?;
    if present.as_ref().is_some_and(says) {
        return Ok(());
    }
    let mut change = |object: &mut dyn Object| {
        let Some(service) = downcast_mut::<APIService>(object) else { return Ok(()) };
        let conditions = service.status.get_or_insert_default().conditions.get_or_insert_default();
        let new = APIServiceCondition {
            type_: AVAILABLE.into(),
            status: verdict.status.into(),
            last_transition_time: Some(now.clone()),
            reason: Some(verdict.reason.into()),
            message: Some(verdict.message.clone()),
        };
        match conditions.iter_mut().find(|c| c.type_ == AVAILABLE) {
            None => conditions.push(new),
            Some(old) => {
                let since = old.last_transition_time.clone().filter(|_| old.status == new.status);
                *old = APIServiceCondition { last_transition_time: since.or(new.last_transition_time.clone()), ..new };
            }
        }
        Ok(())
    };
    let resource: &'static dyn Resource = resource_of::<APIService>();
    server.registry.update_as_server(resource, "", name, false, &mut change).await.map(drop)
}

/// Changes of a remote's Service and of its endpoints.
struct Changes(Vec<Subscription>);

impl Changes {
    fn of(server: &Server, remote: &Remote) -> Self {
        let service = Selection {
            namespace: remote.namespace.clone(),
            name: Some(remote.service.clone()),
            ..Selection::default()
        };
        let slices = Selection { namespace: remote.namespace.clone(), ..Selection::default() };
        let wanted = [(resource_of::<Service>(), service), (resource_of::<EndpointSlice>(), slices)];
        let subscribe = |(resource, selection): (&'static dyn Resource, Selection)| {
            let (_, changes) = server.registry.cache(resource).ok()?.subscribe(selection, None).ok()?;
            Some(changes)
        };
        Self(wanted.into_iter().filter_map(subscribe).collect())
    }

    /// Resolves with the next change; never, once the server stops.
    async fn next(&self) {
        poll_fn(|cx| {
            for changes in &self.0 {
                if let std::task::Poll::Ready(crate::watch_cache::Next::Event(..)) = changes.poll_next(cx) {
                    return std::task::Poll::Ready(());
                }
            }
            std::task::Poll::Pending
        })
        .await;
    }
}
