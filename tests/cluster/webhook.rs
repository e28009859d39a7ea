//! A webhook of the test's own: HTTPS at 127.0.0.1 inside the cluster's network namespace, answered by a function.

use super::https::Https;
use super::{Cluster, api};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// Answers a request by its path and body.
pub type Answer = dyn Fn(&str, &Value) -> Value + Send + Sync;

/// A webhook that is there until the test ends.
pub struct Webhook {
    https: Https,
    /// The authority of its certificate, PEM in base64.
    pub ca: String,
    seen: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Webhook {
    /// Starts one whose certificate is for 127.0.0.1 and these names.
    pub fn start(cluster: &Cluster, names: &[&str], answer: Arc<Answer>) -> Self {
        let seen: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let kept = seen.clone();
        let https = Https::listen(cluster, "0.0.0.0:0", names, |_| {
            Arc::new(move |target: &str, body: &Value| {
                let path = target.split('?').next().unwrap_or_default();
                kept.lock().unwrap().push((path.to_owned(), body.clone()));
                answer(path, body)
            })
        });
        Self { ca: api::base64(https.ca_pem.as_bytes()), https, seen }
    }

    /// The `clientConfig` of a path.
    pub fn at(&self, path: &str) -> Value {
        json!({"url": self.https.url(path), "caBundle": self.ca})
    }

    /// The port it listens at, on every address.
    pub fn port(&self) -> u16 {
        self.https.port()
    }

    /// The bodies that came to a path.
    pub fn seen(&self, path: &str) -> Vec<Value> {
        self.seen.lock().unwrap().iter().filter(|(p, _)| p == path).map(|(_, b)| b.clone()).collect()
    }
}
