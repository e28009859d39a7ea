//! An API server over a store in memory, to which requests are made one after the other. Its time stands still but for
//! the waits of requests, which take no time at all.

use bytes::Bytes;
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_api::kind::ResourceInfo;
use gantry_server::authn::UserInfo;
use gantry_server::{Server, ServerConfig};
use gantry_store::MemoryStore;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Request, Uri};
use http_body_util::BodyExt;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

pub(crate) const JSON: &str = "application/json";
/// How long, by the server's time, an answer that does not end is read.
const READ_FOR: Duration = Duration::from_secs(1);

/// An answer.
pub(crate) struct Answer {
    pub(crate) code: u16,
    /// Whether it says of itself that it is JSON.
    pub(crate) is_json: bool,
    /// Whether its end was seen.
    pub(crate) whole: bool,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A server and what drives it.
pub(crate) struct Api {
    runtime: Runtime,
    server: Arc<Server>,
}

fn config() -> ServerConfig {
    let key = KeyPair::generate().expect("a key");
    let parameters = CertificateParams::new(vec!["localhost".into()]).expect("a name");
    let certificate = parameters.self_signed(&key).expect("a certificate").pem();
    ServerConfig {
        secondary_service_cidr: Some("fd00:96::/112".parse().expect("a range")),
        ..ServerConfig::in_process(&certificate, &certificate, &key.serialize_pem(), &key.serialize_pem())
    }
}

impl Api {
    fn start() -> Self {
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
        let server = runtime.block_on(async {
            let clock = Clock::starting_at("2026-01-01T00:00:00Z".parse().expect("a time"));
            let store = Arc::new(MemoryStore::new());
            Server::new(config(), store, clock, Entropy::seeded(1)).await.expect("an empty store is enough")
        });
        let api = Self { runtime, server };
        // A controller makes it in a cluster, and without it there are no pods.
        let account = json!({"metadata": {"name": "default"}}).to_string();
        let made = api.call("POST", "/api/v1/namespaces/default/serviceaccounts", JSON, JSON, account.as_bytes());
        assert_eq!(made.expect("the path is one").code, 201);
        api
    }

    /// Asks as the administrator; None where the address is none.
    pub(crate) fn call(&self, method: &str, uri: &str, accept: &str, media: &str, body: &[u8]) -> Option<Answer> {
        let uri: Uri = uri.parse().ok().filter(|uri: &Uri| uri.path().starts_with('/'))?;
        let request = Request::builder().method(method).uri(uri).header(CONTENT_TYPE, media).header(ACCEPT, accept);
        let request = request.body(Bytes::copy_from_slice(body)).ok()?;
        let user = UserInfo::new("admin", &["system:masters"]);
        Some(self.runtime.block_on(async {
            let mut answer = self.server.call(request, user).await;
            let media = answer.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
            let is_json = media == JSON;
            let (code, mut body, mut whole) = (answer.status().as_u16(), Vec::new(), false);
            while let Ok(frame) = tokio::time::timeout(READ_FOR, answer.body_mut().frame()).await {
                let Some(frame) = frame else {
                    whole = true;
                    break;
                };
                body.extend(frame.expect("nothing breaks in memory").into_data().unwrap_or_default());
            }
            Answer { code, is_json, whole, body }
        }))
    }

    /// As [`Api::call`] with JSON both ways, to an address that is one.
    pub(crate) fn json(&self, method: &str, uri: &str, body: &[u8]) -> Answer {
        self.call(method, uri, JSON, JSON, body).unwrap_or_else(|| panic!("{uri} is no address"))
    }

    /// Deletes an object with whatever would keep it; whether it is gone.
    pub(crate) fn delete(&self, path: &str) -> bool {
        let now = json!({"gracePeriodSeconds": 0, "propagationPolicy": "Background"}).to_string();
        self.json("DELETE", path, now.as_bytes());
        let left = self.json("GET", path, b"");
        if left.code == 404 {
            return true;
        }
        let mut left = left.json();
        if left["kind"] == "Namespace" {
            left["spec"]["finalizers"] = json!([]);
            self.json("PUT", &format!("{path}/finalize"), left.to_string().as_bytes());
        }
        let free = json!({"metadata": {"finalizers": null}}).to_string();
        self.call("PATCH", path, JSON, "application/merge-patch+json", free.as_bytes());
        self.json("DELETE", path, now.as_bytes());
        self.json("GET", path, b"").code == 404
    }
}

/// The path of the objects of a kind, those in the namespace `default` where they live in one.
pub(crate) fn collection(info: &ResourceInfo) -> String {
    let root = if info.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", info.group) };
    let place = if info.namespaced { "/namespaces/default" } else { "" };
    format!("{root}/{}{place}/{}", info.version, info.plural)
}

/// A name as a segment of a path.
pub(crate) fn segment(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => out.push(char::from(byte)),
            other => drop(write!(out, "%{other:02X}")),
        }
    }
    out
}

/// Gives `ask` the thread's server. Where it answers false, something is left behind, and the next one asks a new server.
pub(crate) fn with_api(ask: impl FnOnce(&Api) -> bool) {
    thread_local! {
        static API: RefCell<Option<Api>> = const { RefCell::new(None) };
    }
    API.with_borrow_mut(|kept| {
        // Taken out, so that a panic leaves nothing half asked.
        let api = kept.take().unwrap_or_else(Api::start);
        if ask(&api) {
            *kept = Some(api);
        }
    });
}
