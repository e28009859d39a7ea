//! Texts of objects that nobody looks at, in a tenth of the memory.
//!
//! Objects of one kind resemble each other: names, uids and times differ, the rest is mostly the same. So a cache packs
//! what was not changed for a while (zstd, RFC 8878) with a dictionary made of some of these texts, by which a Pod of 3 KB
//! takes some hundred bytes. To read it costs microseconds. What is read again and again is better kept as it is: the
//! caches decide what is packed and when.

use bytes::Bytes;
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use zstd::zstd_safe::{CCtx, CDict, DCtx, DDict, compress_bound};

/// Caches of fewer objects are not worth a dictionary.
pub const WORTH_IT: usize = 1 << 10;
/// How long something has to rest before it is packed: at least this, at most twice as long.
pub const REST: Duration = Duration::from_secs(10);

/// zstd's fastest: what matters is what a text shares with the dictionary, and that is found at any level.
const LEVEL: i32 = 1;
/// Texts a dictionary is made of, and how much it takes of each.
const SAMPLES: usize = 8;
const SAMPLE_MAX: usize = 4 << 10;
/// Texts that share a dictionary; what zstd makes of it takes as much as 64 bytes of each.
const BATCH: usize = 1 << 10;
/// So few get no dictionary of their own but the last one that was made.
const BATCH_MIN: usize = BATCH / 4;
/// Texts packed before others get a turn: a quarter of a millisecond.
const SLICE: usize = 32;

thread_local! {
    static READER: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
}

/// What texts were packed with, and are read with.
pub struct Dictionary(DDict<'static>);

impl fmt::Debug for Dictionary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dictionary({} bytes)", self.0.sizeof())
    }
}

/// Bytes before those of a packed text: how many it is of when it is read, little end first.
const LENGTH: usize = size_of::<u32>();

/// A text as it is, or packed. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Text {
    /// As it is.
    Plain(Bytes),
    /// Packed, behind its length.
    Packed(Arc<Dictionary>, Arc<[u8]>),
}

impl Text {
    /// The text. Of a packed one a new copy each time.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        match self {
            Text::Plain(bytes) => bytes.clone(),
            Text::Packed(dictionary, packed) => {
                let mut out = Vec::with_capacity(self.length());
                let read = READER.with_borrow_mut(|reader| {
                    reader.decompress_using_ddict(&mut out, &packed[LENGTH..], &dictionary.0)
                });
                // Neither the bytes nor the dictionary ever leave the memory of this process.
                assert_eq!(read, Ok(self.length()), "what was packed can be read");
                out.into()
            }
        }
    }

    /// Bytes of the text as it is.
    #[must_use]
    pub fn length(&self) -> usize {
        match self {
            Text::Plain(bytes) => bytes.len(),
            Text::Packed(_, packed) => packed.first_chunk().map_or(0, |length| u32::from_le_bytes(*length) as usize),
        }
    }

    /// Bytes it takes, without its share of the dictionary.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Text::Plain(bytes) => bytes.len(),
            Text::Packed(_, packed) => packed.len(),
        }
    }

    /// Whether it is packed.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        matches!(self, Text::Packed(..))
    }

    /// Whether both are one and the same, not just alike.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Text::Plain(a), Text::Plain(b)) => a.as_ptr() == b.as_ptr() && a.len() == b.len(),
            (Text::Packed(_, a), Text::Packed(_, b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// A dictionary with what it was made of, which more can be packed with.
#[derive(Clone)]
struct Source {
    dictionary: Arc<Dictionary>,
    content: Arc<[u8]>,
}

impl Source {
    fn of<O>(texts: &[(O, Text)]) -> Self {
        let mut content = Vec::with_capacity(SAMPLES * SAMPLE_MAX);
        // zstd finds what is near the end with the shortest references, so it does not matter which text comes first.
        for (_, text) in texts.iter().step_by(texts.len().div_ceil(SAMPLES).max(1)) {
            let sample = text.bytes();
            content.extend_from_slice(&sample[..sample.len().min(SAMPLE_MAX)]);
        }
        Self { dictionary: Arc::new(Dictionary(DDict::create(&content))), content: content.into() }
    }
}

/// Packs texts with one dictionary.
struct Packer {
    dictionary: Arc<Dictionary>,
    prepared: CDict<'static>,
    context: CCtx<'static>,
    room: Vec<u8>,
}

impl Packer {
    fn new(source: &Source) -> Self {
        let prepared = CDict::create(&source.content, LEVEL);
        Self { dictionary: source.dictionary.clone(), prepared, context: CCtx::create(), room: Vec::new() }
    }

    /// The text packed; None where that does not save half of it, or it is packed already.
    fn pack(&mut self, text: &Text) -> Option<Text> {
        let Text::Plain(bytes) = text else { return None };
        let length = u32::try_from(bytes.len()).ok()?;
        self.room.clear();
        self.room.reserve(compress_bound(bytes.len()));
        self.context.compress_using_cdict(&mut self.room, bytes, &self.prepared).ok()?;
        if (LENGTH + self.room.len()) * 2 > bytes.len() {
            return None;
        }
        let packed: Vec<u8> = length.to_le_bytes().into_iter().chain(self.room.iter().copied()).collect();
        Some(Text::Packed(self.dictionary.clone(), packed.into()))
    }
}

/// Packs the texts of a cache, pass by pass.
#[derive(Default)]
pub struct Packing {
    last: Option<Source>,
}

impl fmt::Debug for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packing({:?})", self.last.as_ref().map(|s| &s.dictionary))
    }
}

