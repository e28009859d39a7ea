//! The in-process transport: components of this process enter the API server's pipeline without a socket, under their
//! own identity.

use async_trait::async_trait;
use bytes::Bytes;
use gantry_client::Client;
use gantry_client::transport::{Body, SharedMemory, Transport, TransportError};
use gantry_server::Server;
use gantry_server::authn::UserInfo;
use gantry_server::watch_cache::Handover;
use http::{Request, Response};
use http_body_util::BodyExt;
use std::sync::Arc;

/// Requests of one identity, straight into the server's pipeline.
pub struct InProcess {
    server: Arc<Server>,
    user: UserInfo,
}

#[async_trait]
impl Transport for InProcess {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let mut response = self.server.call(request, self.user.clone()).await;
        if let Some(handover) = response.extensions_mut().remove::<Arc<Handover>>() {
            response.extensions_mut().insert(SharedMemory { decoded: Arc::new(move |frame| handover.take(frame)) });
        }
        Ok(response.map(|body| {
            body.map_err(|e| TransportError { context: "in-process request".into(), message: e.to_string() }).boxed()
        }))
    }
}

/// A client for the component `name` under `user`.
#[must_use]
pub fn client(server: &Arc<Server>, user: UserInfo, name: &str) -> Client {
    Client::new(Arc::new(InProcess { server: server.clone(), user }), name)
}

/// Gives the components of this process their clients, each under its identity and name.
pub type Connect = Arc<dyn Fn(UserInfo, &str) -> Client + Send + Sync>;

/// Clients straight into `server`.
#[must_use]
pub fn connect(server: &Arc<Server>) -> Connect {
    let server = server.clone();
    Arc::new(move |user, name| client(&server, user, name))
}

/// The identity of a controller: its ServiceAccount in `kube-system`.
#[must_use]
pub fn controller(name: &str) -> UserInfo {
    UserInfo::new(
        &format!("system:serviceaccount:kube-system:{name}"),
        &["system:serviceaccounts", "system:serviceaccounts:kube-system"],
    )
}
