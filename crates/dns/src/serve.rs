//! DNS over UDP and TCP.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RecordType},
};
use parking_lot::RwLock;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::{
    forward::Forwarder,
    message::{Request, encode, encode_within, rotate},
    zone::{Answer, Zone},
};

/// How many requests may wait for the host's resolvers at a time; more are told to come again.
const FORWARDED: usize = 1000;
/// How many TCP connections may be open at a time.
const CONNECTIONS: usize = 256;
/// How long a TCP connection may be idle.
const IDLE: Duration = Duration::from_secs(10);
/// How many aliases are followed.
const ALIASES: usize = 8;
/// The largest request that is read over UDP.
const LARGEST_REQUEST: usize = 4096;

/// What answers requests.
pub struct Server {
    zone: Arc<RwLock<Zone>>,
    forwarder: Forwarder,
    /// Whether the zone is complete. Before, "no such name" would be a lie.
    ready: AtomicBool,
    waiting: Semaphore,
    turn: AtomicUsize,
}

/// Sockets that requests come in by.
pub struct Listener {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Listener {
    /// Opens an address for UDP and TCP. With port 0 both get the same free port.
    ///
    /// # Errors
    /// When it is taken or not of this machine.
    pub async fn bind(address: SocketAddr) -> io::Result<Listener> {
        let tcp = TcpListener::bind(address).await?;
        let udp = UdpSocket::bind(tcp.local_addr()?).await?;
        Ok(Listener { udp, tcp })
    }

    /// The address.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

impl Server {
    /// Answers from a zone, and for the rest from the host's resolvers.
    pub fn new(zone: Arc<RwLock<Zone>>, forwarder: Forwarder) -> Server {
        Server {
            zone,
            forwarder,
            ready: AtomicBool::new(false),
            waiting: Semaphore::new(FORWARDED),
            turn: AtomicUsize::new(0),
        }
    }

