//! What stands around a back end: events that are too large lose their objects, and failures end requests.

use super::event::Event;
use super::{Sink, Written, report};

/// Noted on events that lost their objects.
const TRUNCATED: &str = "audit.k8s.io/truncated";

/// A back end that takes events up to a size (`--audit-*-truncate-*`).
pub struct Truncated {
    inner: Box<dyn Sink>,
    bytes_max: usize,
}

impl Truncated {
    /// Lets events of at most so many bytes of JSON through.
    #[must_use]
    pub fn new(inner: Box<dyn Sink>, bytes_max: usize) -> Self {
        Self { inner, bytes_max }
    }

    fn fits(&self, json: &str) -> bool {
        Event::line(json).len() <= self.bytes_max
    }
}

impl Sink for Truncated {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn is_strict(&self) -> bool {
        self.inner.is_strict()
    }

    fn write(&self, event: &Event, json: &str) -> Result<Written, String> {
        if self.fits(json) {
            return self.inner.write(event, json);
        }
        let mut short = event.clone();
        let mut json = json.to_owned();
        if matches!(event.level, "Request" | "RequestResponse") {
            (short.request_object, short.response_object) = (None, None);
            short.annotations.insert(TRUNCATED.into(), "true".into());
            json = short.item().map_err(|e| e.to_string())?;
        }
        if self.fits(&json) {
            return self.inner.write(&short, &json);
        }
        // As upstream, the event is lost without that the request is.
        report("truncate", "event is too large even after truncating", 1);
        Ok(Written::Done)
    }
}

/// A back end without whose record no request is answered (`--audit-*-mode blocking-strict`).
pub struct Strict(pub Box<dyn Sink>);

impl Sink for Strict {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn is_strict(&self) -> bool {
        true
    }

    fn write(&self, event: &Event, json: &str) -> Result<Written, String> {
        self.0.write(event, json)
    }
}
