//! Port forwarding: pairs of streams (data and error) per forwarded connection.
//!
//! Over SPDY (also tunnelled in WebSocket messages) clients open a pair per connection, told apart by `requestID`;
//! over plain WebSocket channels the ports are named in the query and each has one pair for the whole connection.

use crate::handshake::{self, Agreement, Carrier, WebSocketProtocol};
use crate::spdy::{Connection, ResetStatus, Role, Stream};
use crate::tunnel;
use crate::websocket::{Channels, Direction, Encoding};
use crate::{BoxRead, BoxWrite, Io, Rejection, StreamError};
use async_trait::async_trait;
use http::Response;
use http::request::Parts;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::Instant;

const V1: &str = "portforward.k8s.io";
const OVER_SPDY: &[&str] = &[V1];
const OVER_WEBSOCKET: &[WebSocketProtocol] = &[
    WebSocketProtocol { name: "SPDY/3.1+portforward.k8s.io", encoding: Encoding::Binary, tunnel: true },
    WebSocketProtocol { name: "v4.channel.k8s.io", encoding: Encoding::Binary, tunnel: false },
    WebSocketProtocol { name: "v4.base64.channel.k8s.io", encoding: Encoding::Base64, tunnel: false },
];

/// How long the second stream of a pair may take.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);

/// Half-open pairs a client may have.
const MAX_HALF_PAIRS: usize = 256;

/// What connects to a port.
#[async_trait]
pub trait Dialer: Send + Sync + 'static {
    /// Connects to `port` of the pod and copies between it and the client until either side ends.
    ///
    /// # Errors
    /// The sentence for the client's error stream, complete.
    async fn forward(&self, port: u16, from: BoxRead, to: BoxWrite) -> Result<(), String>;
}

/// A port-forward request whose protocol is agreed on.
#[derive(Debug, Clone)]
pub struct Upgrade {
    agreement: Agreement,
    ports: Vec<u16>,
}

/// Agrees with the client on a protocol. `ports` are those of the query (`port=` or `ports=`), which only plain
/// WebSocket channels need.
///
/// # Errors
/// The answer to give where no upgrade is asked for, no protocol is common or no port is named.
pub fn negotiate(parts: &Parts, ports: Vec<u16>) -> Result<Upgrade, Rejection> {
    let agreement = if handshake::is_websocket(parts) {
        handshake::websocket(parts, OVER_WEBSOCKET)?
    } else {
        handshake::spdy(parts, OVER_SPDY)?
    };
    if matches!(agreement.carrier, Carrier::WebSocket { .. }) && ports.is_empty() {
        return Err(Rejection {
            status: http::StatusCode::BAD_REQUEST,
            message: "query parameter \"port\" is required".into(),
            accepted: &[],
        });
    }
    Ok(Upgrade { agreement, ports })
}

impl Upgrade {
    /// The `101 Switching Protocols` answer.
    #[must_use]
    pub fn response(&self) -> Response<()> {
        self.agreement.response()
    }

    /// Serves the upgraded connection until the client closes it.
    ///
    /// # Errors
    /// Where the connection cannot be set up or breaks.
    pub async fn serve(self, io: impl Io, dialer: Arc<dyn Dialer>) -> Result<(), StreamError> {
        match self.agreement.carrier {
            Carrier::Spdy => over_spdy(Connection::start(io, Role::Server)?, dialer).await,
            Carrier::Tunnel { .. } => over_spdy(Connection::start(tunnel::open(io).await, Role::Server)?, dialer).await,
            Carrier::WebSocket { encoding, .. } => over_websocket(io, encoding, self.ports, dialer).await,
        }
    }
}

#[derive(Default)]
struct Pair {
    data: Option<Stream>,
    error: Option<Stream>,
    port: u16,
    since: Option<Instant>,
}

