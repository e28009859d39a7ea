//! `serviceaccounts/token`: a token for a ServiceAccount, bound to a pod, node or secret where asked.

use super::{Handler, Services, body};
use crate::admission::rounds::Rounds;
use crate::admission::{Attributes, Operation};
use crate::authn::service_account::{Bound, Claims, KeyError, Keys, NamedObject};
use crate::cluster::{Cluster, resource_of};
use crate::config::ServerConfig;
use crate::request::{HandlerResult, RequestContext};
use async_trait::async_trait;
use bytes::Bytes;
use gantry_api::Time;
use gantry_api::k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestStatus};
use gantry_api::k8s_openapi::api::core::v1::{Node, Pod, Secret, ServiceAccount};
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_api::kind::Kind;
use gantry_api::meta::object::{Meta, split_api_version};
use gantry_api::meta::status::ApiError;

pub(super) struct ServiceAccountToken {
    keys: Keys,
}

impl ServiceAccountToken {
    pub(super) fn new(config: &ServerConfig) -> Result<Self, KeyError> {
        Ok(Self { keys: Keys::from_pem(&config.service_account_key_pem)? })
    }
}

async fn find<K: Kind>(cluster: &Cluster, namespace: &str, name: &str) -> Result<K, ApiError> {
    let found = cluster.get_latest::<K>(namespace, name).await?;
    found.ok_or_else(|| ApiError::not_found(K::INFO.group, K::INFO.plural, name))
}

fn named(meta: &gantry_api::ObjectMeta) -> NamedObject {
    NamedObject { name: meta.name().to_owned(), uid: meta.uid().to_owned() }
}

/// The objects a token is bound to.
async fn bound_to(
    reference: Option<&BoundObjectReference>,
    namespace: &str,
    account: &str,
    cluster: &Cluster,
) -> Result<Bound, ApiError> {
    let mut bound = Bound::default();
    let Some(reference) = reference else { return Ok(bound) };
    let text = |f: &Option<String>| f.clone().unwrap_or_default();
    let (api_version, kind, name) = (text(&reference.api_version), text(&reference.kind), text(&reference.name));
    let (group, version) = split_api_version(&api_version);
    let object = match (group, kind.as_str()) {
        ("", "Pod") => {
            let pod: Pod = find(cluster, namespace, &name).await?;
            let spec = pod.spec.as_ref();
            let runs_as = spec.and_then(|s| s.service_account_name.as_deref()).unwrap_or_default();
            if runs_as != account {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with serviceaccount {runs_as:?}"
                )));
            }
            if let Some(node) = spec.and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty()) {
                let found = cluster.get_latest::<Node>("", node).await?;
                let uid = found.map(|n| n.metadata.uid().to_owned()).unwrap_or_default();
                bound.node = Some(NamedObject { name: node.to_owned(), uid });
            }
            bound.pod.insert(named(&pod.metadata))
        }
        ("", "Secret") => bound.secret.insert(named(&find::<Secret>(cluster, namespace, &name).await?.metadata)),
        ("", "Node") => bound.node.insert(named(&find::<Node>(cluster, "", &name).await?.metadata)),
        _ => {
            return Err(ApiError::bad_request(format!(
                "cannot bind token to object of type {group}/{version}, Kind={kind}"
            )));
        }
    };
    let wanted = text(&reference.uid);
    if !wanted.is_empty() && wanted != object.uid {
        let why = format!(
            "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been \
             deleted and then recreated"
        );
        return Err(ApiError::conflict(group, &kind, &name, &why));
    }
    Ok(bound)
}

#[async_trait]
impl Handler for ServiceAccountToken {
    fn target(&self) -> (&'static str, &'static str, &'static str, &'static str) {
        ("", "v1", "serviceaccounts", "token")
    }

    async fn handle(&self, request: RequestContext, bytes: Bytes, services: &Services) -> HandlerResult {
        body::only_create(&request)?;
        let (mut wanted, mut warnings) = body::decode::<TokenRequest>(&request, &bytes)?;
        let (namespace, name) = (request.info.namespace.clone(), request.info.name.clone());
        let invalid = |why: &str| Err(ApiError::bad_request(why));
        match wanted.metadata.name() {
            "" => wanted.metadata.name = Some(name.clone()),
            given if given != name => return invalid("name in URL does not match name in TokenRequest object"),
            _ => {}
        }
        match wanted.metadata.namespace() {
            "" => wanted.metadata.namespace = Some(namespace.clone()),
            given if given != namespace => {
                return invalid(
                    "the namespace of the provided object does not match the namespace sent on the request",
                );
            }
            _ => {}
        }
        let dry_run = body::dry_run(&request)?;
        let mut attributes = Attributes {
            operation: Operation::Create,
            resource: resource_of::<ServiceAccount>(),
            subresource: "token",
            namespace: &namespace,
            name: &name,
            user: &request.user,
            dry_run,
            object: Some(&mut wanted),
            old_object: None,
            options: serde_json::Value::Null,
            warnings: Vec::new(),
            rounds: Rounds::default(),
            held: Vec::new(),
        };
        services.admission.run(&mut attributes, &services.cluster).await?;
        warnings.append(&mut attributes.warnings);
        let errors = wanted.validate();
        if !errors.is_empty() {
            return Err(ApiError::invalid("authentication.k8s.io", "TokenRequest", "", &errors));
        }
        let cluster = &services.cluster;
        let account: ServiceAccount = find(cluster, &namespace, &name).await?;
        let (asked, own) = (wanted.metadata.uid(), account.metadata.uid());
        if !asked.is_empty() && asked != own {
            let why =
                format!("the UID in the token request ({asked}) does not match the UID of the service account ({own})");
            return Err(ApiError::conflict("authentication.k8s.io", "TokenRequest", &name, &why));
        }
        let spec = wanted.spec.get_or_insert_default();
        let bound = bound_to(spec.bound_object_ref.as_ref(), &namespace, &name, cluster).await?;
        let default_audiences = &services.config.api_audiences;
        let audiences = spec.audiences.get_or_insert_default();
        if audiences.is_empty() {
            audiences.clone_from(default_audiences);
        }
        // Only tokens for the API server are read by clients that may not notice a new one.
        let extend = audiences == default_audiences && bound.pod.is_some();
        let seconds = spec.expiration_seconds.unwrap_or(3600);
        let now = cluster.clock.now();
        let claims = Claims::new(
            &services.config.service_account_issuer,
            &namespace,
            named(&account.metadata),
            bound,
            audiences.clone(),
            seconds,
            extend,
            now,
            &cluster.entropy,
        );
        let token =
            self.keys.sign(&claims).map_err(|e| ApiError::internal(format!("failed to generate token: {e}")))?;
        let end = Timestamp::from_second(now.as_second() + seconds).map_err(ApiError::internal)?;
        wanted.metadata.creation_timestamp = Some(cluster.clock.time());
        wanted.status = Some(TokenRequestStatus { token: Some(token), expiration_timestamp: Some(Time(end)) });
        body::created(&request, &wanted, &warnings)
    }
}
