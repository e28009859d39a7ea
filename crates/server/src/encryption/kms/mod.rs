//! The provider `kms` of version v2: keys that a key management service keeps (KEP-3299).
//!
//! The server makes a seed and has the service encrypt it. What is stored is encrypted with keys derived from the
//! seed, and carries the encrypted seed along. The service is asked to decrypt a seed once per run of the server, to
//! encrypt one when it tells that its key has changed, and every minute how it is. While it does not answer, reads go
//! on; writes go on for [`WRITE_MAX`], so that whoever changed the key can rely on what is written after that.

mod config;
mod envelope;
pub mod metrics;
mod service;
#[cfg(test)]
mod tests;

pub use config::{Config, check};

use super::joined;
use arc_swap::ArcSwapOption;
use envelope::{Envelope, SEED, SEED_BYTES, Source, check_key_id};
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_grpc::{Message, Status};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
pub(crate) use metrics::hashed;
use metrics::{KeyUse, Metrics};
use parking_lot::{Mutex, RwLock};
use service::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, Service, StatusRequest, StatusResponse,
};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a seed may be written with after the service was last seen well.
const WRITE_MAX: Duration = Duration::from_mins(3);
/// How often a service is asked how it is, while it is well and while it is not.
const PROBE_WELL: Duration = Duration::from_mins(1);
const PROBE_ILL: Duration = Duration::from_secs(10);
/// How long what it said is repeated to whoever asks for the server's health.
const ANSWER_WELL: Duration = Duration::from_secs(20);
const ANSWER_ILL: Duration = Duration::from_secs(3);

/// What is said while the service has not been seen well yet.
const NOT_PRIMED: &str = "got unexpected nil transformer";

/// What new values are encrypted with.
struct State {
    source: Arc<Source>,
    /// Without the data.
    envelope: Envelope,
    expires: Timestamp,
    used: KeyUse,
}

/// A decrypted source of keys.
struct Known {
    source: Arc<Source>,
    used: KeyUse,
}

/// The last look at the service.
struct Probe {
    /// Since when and how long its result is repeated.
    last: Option<(Instant, Duration)>,
    result: Result<(), String>,
    /// The version it told first; it may not change.
    version: String,
}

/// A key management service and what it has encrypted.
pub struct Kms {
    name: String,
    prefix: Vec<u8>,
    service: Service,
    clock: Clock,
    entropy: Entropy,
    metrics: Metrics,
    state: ArcSwapOption<State>,
    /// By the envelope they came in, without its data.
    sources: RwLock<HashMap<Vec<u8>, Known>>,
    /// Sources the service did not decrypt: when, and what is said of them.
    failed: Mutex<HashMap<Vec<u8>, (Instant, String)>>,
    probe: tokio::sync::Mutex<Probe>,
    /// Told when the service is well again.
    recovered: Notify,
}

impl Kms {
    /// The provider `name`, whose service listens on `socket`. Nothing is asked yet.
    #[must_use]
    pub fn new(
        name: &str,
        socket: PathBuf,
        timeout: Duration,
        metrics: Metrics,
        clock: Clock,
        entropy: Entropy,
    ) -> Self {
        Self {
            name: name.to_owned(),
            prefix: format!("k8s:enc:kms:v2:{name}:").into_bytes(),
            service: Service::new(name, socket, timeout),
            clock,
            entropy,
            metrics,
            state: ArcSwapOption::empty(),
            sources: RwLock::default(),
            failed: Mutex::default(),
            probe: tokio::sync::Mutex::new(Probe { last: None, result: Ok(()), version: String::new() }),
            recovered: Notify::new(),
        }
    }

    /// What its values begin with.
    #[must_use]
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// What is stored, behind the prefix, of a value at `place`.
    ///
    /// # Errors
    /// Where the service was never seen well, or too long ago.
    pub fn seal(&self, plain: &[u8], place: &[u8]) -> Result<Vec<u8>, String> {
        let state = self.state.load_full().ok_or(NOT_PRIMED)?;
        let now = self.clock.now();
        if now > state.expires {
            return Err(format!(
                "encryptedDEKSource with keyID hash {:?} expired at {} (current time is {})",
                hashed(&state.envelope.key_id),
                rfc3339(state.expires),
                rfc3339(now)
            ));
        }
        let data = state.source.seal(plain, place, &self.entropy)?;
        state.used.count(&self.clock);
        Ok(Envelope { data, ..state.envelope.clone() }.encode_to_vec())
    }

