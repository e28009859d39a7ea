//! `get`: one HTTP request, with TLS where the URL says so.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};

use super::{Outcome, duration, lookup};

/// Greatest answer printed.
const MAX_ANSWER: u64 = 64 << 20;

struct Options<'a> {
    ca: Option<&'a str>,
    token: Option<&'a str>,
    timeout: Duration,
    url: &'a str,
}

/// Exit code 0 for an answer below 400, 22 for one above (as other tools do), 1 when there was none.
pub(super) fn get(args: &[&str]) -> Outcome {
    let mut options = Options { ca: None, token: None, timeout: Duration::from_secs(10), url: "" };
    let mut rest = args.iter();
    while let Some(word) = rest.next() {
        let mut value = || rest.next().copied().ok_or_else(|| format!("{word} needs a value"));
        match *word {
            "--ca" => options.ca = Some(value()?),
            "--token" => options.token = Some(value()?),
            "--timeout" => options.timeout = duration(value()?)?,
            other if other.starts_with("--") => return Err(format!("unknown option {other}")),
            url => options.url = url,
        }
    }
    let (status, body) = fetch(&options)?;
    let mut out = io::stdout().lock();
    out.write_all(&body).and_then(|()| out.flush()).map_err(|e| format!("stdout: {e}"))?;
    if status >= 400 {
        eprintln!("self: {}: status {status}", options.url);
        return Ok(22);
    }
    Ok(0)
}

fn fetch(options: &Options<'_>) -> Result<(u16, Vec<u8>), String> {
    let (tls, rest) = match options.url.split_once("://") {
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        Some((scheme, _)) => return Err(format!("unknown scheme {scheme:?}")),
        None if options.url.is_empty() => return Err("usage: get [OPTIONS] URL".into()),
        None => (false, options.url),
    };
    let (authority, path) = match rest.find('/') {
        Some(at) => (&rest[..at], &rest[at..]),
        None => (rest, "/"),
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            (host, port.parse::<u16>().map_err(|_| format!("{port:?} is not a port"))?)
        }
        _ => (authority, if tls { 443 } else { 80 }),
    };
    let stream = connect(host, port, options.timeout)?;
    let mut request = format!(
        "GET {path} HTTP/1.1\r\nhost: {authority}\r\nuser-agent: gantry-self\r\naccept: */*\r\nconnection: close\r\n"
    );
    if let Some(file) = options.token {
        let token = std::fs::read_to_string(file).map_err(|e| format!("{file}: {e}"))?;
        request.push_str(&format!("authorization: Bearer {}\r\n", token.trim()));
    }
    request.push_str("\r\n");
    if tls {
        let mut stream = secure(stream, host, options.ca)?;
        exchange(&mut stream, &request)
    } else {
        let mut stream = stream;
        exchange(&mut stream, &request)
    }
}

fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, String> {
    let (_, addresses) = lookup::resolve(host)?;
    let mut failure = format!("{host}: no address");
    for address in addresses {
        match TcpStream::connect_timeout(&SocketAddr::from((address, port)), timeout) {
            Ok(stream) => {
                stream.set_read_timeout(Some(timeout)).map_err(|e| e.to_string())?;
                stream.set_write_timeout(Some(timeout)).map_err(|e| e.to_string())?;
                return Ok(stream);
            }
            Err(e) => failure = format!("{address}:{port}: {e}"),
        }
    }
    Err(failure)
}

type Secure = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

fn secure(stream: TcpStream, host: &str, ca: Option<&str>) -> Result<Secure, String> {
    let file = ca.ok_or("https needs --ca FILE: this image brings no certificate authorities")?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|e| format!("{file}: {e}"))? {
        let certificate = certificate.map_err(|e| format!("{file}: {e}"))?;
        roots.add(certificate).map_err(|e| format!("{file}: {e}"))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_string();
    let name = ServerName::try_from(bare).map_err(|e| format!("{host}: {e}"))?;
    let connection = rustls::ClientConnection::new(Arc::new(config), name).map_err(|e| e.to_string())?;
    Ok(rustls::StreamOwned::new(connection, stream))
}

fn exchange(stream: &mut (impl Read + Write), request: &str) -> Result<(u16, Vec<u8>), String> {
    stream.write_all(request.as_bytes()).and_then(|()| stream.flush()).map_err(|e| format!("sending: {e}"))?;
    parse(&mut BufReader::new(stream)).map_err(|e| format!("receiving: {e}"))
}

fn parse(reader: &mut impl BufRead) -> io::Result<(u16, Vec<u8>)> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_string());
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split_whitespace().nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| bad("no status line"))?;
    let (mut length, mut chunked) = (None, false);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse::<u64>().ok();
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = value.to_ascii_lowercase().contains("chunked");
            }
        }
    }
    let mut body = Vec::new();
    if chunked {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let size = line.split(';').next().unwrap_or("").trim();
            let size = u64::from_str_radix(size, 16).map_err(|_| bad("bad chunk"))?;
            if size == 0 || body.len() as u64 + size > MAX_ANSWER {
                break;
            }
            reader.take(size).read_to_end(&mut body)?;
            let mut end = String::new();
            reader.read_line(&mut end)?;
        }
    } else if let Some(length) = length {
        reader.take(length.min(MAX_ANSWER)).read_to_end(&mut body)?;
        if (body.len() as u64) < length.min(MAX_ANSWER) {
            return Err(bad("the answer is cut off"));
        }
    } else {
        match reader.take(MAX_ANSWER).read_to_end(&mut body) {
            // Many servers end TLS without saying so.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {}
            other => {
                other?;
            }
        }
    }
    Ok((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let cases: &[(&str, u16, &str)] = &[
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcdef", 200, "abc"),
            ("HTTP/1.1 404 Not Found\r\n\r\nuntil the end", 404, "until the end"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n", 200, "abcde"),
        ];
        for (text, status, body) in cases {
            assert_eq!(parse(&mut text.as_bytes()).unwrap(), (*status, body.as_bytes().to_vec()));
        }
        for bad in ["", "nonsense\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"] {
            assert!(parse(&mut bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
