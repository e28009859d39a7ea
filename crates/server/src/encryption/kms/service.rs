//! What is asked of a key management service: `v2.KeyManagementService`, over its socket.

use super::metrics::Metrics;
use gantry_grpc::{Channel, Message, Status, Target};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

#[derive(Clone, PartialEq, prost::Message)]
pub struct StatusRequest {}

/// How the service is, and which key it encrypts with now.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatusResponse {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(string, tag = "2")]
    pub healthz: String,
    #[prost(string, tag = "3")]
    pub key_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DecryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub key_id: String,
    #[prost(btree_map = "string, bytes", tag = "4")]
    pub annotations: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DecryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub plaintext: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct EncryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub plaintext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub uid: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct EncryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub key_id: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub annotations: BTreeMap<String, Vec<u8>>,
}

/// A service at its socket.
pub struct Service {
    provider: String,
    channel: Channel,
    timeout: Duration,
}

impl Service {
    /// The service that listens on `socket` (`@name` in the abstract namespace); it need not be there yet.
    pub fn new(provider: &str, socket: PathBuf, timeout: Duration) -> Self {
        let channel = Channel::new(Target::Unix(socket)).user_agent("kube-apiserver").wait_for_ready();
        Self { provider: provider.to_owned(), channel, timeout }
    }

    /// Calls a method, and measures it.
    pub async fn call<Q: Message, R: Message + Default>(
        &self,
        method: &str,
        request: &Q,
        metrics: &Metrics,
    ) -> Result<R, Status> {
        let method = format!("/v2.KeyManagementService/{method}");
        let began = Instant::now();
        let result = self.channel.unary(&method, request, self.timeout).await;
        metrics.operation(&self.provider, &method, began.elapsed(), result.as_ref().err());
        result
    }
}