    /// Has the service decrypt what a stored value (behind the prefix) needs, if that is not in memory. What comes of
    /// it, [`Kms::open`] tells.
    pub async fn prepare(&self, stored: &[u8]) {
        // The service may not know its old keys before it is up to date; upstream does not ask it then either.
        let (true, Ok(mut envelope)) = (self.state.load().is_some(), Envelope::read(stored)) else { return };
        let (_, key) = envelope.take_data();
        let lately = |at: Instant| at.elapsed() < ANSWER_ILL;
        if self.sources.read().contains_key(&key) || self.failed.lock().get(&key).is_some_and(|(at, _)| lately(*at)) {
            return;
        }
        let request = DecryptRequest {
            ciphertext: envelope.source,
            uid: self.entropy.uuid(),
            key_id: envelope.key_id.clone(),
            annotations: envelope.annotations,
        };
        let answer: Result<DecryptResponse, Status> = self.service.call("Decrypt", &request, &self.metrics).await;
        let source = answer
            .map_err(|e| format!("failed to decrypt DEK, error: {e}"))
            .and_then(|answer| Source::new(envelope.source_type, answer.plaintext));
        match source {
            Ok(source) => {
                self.failed.lock().remove(&key);
                self.keep_source(key, Arc::new(source), &envelope.key_id);
            }
            Err(why) => {
                tracing::warn!(provider = self.name, error = why, "a stored key cannot be decrypted");
                self.failed.lock().insert(key, (Instant::now(), why));
            }
        }
    }

    fn keep_source(&self, key: Vec<u8>, source: Arc<Source>, key_id: &str) {
        let used = self.metrics.key("from_storage", &self.name, key_id);
        let mut sources = self.sources.write();
        sources.insert(key, Known { source, used });
        self.metrics.sources(&self.name, sources.len());
    }

    /// The value stored at `place`, given behind the prefix, and whether it would be stored with another key now.
    ///
    /// # Errors
    /// What is wrong with it, or why its key is not known.
    pub fn open(&self, stored: &[u8], place: &[u8]) -> Result<(Vec<u8>, bool), String> {
        let mut envelope = Envelope::read(stored)?;
        let state = self.state.load_full().ok_or(NOT_PRIMED)?;
        let (data, key) = envelope.take_data();
        let sources = self.sources.read();
        let Some(known) = sources.get(&key) else {
            let failed = self.failed.lock().get(&key).map(|(_, why)| why.clone());
            return Err(failed.unwrap_or_else(|| "failed to decrypt DEK, error: it was not asked for yet".into()));
        };
        known.used.count(&self.clock);
        let current = &state.envelope;
        let stale = envelope.key_id != current.key_id || envelope.source_type != current.source_type;
        Ok((known.source.open(&data, place)?, stale))
    }

    /// Asks the service how it is, unless it was asked just now, and takes up the key it encrypts with.
    ///
    /// # Errors
    /// What is wrong, as the health of the server shows it.
    pub async fn check(&self) -> Result<(), String> {
        let mut probe = self.probe.lock().await;
        if probe.last.is_some_and(|(at, valid)| at.elapsed() < valid) {
            return probe.result.clone();
        }
        let answer: Result<StatusResponse, Status> =
            self.service.call("Status", &StatusRequest {}, &self.metrics).await;
        let (repeated, told) = match answer {
            Err(error) => {
                let told = format!(
                    "failed to perform status section of the healthz check for KMS Provider {}, error: {error}",
                    self.name
                );
                (Err(error.to_string()), Err(told))
            }
            Ok(status) => {
                let result = self.take_status(&status, &mut probe.version).await;
                (result.clone(), result)
            }
        };
        if told.is_ok() && (probe.last.is_none() || probe.result.is_err()) {
            self.recovered.notify_one();
        }
        let valid = if told.is_ok() { ANSWER_WELL } else { ANSWER_ILL };
        probe.last = Some((Instant::now(), valid));
        probe.result = repeated;
        told
    }

