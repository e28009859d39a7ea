//! From an authorized resource request to the registry or handler that answers it.

use super::negotiate::{self, Accepted, Form, Media, accept};
use super::respond;
use crate::registry::draft::{Body, Change, Encoding, PatchType};
use crate::registry::options::{self, ListOptions, WriteOptions, delete_options};
use crate::registry::read::Listed;
use crate::registry::scale::{ScaleChange, scale_of_entry, table_of};
use crate::registry::write::{Target, Written};
use crate::request::{FromThisProcess, RequestContext, RequestInfo, Response};
use crate::server::Server;
use bytes::Bytes;
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use gantry_api::kind::{Resource, Verb};
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use gantry_schema::{protobuf, strict};
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::sync::Arc;

const PATCH_TYPES: &str = "application/json-patch+json, application/merge-patch+json, \
    application/strategic-merge-patch+json, application/apply-patch+yaml";

/// What a watch in protobuf is.
const PROTOBUF_STREAM: &str = "application/vnd.kubernetes.protobuf;stream=watch";

/// Answers a resource request.
///
/// # Errors
/// What the client is to read.
pub async fn resource(server: &Arc<Server>, mut cx: RequestContext, body: Bytes) -> Result<Response, ApiError> {
    let info = cx.info.clone();
    let resource = server.registry.find(&info.group, &info.version, &info.resource);
    cx.resource = resource;
    // Upstream routes GET alone to what is built in; proxies pass any method on, and custom resources go by the verb.
    let is_head = cx.parts.method == Method::HEAD && resource.is_none_or(|r| r.learned().is_none());
    if let Some(handler) = server.handler(&info.group, &info.version, &info.resource, &info.subresource) {
        if let Some(resource) = resource {
            check_place(&cx, resource)?;
            if resource.info().virtual_only {
                // Reviews have no table and no metadata of their own: a client that wants only those is told so.
                accept(&cx.parts.headers, &cx.query, false)?;
            }
        }
        if is_head && info.subresource != "proxy" {
            return Err(ApiError::method_not_allowed());
        }
        return handler.handle(cx, body, &server.services).await;
    }
    if (info.group.as_str(), info.version.as_str()) == ("metrics.k8s.io", "v1beta1") {
        return crate::metrics_api::answer(server, &cx).await;
    }
    let Some(resource) = resource else {
        return if is_built_in(&info.group) { Err(ApiError::no_such_path()) } else { Ok(respond::page_not_found()) };
    };
    if resource.learned().is_some() && is_elsewhere(&info, resource) {
        return Ok(respond::page_not_found());
    }
    check_place(&cx, resource)?;
    let verbs = match info.subresource.as_str() {
        "" => resource.info().verbs,
        name => {
            let sub = resource.info().subresources.iter().find(|s| s.name == name);
            let absent = || match resource.learned() {
                Some(_) => ApiError::not_found(&info.group, &info.resource, &info.name),
                None => ApiError::no_such_path(),
            };
            sub.filter(|_| info.tail.is_empty()).ok_or_else(absent)?.verbs
        }
    };
    let Some(verb) = verbs.iter().copied().find(|v| v.as_str() == info.verb) else {
        return Err(ApiError::method_not_allowed());
    };
    // Objects are created in collections, and collections are not written as a whole. Of custom resources, upstream
    // does not tell paths with a name from those without.
    let misplaced = match verb {
        Verb::Update | Verb::Patch => info.name.is_empty(),
        Verb::Create => !info.name.is_empty() && info.subresource.is_empty(),
        _ => false,
    };
    if is_head {
        return Err(ApiError::method_not_allowed());
    }
    if misplaced && resource.learned().is_none() {
        return Err(ApiError::method_not_allowed());
    }
    let call = Call { server, cx: &cx, resource };
    let answer = match (verb, info.subresource.as_str()) {
        (Verb::Get | Verb::List, _) if resource.info().virtual_only => {
            crate::component_status::answer(server, &cx, resource, verb)
        }
        (Verb::Get, "scale") => call.get_scale().await,
        (Verb::Update | Verb::Patch, "scale") => call.write_scale(verb, body).await,
        (Verb::Get, _) => call.get().await,
        (Verb::List, _) => call.list().await,
        (Verb::Watch, _) => call.watch().await,
        (Verb::Create | Verb::Update | Verb::Patch, _) => call.write(verb, body).await,
        (Verb::Delete, _) => call.delete(&body).await,
        (Verb::DeleteCollection, _) => call.delete_collection(&body).await,
    };
    let deprecation = resource.info().deprecation;
    if deprecation.is_empty() {
        return answer;
    }
    server.metrics.deprecated(&info);
    // The first to warn of, whatever comes of the request.
    match answer {
        Ok(mut response) => {
            respond::lead_with_warning(&mut response, deprecation.to_owned());
            Ok(response)
        }
        Err(mut refused) => {
            refused.warnings.insert(0, deprecation.to_owned());
            Err(refused)
        }
    }
}

