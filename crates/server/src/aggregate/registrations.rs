//! The APIServices of the versions this server has itself: written when it starts, and for custom resources kept as the
//! definitions come and go. Sources: `k8s.io/kube-aggregator/pkg/controllers/autoregister`, kube-apiserver's priorities.

use crate::cluster::resource_of;
use crate::registry::path_of;
use crate::server::Server;
use gantry_api::ObjectMeta;
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, Preconditions};
use gantry_api::k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{APIService, APIServiceSpec};
use gantry_api::kind::{Object, Resource, downcast_mut};
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use std::collections::{BTreeMap, BTreeSet};

/// Label that says how an APIService is kept.
pub const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// Brought to what it must be when the server starts.
const ON_START: &str = "onstart";
/// Kept at what it must be all the time.
const ALWAYS: &str = "true";
/// The group of APIServices themselves, which comes before all others and has no registration.
const OWN_GROUP: &str = "apiregistration.k8s.io";
/// The numbers of nodes and pods, which a real metrics server may take over.
const METRICS: (&str, &str) = ("metrics.k8s.io", "v1beta1");

/// Where groups and versions stand in discovery: a greater number comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority {
    /// Of the group among all groups.
    pub group: i32,
    /// Of the version in its group.
    pub version: i32,
}

/// Of all custom resources. Among equal versions the stable and later one comes first.
const CUSTOM: Priority = Priority { group: 1000, version: 100 };

/// Group, version, and their priorities.
const BUILT_IN: &[(&str, &str, i32, i32)] = &[
    ("", "v1", 18000, 1),
    ("apps", "v1", 17800, 15),
    ("events.k8s.io", "v1", 17750, 15),
    ("authentication.k8s.io", "v1", 17700, 15),
    ("authorization.k8s.io", "v1", 17600, 15),
    ("autoscaling", "v2", 17500, 30),
    ("autoscaling", "v1", 17500, 15),
    ("batch", "v1", 17400, 15),
    ("certificates.k8s.io", "v1", 17300, 15),
    ("networking.k8s.io", "v1", 17200, 15),
    ("policy", "v1", 17100, 15),
    ("rbac.authorization.k8s.io", "v1", 17000, 15),
    ("storage.k8s.io", "v1", 16800, 15),
    ("apiextensions.k8s.io", "v1", 16700, 15),
    ("admissionregistration.k8s.io", "v1", 16700, 15),
    ("scheduling.k8s.io", "v1", 16600, 15),
    ("scheduling.k8s.io", "v1beta1", 16600, 12),
    ("coordination.k8s.io", "v1", 16500, 15),
    ("node.k8s.io", "v1", 16300, 15),
    ("discovery.k8s.io", "v1", 16200, 15),
    ("flowcontrol.apiserver.k8s.io", "v1", 16100, 21),
    ("resource.k8s.io", "v1", 15900, 15),
    ("storagemigration.k8s.io", "v1", 15800, 15),
    // As the metrics server's own manifest has it.
    (METRICS.0, METRICS.1, 100, 100),
];

/// The priority of a version this server has itself.
#[must_use]
pub fn priority(group: &str, version: &str) -> Priority {
    if group == OWN_GROUP {
        return Priority { group: 20_001, version: 0 };
    }
    let known = BUILT_IN.iter().find(|(g, v, _, _)| *g == group && *v == version);
    known.map_or(CUSTOM, |(_, _, group, version)| Priority { group: *group, version: *version })
}

