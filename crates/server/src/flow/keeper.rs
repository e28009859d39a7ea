//! Keeps the objects of flow control: those every cluster has, the `Dangling` condition of schemas, and what [`super::Flow`]
//! makes of them all. It looks whenever one of them changes.
//!
//! Mandatory objects have a fixed spec. Suggested ones are kept at theirs while their annotation
//! `apf.kubernetes.io/autoupdate-spec` is `true`, which it becomes on objects that lack it and were never changed. What has
//! the annotation and is neither is of an older version, and is removed.

use crate::cluster::resource_of;
use crate::server::Server;
use crate::watch_cache::{Next, Selection, Subscription};
use futures::future::try_join_all;
use gantry_api::flowcontrol::defaults::{self, AUTO_UPDATE};
use gantry_api::k8s_openapi::api::flowcontrol::v1::{
    FlowSchema, FlowSchemaCondition, FlowSchemaStatus, PriorityLevelConfiguration,
};
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use gantry_api::kind::{Kind, Object, Resource, downcast_mut};
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use serde_json::{Value, json};
use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

/// How long to wait after the store refused a write.
const RETRY: Duration = Duration::from_secs(10);

/// Writes what must be there and takes over what is.
///
/// # Errors
/// Where the store refuses.
pub async fn sync(server: &Server) -> Result<(), ApiError> {
    ensure(server, defaults::mandatory_priority_levels(), true).await?;
    ensure(server, defaults::suggested_priority_levels(), false).await?;
    ensure(server, defaults::mandatory_flow_schemas(), true).await?;
    ensure(server, defaults::suggested_flow_schemas(), false).await?;
    server.registry.caught_up().await?;
    let kept = |own: &[FlowSchema], name: &str| own.iter().any(|o| o.metadata.name() == name);
    let schemas = [defaults::mandatory_flow_schemas(), defaults::suggested_flow_schemas()].concat();
    remove_others::<FlowSchema>(server, |name| kept(&schemas, name)).await?;
    let levels = [defaults::mandatory_priority_levels(), defaults::suggested_priority_levels()].concat();
    remove_others::<PriorityLevelConfiguration>(server, |name| levels.iter().any(|o| o.metadata.name() == name))
        .await?;

    server.registry.caught_up().await?;
    let cluster = &server.services.cluster;
    let schemas = cluster.list::<FlowSchema>("").await?;
    let levels = cluster.list::<PriorityLevelConfiguration>("").await?;
    server.flow.digest(schemas.clone(), levels.clone());
    try_join_all(schemas.iter().map(|schema| tell(server, schema, &levels))).await?;
    Ok(())
}

/// Looks again whenever something changed, until the server stops.
pub fn keep(server: &Arc<Server>) {
    let mut subscriptions = Vec::new();
    for resource in [resource_of::<FlowSchema>(), resource_of::<PriorityLevelConfiguration>()] {
        let subscribed =
            server.registry.cache(resource).ok().and_then(|c| c.subscribe(Selection::default(), None).ok());
        subscriptions.extend(subscribed.map(|(_, changes)| changes));
    }
    tokio::spawn(run(Arc::downgrade(server), subscriptions, server.stopping().clone()));
}

async fn run(server: Weak<Server>, changes: Vec<Subscription>, stop: tokio_util::sync::CancellationToken) {
    loop {
        let open = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            open = changed(&changes) => open,
        };
        if !open {
            return;
        }
        loop {
            let Some(alive) = server.upgrade() else { return };
            let Err(e) = sync(&alive).await else { break };
            tracing::warn!(error = %e.message, "priority levels and flow schemas could not be kept");
            drop(alive);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }
}

/// Resolves when something changed, having taken all changes there are; false where no more will come.
async fn changed(changes: &[Subscription]) -> bool {
    poll_fn(|cx| {
        let mut any = false;
        for changes in changes {
            while let Poll::Ready(next) = changes.poll_next(cx) {
                match next {
                    Next::Event(..) => any = true,
                    Next::Closed(_) => return Poll::Ready(false),
                }
            }
        }
        if any { Poll::Ready(true) } else { Poll::Pending }
    })
    .await
}

async fn ensure<K: Kind>(server: &Server, objects: Vec<K>, mandatory: bool) -> Result<(), ApiError> {
    let one = |object: K| ensure_one(server, resource_of::<K>(), Box::new(object), mandatory);
    try_join_all(objects.into_iter().map(one)).await.map(drop)
}

async fn ensure_one(
    server: &Server,
    resource: &'static dyn Resource,
    object: Box<dyn Object>,
    mandatory: bool,
) -> Result<(), ApiError> {
    let name = object.meta().name().to_owned();
    let wanted = object.to_value();
    let Some(present) = server.services.cluster.objects.get(resource, "", &name, false).await? else {
        return match server.registry.create_as_server(resource, object).await {
            Err(e) if !e.is("AlreadyExists") => Err(e),
            _ => Ok(()),
        };
    };
    if kept(&present.to_value(), &wanted, mandatory).is_none() {
        return Ok(());
    }
    let mut change = |present: &mut dyn Object| {
        if let Some(kept) = kept(&present.to_value(), &wanted, mandatory) {
            let kept = resource.decode_value(kept).map_err(ApiError::internal)?;
            resource.assign(present, kept.as_ref());
        }
        Ok(())
    };
    match server.registry.update_as_server(resource, "", &name, false, &mut change).await {
        // Removed meanwhile: that is a change, after which it is looked at again.
        Err(e) if !e.is("NotFound") => Err(e),
        _ => Ok(()),
    }
}

