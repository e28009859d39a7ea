//! Flags of audit, with kube-apiserver's names.

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use bytes::Bytes;
use clap::Args;
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_client::{Https, Kubeconfig, Transport};
use gantry_server::audit::batch::{self, BatchConfig, Blocking, Delivery, Outlet, Receiver};
use gantry_server::audit::log::{Format, Log, Rotation};
use gantry_server::audit::modes::{Strict, Truncated};
use gantry_server::audit::policy::Policy;
use gantry_server::audit::{Audit, Sink};
use http::Request;
use http_body_util::BodyExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const MEGABYTE: u64 = 1024 * 1024;
/// How long the receiver of events may take; upstream's limit.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(30);

/// What is recorded of requests, and where.
#[derive(Args, Clone, Debug)]
pub struct AuditOptions {
    /// File with the audit policy; nothing is recorded without one
    #[arg(long, value_name = "FILE")]
    pub audit_policy_file: Option<PathBuf>,
    /// File that events are written to, `-` for standard output
    #[arg(long, value_name = "FILE")]
    pub audit_log_path: Option<PathBuf>,
    /// Days that rotated audit logs are kept, 0 for ever
    #[arg(long, value_name = "DAYS", default_value_t = 366)]
    pub audit_log_maxage: u32,
    /// Rotated audit logs that are kept, 0 for all
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub audit_log_maxbackup: usize,
    /// Megabytes at which the audit log is rotated, 0 for never
    #[arg(long, value_name = "MEGABYTES", default_value_t = 100)]
    pub audit_log_maxsize: u64,
    /// Compress rotated audit logs
    #[arg(long)]
    pub audit_log_compress: bool,
    /// Format of the audit log: json, or legacy for a line of text per event
    #[arg(long, value_name = "FORMAT", default_value = "json", value_parser = format)]
    pub audit_log_format: Format,
    /// Whether requests wait for the log: batch for no, blocking, or blocking-strict, which refuses what cannot be written
    #[arg(long, value_name = "MODE", default_value = "blocking", value_parser = log_mode)]
    pub audit_log_mode: Mode,
    /// Events that may wait to be written; further ones are lost
    #[arg(long, value_name = "N", default_value_t = 10000)]
    pub audit_log_batch_buffer_size: usize,
    /// Events that are written together at most
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub audit_log_batch_max_size: usize,
    /// How long an event may wait for others
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = gantry_kubelet::duration)]
    pub audit_log_batch_max_wait: Duration,
    /// Bound how often events are written
    #[arg(long, value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1,
        default_missing_value = "true")]
    pub audit_log_batch_throttle_enable: bool,
    /// Batches per second on average
    #[arg(long, value_name = "N", default_value_t = 0.0)]
    pub audit_log_batch_throttle_qps: f64,
    /// Batches at once after a pause
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub audit_log_batch_throttle_burst: u32,
    /// Take the objects off events that are too large for the log
    #[arg(long)]
    pub audit_log_truncate_enabled: bool,
    /// Bytes of events that are written together at most; events are written one by one
    #[arg(long, value_name = "BYTES", default_value_t = 10 * 1024 * 1024)]
    pub audit_log_truncate_max_batch_size: i64,
    /// Bytes beyond which an event loses its objects, and is lost if it is too large without them
    #[arg(long, value_name = "BYTES", default_value_t = 100 * 1024)]
    pub audit_log_truncate_max_event_size: i64,
    /// File in the form of a kubeconfig that says where events are sent
    #[arg(long, value_name = "FILE")]
    pub audit_webhook_config_file: Option<PathBuf>,
    /// How long to wait before events that were not taken are sent again
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = gantry_kubelet::duration)]
    pub audit_webhook_initial_backoff: Duration,
    /// Whether requests wait for the webhook: batch for no, blocking, or blocking-strict, which refuses what is not taken
    #[arg(long, value_name = "MODE", default_value = "batch", value_parser = webhook_mode)]
    pub audit_webhook_mode: Mode,
    /// Take the objects off events that are too large for the webhook
    #[arg(long)]
    pub audit_webhook_truncate_enabled: bool,
    /// Bytes of events that are handed over together at most; events are handed over one by one
    #[arg(long, value_name = "BYTES", default_value_t = 10 * 1024 * 1024)]
    pub audit_webhook_truncate_max_batch_size: i64,
    /// Bytes beyond which an event loses its objects, and is lost if it is too large without them
    #[arg(long, value_name = "BYTES", default_value_t = 100 * 1024)]
    pub audit_webhook_truncate_max_event_size: i64,
    /// Events that may wait to be sent; further ones are lost
    #[arg(long, value_name = "N", default_value_t = 10000)]
    pub audit_webhook_batch_buffer_size: usize,
    /// Events that are sent together at most
    #[arg(long, value_name = "N", default_value_t = 400)]
    pub audit_webhook_batch_max_size: usize,
    /// How long an event may wait for others
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = gantry_kubelet::duration)]
    pub audit_webhook_batch_max_wait: Duration,
    /// Bound how often events are sent
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
        default_missing_value = "true")]
    pub audit_webhook_batch_throttle_enable: bool,
    /// Batches per second on average
    #[arg(long, value_name = "N", default_value_t = 10.0)]
    pub audit_webhook_batch_throttle_qps: f64,
    /// Batches at once after a pause
    #[arg(long, value_name = "N", default_value_t = 15)]
    pub audit_webhook_batch_throttle_burst: u32,
}