/// Whether a group is part of the API whatever is defined in the cluster; what is not found in it is told by a `Status`.
pub(super) fn is_built_in(group: &str) -> bool {
    gantry_api::kinds::ALL.iter().any(|r| r.info().group == group)
}

/// Whether a path puts a custom resource where it does not live.
fn is_elsewhere(info: &RequestInfo, resource: &dyn Resource) -> bool {
    let across = matches!(info.verb.as_str(), "list" | "watch");
    match resource.info().namespaced {
        true => info.namespace.is_empty() && !across,
        false => !info.namespace.is_empty(),
    }
}

/// Refuses paths that put a resource where it does not live.
fn check_place(cx: &RequestContext, resource: &dyn Resource) -> Result<(), ApiError> {
    let info = &cx.info;
    let place_is_namespace = !info.namespace.is_empty() && info.resource != "namespaces";
    if resource.info().namespaced == place_is_namespace || info.resource == "namespaces" {
        return Ok(());
    }
    // All namespaces: only collections can be read across them.
    if resource.info().namespaced && matches!(info.verb.as_str(), "list" | "watch") && info.subresource.is_empty() {
        return Ok(());
    }
    if resource.info().virtual_only {
        return Ok(());
    }
    if resource.info().namespaced && matches!(info.verb.as_str(), "create" | "deletecollection") {
        return Err(ApiError::method_not_allowed());
    }
    Err(ApiError::no_such_path())
}

struct Call<'a> {
    server: &'a Arc<Server>,
    cx: &'a RequestContext,
    resource: &'static dyn Resource,
}