/// The object as it should be; None where it is as it should be.
fn kept(present: &Value, wanted: &Value, mandatory: bool) -> Option<Value> {
    let meta = &present["metadata"];
    let annotation = meta["annotations"][AUTO_UPDATE].as_str();
    let auto = mandatory || annotation.map_or(meta["generation"] == 1, |a| a == "true");
    let mut out = present.clone();
    if auto {
        out["spec"] = wanted["spec"].clone();
        // What the exempt level lends is the administrator's to say.
        if mandatory && !present["spec"]["exempt"].is_null() {
            out["spec"]["exempt"] = present["spec"]["exempt"].clone();
        }
        if out["spec"] != present["spec"] {
            out["metadata"]["generation"] = json!(meta["generation"].as_i64().unwrap_or(0) + 1);
        }
    }
    let said = if auto { "true" } else { "false" };
    if annotation != Some(said) {
        if out["metadata"]["annotations"].is_null() {
            out["metadata"]["annotations"] = json!({});
        }
        out["metadata"]["annotations"][AUTO_UPDATE] = said.into();
    }
    (out != *present).then_some(out)
}

async fn remove_others<K: Kind>(server: &Server, is_kept: impl Fn(&str) -> bool) -> Result<(), ApiError> {
    let cluster = &server.services.cluster;
    for object in cluster.objects.list(resource_of::<K>(), "").await? {
        let meta = object.meta();
        if meta.annotation(AUTO_UPDATE) != Some("true") || is_kept(meta.name()) {
            continue;
        }
        let options = DeleteOptions::default();
        match cluster.objects.delete(resource_of::<K>(), "", meta.name(), &options, false).await {
            Err(e) if !e.is("NotFound") => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Says on a schema whether its level exists.
async fn tell(server: &Server, schema: &FlowSchema, levels: &[PriorityLevelConfiguration]) -> Result<(), ApiError> {
    let level = &schema.spec.priority_level_configuration.name;
    let exists = levels.iter().any(|l| l.metadata.name() == level);
    let (status, reason, ending) =
        if exists { ("False", "Found", "and it exists") } else { ("True", "NotFound", "but there is no such object") };
    let message = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?} {ending}");
    let wanted = FlowSchemaCondition {
        type_: "Dangling".to_owned(),
        status: Some(status.to_owned()),
        last_transition_time: Some(server.registry.clock.time()),
        reason: Some(reason.to_owned()),
        message: Some(message),
    };
    let same = |c: &FlowSchemaCondition| {
        (&c.status, &c.reason, &c.message) == (&wanted.status, &wanted.reason, &wanted.message)
    };
    let is_dangling = |c: &FlowSchemaCondition| c.type_ == wanted.type_;
    let conditions = schema.status.iter().flat_map(|s| s.conditions.iter().flatten());
    if conditions.into_iter().any(|c| is_dangling(c) && same(c)) {
        return Ok(());
    }
    let resource = resource_of::<FlowSchema>();
    let mut change = |object: &mut dyn Object| {
        let Some(schema) = downcast_mut::<FlowSchema>(object) else { return Ok(()) };
        let status = schema.status.get_or_insert_with(FlowSchemaStatus::default);
        let conditions = status.conditions.get_or_insert_with(Vec::new);
        match conditions.iter_mut().find(|c| is_dangling(c)) {
            Some(present) => *present = wanted.clone(),
            None => conditions.push(wanted.clone()),
        }
        Ok(())
    };
    match server.registry.update_as_server(resource, "", schema.metadata.name(), false, &mut change).await {
        Err(e) if !e.is("NotFound") => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept() {
        let wanted = json!({"metadata": {"name": "x"}, "spec": {"a": 1}});
        let present = |annotations: Value, generation: i64, spec: Value| json!({"metadata": {"name": "x", "generation": generation, "annotations": annotations}, "spec": spec});
        let same = present(json!({AUTO_UPDATE: "true"}), 1, json!({"a": 1}));
        assert_eq!(kept(&same, &wanted, false), None);
        let changed = present(json!({AUTO_UPDATE: "true"}), 2, json!({"a": 2}));
        let back = kept(&changed, &wanted, false).unwrap();
        assert_eq!((&back["spec"], &back["metadata"]["generation"]), (&json!({"a": 1}), &json!(3)));
        let owned = present(json!({AUTO_UPDATE: "false"}), 2, json!({"a": 2}));
        assert_eq!(kept(&owned, &wanted, false), None);
        let forced = kept(&owned, &wanted, true).unwrap();
        assert_eq!(forced["metadata"]["annotations"][AUTO_UPDATE], "true");
        let untold = kept(&present(Value::Null, 2, json!({"a": 2})), &wanted, false).unwrap();
        assert_eq!(
            (&untold["spec"]["a"], &untold["metadata"]["annotations"][AUTO_UPDATE]),
            (&json!(2), &json!("false"))
        );
        let untouched = kept(&present(Value::Null, 1, json!({"a": 2})), &wanted, false).unwrap();
        assert_eq!(untouched["spec"]["a"], 1);
        let lending = present(json!({AUTO_UPDATE: "true"}), 2, json!({"a": 1, "exempt": {"lendablePercent": 5}}));
        assert_eq!(kept(&lending, &wanted, true), None);
    }
}
