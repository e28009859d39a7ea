//! Decides what becomes of an occurrence: a new event, one more of a known event, or nothing.

use super::Occurrence;
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;
use tokio::time::Instant;

/// How many different messages of one reason and object are told apart before they are combined.
const SIMILAR: usize = 10;
/// Messages are told apart anew after this long without one.
const SIMILAR_WINDOW: Duration = Duration::from_secs(600);
/// Events one component may record about one object at once…
const BURST: f64 = 25.0;
/// …and how often one more.
const REFILL: Duration = Duration::from_secs(300);
/// Remembered events, and remembered objects.
const CAPACITY: usize = 4096;

/// How to record an occurrence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Decision {
    pub(crate) name: String,
    pub(crate) message: String,
    pub(crate) count: i32,
    pub(crate) first: Timestamp,
}

/// What stands for a key: the keys themselves, names and messages of thousands of events, would take megabytes. Two keys that
/// share one, once in 2^64, would be counted as the same event.
fn digest(key: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// A map that forgets what was not used for the longest time.
struct Recent<V> {
    entries: BTreeMap<u64, (u64, V)>,
    order: BTreeMap<u64, u64>,
    tick: u64,
}

impl<V> Default for Recent<V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), order: BTreeMap::new(), tick: 0 }
    }
}

impl<V> Recent<V> {
    fn entry(&mut self, key: u64, new: impl FnOnce() -> V) -> &mut V {
        self.tick += 1;
        let tick = self.tick;
        if let Some((at, _)) = self.entries.get(&key) {
            self.order.remove(at);
        } else {
            if self.entries.len() >= CAPACITY
                && let Some((_, oldest)) = self.order.pop_first()
            {
                self.entries.remove(&oldest);
            }
            self.entries.insert(key, (tick, new()));
        }
        self.order.insert(tick, key);
        let (at, value) = self.entries.get_mut(&key).expect("inserted above");
        *at = tick;
        value
    }
}

struct Similar {
    /// Digests of them.
    messages: Vec<u64>,
    last: Instant,
}

struct Known {
    name: String,
    count: i32,
    first: Timestamp,
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Correlator {
    similar: Recent<Similar>,
    known: Recent<Option<Known>>,
    buckets: Recent<Option<Bucket>>,
    sequence: u64,
}

impl Correlator {
    /// None where the occurrence is not recorded because its source floods.
    pub(crate) fn decide(&mut self, o: &Occurrence, component: &str, now: Instant) -> Option<Decision> {
        let a = &o.about;
        let source = digest((component, &a.kind, &a.namespace, &a.name, &a.uid, &a.api_version));
        let group = digest((source, o.r#type.as_str(), &o.reason));
        let told = digest(&o.message);

        let similar = self.similar.entry(group, || Similar { messages: Vec::new(), last: now });
        if now.duration_since(similar.last) > SIMILAR_WINDOW {
            similar.messages.clear();
        }
        similar.last = now;
        if similar.messages.len() < SIMILAR && !similar.messages.contains(&told) {
            similar.messages.push(told);
        }
        let (key, message) = if similar.messages.len() < SIMILAR {
            (digest((group, &a.field_path, told)), o.message.clone())
        } else {
            (group, format!("(combined from similar events): {}", o.message))
        };

        let bucket = self.buckets.entry(source, || None);
        let filled = match bucket {
            None => BURST,
            Some(b) => (b.tokens + now.duration_since(b.at).as_secs_f64() / REFILL.as_secs_f64()).min(BURST),
        };
        let allowed = filled >= 1.0;
        *bucket = Some(Bucket { tokens: if allowed { filled - 1.0 } else { filled }, at: now });

        self.sequence += 1;
        let sequence = self.sequence;
        let known = self.known.entry(key, || None);
        let known = match known {
            Some(k) => {
                k.count = k.count.saturating_add(1);
                k
            }
            // The count goes on from where it was once the flood is over; a first occurrence that is not recorded leaves
            // nothing behind to count on.
            None if !allowed => return None,
            None => {
                // Under a clock that stands still two events of one object would share a name.
                let stamp = o.at.as_nanosecond() + i128::from(sequence % 1000);
                let name = format!("{}.{stamp:x}", a.name.as_deref().unwrap_or_default());
                known.insert(Known { name, count: 1, first: o.at })
            }
        };
        allowed.then(|| Decision { name: known.name.clone(), message, count: known.count, first: known.first })
    }
}

#[cfg(test)]
mod tests {
    use super::super::EventType;
    use super::*;
    use k8s_openapi::api::core::v1::ObjectReference;

    fn occurrence(name: &str, message: &str) -> Occurrence {
        Occurrence {
            about: ObjectReference { name: Some(name.into()), ..Default::default() },
            r#type: EventType::Normal,
            reason: "Because".into(),
            message: message.into(),
            at: Timestamp::from_second(1_000_000_000).unwrap(),
            annotations: Vec::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn repeated_events_are_counted_under_one_name() {
        let mut c = Correlator::default();
        let one = c.decide(&occurrence("p", "m"), "c", Instant::now()).unwrap();
        let two = c.decide(&occurrence("p", "m"), "c", Instant::now()).unwrap();
        let other = c.decide(&occurrence("p", "n"), "c", Instant::now()).unwrap();
        assert_eq!((one.count, two.count, other.count), (1, 2, 1));
        assert_eq!(one.name, two.name);
        assert_ne!(one.name, other.name);
        assert!(one.name.starts_with("p."));
    }

    #[tokio::test(start_paused = true)]
    async fn the_tenth_different_message_is_combined() {
        let mut c = Correlator::default();
        let all: Vec<Decision> =
            (0..12).map(|n| c.decide(&occurrence("p", &format!("m{n}")), "c", Instant::now()).unwrap()).collect();
        assert_eq!(all[8].message, "m8");
        assert_eq!(all[9].message, "(combined from similar events): m9");
        assert_eq!((all[9].count, all[11].count), (1, 3));
        assert_eq!(all[9].name, all[11].name);
        tokio::time::advance(Duration::from_secs(601)).await;
        assert_eq!(c.decide(&occurrence("p", "m99"), "c", Instant::now()).unwrap().message, "m99");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_about_one_object_is_cut_off_and_others_are_not() {
        let mut c = Correlator::default();
        let recorded = (0..40).filter(|_| c.decide(&occurrence("p", "m"), "c", Instant::now()).is_some()).count();
        assert_eq!(recorded, 25);
        assert!(c.decide(&occurrence("q", "m"), "c", Instant::now()).is_some());
        tokio::time::advance(Duration::from_secs(301)).await;
        assert_eq!(c.decide(&occurrence("p", "m"), "c", Instant::now()).unwrap().count, 41);
        assert!(c.decide(&occurrence("p", "m"), "c", Instant::now()).is_none());
    }
}
