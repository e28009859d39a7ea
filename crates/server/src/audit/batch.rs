//! Back ends that requests do not wait for: events are collected, and sent to the webhook or written to the log in
//! batches, at a bounded rate. And the webhook that each event is sent to at once, while the request waits.

use super::event::Event;
use super::log::Log;
use super::{Sink, Written};
use async_trait::async_trait;
use bytes::Bytes;
use gantry_api::entropy::Entropy;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often a batch is sent at most, and how much longer each pause is than the one before; upstream's figures.
const ATTEMPTS: u32 = 5;
const BACKOFF_FACTOR: f64 = 1.5;
const BACKOFF_JITTER: f64 = 0.2;

/// Where batches go.
#[async_trait]
pub trait Receiver: Send + Sync {
    /// Delivers an `EventList` in JSON.
    ///
    /// # Errors
    /// Why it was not taken.
    async fn deliver(&self, events: Bytes) -> Result<(), String>;
}

/// How events are collected and sent.
#[derive(Clone, Copy, Debug)]
pub struct BatchConfig {
    /// Events that may wait; further ones are lost.
    pub buffer_size: usize,
    /// Events of a batch at most.
    pub size_max: usize,
    /// How long the first event of a batch may wait for others.
    pub wait_max: Duration,
    /// Batches per second on average, and at once after a pause; None for as many as there are.
    pub throttle: Option<(f64, u32)>,
}

/// Where batches go.
#[derive(Clone)]
pub enum Outlet {
    /// To a webhook, side by side where one takes long.
    Webhook {
        /// What takes them.
        receiver: Arc<dyn Receiver>,
        /// How long to wait before a batch that was not taken is sent again.
        initial_backoff: Duration,
        /// Spreads these pauses.
        entropy: Entropy,
    },
    /// To a file, one after the other.
    Log(Arc<Log>),
}

impl Outlet {
    /// An event as it waits for the others of its batch.
    fn prepared(&self, event: &Event, json: &str) -> String {
        match self {
            Outlet::Webhook { .. } => json.to_owned(),
            Outlet::Log(log) => log.line(event, json),
        }
    }
}

/// The end of the back end that requests see.
pub struct Batches {
    events: mpsc::Sender<String>,
    outlet: Outlet,
}

impl Sink for Batches {
    fn name(&self) -> &'static str {
        "buffered"
    }

    fn write(&self, event: &Event, json: &str) -> Result<Written, String> {
        self.events.try_send(self.outlet.prepared(event, json)).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => "audit buffer queue blocked".to_owned(),
            mpsc::error::TrySendError::Closed(_) => "audit backend shut down".to_owned(),
        })?;
        Ok(Written::Done)
    }
}

/// The back end whose requests wait until their events were taken.
pub struct Blocking {
    receiver: Arc<dyn Receiver>,
    entropy: Entropy,
    initial_backoff: Duration,
}

impl Blocking {
    /// Sends to `receiver`, again after `initial_backoff` where it does not take an event.
    #[must_use]
    pub fn new(receiver: Arc<dyn Receiver>, entropy: Entropy, initial_backoff: Duration) -> Self {
        Self { receiver, entropy, initial_backoff }
    }
}

impl Sink for Blocking {
    fn name(&self) -> &'static str {
        "webhook"
    }

    fn write(&self, _event: &Event, json: &str) -> Result<Written, String> {
        let runtime = Handle::try_current().map_err(|e| e.to_string())?;
        let (receiver, entropy, backoff) = (self.receiver.clone(), self.entropy.clone(), self.initial_backoff);
        let batch = vec![json.to_owned()];
        let (tell, told) = oneshot::channel();
        runtime.spawn(async move {
            let outcome = deliver(receiver, entropy, backoff, batch, CancellationToken::new()).await;
            // Where nobody waits for it, it has been reported all the same.
            let _ = tell.send(outcome);
        });
        Ok(Written::Later(told))
    }
}

/// The end that sends.
pub struct Delivery {
    events: mpsc::Receiver<String>,
    config: BatchConfig,
    outlet: Outlet,
}

/// Both ends of a back end.
#[must_use]
pub fn batches(config: BatchConfig, outlet: Outlet) -> (Batches, Delivery) {
    let (sender, events) = mpsc::channel(config.buffer_size.max(1));
    (Batches { events: sender, outlet: outlet.clone() }, Delivery { events, config, outlet })
}

/// Tokens that come at a rate, and of which some can be saved up.
struct Throttle {
    rate: f64,
    most: f64,
    tokens: f64,
    since: Instant,
}

