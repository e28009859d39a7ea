//! The channel protocols over WebSocket: each message carries the number of a channel and bytes of it.

use crate::pipe::{INBOUND_CHUNKS, OUTBOUND_CHUNKS, Outgoing, QueueReader, QueueWriter};
use crate::{BoxRead, BoxWrite, Io};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;

/// Largest message accepted; clients send at most 32 KiB of payload.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// How long the peer may take to answer a close.
const LINGER: Duration = Duration::from_secs(5);

/// In `v5`, the channel number of the message that closes another channel (its one byte of payload).
const CLOSE_SIGNAL: u8 = 255;

/// How messages carry channel and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Binary messages; the first byte is the channel's number.
    Binary,
    /// Text messages; the first character is the channel's digit, the rest base64.
    Base64,
}

/// One channel to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Direction {
    /// The peer sends on it.
    pub read: bool,
    /// The peer receives on it.
    pub write: bool,
}

/// One channel's ends.
#[derive(Default)]
pub struct Channel {
    /// What the peer sends, where it may.
    pub reader: Option<BoxRead>,
    /// What the peer receives, where it may.
    pub writer: Option<BoxWrite>,
}

/// A WebSocket whose messages are split into channels.
pub struct Channels {
    /// The channels, by number.
    pub channels: Vec<Channel>,
    queue: mpsc::Sender<Outgoing<()>>,
    closed: CancellationToken,
    done: CancellationToken,
}

/// The WebSocket of an upgraded connection whose handshake is done.
pub(crate) async fn server(io: impl Io) -> WebSocketStream<impl Io> {
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// An orderly close.
pub(crate) fn normal_close() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

impl Channels {
    /// Starts the connection's tasks. `close_signal` turns on `v5`'s closing of single channels by the peer.
    pub async fn start(io: impl Io, encoding: Encoding, close_signal: bool, directions: &[Direction]) -> Self {
        let (mut sink, mut source) = server(io).await.split();
        let (queue, mut outgoing) = mpsc::channel::<Outgoing<()>>(OUTBOUND_CHUNKS);
        let (closed, done) = (CancellationToken::new(), CancellationToken::new());
        let mut channels = Vec::new();
        let mut inbound: Vec<Option<mpsc::Sender<Bytes>>> = Vec::new();
        for (number, direction) in directions.iter().enumerate() {
            let mut channel = Channel::default();
            let mut sender = None;
            if direction.read {
                let (chunks, receiver) = mpsc::channel(INBOUND_CHUNKS);
                sender = Some(chunks);
                channel.reader = Some(Box::new(QueueReader::new(receiver)));
            }
            if direction.write {
                let writer = QueueWriter::new(number as u32, queue.clone(), closed.clone());
                channel.writer = Some(Box::new(writer));
            }
            channels.push(channel);
            inbound.push(sender);
        }

        let reader_closed = closed.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = source.next().await {
                let Some((number, data)) = decode(encoding, message) else {
                    continue;
                };
                if close_signal && number == CLOSE_SIGNAL {
                    if let Some(slot) = data.first().and_then(|n| inbound.get_mut(usize::from(*n))) {
                        *slot = None;
                    }
                    continue;
                }
                if let Some(Some(chunks)) = inbound.get(usize::from(number))
                    && !data.is_empty()
                {
                    // An error means that nobody reads this channel: its bytes are dropped.
                    let _ = chunks.send(data).await;
                }
            }
            reader_closed.cancel();
        });

        let (writer_closed, writer_done) = (closed.clone(), done.clone());
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    biased;
                    message = outgoing.recv() => message,
                    () = writer_closed.cancelled() => None,
                };
                let sent = match message {
                    Some(Outgoing::Data(number, data)) => sink.send(encode(encoding, number as u8, &data)).await,
                    // Servers end single channels only with the whole connection.
                    Some(Outgoing::Fin(_)) => Ok(()),
                    Some(Outgoing::Control(())) | None => {
                        outgoing.close();
                        // The peer may have closed first: nothing is lost then.
                        let _ = sink.send(normal_close()).await;
                        break;
                    }
                };
                if let Err(error) = sent {
                    tracing::debug!(%error, "WebSocket writer ended");
                    break;
                }
            }
            writer_done.cancel();
        });
        Self { channels, queue, closed, done }
    }

    /// Sends an empty message on a channel, which tells clients that the connection is established.
    ///
    /// # Errors
    /// Where the connection is closed.
    pub async fn greet(&mut self, channel: usize) -> Result<(), crate::StreamError> {
        let message = Outgoing::Data(channel as u32, Bytes::new());
        self.queue.send(message).await.map_err(|_| crate::StreamError::Closed)
    }

    /// Cancelled when the peer is gone.
    #[must_use]
    pub fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    /// Closes in order (1000) after everything queued and waits at most 5 s for the peer's answer.
    pub async fn close(self) {
        if self.queue.send(Outgoing::Control(())).await.is_ok() {
            self.done.cancelled().await;
        }
        drop(self.channels);
        let _ = tokio::time::timeout(LINGER, self.closed.cancelled()).await;
    }
}