async fn over_spdy(mut connection: Connection, dialer: Arc<dyn Dialer>) -> Result<(), StreamError> {
    let mut pairs: HashMap<String, Pair> = HashMap::new();
    let mut forwards = JoinSet::new();
    let closed = connection.closed();
    loop {
        let oldest = pairs.values().filter_map(|p| p.since).min();
        let expiry = async {
            match oldest {
                Some(since) => tokio::time::sleep_until(since + PAIR_TIMEOUT).await,
                None => std::future::pending().await,
            }
        };
        let mut stream = tokio::select! {
            stream = connection.next() => match stream {
                Some(stream) => stream,
                None => break,
            },
            () = closed.cancelled() => break,
            () = expiry => {
                let now = Instant::now();
                pairs.retain(|_, p| p.since.is_none_or(|since| now < since + PAIR_TIMEOUT));
                continue;
            }
            Some(_) = forwards.join_next(), if !forwards.is_empty() => continue,
        };
        let (port, is_data) = match describe(&stream) {
            Ok(described) => described,
            Err(reason) => {
                tracing::debug!(reason, "port-forward stream refused");
                stream.reset(ResetStatus::REFUSED_STREAM).await?;
                continue;
            }
        };
        // Clients without request ids open the error stream right before its data stream.
        let request = stream.headers.get("requestID").filter(|r| !r.is_empty()).map(str::to_owned);
        let request = request.unwrap_or_else(|| stream.id.saturating_sub(if is_data { 2 } else { 0 }).to_string());
        if !pairs.contains_key(&request) && pairs.len() >= MAX_HALF_PAIRS {
            stream.reset(ResetStatus::REFUSED_STREAM).await?;
            continue;
        }
        let pair = pairs.entry(request.clone()).or_default();
        let slot = if is_data { &mut pair.data } else { &mut pair.error };
        if slot.is_some() {
            stream.reset(ResetStatus::REFUSED_STREAM).await?;
            continue;
        }
        stream.accept().await?;
        *slot = Some(stream);
        pair.port = port;
        pair.since.get_or_insert_with(Instant::now);
        if let Some(Pair { data: Some(_), error: Some(_), .. }) = pairs.get(&request)
            && let Some(Pair { data: Some(data), error: Some(error), port, .. }) = pairs.remove(&request)
        {
            let dialer = dialer.clone();
            forwards.spawn(async move {
                let (mut refused, data_id) = (error.writer, data.id);
                if let Err(message) = dialer.forward(port, data.reader, data.writer).await {
                    tracing::debug!(message, stream = data_id, "port-forward");
                    // A client that is gone needs no explanation.
                    let _ = refused.write_all(message.as_bytes()).await;
                }
                let _ = refused.shutdown().await;
            });
        }
    }
    // Dropping the set ends what still forwards: its client is gone.
    drop(forwards);
    connection.close().await;
    Ok(())
}

/// Port and type of a new stream, or why it is refused (upstream's sentences).
fn describe(stream: &Stream) -> Result<(u16, bool), String> {
    let port = stream.headers.get("port").filter(|p| !p.is_empty()).ok_or("\"port\" header is required")?;
    let number: u16 = port.parse().map_err(|e| format!("unable to parse {port:?} as a port: {e}"))?;
    if number == 0 {
        return Err(format!("port {port:?} must be > 0"));
    }
    match stream.headers.get("streamType") {
        Some("data") => Ok((number, true)),
        Some("error") => Ok((number, false)),
        None | Some("") => Err("\"streamType\" header is required".into()),
        Some(other) => Err(format!("invalid stream type {other:?}")),
    }
}

async fn over_websocket(
    io: impl Io,
    encoding: Encoding,
    ports: Vec<u16>,
    dialer: Arc<dyn Dialer>,
) -> Result<(), StreamError> {
    let data = Direction { read: true, write: true };
    let error = Direction { read: false, write: true };
    let directions: Vec<Direction> = ports.iter().flat_map(|_| [data, error]).collect();
    let mut channels = Channels::start(io, encoding, false, &directions).await;
    let mut forwards = JoinSet::new();
    let ends = std::mem::take(&mut channels.channels);
    let mut ends = ends.into_iter();
    for port in ports {
        let (Some(data), Some(error)) = (ends.next(), ends.next()) else {
            break;
        };
        let (Some(reader), Some(mut writer), Some(mut refused)) = (data.reader, data.writer, error.writer) else {
            continue;
        };
        // Each channel begins with the port it is for, little-endian.
        writer.write_all(&port.to_le_bytes()).await?;
        refused.write_all(&port.to_le_bytes()).await?;
        let dialer = dialer.clone();
        forwards.spawn(async move {
            // At once, not with the client's first byte: in many protocols the server speaks first.
            if let Err(message) = dialer.forward(port, reader, writer).await {
                let _ = refused.write_all(message.as_bytes()).await;
            }
        });
    }
    let closed = channels.closed();
    tokio::select! {
        () = async { while forwards.join_next().await.is_some() {} } => {}
        () = closed.cancelled() => {}
    }
    drop(forwards);
    channels.close().await;
    Ok(())
}

#[cfg(test)]
mod tests;