impl Call<'_> {
    fn accepted(&self) -> Result<Accepted, ApiError> {
        let info = self.resource.info();
        let protobuf = protobuf::speaks(info.group, info.version);
        negotiate::accept_of(&self.cx.parts.headers, &self.cx.query, true, protobuf)
    }

    /// The namespace of the object; namespaces themselves have none.
    fn namespace(&self) -> &str {
        if self.resource.info().namespaced { &self.cx.info.namespace } else { "" }
    }

    async fn get(&self) -> Result<Response, ApiError> {
        let accepted = self.accepted()?;
        accepted.check_kind(self.resource, false)?;
        let version = options::version_of_get(&self.cx.query)?;
        let name = &self.cx.info.name;
        let entry = self.server.registry.get(self.resource, self.namespace(), name, version).await?;
        let now = self.server.registry.clock.now();
        let version = entry.revision.to_string();
        respond::object(200, entry.json(), self.resource, &version, &accepted, &self.cx.parts.headers, now)
    }

    async fn list(&self) -> Result<Response, ApiError> {
        let accepted = self.accepted()?;
        accepted.check_kind(self.resource, true)?;
        let options = ListOptions::parse(&self.cx.query)?;
        match self.server.registry.list(self.resource, self.namespace(), &options, accepted.form).await? {
            Listed::Items(items) => respond::list(*items, &accepted, &self.cx.parts.headers),
            Listed::Expired(status) => {
                let failure = negotiate::accept_failure(&self.cx.parts.headers, &self.cx.query);
                respond::document(410, status.to_string().into(), &failure, &self.cx.parts.headers)
            }
        }
    }

    async fn watch(&self) -> Result<Response, ApiError> {
        let accepted = self.accepted()?;
        if accepted.media == Media::Yaml {
            return Err(negotiate::not_acceptable_stream());
        }
        let mut query = self.cx.query.clone();
        query.push(("watch".into(), "true".into()));
        options::check_version_of_watch(&query, self.resource.info())?;
        let mut options = ListOptions::parse(&query)?;
        options.select_name(&self.cx.info.name)?;
        let body = self.server.registry.watch(self.resource, self.namespace(), &options, accepted.form).await?;
        let is_protobuf = accepted.media == Media::Protobuf;
        let mut body = if is_protobuf { body.into_protobuf() } else { body };
        let is_from_here = self.cx.parts.extensions.get::<FromThisProcess>().is_some();
        let handover = is_from_here.then(|| body.hand_over()).flatten();
        let body = self.server.metrics.long_running(body, &self.cx.info, self.resource);
        let mut response = Response::new(body.boxed());
        handover.and_then(|handover| response.extensions_mut().insert(handover));
        // Upstream says nothing of the shape here.
        let content_type = if is_protobuf { PROTOBUF_STREAM } else { "application/json" };
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        Ok(response)
    }

    fn write_options(&self, verb: Verb, apply: bool) -> Result<WriteOptions, ApiError> {
        let kind = match verb {
            Verb::Create => "CreateOptions",
            Verb::Update => "UpdateOptions",
            _ => "PatchOptions",
        };
        let agent = self.cx.parts.headers.get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        WriteOptions::parse(&self.cx.query, agent, kind, apply)
    }

    fn target<'t>(&'t self, options: &'t WriteOptions, verb: Verb) -> Target<'t> {
        Target {
            resource: self.resource,
            namespace: self.namespace(),
            name: if verb == Verb::Create { "" } else { &self.cx.info.name },
            subresource: &self.cx.info.subresource,
            user: &self.cx.user,
            options,
            authorizer: Some(self.server.services.authorizer.as_ref()),
        }
    }

    fn patch_type(&self) -> Result<PatchType, ApiError> {
        PatchType::from_content_type(&negotiate::media_type(&self.cx.parts.headers))
            .ok_or_else(|| negotiate::unsupported_media_type(PATCH_TYPES))
    }

    async fn write(&self, verb: Verb, body: Bytes) -> Result<Response, ApiError> {
        let accepted = self.accepted()?;
        let headers = &self.cx.parts.headers;
        let (change, apply) = match verb {
            Verb::Patch => {
                let kind = self.patch_type()?;
                (Change::Patch(kind, body), kind == PatchType::Apply)
            }
            _ => {
                let body = Body { bytes: body, encoding: negotiate::body_encoding(headers)? };
                (if verb == Verb::Create { Change::Create(body) } else { Change::Update(body) }, false)
            }
        };
        let options = self.write_options(verb, apply)?;
        let target = self.target(&options, verb);
        let written = self.server.registry.write(&target, &change).await?;
        self.written(&written, &accepted)
    }

    fn written(&self, written: &Written, accepted: &Accepted) -> Result<Response, ApiError> {
        let code = if written.created { 201 } else { 200 };
        let version = written.object.meta().resource_version();
        let now = self.server.registry.clock.now();
        let headers = &self.cx.parts.headers;
        let mut response = respond::object(code, written.json.clone(), self.resource, version, accepted, headers, now)?;
        respond::add_warnings(&mut response, &written.warnings);
        Ok(response)
    }

    async fn get_scale(&self) -> Result<Response, ApiError> {
        let accepted = self.accepted()?;
        let entry = self.server.registry.get(self.resource, self.namespace(), &self.cx.info.name, None).await?;
        let paths = crate::crd::custom(self.resource).and_then(crate::crd::CustomResource::scale);
        let scale = scale_of_entry(&entry, paths)?;
        let json = match accepted.form {
            Form::Object => scale.to_string(),
            Form::Table(version, include) => {
                table_of(&scale, version, include, self.server.registry.clock.now()).to_string()
            }
            Form::Metadata(version) => {
                String::from_utf8_lossy(&crate::table::partial(scale.to_string().as_bytes(), version)?).into_owned()
            }
        };
        respond::document(200, json.into(), &accepted, &self.cx.parts.headers)
    }

    async fn write_scale(&self, verb: Verb, body: Bytes) -> Result<Response, ApiError> {
        let headers = &self.cx.parts.headers;
        let accepted = accept(headers, &self.cx.query, false)?;
        let (change, apply) = if verb == Verb::Patch {
            let kind = self.patch_type()?;
            (ScaleChange::Patch(kind, body), kind == PatchType::Apply)
        } else {
            (ScaleChange::Replace(Body { bytes: body, encoding: negotiate::body_encoding(headers)? }), false)
        };
        let options = self.write_options(verb, apply)?;
        let (scale, written) = self.server.registry.scale(&self.target(&options, verb), change).await?;
        let mut response = respond::document(200, scale.to_string().into(), &accepted, headers)?;
        respond::add_warnings(&mut response, &written.warnings);
        Ok(response)
    }

    fn delete_options(&self, body: &Bytes) -> Result<DeleteOptions, ApiError> {
        if body.is_empty() {
            return delete_options(&self.cx.query, None);
        }
        let decoded = match negotiate::body_encoding(&self.cx.parts.headers)? {
            Encoding::Json => strict::decode_json(body, None),
            Encoding::Yaml => strict::decode_yaml(body, None),
        };
        let cannot = |why: &str| ApiError::bad_request(strict::unrecognized("DeleteOptions", why, body));
        let value = decoded.map_err(|e| cannot(&e.to_string()))?.value;
        if let Some(kind) = value.get("kind").and_then(Value::as_str).filter(|k| !k.is_empty() && *k != "DeleteOptions")
        {
            return Err(ApiError::bad_request(format!("decoded object cannot be converted to DeleteOptions: {kind}")));
        }
        let options: DeleteOptions = serde_json::from_value(value).map_err(|e| cannot(&e.to_string()))?;
        delete_options(&self.cx.query, Some(options))
    }

    async fn delete(&self, body: &Bytes) -> Result<Response, ApiError> {
        let accepted = self.accepted()?;
        let options = self.delete_options(body)?;
        if options::ignores_read_errors(&options) {
            return self.delete_unreadable(&options, accepted).await;
        }
        let (info, name) = (self.resource.info(), &self.cx.info.name);
        let deleted = self
            .server
            .registry
            .delete(self.resource, self.namespace(), name, &options, false, Some(&self.cx.user))
            .await?;
        let headers = &self.cx.parts.headers;
        if !deleted.answers_with_object(self.resource) {
            let meta = deleted.object.meta();
            let mut details = json!({ "name": meta.name(), "kind": info.plural, "uid": meta.uid() });
            if !info.group.is_empty() {
                details["group"] = info.group.into();
            }
            let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details });
            let accepted = Accepted { form: Form::Object, ..accepted };
            let mut response = respond::document(200, status.to_string().into(), &accepted, headers)?;
            respond::add_warnings(&mut response, &deleted.warnings);
            return Ok(response);
        }
        let code = if !deleted.removed && options.orphan_dependents == Some(false) { 202 } else { 200 };
        let json = Bytes::from(deleted.object.to_json());
        let version = deleted.object.meta().resource_version();
        let now = self.server.registry.clock.now();
        let mut response = respond::object(code, json, self.resource, version, &accepted, headers, now)?;
        respond::add_warnings(&mut response, &deleted.warnings);
        Ok(response)
    }

    /// Nobody can say of such an object more than its name.
    async fn delete_unreadable(&self, options: &DeleteOptions, accepted: Accepted) -> Result<Response, ApiError> {
        let (name, dry_run) = (&self.cx.info.name, options::is_dry_run(options));
        let by = (&self.cx.user, self.server.services.authorizer.as_ref());
        self.server.registry.delete_unreadable(self.resource, self.namespace(), name, dry_run, by).await?;
        let details = json!({ "name": name, "kind": self.resource.info().kind });
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details, "code": 200,
        });
        let accepted = Accepted { form: Form::Object, ..accepted };
        respond::document(200, status.to_string().into(), &accepted, &self.cx.parts.headers)
    }

    async fn delete_collection(&self, body: &Bytes) -> Result<Response, ApiError> {
        let accepted = accept(&self.cx.parts.headers, &self.cx.query, false)?;
        let list = ListOptions::parse(&self.cx.query)?;
        let options = self.delete_options(body)?;
        options::check_for_collection(&options)?;
        let registry = &self.server.registry;
        let deleted =
            registry.delete_collection(self.resource, self.namespace(), &list, &options, &self.cx.user).await?;
        let info = self.resource.info();
        let items: Vec<Value> = deleted.iter().map(|d| d.object.to_value()).collect();
        let answer = json!({
            "kind": info.list_kind(), "apiVersion": info.api_version(),
            "metadata": { "resourceVersion": registry.revision().to_string() }, "items": items,
        });
        let mut response = respond::document(200, answer.to_string().into(), &accepted, &self.cx.parts.headers)?;
        let warnings: Vec<String> = deleted.into_iter().flat_map(|d| d.warnings).collect();
        respond::add_warnings(&mut response, &warnings);
        Ok(response)
    }
}
