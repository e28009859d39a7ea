//! The side that answers.

use crate::frame;
use crate::status::{Code, Status};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What a method answers with.
pub enum Answer {
    /// One encoded message.
    One(Bytes),
    /// Encoded messages, until the sender is dropped.
    Many(mpsc::Receiver<Bytes>),
}

impl Answer {
    /// One message.
    #[must_use]
    pub fn of(message: &impl prost::Message) -> Self {
        Self::One(message.encode_to_vec().into())
    }
}

/// What is served on a socket.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// Answers a call of `/package.Service/Method` with an encoded message.
    ///
    /// # Errors
    /// What the caller is told; [`Code::UNIMPLEMENTED`] for methods that are not there.
    async fn call(&self, method: &str, request: Bytes) -> Result<Answer, Status>;
}

struct Reply {
    one: Option<Bytes>,
    many: Option<mpsc::Receiver<Bytes>>,
    trailers: Option<HeaderMap>,
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let reply = self.get_mut();
        if let Some(one) = reply.one.take() {
            return Poll::Ready(Some(Ok(Frame::data(frame::framed(&one)))));
        }
        if let Some(many) = &mut reply.many {
            match many.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(next)) => return Poll::Ready(Some(Ok(Frame::data(frame::framed(&next))))),
                Poll::Ready(None) => reply.many = None,
            }
        }
        Poll::Ready(reply.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }
}

async fn answered(service: &dyn Service, request: Request<Incoming>) -> Result<Answer, Status> {
    let method = request.uri().path().to_owned();
    let collected = Limited::new(request.into_body(), frame::MESSAGE_MAX + 5).collect().await;
    let body = collected.map_err(|e| Status::new(Code::INTERNAL, e.to_string()))?.to_bytes();
    let message = frame::take(&mut BytesMut::from(body))?;
    let message = message.ok_or_else(|| Status::new(Code::INTERNAL, "the request has no message"))?;
    service.call(&method, message).await
}

/// Answers calls on this socket until `stop`.
pub async fn serve(listener: UnixListener, service: Arc<dyn Service>, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        // What fails here is the one connection, or a shortage of descriptors, which passes.
        let Ok((stream, _)) = accepted else {
            tokio::task::yield_now().await;
            continue;
        };
        let (service, stop) = (service.clone(), stop.clone());
        tokio::spawn(async move {
            let handle = service_fn(move |request| {
                let service = service.clone();
                async move {
                    let (one, many, trailers) = match answered(service.as_ref(), request).await {
                        Ok(Answer::One(message)) => (Some(message), None, Status::trailers(Code::OK, "")),
                        Ok(Answer::Many(messages)) => (None, Some(messages), Status::trailers(Code::OK, "")),
                        Err(status) => (None, None, Status::trailers(status.code, &status.message)),
                    };
                    let mut response = Response::new(Reply { one, many, trailers: Some(trailers) });
                    let kind = http::HeaderValue::from_static("application/grpc");
                    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
                    Ok::<_, Infallible>(response)
                }
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), handle);
            tokio::select! {
                () = stop.cancelled() => {}
                // A caller that goes away is no news.
                _ = connection => {}
            }
        });
    }
}
