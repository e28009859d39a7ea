//! Messages on the wire: one byte (0: not compressed), the length in four bytes, the message.

use crate::status::{Code, Status};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Longest message that is accepted; grpc-go's default.
pub(crate) const MESSAGE_MAX: usize = 4 << 20;

const HEAD: usize = 5;

/// A message with its head.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEAD + message.len());
    out.put_u8(0);
    out.put_u32(u32::try_from(message.len()).expect("messages are built in memory and far shorter than 4 GiB"));
    out.put_slice(message);
    out.freeze()
}

/// Takes the next whole message off the buffer; None while it is not whole.
pub(crate) fn take(buffer: &mut BytesMut) -> Result<Option<Bytes>, Status> {
    let Some(head) = buffer.first_chunk::<HEAD>() else { return Ok(None) };
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if head[0] != 0 {
        return Err(Status::new(
            Code::INTERNAL,
            "grpc: compressed flag set with identity or empty encoding".to_owned(),
        ));
    }
    if length > MESSAGE_MAX {
        let why = format!("grpc: received message larger than max ({length} vs. {MESSAGE_MAX})");
        return Err(Status::new(Code::RESOURCE_EXHAUSTED, why));
    }
    if buffer.len() < HEAD + length {
        return Ok(None);
    }
    buffer.advance(HEAD);
    Ok(Some(buffer.split_to(length).freeze()))
}
