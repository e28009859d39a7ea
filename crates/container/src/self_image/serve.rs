//! `serve` and `tcp-echo`: a web server small enough to read, which finishes its requests when told to end. One thread,
//! woken by nothing but its sockets and signals: pods that serve nobody cost nothing.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::{Outcome, default_sigterm, duration, print};

/// Greatest request head and body taken.
const MAX_REQUEST: usize = 1 << 20;
/// Greatest number of connections served at a time; more wait in the backlog.
const MAX_CONNECTIONS: usize = 256;
/// How long a connection may wait for its next request…
const IDLE: Duration = Duration::from_secs(60);
/// …and for the rest of one, or for its answer to be taken.
const REQUEST: Duration = Duration::from_secs(10);
/// How long requests in flight may take after the program is told to end.
const ENDING: Duration = Duration::from_secs(25);

struct Server {
    started: Instant,
    ready_after: Duration,
    ending: bool,
}

pub(super) fn listen(port: &str) -> Result<TcpListener, String> {
    let port: u16 = port.parse().map_err(|_| format!("{port:?} is not a port"))?;
    // One socket for both families where there is IPv6.
    TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
        .or_else(|_| TcpListener::bind(("0.0.0.0", port)))
        .map_err(|e| format!("port {port}: {e}"))
}

pub(super) fn serve(args: &[&str]) -> Outcome {
    let (mut port, mut delay) = ("8080", Duration::ZERO);
    let mut rest = args.iter();
    while let Some(option) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("{option} needs a value"))?;
        match *option {
            "--port" => port = value,
            "--delay-ready" => delay = duration(value)?,
            other => return Err(format!("unknown option {other}")),
        }
    }
    let listener = listen(port)?;
    listener.set_nonblocking(true).map_err(|e| format!("port {port}: {e}"))?;
    let signals = signals().map_err(|e| format!("signals: {e}"))?;
    let mut server = Server { started: Instant::now(), ready_after: delay, ending: false };
    print(&format!("serving on port {port}\n"))?;
    let mut listener = Some(listener);
    let mut connections: Vec<Connection> = Vec::new();
    let mut deadline = None;
    loop {
        let now = Instant::now();
        connections.retain(|c| !c.over && now < c.until);
        if server.ending && (connections.is_empty() || deadline.is_some_and(|d| now >= d)) {
            return Ok(0);
        }
        let mut set = vec![entry(signals.as_raw_fd(), libc::POLLIN)];
        let open = listener.as_ref().filter(|_| connections.len() < MAX_CONNECTIONS);
        // A negative descriptor is passed over.
        set.push(entry(open.map_or(-1, |l| l.as_raw_fd()), libc::POLLIN));
        set.extend(connections.iter().map(|c| entry(c.stream.as_raw_fd(), c.events())));
        let until = connections.iter().map(|c| c.until).chain(deadline).min();
        // Rounded up, so that the time has come when the wait is over.
        let wait =
            until.map_or(-1, |at| i32::try_from(at.saturating_duration_since(now).as_millis() + 1).unwrap_or(-1));
        // SAFETY: `set` is valid for its length.
        if unsafe { libc::poll(set.as_mut_ptr(), set.len() as libc::nfds_t, wait) } < 0 {
            continue;
        }
        for (c, entry) in connections.iter_mut().zip(&set[2..]) {
            if entry.revents != 0 {
                c.go_on(&server);
            }
        }
        if set[1].revents != 0
            && let Some(Ok((stream, _))) = listener.as_ref().map(TcpListener::accept)
            && stream.set_nonblocking(true).is_ok()
        {
            // Without it, answers in two parts wait for acknowledgements; nothing else depends on it.
            let _ = stream.set_nodelay(true);
            connections.push(Connection::new(stream));
        }
        if set[0].revents != 0 && !server.ending {
            server.ending = true;
            listener = None;
            deadline = Some(Instant::now() + ENDING);
            print("ending\n")?;
            // Requests in flight finish; connections without one end.
            connections.retain(|c| !c.input.is_empty() || !c.output.is_empty());
        }
    }
}

fn entry(fd: i32, events: i16) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