impl Throttle {
    fn new(rate: f64, burst: u32) -> Self {
        Self { rate, most: f64::from(burst), tokens: f64::from(burst), since: Instant::now() }
    }

    /// How long the next has to wait, and counts it.
    fn take(&mut self) -> Duration {
        let now = Instant::now();
        let come = now.saturating_duration_since(self.since).as_secs_f64() * self.rate;
        self.tokens = (self.tokens + come).min(self.most) - 1.0;
        self.since = now;
        if self.tokens >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.tokens / self.rate) }
    }
}

impl Delivery {
    /// Sends until `stop`, and then what is left.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut throttle = self.config.throttle.map(|(rate, burst)| Throttle::new(rate, burst));
        let mut under_way = JoinSet::new();
        loop {
            let batch = self.collect(&stop).await;
            if batch.is_empty() {
                break;
            }
            if let Some(pause) = throttle.as_mut().map(Throttle::take).filter(|p| !p.is_zero()) {
                tokio::time::sleep(pause).await;
            }
            match self.outlet.clone() {
                Outlet::Log(log) => log.write_all(&batch),
                Outlet::Webhook { receiver, initial_backoff, entropy } => {
                    let stop = stop.clone();
                    under_way.spawn(async move {
                        // A batch that was lost has been reported.
                        let _ = deliver(receiver, entropy, initial_backoff, batch, stop).await;
                    });
                }
            }
            while under_way.try_join_next().is_some() {}
        }
        while under_way.join_next().await.is_some() {}
    }

    /// The next batch; empty where there is nothing left and nothing more to come.
    async fn collect(&mut self, stop: &CancellationToken) -> Vec<String> {
        let first = tokio::select! {
            biased;
            first = self.events.recv() => first,
            () = stop.cancelled() => None,
        };
        let mut batch: Vec<String> = first.into_iter().collect();
        if batch.is_empty() {
            return batch;
        }
        let end = Instant::now() + self.config.wait_max;
        while batch.len() < self.config.size_max {
            let next = tokio::select! {
                biased;
                next = self.events.recv() => next,
                () = stop.cancelled() => None,
                () = tokio::time::sleep_until(end) => None,
            };
            let Some(next) = next else { break };
            batch.push(next);
        }
        batch
    }
}

/// Sends a batch until it is taken or given up, which is reported.
async fn deliver(
    receiver: Arc<dyn Receiver>,
    entropy: Entropy,
    backoff: Duration,
    batch: Vec<String>,
    stop: CancellationToken,
) -> Result<(), String> {
    let items = batch.join(",");
    let list =
        format!("{{\"kind\":\"EventList\",\"apiVersion\":\"audit.k8s.io/v1\",\"metadata\":{{}},\"items\":[{items}]}}");
    let list = Bytes::from(list);
    let mut pause = backoff;
    let mut attempt = 1;
    loop {
        let Err(why) = receiver.deliver(list.clone()).await else { return Ok(()) };
        // A server that stops does not wait for a receiver that is gone.
        if attempt == ATTEMPTS || stop.is_cancelled() {
            super::report("webhook", &why, batch.len());
            return Err(why);
        }
        attempt += 1;
        let jittered = pause.mul_f64(1.0 + BACKOFF_JITTER * entropy.fraction());
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = tokio::time::sleep(jittered) => {}
        }
        pause = pause.mul_f64(BACKOFF_FACTOR);
    }
}

#[cfg(test)]
mod tests {
    use super::super::log::{Format, Rotation};
    use super::*;
    use parking_lot::Mutex;
    use serde_json::Value;

    /// Refuses so many, and keeps the rest with the time they came at.
    struct Kept {
        refuse: Mutex<u32>,
        lists: Mutex<Vec<(Instant, usize)>>,
    }

    #[async_trait]
    impl Receiver for Kept {
        async fn deliver(&self, events: Bytes) -> Result<(), String> {
            let mut refuse = self.refuse.lock();
            if *refuse > 0 {
                *refuse -= 1;
                return Err("not now".into());
            }
            let list: Value = serde_json::from_slice(&events).unwrap();
            assert_eq!((&list["kind"], &list["apiVersion"]), (&"EventList".into(), &"audit.k8s.io/v1".into()));
            self.lists.lock().push((Instant::now(), list["items"].as_array().unwrap().len()));
            Ok(())
        }
    }

