//! Events in other forms than they are kept in, made once for all watchers that ask for the same.

use super::{Event, Shown, WatchCache};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

/// Events kept in such forms: fewer than the ring holds in any case, so that none lives longer for it.
const RECENT_MAX: usize = 64;
/// Bytes kept, unless one event alone has more.
const RECENT_BYTES_MAX: usize = 256 * 1024;

/// How an event is written, where it is not the whole object in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// In protobuf.
    pub protobuf: bool,
    /// Only the metadata, as `PartialObjectMetadata` of this version.
    pub metadata: Option<&'static str>,
}

struct Made {
    event: Arc<Event>,
    shown: Shown,
    encoding: Encoding,
    bytes: Bytes,
}

impl Made {
    fn is(&self, event: &Arc<Event>, shown: Shown, encoding: Encoding) -> bool {
        Arc::ptr_eq(&self.event, event) && self.shown == shown && self.encoding == encoding
    }
}

/// What was made last for one resource.
#[derive(Default)]
pub(super) struct Encodings(Mutex<Recent>);

#[derive(Default)]
struct Recent {
    made: VecDeque<Made>,
    bytes: usize,
}

impl Recent {
    fn keep(&mut self, made: Made) {
        self.bytes += made.bytes.len();
        self.made.push_back(made);
        while self.made.len() > RECENT_MAX || self.bytes > RECENT_BYTES_MAX && self.made.len() > 1 {
            let Some(gone) = self.made.pop_front() else { break };
            self.bytes -= gone.bytes.len();
        }
    }
}

impl WatchCache {
    /// An event of this cache in another form: as a watcher before had it, or as `make` makes it.
    ///
    /// # Errors
    /// That of `make`.
    pub fn encoded<E>(
        &self,
        event: &Arc<Event>,
        shown: Shown,
        encoding: Encoding,
        make: impl FnOnce() -> Result<Bytes, E>,
    ) -> Result<Bytes, E> {
        let recent = self.encodings.0.lock();
        // The watchers of an event come one after the other, so it is among the last.
        if let Some(made) = recent.made.iter().rev().find(|m| m.is(event, shown, encoding)) {
            return Ok(made.bytes.clone());
        }
        // Others need not wait meanwhile; at worst two make the same.
        drop(recent);
        let bytes = make()?;
        let made = Made { event: event.clone(), shown, encoding, bytes: bytes.clone() };
        self.encodings.0.lock().keep(made);
        Ok(bytes)
    }
}
