//! Texts of objects that nobody looks at, in a tenth of the memory.
//!
//! Objects of one kind resemble each other: names, uids and times differ, the rest is mostly the same. So a cache packs
//! what was not changed for a while (zstd, RFC 8878) with a dictionary made of some of these texts, by which a Pod of 3 KB
//! takes some hundred bytes. To read it costs microseconds. What is read again and again is better kept as it is: the
//! caches decide, this only packs.

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
/// Texts that share a dictionary; it and what zstd makes of it take as much as 64 bytes of each.
const BATCH: usize = 1 << 10;
/// So few get no dictionary of their own but the last one that was made.
const BATCH_MIN: usize = BATCH / 4;
/// Texts packed before others get a turn: a quarter of a millisecond.
const SLICE: usize = 32;

thread_local! {
    static READER: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
}

/// What texts were packed with, and are read with.
pub struct Dictionary {
    content: Box<[u8]>,
    reader: DDict<'static>,
}

impl Dictionary {
    fn of(texts: &[Text]) -> Arc<Self> {
        let mut content = Vec::with_capacity(SAMPLES * SAMPLE_MAX);
        // zstd finds what is near the end with the shortest references, so it does not matter which text comes first.
        for text in texts.iter().step_by(texts.len().div_ceil(SAMPLES).max(1)) {
            let sample = text.bytes();
            content.extend_from_slice(&sample[..sample.len().min(SAMPLE_MAX)]);
        }
        let reader = DDict::create(&content);
        Arc::new(Self { content: content.into_boxed_slice(), reader })
    }
}

impl fmt::Debug for Dictionary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dictionary({} bytes)", self.content.len())
    }
}

/// A packed text.
#[derive(Debug)]
pub struct Packed {
    dictionary: Arc<Dictionary>,
    length: usize,
    bytes: Box<[u8]>,
}

/// A text as it is, or packed. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Text {
    /// As it is.
    Plain(Bytes),
    /// Packed.
    Packed(Arc<Packed>),
}

