//! Measurements under the names Kubernetes uses, in the Prometheus text format.

use crate::admission::Chain;
use crate::audit::Audit;
use crate::exposition;
use crate::flow::{Flow, is_long_running, is_read_only};
use crate::registry::Registry;
use crate::reloads::Reloads;
use crate::request::{RequestInfo, Response};
use bytes::Bytes;
use gantry_api::kind::Resource;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry as Metered;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

/// Upstream's buckets of `apiserver_request_duration_seconds`.
const LATENCY: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];
/// Upstream's buckets of `apiserver_response_sizes`, in bytes.
const SIZES: &[f64] = &[1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
}

/// The same, and whether the request is to be persisted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TimeLabels {
    #[prometheus(flatten)]
    request: RequestLabels,
    dry_run: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    #[prometheus(flatten)]
    time: TimeLabels,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeprecatedLabels {
    group: String,
    removed_release: &'static str,
    resource: String,
    subresource: String,
    version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckLabels {
    name: Cow<'static, str>,
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckedLabels {
    name: Cow<'static, str>,
    status: &'static str,
    r#type: &'static str,
}

/// The series of one kind of request, looked up once per request.
struct Series {
    latency: Histogram,
    by_code: Mutex<Vec<(u16, Counter)>>,
    /// Of reads alone, as upstream's.
    sizes: Option<Histogram>,
}

/// What was counted at the start of a request.
pub struct Record {
    series: Arc<Series>,
    labels: TimeLabels,
    in_flight: Option<bool>,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// All measurements.
pub struct Metrics {
    registry: Metered,
    /// How health checks go; told apart from the rest, so that they can be asked for often.
    indicators: Metered,
    /// What runs beside the server in its process.
    beside: OnceLock<Metered>,
    requests: Family<CodeLabels, Counter>,
    latency: Histograms<TimeLabels>,
    sizes: Histograms<RequestLabels>,
    long_running: Family<RequestLabels, Gauge>,
    deprecated: Family<DeprecatedLabels, Gauge>,
    health: Family<CheckLabels, Gauge>,
    checks: Family<CheckedLabels, Counter>,
    series: Mutex<HashMap<TimeLabels, Arc<Series>>>,
    reading: AtomicI64,
    writing: AtomicI64,
    /// Of configuration files.
    pub reloads: Reloads,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing measured yet.
    #[must_use]
    pub fn new() -> Self {
        let (mut registry, mut indicators) = (Metered::default(), Metered::default());
        let requests = Family::default();
        let latency: Histograms<TimeLabels> = Family::new_with_constructor(|| Histogram::new(LATENCY.iter().copied()));
        let sizes: Histograms<RequestLabels> = Family::new_with_constructor(|| Histogram::new(SIZES.iter().copied()));
        let (long_running, deprecated) = (Family::default(), Family::default());
        let (health, checks) = (Family::default(), Family::default());
        let told = "Response size distribution in bytes of reads";
        registry.register("apiserver_response_sizes", told, sizes.clone());
        let told = "Gauge of deprecated APIs that have been requested";
        registry.register("apiserver_requested_deprecated_apis", told, deprecated.clone());
        let told = "This metric records the result of a single healthcheck";
        indicators.register("kubernetes_healthcheck", told, health.clone());
        let told = "This metric records the results of all healthcheck";
        indicators.register("kubernetes_healthchecks", told, checks.clone());
        registry.register(
            "apiserver_request",
            "Counter of apiserver requests by verb, resource, scope and HTTP code",
            requests.clone(),
        );
        registry.register(
            "apiserver_request_duration_seconds",
            "Response latency distribution in seconds",
            latency.clone(),
        );
        registry.register(
            "apiserver_longrunning_requests",
            "Gauge of all active long-running requests",
            long_running.clone(),
        );
        let reloads = Reloads::default();
        reloads.register(&mut registry);
        Self {
            registry,
            indicators,
            beside: OnceLock::new(),
            reloads,
            requests,
            latency,
            sizes,
            long_running,
            deprecated,
            health,
            checks,
            series: Mutex::new(HashMap::new()),
            reading: AtomicI64::new(0),
            writing: AtomicI64::new(0),
        }
    }

    /// The same, with what `register` has exported besides.
    #[must_use]
    pub fn with(mut self, register: impl FnOnce(&mut Metered)) -> Self {
        register(&mut self.registry);
        self
    }

    /// Has what runs beside the server exported, too. Of a second set of components only the first is told.
    pub fn tell_of(&self, components: Vec<Box<dyn Collector>>) {
        self.beside.get_or_init(|| {
            let mut beside = Metered::default();
            components.into_iter().for_each(|c| beside.register_collector(c));
            beside
        });
    }

    fn series(&self, labels: &TimeLabels) -> Arc<Series> {
        if let Some(found) = self.series.lock().get(labels) {
            return found.clone();
        }
        let made = Arc::new(Series {
            latency: self.latency.get_or_create_owned(labels),
            by_code: Mutex::new(Vec::new()),
            sizes: matches!(labels.request.verb.as_str(), "GET" | "LIST")
                .then(|| self.sizes.get_or_create_owned(&labels.request)),
        });
        self.series.lock().entry(labels.clone()).or_insert(made).clone()
    }

    /// Counts the start of a request, of the resource where there is one.
    #[must_use]
    pub fn begin(
        &self,
        info: &RequestInfo,
        resource: Option<&'static dyn Resource>,
        query: &[(String, String)],
    ) -> Record {
        let labels = TimeLabels { request: labels(info, resource), dry_run: dry_run(query) };
        let in_flight = (!is_long_running(info)).then(|| is_read_only(info));
        if let Some(reads) = in_flight {
            if reads { &self.reading } else { &self.writing }.fetch_add(1, Ordering::Relaxed);
        }
        Record { series: self.series(&labels), labels, in_flight }
    }

    /// Counts its end, and the size of the answer to a read.
    #[must_use]
    pub fn end(&self, record: Record, response: Response, took: Duration) -> Response {
        let code = response.status().as_u16();
        let sizes = record.series.sizes.clone();
        self.ended(record, code, took);
        let Some(sizes) = sizes else { return response };
        if let Some(bytes) = response.body().size_hint().exact() {
            sizes.observe(float(bytes));
            return response;
        }
        let mut size = Size { bytes: 0, sizes };
        response.map(|body| {
            body.map_frame(move |frame| {
                size.add(&frame);
                frame
            })
            .boxed()
        })
    }

    fn ended(&self, record: Record, code: u16, took: Duration) {
        if let Some(reads) = record.in_flight {
            if reads { &self.reading } else { &self.writing }.fetch_sub(1, Ordering::Relaxed);
            record.series.latency.observe(took.as_secs_f64());
        }
        let mut by_code = record.series.by_code.lock();
        if let Some((_, counter)) = by_code.iter().find(|(c, _)| *c == code) {
            counter.inc();
            return;
        }
        let counter = self.requests.get_or_create_owned(&CodeLabels { time: record.labels, code });
        counter.inc();
        by_code.push((code, counter));
    }

    /// Counts a watch for as long as its body lives.
    #[must_use]
    pub fn long_running<B>(&self, body: B, info: &RequestInfo, resource: &'static dyn Resource) -> Counted<B> {
        let gauge = self.long_running.get_or_create_owned(&labels(info, Some(resource)));
        gauge.inc();
        Counted { body, gauge }
    }

    /// Notes that what is deprecated was asked for.
    pub fn deprecated(&self, info: &RequestInfo) {
        let labels = DeprecatedLabels {
            group: info.group.clone(),
            removed_release: "",
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            version: info.version.clone(),
        };
        self.deprecated.get_or_create(&labels).set(1);
    }

    /// Notes how a health check went; `of` is the endpoint it was asked for at.
    pub fn checked(&self, name: Cow<'static, str>, of: &'static str, well: bool) {
        self.health.get_or_create(&CheckLabels { name: name.clone(), r#type: of }).set(i64::from(well));
        let status = if well { "success" } else { "error" };
        self.checks.get_or_create(&CheckedLabels { name, status, r#type: of }).inc();
    }

    /// The text of `/metrics/slis`.
    #[must_use]
    pub fn render_indicators(&self) -> String {
        let mut out = String::new();
        if let Err(e) = encode(&mut out, &self.indicators) {
            tracing::error!(error = %e, "metrics cannot be written");
        }
        exposition::from_open_metrics(&out)
    }

    /// The text of `/metrics`.
    #[must_use]
    pub fn render(&self, registry: &Registry, flow: &Flow, admission: &Chain, audit: Option<&Audit>) -> String {
        let mut out = String::new();
        if let Err(e) = encode(&mut out, &self.registry) {
            tracing::error!(error = %e, "metrics cannot be written");
        }
        if let Some(beside) = self.beside.get() {
            out.truncate(out.rfind("# EOF").unwrap_or(out.len()));
            if let Err(e) = encode(&mut out, beside) {
                tracing::error!(error = %e, "metrics cannot be written");
            }
        }
        let mut more = String::new();
        let written = self.render_gauges(&mut more, registry).and_then(|()| flow.render(&mut more));
        let written = written.and_then(|()| admission.render(&mut more));
        let written = written.and_then(|()| audit.map_or(Ok(()), |audit| audit.render(&mut more)));
        if let Err(e) = written {
            tracing::error!(error = %e, "metrics cannot be written");
        }
        let end = out.rfind("# EOF").unwrap_or(out.len());
        out.insert_str(end, &more);
        exposition::from_open_metrics(&out)
    }

    fn render_gauges(&self, out: &mut String, registry: &Registry) -> std::fmt::Result {
        let gauge =
            |out: &mut String, name: &str, help: &str| writeln!(out, "# HELP {name} {help}.\n# TYPE {name} gauge");
        gauge(out, "apiserver_current_inflight_requests", "Requests in flight by kind")?;
        writeln!(
            out,
            "apiserver_current_inflight_requests{{request_kind=\"readOnly\"}} {}",
            self.reading.load(Ordering::Relaxed)
        )?;
        writeln!(
            out,
            "apiserver_current_inflight_requests{{request_kind=\"mutating\"}} {}",
            self.writing.load(Ordering::Relaxed)
        )?;
        let mut counts: Vec<_> = registry
            .caches()
            .iter()
            .map(|c| {
                let (objects, watchers) = c.counts();
                let i = c.resource.info();
                (i.qualified(), i.group, i.kind, objects, watchers)
            })
            .collect();
        counts.sort();
        gauge(out, "apiserver_storage_objects", "Stored objects by resource")?;
        for (resource, _, _, objects, _) in &counts {
            writeln!(out, "apiserver_storage_objects{{resource=\"{resource}\"}} {objects}")?;
        }
        gauge(out, "gantry_watch_cache_bytes", "Memory of the watch cache by resource")?;
        for cache in registry.caches() {
            let resource = cache.resource.info().qualified();
            writeln!(out, "gantry_watch_cache_bytes{{resource=\"{resource}\"}} {}", cache.bytes())?;
        }
        gauge(out, "apiserver_registered_watchers", "Watchers by group and kind")?;
        for (_, group, kind, _, watchers) in counts.iter().filter(|c| c.4 > 0) {
            writeln!(out, "apiserver_registered_watchers{{group=\"{group}\",kind=\"{kind}\"}} {watchers}")?;
        }
        gauge(out, "apiserver_storage_size_bytes", "Size of the storage in bytes")?;
        writeln!(out, "apiserver_storage_size_bytes{{storage_cluster_id=\"etcd-0\"}} {}", registry.store_size_bytes())?;
        process(out)
    }
}

/// `process_*` as every Prometheus client exports them; left out where `/proc` cannot be read.
fn process(out: &mut String) -> std::fmt::Result {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return Ok(()) };
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let number = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok());
    // After the command name: utime is the 12th field, stime the 13th, vsize the 21st, rss the 22nd; the tick is 1/100 s.
    if let (Some(user), Some(system), Some(virt), Some(pages)) = (number(11), number(12), number(20), number(21)) {
        let ticks = user + system;
        writeln!(
            out,
            "# HELP process_cpu_seconds Total user and system CPU time spent in seconds.\n# TYPE process_cpu_seconds counter"
        )?;
        writeln!(out, "process_cpu_seconds_total {}.{:02}", ticks / 100, ticks % 100)?;
        writeln!(
            out,
            "# HELP process_virtual_memory_bytes Virtual memory size in bytes.\n# TYPE process_virtual_memory_bytes gauge"
        )?;
        writeln!(out, "process_virtual_memory_bytes {virt}")?;
        writeln!(
            out,
            "# HELP process_resident_memory_bytes Resident memory size in bytes.\n# TYPE process_resident_memory_bytes gauge"
        )?;
        writeln!(out, "process_resident_memory_bytes {}", pages * 4096)?;
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        writeln!(out, "# HELP process_open_fds Number of open file descriptors.\n# TYPE process_open_fds gauge")?;
        writeln!(out, "process_open_fds {}", open.count())?;
    }
    Ok(())
}

/// Labels of a request. What clients choose freely (names, unknown resources) must not become series.
fn labels(info: &RequestInfo, resource: Option<&'static dyn Resource>) -> RequestLabels {
    let known = resource.filter(|_| info.is_resource);
    let verb = if known.is_some() || matches!(info.verb.as_str(), "get" | "post" | "put" | "patch" | "delete" | "head")
    {
        match info.verb.as_str() {
            "create" => "POST".to_owned(),
            "update" => "PUT".to_owned(),
            other => other.to_ascii_uppercase(),
        }
    } else {
        "OTHER".to_owned()
    };
    let Some(resource) = known else {
        return RequestLabels { verb, component: "apiserver", ..Default::default() };
    };
    let subresources = resource.info().subresources;
    let scope = match (info.name.is_empty(), info.namespace.is_empty()) {
        (false, _) => "resource",
        (true, false) => "namespace",
        (true, true) => "cluster",
    };
    RequestLabels {
        verb,
        group: info.group.clone(),
        version: info.version.clone(),
        resource: info.resource.clone(),
        subresource: subresources
            .iter()
            .find(|s| s.name == info.subresource)
            .map(|s| s.name.to_owned())
            .unwrap_or_default(),
        scope,
        component: "apiserver",
    }
}

/// What `dryRun` says, as upstream's labels have it.
fn dry_run(query: &[(String, String)]) -> &'static str {
    let mut given = query.iter().filter(|(k, _)| k == "dryRun").map(|(_, v)| v.as_str()).peekable();
    if given.peek().is_none() {
        return "";
    }
    if given.all(|v| v == "All") { "All" } else { "invalid" }
}

/// Counts what is sent of an answer until it is sent or given up.
struct Size {
    bytes: u64,
    sizes: Histogram,
}

impl Size {
    // A method, so that who counts holds all of this, and not the number alone.
    fn add(&mut self, frame: &Frame<Bytes>) {
        self.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
}

impl Drop for Size {
    fn drop(&mut self) {
        self.sizes.observe(float(self.bytes));
    }
}

#[allow(clippy::cast_precision_loss, reason = "no answer has so many bytes")]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

/// A body that is counted while it lives.
pub struct Counted<B> {
    body: B,
    gauge: Gauge,
}

impl<B> Drop for Counted<B> {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

impl<B: Body<Data = Bytes, Error = std::io::Error> + Unpin> Body for Counted<B> {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
}