    /// Says that the zone is complete. Before, questions about it get "server failure", which clients try again.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// Serves on sockets until `shutdown`.
    pub async fn serve(self: Arc<Self>, listener: Listener, shutdown: CancellationToken) {
        let Listener { udp, tcp } = listener;
        let udp = Arc::new(udp);
        let tasks = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let mut buffer = vec![0; LARGEST_REQUEST];
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                received = udp.recv_from(&mut buffer) => match received {
                    Ok((length, from)) => self.datagram(&udp, &buffer[..length], from, &tasks).await,
                    // An earlier answer could not be delivered; that is the client's loss.
                    Err(error) => debug!(%error, "receive DNS request"),
                },
                accepted = tcp.accept() => match accepted {
                    Ok((stream, _)) => {
                        let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
                        let (server, stop) = (self.clone(), shutdown.clone());
                        tasks.spawn(async move {
                            tokio::select! {
                                () = stop.cancelled() => {}
                                result = server.connection(stream) => if let Err(error) = result {
                                    debug!(%error, "DNS connection");
                                }
                            }
                            drop(slot);
                        });
                    }
                    Err(error) => {
                        warn!(%error, "accept DNS connection");
                        // Out of descriptors, most likely: give them time to come back.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
    }

    async fn datagram(self: &Arc<Self>, udp: &Arc<UdpSocket>, bytes: &[u8], from: SocketAddr, tasks: &TaskTracker) {
        let request = match Request::read(bytes) {
            Ok(request) => request,
            Err(refusal) => return send(udp, refusal, from).await,
        };
        let limit = request.largest_datagram();
        match self.local(&request) {
            Local::Answer(message) => send(udp, encode_within(message, limit), from).await,
            elsewhere => {
                if tasks.len() >= FORWARDED + CONNECTIONS {
                    return send(udp, encode(&request.respond(ResponseCode::ServFail)), from).await;
                }
                let (server, udp, bytes) = (self.clone(), udp.clone(), bytes.to_vec());
                tasks.spawn(async move {
                    let answer = server.elsewhere(&request, elsewhere, &bytes, false).await;
                    let answer = match answer {
                        Remote::Bytes(bytes) => Some(bytes),
                        Remote::Message(message) => encode_within(message, limit),
                    };
                    send(&udp, answer, from).await;
                });
            }
        }
    }

    async fn connection(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let mut length = [0; 2];
            match timeout(IDLE, stream.read_exact(&mut length)).await {
                Ok(Ok(_)) => {}
                // Closed, or nothing more to ask.
                Ok(Err(_)) | Err(_) => return Ok(()),
            }
            let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
            timeout(IDLE, stream.read_exact(&mut bytes)).await??;
            let answer = match Request::read(&bytes) {
                Err(refusal) => refusal,
                Ok(request) => match self.local(&request) {
                    Local::Answer(message) => encode_within(message, usize::from(u16::MAX)),
                    elsewhere => match self.elsewhere(&request, elsewhere, &bytes, true).await {
                        Remote::Bytes(bytes) => Some(bytes),
                        Remote::Message(message) => encode_within(message, usize::from(u16::MAX)),
                    },
                },
            };
            let Some(answer) = answer else { return Ok(()) };
            let mut framed = (answer.len() as u16).to_be_bytes().to_vec();
            framed.extend_from_slice(&answer);
            timeout(IDLE, stream.write_all(&framed)).await??;
        }
    }

    /// Answers from the zone, as far as it can.
    fn local(&self, request: &Request) -> Local {
        let (name, kind) = (request.query.name(), request.query.query_type());
        let zone = self.zone.read();
        let mut answer = zone.answer(name, kind);
        if matches!(answer, Answer::NotOurs) {
            return Local::Forward;
        }
        if !self.ready.load(Ordering::Acquire) {
            return Local::Answer(request.respond(ResponseCode::ServFail));
        }
        let mut response = request.respond(ResponseCode::NoError);
        response.metadata.authoritative = true;
        for _ in 0..ALIASES {
            match answer {
                Answer::Records { mut answers, additionals } => {
                    rotate(&mut answers, self.turn.fetch_add(1, Ordering::Relaxed));
                    response.add_answers(answers);
                    response.add_additionals(additionals);
                    return Local::Answer(response);
                }
                Answer::Alias { record, target } => {
                    response.add_answer(*record);
                    answer = zone.answer(&target, kind);
                    if matches!(answer, Answer::NotOurs) {
                        return Local::Chase { response: Box::new(response), target };
                    }
                }
                Answer::NoData => {
                    response.add_authority(zone.authority());
                    return Local::Answer(response);
                }
                Answer::NoSuchName => {
                    response.metadata.response_code = ResponseCode::NXDomain;
                    response.add_authority(zone.authority());
                    return Local::Answer(response);
                }
                Answer::NotOurs => return Local::Forward,
            }
        }
        // Aliases in a circle.
        Local::Answer(request.respond(ResponseCode::ServFail))
    }

    /// Answers with the help of the host's resolvers.
    async fn elsewhere(&self, request: &Request, what: Local, bytes: &[u8], over_tcp: bool) -> Remote {
        let failure = || Remote::Message(request.respond(ResponseCode::ServFail));
        let Ok(_slot) = self.waiting.try_acquire() else { return failure() };
        match what {
            Local::Answer(message) => Remote::Message(message),
            Local::Forward => match self.forwarder.ask(bytes, over_tcp).await {
                Some(answer) => Remote::Bytes(answer),
                None => failure(),
            },
            Local::Chase { mut response, target } => {
                let id = request.message.metadata.id;
                match self.resolve(id, target, request.query.query_type(), over_tcp).await {
                    Some(found) => {
                        response.add_answers(found.answers);
                        response.metadata.response_code = found.metadata.response_code;
                        response.metadata.truncation = found.metadata.truncation;
                        response.add_authorities(found.authorities);
                        Remote::Message(*response)
                    }
                    None => failure(),
                }
            }
        }
    }

    async fn resolve(&self, id: u16, name: Name, kind: RecordType, over_tcp: bool) -> Option<Message> {
        let mut question = Message::query();
        question.metadata.id = id;
        question.metadata.recursion_desired = true;
        question.add_query(Query::query(name, kind));
        let answer = self.forwarder.ask(&encode(&question)?, over_tcp).await?;
        Message::from_vec(&answer).ok()
    }
}

/// What the zone makes of a request.
enum Local {
    Answer(Message),
    /// It is none of ours.
    Forward,
    /// It begins with an alias of ours that leads elsewhere.
    Chase {
        response: Box<Message>,
        target: Name,
    },
}

/// What came of asking others.
enum Remote {
    Bytes(Vec<u8>),
    Message(Message),
}

async fn send(udp: &UdpSocket, answer: Option<Vec<u8>>, to: SocketAddr) {
    if let Some(answer) = answer
        && let Err(error) = udp.send_to(&answer, to).await
    {
        debug!(%to, %error, "send DNS answer");
    }
}

#[cfg(test)]
mod tests;
