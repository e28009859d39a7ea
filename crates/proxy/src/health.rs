//! Health checks for load balancers: a port per Service that tells whether this node has endpoints of it.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv6Addr,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinHandle,
};
use tracing::{debug, warn};

use crate::compile::HealthCheck;

/// How many checks one port answers at a time.
const CONCURRENT: usize = 64;
/// The longest request head that is read.
const LONGEST_REQUEST: usize = 8 * 1024;
/// `EAFNOSUPPORT`: the machine has no IPv6.
const NO_IPV6: i32 = 97;
/// How long a checker may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);

/// The servers, by Service.
#[derive(Default)]
pub(crate) struct HealthServers {
    servers: HashMap<Arc<str>, Server>,
}

struct Server {
    port: u16,
    endpoints: Arc<Mutex<usize>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HealthServers {
    /// Brings the servers to what is wanted. A port that cannot be opened is logged and tried again with the next
    /// change of its Service.
    pub(crate) async fn update(&mut self, changes: BTreeMap<Arc<str>, Option<HealthCheck>>) {
        for (service, wanted) in changes {
            let Some(wanted) = wanted else {
                self.servers.remove(&service);
                continue;
            };
            if let Some(server) = self.servers.get(&service).filter(|s| s.port == wanted.port) {
                *server.endpoints.lock() = wanted.local_endpoints;
                continue;
            }
            self.servers.remove(&service);
            match listen(wanted.port).await {
                Ok(listener) => {
                    let endpoints = Arc::new(Mutex::new(wanted.local_endpoints));
                    let task = tokio::spawn(serve(listener, service.clone(), endpoints.clone()));
                    self.servers.insert(service, Server { port: wanted.port, endpoints, task });
                }
                Err(error) => {
                    warn!(service = %service, port = wanted.port, %error, "cannot open health check node port");
                }
            }
        }
    }
}

async fn listen(port: u16) -> std::io::Result<TcpListener> {
    // The unspecified IPv6 address takes IPv4 as well; some machines have no IPv6.
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(error) if error.raw_os_error() == Some(NO_IPV6) => TcpListener::bind(("0.0.0.0", port)).await,
        other => other,
    }
}

async fn serve(listener: TcpListener, service: Arc<str>, endpoints: Arc<Mutex<usize>>) {
    let slots = Arc::new(Semaphore::new(CONCURRENT));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (service, endpoints) = (service.clone(), *endpoints.lock());
                tokio::spawn(async move {
                    let done = tokio::time::timeout(PATIENCE, answer(stream, &service, endpoints)).await;
                    if !matches!(done, Ok(Ok(()))) {
                        debug!(service = %service, "health check was not heard out");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                warn!(service = %service, %error, "health check port");
                // Out of descriptors, most likely: give them time to come back.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream, service: &str, endpoints: usize) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < LONGEST_REQUEST {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    stream.write_all(response(service, endpoints).as_bytes()).await?;
    stream.shutdown().await
}

fn response(service: &str, endpoints: usize) -> String {
    let (namespace, name) = service.split_once('/').unwrap_or(("", service));
    let status = if endpoints == 0 { "503 Service Unavailable" } else { "200 OK" };
    // Names are DNS labels: nothing in them needs escaping.
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\
         \"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": true\n}}"
    );
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {endpoints}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(port: u16) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("connect");
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("write");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("read");
        text
    }

    #[tokio::test]
    async fn tells_whether_endpoints_are_here_and_goes_with_its_service() {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = free.local_addr().expect("address").port();
        drop(free);
        let mut servers = HealthServers::default();
        let service: Arc<str> = "ns/web".into();
        let mut set = async |check| servers.update(BTreeMap::from([(service.clone(), check)])).await;
        set(Some(HealthCheck { port, local_endpoints: 0 })).await;
        assert!(ask(port).await.starts_with("HTTP/1.1 503"));
        set(Some(HealthCheck { port, local_endpoints: 2 })).await;
        let text = ask(port).await;
        assert!(text.starts_with("HTTP/1.1 200 OK") && text.contains("\"localEndpoints\": 2"), "{text}");
        assert!(text.contains("\"namespace\": \"ns\"") && text.contains("\"name\": \"web\""), "{text}");
        set(None).await;
        tokio::task::yield_now().await;
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
    }
}
