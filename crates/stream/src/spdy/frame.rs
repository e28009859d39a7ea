//! SPDY/3.1 frames: their eight-byte header and the payloads of control frames.

use super::headers::{HeaderCompressor, HeaderDecompressor, Headers};
use crate::StreamError;
use bytes::{BufMut, BytesMut};

const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;
const FLAG_UNIDIRECTIONAL: u8 = 2;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Largest control frame accepted.
pub(crate) const MAX_CONTROL: usize = 256 * 1024;

/// Why a stream is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResetStatus(pub u32);

impl ResetStatus {
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// A frame for a stream that is not open.
    pub const INVALID_STREAM: Self = Self(2);
    /// The stream was refused before any processing.
    pub const REFUSED_STREAM: Self = Self(3);
    /// The creator no longer needs it.
    pub const CANCEL: Self = Self(5);
}

/// The first eight bytes of every frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameHeader {
    /// Data of a stream; its payload follows and is not held here.
    Data {
        /// Stream id.
        stream: u32,
        /// Last frame of this direction.
        fin: bool,
        /// Payload bytes.
        length: usize,
    },
    /// A control frame.
    Control {
        /// Frame type.
        kind: u16,
        /// Flags, by type.
        flags: u8,
        /// Payload bytes.
        length: usize,
    },
}

impl FrameHeader {
    /// Decodes a frame's first eight bytes.
    ///
    /// # Errors
    /// For another SPDY version, or a control frame over 256 KiB.
    pub fn decode(bytes: [u8; 8]) -> Result<Self, StreamError> {
        let word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let length = u32::from_be_bytes([0, bytes[5], bytes[6], bytes[7]]) as usize;
        if word & 0x8000_0000 == 0 {
            return Ok(FrameHeader::Data { stream: word, fin: bytes[4] & FLAG_FIN != 0, length });
        }
        let version = (word >> 16) as u16 & 0x7fff;
        if version != VERSION {
            return Err(StreamError::Protocol(format!("SPDY version {version} is not supported")));
        }
        if length > MAX_CONTROL {
            return Err(StreamError::Protocol(format!("control frame of {length} bytes is too large")));
        }
        Ok(FrameHeader::Control { kind: word as u16, flags: bytes[4], length })
    }
}

/// A control frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream {
        /// Its id: odd from clients, even from servers.
        stream: u32,
        /// Its headers.
        headers: Headers,
        /// The sender will not send data.
        fin: bool,
        /// The receiver may not send data.
        unidirectional: bool,
        /// 0 (highest) to 7.
        priority: u8,
    },
    /// Accepts a stream.
    SynReply {
        /// Its id.
        stream: u32,
        /// Reply headers.
        headers: Headers,
        /// The sender will not send data.
        fin: bool,
    },
    /// Ends a stream abruptly.
    RstStream {
        /// Its id.
        stream: u32,
        /// Why.
        status: ResetStatus,
    },
    /// Settings; Kubernetes' peers send none that matter here.
    Settings,
    /// To be sent back as it is.
    Ping(u32),
    /// No further streams.
    GoAway {
        /// The last stream that was processed.
        last_stream: u32,
        /// 0 = in order.
        status: u32,
    },
    /// Further headers of a stream.
    Headers {
        /// Its id.
        stream: u32,
        /// The headers.
        headers: Headers,
        /// The sender will not send data.
        fin: bool,
    },
    /// The receiver may take more bytes.
    WindowUpdate {
        /// Stream id, 0 for the whole connection.
        stream: u32,
        /// How many more.
        delta: u32,
    },
    /// A type this implementation does not know; ignored as the draft demands.
    Unknown(u16),
}

fn word(payload: &[u8], at: usize) -> Result<u32, StreamError> {
    let bytes = payload.get(at..at + 4).and_then(|b| b.try_into().ok());
    bytes.map(u32::from_be_bytes).ok_or_else(|| StreamError::Protocol("control frame is truncated".into()))
}

impl Frame {
    /// Decodes a control frame's payload.
    ///
    /// # Errors
    /// Where it is too short or its header block is malformed.
    pub fn decode(kind: u16, flags: u8, payload: &[u8], zlib: &mut HeaderDecompressor) -> Result<Self, StreamError> {
        let fin = flags & FLAG_FIN != 0;
        let id = |at| Ok::<u32, StreamError>(word(payload, at)? & 0x7fff_ffff);
        Ok(match kind {
            SYN_STREAM => {
                let stream = id(0)?;
                let block = payload.get(10..).ok_or_else(|| StreamError::Protocol("SYN_STREAM is truncated".into()))?;
                Frame::SynStream {
                    stream,
                    headers: zlib.decompress(block)?,
                    fin,
                    unidirectional: flags & FLAG_UNIDIRECTIONAL != 0,
                    priority: payload[8] >> 5,
                }
            }
            SYN_REPLY => Frame::SynReply { stream: id(0)?, headers: zlib.decompress(&payload[4..])?, fin },
            RST_STREAM => Frame::RstStream { stream: id(0)?, status: ResetStatus(word(payload, 4)?) },
            SETTINGS => Frame::Settings,
            PING => Frame::Ping(word(payload, 0)?),
            GOAWAY => Frame::GoAway { last_stream: id(0)?, status: word(payload, 4)? },
            HEADERS => Frame::Headers { stream: id(0)?, headers: zlib.decompress(&payload[4..])?, fin },
            WINDOW_UPDATE => Frame::WindowUpdate { stream: id(0)?, delta: id(4)? },
            other => Frame::Unknown(other),
        })
    }

