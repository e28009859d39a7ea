//! What the server passes on to nodes, pods and Services: logs, exec, attach, port-forward and proxying. Answers stream;
//! upgraded connections (SPDY, WebSocket) are tunnelled as they are, because the kubelet speaks both.

mod backend;
mod html;
mod location;
mod log;
mod proxy;
mod streaming;
#[cfg(test)]
mod tests;
mod tls;
mod tunnel;

pub use backend::{KubeletClient, StatsError};
pub use tls::TlsError;
pub(crate) use tunnel::{answer as pass_back, forwarded_request_headers};

use super::{Handler, Services};
use crate::admission::rounds::Rounds;
use crate::admission::{Attributes, Operation};
use crate::config::ServerConfig;
use crate::request::RequestContext;
use gantry_api::kind::Resource;
use gantry_api::meta::status::ApiError;
use serde_json::{Map, Value};
use std::sync::Arc;

/// The handlers of this module.
///
/// # Errors
/// Where the certificates of the configuration cannot be used.
pub fn handlers(config: &ServerConfig) -> Result<Vec<Box<dyn Handler>>, TlsError> {
    let client = Arc::new(KubeletClient::new(config)?);
    Ok(vec![
        Box::new(log::PodLog(client.clone())),
        Box::new(streaming::Streaming { client: client.clone(), kind: streaming::StreamKind::Exec }),
        Box::new(streaming::Streaming { client: client.clone(), kind: streaming::StreamKind::Attach }),
        Box::new(streaming::Streaming { client: client.clone(), kind: streaming::StreamKind::PortForward }),
        Box::new(proxy::Proxy { client: client.clone(), kind: proxy::ProxyKind::Pods }),
        Box::new(proxy::Proxy { client: client.clone(), kind: proxy::ProxyKind::Services }),
        Box::new(proxy::Proxy { client, kind: proxy::ProxyKind::Nodes }),
    ])
}

/// Asks the admission plugins about a connection.
async fn admit_connect(
    request: &RequestContext,
    resource: &'static dyn Resource,
    services: &Services,
) -> Result<(), ApiError> {
    let mut options = Map::new();
    for (k, v) in &request.query {
        let values = options.entry(k.clone()).or_insert_with(|| Value::Array(Vec::new()));
        if let Some(values) = values.as_array_mut() {
            values.push(v.clone().into());
        }
    }
    let namespaced = resource.info().namespaced;
    let mut attributes = Attributes {
        operation: Operation::Connect,
        resource,
        subresource: &request.info.subresource,
        namespace: if namespaced { &request.info.namespace } else { "" },
        name: &request.info.name,
        user: &request.user,
        dry_run: false,
        object: None,
        old_object: None,
        options: Value::Object(options),
        warnings: Vec::new(),
        rounds: Rounds::default(),
        held: Vec::new(),
    };
    services.admission.run(&mut attributes, &services.cluster).await
}
