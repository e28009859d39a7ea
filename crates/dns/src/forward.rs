//! Questions that are none of the cluster's, asked of the host's resolvers.
//!
//! Requests and answers are passed on as they are, so that whatever client and resolver have agreed on (EDNS, DNSSEC,
//! types nobody here has heard of) works.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};
use tracing::{debug, warn};

/// How long one resolver may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a request is tried, over all resolvers.
const ATTEMPTS: usize = 3;
/// The most a datagram can hold.
const LARGEST_DATAGRAM: usize = 65_535;

/// The host's resolvers, as its `resolv.conf` lists them; read again when it changes.
#[derive(Debug)]
pub struct Forwarder {
    path: Option<PathBuf>,
    ours: Vec<SocketAddr>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    modified: Option<SystemTime>,
    servers: Vec<SocketAddr>,
}

impl Forwarder {
    /// With the resolvers in `path` (none: nothing is forwarded), leaving out `ours`, which would be a loop.
    pub fn new(path: Option<PathBuf>, ours: Vec<SocketAddr>) -> Forwarder {
        Forwarder { path, ours, known: Mutex::default() }
    }

    /// With fixed resolvers.
    #[cfg(test)]
    pub(crate) fn to(servers: Vec<SocketAddr>) -> Forwarder {
        let known = Mutex::new(Known { modified: None, servers });
        Forwarder { path: None, ours: Vec::new(), known }
    }

    /// The resolvers as they are now.
    pub fn servers(&self) -> Vec<SocketAddr> {
        let Some(path) = &self.path else { return self.known.lock().servers.clone() };
        // One look at the file's time for each request costs microseconds and needs no watching.
        let modified = fs::metadata(path).and_then(|m| m.modified()).ok();
        let mut known = self.known.lock();
        if modified.is_none() || known.modified != modified {
            match fs::read_to_string(path) {
                Ok(text) => known.servers = self.parse(&text),
                Err(error) => {
                    warn!(path = %path.display(), %error, "cannot read the host's resolvers");
                    known.servers.clear();
                }
            }
            known.modified = modified;
        }
        known.servers.clone()
    }

    fn parse(&self, text: &str) -> Vec<SocketAddr> {
        text.lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                if words.next() != Some("nameserver") {
                    return None;
                }
                // The scope of a link-local address (`fe80::1%eth0`) would need the interface's index.
                words.next()?.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 53))
            })
            .filter(|server| !self.is_ours(server))
            .collect()
    }

    fn is_ours(&self, server: &SocketAddr) -> bool {
        self.ours.iter().any(|own| {
            own.port() == server.port()
                && (own.ip() == server.ip() || own.ip().is_unspecified() && server.ip().is_loopback())
        })
    }

    /// Asks the resolvers, one after the other; `None` when none of them answers.
    pub async fn ask(&self, request: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let servers = self.servers();
        if servers.is_empty() {
            return None;
        }
        for server in servers.iter().cycle().take(ATTEMPTS.max(servers.len())) {
            let asked =
                async { if over_tcp { ask_tcp(*server, request).await } else { ask_udp(*server, request).await } };
            match timeout(PATIENCE, asked).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => debug!(%server, %error, "resolver does not answer"),
                Err(_) => debug!(%server, "resolver does not answer in time"),
            }
        }
        None
    }
}

async fn ask_udp(server: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    // A socket of its own for each request: a fresh random port, and nobody but the resolver can answer.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(request).await?;
    let mut buffer = vec![0; LARGEST_DATAGRAM];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if is_answer(request, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(request.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(request);
    stream.write_all(&framed).await?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).await?;
    if is_answer(request, &answer) {
        Ok(answer)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "answer to another question"))
    }
}

/// Whether bytes are a response with the request's id.
fn is_answer(request: &[u8], answer: &[u8]) -> bool {
    answer.len() >= 12 && answer[..2] == request[..2] && answer[2] & 0x80 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_resolv_conf_again_when_it_changes_and_skips_loops() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("resolv.conf");
        let ours: Vec<SocketAddr> = vec!["10.244.0.1:53".parse().expect("address")];
        let forwarder = Forwarder::new(Some(path.clone()), ours);
        assert!(forwarder.servers().is_empty(), "no file");
        let text = "# comment\nsearch example\nnameserver 192.0.2.1\nnameserver 10.244.0.1\nnameserver\tfd00::1 \nnameserver x\n";
        fs::write(&path, text).expect("write");
        let got: Vec<String> = forwarder.servers().iter().map(ToString::to_string).collect();
        assert_eq!(got, ["192.0.2.1:53", "[fd00::1]:53"]);
        fs::write(&path, "nameserver 127.0.0.53\n").expect("write");
        fs::File::options().write(true).open(&path).and_then(|f| f.set_modified(SystemTime::UNIX_EPOCH)).expect("time");
        assert_eq!(forwarder.servers()[0].to_string(), "127.0.0.53:53");
    }
}