    /// Appends the encoded frame to `out`.
    ///
    /// # Errors
    /// Where header compression fails.
    pub fn encode(&self, out: &mut BytesMut, zlib: &mut HeaderCompressor) -> Result<(), StreamError> {
        let mut control = |kind: u16, flags: u8, payload: &[u8]| {
            out.put_u32(0x8000_0000 | u32::from(VERSION) << 16 | u32::from(kind));
            out.put_u32(u32::from(flags) << 24 | payload.len() as u32);
            out.put_slice(payload);
        };
        let pair = |a: u32, b: u32| [a.to_be_bytes(), b.to_be_bytes()].concat();
        match self {
            Frame::SynStream { stream, headers, fin, unidirectional, priority } => {
                let mut payload = pair(*stream, 0);
                payload.extend_from_slice(&[priority << 5, 0]);
                payload.extend(zlib.compress(headers)?);
                control(SYN_STREAM, u8::from(*fin) | u8::from(*unidirectional) << 1, &payload);
            }
            Frame::SynReply { stream, headers, fin } => {
                let payload = [&stream.to_be_bytes()[..], &zlib.compress(headers)?].concat();
                control(SYN_REPLY, u8::from(*fin), &payload);
            }
            Frame::Headers { stream, headers, fin } => {
                let payload = [&stream.to_be_bytes()[..], &zlib.compress(headers)?].concat();
                control(HEADERS, u8::from(*fin), &payload);
            }
            Frame::RstStream { stream, status } => control(RST_STREAM, 0, &pair(*stream, status.0)),
            Frame::Settings => control(SETTINGS, 0, &0u32.to_be_bytes()),
            Frame::Ping(id) => control(PING, 0, &id.to_be_bytes()),
            Frame::GoAway { last_stream, status } => control(GOAWAY, 0, &pair(*last_stream, *status)),
            Frame::WindowUpdate { stream, delta } => control(WINDOW_UPDATE, 0, &pair(*stream, *delta)),
            Frame::Unknown(_) => {}
        }
        Ok(())
    }
}

/// Appends a data frame to `out`. `data` is at most 2^24 - 1 bytes.
pub(crate) fn encode_data(out: &mut BytesMut, stream: u32, fin: bool, data: &[u8]) {
    out.put_u32(stream);
    out.put_u32(u32::from(fin) << 24 | data.len() as u32);
    out.put_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_frames_round_trip() {
        let headers = Headers(vec![("streamtype".into(), "stdin".into())]);
        let frames = [
            Frame::SynStream { stream: 1, headers: headers.clone(), fin: false, unidirectional: true, priority: 3 },
            Frame::SynReply { stream: 1, headers: headers.clone(), fin: true },
            Frame::Headers { stream: 3, headers, fin: false },
            Frame::RstStream { stream: 5, status: ResetStatus::CANCEL },
            Frame::Settings,
            Frame::Ping(7),
            Frame::GoAway { last_stream: 9, status: 0 },
            Frame::WindowUpdate { stream: 1, delta: 65536 },
        ];
        let (mut c, mut d) = (HeaderCompressor::new().unwrap(), HeaderDecompressor::default());
        for frame in frames {
            let mut out = BytesMut::new();
            frame.encode(&mut out, &mut c).unwrap();
            let head = FrameHeader::decode(out[..8].try_into().unwrap()).unwrap();
            let FrameHeader::Control { kind, flags, length } = head else { panic!("{head:?}") };
            assert_eq!(length, out.len() - 8);
            assert_eq!(Frame::decode(kind, flags, &out[8..], &mut d).unwrap(), frame);
        }
    }

    /// Bytes as the draft lays them out, written by hand.
    #[test]
    fn layout_is_the_drafts() {
        let mut out = BytesMut::new();
        Frame::Ping(2).encode(&mut out, &mut HeaderCompressor::new().unwrap()).unwrap();
        assert_eq!(&out[..], &[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 2]);
        let mut out = BytesMut::new();
        encode_data(&mut out, 5, true, b"hi");
        assert_eq!(&out[..], &[0, 0, 0, 5, 1, 0, 0, 2, b'h', b'i']);
        let data = FrameHeader::decode(out[..8].try_into().unwrap()).unwrap();
        assert_eq!(data, FrameHeader::Data { stream: 5, fin: true, length: 2 });
    }

    #[test]
    fn bad_frames_are_errors() {
        assert!(FrameHeader::decode([0x80, 2, 0, 1, 0, 0, 0, 0]).is_err());
        assert!(FrameHeader::decode([0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]).is_err());
        let mut d = HeaderDecompressor::default();
        for kind in [SYN_STREAM, SYN_REPLY, RST_STREAM, PING, GOAWAY, HEADERS, WINDOW_UPDATE] {
            assert!(Frame::decode(kind, 0, &[0, 0], &mut d).is_err(), "type {kind}");
        }
        assert_eq!(Frame::decode(77, 0, &[], &mut d).unwrap(), Frame::Unknown(77));
    }
}
