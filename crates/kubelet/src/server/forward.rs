//! `/portForward`: connections into a pod's network namespace.

use super::container_logs::find_pod;
use super::request::Query;
use super::streaming::{rejected, switch};
use super::{Body, Failure, Server};
use crate::pod::names;
use async_trait::async_trait;
use gantry_container::runtime::SandboxState;
use gantry_network::in_network_namespace;
use gantry_stream::port_forward::{self, Dialer};
use gantry_stream::{BoxRead, BoxWrite};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// How long a connection inside the pod may take; it is local.
const CONNECT: Duration = Duration::from_secs(5);

struct IntoPod {
    /// `None` for pods in the host's network.
    namespace: Option<PathBuf>,
    pod: String,
    uid: String,
}

fn connect_in(namespace: &std::path::Path, address: SocketAddr) -> io::Result<std::net::TcpStream> {
    let file = std::fs::File::open(namespace)?;
    // A socket belongs to the namespace it was made in, whoever uses it later.
    in_network_namespace(&file, move || std::net::TcpStream::connect_timeout(&address, CONNECT))
}

async fn connect(namespace: Option<PathBuf>, address: SocketAddr) -> io::Result<TcpStream> {
    let Some(namespace) = namespace else {
        return tokio::time::timeout(CONNECT, TcpStream::connect(address)).await?;
    };
    let stream =
        tokio::task::spawn_blocking(move || connect_in(&namespace, address)).await.map_err(io::Error::other)??;
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

impl IntoPod {
    async fn dial(&self, port: u16) -> Result<TcpStream, String> {
        let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let first = match connect(self.namespace.clone(), v4).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let v6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port);
        match connect(self.namespace.clone(), v6).await {
            Ok(stream) => Ok(stream),
            Err(second) => {
                let place = self.namespace.as_ref().map(|n| format!(" inside namespace {:?}", n.display().to_string()));
                let first = crate::probe::http::dial_error(&v4.to_string(), &first).replacen("tcp ", "tcp4 ", 1);
                let second = crate::probe::http::dial_error(&v6.to_string(), &second).replacen("tcp ", "tcp6 ", 1);
                Err(format!(
                    "failed to connect to localhost:{port}{}, IPv4: {first} IPv6 {second} ",
                    place.unwrap_or_default()
                ))
            }
        }
    }
}

#[async_trait]
impl Dialer for IntoPod {
    async fn forward(&self, port: u16, mut from: BoxRead, mut to: BoxWrite) -> Result<(), String> {
        let failed =
            |error: String| format!("error forwarding port {port} to pod {}, uid {}: {error}", self.pod, self.uid);
        let stream = match self.dial(port).await {
            Ok(stream) => stream,
            Err(error) => {
                // The client waits for the end of the data stream as well.
                let _ = to.shutdown().await;
                return Err(failed(error));
            }
        };
        let (mut read, mut write) = stream.into_split();
        let outward = async {
            let copied = tokio::io::copy(&mut from, &mut write).await;
            // The pod's side may have closed already.
            let _ = write.shutdown().await;
            copied
        };
        let inward = async {
            let copied = tokio::io::copy(&mut read, &mut to).await;
            let _ = to.shutdown().await;
            copied
        };
        tokio::pin!(outward, inward);
        // When the pod has said everything, the client's side is of no more use.
        let result = tokio::select! {
            done = &mut inward => done.map(drop),
            sent = &mut outward => match sent {
                Ok(_) => inward.await.map(drop),
                Err(error) => Err(error),
            },
        };
        result.map_err(|e| failed(e.to_string()))
    }
}

pub(crate) async fn serve(
    server: &Arc<Server>,
    namespace: &str,
    name: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, Failure> {
    let mut ports = Vec::new();
    for text in query.all("port").chain(query.all("ports")).flat_map(|p| p.split(',')).filter(|p| !p.is_empty()) {
        let port: u16 = text
            .parse()
            .ok()
            .filter(|p| *p > 0)
            .ok_or_else(|| Failure::new(StatusCode::BAD_REQUEST, format!("unable to parse {text:?} as a port")))?;
        ports.push(port);
    }
    let pod = find_pod(server, namespace, name)?;
    let sandboxes = server.agent.runtime.list_sandboxes().await;
    let sandboxes = sandboxes.map_err(|e| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    let uid = names::uid(&pod);
    let sandbox = sandboxes
        .into_iter()
        .find(|s| s.state == SandboxState::Ready && s.labels.get(names::POD_UID).is_some_and(|u| u == uid));
    let Some(sandbox) = sandbox else {
        let message = format!("pod not found ({:?})", names::pod_description(&pod));
        return Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, message));
    };
    let (parts, body) = request.into_parts();
    let upgrade = match port_forward::negotiate(&parts, ports) {
        Ok(upgrade) => upgrade,
        Err(rejection) => return Ok(rejected(&rejection)),
    };
    let dialer =
        Arc::new(IntoPod { namespace: sandbox.netns_path, pod: format!("{name}_{namespace}"), uid: uid.to_owned() });
    let response = upgrade.response();
    Ok(switch(Request::from_parts(parts, body), response, server, move |io| async move {
        if let Err(error) = upgrade.serve(io, dialer).await {
            tracing::debug!(%error, "port-forward ended");
        }
    }))
}
