//! The standard gRPC health check (`grpc.health.v1.Health/Check`), by a small HTTP/2 client.

use super::http::dial_error;
use bytes::{BufMut, Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;

const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

/// A `HealthCheckRequest` as a length-prefixed gRPC message.
fn request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8(length as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut out = BytesMut::new();
    out.put_u8(0);
    out.put_u32(message.len() as u32);
    out.put(message);
    out.freeze()
}

/// The status of a `HealthCheckResponse`; an empty message is `UNKNOWN` (0).
fn status(body: &[u8]) -> Option<u64> {
    let (head, message) = body.split_at_checked(5)?;
    let length = u32::from_be_bytes(head[1..].try_into().ok()?) as usize;
    let mut message = message.get(..length)?;
    let varint = |bytes: &mut &[u8]| {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = bytes.split_first()?;
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    };
    let mut found = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match key & 7 {
            0 => {
                let value = varint(&mut message)?;
                if key >> 3 == 1 {
                    found = value;
                }
            }
            2 => {
                let length = varint(&mut message)? as usize;
                message = message.get(length..)?;
            }
            _ => return None,
        }
    }
    Some(found)
}

async fn ask(address: SocketAddr, service: &str) -> Result<u64, String> {
    let tcp = TcpStream::connect(address).await.map_err(|e| {
        format!("error: failed to connect service {:?}: {}", address.to_string(), dial_error(&address.to_string(), &e))
    })?;
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp))
        .await
        .map_err(|e| e.to_string())?;
    // The connection's own error shows in the request's.
    let driver = tokio::spawn(async move {
        let _ = connection.await;
    });
    let result = async {
        let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", "kube-probe/1.37")
            .body(Full::new(request(service)))
            .map_err(|e| e.to_string())?;
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let code = |h: &http::HeaderMap| {
            let text = |n: &str| h.get(n).and_then(|v| v.to_str().ok()).map(str::to_owned);
            text("grpc-status").map(|code| (code, text("grpc-message").unwrap_or_default()))
        };
        let early = code(response.headers());
        let http = response.status();
        let collected = response.into_body().collect().await.map_err(|e| e.to_string())?;
        let outcome = collected.trailers().and_then(code).or(early);
        match outcome {
            Some((code, _)) if code == "0" => {
                status(&collected.to_bytes()).ok_or_else(|| "error: health rpc: malformed answer".to_owned())
            }
            Some((code, _)) if code == "12" => {
                Err("error: this server does not implement the grpc health protocol (grpc.health.v1.Health)".into())
            }
            Some((code, message)) => Err(format!("error: health rpc failed: code {code}: {message}")),
            None => Err(format!("error: health rpc failed: unexpected HTTP status {http}")),
        }
    }
    .await;
    driver.abort();
    result
}

/// Whether the service is healthy; the error is the sentence for the event.
pub(crate) async fn check(address: SocketAddr, service: &str, timeout: Duration) -> Result<(), String> {
    match tokio::time::timeout(timeout, ask(address, service)).await {
        Ok(Ok(1)) => Ok(()),
        Ok(Ok(other)) => {
            let name = usize::try_from(other).ok().and_then(|i| STATUSES.get(i)).copied().unwrap_or("UNKNOWN");
            Err(format!("service unhealthy (responded with {name:?})"))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => {
            Err(format!("timeout: health rpc did not complete within {}", crate::pod::backoff::go_duration(timeout)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_protobuf() {
        assert_eq!(&request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&request("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(status(&[0, 0, 0, 0, 2, 0x08, 1]), Some(1));
        assert_eq!(status(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(status(&[0, 0, 0, 0, 9, 0x08]), None);
        assert_eq!(status(&[0]), None);
    }

    #[tokio::test]
    async fn refused_connections_and_silent_servers_fail() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let slow = check(address, "", Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(slow, "timeout: health rpc did not complete within 50ms");
        drop(listener);
        assert!(check(address, "", Duration::from_secs(5)).await.unwrap_err().contains("connection refused"));
    }
}
