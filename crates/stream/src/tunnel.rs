//! A byte stream inside WebSocket binary messages, as the `SPDY/3.1+…` subprotocols have it.

use crate::websocket::{normal_close, server};
use crate::{Io, pipe::CHUNK};
use bytes::BytesMut;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::tungstenite::Message;

/// Unwraps the bytes that `io`'s binary messages carry. The tunnel ends when either side closes.
pub async fn open(io: impl Io) -> DuplexStream {
    let (mut sink, mut source) = server(io).await.split();
    let (inner, outer) = tokio::io::duplex(2 * CHUNK);
    let (mut read, mut write) = tokio::io::split(outer);
    tokio::spawn(async move {
        while let Some(Ok(message)) = source.next().await {
            let Message::Binary(data) = message else {
                continue;
            };
            if write.write_all(&data).await.is_err() {
                // Nobody reads any more, but the close handshake still has to be seen.
                continue;
            }
        }
        // The inner end may be gone already.
        let _ = write.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK);
            match read.read_buf(&mut buffer).await {
                Ok(n) if n > 0 => {}
                _ => break,
            }
            if let Err(error) = sink.send(Message::Binary(buffer.split().freeze())).await {
                tracing::debug!(%error, "tunnel writer ended");
                return;
            }
        }
        // The peer may have closed first: nothing is lost then.
        let _ = sink.send(normal_close()).await;
    });
    inner
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::protocol::Role;

    #[tokio::test]
    async fn messages_become_bytes_and_back() {
        let (a, b) = tokio::io::duplex(4096);
        let mut inner = open(a).await;
        let mut client = WebSocketStream::from_raw_socket(b, Role::Client, None).await;
        client.send(Message::binary(b"ab".to_vec())).await.unwrap();
        client.send(Message::binary(b"cd".to_vec())).await.unwrap();
        let mut got = [0; 4];
        inner.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"abcd");
        inner.write_all(b"answer").await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::binary(b"answer".to_vec()));
        inner.shutdown().await.unwrap();
        assert!(matches!(client.next().await.unwrap().unwrap(), Message::Close(_)));
    }
}
