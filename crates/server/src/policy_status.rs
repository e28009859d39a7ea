//! The status of validating admission policies: what type checking makes of their expressions. Upstream's controller of
//! that name looks at a policy once per generation; what is defined later does not count before the policy changes.

use crate::admission::policy_types::{GroupVersionKind, check, kinds};
use crate::cluster::resource_of;
use crate::server::Server;
use crate::watch_cache::{Next, Selection, Subscription};
use gantry_api::k8s_openapi::api::admissionregistration::v1::{TypeChecking, ValidatingAdmissionPolicy};
use gantry_api::k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use gantry_api::kind::{Object, downcast_mut};
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use gantry_cel::Schema;
use gantry_schema::openapi::{inlined, inlined_metadata};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

/// How long to wait after the store refused a write.
const RETRY: Duration = Duration::from_secs(10);

/// Looks at all policies and at those that change, until the server stops.
pub fn keep(server: &Arc<Server>) {
    let cache = server.registry.cache(resource_of::<ValidatingAdmissionPolicy>()).ok();
    let Some((_, changes)) = cache.and_then(|c| c.subscribe(Selection::default(), None).ok()) else { return };
    tokio::spawn(run(Arc::downgrade(server), changes, server.stopping().clone()));
}

async fn run(server: Weak<Server>, changes: Subscription, stop: tokio_util::sync::CancellationToken) {
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    if let Some(server) = server.upgrade()
        && let Ok(all) = server.services.cluster.list::<ValidatingAdmissionPolicy>("").await
    {
        wanted.extend(all.iter().map(|p| p.metadata.name().to_owned()));
    }
    loop {
        if let Some(server) = server.upgrade() {
            let mut refused = BTreeSet::new();
            for name in std::mem::take(&mut wanted) {
                if let Err(e) = look(&server, &name).await {
                    tracing::warn!(policy = name, error = %e.message, "the status of a policy could not be written");
                    refused.insert(name);
                }
            }
            wanted = refused;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = changed(&changes) => match changed {
                Some(names) => wanted.extend(names),
                None => return,
            },
            () = tokio::time::sleep(RETRY), if !wanted.is_empty() => {}
        }
    }
}

/// Resolves with the names of what changed; None where no more will come.
async fn changed(changes: &Subscription) -> Option<Vec<String>> {
    poll_fn(|cx| {
        let mut names = Vec::new();
        while let Poll::Ready(next) = changes.poll_next(cx) {
            match next {
                Next::Event(event, _) => names.push(event.entry.name().to_owned()),
                Next::Closed(_) => return Poll::Ready(None),
            }
        }
        if names.is_empty() { Poll::Pending } else { Poll::Ready(Some(names)) }
    })
    .await
}

/// Checks a policy that was not checked since it changed.
async fn look(server: &Server, name: &str) -> Result<(), ApiError> {
    let cluster = &server.services.cluster;
    let Some(policy) = cluster.get::<ValidatingAdmissionPolicy>("", name).await? else { return Ok(()) };
    let generation = policy.metadata.generation;
    if is_current(&policy, generation) {
        return Ok(());
    }
    let mut types = Vec::new();
    let kind_of = |group: &str, version: &str, plural: &str| {
        Some(server.registry.find(group, version, plural)?.info().kind.to_owned())
    };
    for kind in policy.spec.iter().flat_map(|spec| kinds(spec, kind_of)) {
        if let Some(schema) = schema(server, &kind).await? {
            types.push((kind, schema));
        }
    }
    let params = policy.spec.as_ref().and_then(|s| s.param_kind.as_ref());
    let params = match params.map(|p| (p.api_version.as_deref().unwrap_or_default(), p.kind.as_deref())) {
        Some((api_version, Some(kind))) => {
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            schema(server, &GroupVersionKind(group.to_owned(), version.to_owned(), kind.to_owned())).await?
        }
        _ => None,
    };
    let warnings = check(&policy, &types, params.as_ref());
    let checked = TypeChecking { expression_warnings: (!warnings.is_empty()).then_some(warnings) };
    let mut change = |object: &mut dyn Object| {
        // Changed meanwhile: it is looked at again then.
        if let Some(policy) = downcast_mut::<ValidatingAdmissionPolicy>(object)
            && policy.metadata.generation == generation
            && !is_current(policy, generation)
        {
            let status = policy.status.get_or_insert_default();
            status.observed_generation = generation;
            status.type_checking = Some(checked.clone());
        }
        Ok(())
    };
    let resource = resource_of::<ValidatingAdmissionPolicy>();
    match server.registry.update_as_server(resource, "", name, false, &mut change).await {
        Err(e) if !e.is("NotFound") => Err(e),
        _ => Ok(()),
    }
}

fn is_current(policy: &ValidatingAdmissionPolicy, generation: Option<i64>) -> bool {
    policy.status.as_ref().is_some_and(|s| s.observed_generation >= generation)
}

/// What expressions may see of objects of a kind; None where that is not known.
async fn schema(server: &Server, kind: &GroupVersionKind) -> Result<Option<Arc<Schema>>, ApiError> {
    let GroupVersionKind(group, version, name) = kind;
    let found = match inlined(group, version, name) {
        Some(schema) => Some(schema),
        None => custom(server, kind).await?,
    };
    Ok(found.and_then(|schema| Schema::from_openapi(&schema, name, true)).map(Arc::new))
}

/// The schema of a custom resource, with what all objects have.
async fn custom(server: &Server, kind: &GroupVersionKind) -> Result<Option<Value>, ApiError> {
    let GroupVersionKind(group, version, name) = kind;
    let definitions = server.services.cluster.list::<CustomResourceDefinition>("").await?;
    let Some(definition) = definitions.iter().find(|d| d.spec.group == *group && d.spec.names.kind == *name) else {
        return Ok(None);
    };
    let version = definition.spec.versions.iter().find(|v| v.name == *version && v.served);
    let Some(schema) = version.and_then(|v| v.schema.as_ref()).and_then(|s| s.open_api_v3_schema.as_ref()) else {
        return Ok(None);
    };
    let mut schema = serde_json::to_value(schema).map_err(ApiError::internal)?;
    if schema["properties"].is_null() {
        schema["properties"] = json!({});
    }
    for field in ["apiVersion", "kind"] {
        schema["properties"][field] = json!({ "type": "string" });
    }
    schema["properties"]["metadata"] = inlined_metadata();
    Ok(Some(schema))
}
