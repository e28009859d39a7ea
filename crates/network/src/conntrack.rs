//! Connection tracking entries over netlink (ctnetlink).
//!
//! Address rewriting is decided once per connection and then remembered by the kernel. UDP "connections" never close:
//! a client that keeps sending would go on reaching an endpoint that is gone, so its entry has to be removed.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex},
};

use crate::{
    Protocol,
    nft::{
        Family, NftError,
        batch::Subject,
        socket::{Channel, run_blocking},
        wire,
    },
};

/// The netfilter subsystem of ctnetlink.
const SUBSYSTEM: u16 = 1;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;

/// One direction of a tracked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    /// Where its packets come from.
    pub source: IpAddr,
    /// Where they go to.
    pub destination: IpAddr,
    /// From which port.
    pub source_port: u16,
    /// To which port.
    pub destination_port: u16,
}

/// A tracked connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// The transport protocol.
    pub protocol: Protocol,
    /// As the client sends it.
    pub original: Tuple,
    /// As answers come back: its source is where the connection really goes.
    pub reply: Tuple,
    /// The original tuple as the kernel wrote it, and the entry's id: what deletes exactly this entry.
    original_bytes: Vec<u8>,
    id: Vec<u8>,
}

/// A connection to the kernel's connection tracking, bound to the network namespace of the thread that opened it.
#[derive(Clone)]
pub struct Conntrack {
    channel: Arc<Mutex<Channel>>,
}

impl Conntrack {
    /// Opens a connection in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel has no netfilter netlink or the process may not use it.
    pub fn open() -> Result<Conntrack, NftError> {
        Ok(Conntrack { channel: Arc::new(Mutex::new(Channel::open()?)) })
    }

    /// Forgets the connections of a protocol for which `is_stale` says so; answers how many there were.
    ///
    /// # Errors
    /// When entries cannot be listed or deleted. One that vanished meanwhile is no error.
    pub async fn forget(
        &self,
        family: Family,
        protocol: Protocol,
        is_stale: impl Fn(&Flow) -> bool + Send + 'static,
    ) -> Result<usize, NftError> {
        let conntrack = self.clone();
        run_blocking(move || conntrack.forget_blocking(family, protocol, is_stale)).await
    }

    fn forget_blocking(
        &self,
        family: Family,
        protocol: Protocol,
        is_stale: impl Fn(&Flow) -> bool,
    ) -> Result<usize, NftError> {
        let mut channel = self.channel.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut stale = Vec::new();
        let subject = Subject { action: "list", name: "conntrack entries".into() };
        channel.dump(
            &subject,
            GET,
            family,
            |_| {},
            |first, body| {
                if first {
                    stale.clear();
                }
                stale.extend(decode(body).filter(|flow| flow.protocol == protocol && is_stale(flow)));
            },
        )?;
        let mut forgotten = 0;
        for flow in &stale {
            let subject = Subject {
                action: "delete",
                name: format!("conntrack entry of {} to {}", flow.original.source, flow.original.destination),
            };
            let done = channel.request(&subject, DELETE, family, |w| {
                let nest = w.open(TUPLE_ORIGINAL);
                w.raw(&flow.original_bytes);
                w.close(nest);
                w.attribute(ID, &flow.id);
            });
            match done {
                Ok(()) => forgotten += 1,
                Err(NftError::Rejected { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(forgotten)
    }
}

fn decode(body: &[u8]) -> Option<Flow> {
    let original_bytes = wire::attribute(body, TUPLE_ORIGINAL)?;
    let (protocol, original) = decode_tuple(original_bytes)?;
    let (_, reply) = decode_tuple(wire::attribute(body, TUPLE_REPLY)?)?;
    let id = wire::attribute(body, ID)?.to_vec();
    Some(Flow { protocol, original, reply, original_bytes: original_bytes.to_vec(), id })
}

fn decode_tuple(bytes: &[u8]) -> Option<(Protocol, Tuple)> {
    let ip = wire::attribute(bytes, 1)?;
    let v4 = |kind| {
        let bytes: [u8; 4] = wire::attribute(ip, kind)?.try_into().ok()?;
        Some(IpAddr::from(Ipv4Addr::from(bytes)))
    };
    let v6 = |kind| {
        let bytes: [u8; 16] = wire::attribute(ip, kind)?.try_into().ok()?;
        Some(IpAddr::from(Ipv6Addr::from(bytes)))
    };
    let (source, destination) = (v4(1).or_else(|| v6(3))?, v4(2).or_else(|| v6(4))?);
    let transport = wire::attribute(bytes, 2)?;
    let port = |kind| wire::attribute(transport, kind).map(|p| wire::number(p) as u16);
    let protocol = match i32::from(*wire::attribute(transport, 1)?.first()?) {
        libc::IPPROTO_TCP => Protocol::Tcp,
        libc::IPPROTO_UDP => Protocol::Udp,
        libc::IPPROTO_SCTP => Protocol::Sctp,
        _ => return None,
    };
    Some((protocol, Tuple { source, destination, source_port: port(2)?, destination_port: port(3)? }))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::{
        nft::{BaseChain, Batch, ChainKind, Ct, Hook, Nft, Register, Rule, Table, Verdict},
        testing::isolated,
    };

    #[test]
    fn forgets_exactly_what_is_asked() {
        isolated(async {
            // A rule that looks at connections makes the kernel track them.
            let nft = Nft::open().expect("open");
            let table = Table { family: Family::Ipv4, name: "t".into() };
            let mut batch = Batch::new();
            batch.add_table(&table);
            let hook = BaseChain { kind: ChainKind::Filter, hook: Hook::Output, priority: 0 };
            batch.add_base_chain(&table, "out", hook);
            batch.add_rule(&table, "out", &Rule::new().load_ct(Ct::State, Register(0)).verdict(&Verdict::Accept));
            nft.commit(batch).await.expect("commit");
            crate::link::RouteSocket::open().expect("socket").loopback_up().await.expect("up");

            let server = UdpSocket::bind("127.0.0.1:5353").expect("bind");
            let (a, b) = (UdpSocket::bind("127.0.0.1:1111"), UdpSocket::bind("127.0.0.1:2222"));
            for client in [a.expect("bind"), b.expect("bind")] {
                client.send_to(b"x", server.local_addr().expect("address")).expect("send");
            }
            let conntrack = Conntrack::open().expect("open");
            let count = |port: u16| {
                let conntrack = conntrack.clone();
                async move {
                    conntrack
                        .forget(Family::Ipv4, Protocol::Udp, move |f| f.original.source_port == port)
                        .await
                        .expect("forget")
                }
            };
            assert_eq!(count(1111).await, 1);
            assert_eq!(count(1111).await, 0, "gone already");
            let tcp = conntrack.forget(Family::Ipv4, Protocol::Tcp, |_| true).await.expect("forget");
            assert_eq!(tcp, 0);
            assert_eq!(count(2222).await, 1, "the other is untouched");
        });
    }
}
