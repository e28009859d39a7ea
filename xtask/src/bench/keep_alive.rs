//! A client that costs little: HTTP/1.1 over TLS, one connection that is kept, one request after the other. Where clients and
//! server share the machine, what a client costs is taken from the rate that is measured.

use anyhow::{Context, Result};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use gantry_client::{Body, HttpsConfig, Transport, TransportError, https};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use rustls_pki_types::ServerName;
use std::io::Write as _;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// More header fields than an answer has.
const HEADERS_MAX: usize = 32;
const READ_AT_ONCE: usize = 16 << 10;

/// One connection to one server under one identity.
pub struct KeepAlive {
    connector: TlsConnector,
    name: ServerName<'static>,
    address: String,
    connection: Mutex<Option<Connection>>,
}

struct Connection {
    stream: TlsStream<TcpStream>,
    received: BytesMut,
}

impl KeepAlive {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// Where the address, a certificate or a key cannot be used.
    pub fn new(config: &HttpsConfig) -> Result<Self> {
        let uri: Uri = config.server.parse().with_context(|| format!("server {:?}", config.server))?;
        let host = uri.host().with_context(|| format!("{uri} names no host"))?;
        let name = ServerName::try_from(host.to_owned()).with_context(|| format!("server {host:?}"))?;
        let mut tls = https::tls_config(config)?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let address = format!("{host}:{}", uri.port_u16().unwrap_or(443));
        Ok(Self { connector: Arc::new(tls).into(), name, address, connection: Mutex::new(None) })
    }

    async fn connect(&self) -> Result<Connection> {
        let tcp = TcpStream::connect(&self.address).await?;
        tcp.set_nodelay(true)?;
        let stream = self.connector.connect(self.name.clone(), tcp).await?;
        Ok(Connection { stream, received: BytesMut::new() })
    }

    fn encode(&self, request: &Request<Bytes>) -> Result<Vec<u8>> {
        let body = request.body();
        let mut text = Vec::with_capacity(512 + body.len());
        write!(text, "{} {} HTTP/1.1\r\nhost: {}\r\n", request.method(), request.uri(), self.address)?;
        for (name, value) in request.headers() {
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value.as_bytes());
            text.extend_from_slice(b"\r\n");
        }
        write!(text, "content-length: {}\r\n\r\n", body.len())?;
        text.extend_from_slice(body);
        Ok(text)
    }

    async fn exchange(&self, request: &Request<Bytes>) -> Result<Response<Bytes>> {
        let text = self.encode(request)?;
        let mut kept = self.connection.lock().await;
        // Taken out: one that broke, or whose answer nobody waited for, is not used again.
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        connection.stream.write_all(&text).await?;
        connection.stream.flush().await?;
        let answer = connection.answer().await?;
        *kept = Some(connection);
        Ok(answer)
    }
}

impl Connection {
    async fn answer(&mut self) -> Result<Response<Bytes>> {
        let (mut answer, length) = loop {
            if let Some((head, taken, length)) = head(&self.received)? {
                drop(self.received.split_to(taken));
                break (head, length);
            }
            self.read().await?;
        };
        while self.received.len() < length {
            self.read().await?;
        }
        *answer.body_mut() = self.received.split_to(length).freeze();
        Ok(answer)
    }

    async fn read(&mut self) -> Result<()> {
        self.received.reserve(READ_AT_ONCE);
        anyhow::ensure!(self.stream.read_buf(&mut self.received).await? > 0, "the server closed the connection");
        Ok(())
    }
}

/// An answer without its body, how long it is itself and how long the body; nothing where not all of it is there.
fn head(text: &[u8]) -> Result<Option<(Response<Bytes>, usize, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(taken) = parsed.parse(text)? else {
        return Ok(None);
    };
    let mut answer = Response::new(Bytes::new());
    *answer.status_mut() = StatusCode::from_u16(parsed.code.unwrap_or_default())?;
    let mut length = None;
    for header in parsed.headers {
        if header.name.eq_ignore_ascii_case("content-length") {
            length = Some(std::str::from_utf8(header.value)?.parse()?);
        }
        let name = HeaderName::from_bytes(header.name.as_bytes())?;
        answer.headers_mut().append(name, HeaderValue::from_bytes(header.value)?);
    }
    let length = length.context("the answer does not say how long it is; this client is for short ones")?;
    Ok(Some((answer, taken, length)))
}

#[async_trait]
impl Transport for KeepAlive {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        match self.exchange(&request).await {
            Ok(answer) => Ok(answer.map(|body| Full::new(body).map_err(|never| match never {}).boxed())),
            Err(error) => Err(TransportError {
                context: format!("{} {}", request.method(), request.uri().path()),
                message: format!("{error:#}"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_whole_or_not_at_all() {
        let text = b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\ncontent-length: 2\r\n\r\n{}";
        for end in 0..text.len() - 2 {
            assert!(head(&text[..end]).unwrap().is_none(), "{end}");
        }
        let (answer, taken, length) = head(text).unwrap().unwrap();
        assert_eq!((answer.status(), taken, length), (StatusCode::CREATED, text.len() - 2, 2));
        assert_eq!(answer.headers()["content-type"], "application/json");
        assert!(head(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        assert!(head(b"HTTP/9.9 nothing\r\n\r\n").is_err());
    }
}
