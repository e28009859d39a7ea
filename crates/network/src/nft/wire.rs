//! Bytes of a netlink message: header, attributes, nesting.
//!
//! Numbers in attributes are big-endian in nf_tables and ctnetlink; headers are in the machine's order.

/// `NLM_F_REQUEST`.
pub(crate) const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
/// `NLM_F_ACK`.
pub(crate) const ACK: u16 = libc::NLM_F_ACK as u16;
/// `NLM_F_CREATE`.
pub(crate) const CREATE: u16 = libc::NLM_F_CREATE as u16;
/// `NLM_F_EXCL`.
pub(crate) const EXCL: u16 = libc::NLM_F_EXCL as u16;
/// `NLM_F_APPEND`.
pub(crate) const APPEND: u16 = libc::NLM_F_APPEND as u16;
/// `NLM_F_DUMP`.
pub(crate) const DUMP: u16 = libc::NLM_F_DUMP as u16;

/// Bytes of the netlink header.
pub(crate) const HEADER: usize = 16;
/// Bytes of the netfilter header that follows it.
pub(crate) const NETFILTER_HEADER: usize = 4;
/// Marks an attribute that holds attributes.
const NESTED: u16 = 0x8000;
/// The part of an attribute's type that is the type.
const TYPE_MASK: u16 = 0x3fff;

/// A growing buffer of netlink messages.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    message: usize,
}

/// Where a nested attribute began.
#[must_use]
pub(crate) struct Nest(usize);

impl Writer {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Starts a message of a netfilter subsystem.
    pub(crate) fn begin(&mut self, kind: u16, flags: u16, sequence: u32, family: u8, resource: u16) {
        self.message = self.bytes.len();
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.push(family);
        self.bytes.push(0);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
    }

    /// Ends the message begun last.
    pub(crate) fn end(&mut self) {
        let length = (self.bytes.len() - self.message) as u32;
        self.bytes[self.message..self.message + 4].copy_from_slice(&length.to_ne_bytes());
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        self.bytes.extend_from_slice(&((value.len() + 5) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    pub(crate) fn u8(&mut self, kind: u16, value: u8) {
        self.attribute(kind, &[value]);
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    pub(crate) fn u64(&mut self, kind: u16, value: u64) {
        self.attribute(kind, &value.to_be_bytes());
    }

    pub(crate) fn open(&mut self, kind: u16) -> Nest {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        Nest(at)
    }

    pub(crate) fn close(&mut self, nest: Nest) {
        let length = (self.bytes.len() - nest.0) as u16;
        self.bytes[nest.0..nest.0 + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// Appends bytes that are complete attributes already.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    /// How much a nested attribute holds so far. Its length field has 16 bits.
    pub(crate) fn length_of(&self, nest: &Nest) -> usize {
        self.bytes.len() - nest.0
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

/// One received message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: &'a [u8],
}

/// Splits received bytes into messages; stops at the first that is cut short.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        if length < HEADER || length > bytes.len() {
            return None;
        }
        let message = Message {
            kind: u16::from_ne_bytes(bytes[4..6].try_into().ok()?),
            flags: u16::from_ne_bytes(bytes[6..8].try_into().ok()?),
            sequence: u32::from_ne_bytes(bytes[8..12].try_into().ok()?),
            payload: &bytes[HEADER..length],
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    })
}

/// Walks attributes: type and value of each; stops at the first that is cut short.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        if length < 4 || length > bytes.len() {
            return None;
        }
        let value = &bytes[4..length];
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The value of the first attribute of a type.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// Text without the closing zero.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A big-endian number of 1 to 8 bytes.
pub(crate) fn number(value: &[u8]) -> u64 {
    value.iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut writer = Writer::default();
        writer.begin(0x0a00, CREATE, 7, 2, 0);
        writer.string(1, "abc");
        let nest = writer.open(2);
        writer.u32(1, 0xdead_beef);
        writer.u8(3, 9);
        writer.close(nest);
        writer.end();
        writer.begin(0x0a01, 0, 8, 2, 0);
        writer.end();
        let got: Vec<_> = messages(writer.bytes()).collect();
        assert_eq!(got.len(), 2);
        assert_eq!((got[0].kind, got[0].flags, got[0].sequence), (0x0a00, REQUEST | CREATE, 7));
        let body = &got[0].payload[NETFILTER_HEADER..];
        assert_eq!(attribute(body, 1).map(text).as_deref(), Some("abc"));
        let inner = attribute(body, 2).expect("nested");
        assert_eq!(attribute(inner, 1).map(number), Some(0xdead_beef));
        assert_eq!(attribute(inner, 3), Some(&[9u8][..]));
        assert_eq!(got[1].payload.len(), NETFILTER_HEADER);
    }

    #[test]
    fn cut_messages_end_the_walk() {
        let mut writer = Writer::default();
        writer.begin(1, 0, 1, 0, 0);
        writer.string(1, "long enough to be cut");
        writer.end();
        for cut in 0..writer.len() {
            assert_eq!(messages(&writer.bytes()[..cut]).count(), 0, "{cut}");
        }
        let body = &writer.bytes()[HEADER + NETFILTER_HEADER..];
        for cut in 0..20 {
            assert_eq!(attributes(&body[..cut]).count(), 0, "{cut}");
        }
    }
}
