//! The side that calls.

use crate::frame;
use crate::status::{Code, Status};
use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// First and longest wait between two attempts to connect.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A socket file. A name that begins with `@` is in the abstract namespace.
    Unix(PathBuf),
    /// An address.
    Tcp(SocketAddr),
}

impl Target {
    /// As Go's dialer names it in errors.
    fn shown(&self) -> String {
        match self {
            Target::Unix(path) => format!("unix {}", path.display()),
            Target::Tcp(address) => format!("tcp {address}"),
        }
    }

    async fn connect(&self) -> io::Result<Connection> {
        match self {
            Target::Tcp(address) => handshake(TcpStream::connect(address).await?).await,
            Target::Unix(path) => {
                use std::os::linux::net::SocketAddrExt;
                use std::os::unix::ffi::OsStrExt;
                let Some(name) = path.as_os_str().as_bytes().strip_prefix(b"@") else {
                    return handshake(UnixStream::connect(path).await?).await;
                };
                // A connection to an abstract name succeeds or fails at once.
                let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
                let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
                stream.set_nonblocking(true)?;
                handshake(UnixStream::from_std(stream)?).await
            }
        }
    }
}

async fn handshake<S>(stream: S) -> io::Result<Connection>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let connected = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = connected.map_err(io::Error::other)?;
    // The connection's own error shows in those of the calls. It ends when the last sender is dropped.
    let lost = CancellationToken::new();
    let ended = lost.clone().drop_guard();
    tokio::spawn(async move {
        let _ = connection.await;
        drop(ended);
    });
    Ok(Connection { sender, lost })
}

/// The text of an error of the system without Rust's number behind it, as Go writes it.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// A connection to a server, made when it is first needed and again when it was lost.
pub struct Channel {
    target: Target,
    user_agent: &'static str,
    /// Calls wait until the server can be reached, as long as their time lasts.
    wait_for_ready: bool,
    connection: Mutex<Option<Connection>>,
}

/// A connection, and what tells of its end.
#[derive(Clone)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    lost: CancellationToken,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Channel").field(&self.target).finish()
    }
}