fn object(group: &str, version: &str, managed: Option<&str>) -> APIService {
    let priority = priority(group, version);
    APIService {
        metadata: ObjectMeta {
            name: Some(format!("{version}.{group}")),
            labels: managed.map(|how| [(MANAGED.to_owned(), how.to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(APIServiceSpec {
            group: (!group.is_empty()).then(|| group.to_owned()),
            version: Some(version.to_owned()),
            group_priority_minimum: priority.group,
            version_priority: priority.version,
            ..APIServiceSpec::default()
        }),
        status: None,
    }
}

fn services() -> &'static dyn Resource {
    resource_of::<APIService>()
}

/// The registrations of built-in versions.
fn built_in(kinds: &[&'static dyn Resource]) -> Vec<APIService> {
    let versions: BTreeSet<(&str, &str)> = kinds.iter().map(|r| (r.info().group, r.info().version)).collect();
    let own = versions.into_iter().filter(|(group, _)| *group != OWN_GROUP);
    let mut out: Vec<APIService> = own.map(|(g, v)| object(g, v, Some(ON_START))).collect();
    out.push(object(METRICS.0, METRICS.1, None));
    out
}

/// The registrations of custom resources, by name.
fn custom(server: &Server) -> BTreeMap<String, APIService> {
    let versions: BTreeSet<(&str, &str)> =
        server.registry.learned().iter().map(|r| (r.info().group, r.info().version)).collect();
    // A group may have both kinds; then the version is registered already.
    let built_in: BTreeSet<(&str, &str)> =
        server.registry.built_in().iter().map(|r| (r.info().group, r.info().version)).collect();
    let own = versions.difference(&built_in).map(|(g, v)| object(g, v, Some(ALWAYS)));
    own.map(|s| (s.metadata.name().to_owned(), s)).collect()
}

/// What is stored, by name.
async fn stored(server: &Server) -> Result<BTreeMap<String, APIService>, ApiError> {
    let all = server.services.cluster.list::<APIService>("").await?;
    Ok(all.into_iter().map(|s| (s.metadata.name().to_owned(), s)).collect())
}

fn managed(service: &APIService) -> Option<&str> {
    service.metadata.label(MANAGED).filter(|how| matches!(*how, ON_START | ALWAYS))
}

async fn create(server: &Server, wanted: APIService) -> Result<(), ApiError> {
    let path = path_of(services(), "", wanted.metadata.name());
    if server.registry.cache(services())?.get(&path).is_some() {
        return Ok(());
    }
    match server.registry.create_as_server(services(), Box::new(wanted)).await {
        Err(e) if !e.is("AlreadyExists") => Err(e),
        _ => Ok(()),
    }
}

async fn update(server: &Server, wanted: &APIService) -> Result<(), ApiError> {
    let mut change = |present: &mut dyn Object| {
        if let Some(present) = downcast_mut::<APIService>(present) {
            present.spec.clone_from(&wanted.spec);
        }
        Ok(())
    };
    server.registry.update_as_server(services(), "", wanted.metadata.name(), false, &mut change).await.map(drop)
}

async fn delete(server: &Server, present: &APIService) -> Result<(), ApiError> {
    let preconditions = Preconditions { uid: present.metadata.uid.clone(), resource_version: None };
    let options = DeleteOptions { preconditions: Some(preconditions), ..DeleteOptions::default() };
    let name = present.metadata.name();
    match server.registry.delete(services(), "", name, &options, false, None).await {
        Err(e) if !e.is("NotFound") && !e.is("Conflict") => Err(e),
        _ => Ok(()),
    }
}

/// Writes the registrations of built-in versions, corrects those that are kept automatically, and removes those of versions
/// that are gone.
///
/// # Errors
/// Where the store refuses.
pub async fn write(server: &Server) -> Result<(), ApiError> {
    let wanted: BTreeMap<String, APIService> =
        built_in(server.registry.built_in()).into_iter().map(|s| (s.metadata.name().to_owned(), s)).collect();
    let present = stored(server).await?;
    let missing = wanted.iter().filter(|(name, _)| !present.contains_key(*name));
    // Together, so that they share commits of the store.
    futures::future::try_join_all(missing.map(|(_, s)| create(server, s.clone()))).await?;
    for (name, service) in &present {
        match (managed(service), wanted.get(name)) {
            (Some(_), Some(wanted)) if wanted.spec != service.spec => update(server, wanted).await?,
            (Some(ON_START), None) => delete(server, service).await?,
            _ => {}
        }
    }
    Ok(())
}

/// Brings the registrations of custom resources to what they must be: all, or the one of this name.
pub async fn keep(server: &Server, name: Option<&str>) {
    if let Err(e) = try_keep(server, name).await {
        tracing::error!(error = %e.message, "APIServices of custom resources could not be written");
    }
}

async fn try_keep(server: &Server, only: Option<&str>) -> Result<(), ApiError> {
    let mut wanted = custom(server);
    wanted.extend(Some(object(METRICS.0, METRICS.1, None)).map(|s| (s.metadata.name().to_owned(), s)));
    server.registry.caught_up().await?;
    let present = stored(server).await?;
    let chosen = |name: &String| only.is_none_or(|o| o == name);
    for (name, service) in wanted.iter().filter(|(name, _)| chosen(name)) {
        match present.get(name) {
            None => create(server, service.clone()).await?,
            Some(p) if managed(p).is_some() && p.spec != service.spec => update(server, service).await?,
            Some(_) => {}
        }
    }
    for (name, service) in present.iter().filter(|(name, _)| chosen(name)) {
        if managed(service) == Some(ALWAYS) && !wanted.contains_key(name) {
            delete(server, service).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;

    #[test]
    fn every_built_in_version_has_a_place_of_its_own() {
        let kinds: Vec<_> = gantry_api::kinds::ALL.iter().chain(gantry_api::kinds::OPTIONAL).copied().collect();
        for service in built_in(&kinds) {
            let spec = service.spec.as_ref().unwrap();
            assert!(spec.group_priority_minimum != CUSTOM.group, "{:?}", service.metadata.name);
            assert!(service.validate().is_empty(), "{:?}: {:?}", service.metadata.name, service.validate());
        }
        assert!(priority("apps", "v1") > priority("batch", "v1"));
        assert!(priority("autoscaling", "v2") > priority("autoscaling", "v1"));
        assert!(priority(OWN_GROUP, "v1") > priority("", "v1"));
        assert_eq!(priority("example.com", "v1"), CUSTOM);
    }
}
