//! What goes wrong between a component and the API server: answers that are refusals, answers that are lost though what
//! was asked was done, requests that take long, and watches that stall, end, repeat themselves or have expired. All of
//! it is drawn from a seed.

use async_trait::async_trait;
use bytes::Bytes;
use gantry_api::entropy::Entropy;
use gantry_client::transport::{Body, Transport, TransportError};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How often what goes wrong, in thousandths, and for how long. The default is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Writes that are answered by a failure and not done.
    pub refused: u64,
    /// Writes that are done, and answered by a failure or not at all.
    pub unanswered: u64,
    /// Reads that fail.
    pub unread: u64,
    /// Requests that take up to [`Faults::slowness`] longer.
    pub slow: u64,
    /// See [`Faults::slow`].
    pub slowness: Duration,
    /// Watch events before which the watch stands still for up to [`Faults::lag`].
    pub stalled: u64,
    /// See [`Faults::stalled`].
    pub lag: Duration,
    /// Watch events in whose place the watch ends.
    pub cut: u64,
    /// Watch events that come twice.
    pub repeated: u64,
    /// Watch events in whose place the watch says that its version is no longer held.
    pub expired: u64,
    /// From this long after the start on, all is well.
    pub until: Duration,
}

impl Faults {
    /// A network and a server at their worst, for so long.
    #[must_use]
    pub const fn many(until: Duration) -> Self {
        Self {
            refused: 60,
            unanswered: 40,
            unread: 30,
            slow: 100,
            slowness: Duration::from_millis(1500),
            stalled: 60,
            lag: Duration::from_secs(4),
            cut: 20,
            repeated: 20,
            expired: 10,
            until,
        }
    }

    /// Caches that are seconds behind, and nothing else.
    #[must_use]
    pub const fn stale(until: Duration) -> Self {
        Self {
            stalled: 150,
            lag: Duration::from_secs(6),
            cut: 30,
            expired: 20,
            repeated: 20,
            refused: 0,
            unanswered: 0,
            unread: 0,
            slow: 100,
            slowness: Duration::from_millis(800),
            until,
        }
    }
}

/// Draws what goes wrong. Cheap to clone; all clones draw from one sequence.
#[derive(Clone)]
pub struct Dice {
    faults: Faults,
    entropy: Entropy,
    since: Instant,
}

impl Dice {
    /// From a seed of their own, so that who runs where does not depend on how often they are thrown elsewhere.
    #[must_use]
    pub fn new(faults: Faults, seed: u64) -> Self {
        Self { faults, entropy: Entropy::seeded(seed), since: Instant::now() }
    }

    fn hit(&self, thousandths: u64) -> bool {
        thousandths > 0 && self.since.elapsed() < self.faults.until && self.entropy.below(1000) < thousandths
    }

    async fn pause(&self, thousandths: u64, most: Duration) {
        if self.hit(thousandths) {
            let most = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
            tokio::time::sleep(Duration::from_millis(self.entropy.below(most.saturating_add(1)))).await;
        }
    }
}

/// A transport on which things go wrong.
pub struct Faulty {
    inner: Arc<dyn Transport>,
    dice: Dice,
}

impl Faulty {
    /// Over `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Transport>, dice: Dice) -> Self {
        Self { inner, dice }
    }
}

fn broken(context: String) -> TransportError {
    TransportError { context, message: "connection reset by peer".into() }
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason,
        "code": code,
    })
}

fn answer(code: u16, reason: &str, message: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(status(code, reason, message).to_string())).map_err(|never| match never {});
    let mut response = Response::new(body.boxed());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

impl Dice {
    /// One of the failures of a server that may or may not have done what it was asked, or None for no answer at all.
    fn failure(&self) -> Option<Response<Body>> {
        match self.entropy.below(3) {
            0 => Some(answer(500, "InternalError", "an error on the server has prevented the request from succeeding")),
            1 => Some(answer(504, "Timeout", "the server was unable to return a response in the time allotted")),
            _ => None,
        }
    }

    /// One of the failures of a server that has not done what it was asked.
    fn refusal(&self, method: &Method) -> Option<Response<Body>> {
        match self.entropy.below(4) {
            // Only what changes an object can be in conflict with who changed it before. A delete that is so has met
            // another object, and is never told so for nothing.
            0 if method == Method::PUT || method == Method::PATCH => {
                Some(answer(409, "Conflict", "the object has been modified"))
            }
            0 | 1 => Some(answer(429, "TooManyRequests", "too many requests, please try again later")),
            2 => Some(answer(503, "ServiceUnavailable", "the server is currently unable to handle the request")),
            _ => self.failure(),
        }
    }

