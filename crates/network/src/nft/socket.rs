//! The netlink socket that transactions go through.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};

use rtnetlink::sys::Socket;

use super::{
    NftError,
    batch::{Batch, GET_ELEMENT, GET_TABLE, Subject, message_type},
    table::{Element, ElementData, Family, Table},
    value::{Value, Verdict},
    wire::{self, ACK, DUMP, NETFILTER_HEADER, Writer},
};

/// `NETLINK_NETFILTER`.
const NETFILTER: isize = 12;
/// Room for answers; more than one is only had when a transaction fails in many places.
const RECEIVE_BUFFER: usize = 4 << 20;
/// What a socket can send at first; grown when a transaction needs more.
const SEND_BUFFER: usize = 1 << 20;
/// The most one transaction may have.
const LARGEST_BATCH: usize = 512 << 20;
/// The flag of a dump that met a change half way.
const DUMP_INTERRUPTED: u16 = 0x10;
/// How often an interrupted dump is tried again.
const DUMP_ATTEMPTS: usize = 16;

/// A connection to the kernel's nf_tables, bound to the network namespace of the thread that opened it. Cheap to
/// clone; transactions run one after another.
#[derive(Clone)]
pub struct Nft {
    channel: Arc<Mutex<Channel>>,
}

/// A netfilter netlink socket, for one request at a time.
pub(crate) struct Channel {
    socket: Socket,
    send_buffer: usize,
    sequence: u32,
}

impl Nft {
    /// Opens a connection in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel has no netfilter netlink or the process may not use it.
    pub fn open() -> Result<Nft, NftError> {
        Ok(Nft { channel: Arc::new(Mutex::new(Channel::open()?)) })
    }

    /// Runs a transaction: all of it, or nothing of it. Blocks for as long as the kernel takes (milliseconds; for
    /// tens of thousands of elements, a fraction of a second).
    ///
    /// # Errors
    /// [`NftError::Rejected`] names the object the kernel stumbled over; nothing was changed then.
    pub fn commit_blocking(&self, batch: Batch) -> Result<(), NftError> {
        if batch.is_empty() {
            return Ok(());
        }
        let (writer, subjects) = batch.finish();
        self.lock().transact(&writer, &subjects)
    }

    /// [`commit_blocking`](Self::commit_blocking) on a thread where blocking is allowed.
    ///
    /// # Errors
    /// The same.
    pub async fn commit(&self, batch: Batch) -> Result<(), NftError> {
        let nft = self.clone();
        run_blocking(move || nft.commit_blocking(batch)).await
    }

    /// The elements of a set or map.
    ///
    /// # Errors
    /// When there is no such set, or it keeps changing while it is read.
    pub async fn elements(&self, table: &Table, set: &str) -> Result<Vec<Element>, NftError> {
        let (nft, table, set) = (self.clone(), table.clone(), set.to_owned());
        run_blocking(move || nft.elements_blocking(&table, &set)).await
    }

    /// [`elements`](Self::elements), blocking. Sorted by key.
    ///
    /// # Errors
    /// The same.
    pub fn elements_blocking(&self, table: &Table, set: &str) -> Result<Vec<Element>, NftError> {
        // While the kernel grows a set's hash table in the background, a listing misses some elements and repeats
        // others without saying so. Two that agree were not disturbed.
        let mut before = self.list_elements(table, set)?;
        for _ in 0..DUMP_ATTEMPTS {
            let now = self.list_elements(table, set)?;
            if now.len() == before.len() && now.iter().zip(&before).all(|(a, b)| a.key == b.key) {
                return Ok(now);
            }
            before = now;
        }
        Err(NftError::Socket {
            what: "list a set that keeps changing",
            source: io::Error::from(io::ErrorKind::Interrupted),
        })
    }

    fn list_elements(&self, table: &Table, set: &str) -> Result<Vec<Element>, NftError> {
        let subject = Subject { action: "list elements of", name: format!("{}/{set}", table.name) };
        let mut found: Vec<Element> = Vec::new();
        self.lock().dump(
            &subject,
            message_type(GET_ELEMENT),
            table.family,
            |w| {
                w.string(1, &table.name);
                w.string(2, set);
            },
            |first, body| {
                if first {
                    found.clear();
                }
                for (_, element) in wire::attribute(body, 3).into_iter().flat_map(wire::attributes) {
                    found.extend(decode_element(element));
                }
            },
        )?;
        found.sort_by_key(|element| (element.key, element.range_end));
        found.dedup_by_key(|element| (element.key, element.range_end));
        Ok(found)
    }