fn format(text: &str) -> Result<Format, String> {
    match text {
        "json" => Ok(Format::Json),
        "legacy" => Ok(Format::Legacy),
        _ => Err(format!("invalid audit log format {text}, allowed formats are \"legacy,json\"")),
    }
}

/// Whether requests wait until they are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They do not.
    Batch,
    /// They do, and go on without.
    Blocking,
    /// They do, and are refused without.
    BlockingStrict,
}

fn mode(plugin: &str, text: &str) -> Result<Mode, String> {
    match text {
        "batch" => Ok(Mode::Batch),
        "blocking" => Ok(Mode::Blocking),
        "blocking-strict" => Ok(Mode::BlockingStrict),
        _ => Err(format!("invalid audit {plugin} mode {text}, allowed modes are \"batch,blocking,blocking-strict\"")),
    }
}

fn log_mode(text: &str) -> Result<Mode, String> {
    mode("log", text)
}

fn webhook_mode(text: &str) -> Result<Mode, String> {
    mode("webhook", text)
}

/// The limits on the size of events, where they are on.
struct Truncation {
    enabled: bool,
    batch_max: i64,
    event_max: i64,
}

impl Truncation {
    /// The back end with what stands around it.
    fn around(&self, plugin: &str, mode: Mode, sink: Box<dyn Sink>) -> Result<Box<dyn Sink>> {
        let (event_max, batch_max) = (self.event_max, self.batch_max);
        let Some(bytes_max) = usize::try_from(event_max).ok().filter(|max| *max > 0) else {
            bail!("invalid audit truncate {plugin} max event size {event_max}, must be a positive number");
        };
        if batch_max < event_max {
            bail!(
                "invalid audit truncate {plugin} max batch size {batch_max}, must be greater than max event size ({event_max})"
            );
        }
        let sink = if mode == Mode::BlockingStrict { Box::new(Strict(sink)) } else { sink };
        Ok(if self.enabled { Box::new(Truncated::new(sink, bytes_max)) } else { sink })
    }
}

/// What the flags come to.
#[derive(Default)]
pub struct Configured {
    /// For the API server; None where nothing is recorded.
    pub audit: Option<Arc<Audit>>,
    /// The parts that send and write events, to be run beside the server.
    pub deliveries: Vec<Delivery>,
}

impl AuditOptions {
    /// Reads the policy and opens what events go to.
    ///
    /// # Errors
    /// Names the file, and in the policy the field.
    pub fn open(&self, clock: Clock, entropy: &Entropy) -> Result<Configured> {
        let Some(file) = &self.audit_policy_file else {
            let log = self.audit_log_path.as_ref().map(|_| "log");
            let webhook = self.audit_webhook_config_file.as_ref().map(|_| "webhook");
            for backend in log.into_iter().chain(webhook) {
                tracing::warn!("No audit policy file provided, no events will be recorded for {backend} backend");
            }
            return Ok(Configured::default());
        };
        let policy = read_policy(file).context("loading audit policy file")?;
        let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
        let mut deliveries = Vec::new();
        let mut batched = |plugin: &str, flags: &BatchFlags, outlet: Outlet| -> Result<Box<dyn Sink>> {
            let (batches, delivery) = batch::batches(flags.config(plugin)?, outlet);
            deliveries.push(delivery);
            Ok(Box::new(batches))
        };
        if let Some(path) = &self.audit_log_path {
            let rotation = Rotation {
                bytes_max: self.audit_log_maxsize * MEGABYTE,
                backups_max: self.audit_log_maxbackup,
                days_max: self.audit_log_maxage,
                compress: self.audit_log_compress,
            };
            let log = Log::open(path, self.audit_log_format, rotation, clock);
            let log = log.with_context(|| format!("--audit-log-path {}", path.display()))?;
            let truncation = Truncation {
                enabled: self.audit_log_truncate_enabled,
                batch_max: self.audit_log_truncate_max_batch_size,
                event_max: self.audit_log_truncate_max_event_size,
            };
            let sink: Box<dyn Sink> = match self.audit_log_mode {
                Mode::Batch => batched("log", &self.log_batches(), Outlet::Log(Arc::new(log)))?,
                _ => Box::new(log),
            };
            sinks.push(truncation.around("log", self.audit_log_mode, sink)?);
        }
        if let Some(path) = &self.audit_webhook_config_file {
            let what = || format!("--audit-webhook-config-file {}", path.display());
            let receiver = Arc::new(Webhook::open(path).with_context(what)?);
            let truncation = Truncation {
                enabled: self.audit_webhook_truncate_enabled,
                batch_max: self.audit_webhook_truncate_max_batch_size,
                event_max: self.audit_webhook_truncate_max_event_size,
            };
            let (entropy, initial_backoff) = (entropy.clone(), self.audit_webhook_initial_backoff);
            let sink: Box<dyn Sink> = match self.audit_webhook_mode {
                Mode::Batch => {
                    let outlet = Outlet::Webhook { receiver, initial_backoff, entropy };
                    batched("webhook", &self.webhook_batches(), outlet)?
                }
                _ => Box::new(Blocking::new(receiver, entropy, initial_backoff)),
            };
            sinks.push(truncation.around("webhook", self.audit_webhook_mode, sink)?);
        }
        let audit = (!sinks.is_empty()).then(|| Audit::new(policy, sinks, clock));
        Ok(Configured { audit, deliveries })
    }

