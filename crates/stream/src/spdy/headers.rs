//! Name/value header blocks, compressed with one zlib stream per direction and connection.

use super::dictionary;
use crate::StreamError;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Largest decompressed header block accepted. Kubernetes' are under 200 bytes.
const MAX_BLOCK: usize = 64 * 1024;

/// Headers of a stream; names are lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The first value of `name`, case-insensitively.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&(self.0.len() as u32).to_be_bytes());
        for (name, value) in &self.0 {
            for text in [&name.to_ascii_lowercase(), value] {
                out.extend_from_slice(&(text.len() as u32).to_be_bytes());
                out.extend_from_slice(text.as_bytes());
            }
        }
        out
    }

    fn decode(mut block: &[u8]) -> Result<Self, StreamError> {
        let short = || StreamError::Protocol("header block is truncated".into());
        let number = |block: &mut &[u8]| -> Result<usize, StreamError> {
            let (head, rest) = block.split_first_chunk::<4>().ok_or_else(short)?;
            *block = rest;
            Ok(u32::from_be_bytes(*head) as usize)
        };
        let count = number(&mut block)?;
        let mut headers = Vec::new();
        for _ in 0..count {
            let mut text = || -> Result<String, StreamError> {
                let length = number(&mut block)?;
                let (head, rest) = block.split_at_checked(length).ok_or_else(short)?;
                block = rest;
                String::from_utf8(head.to_vec()).map_err(|_| StreamError::Protocol("header is not UTF-8".into()))
            };
            let (name, values) = (text()?, text()?);
            // Several values of one name are joined by NUL.
            headers.extend(values.split('\0').map(|v| (name.clone(), v.to_owned())));
        }
        Ok(Headers(headers))
    }
}

/// The compressing side of a connection's headers.
pub struct HeaderCompressor(Compress);

impl HeaderCompressor {
    /// A fresh zlib stream seeded with the dictionary.
    ///
    /// # Errors
    /// Where zlib refuses the dictionary.
    pub fn new() -> Result<Self, StreamError> {
        let mut zlib = Compress::new(Compression::best(), true);
        zlib.set_dictionary(dictionary::bytes())
            .map_err(|e| StreamError::Protocol(format!("header compression: {e}")))?;
        Ok(Self(zlib))
    }

    /// One compressed block, ended by a sync flush.
    ///
    /// # Errors
    /// Where zlib fails.
    pub fn compress(&mut self, headers: &Headers) -> Result<Vec<u8>, StreamError> {
        let block = headers.encode();
        let mut out = Vec::with_capacity(block.len() + 64);
        let start = self.0.total_in();
        loop {
            let consumed = (self.0.total_in() - start) as usize;
            if out.capacity() - out.len() < 32 {
                out.reserve(256);
            }
            self.0
                .compress_vec(&block[consumed..], &mut out, FlushCompress::Sync)
                .map_err(|e| StreamError::Protocol(format!("header compression: {e}")))?;
            let consumed = (self.0.total_in() - start) as usize;
            // Output space left over means that the flush is complete.
            if consumed == block.len() && out.len() < out.capacity() {
                return Ok(out);
            }
        }
    }
}

/// The decompressing side of a connection's headers.
pub struct HeaderDecompressor(Decompress);

impl Default for HeaderDecompressor {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl HeaderDecompressor {
    /// Reads one compressed block.
    ///
    /// # Errors
    /// Where the block is no zlib data, is larger than 64 KiB or its content is malformed.
    pub fn decompress(&mut self, block: &[u8]) -> Result<Headers, StreamError> {
        let bad = |e: &dyn std::fmt::Display| StreamError::Protocol(format!("header decompression: {e}"));
        let mut out = Vec::with_capacity(1024);
        let start = self.0.total_in();
        loop {
            let consumed = (self.0.total_in() - start) as usize;
            let produced = out.len();
            match self.0.decompress_vec(&block[consumed..], &mut out, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => break,
                Ok(Status::Ok | Status::BufError) => {}
                Err(e) if e.needs_dictionary().is_some() => {
                    self.0.set_dictionary(dictionary::bytes()).map_err(|e| bad(&e))?;
                    continue;
                }
                Err(e) => return Err(bad(&e)),
            }
            if out.len() > MAX_BLOCK {
                return Err(bad(&"block too large"));
            }
            if (self.0.total_in() - start) as usize == block.len() && out.len() < out.capacity() {
                break;
            }
            if out.len() == out.capacity() {
                out.reserve(out.len());
            } else if out.len() == produced && (self.0.total_in() - start) as usize == consumed {
                return Err(bad(&"no progress"));
            }
        }
        Headers::decode(&out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        Headers(pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn blocks_of_one_connection_share_their_zlib_stream() {
        let (mut c, mut d) = (HeaderCompressor::new().unwrap(), HeaderDecompressor::default());
        let long = "x".repeat(5000);
        for h in [
            headers(&[("streamtype", "error"), ("port", "80"), ("requestid", "0")]),
            headers(&[]),
            headers(&[("streamtype", "data"), ("port", "80"), ("requestid", "0")]),
            headers(&[("long", &long)]),
        ] {
            let block = c.compress(&h).unwrap();
            assert_eq!(d.decompress(&block).unwrap(), h);
        }
    }

    #[test]
    fn names_go_lower_case_and_values_split_at_nul() {
        let (mut c, mut d) = (HeaderCompressor::new().unwrap(), HeaderDecompressor::default());
        let block = c.compress(&headers(&[("StreamType", "a\0b")])).unwrap();
        let h = d.decompress(&block).unwrap();
        assert_eq!(h, headers(&[("streamtype", "a"), ("streamtype", "b")]));
        assert_eq!(h.get("StreamType"), Some("a"));
    }

    #[test]
    fn garbage_is_an_error() {
        assert!(HeaderDecompressor::default().decompress(b"not zlib at all").is_err());
        assert!(Headers::decode(&[0, 0, 0, 1, 0, 0, 0, 9, b'x']).is_err());
    }
}