impl Text {
    /// The text. Of a packed one a new copy each time.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        match self {
            Text::Plain(bytes) => bytes.clone(),
            Text::Packed(packed) => {
                let mut out = Vec::with_capacity(packed.length);
                let read = READER.with_borrow_mut(|reader| {
                    reader.decompress_using_ddict(&mut out, &packed.bytes, &packed.dictionary.reader)
                });
                // Neither the bytes nor the dictionary ever leave the memory of this process.
                assert_eq!(read, Ok(packed.length), "what was packed can be read");
                out.into()
            }
        }
    }

    /// Bytes of the text as it is.
    #[must_use]
    pub fn length(&self) -> usize {
        match self {
            Text::Plain(bytes) => bytes.len(),
            Text::Packed(packed) => packed.length,
        }
    }

    /// Bytes it takes, without its share of the dictionary.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Text::Plain(bytes) => bytes.len(),
            Text::Packed(packed) => size_of::<Packed>() + packed.bytes.len(),
        }
    }

    /// Whether it is packed.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        matches!(self, Text::Packed(_))
    }

    /// Whether both are one and the same, not just alike.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Text::Plain(a), Text::Plain(b)) => a.as_ptr() == b.as_ptr() && a.len() == b.len(),
            (Text::Packed(a), Text::Packed(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
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
    fn new(dictionary: Arc<Dictionary>) -> Self {
        let prepared = CDict::create(&dictionary.content, LEVEL);
        Self { dictionary, prepared, context: CCtx::create(), room: Vec::new() }
    }

    /// The text packed; None where that does not save half of it, or it is packed already.
    fn pack(&mut self, text: &Text) -> Option<Text> {
        let Text::Plain(bytes) = text else { return None };
        self.room.clear();
        self.room.reserve(compress_bound(bytes.len()));
        self.context.compress_using_cdict(&mut self.room, bytes, &self.prepared).ok()?;
        let packed =
            Packed { dictionary: self.dictionary.clone(), length: bytes.len(), bytes: self.room.as_slice().into() };
        let packed = Text::Packed(Arc::new(packed));
        (packed.size() * 2 <= bytes.len()).then_some(packed)
    }
}

/// Packs the texts of a cache in passes. Each pass is told what rests, batch by batch.
#[derive(Debug, Default)]
pub struct Packing {
    last: Option<Arc<Dictionary>>,
    batch: Vec<(usize, Text)>,
}

/// What packing a batch came to: the batch's texts that are smaller now, by the number they were given.
pub type PackedBatch = Vec<(usize, Text)>;

impl Packing {
    /// Notes a text that rests, under a number by which the caller finds its owner. True where a batch is full, which is
    /// then to be [packed](Self::pack).
    pub fn note(&mut self, number: usize, text: Text) -> bool {
        self.batch.push((number, text));
        self.batch.len() >= BATCH
    }

    /// Packs what was noted since the last time, giving way to other tasks in between.
    pub fn pack(&mut self) -> impl Future<Output = PackedBatch> + Send {
        let batch = std::mem::take(&mut self.batch);
        if batch.len() >= BATCH_MIN {
            let texts: Vec<Text> = batch.iter().map(|(_, text)| text.clone()).collect();
            self.last = Some(Dictionary::of(&texts));
        }
        let packer = self.last.clone().filter(|_| !batch.is_empty()).map(Packer::new);
        async move {
            let mut out = Vec::with_capacity(batch.len());
            let Some(mut packer) = packer else { return out };
            for slice in batch.chunks(SLICE) {
                out.extend(slice.iter().filter_map(|(number, text)| Some((*number, packer.pack(text)?))));
                tokio::task::yield_now().await;
            }
            out
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

    #[tokio::test]
    async fn texts_that_resemble_each_other_take_a_fraction_and_read_the_same() {
        let mut packing = Packing::default();
        let texts: Vec<Text> = (0..BATCH).map(|n| Text::Plain(text(n))).collect();
        for (n, text) in texts.iter().enumerate() {
            assert_eq!(packing.note(n, text.clone()), n + 1 == BATCH);
        }
        let packed = packing.pack().await;
        assert_eq!(packed.len(), BATCH);
        for (n, small) in &packed {
            assert!(small.is_packed() && !small.is_same(&texts[*n]) && small.is_same(&small.clone()));
            assert_eq!((small.bytes(), small.length()), (texts[*n].bytes(), texts[*n].length()));
        }
        let (before, after): (usize, usize) =
            (texts.iter().map(Text::size).sum(), packed.iter().map(|(_, t)| t.size()).sum());
        assert!(before > 2 * after, "{before} {after}");
        // A few more go with the dictionary that is there; what is packed is not packed again.
        packing.note(0, Text::Plain(text(5000)));
        packing.note(1, packed[0].1.clone());
        let few = packing.pack().await;
        assert_eq!(few.iter().map(|(n, t)| (*n, t.bytes())).collect::<Vec<_>>(), [(0, text(5000))]);
    }

    #[tokio::test]
    async fn what_does_not_get_smaller_stays() {
        let mut packing = Packing::default();
        // Too few for a dictionary.
        packing.note(0, Text::Plain(text(1)));
        assert!(packing.pack().await.is_empty());
        // Nothing alike.
        for n in 0..BATCH_MIN {
            let noise =
                (0..64_u64).map(|i| (i * 31 + 7).wrapping_mul(n as u64 + 77).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let noise: Vec<u8> =
                noise.flat_map(|w| (w ^ (w >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes()).collect();
            packing.note(n, Text::Plain(noise.into()));
        }
        let packed = packing.pack().await;
        assert!(packed.len() <= SAMPLES, "only what is in the dictionary itself: {}", packed.len());
        // Nothing at all.
        assert!(packing.pack().await.is_empty());
        let empty = Text::Plain(Bytes::new());
        assert!(empty.bytes().is_empty() && empty.length() == 0);
    }
}
