//! One stream of bytes from server to client over WebSocket: how browsers read logs.

use crate::Io;
use crate::handshake::{self, Agreement, Carrier, WebSocketProtocol};
use crate::websocket::{Encoding, normal_close, server};
use crate::{Rejection, StreamError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, Stream, StreamExt};
use http::Response;
use http::request::Parts;
use tokio_tungstenite::tungstenite::Message;

const SPOKEN: &[WebSocketProtocol] = &[
    WebSocketProtocol { name: "binary.k8s.io", encoding: Encoding::Binary, tunnel: false },
    WebSocketProtocol { name: "base64.binary.k8s.io", encoding: Encoding::Base64, tunnel: false },
];

/// An agreed upgrade: answer with [`Upgrade::response`], then [`Upgrade::serve`] the connection.
#[derive(Debug)]
pub struct Upgrade {
    agreement: Agreement,
    encoding: Encoding,
}

impl Upgrade {
    /// Agrees on a protocol; `None` where the request does not ask for a WebSocket.
    ///
    /// # Errors
    /// Where the client speaks no protocol of the server's, or sends a bad handshake.
    pub fn negotiate(parts: &Parts) -> Option<Result<Self, Rejection>> {
        if !handshake::is_websocket(parts) {
            return None;
        }
        Some(handshake::websocket(parts, SPOKEN).map(|agreement| {
            let encoding = match agreement.carrier {
                Carrier::WebSocket { encoding, .. } => encoding,
                Carrier::Spdy | Carrier::Tunnel { .. } => Encoding::Binary,
            };
            Self { agreement, encoding }
        }))
    }

    /// The `101 Switching Protocols` answer.
    #[must_use]
    pub fn response(&self) -> Response<()> {
        self.agreement.response()
    }

    /// Sends an empty message, then `data` until it ends or the client goes. What the client sends is not read.
    ///
    /// # Errors
    /// Where the connection or `data` breaks.
    pub async fn serve(
        self,
        io: impl Io,
        data: impl Stream<Item = std::io::Result<Bytes>> + Send,
    ) -> Result<(), StreamError> {
        let (mut sink, mut source) = server(io).await.split();
        let message = |data: Bytes| match self.encoding {
            Encoding::Binary => Message::Binary(data),
            Encoding::Base64 => Message::Text(STANDARD.encode(&data).into()),
        };
        let broken = |e: tokio_tungstenite::tungstenite::Error| StreamError::Io(std::io::Error::other(e));
        sink.send(message(Bytes::new())).await.map_err(broken)?;
        let mut data = std::pin::pin!(data);
        loop {
            tokio::select! {
                chunk = data.next() => match chunk {
                    Some(chunk) => sink.send(message(chunk?)).await.map_err(broken)?,
                    None => return sink.send(normal_close()).await.map_err(broken),
                },
                // Pings are answered by reading on.
                received = source.next() => match received {
                    Some(Ok(message)) if !message.is_close() => {}
                    _ => return Ok(()),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::protocol::Role;

    fn request(protocol: &str) -> Parts {
        let builder = http::Request::get("/")
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("Sec-WebSocket-Protocol", protocol);
        builder.body(()).unwrap().into_parts().0
    }

    #[tokio::test]
    async fn bytes_come_as_messages_after_an_empty_one() {
        for (protocol, wanted) in
            [("binary.k8s.io", Message::binary("ab")), ("base64.binary.k8s.io", Message::text("YWI="))]
        {
            let upgrade = Upgrade::negotiate(&request(protocol)).unwrap().unwrap();
            assert_eq!(upgrade.response().headers()["sec-websocket-protocol"], protocol);
            let (near, far) = tokio::io::duplex(1000);
            let data = futures::stream::iter([Ok(Bytes::from("ab"))]);
            let serving = tokio::spawn(upgrade.serve(near, data));
            let mut client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
            assert!(client.next().await.unwrap().unwrap().is_empty());
            assert_eq!(client.next().await.unwrap().unwrap(), wanted);
            assert!(client.next().await.unwrap().unwrap().is_close());
            serving.await.unwrap().unwrap();
        }
    }

    #[test]
    fn other_requests_and_protocols() {
        let plain = http::Request::get("/").body(()).unwrap().into_parts().0;
        assert!(Upgrade::negotiate(&plain).is_none());
        assert_eq!(Upgrade::negotiate(&request("v4.channel.k8s.io")).unwrap().unwrap_err().status, 403);
    }
}
