//! HTTP requests of probes and hooks: no certificate checks, no proxies, redirects only to the same host.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{HTTPGetAction, HTTPHeader};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Bytes of an answer that are read.
const MAX_BODY: usize = 10 * 1024;
const MAX_REDIRECTS: usize = 10;

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub https: bool,
    pub host: String,
    pub port: u16,
    pub path: String,
    pub headers: Vec<(String, String)>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub body: String,
}

impl Target {
    /// The target of an action; `address` is the pod's, `port` the resolved one.
    pub(crate) fn new(action: &HTTPGetAction, address: &str, port: u16) -> Self {
        let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(address);
        let path = action.path.as_deref().unwrap_or("/");
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let pair = |h: &HTTPHeader| (h.name.clone(), h.value.clone());
        Target {
            https: action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
            host: host.to_owned(),
            port,
            path,
            headers: action.http_headers.iter().flatten().map(pair).collect(),
        }
    }

    fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// The URL as messages show it.
    pub(crate) fn url(&self) -> String {
        format!("{}://{}{}", if self.https { "https" } else { "http" }, self.authority(), self.path)
    }
}

/// How Go names a failed connection.
pub(crate) fn dial_error(authority: &str, error: &std::io::Error) -> String {
    use std::io::ErrorKind as K;
    let what = match error.kind() {
        K::ConnectionRefused => "connect: connection refused".to_owned(),
        K::HostUnreachable => "connect: no route to host".to_owned(),
        K::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        K::TimedOut => "i/o timeout".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {authority}: {what}")
}

// Probes ask whether a server answers, not who it is: upstream skips verification too.
fn tls() -> Result<Arc<ClientConfig>, String> {
    static CONFIG: OnceLock<Result<Arc<ClientConfig>, String>> = OnceLock::new();
    let make = || gantry_client::https::unverified_tls().map(Arc::new).map_err(|e| e.to_string());
    CONFIG.get_or_init(make).clone()
}

async fn send(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    target: &Target,
) -> Result<(Answer, Option<String>), String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|e| e.to_string())?;
    // The connection's own error shows in the request's.
    let driver = tokio::spawn(async move {
        let _ = connection.await;
    });
    let result = async {
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = target.path.parse::<Uri>().map_err(|e| e.to_string())?;
        let headers = request.headers_mut();
        for (name, value) in &target.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|e| e.to_string())?;
            let value = HeaderValue::from_str(value).map_err(|e| e.to_string())?;
            headers.append(name, value);
        }
        if !headers.contains_key(http::header::HOST) {
            let host = HeaderValue::from_str(&target.authority()).map_err(|e| e.to_string())?;
            headers.insert(http::header::HOST, host);
        }
        for (name, value) in [(http::header::USER_AGENT, "kube-probe/1.37"), (http::header::ACCEPT, "*/*")] {
            if !headers.contains_key(&name) {
                headers.insert(name, HeaderValue::from_static(value));
            }
        }
        headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        let response = sender.send_request(request).await.map_err(|e| match e.is_incomplete_message() {
            true => "EOF".to_owned(),
            false => e.to_string(),
        })?;
        let status = response.status().as_u16();
        let location = response.headers().get(http::header::LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
        // A body that is too long or breaks off does not change the verdict.
        let body = match Limited::new(response.into_body(), MAX_BODY).collect().await {
            Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            Err(_) => String::new(),
        };
        Ok((Answer { status, body }, location))
    }
    .await;
    driver.abort();
    result
}

async fn once(target: &Target) -> Result<(Answer, Option<String>), String> {
    let authority = target.authority();
    let tcp = TcpStream::connect((target.host.as_str(), target.port)).await.map_err(|e| dial_error(&authority, &e))?;
    if !target.https {
        return send(tcp, target).await;
    }
    let name = ServerName::try_from(target.host.clone()).map_err(|e| e.to_string())?;
    let stream = tokio_rustls::TlsConnector::from(tls()?).connect(name, tcp).await.map_err(|e| e.to_string())?;
    send(stream, target).await
}

/// Where a redirect leads, if to the same host; another host counts as an answer.
fn follow(target: &Target, location: &str) -> Option<Target> {
    let uri: Uri = location.parse().ok()?;
    let mut next = target.clone();
    if let Some(host) = uri.host() {
        if host.trim_matches(['[', ']']) != target.host {
            return None;
        }
        next.https = uri.scheme_str() == Some("https");
        next.port = uri.port_u16().unwrap_or(if next.https { 443 } else { 80 });
    }
    next.path = uri.path_and_query().map_or("/".to_owned(), ToString::to_string);
    Some(next)
}

/// Sends a GET. The error is the sentence for the event.
pub(crate) async fn get(target: &Target, timeout: Duration) -> Result<Answer, String> {
    let url = target.url();
    let work = async {
        let mut current = target.clone();
        for _ in 0..=MAX_REDIRECTS {
            let (answer, location) = once(&current).await?;
            let redirect = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
            match location.filter(|_| redirect).and_then(|l| follow(&current, &l)) {
                Some(next) => current = next,
                None => return Ok(answer),
            }
        }
        Err("stopped after 10 redirects".to_owned())
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(format!("Get {url:?}: {error}")),
        Err(_) => {
            Err(format!("Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn server(answers: Vec<&'static str>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = vec![0; 4096];
                let n = stream.read(&mut buffer).await.unwrap();
                requests.push(String::from_utf8_lossy(&buffer[..n]).into_owned());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            requests
        });
        (port, task)
    }

    fn target(port: u16, path: &str) -> Target {
        let action = HTTPGetAction {
            path: Some(path.into()),
            http_headers: Some(vec![HTTPHeader { name: "X-Probe".into(), value: "1".into() }]),
            ..HTTPGetAction::default()
        };
        Target::new(&action, "127.0.0.1", port)
    }

    #[tokio::test]
    async fn sends_headers_and_follows_redirects_on_the_same_host() {
        let (port, task) = server(vec![
            "HTTP/1.1 302 Found\r\nLocation: /next?a=1\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ])
        .await;
        let answer = get(&target(port, "healthz"), Duration::from_secs(5)).await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
        let requests = task.await.unwrap();
        assert!(requests[0].starts_with("GET /healthz HTTP/1.1\r\n"), "{}", requests[0]);
        let lower = requests[0].to_lowercase();
        assert!(lower.contains("user-agent: kube-probe/1.37") && lower.contains("x-probe: 1"), "{lower}");
        assert!(requests[1].starts_with("GET /next?a=1 "));
    }

    #[tokio::test]
    async fn a_redirect_elsewhere_is_the_answer() {
        let (port, _task) =
            server(vec!["HTTP/1.1 301 Moved\r\nLocation: http://192.0.2.9/\r\nContent-Length: 0\r\n\r\n"]).await;
        assert_eq!(get(&target(port, "/"), Duration::from_secs(5)).await.unwrap().status, 301);
    }

    #[tokio::test]
    async fn failures_read_as_upstreams() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let slow = get(&target(port, "/"), Duration::from_millis(50)).await.unwrap_err();
        assert!(slow.ends_with("context deadline exceeded (Client.Timeout exceeded while awaiting headers)"), "{slow}");
        drop(listener);
        let refused = get(&target(port, "/"), Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(
            refused,
            format!("Get \"http://127.0.0.1:{port}/\": dial tcp 127.0.0.1:{port}: connect: connection refused")
        );
    }
}