impl Channel {
    /// A channel; nothing is connected yet.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self { target, user_agent: "gantry", wait_for_ready: false, connection: Mutex::new(None) }
    }

    /// Calls itself this.
    #[must_use]
    pub fn user_agent(self, user_agent: &'static str) -> Self {
        Self { user_agent, ..self }
    }

    /// A server that cannot be reached is tried again until the call's time is over, instead of failing the call at
    /// once.
    #[must_use]
    pub fn wait_for_ready(self) -> Self {
        Self { wait_for_ready: true, ..self }
    }

    /// Where it leads.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Connects, if it is not connected. The token is cancelled when this connection ends.
    ///
    /// # Errors
    /// Where nobody listens, or no HTTP/2 is spoken.
    pub async fn connect(&self) -> io::Result<CancellationToken> {
        self.connection().await.map(|c| c.lost)
    }

    async fn connection(&self) -> io::Result<Connection> {
        let mut connection = self.connection.lock().await;
        if let Some(connection) = connection.as_ref().filter(|c| !c.sender.is_closed()) {
            return Ok(connection.clone());
        }
        *connection = None;
        let made = self.target.connect().await?;
        *connection = Some(made.clone());
        Ok(made)
    }

    /// The error of an attempt to connect; `last` keeps it for calls whose time is over while they wait.
    async fn reached(&self, last: &Mutex<Option<String>>) -> Result<SendRequest<Full<Bytes>>, Status> {
        let mut wait = RETRY.0;
        loop {
            match self.connection().await {
                Ok(connection) => return Ok(connection.sender),
                Err(error) => {
                    let (target, error) = (self.target.shown(), plain(&error));
                    let why = format!(
                        "connection error: desc = \"transport: Error while dialing: dial {target}: connect: {error}\""
                    );
                    if !self.wait_for_ready {
                        return Err(Status::new(Code::UNAVAILABLE, why));
                    }
                    *last.lock().await = Some(why);
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY.1);
                }
            }
        }
    }

    async fn send(
        &self,
        method: &str,
        body: Bytes,
        last: &Mutex<Option<String>>,
    ) -> Result<Response<Incoming>, Status> {
        let authority = match &self.target {
            Target::Unix(_) => "localhost".to_owned(),
            Target::Tcp(address) => address.to_string(),
        };
        let mut again = true;
        let response = loop {
            let mut sender = self.reached(last).await?;
            let request = Request::post(format!("http://{authority}{method}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .header("user-agent", self.user_agent)
                .body(Full::new(body.clone()))
                .map_err(|e| Status::new(Code::INTERNAL, e.to_string()))?;
            let sent = match sender.ready().await {
                Ok(()) => sender.send_request(request).await,
                Err(e) => Err(e),
            };
            match sent {
                Ok(response) => break response,
                // The connection was found broken before the call was on its way: it is made on another.
                Err(e) if (e.is_canceled() || e.is_closed()) && again => {
                    again = self.wait_for_ready;
                    *self.connection.lock().await = None;
                    tokio::time::sleep(RETRY.0).await;
                }
                Err(e) => return Err(Status::new(Code::UNAVAILABLE, format!("error reading from server: {e}"))),
            }
        };
        if response.status() != 200 && !response.headers().contains_key("grpc-status") {
            let why = format!("unexpected HTTP status code received from server: {}", response.status());
            return Err(Status::new(Code::UNKNOWN, why));
        }
        Ok(response)
    }

    /// A call with one answer, of `/package.Service/Method`.
    ///
    /// # Errors
    /// What the server says, or why it cannot be asked; `DeadlineExceeded` where it took longer than `timeout`.
    pub async fn unary<Q: Message, R: Message + Default>(
        &self,
        method: &str,
        request: &Q,
        timeout: Duration,
    ) -> Result<R, Status> {
        let last = Mutex::new(None);
        let call = async {
            let response = self.send(method, frame::framed(&request.encode_to_vec()), &last).await?;
            let mut answers = Streaming::<R>::new(response);
            let answer = answers.message().await?;
            // The status comes behind the message.
            if answer.is_some() && answers.message().await?.is_some() {
                return Err(Status::new(Code::INTERNAL, "cardinality violation: more than one message"));
            }
            answer.ok_or_else(|| Status::new(Code::INTERNAL, "cardinality violation: received no response message"))
        };
        match tokio::time::timeout(timeout, call).await {
            Ok(result) => result,
            Err(_) => {
                let why = last.lock().await.take().map(|why| format!("latest balancer error: {why}"));
                Err(Status::new(Code::DEADLINE_EXCEEDED, why.unwrap_or_else(|| "context deadline exceeded".into())))
            }
        }
    }

    /// A call with a stream of answers, which ends when it is dropped.
    ///
    /// # Errors
    /// What the server says, or why it cannot be asked.
    pub async fn stream<Q: Message, R: Message + Default>(
        &self,
        method: &str,
        request: &Q,
    ) -> Result<Streaming<R>, Status> {
        let last = Mutex::new(None);
        Ok(Streaming::new(self.send(method, frame::framed(&request.encode_to_vec()), &last).await?))
    }
}

/// The answers to a call.
pub struct Streaming<R> {
    body: Option<Incoming>,
    buffer: BytesMut,
    /// What was said in place of a body.
    status: Option<Status>,
    answers: PhantomData<fn() -> R>,
}

impl<R: Message + Default> Streaming<R> {
    fn new(response: Response<Incoming>) -> Self {
        let status = Status::of(response.headers());
        Self { body: Some(response.into_body()), buffer: BytesMut::new(), status, answers: PhantomData }
    }

    /// The next answer; None after the last.
    ///
    /// # Errors
    /// What the server says at the end where it failed, or that the connection broke.
    pub async fn message(&mut self) -> Result<Option<R>, Status> {
        loop {
            if let Some(message) = frame::take(&mut self.buffer)? {
                return R::decode(message).map(Some).map_err(|e| {
                    Status::new(Code::INTERNAL, format!("grpc: failed to unmarshal the received message: {e}"))
                });
            }
            let Some(body) = &mut self.body else { return Ok(None) };
            match body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    Err(other) => self.status = other.trailers_ref().and_then(Status::of).or(self.status.take()),
                },
                Some(Err(e)) => {
                    self.body = None;
                    return Err(Status::new(Code::UNAVAILABLE, format!("error reading from server: {e}")));
                }
                None => {
                    self.body = None;
                    return match self.status.take() {
                        Some(status) if status.code == Code::OK => Ok(None),
                        Some(status) => Err(status),
                        None => {
                            let why = "server closed the stream without sending trailers";
                            Err(Status::new(Code::INTERNAL, why))
                        }
                    };
                }
            }
        }
    }
}
