//! Measurements of components that run beside the server, for its `/metrics`: what their families are made of, and those
//! of the work queues.
//!
//! Names, labels and buckets are upstream's. Numbers that are kept anyway are read when somebody asks and not before.

use crate::queue;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use std::collections::BTreeMap;
use std::fmt;

/// Histograms by labels; they share their buckets.
pub type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Writes one metric, or one family of them.
///
/// # Errors
/// Where nothing can be written.
pub fn tell(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> Result<(), fmt::Error> {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

/// Writes gauges that are made for the occasion.
///
/// # Errors
/// Where nothing can be written.
pub fn tell_gauges<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    gauges: impl IntoIterator<Item = (L, f64)>,
) -> Result<(), fmt::Error> {
    let kind = prometheus_client::metrics::MetricType::Gauge;
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in gauges {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// A number as metrics have it; exact up to 2⁵³.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "nothing here is counted that far")]
pub fn number(n: usize) -> f64 {
    n as f64
}

/// All work queues of the process, as `workqueue_*`. They are called what `known_as` makes of their names.
#[derive(Clone, Copy)]
pub struct Queues {
    /// Upstream's name of a queue.
    pub known_as: fn(&'static str) -> &'static str,
}

impl fmt::Debug for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Queues")
    }
}

/// Of a queue, how often something happened.
type Count = fn(&queue::QueueStats) -> u64;
/// Of a queue, one number.
type Number = fn(&queue::QueueStats) -> f64;
/// Of a queue, one distribution.
type Distribution = fn(&queue::Times) -> &Histogram;

const DEPTH: (&str, &str, Number) = ("workqueue_depth", "Current depth of workqueue", |s| number(s.depth));
const UNFINISHED: (&str, &str, Number) = (
    "workqueue_unfinished_work_seconds",
    "How many seconds of work has been done that is in progress and hasn't been observed by work_duration",
    |s| s.unfinished.as_secs_f64(),
);
const LONGEST: (&str, &str, Number) = (
    "workqueue_longest_running_processor_seconds",
    "How many seconds has the longest running processor for workqueue been running",
    |s| s.longest.as_secs_f64(),
);
const WAITED: (&str, &str, Distribution) = (
    "workqueue_queue_duration_seconds",
    "How long in seconds an item stays in workqueue before being requested",
    |t| &t.waited,
);
const WORKED: (&str, &str, Distribution) =
    ("workqueue_work_duration_seconds", "How long in seconds processing an item from workqueue takes", |t| &t.worked);

impl Collector for Queues {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let named = |(name, stats, times)| ((self.known_as)(name), (stats, times));
        // Of queues of one name, which only tests have, the last counts.
        let queues: BTreeMap<&str, _> = queue::all_stats().into_iter().map(named).collect();
        let gauges = [DEPTH, UNFINISHED, LONGEST];
        for (name, help, value) in gauges {
            let all = queues.iter().map(|(queue, (stats, _))| ([("name", *queue)], value(stats)));
            tell_gauges(&mut encoder, name, help, all)?;
        }
        let counts: [(&str, &str, Count); 2] = [
            ("workqueue_adds", "Total number of adds handled by workqueue", |s| s.adds),
            ("workqueue_retries", "Total number of retries handled by workqueue", |s| s.retries),
        ];
        for (name, help, value) in counts {
            let kind = prometheus_client::metrics::MetricType::Counter;
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (queue, (stats, _)) in &queues {
                let none: Option<&prometheus_client::metrics::exemplar::Exemplar<[(&str, &str); 1], f64>> = None;
                family.encode_family(&[("name", *queue)])?.encode_counter(&value(stats), none)?;
            }
        }
        for (name, help, value) in [WAITED, WORKED] {
            let kind = prometheus_client::metrics::MetricType::Histogram;
            let mut family: MetricEncoder<'_> = encoder.encode_descriptor(name, help, None, kind)?;
            for (queue, (_, times)) in &queues {
                value(times).encode(family.encode_family(&[("name", *queue)])?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Queue;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn what_queues_do_is_told() {
        let queue = Queue::new("measured-here");
        queue.add("a".to_owned());
        queue.add("b".to_owned());
        tokio::time::advance(Duration::from_secs(3)).await;
        let key = queue.get().await.unwrap();
        tokio::time::advance(Duration::from_secs(2)).await;
        let mut registry = Registry::default();
        registry
            .register_collector(Box::new(Queues { known_as: |name| name.strip_prefix("measured-").unwrap_or(name) }));
        let told = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            let ours = text.lines().filter(|l| l.contains("name=\"here\"") && !l.contains("_bucket"));
            ours.map(str::to_owned).collect::<Vec<_>>()
        };
        let of = |name: &str, value: &str| format!("workqueue_{name}{{name=\"here\"}} {value}");
        let at_work = [
            of("depth", "1.0"),
            of("unfinished_work_seconds", "2.0"),
            of("longest_running_processor_seconds", "2.0"),
            of("adds_total", "2"),
            of("retries_total", "0"),
            of("queue_duration_seconds_sum", "3.0"),
            of("queue_duration_seconds_count", "1"),
            of("work_duration_seconds_sum", "0.0"),
            of("work_duration_seconds_count", "0"),
        ];
        assert_eq!(told(), at_work);
        queue.add_rate_limited(key.clone());
        queue.done(&key);
        let after = told();
        assert_eq!(after[1..3], [of("unfinished_work_seconds", "0.0"), of("longest_running_processor_seconds", "0.0")]);
        assert_eq!(after[4], of("retries_total", "1"));
        assert_eq!(after[7..], [of("work_duration_seconds_sum", "2.0"), of("work_duration_seconds_count", "1")]);
        drop(queue);
        assert!(told().is_empty(), "it is no more");
    }
}
