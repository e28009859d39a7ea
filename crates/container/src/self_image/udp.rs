//! `udp`: one datagram and its answer.

use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use super::{Outcome, print};

/// How long an answer may take before the datagram is sent again.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is sent.
const TRIES: u32 = 5;

/// Sends `text` to `target` (`HOST:PORT`) and prints what comes back from there.
pub(super) fn ask(target: &str, text: &str) -> Outcome {
    let failed = |e: std::io::Error| format!("{target}: {e}");
    let address = target.to_socket_addrs().map_err(failed)?.next().ok_or_else(|| format!("{target}: no address"))?;
    let local: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).map_err(failed)?;
    socket.connect(address).map_err(failed)?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let mut buffer = vec![0; 65_536];
    let mut last = None;
    for _ in 0..TRIES {
        match socket.send(text.as_bytes()).and_then(|_| socket.recv(&mut buffer)) {
            Ok(length) => return print(&format!("{}\n", String::from_utf8_lossy(&buffer[..length]))),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(String::new, failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_again_when_a_datagram_is_lost() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let target = server.local_addr().unwrap().to_string();
        let answering = std::thread::spawn(move || {
            let mut buffer = [0; 100];
            server.recv_from(&mut buffer).unwrap();
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..length], from).unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        });
        assert_eq!(ask(&target, "hello"), Ok(0));
        assert_eq!(answering.join().unwrap(), "hello");
    }
}
