//! Measurements under the names Kubernetes uses, in the OpenMetrics text format.

use crate::audit::Audit;
use crate::flow::{Flow, is_long_running, is_read_only};
use crate::registry::Registry;
use crate::request::RequestInfo;
use bytes::Bytes;
use http_body::{Body, Frame};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry as Metered;
use std::collections::HashMap;
use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

/// Upstream's buckets of `apiserver_request_duration_seconds`, thinned to those that alerts and dashboards use.
const LATENCY: &[f64] =
    &[0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0];

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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
    code: u16,
}

/// The series of one kind of request, looked up once per request.
struct Series {
    latency: Histogram,
    by_code: Mutex<Vec<(u16, Counter)>>,
    long_running: Gauge,
}

/// What was counted at the start of a request.
pub struct Record {
    series: Arc<Series>,
    labels: RequestLabels,
    in_flight: Option<bool>,
}

/// All measurements.
pub struct Metrics {
    registry: Metered,
    requests: Family<CodeLabels, Counter>,
    latency: Family<RequestLabels, Histogram, fn() -> Histogram>,
    long_running: Family<RequestLabels, Gauge>,
    series: Mutex<HashMap<RequestLabels, Arc<Series>>>,
    reading: AtomicI64,
    writing: AtomicI64,
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
        let mut registry = Metered::default();
        let requests = Family::default();
        let latency: Family<_, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(LATENCY.iter().copied()));
        let long_running = Family::default();
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
        Self {
            registry,
            requests,
            latency,
            long_running,
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

    fn series(&self, labels: &RequestLabels) -> Arc<Series> {
        if let Some(found) = self.series.lock().get(labels) {
            return found.clone();
        }
        let made = Arc::new(Series {
            latency: self.latency.get_or_create_owned(labels),
            by_code: Mutex::new(Vec::new()),
            long_running: self.long_running.get_or_create_owned(labels),
        });
        self.series.lock().entry(labels.clone()).or_insert(made).clone()
    }

    /// Counts the start of a request.
    #[must_use]
    pub fn begin(&self, info: &RequestInfo) -> Record {
        let labels = labels(info);
        let in_flight = (!is_long_running(info)).then(|| is_read_only(info));
        if let Some(reads) = in_flight {
            if reads { &self.reading } else { &self.writing }.fetch_add(1, Ordering::Relaxed);
        }
        Record { series: self.series(&labels), labels, in_flight }
    }

    /// Counts its end.
    pub fn end(&self, record: Record, code: u16, took: Duration) {
        if let Some(reads) = record.in_flight {
            if reads { &self.reading } else { &self.writing }.fetch_sub(1, Ordering::Relaxed);
            record.series.latency.observe(took.as_secs_f64());
        }
        let mut by_code = record.series.by_code.lock();
        if let Some((_, counter)) = by_code.iter().find(|(c, _)| *c == code) {
            counter.inc();
            return;
        }
        let l = record.labels;
        let labels = CodeLabels {
            verb: l.verb,
            group: l.group,
            version: l.version,
            resource: l.resource,
            subresource: l.subresource,
            scope: l.scope,
            component: l.component,
            code,
        };
        let counter = self.requests.get_or_create_owned(&labels);
        counter.inc();
        by_code.push((code, counter));
    }

    /// Counts a watch for as long as its body lives.
    #[must_use]
    pub fn long_running<B>(&self, body: B, info: &RequestInfo) -> Counted<B> {
        let series = self.series(&labels(info));
        series.long_running.inc();
        Counted { body, series }
    }

    /// The text of `/metrics`.
    #[must_use]
    pub fn render(&self, registry: &Registry, flow: &Flow, audit: Option<&Audit>) -> String {
        let mut out = String::new();
        if let Err(e) = encode(&mut out, &self.registry) {
            tracing::error!(error = %e, "metrics cannot be written");
        }
        let mut more = String::new();
        let written = self.render_gauges(&mut more, registry).and_then(|()| flow.render(&mut more));
        let written = written.and_then(|()| audit.map_or(Ok(()), |audit| audit.render(&mut more)));
        if let Err(e) = written {
            tracing::error!(error = %e, "metrics cannot be written");
        }
        let end = out.rfind("# EOF").unwrap_or(out.len());
        out.insert_str(end, &more);
        out
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
fn labels(info: &RequestInfo) -> RequestLabels {
    let known = info.is_resource && gantry_api::kinds::find(&info.group, &info.version, &info.resource).is_some();
    let verb = if known || matches!(info.verb.as_str(), "get" | "post" | "put" | "patch" | "delete" | "head") {
        match info.verb.as_str() {
            "create" => "POST".to_owned(),
            "update" => "PUT".to_owned(),
            other => other.to_ascii_uppercase(),
        }
    } else {
        "OTHER".to_owned()
    };
    if !known {
        return RequestLabels { verb, component: "apiserver", ..Default::default() };
    }
    let subresources =
        gantry_api::kinds::find(&info.group, &info.version, &info.resource).map_or(&[][..], |r| r.info().subresources);
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

/// A body that is counted while it lives.
pub struct Counted<B> {
    body: B,
    series: Arc<Series>,
}

impl<B> Drop for Counted<B> {
    fn drop(&mut self) {
        self.series.long_running.dec();
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
