//! Resolving names as `/etc/resolv.conf` says: a small DNS client over UDP.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use super::{Outcome, print};

const A: u16 = 1;
const AAAA: u16 = 28;

/// `/etc/resolv.conf`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Resolver {
    servers: Vec<IpAddr>,
    search: Vec<String>,
    ndots: usize,
}

impl Resolver {
    fn parse(text: &str) -> Resolver {
        let mut resolver = Resolver { ndots: 1, ..Resolver::default() };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => resolver.servers.extend(words.next().and_then(|w| w.parse::<IpAddr>().ok())),
                Some("search") => resolver.search = words.map(str::to_string).collect(),
                Some("options") => {
                    if let Some(n) = words.filter_map(|w| w.strip_prefix("ndots:")).next_back() {
                        resolver.ndots = n.parse().unwrap_or(1);
                    }
                }
                _ => {}
            }
        }
        resolver
    }

    /// Names to try, in order.
    fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(full) = name.strip_suffix('.') {
            return vec![full.to_string()];
        }
        let mut list: Vec<String> = self.search.iter().map(|s| format!("{name}.{}", s.trim_end_matches('.'))).collect();
        if name.matches('.').count() >= self.ndots {
            list.insert(0, name.to_string());
        } else {
            list.push(name.to_string());
        }
        list
    }
}

/// Addresses of a name, with the name that answered.
pub(super) fn resolve(name: &str) -> Result<(String, Vec<IpAddr>), String> {
    if let Ok(address) = name.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok((name.to_string(), vec![address]));
    }
    for line in fs::read_to_string("/etc/hosts").unwrap_or_default().lines() {
        let mut words = line.split('#').next().unwrap_or("").split_whitespace();
        if let Some(address) = words.next().and_then(|w| w.parse().ok())
            && words.any(|w| w == name)
        {
            return Ok((name.to_string(), vec![address]));
        }
    }
    let text = fs::read_to_string("/etc/resolv.conf").map_err(|e| format!("/etc/resolv.conf: {e}"))?;
    let resolver = Resolver::parse(&text);
    if resolver.servers.is_empty() {
        return Err("/etc/resolv.conf names no server".into());
    }
    let mut failure = format!("{name}: no such name");
    for candidate in resolver.candidates(name) {
        for server in &resolver.servers {
            let mut found = Vec::new();
            let mut answered = false;
            for kind in [A, AAAA] {
                match query(*server, &candidate, kind) {
                    Ok(addresses) => {
                        answered = true;
                        found.extend(addresses);
                    }
                    Err(e) => failure = format!("{candidate}: {server}: {e}"),
                }
            }
            if !found.is_empty() {
                return Ok((candidate, found));
            }
            if answered {
                break; // the server knows that there is none; the next would say the same
            }
        }
    }
    Err(failure)
}

pub(super) fn nslookup(name: &str) -> Outcome {
    match resolve(name) {
        Ok((name, addresses)) => {
            let lines: String = addresses.iter().map(|a| format!("Address: {a}\n")).collect();
            print(&format!("Name: {name}\n{lines}"))
        }
        Err(message) => {
            eprintln!("{message}");
            Ok(1)
        }
    }
}

fn query(server: IpAddr, name: &str, kind: u16) -> Result<Vec<IpAddr>, String> {
    let bind: SocketAddr = match server {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(bind).map_err(|e| e.to_string())?;
    socket.connect((server, 53)).map_err(|e| e.to_string())?;
    socket.set_read_timeout(Some(Duration::from_secs(2))).map_err(|e| e.to_string())?;
    // The port was chosen at random by the kernel; with it this is enough against blind answers.
    let id = socket.local_addr().map(|a| a.port()).unwrap_or(1).rotate_left(5) ^ std::process::id() as u16;
    let message = encode(id, name, kind)?;
    let mut last = String::new();
    for _ in 0..2 {
        socket.send(&message).map_err(|e| e.to_string())?;
        let mut answer = [0; 4096];
        match socket.recv(&mut answer) {
            Ok(n) => return decode(&answer[..n], id, kind),
            Err(e) => last = e.to_string(),
        }
    }
    Err(last)
}

fn encode(id: u16, name: &str, kind: u16) -> Result<Vec<u8>, String> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        if label.is_empty() || label.len() > 63 {
            return Err("not a valid name".into());
        }
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    Ok(message)
}

fn decode(answer: &[u8], id: u16, wanted: u16) -> Result<Vec<IpAddr>, String> {
    let short = || "short answer".to_string();
    let word = |at: usize| answer.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]])).ok_or_else(short);
    if word(0)? != id {
        return Err("answer to another question".into());
    }
    match answer.get(3).ok_or_else(short)? & 0x0f {
        0 | 3 => {}
        code => return Err(format!("server answered code {code}")),
    }
    let mut at = 12;
    for _ in 0..word(4)? {
        at = skip_name(answer, at).ok_or_else(short)? + 4;
    }
    let mut found = Vec::new();
    for _ in 0..word(6)? {
        at = skip_name(answer, at).ok_or_else(short)?;
        let (kind, length) = (word(at)?, word(at + 8)? as usize);
        let data = answer.get(at + 10..at + 10 + length).ok_or_else(short)?;
        if kind == wanted {
            if let Ok(four) = <[u8; 4]>::try_from(data) {
                found.push(IpAddr::from(four));
            } else if let Ok(sixteen) = <[u8; 16]>::try_from(data) {
                found.push(IpAddr::from(sixteen));
            }
        }
        at += 10 + length;
    }
    Ok(found)
}

fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            n if n & 0xc0 == 0xc0 => return Some(at + 2),
            n => at += 1 + n as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_order() {
        let r = Resolver::parse("search a.b c\nnameserver 10.0.0.1\nnameserver x\noptions timeout:1 ndots:2\n");
        assert_eq!(r.servers, [IpAddr::from([10, 0, 0, 1])]);
        assert_eq!(r.candidates("web.ns"), ["web.ns.a.b", "web.ns.c", "web.ns"]);
        assert_eq!(r.candidates("a.b.c"), ["a.b.c", "a.b.c.a.b", "a.b.c.c"]);
        assert_eq!(r.candidates("full.name."), ["full.name"]);
    }

    #[test]
    fn answers() {
        let mut answer = encode(7, "a.b", A).unwrap();
        answer[2] = 0x81;
        answer[7] = 2;
        // A CNAME by pointer, then an address.
        answer.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, 12]);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 1, 2, 3]);
        assert_eq!(decode(&answer, 7, A), Ok(vec![IpAddr::from([10, 1, 2, 3])]));
        assert_eq!(decode(&answer, 7, AAAA), Ok(vec![]));
        assert!(decode(&answer, 8, A).is_err());
        for cut in 0..answer.len() {
            assert!(decode(&answer[..cut], 7, A).is_err(), "{cut}");
        }
        assert!(encode(1, "a..b", A).is_err());
    }
}
