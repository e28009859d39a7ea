//! The wire format of protocol buffers: tags, varints and lengths.

use super::ProtobufError;

/// A value as it stands on the wire.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

const VARINT: u64 = 0;
const FIXED: u64 = 1;
const BYTES: u64 = 2;

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes that a varint takes.
pub(super) fn varint_length(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

pub(super) fn put_number(out: &mut Vec<u8>, field: u16, value: u64) {
    put_varint(out, u64::from(field) << 3 | VARINT);
    put_varint(out, value);
}

pub(super) fn put_double(out: &mut Vec<u8>, field: u16, value: f64) {
    put_varint(out, u64::from(field) << 3 | FIXED);
    out.extend_from_slice(&value.to_bits().to_le_bytes());
}

pub(super) fn put_bytes(out: &mut Vec<u8>, field: u16, value: &[u8]) {
    put_head(out, field, value.len());
    out.extend_from_slice(value);
}

/// The tag and length of a field whose content of this length comes next.
pub(super) fn put_head(out: &mut Vec<u8>, field: u16, length: usize) {
    put_varint(out, u64::from(field) << 3 | BYTES);
    put_varint(out, length as u64);
}

/// Begins a message inside a message; its length is not known yet.
pub(super) fn open(out: &mut Vec<u8>, field: u16) -> usize {
    put_varint(out, u64::from(field) << 3 | BYTES);
    out.push(0);
    out.len()
}

/// Ends the message that begins at `start`. One byte was kept for its length, which most do with; others are moved.
pub(super) fn close(out: &mut Vec<u8>, start: usize) {
    let length = out.len() - start;
    let more = varint_length(length as u64) - 1;
    if more > 0 {
        out.resize(out.len() + more, 0);
        out.copy_within(start..start + length, start + more);
    }
    let mut rest = length as u64;
    for (at, byte) in out[start - 1..start + more].iter_mut().enumerate() {
        *byte = if at == more { rest as u8 } else { (rest & 0x7f) as u8 | 0x80 };
        rest >>= 7;
    }
}

pub(super) fn take_varint(bytes: &mut &[u8]) -> Result<u64, ProtobufError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or(ProtobufError::Truncated)?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(ProtobufError::Overflow)
}

/// Takes one field off the front.
pub(super) fn take_field<'a>(rest: &mut &'a [u8]) -> Result<(u64, Wire<'a>), ProtobufError> {
    fn take<'a>(rest: &mut &'a [u8], n: usize) -> Result<&'a [u8], ProtobufError> {
        let (head, tail) = rest.split_at_checked(n).ok_or(ProtobufError::Truncated)?;
        *rest = tail;
        Ok(head)
    }
    let little_endian = |b: &[u8]| b.iter().rev().fold(0u64, |v, x| v << 8 | u64::from(*x));
    let tag = take_varint(rest)?;
    let wire = match tag & 7 {
        VARINT => Wire::Varint(take_varint(rest)?),
        FIXED => Wire::Fixed(little_endian(take(rest, 8)?)),
        BYTES => {
            let n = usize::try_from(take_varint(rest)?).map_err(|_| ProtobufError::Truncated)?;
            Wire::Bytes(take(rest, n)?)
        }
        5 => Wire::Fixed(little_endian(take(rest, 4)?)),
        wire => return Err(ProtobufError::WireType { field: (tag >> 3).to_string(), wire }),
    };
    Ok((tag >> 3, wire))
}

/// The fields of a message in the order they stand; ends after the first error.
pub(super) fn fields(bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Wire<'_>), ProtobufError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let item = take_field(&mut rest);
        if item.is_err() {
            rest = &[];
        }
        Some(item)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_any_size_are_put_in_place() {
        for length in [0usize, 1, 127, 128, 129, 16_383, 16_384, 2_097_152] {
            let mut out = b"before".to_vec();
            let start = open(&mut out, 3);
            out.extend((0..length).map(|i| i as u8));
            close(&mut out, start);
            let mut rest = &out[6..];
            let (number, Wire::Bytes(content)) = take_field(&mut rest).unwrap() else { panic!("bytes") };
            assert!(number == 3 && rest.is_empty() && content.len() == length);
            assert!(content.iter().enumerate().all(|(i, b)| *b == i as u8));
        }
    }

    #[test]
    fn varints_take_the_bytes_they_are_said_to_take() {
        for value in [0u64, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out.len(), varint_length(value));
            assert_eq!(take_varint(&mut out.as_slice()).unwrap(), value);
        }
        assert_eq!(take_varint(&mut [0xff; 11].as_slice()), Err(ProtobufError::Overflow));
        assert_eq!(take_varint(&mut [0x80].as_slice()), Err(ProtobufError::Truncated));
    }
}
