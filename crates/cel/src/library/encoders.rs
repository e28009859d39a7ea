//! Base64.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::{fail, mismatch};
use crate::decls::{Function, Overload};
use crate::types::Type;
use crate::value::Value;

/// Writes padding and reads texts with and without.
const ENGINE: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// All functions.
pub(super) fn functions() -> Vec<Function> {
    vec![
        Function::new(
            "base64.decode",
            vec![Overload::global("base64_decode_string", vec![Type::String], Type::Bytes, |args| match args {
                [Value::String(text)] => match ENGINE.decode(text.as_bytes()) {
                    Ok(bytes) => Ok(Value::Bytes(bytes.into())),
                    Err(base64::DecodeError::InvalidByte(at, _)) => {
                        fail(format!("illegal base64 data at input byte {at}"))
                    }
                    Err(_) => fail(format!("illegal base64 data at input byte {}", text.len())),
                },
                _ => mismatch(),
            })],
        ),
        Function::new(
            "base64.encode",
            vec![Overload::global("base64_encode_bytes", vec![Type::Bytes], Type::String, |args| match args {
                [Value::Bytes(bytes)] => Ok(Value::from(ENGINE.encode(bytes))),
                _ => mismatch(),
            })],
        ),
    ]
}