    fn log_batches(&self) -> BatchFlags {
        BatchFlags {
            buffer_size: self.audit_log_batch_buffer_size,
            size_max: self.audit_log_batch_max_size,
            wait_max: self.audit_log_batch_max_wait,
            throttle: self.audit_log_batch_throttle_enable,
            rate: self.audit_log_batch_throttle_qps,
            burst: self.audit_log_batch_throttle_burst,
        }
    }

    fn webhook_batches(&self) -> BatchFlags {
        BatchFlags {
            buffer_size: self.audit_webhook_batch_buffer_size,
            size_max: self.audit_webhook_batch_max_size,
            wait_max: self.audit_webhook_batch_max_wait,
            throttle: self.audit_webhook_batch_throttle_enable,
            rate: self.audit_webhook_batch_throttle_qps,
            burst: self.audit_webhook_batch_throttle_burst,
        }
    }
}

/// What the flags of a back end's batches say.
struct BatchFlags {
    buffer_size: usize,
    size_max: usize,
    wait_max: Duration,
    throttle: bool,
    rate: f64,
    burst: u32,
}

impl BatchFlags {
    fn config(&self, plugin: &str) -> Result<BatchConfig> {
        let positive = |ok: bool, what: &str, value: &dyn std::fmt::Display| {
            if ok { Ok(()) } else { bail!("invalid audit batch {plugin} {what} {value}, must be a positive number") }
        };
        positive(self.buffer_size > 0, "buffer size", &self.buffer_size)?;
        positive(self.size_max > 0, "max batch size", &self.size_max)?;
        if self.throttle {
            positive(self.rate > 0.0 && self.rate.is_finite(), "throttle QPS", &self.rate)?;
            positive(self.burst > 0, "throttle burst", &self.burst)?;
        }
        Ok(BatchConfig {
            buffer_size: self.buffer_size,
            size_max: self.size_max,
            wait_max: self.wait_max,
            throttle: self.throttle.then_some((self.rate, self.burst)),
        })
    }
}

fn read_policy(file: &Path) -> Result<Policy> {
    let text = std::fs::read(file).with_context(|| format!("failed to read file path {:?}", file.display()))?;
    Policy::parse(&text).map_err(|why| anyhow::anyhow!("{why}: from file {}", file.display()))
}

/// Where events are sent.
struct Webhook {
    transport: Https,
    path: String,
}

impl Webhook {
    fn open(file: &Path) -> Result<Self> {
        let mut config = Kubeconfig::read(file)?.https(None, file.parent().unwrap_or(Path::new(".")))?;
        let uri: http::Uri = config.server.parse().with_context(|| format!("server {:?}", config.server))?;
        // The address is that of the webhook itself, nothing is added to its path.
        let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        if let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) {
            config.server = format!("{scheme}://{authority}");
        }
        Ok(Self { transport: Https::new(&config)?, path })
    }
}

#[async_trait]
impl Receiver for Webhook {
    async fn deliver(&self, events: Bytes) -> Result<(), String> {
        let request = Request::post(&self.path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(http::header::ACCEPT, "application/json, */*")
            .body(events)
            .map_err(|e| e.to_string())?;
        let exchange = async {
            let response = self.transport.send(request).await.map_err(|e| e.to_string())?;
            let status = response.status();
            // Read to its end, so that the connection can be used again.
            response.into_body().collect().await.map_err(|e| e.to_string())?;
            if status.is_success() { Ok(()) } else { Err(format!("the webhook answered {status}")) }
        };
        match tokio::time::timeout(DELIVERY_TIMEOUT, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err("context deadline exceeded".into()),
        }
    }
}