    /// Hands on the frames of a watch, each one event, with what goes wrong on the way.
    async fn carry(self, mut body: Body, to: mpsc::Sender<Result<Frame<Bytes>, TransportError>>) {
        loop {
            let next = tokio::select! {
                biased;
                () = to.closed() => return,
                next = body.frame() => next,
            };
            let Some(next) = next else { return };
            let Ok(frame) = next else {
                let _ = to.send(next).await;
                return;
            };
            self.pause(self.faults.stalled, self.faults.lag).await;
            if self.hit(self.faults.cut) {
                if self.entropy.below(2) == 0 {
                    let _ = to.send(Err(broken("watch".into()))).await;
                }
                return;
            }
            if self.hit(self.faults.expired) {
                let gone = json!({"type": "ERROR", "object": status(410, "Expired", "too old resource version")});
                let _ = to.send(Ok(Frame::data(format!("{gone}\n").into()))).await;
                return;
            }
            if let Some(data) = frame.data_ref()
                && self.hit(self.faults.repeated)
                && to.send(Ok(Frame::data(data.clone()))).await.is_err()
            {
                return;
            }
            if to.send(Ok(frame)).await.is_err() {
                return;
            }
        }
    }
}

#[async_trait]
impl Transport for Faulty {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let (method, context) = (request.method().clone(), format!("{} {}", request.method(), request.uri()));
        let faults = self.dice.faults;
        if self.dice.since.elapsed() >= faults.until {
            return self.inner.send(request).await;
        }
        let reads = method == Method::GET;
        let or_broken = |answer: Option<Response<Body>>| answer.ok_or_else(|| broken(context.clone()));
        self.dice.pause(faults.slow, faults.slowness).await;
        if reads && self.dice.hit(faults.unread) {
            return or_broken(self.dice.failure());
        }
        if !reads && self.dice.hit(faults.refused) {
            return or_broken(self.dice.refusal(&method));
        }
        let watches = reads && request.uri().query().is_some_and(|q| q.split('&').any(|p| p == "watch=true"));
        let response = self.inner.send(request).await?;
        if !reads && self.dice.hit(faults.unanswered) {
            return or_broken(self.dice.failure());
        }
        if !watches || !response.status().is_success() {
            self.dice.pause(faults.slow, faults.slowness).await;
            return Ok(response);
        }
        let dice = self.dice.clone();
        Ok(response.map(|body| {
            let (to, mut from) = mpsc::channel(1);
            tokio::spawn(dice.carry(body, to));
            StreamBody::new(futures::stream::poll_fn(move |context| from.poll_recv(context))).boxed()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    /// Counts what reaches it; a watch has three events.
    #[derive(Default)]
    struct Far(Mutex<u32>);

    #[async_trait]
    impl Transport for Far {
        async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
            *self.0.lock() += 1;
            let text: &[&str] = if request.uri().query().is_some() { &["a\n", "b\n", "c\n"] } else { &["done"] };
            let frames: Vec<_> = text.iter().map(|t| Ok(Frame::data(Bytes::from(*t)))).collect();
            Ok(Response::new(StreamBody::new(futures::stream::iter(frames)).boxed()))
        }
    }

    async fn ask(far: &Arc<Far>, faults: Faults, method: Method, path: &str) -> (u16, String) {
        let transport = Faulty::new(far.clone(), Dice::new(Faults { until: Duration::from_secs(1), ..faults }, 3));
        let request = Request::builder().method(method).uri(path).body(Bytes::new()).unwrap();
        match transport.send(request).await {
            Ok(response) => {
                let code = response.status().as_u16();
                let read = response.into_body().collect().await;
                (code, read.map_or_else(|e| e.message, |b| String::from_utf8(b.to_bytes().to_vec()).unwrap()))
            }
            Err(e) => (0, e.message),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_fault_does_what_its_name_says_until_its_time_is_over() {
        let far = Arc::new(Far::default());
        let none = Faults::default();
        assert_eq!(ask(&far, none, Method::POST, "/x").await, (200, "done".into()));
        let refused = ask(&far, Faults { refused: 1000, ..none }, Method::PUT, "/x").await;
        assert!(refused.0 != 200 && *far.0.lock() == 1, "{refused:?}");
        let unanswered = ask(&far, Faults { unanswered: 1000, ..none }, Method::PUT, "/x").await;
        assert!(unanswered.0 != 200 && *far.0.lock() == 2, "{unanswered:?}");
        let watch = "/x?a=b&watch=true";
        assert_eq!(ask(&far, Faults { repeated: 1000, ..none }, Method::GET, watch).await.1, "a\na\nb\nb\nc\nc\n");
        assert!(ask(&far, Faults { expired: 1000, ..none }, Method::GET, watch).await.1.contains("410"));
        let cut = ask(&far, Faults { cut: 1000, ..none }, Method::GET, watch).await.1;
        assert!(cut.is_empty() || cut.contains("reset"), "{cut}");
        let begin = Instant::now();
        let stalled = Faults { stalled: 1000, lag: Duration::from_millis(400), ..none };
        assert_eq!(ask(&far, stalled, Method::GET, watch).await.1, "a\nb\nc\n");
        assert!(begin.elapsed() > Duration::ZERO, "nothing stood still");
        let dice = Dice::new(Faults { refused: 1000, until: Duration::from_secs(1), ..none }, 3);
        assert!(dice.hit(1000));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!dice.hit(1000), "all is well after its time");
    }
}