impl Packing {
    /// Packs what rests. `next` gives the next so many texts at most, each with its owner, and fewer only where no more
    /// come; `hold` is told which owners are to hold what smaller one instead, or None where theirs does not get smaller.
    /// Others get a turn in between.
    pub async fn pack<O>(
        &mut self,
        mut next: impl FnMut(usize) -> Vec<(O, Text)>,
        mut hold: impl FnMut(Vec<(O, Option<Text>)>),
    ) {
        loop {
            let batch = next(BATCH);
            let more = batch.len() >= BATCH;
            if batch.len() >= BATCH_MIN {
                self.last = Some(Source::of(&batch));
            }
            if let Some(mut packer) = self.last.as_ref().filter(|_| !batch.is_empty()).map(Packer::new) {
                let mut tried = Vec::with_capacity(batch.len());
                let mut rest = batch.into_iter();
                while rest.len() > 0 {
                    tried.extend(rest.by_ref().take(SLICE).map(|(owner, text)| (owner, packer.pack(&text))));
                    tokio::task::yield_now().await;
                }
                hold(tried);
            }
            if !more {
                return;
            }
        }
    }
}

/// Calls `pass` whenever something has `changed`, and then from time to time until it says that nothing is left to do. Never
/// ends.
pub async fn rest<C, P>(changed: impl Fn() -> C, pass: impl Fn() -> P)
where
    C: Future<Output = ()>,
    P: Future<Output = bool>,
{
    loop {
        changed().await;
        loop {
            tokio::time::sleep(REST).await;
            if !pass().await {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(n: usize) -> Bytes {
        let labels = "\"app.kubernetes.io/managed-by\":\"somebody\",\"app.kubernetes.io/part-of\":\"something\"";
        let pod = format!("{{\"metadata\":{{\"name\":\"web-{n:05}\",\"uid\":\"{:032x}\",{labels}}}}}", n * 7919);
        pod.repeat(1 + n % 3).into()
    }

    /// Packs these in one pass; the smaller ones with their numbers.
    async fn packed(packing: &mut Packing, texts: &[Text]) -> Vec<(usize, Text)> {
        let (mut rest, mut out) = (texts.iter().cloned().enumerate(), Vec::new());
        packing.pack(|most| rest.by_ref().take(most).collect(), |tried| out.extend(tried)).await;
        out.into_iter().filter_map(|(n, text)| Some((n, text?))).collect()
    }

    #[tokio::test]
    async fn texts_that_resemble_each_other_take_a_fraction_and_read_the_same() {
        let mut packing = Packing::default();
        let texts: Vec<Text> = (0..2 * BATCH).map(|n| Text::Plain(text(n))).collect();
        let smaller = packed(&mut packing, &texts).await;
        assert_eq!(smaller.len(), texts.len());
        for (n, small) in &smaller {
            assert!(small.is_packed() && !small.is_same(&texts[*n]) && small.is_same(&small.clone()));
            assert_eq!((small.bytes(), small.length()), (texts[*n].bytes(), texts[*n].length()));
        }
        let (before, after): (usize, usize) =
            (texts.iter().map(Text::size).sum(), smaller.iter().map(|(_, t)| t.size()).sum());
        assert!(before > 2 * after, "{before} {after}");
        // A few more go with the dictionary that is there; what is packed is not packed again.
        let few = packed(&mut packing, &[Text::Plain(text(5000)), smaller[0].1.clone()]).await;
        assert_eq!(few.iter().map(|(n, t)| (*n, t.bytes())).collect::<Vec<_>>(), [(0, text(5000))]);
    }

    #[tokio::test]
    async fn what_does_not_get_smaller_stays() {
        let mut packing = Packing::default();
        // Too few for a dictionary.
        assert!(packed(&mut packing, &[Text::Plain(text(1))]).await.is_empty());
        // Nothing alike.
        let noise = |n: usize| -> Text {
            let words =
                (0..64_u64).map(|i| (i * 31 + 7).wrapping_mul(n as u64 + 77).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let bytes = words.flat_map(|w| (w ^ (w >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes());
            Text::Plain(bytes.collect::<Vec<u8>>().into())
        };
        let noise: Vec<Text> = (0..BATCH_MIN).map(noise).collect();
        let smaller = packed(&mut packing, &noise).await;
        assert!(smaller.len() <= SAMPLES, "only what is in the dictionary itself: {}", smaller.len());
        // Nothing at all.
        assert!(packed(&mut packing, &[]).await.is_empty());
        let empty = Text::Plain(Bytes::new());
        assert!(empty.bytes().is_empty() && empty.length() == 0);
    }
}