    /// The names of all tables of a family.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn tables_blocking(&self, family: Family) -> Result<Vec<String>, NftError> {
        let subject = Subject { action: "list tables", name: String::new() };
        let mut found = Vec::new();
        self.lock().dump(
            &subject,
            message_type(GET_TABLE),
            family,
            |_| {},
            |first, body| {
                if first {
                    found.clear();
                }
                found.extend(wire::attribute(body, 1).map(wire::text));
            },
        )?;
        Ok(found)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Channel> {
        // A panic while holding it leaves at most unread answers, which the next use skips by sequence number.
        self.channel.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NftError> + Send + 'static,
) -> Result<T, NftError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(NftError::Socket { what: "run transaction", source: io::Error::other(error) }),
    }
}

impl Channel {
    /// Opens one in the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Channel, NftError> {
        let failed = |what: &'static str| move |source| NftError::Socket { what, source };
        let mut socket = Socket::new(NETFILTER).map_err(failed("open netfilter netlink socket"))?;
        socket.bind_auto().map_err(failed("bind netfilter netlink socket"))?;
        socket.set_ext_ack(true).map_err(failed("ask for extended errors"))?;
        socket.set_cap_ack(true).map_err(failed("ask for short answers"))?;
        let mut channel = Channel { socket, send_buffer: 0, sequence: 0 };
        setsockopt(&channel.borrowed(), sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .map_err(|e| failed("size the receive buffer")(e.into()))?;
        channel.reserve(SEND_BUFFER)?;
        Ok(channel)
    }

    fn borrowed(&self) -> impl AsFd + use<> {
        Borrowed(self.socket.as_raw_fd())
    }

    fn reserve(&mut self, size: usize) -> Result<(), NftError> {
        if self.send_buffer >= size {
            return Ok(());
        }
        setsockopt(&self.borrowed(), sockopt::SndBufForce, &size)
            .map_err(|e| NftError::Socket { what: "size the send buffer", source: e.into() })?;
        self.send_buffer = size;
        Ok(())
    }

    fn transact(&mut self, writer: &Writer, subjects: &[Subject]) -> Result<(), NftError> {
        let socket = |what: &'static str| move |source| NftError::Socket { what, source };
        if writer.len() > LARGEST_BATCH {
            return Err(NftError::TooLarge { size: writer.len() });
        }
        self.reserve(writer.len() + 4096)?;
        // Answers to an earlier transaction that nobody read must not be taken for this one's.
        while self.receive().map_err(socket("drain"))?.is_some() {}
        self.socket.send(writer.bytes(), 0).map_err(socket("send transaction"))?;
        // The kernel works while we send: by now every answer is waiting.
        let mut error = None;
        let mut acknowledged = false;
        while let Some(bytes) = self.receive().map_err(socket("receive answer"))? {
            for message in wire::messages(&bytes) {
                let Some(answer) = Answer::decode(&message) else {
                    continue;
                };
                if answer.errno == 0 {
                    acknowledged |= answer.sequence as usize == subjects.len();
                } else if error.is_none() {
                    // The first is the cause; what follows refers to objects that then do not exist.
                    let index = (answer.sequence as usize).checked_sub(1);
                    let subject = index.and_then(|i| subjects.get(i));
                    error = Some(answer.into_error(subject));
                }
            }
        }
        match error {
            Some(error) => Err(error),
            None if acknowledged => Ok(()),
            None => Err(NftError::Unacknowledged),
        }
    }

    /// Asks for a list; `each` gets every entry's attributes, and whether it is the first of a new attempt.
    pub(crate) fn dump(
        &mut self,
        subject: &Subject,
        kind: u16,
        family: Family,
        request: impl Fn(&mut Writer),
        mut each: impl FnMut(bool, &[u8]),
    ) -> Result<(), NftError> {
        let socket = |what: &'static str| move |source| NftError::Socket { what, source };
        for _ in 0..DUMP_ATTEMPTS {
            while self.receive().map_err(socket("drain"))?.is_some() {}
            // Above all sequence numbers of transactions.
            self.sequence = (self.sequence + 1) | 0x8000_0000;
            let mut writer = Writer::default();
            writer.begin(kind, DUMP, self.sequence, family.number(), 0);
            request(&mut writer);
            writer.end();
            self.socket.send(writer.bytes(), 0).map_err(socket("send request"))?;
            let (mut first, mut done, mut interrupted) = (true, false, false);
            while !done {
                let Some(bytes) = self.receive().map_err(socket("receive list"))? else {
                    return Err(NftError::Unacknowledged);
                };
                for message in wire::messages(&bytes).filter(|m| m.sequence == self.sequence) {
                    interrupted |= message.flags & DUMP_INTERRUPTED != 0;
                    if i32::from(message.kind) == libc::NLMSG_DONE {
                        done = true;
                    } else if let Some(answer) = Answer::decode(&message) {
                        return Err(answer.into_error(Some(subject)));
                    } else if message.payload.len() >= NETFILTER_HEADER {
                        each(first, &message.payload[NETFILTER_HEADER..]);
                        first = false;
                    }
                }
            }
            if !interrupted {
                return Ok(());
            }
        }
        Err(NftError::Socket { what: "list", source: io::Error::from(io::ErrorKind::Interrupted) })
    }