/// A descriptor that becomes readable when the program is told to end.
fn signals() -> std::io::Result<OwnedFd> {
    // SAFETY: a valid set; the new descriptor is owned at once.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(std::io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// One client.
struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// It ends once the output is written; with a code, the program too.
    closing: bool,
    exit: Option<i32>,
    over: bool,
    /// When patience ends.
    until: Instant,
}

impl Connection {
    fn new(stream: TcpStream) -> Connection {
        let until = Instant::now() + IDLE;
        Connection { stream, input: Vec::new(), output: Vec::new(), closing: false, exit: None, over: false, until }
    }

    /// Nothing is read while an answer is on its way.
    fn events(&self) -> i16 {
        if self.output.is_empty() { libc::POLLIN } else { libc::POLLOUT }
    }

    /// Does what can be done without waiting. A connection that breaks is the client's business.
    fn go_on(&mut self, server: &Server) {
        if self.flush(server).and_then(|()| self.read(server)).is_err() {
            self.over = true;
        }
    }

    fn read(&mut self, server: &Server) -> std::io::Result<()> {
        let mut buffer = [0; 8192];
        while self.output.is_empty() && !self.over {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.over = true,
                Ok(n) => {
                    self.input.extend_from_slice(&buffer[..n]);
                    self.until = Instant::now() + REQUEST;
                    self.answer(server)?;
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Answers the request in the input, when it is whole.
    fn answer(&mut self, server: &Server) -> std::io::Result<()> {
        let Some((request, used)) = Request::parse(&self.input) else {
            return if self.input.len() > MAX_REQUEST { Err(std::io::ErrorKind::InvalidData.into()) } else { Ok(()) };
        };
        self.input.drain(..used);
        let (status, body, exit) = answer(server, &request, &self.stream);
        self.closing = request.close || server.ending || exit.is_some();
        self.exit = exit;
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n{}\r\n",
            body.len(),
            if self.closing { "connection: close\r\n" } else { "" }
        );
        self.output = head.into_bytes();
        if request.method != "HEAD" {
            self.output.extend(body);
        }
        self.flush(server)
    }

    fn flush(&mut self, server: &Server) -> std::io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.output.drain(..n);
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
            if self.output.is_empty() {
                if let Some(code) = self.exit {
                    std::process::exit(code);
                }
                self.over = self.closing;
                self.until = Instant::now() + IDLE;
                // The next request may have come with the last one.
                if !self.over && !self.input.is_empty() {
                    self.answer(server)?;
                }
            }
        }
        Ok(())
    }
}

struct Request {
    method: String,
    path: String,
    query: String,
    head: String,
    body: Vec<u8>,
    close: bool,
}

impl Request {
    /// The first request of `input` and its length; `None` while it is not whole.
    fn parse(input: &[u8]) -> Option<(Request, usize)> {
        let mut at = 0;
        let mut line = || {
            let end = at + input[at..].iter().position(|b| *b == b'\n')?;
            let text = String::from_utf8_lossy(&input[at..end]).trim_end().to_string();
            at = end + 1;
            Some((text, at))
        };
        let (first, _) = line()?;
        let (mut head, mut length, mut close) = (String::new(), 0usize, false);
        let body_at = loop {
            let (line, next) = line()?;
            if line.is_empty() {
                break next;
            }
            if let Some((name, value)) = line.split_once(':') {
                let value = value.trim();
                if name.eq_ignore_ascii_case("content-length") {
                    length = value.parse().unwrap_or(0);
                } else if name.eq_ignore_ascii_case("connection") {
                    close = value.eq_ignore_ascii_case("close");
                }
            }
            head.push_str(&line);
            head.push('\n');
        };
        let end = body_at.checked_add(length)?;
        let body = input.get(body_at..end)?.to_vec();
        let mut words = first.split_whitespace();
        let (method, target, version) = (words.next().unwrap_or(""), words.next().unwrap_or("/"), words.next());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let request = Request {
            method: method.to_string(),
            path: path.to_string(),
            query: query.to_string(),
            head,
            body,
            close: close || version == Some("HTTP/1.0"),
        };
        Some((request, end))
    }