    fn start(config: BatchConfig, refuse: u32) -> (Batches, Delivery, Arc<Kept>) {
        let kept = Arc::new(Kept { refuse: Mutex::new(refuse), lists: Mutex::default() });
        let outlet = Outlet::Webhook {
            receiver: kept.clone(),
            initial_backoff: Duration::from_secs(10),
            entropy: Entropy::seeded(1),
        };
        let (batches, delivery) = batches(config, outlet);
        (batches, delivery, kept)
    }

    const CONFIG: BatchConfig =
        BatchConfig { buffer_size: 10, size_max: 4, wait_max: Duration::from_secs(30), throttle: None };

    fn sizes(kept: &Kept) -> Vec<usize> {
        kept.lists.lock().iter().map(|(_, n)| *n).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn batches_are_full_or_in_time() {
        let (batches, delivery, kept) = start(CONFIG, 0);
        for _ in 0..10 {
            batches.events.try_send("{}".into()).unwrap();
        }
        assert!(batches.events.try_send("{}".into()).is_err(), "the buffer is full");
        let stop = CancellationToken::new();
        let running = tokio::spawn(delivery.run(stop.clone()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(sizes(&kept), [4, 4]);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(sizes(&kept), [4, 4, 2]);
        batches.events.try_send("{}".into()).unwrap();
        stop.cancel();
        running.await.unwrap();
        assert_eq!(sizes(&kept), [4, 4, 2, 1], "what is left is sent at the end");
    }

    #[tokio::test(start_paused = true)]
    async fn who_blocks_hears_what_became_of_it() {
        let (_, _, kept) = start(CONFIG, 2);
        let sink = Blocking::new(kept.clone(), Entropy::seeded(1), Duration::from_secs(10));
        let began = Instant::now();
        let event = super::super::event::tests::event();
        let Ok(Written::Later(told)) = sink.write(&event, "{}") else { panic!("it is not there at once") };
        assert_eq!(told.await.unwrap(), Ok(()));
        assert!(began.elapsed() >= Duration::from_secs(25), "it was sent three times");
        *kept.refuse.lock() = ATTEMPTS;
        let Ok(Written::Later(told)) = sink.write(&event, "{}") else { panic!("it is not there at once") };
        assert_eq!(told.await.unwrap(), Err("not now".to_owned()));
        assert_eq!(sizes(&kept), [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn refused_batches_are_sent_again_and_the_rate_is_bounded() {
        let config = BatchConfig { size_max: 1, throttle: Some((1.0, 2)), ..CONFIG };
        let (batches, delivery, kept) = start(config, 0);
        let begin = Instant::now();
        for _ in 0..4 {
            batches.events.try_send("{}".into()).unwrap();
        }
        let stop = CancellationToken::new();
        let running = tokio::spawn(delivery.run(stop.clone()));
        tokio::time::sleep(Duration::from_secs(5)).await;
        let at: Vec<u64> = kept.lists.lock().iter().map(|(at, _)| (*at - begin).as_secs()).collect();
        assert_eq!(at, [0, 0, 1, 2]);
        *kept.refuse.lock() = 2;
        batches.events.try_send("{}".into()).unwrap();
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(kept.lists.lock().len(), 4, "after ten seconds, and then fifteen");
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert_eq!(kept.lists.lock().len(), 5);
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_log_is_written_in_batches() {
        let directory = std::env::temp_dir().join(format!("gantry-audit-batches-{}", std::process::id()));
        let path = directory.join("audit.log");
        let clock = gantry_api::clock::Clock::starting_at("2026-01-01T00:00:00Z".parse().unwrap());
        let rotation = Rotation { bytes_max: 0, backups_max: 0, days_max: 0, compress: false };
        let log = Arc::new(Log::open(&path, Format::Legacy, rotation, clock).unwrap());
        let config = BatchConfig { buffer_size: 3, size_max: 2, ..CONFIG };
        let (batches, delivery) = batches(config, Outlet::Log(log));
        let event = super::super::event::tests::event();
        let write = || batches.write(&event, "{}").map(|_| ());
        for _ in 0..3 {
            assert_eq!(write(), Ok(()));
        }
        assert_eq!(write(), Err("audit buffer queue blocked".to_owned()));
        let lines = || std::fs::read_to_string(&path).unwrap().lines().filter(|l| l.contains(" AUDIT: id=")).count();
        let stop = CancellationToken::new();
        let running = tokio::spawn(delivery.run(stop.clone()));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(lines(), 2, "the third waits for a fourth");
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(lines(), 3);
        write().unwrap();
        stop.cancel();
        running.await.unwrap();
        assert_eq!(lines(), 4, "what is left is written at the end");
        assert_eq!(write(), Err("audit backend shut down".to_owned()));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
