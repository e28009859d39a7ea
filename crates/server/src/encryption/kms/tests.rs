//! The provider against a service in the same process. Time is not paused, since what comes over sockets would seem
//! late; the provider is made older instead.

use super::*;
use async_trait::async_trait;
use bytes::Bytes;
use gantry_grpc::{Answer, Code, serve};
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

/// "Encrypts" by turning bits over, which only the test's needs justify.
#[derive(Default)]
struct Plugin {
    key_id: Mutex<String>,
    healthz: Mutex<String>,
    /// The key of encryptions, where it is another than the one the status tells.
    other_key: Mutex<Option<String>>,
    decryptions: AtomicU32,
    asked: AtomicU32,
}

impl Plugin {
    fn new() -> Arc<Self> {
        Arc::new(Self { key_id: Mutex::new("one".into()), healthz: Mutex::new("ok".into()), ..Self::default() })
    }
}

#[async_trait]
impl gantry_grpc::Service for Plugin {
    async fn call(&self, method: &str, request: Bytes) -> Result<Answer, Status> {
        let turned = |bytes: &[u8]| bytes.iter().map(|b| !b).collect::<Vec<u8>>();
        let key_id = self.key_id.lock().clone();
        let bad = |e: &dyn std::fmt::Display| Status::new(Code::INTERNAL, e.to_string());
        match method.rsplit('/').next().unwrap_or_default() {
            "Status" => {
                self.asked.fetch_add(1, Ordering::Relaxed);
                Ok(Answer::of(&StatusResponse { version: "v2".into(), healthz: self.healthz.lock().clone(), key_id }))
            }
            "Encrypt" => {
                let request = EncryptRequest::decode(request).map_err(|e| bad(&e))?;
                let key_id = self.other_key.lock().clone().unwrap_or(key_id);
                let annotations = std::collections::BTreeMap::from([("made.example.com".into(), vec![1])]);
                Ok(Answer::of(&EncryptResponse { ciphertext: turned(&request.plaintext), key_id, annotations }))
            }
            "Decrypt" => {
                self.decryptions.fetch_add(1, Ordering::Relaxed);
                let request = DecryptRequest::decode(request).map_err(|e| bad(&e))?;
                if request.key_id == "lost" || request.annotations.is_empty() {
                    return Err(Status::new(Code::UNKNOWN, "no such key"));
                }
                Ok(Answer::of(&DecryptResponse { plaintext: turned(&request.ciphertext) }))
            }
            _ => Err(Status::new(Code::UNIMPLEMENTED, method)),
        }
    }
}

/// Makes all that the provider remembers older.
async fn later(kms: &Kms, by: Duration) {
    let earlier = |at: Instant| at.checked_sub(by).expect("the machine has been up for minutes");
    let mut probe = kms.probe.lock().await;
    probe.last = probe.last.map(|(at, valid)| (earlier(at), valid));
    for (at, _) in kms.failed.lock().values_mut() {
        *at = earlier(*at);
    }
    if let Some(state) = kms.state.load_full() {
        let (source, envelope, used) = (state.source.clone(), state.envelope.clone(), state.used.clone());
        let expires = state.expires - SignedDuration::try_from(by).unwrap();
        kms.state.store(Some(Arc::new(State { source, envelope, expires, used })));
    }
}

struct Bench {
    directory: tempfile::TempDir,
    plugin: Arc<Plugin>,
    stop: CancellationToken,
    clock: Clock,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::starting_at(Timestamp::from_second(1_800_000_000).unwrap());
        let mut bench = Self { directory, plugin: Plugin::new(), stop: CancellationToken::new(), clock };
        bench.up();
        bench
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("kms.sock")
    }

    fn up(&mut self) {
        self.stop = CancellationToken::new();
        let listener = UnixListener::bind(self.socket()).unwrap();
        tokio::spawn(serve(listener, self.plugin.clone(), self.stop.clone()));
    }

    async fn down(&self) {
        self.stop.cancel();
        while std::os::unix::net::UnixStream::connect(self.socket()).is_ok() {
            tokio::task::yield_now().await;
        }
        std::fs::remove_file(self.socket()).unwrap();
    }

    /// Another run of the server.
    fn provider(&self) -> Kms {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let entropy = Entropy::seeded(RUNS.fetch_add(1, Ordering::Relaxed).into());
        let timeout = Duration::from_secs(3);
        Kms::new("k", self.socket(), timeout, Metrics::default(), self.clock, entropy)
    }
}

