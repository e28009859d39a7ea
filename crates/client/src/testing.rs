//! An API server of tests' own, for crates that read objects and have none to ask.

use crate::{Body, Transport, TransportError};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long to wait before looking again.
const AGAIN: Duration = Duration::from_millis(5);

/// Answers lists from a table; watches give what is sent for them. Everything is by resource (`pods`).
#[derive(Default)]
pub struct Tables {
    /// The objects of lists.
    pub lists: Mutex<BTreeMap<&'static str, Vec<Value>>>,
    /// The latest watch.
    pub watches: Mutex<BTreeMap<String, mpsc::UnboundedSender<Bytes>>>,
    /// What was listed or watched.
    pub asked: Mutex<BTreeSet<String>>,
    /// Whether lists have to wait.
    pub down: Mutex<bool>,
}

impl Tables {
    /// One that answers with these objects.
    #[must_use]
    pub fn of(lists: impl IntoIterator<Item = (&'static str, Vec<Value>)>) -> Self {
        Self { lists: Mutex::new(lists.into_iter().collect()), ..Self::default() }
    }

    /// Sends an event of this type (`ADDED`) to who watches, once somebody does.
    ///
    /// # Panics
    /// Where the watch has ended.
    pub async fn tell(&self, resource: &str, r#type: &str, object: Value) {
        let event = json!({"type": r#type, "object": object}).to_string() + "\n";
        loop {
            if let Some(watch) = self.watches.lock().get(resource) {
                watch.unbounded_send(event.into()).expect("watch");
                return;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

#[async_trait]
impl Transport for Tables {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let resource = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        self.asked.lock().insert(resource.clone());
        if request.uri().query().unwrap_or_default().contains("watch=true") {
            let (tell, events) = mpsc::unbounded();
            self.watches.lock().insert(resource, tell);
            let frames = events.map(|bytes| Ok(http_body::Frame::data(bytes)));
            return Ok(Response::new(BodyExt::boxed(StreamBody::new(frames))));
        }
        while *self.down.lock() {
            tokio::time::sleep(AGAIN).await;
        }
        let items = self.lists.lock().get(resource.as_str()).cloned().unwrap_or_default();
        let list = json!({"metadata": {"resourceVersion": "1"}, "items": items}).to_string();
        Ok(Response::new(BodyExt::boxed(Full::new(Bytes::from(list)).map_err(|never| match never {}))))
    }
}
