//! ComponentStatuses: whether scheduler, controllers and store work, found out when somebody asks. Deprecated since v1.19,
//! and still what `kubectl get cs` shows.

use crate::http::negotiate::{Form, accept};
use crate::http::respond;
use crate::registry::options::ListOptions;
use crate::request::{RequestContext, Response};
use crate::server::Server;
use crate::table;
use gantry_api::core::component_status;
use gantry_api::k8s_openapi::api::core::v1::ComponentStatus;
use gantry_api::kind::{Kind, Resource, Verb};
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The components beside the API server that run now.
#[derive(Clone, Debug, Default)]
pub struct Components(Arc<Mutex<BTreeSet<&'static str>>>);

/// A component that runs until this is dropped, also by a panic.
struct Running {
    of: Components,
    name: &'static str,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.of.0.lock().remove(self.name);
    }
}

impl Components {
    /// Runs a component, which is healthy meanwhile.
    pub async fn run(&self, name: &'static str, component: impl Future<Output = ()>) {
        self.0.lock().insert(name);
        let running = Running { of: self.clone(), name };
        component.await;
        drop(running);
    }

    fn check(&self, name: &'static str) -> Result<(), String> {
        if self.0.lock().contains(name) { Ok(()) } else { Err(format!("{name} is not running")) }
    }
}

/// Every component's name as it has been since there were three processes.
const NAMES: [&str; 3] = ["scheduler", "controller-manager", "etcd-0"];

fn status(server: &Server, name: &'static str) -> ComponentStatus {
    let outcome = match name {
        "etcd-0" if server.registry.is_following() => Ok(()),
        "etcd-0" => Err("watch caches do not follow the store".to_owned()),
        other => server.components.check(other),
    };
    component_status::of(name, outcome.err())
}

/// Answers a get or a list.
///
/// # Errors
/// Where there is no such component, in upstream's words.
pub fn answer(server: &Server, cx: &RequestContext, resource: &dyn Resource, verb: Verb) -> Result<Response, ApiError> {
    let headers = &cx.parts.headers;
    let accepted = accept(headers, &cx.query, true)?;
    let now = server.registry.clock.now();
    if verb == Verb::Get {
        let name = NAMES.into_iter().find(|n| *n == cx.info.name);
        let name = name.ok_or_else(|| ApiError::new(500, "", format!("Component not found: {}", cx.info.name)))?;
        let json = status(server, name).to_json();
        return respond::object(200, json.into(), resource, "", &accepted, headers, now);
    }
    let options = ListOptions::parse(&cx.query)?;
    let mut found: Vec<ComponentStatus> = NAMES.into_iter().map(|name| status(server, name)).collect();
    found.retain(|s| {
        let fields = [("metadata.name", s.metadata.name())];
        options.labels.matches_optional(s.metadata.labels.as_ref()) && options.fields.matches(&fields)
    });
    let document = match accepted.form {
        Form::Object => {
            let item = |s: &ComponentStatus| json!({ "metadata": s.metadata, "conditions": s.conditions });
            let items: Vec<Value> = found.iter().map(item).collect();
            json!({ "kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": items })
        }
        Form::Metadata(version) => {
            let items = each(&found, |json| table::partial(json, version))?;
            json!({ "kind": "PartialObjectMetadataList", "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": {}, "items": items })
        }
        Form::Table(version, include) => {
            let rows = each(&found, |json| table::row(resource, json, version, include, now))?;
            json!({ "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": {},
                "columnDefinitions": table::column_definitions(resource), "rows": rows })
        }
    };
    respond::document(200, document.to_string().into(), &accepted, headers)
}

fn each(all: &[ComponentStatus], shape: impl Fn(&[u8]) -> Result<Vec<u8>, ApiError>) -> Result<Vec<Value>, ApiError> {
    let one = |s: &ComponentStatus| serde_json::from_slice(&shape(&s.to_json())?).map_err(ApiError::internal);
    all.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_component_is_healthy_while_it_runs() {
        let components = Components::default();
        assert_eq!(components.check("scheduler"), Err("scheduler is not running".to_owned()));
        let seen = components.clone();
        components.run("scheduler", async move { assert_eq!(seen.check("scheduler"), Ok(())) }).await;
        let broken = components.clone();
        let ended = tokio::spawn(async move { broken.run("scheduler", async { panic!("broken on purpose") }).await });
        assert!(ended.await.is_err());
        assert!(components.check("scheduler").is_err());
    }
}
