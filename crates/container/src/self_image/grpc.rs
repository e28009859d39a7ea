//! `grpc-health`: answers every call as `grpc.health.v1.Health/Check` does, over HTTP/2 without TLS.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::serve::listen;
use super::{Outcome, default_sigterm, print};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Greatest frame a client may send without having been allowed more.
const MAX_FRAME: usize = 16 * 1024;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

pub(super) fn health(args: &[&str]) -> Outcome {
    let (port, serving) = match args {
        [port] => (port, true),
        ["--not-serving", port] => (port, false),
        _ => return Err("usage: grpc-health [--not-serving] PORT".into()),
    };
    default_sigterm();
    let listener = listen(port)?;
    print(&format!("answering health checks on port {port}\n"))?;
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            // A connection that breaks is the client's business.
            let mut writer = match stream.try_clone() {
                Ok(writer) => writer,
                Err(_) => return,
            };
            let mut reader: TcpStream = stream;
            let _ = connection(&mut reader, &mut writer, serving);
        });
    }
    Ok(0)
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
}

/// A header, as a literal that needs no table.
fn header(out: &mut Vec<u8>, name: &str, value: &str) {
    out.push(0);
    for text in [name, value] {
        out.push(text.len() as u8);
        out.extend(text.as_bytes());
    }
}

fn answer(stream: u32, serving: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut head = vec![0x88]; // :status 200
    header(&mut head, "content-type", "application/grpc");
    frame(&mut out, HEADERS, END_HEADERS, stream, &head);
    // Uncompressed message of two bytes: field 1 is SERVING (1) or NOT_SERVING (2).
    frame(&mut out, DATA, 0, stream, &[0, 0, 0, 0, 2, 8, if serving { 1 } else { 2 }]);
    let mut trailer = Vec::new();
    header(&mut trailer, "grpc-status", "0");
    frame(&mut out, HEADERS, END_HEADERS | END_STREAM, stream, &trailer);
    out
}

fn connection(reader: &mut impl Read, writer: &mut impl Write, serving: bool) -> io::Result<()> {
    let mut preface = [0; 24];
    reader.read_exact(&mut preface)?;
    if preface != PREFACE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut out = Vec::new();
    frame(&mut out, SETTINGS, 0, 0, &[]);
    writer.write_all(&out)?;
    loop {
        let mut head = [0; 9];
        reader.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if length > MAX_FRAME {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        let mut payload = vec![0; length];
        reader.read_exact(&mut payload)?;
        let mut out = Vec::new();
        match kind {
            SETTINGS if flags & ACK == 0 => frame(&mut out, SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => frame(&mut out, PING, ACK, 0, &payload),
            DATA | HEADERS if flags & END_STREAM != 0 => out = answer(stream, serving),
            GOAWAY => return Ok(()),
            _ => {}
        }
        writer.write_all(&out)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_answered() {
        let mut sent = PREFACE.to_vec();
        frame(&mut sent, SETTINGS, 0, 0, &[]);
        frame(&mut sent, HEADERS, END_HEADERS, 1, &[0x83]);
        frame(&mut sent, PING, 0, 0, &[1; 8]);
        frame(&mut sent, DATA, END_STREAM, 1, &[0; 5]);
        frame(&mut sent, GOAWAY, 0, 0, &[0; 8]);
        let mut got = Vec::new();
        connection(&mut &sent[..], &mut got, true).unwrap();
        let mut want = Vec::new();
        frame(&mut want, SETTINGS, 0, 0, &[]);
        frame(&mut want, SETTINGS, ACK, 0, &[]);
        frame(&mut want, PING, ACK, 0, &[1; 8]);
        want.extend(answer(1, true));
        assert_eq!(got, want);
        assert!(connection(&mut &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &mut Vec::new(), true).is_err());
    }
}