    async fn take_status(&self, status: &StatusResponse, version: &mut String) -> Result<(), String> {
        let mut errors = Vec::new();
        if status.healthz != "ok" {
            errors.push(format!("got unexpected healthz status: {}", status.healthz));
        }
        if matches!(status.version.as_str(), "v2" | "v2beta1") {
            if version.is_empty() {
                version.clone_from(&status.version);
            }
            if *version != status.version {
                errors.push(format!(
                    "KMSv2 API version should not change after the initial status response version {version}, got {}",
                    status.version
                ));
            }
        } else {
            errors.push(format!("expected KMSv2 API version v2, got {}", status.version));
        }
        match check_key_id(&status.key_id) {
            Err((short, why)) => {
                self.metrics.refused(&self.name, short);
                errors.push(format!("got invalid KMSv2 KeyID hash {:?}: {why}", hashed(&status.key_id)));
            }
            Ok(()) => {
                self.metrics.status(&self.name, &status.key_id, &self.clock);
                errors.extend(self.rotate(&status.key_id).await.err());
            }
        }
        match errors.is_empty() {
            true => Ok(()),
            false => Err(format!("kmsv2 Provider {} is not healthy, error: {}", self.name, joined(errors, ""))),
        }
    }

    /// Writes with a new seed where the service encrypts with another key than before; else the seed is good for
    /// longer.
    async fn rotate(&self, key_id: &str) -> Result<(), String> {
        let state = self.state.load_full();
        let longest = SignedDuration::try_from(WRITE_MAX).unwrap_or(SignedDuration::ZERO);
        let expires = self.clock.now().saturating_add(longest).unwrap_or(Timestamp::MAX);
        if let Some(state) = state.as_ref().filter(|s| s.envelope.key_id == key_id) {
            let (source, envelope, used) = (state.source.clone(), state.envelope.clone(), state.used.clone());
            self.state.store(Some(Arc::new(State { source, envelope, expires, used })));
            return Ok(());
        }
        let uid = self.entropy.uuid();
        let made = self.new_seed(&uid).await;
        let made_id = made.as_ref().map(|(_, envelope)| envelope.key_id.clone()).unwrap_or_default();
        match made {
            Ok((source, mut envelope)) if envelope.key_id == key_id => {
                let (source, (_, key)) = (Arc::new(source), envelope.take_data());
                self.keep_source(key, source.clone(), key_id);
                let used = self.metrics.key("to_storage", &self.name, key_id);
                self.state.store(Some(Arc::new(State { source, envelope, expires, used })));
                tracing::info!(
                    provider = self.name,
                    key = hashed(key_id),
                    "values are encrypted with this key from now on"
                );
                Ok(())
            }
            other => {
                let failed = other.err().unwrap_or_else(|| "<nil>".into());
                let (before, until) = match &state {
                    Some(state) => (hashed(&state.envelope.key_id), rfc3339(state.expires)),
                    None => (String::new(), "0001-01-01T00:00:00Z".into()),
                };
                Err(format!(
                    "failed to rotate DEK uid={uid:?}, useSeed=true, errState={}, errGen={failed}, \
                     statusKeyIDHash={:?}, encryptKeyIDHash={:?}, stateKeyIDHash={before:?}, expirationTimestamp={until}",
                    if state.is_some() { "<nil>" } else { NOT_PRIMED },
                    hashed(key_id),
                    hashed(&made_id),
                ))
            }
        }
    }

    /// A seed, and the envelope with the seed as the service has encrypted it.
    async fn new_seed(&self, uid: &str) -> Result<(Source, Envelope), String> {
        let mut seed = vec![0; SEED_BYTES];
        self.entropy.fill(&mut seed);
        let request = EncryptRequest { plaintext: seed.clone(), uid: uid.to_owned() };
        let answer: Result<EncryptResponse, Status> = self.service.call("Encrypt", &request, &self.metrics).await;
        let answer = answer.map_err(|e| format!("failed to encrypt DEK, error: {e}"))?;
        let envelope = Envelope {
            data: Vec::new(),
            key_id: answer.key_id,
            source: answer.ciphertext,
            annotations: answer.annotations,
            source_type: SEED,
        };
        envelope.check()?;
        Ok((Source::new(SEED, seed)?, envelope))
    }

    /// Asks the service at the server's start. That it is not there yet is no failure of the server.
    pub async fn prime(&self) {
        if let Err(error) = self.check().await {
            tracing::warn!(provider = self.name, error, "the key management service is not well; it is asked again");
        }
    }

    /// Waits until the service is to be asked again or is well again, and asks it. Whether it is well.
    pub async fn watch(&self) -> bool {
        let well = self.probe.lock().await.result.is_ok();
        tokio::select! {
            () = self.recovered.notified() => return true,
            () = tokio::time::sleep(if well { PROBE_WELL } else { PROBE_ILL }) => {}
        }
        let result = self.check().await;
        if let Err(error) = &result {
            tracing::warn!(provider = self.name, error, "the key management service is not well");
        }
        result.is_ok()
    }
}

/// With whole seconds, as Go's `time.RFC3339`.
fn rfc3339(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}