fn decode(encoding: Encoding, message: Message) -> Option<(u8, Bytes)> {
    match (encoding, message) {
        (Encoding::Binary, Message::Binary(data)) => Some((*data.first()?, data.slice(1..))),
        (Encoding::Base64, Message::Text(text)) => decode_base64(text.as_bytes()),
        (Encoding::Base64, Message::Binary(data)) => decode_base64(&data),
        (Encoding::Binary, Message::Text(text)) => {
            let data = Bytes::from(text.as_bytes().to_vec());
            Some((*data.first()?, data.slice(1..)))
        }
        _ => None,
    }
}

fn decode_base64(text: &[u8]) -> Option<(u8, Bytes)> {
    let (digit, rest) = text.split_first()?;
    Some((digit.checked_sub(b'0')?, STANDARD.decode(rest).ok()?.into()))
}

fn encode(encoding: Encoding, channel: u8, data: &[u8]) -> Message {
    match encoding {
        Encoding::Binary => {
            let mut message = Vec::with_capacity(data.len() + 1);
            message.push(channel);
            message.extend_from_slice(data);
            Message::Binary(message.into())
        }
        Encoding::Base64 => Message::text(format!("{}{}", char::from(b'0' + channel), STANDARD.encode(data))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn client(io: impl Io) -> WebSocketStream<impl Io> {
        WebSocketStream::from_raw_socket(io, Role::Client, None).await
    }

    const BOTH: Direction = Direction { read: true, write: true };

    #[tokio::test]
    async fn binary_channels_and_the_close_signal() {
        let (a, b) = tokio::io::duplex(4096);
        let mut server = Channels::start(a, Encoding::Binary, true, &[BOTH, BOTH]).await;
        let mut client = client(b).await;
        client.send(Message::binary(vec![0, b'h', b'i'])).await.unwrap();
        client.send(Message::binary(vec![255, 0])).await.unwrap();
        let mut got = Vec::new();
        server.channels[0].reader.take().unwrap().read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"hi");
        server.greet(1).await.unwrap();
        server.channels[1].writer.take().unwrap().write_all(b"yo").await.unwrap();
        let closing = tokio::spawn(server.close());
        assert_eq!(client.next().await.unwrap().unwrap(), Message::binary(vec![1]));
        assert_eq!(client.next().await.unwrap().unwrap(), Message::binary(vec![1, b'y', b'o']));
        let Message::Close(Some(frame)) = client.next().await.unwrap().unwrap() else { panic!("no close") };
        assert_eq!(frame.code, CloseCode::Normal);
        while client.next().await.is_some() {}
        closing.await.unwrap();
    }

    #[tokio::test]
    async fn base64_channels_are_text() {
        let (a, b) = tokio::io::duplex(4096);
        let mut server = Channels::start(a, Encoding::Base64, false, &[BOTH]).await;
        let mut client = client(b).await;
        client.send(Message::text("0aGk=")).await.unwrap();
        let mut got = [0; 2];
        server.channels[0].reader.as_mut().unwrap().read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hi");
        server.channels[0].writer.as_mut().unwrap().write_all(b"hi").await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), Message::text("0aGk="));
    }

    /// A client that closes ends every channel; garbage before that is passed over.
    #[tokio::test]
    async fn the_clients_close_ends_all_channels() {
        let (a, b) = tokio::io::duplex(4096);
        let mut server = Channels::start(a, Encoding::Base64, false, &[BOTH]).await;
        let mut client = client(b).await;
        client.send(Message::text("0***")).await.unwrap();
        client.send(Message::text("")).await.unwrap();
        client.send(Message::text("7aGk=")).await.unwrap();
        client.close(None).await.unwrap();
        let mut got = Vec::new();
        server.channels[0].reader.take().unwrap().read_to_end(&mut got).await.unwrap();
        assert!(got.is_empty());
        server.closed().cancelled().await;
        assert!(server.channels[0].writer.take().unwrap().write_all(b"x").await.is_err());
    }
}