    /// A query parameter, decoded.
    fn parameter(&self, name: &str) -> Option<String> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then(|| decode(value))
        })
    }
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'+' => out.push(b' '),
            b'%' => match text.get(i + 1..i + 3).and_then(|h| u8::from_str_radix(h, 16).ok()) {
                Some(byte) => {
                    out.push(byte);
                    i += 2;
                }
                None => out.push(b'%'),
            },
            byte => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_string()
}

fn answer(server: &Server, request: &Request, stream: &TcpStream) -> (&'static str, Vec<u8>, Option<i32>) {
    let ok = |text: String| ("200 OK", text.into_bytes(), None);
    match request.path.as_str() {
        "/" => {
            let ip = stream.local_addr().map(|a| canonical(a.ip()).to_string()).unwrap_or_default();
            let message = std::env::var("MESSAGE").map(|m| format!("{m}\n")).unwrap_or_default();
            ok(format!("{} {ip}\n{message}", hostname()))
        }
        "/hostname" => ok(format!("{}\n", hostname())),
        "/healthz" => ok("ok\n".into()),
        "/readyz" => {
            let ready = server.started.elapsed() >= server.ready_after && !server.ending;
            if ready { ok("ok\n".into()) } else { ("503 Service Unavailable", b"not ready\n".to_vec(), None) }
        }
        "/env" => {
            let mut list: Vec<String> = std::env::vars().map(|(k, v)| format!("{k}={v}\n")).collect();
            list.sort();
            ok(list.concat())
        }
        "/headers" => {
            let from = stream.peer_addr().map(|a| canonical(a.ip()).to_string()).unwrap_or_default();
            ok(format!("{} {}\nfrom: {from}\n{}", request.method, request.path, request.head))
        }
        "/echo" => match request.parameter("msg") {
            Some(text) => ok(text),
            None => ("200 OK", request.body.clone(), None),
        },
        "/exit" => {
            let code = request.parameter("code").and_then(|c| c.parse().ok()).unwrap_or(0);
            ("200 OK", format!("ending with code {code}\n").into_bytes(), Some(code))
        }
        "/files" => {
            let path = request.parameter("path").unwrap_or_default();
            match std::fs::read(&path) {
                Ok(data) => ("200 OK", data, None),
                Err(e) => ("404 Not Found", format!("{path}: {e}\n").into_bytes(), None),
            }
        }
        path => ("404 Not Found", format!("{path}: not found\n").into_bytes(), None),
    }
}

/// An IPv4 address that came in through an IPv6 socket, as IPv4.
fn canonical(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(six) => six.to_ipv4_mapped().map_or(address, IpAddr::V4),
        four => four,
    }
}

pub(super) fn tcp_echo(port: &str) -> Outcome {
    default_sigterm();
    let listener = listen(port)?;
    let port: u16 = listener.local_addr().map_err(|e| e.to_string())?.port();
    let udp = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| UdpSocket::bind(("0.0.0.0", port)));
    if let Ok(udp) = udp {
        std::thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while let Ok((n, from)) = udp.recv_from(&mut buffer) {
                // A lost answer is UDP's nature.
                let _ = udp.send_to(&buffer[..n], from);
            }
        });
    }
    print(&format!("echoing on port {port}\n"))?;
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(n) = (&stream).read(&mut buffer) {
                if n == 0 || (&stream).write_all(&buffer[..n]).is_err() {
                    break;
                }
            }
        });
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        let text = b"POST /echo?msg=a%20b+c&x=%zz HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET";
        let (request, used) = Request::parse(&text[..]).unwrap();
        assert_eq!(&text[used..], b"GET");
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/echo"));
        assert_eq!(request.parameter("msg").as_deref(), Some("a b c"));
        assert_eq!(request.parameter("x").as_deref(), Some("%zz"));
        assert_eq!(request.parameter("y"), None);
        assert_eq!(request.body, b"abc");
        assert!(!request.close);
        for part in [0, 10, used - 4, used - 1] {
            assert!(Request::parse(&text[..part]).is_none(), "{part}");
        }
    }
}
