//! `serve` and `tcp-echo`: a web server small enough to read, which finishes its requests when told to end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{Outcome, default_sigterm, duration, print};

/// Greatest request head and body taken.
const MAX_REQUEST: u64 = 1 << 20;
/// Greatest number of connections served at a time; more wait in the backlog.
const MAX_CONNECTIONS: usize = 256;

struct Server {
    started: Instant,
    ready_after: Duration,
    ending: AtomicBool,
    busy: AtomicUsize,
}

static TOLD: AtomicBool = AtomicBool::new(false);

extern "C" fn told(_: libc::c_int) {
    TOLD.store(true, Ordering::SeqCst);
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
    let handler: extern "C" fn(libc::c_int) = told;
    // SAFETY: the handler only stores to an atomic. Without SA_RESTART it interrupts poll.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        libc::sigaction(libc::SIGTERM, &action, std::ptr::null_mut());
        libc::sigaction(libc::SIGINT, &action, std::ptr::null_mut());
    }
    let server = Arc::new(Server {
        started: Instant::now(),
        ready_after: delay,
        ending: AtomicBool::new(false),
        busy: AtomicUsize::new(0),
    });
    print(&format!("serving on port {port}\n"))?;
    while !TOLD.load(Ordering::SeqCst) {
        let mut entry = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // A signal between the check and the poll would be missed: look again now and then.
        // SAFETY: one valid entry.
        if unsafe { libc::poll(&mut entry, 1, 500) } <= 0 {
            continue;
        }
        let Ok((stream, _)) = listener.accept() else { continue };
        let mut wait = Duration::from_millis(1);
        while server.busy.load(Ordering::SeqCst) >= MAX_CONNECTIONS && !TOLD.load(Ordering::SeqCst) {
            std::thread::sleep(wait);
            wait = (wait * 2).min(Duration::from_millis(100));
        }
        server.busy.fetch_add(1, Ordering::SeqCst);
        let each = server.clone();
        let spawned = std::thread::Builder::new().stack_size(128 * 1024).spawn(move || {
            connection(&each, stream);
            each.busy.fetch_sub(1, Ordering::SeqCst);
        });
        if spawned.is_err() {
            server.busy.fetch_sub(1, Ordering::SeqCst);
        }
    }
    server.ending.store(true, Ordering::SeqCst);
    drop(listener);
    print("ending\n")?;
    // Idle connections notice within their read timeout, requests in flight finish.
    let limit = Instant::now() + Duration::from_secs(25);
    while server.busy.load(Ordering::SeqCst) > 0 && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(0)
}

fn connection(server: &Server, stream: TcpStream) {
    // A connection that breaks is the client's business.
    let _ = (|| -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut idle = 0;
        loop {
            match reader.fill_buf() {
                Ok([]) => return Ok(()),
                Ok(_) => idle = 0,
                Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                    idle += 1;
                    if server.ending.load(Ordering::SeqCst) || idle > 120 {
                        return Ok(());
                    }
                    continue;
                }
                Err(e) => return Err(e),
            }
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            let Some(request) = Request::read(&mut reader)? else { return Ok(()) };
            let close = request.close || server.ending.load(Ordering::SeqCst);
            let (status, body, exit) = answer(server, &request, &stream);
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n{}\r\n",
                body.len(),
                if close { "connection: close\r\n" } else { "" }
            );
            let mut out = head.into_bytes();
            if request.method != "HEAD" {
                out.extend(body);
            }
            (&stream).write_all(&out)?;
            if let Some(code) = exit {
                std::process::exit(code);
            }
            if close {
                return Ok(());
            }
            stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        }
    })();
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
    fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
        let mut limited = reader.take(MAX_REQUEST);
        let mut first = String::new();
        if limited.read_line(&mut first)? == 0 {
            return Ok(None);
        }
        let (mut head, mut length, mut close) = (String::new(), 0u64, false);
        loop {
            let mut line = String::new();
            if limited.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':') {
                let value = value.trim();
                if name.eq_ignore_ascii_case("content-length") {
                    length = value.parse().unwrap_or(0);
                } else if name.eq_ignore_ascii_case("connection") {
                    close = value.eq_ignore_ascii_case("close");
                }
            }
            head.push_str(line);
            head.push('\n');
        }
        let mut body = Vec::new();
        limited.take(length).read_to_end(&mut body)?;
        let mut words = first.split_whitespace();
        let (method, target, version) = (words.next().unwrap_or(""), words.next().unwrap_or("/"), words.next());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Ok(Some(Request {
            method: method.to_string(),
            path: path.to_string(),
            query: query.to_string(),
            head,
            body,
            close: close || version == Some("HTTP/1.0"),
        }))
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
            let ready = server.started.elapsed() >= server.ready_after && !server.ending.load(Ordering::SeqCst);
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
        let request = Request::read(&mut &text[..]).unwrap().unwrap();
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/echo"));
        assert_eq!(request.parameter("msg").as_deref(), Some("a b c"));
        assert_eq!(request.parameter("x").as_deref(), Some("%zz"));
        assert_eq!(request.parameter("y"), None);
        assert_eq!(request.body, b"abc");
        assert!(!request.close);
        assert!(Request::read(&mut &b""[..]).unwrap().is_none());
    }
}