    /// Sends one request and waits for its acknowledgement.
    pub(crate) fn request(
        &mut self,
        subject: &Subject,
        kind: u16,
        family: Family,
        body: impl Fn(&mut Writer),
    ) -> Result<(), NftError> {
        let socket = |what: &'static str| move |source| NftError::Socket { what, source };
        self.sequence = (self.sequence + 1) | 0x8000_0000;
        let mut writer = Writer::default();
        writer.begin(kind, ACK, self.sequence, family.number(), 0);
        body(&mut writer);
        writer.end();
        self.socket.send(writer.bytes(), 0).map_err(socket("send request"))?;
        while let Some(bytes) = self.receive().map_err(socket("receive answer"))? {
            for message in wire::messages(&bytes).filter(|m| m.sequence == self.sequence) {
                if let Some(answer) = Answer::decode(&message) {
                    return if answer.errno == 0 { Ok(()) } else { Err(answer.into_error(Some(subject))) };
                }
            }
        }
        Err(NftError::Unacknowledged)
    }

    /// One datagram, or `None` when nothing waits.
    fn receive(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = Vec::with_capacity(64 * 1024);
        loop {
            match self.socket.recv(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(_) => return Ok(Some(buffer)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

struct Borrowed(std::os::fd::RawFd);

impl AsFd for Borrowed {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        // SAFETY: only made from a socket that outlives the call it is used in.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(self.0) }
    }
}

/// An acknowledgement, positive or negative.
struct Answer {
    sequence: u32,
    errno: i32,
    text: Option<String>,
}

impl Answer {
    fn decode(message: &wire::Message<'_>) -> Option<Answer> {
        if i32::from(message.kind) != libc::NLMSG_ERROR {
            return None;
        }
        let code = i32::from_ne_bytes(message.payload.get(..4)?.try_into().ok()?);
        // NLM_F_ACK_TLVS: attributes follow the header of the refused message (NLM_F_CAPPED cut its body).
        let text = (message.flags & 0x200 != 0)
            .then(|| message.payload.get(4 + wire::HEADER..))
            .flatten()
            .and_then(|tlvs| wire::attribute(tlvs, 1))
            .map(wire::text);
        Some(Answer { sequence: message.sequence, errno: -code, text })
    }

    fn into_error(self, subject: Option<&Subject>) -> NftError {
        let (action, object) = match subject {
            Some(subject) => (subject.action, subject.name.trim_end_matches('/').to_owned()),
            None => ("commit", "transaction".to_owned()),
        };
        NftError::Rejected {
            action,
            object,
            detail: self.text.map(|t| format!(" ({t})")).unwrap_or_default(),
            source: io::Error::from_raw_os_error(self.errno),
        }
    }
}

fn decode_element(bytes: &[u8]) -> Option<Element> {
    let key = wire::attribute(bytes, 1).and_then(|key| wire::attribute(key, 1))?;
    let data = match wire::attribute(bytes, 2) {
        None => ElementData::None,
        Some(data) => match (wire::attribute(data, 1), wire::attribute(data, 2)) {
            (Some(value), _) => ElementData::Value(Value::from_bytes(value)?),
            (None, Some(verdict)) => {
                let code = i32::from_be_bytes(wire::attribute(verdict, 1)?.try_into().ok()?);
                let chain = wire::attribute(verdict, 2).map(wire::text);
                ElementData::Verdict(Verdict::decode(code, chain)?)
            }
            (None, None) => return None,
        },
    };
    // What is left of the timeout, where the element has one.
    let timeout = wire::attribute(bytes, 5)
        .or_else(|| wire::attribute(bytes, 4))
        .map(|ms| Duration::from_millis(wire::number(ms)));
    let range_end = wire::attribute(bytes, 3).is_some_and(|flags| wire::number(flags) & 1 != 0);
    Some(Element { key: Value::from_bytes(key)?, data, timeout, range_end })
}
