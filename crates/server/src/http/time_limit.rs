//! How long a request may take that is no watch and no stream of a pod: a client that sends or reads it slowly must not keep
//! its seats, nor what a list is made from.

use crate::request::ResponseBody;
use bytes::Bytes;
use gantry_api::meta::status::ApiError;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// As kube-apiserver's `--request-timeout`.
pub const REQUEST_WITHIN: Duration = Duration::from_secs(60);
/// A reader who takes nothing for so long costs nothing for the time being, so it needs no seats either.
const STALLED_AFTER: Duration = Duration::from_secs(1);

/// What upstream answers then.
#[must_use]
pub fn timed_out() -> ApiError {
    ApiError::new(504, "Timeout", "Timeout: request did not complete within the allotted timeout")
}

/// An answer that keeps something until it is written, given up, or its reader stalls. Where it is not read within this
/// time, it breaks off: its head is out already.
#[must_use]
pub fn held<T: Send + 'static>(body: ResponseBody, kept: T, within: Duration) -> ResponseBody {
    let open = Arc::new(Mutex::new(Some(Open { body, kept: Some(kept), read: true })));
    let limited = open.clone();
    // A body is not asked for more while its reader stalls, so it cannot look at the time itself.
    let limit = tokio::spawn(async move {
        let end = Instant::now() + within;
        while Instant::now() < end {
            tokio::time::sleep_until(end.min(Instant::now() + STALLED_AFTER)).await;
            let mut limited = limited.lock();
            let Some(open) = limited.as_mut() else { return };
            if !std::mem::take(&mut open.read) {
                open.kept = None;
            }
        }
        limited.lock().take();
    });
    Held { open, limit: limit.abort_handle() }.boxed()
}

struct Open<T> {
    body: ResponseBody,
    kept: Option<T>,
    /// Whether the reader took something since the last look.
    read: bool,
}

struct Held<T> {
    open: Arc<Mutex<Option<Open<T>>>>,
    limit: AbortHandle,
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        self.limit.abort();
        // The task may live somewhat longer.
        self.open.lock().take();
    }
}

impl<T: Send + 'static> Body for Held<T> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.open.lock().as_mut() {
            Some(open) => {
                open.read = true;
                Pin::new(&mut open.body).poll_frame(cx)
            }
            None => Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::TimedOut, timed_out().message)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.open.lock().as_ref().is_some_and(|open| open.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.open.lock().as_ref().map_or_else(SizeHint::default, |open| open.body.size_hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use http_body_util::StreamBody;

    /// A body of two pieces that keeps a count of itself.
    fn body(kept: &Arc<()>) -> ResponseBody {
        let pieces = ["one", "two"].map(|text| Ok(Frame::data(Bytes::from_static(text.as_bytes()))));
        held(BodyExt::boxed(StreamBody::new(futures::stream::iter(pieces))), kept.clone(), REQUEST_WITHIN)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_read_in_time_is_whole_and_lets_go() {
        let kept = Arc::new(());
        let body = body(&kept);
        assert_eq!(Arc::strong_count(&kept), 2);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "onetwo");
        assert_eq!(Arc::strong_count(&kept), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stalls_gives_back_what_is_kept_and_may_go_on() {
        let kept = Arc::new(());
        let mut pieces = body(&kept).into_data_stream();
        tokio::time::sleep(STALLED_AFTER / 2).await;
        assert_eq!(pieces.next().await.unwrap().unwrap(), "one");
        tokio::time::sleep(STALLED_AFTER).await;
        assert_eq!(Arc::strong_count(&kept), 2, "it read something meanwhile");
        tokio::time::sleep(STALLED_AFTER).await;
        assert_eq!(Arc::strong_count(&kept), 1);
        assert_eq!(pieces.next().await.unwrap().unwrap(), "two");
        assert!(pieces.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_reads_lets_go_and_breaks_off() {
        let kept = Arc::new(());
        let mut pieces = body(&kept).into_data_stream();
        assert_eq!(pieces.next().await.unwrap().unwrap(), "one");
        tokio::time::sleep(REQUEST_WITHIN * 2).await;
        assert_eq!(Arc::strong_count(&kept), 1, "although the body is still there");
        let error = pieces.next().await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), "Timeout: request did not complete within the allotted timeout");
    }
}
