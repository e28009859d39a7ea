//! Flags of audit, with kube-apiserver's names.

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use bytes::Bytes;
use clap::Args;
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_client::{Https, Kubeconfig, Transport};
use gantry_server::audit::batch::{self, BatchConfig, Delivery, Receiver};
use gantry_server::audit::log::{Format, Log, Rotation};
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
    /// File in the form of a kubeconfig that says where events are sent
    #[arg(long, value_name = "FILE")]
    pub audit_webhook_config_file: Option<PathBuf>,
    /// How long to wait before events that were not taken are sent again
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = gantry_kubelet::duration)]
    pub audit_webhook_initial_backoff: Duration,
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

/// What the flags come to.
#[derive(Default)]
pub struct Configured {
    /// For the API server; None where nothing is recorded.
    pub audit: Option<Arc<Audit>>,
    /// The part that sends events, to be run beside the server.
    pub delivery: Option<Delivery>,
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
        if let Some(path) = &self.audit_log_path {
            let rotation = Rotation {
                bytes_max: self.audit_log_maxsize * MEGABYTE,
                backups_max: self.audit_log_maxbackup,
                days_max: self.audit_log_maxage,
                compress: self.audit_log_compress,
            };
            let log = Log::open(path, self.audit_log_format, rotation, clock);
            sinks.push(Box::new(log.with_context(|| format!("--audit-log-path {}", path.display()))?));
        }
        let mut delivery = None;
        if let Some(path) = &self.audit_webhook_config_file {
            let what = || format!("--audit-webhook-config-file {}", path.display());
            let receiver = Arc::new(Webhook::open(path).with_context(what)?);
            let (batches, deliver) = batch::batches(self.batch_config()?, receiver, entropy.clone());
            sinks.push(Box::new(batches));
            delivery = Some(deliver);
        }
        let audit = (!sinks.is_empty()).then(|| Audit::new(policy, sinks, clock));
        Ok(Configured { audit, delivery })
    }

    fn batch_config(&self) -> Result<BatchConfig> {
        let positive = |ok: bool, what: &str, value: &dyn std::fmt::Display| {
            if ok { Ok(()) } else { bail!("invalid audit batch webhook {what} {value}, must be a positive number") }
        };
        let (buffer_size, size_max) = (self.audit_webhook_batch_buffer_size, self.audit_webhook_batch_max_size);
        positive(buffer_size > 0, "buffer size", &buffer_size)?;
        positive(size_max > 0, "max batch size", &size_max)?;
        let (rate, burst) = (self.audit_webhook_batch_throttle_qps, self.audit_webhook_batch_throttle_burst);
        let throttle = self.audit_webhook_batch_throttle_enable.then_some((rate, burst));
        if throttle.is_some() {
            positive(rate > 0.0 && rate.is_finite(), "throttle QPS", &rate)?;
            positive(burst > 0, "throttle burst", &burst)?;
        }
        Ok(BatchConfig {
            buffer_size,
            size_max,
            wait_max: self.audit_webhook_batch_max_wait,
            throttle,
            initial_backoff: self.audit_webhook_initial_backoff,
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