#[tokio::test]
async fn what_is_written_is_read_by_the_next_run_which_asks_once() {
    let bench = Bench::new();
    let first = bench.provider();
    assert_eq!(first.seal(b"x", b"/a").unwrap_err(), NOT_PRIMED);
    first.check().await.unwrap();
    let sealed = first.seal(b"plain", b"/a").unwrap();
    let more = first.seal(b"more", b"/b").unwrap();
    assert_eq!(first.open(&sealed, b"/a").unwrap(), (b"plain".to_vec(), false));
    assert!(first.open(&sealed, b"/b").is_err(), "the place is authenticated");
    assert_eq!(bench.plugin.decryptions.load(Ordering::Relaxed), 0);

    let second = bench.provider();
    second.prepare(&sealed).await;
    assert_eq!(second.open(&sealed, b"/a").unwrap_err(), NOT_PRIMED);
    second.check().await.unwrap();
    for (place, sealed, plain) in [(&b"/a"[..], &sealed, &b"plain"[..]), (b"/b", &more, b"more")] {
        second.prepare(sealed).await;
        assert_eq!(second.open(sealed, place).unwrap(), (plain.to_vec(), false));
    }
    assert_eq!(bench.plugin.decryptions.load(Ordering::Relaxed), 1);
    let mut registry = prometheus_client::registry::Registry::default();
    second.metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let hash = hashed("one");
    for wanted in [
        format!("apiserver_envelope_encryption_key_id_hash_total{{transformation_type=\"from_storage\",provider_name=\"k\",key_id_hash=\"{hash}\",apiserver_id_hash=\"\"}} 2"),
        "apiserver_envelope_encryption_dek_source_cache_size{provider_name=\"k\"} 2".into(),
        "kms_operations_latency_seconds_count{provider_name=\"k\",method_name=\"/v2.KeyManagementService/Decrypt\",grpc_status_code=\"OK\"} 1".into(),
        format!("key_id_hash_status_last_timestamp_seconds{{provider_name=\"k\",key_id_hash=\"{hash}\",apiserver_id_hash=\"\"}} 18000000"),
    ] {
        assert!(text.contains(&wanted), "{wanted}\n{text}");
    }
}

#[tokio::test]
async fn a_new_key_is_taken_up_and_a_lost_one_is_told() {
    let bench = Bench::new();
    let kms = bench.provider();
    kms.check().await.unwrap();
    let old = kms.seal(b"plain", b"/a").unwrap();
    *bench.plugin.key_id.lock() = "two".into();
    kms.check().await.unwrap();
    assert!(!kms.open(&old, b"/a").unwrap().1, "it was asked less than 20 s ago");
    later(&kms, ANSWER_WELL).await;
    kms.check().await.unwrap();
    assert_eq!(kms.open(&old, b"/a").unwrap(), (b"plain".to_vec(), true));
    let new = kms.seal(b"plain", b"/a").unwrap();
    assert_eq!(kms.open(&new, b"/a").unwrap(), (b"plain".to_vec(), false));

    // A key the status does not tell is not written with.
    *bench.plugin.key_id.lock() = "three".into();
    *bench.plugin.other_key.lock() = Some("lost".into());
    later(&kms, ANSWER_WELL).await;
    let error = kms.check().await.unwrap_err();
    assert!(error.starts_with("kmsv2 Provider k is not healthy, error: failed to rotate DEK uid=\""), "{error}");
    let hashes = format!(
        "statusKeyIDHash={:?}, encryptKeyIDHash={:?}, stateKeyIDHash={:?}",
        hashed("three"),
        hashed("lost"),
        hashed("two")
    );
    assert!(error.contains("useSeed=true, errState=<nil>, errGen=<nil>") && error.contains(&hashes), "{error}");
    assert!(!kms.open(&kms.seal(b"x", b"/a").unwrap(), b"/a").unwrap().1, "written with the key before");
    *bench.plugin.key_id.lock() = "lost".into();
    later(&kms, ANSWER_ILL).await;
    kms.check().await.unwrap();
    let lost = kms.seal(b"plain", b"/a").unwrap();
    assert!(kms.open(&lost, b"/a").is_ok(), "this run knows it");
    let next = bench.provider();
    next.check().await.unwrap();
    next.prepare(&lost).await;
    let why = "failed to decrypt DEK, error: rpc error: code = Unknown desc = no such key";
    assert_eq!(next.open(&lost, b"/a").unwrap_err(), why);
    let asked = bench.plugin.decryptions.load(Ordering::Relaxed);
    next.prepare(&lost).await;
    assert_eq!(bench.plugin.decryptions.load(Ordering::Relaxed), asked, "it is not asked again at once");
    later(&next, ANSWER_ILL).await;
    next.prepare(&lost).await;
    assert_eq!(bench.plugin.decryptions.load(Ordering::Relaxed), asked + 1);
}

#[tokio::test]
async fn without_the_service_reads_go_on_and_writes_for_three_minutes() {
    let mut bench = Bench::new();
    let kms = bench.provider();
    kms.check().await.unwrap();
    let old = kms.seal(b"plain", b"/a").unwrap();
    bench.down().await;
    later(&kms, Duration::from_secs(170)).await;
    let error = kms.check().await.unwrap_err();
    let told = "failed to perform status section of the healthz check for KMS Provider k, error: rpc error: code = \
                DeadlineExceeded desc = ";
    assert!(error.starts_with(told), "{error}");
    let again = kms.check().await.unwrap_err();
    assert!(again.starts_with("rpc error: code = DeadlineExceeded"), "what was said is repeated: {again}");
    kms.seal(b"plain", b"/b").unwrap();
    later(&kms, Duration::from_secs(20)).await;
    let error = kms.seal(b"plain", b"/b").unwrap_err();
    let expired = format!("encryptedDEKSource with keyID hash {:?} expired at 2027-01-15T07:5", hashed("one"));
    assert!(error.starts_with(&expired) && error.contains("Z (current time is 2027-"), "{error}");
    assert_eq!(kms.open(&old, b"/a").unwrap().0, b"plain");
    bench.up();
    later(&kms, ANSWER_ILL).await;
    kms.check().await.unwrap();
    assert!(kms.watch().await, "whoever waits for it is told");
    kms.seal(b"plain", b"/b").unwrap();
    *bench.plugin.healthz.lock() = "tired".into();
    later(&kms, ANSWER_WELL).await;
    let error = kms.check().await.unwrap_err();
    assert_eq!(error, "kmsv2 Provider k is not healthy, error: got unexpected healthz status: tired");
}
