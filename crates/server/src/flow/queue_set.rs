//! Fair queuing of one priority level (KEP-1040): flows are dealt hands of queues by shuffle sharding, and among queues
//! those go first whose work would be done first if all were served at the same time, bit by bit.
//!
//! Work is measured in seat-seconds: a request takes `width` seats for as long as it runs. How long that will be is not
//! known when it starts, so it is charged for a guess and the difference is settled when it ends.

use super::demand::Demand;
use crate::request::RequestInfo;
use gantry_api::k8s_openapi::jiff::Timestamp;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Seconds a request is guessed to run; upstream's guess.
const SERVICE_SECONDS: f64 = 0.003;

/// What is known of a request in a queue or at work.
pub struct Request {
    /// Name of the schema that matched it.
    pub schema: Arc<str>,
    /// What tells its flow from others of the same schema.
    pub distinguisher: String,
    /// Seats it takes.
    pub width: u32,
    /// When it arrived.
    pub arrived: Timestamp,
    /// When it began to run.
    pub started: Option<Timestamp>,
    /// Who asks.
    pub user: String,
    /// For what.
    pub info: RequestInfo,
}

impl Request {
    /// Seat-seconds it is guessed to need.
    fn work(&self) -> f64 {
        f64::from(self.width) * SERVICE_SECONDS
    }
}

struct Waiting {
    id: u64,
    /// Virtual time of arrival.
    arrival: f64,
    since: Instant,
    request: Request,
    wake: oneshot::Sender<()>,
}

struct Running {
    /// None where it never was in a queue.
    queue: Option<usize>,
    since: Instant,
    request: Request,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    running: usize,
    seats_in_use: u32,
    /// Virtual time at which its next request begins.
    next: f64,
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running == 0
    }

    /// A queue that others overtook while it had nothing to do may not save that time up.
    fn bound(&mut self) {
        if let Some(first) = self.waiting.front() {
            self.next = self.next.max(first.arrival);
        }
    }
}

/// How a level queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queuing {
    /// Queues; none where what finds no seat is refused.
    pub queues: usize,
    /// Queues a flow chooses from.
    pub hand: usize,
    /// Requests that wait in one queue.
    pub length: usize,
}

/// What became of a request that arrived.
#[derive(Debug)]
pub enum Start {
    /// It runs.
    Running,
    /// It runs when this resolves.
    Waiting(oneshot::Receiver<()>),
    /// It found no place, for this reason.
    Refused(&'static str),
}

/// What a request was doing when it left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// It ran, and is done.
    Running,
    /// It waited, and gave up.
    Waiting,
    /// It was not there.
    Nothing,
}

/// What happened since the level exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests that began to run.
    pub dispatched: u64,
    /// Requests refused, for whatever reason.
    pub refused: u64,
    /// Those of them that waited too long.
    pub timed_out: u64,
    /// Those of them whose client went away.
    pub cancelled: u64,
}

/// The queues and seats of one level.
pub struct QueueSet {
    queuing: Queuing,
    /// Seats; None where requests never wait.
    limit: Option<u32>,
    queues: Vec<Queue>,
    running: BTreeMap<u64, Running>,
    waiting: usize,
    seats_in_use: u32,
    seats_waiting: u32,
    active: usize,
    /// Virtual time, in seat-seconds served per busy queue.
    now: f64,
    real: Instant,
    /// The queue served last: ties go to those after it.
    robin: usize,
    enqueued: usize,
    /// What happened.
    pub totals: Totals,
    /// Seats wanted over time.
    pub demand: Demand,
}

impl QueueSet {
    /// An idle level with so many seats (None where requests never wait).
    #[must_use]
    pub fn new(limit: Option<u32>, queuing: Queuing, now: Instant) -> Self {
        let mut set = Self {
            queuing: Queuing::default(),
            limit,
            queues: Vec::new(),
            running: BTreeMap::new(),
            waiting: 0,
            seats_in_use: 0,
            seats_waiting: 0,
            active: 0,
            now: 0.0,
            real: now,
            robin: 0,
            enqueued: 0,
            totals: Totals::default(),
            demand: Demand::new(now),
        };
        set.configure(limit, queuing, now);
        set
    }

    /// Changes seats and queues. Queues too many are dealt to no one any more and go when they are empty.
    pub fn configure(&mut self, limit: Option<u32>, queuing: Queuing, now: Instant) {
        self.sync(now);
        (self.limit, self.queuing) = (limit, queuing);
        while self.queues.len() < queuing.queues {
            self.queues.push(Queue::default());
        }
        self.drop_surplus();
        self.dispatch(now);
    }

    /// Whether nothing waits and nothing runs.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting == 0 && self.running.is_empty()
    }

    /// Takes in a request. `hash` deals the hand of its flow.
    pub fn start(&mut self, id: u64, hash: u64, request: Request, now: Instant) -> Start {
        self.sync(now);
        if self.limit.is_none() || self.queuing.queues == 0 {
            if !self.has_room_for(request.width) {
                self.totals.refused += 1;
                return Start::Refused("concurrency-limit");
            }
            self.run(id, None, request, now);
            return Start::Running;
        }
        let index = self.choose(hash);
        let full = self.limit.is_some_and(|limit| self.seats_in_use >= limit);
        let queue = &mut self.queues[index];
        if full && queue.waiting.len() >= self.queuing.length {
            self.totals.refused += 1;
            return Start::Refused("queue-full");
        }
        if queue.is_idle() {
            queue.next = self.now;
            self.active += 1;
        }
        let (wake, woken) = oneshot::channel();
        self.seats_waiting += request.width;
        self.waiting += 1;
        queue.waiting.push_back(Waiting { id, arrival: self.now, since: now, request, wake });
        queue.bound();
        self.note_demand(now);
        self.dispatch(now);
        if self.running.contains_key(&id) { Start::Running } else { Start::Waiting(woken) }
    }

    /// Whether the request runs.
    #[must_use]
    pub fn is_running(&self, id: u64) -> bool {
        self.running.contains_key(&id)
    }

    /// Ends a request, whether it ran or waited, and lets others have its seats.
    pub fn leave(&mut self, id: u64, now: Instant) -> Left {
        self.sync(now);
        let left = if let Some(ended) = self.running.remove(&id) {
            self.seats_in_use -= ended.request.width;
            if let Some(queue) = ended.queue.and_then(|i| self.queues.get_mut(i)) {
                queue.running -= 1;
                queue.seats_in_use -= ended.request.width;
                let took = now.saturating_duration_since(ended.since).as_secs_f64();
                queue.next -= ended.request.work() - f64::from(ended.request.width) * took;
                queue.bound();
                self.active -= usize::from(queue.is_idle());
            }
            Left::Running
        } else {
            let place = |q: &Queue| q.waiting.iter().position(|w| w.id == id);
            let found = self.queues.iter().enumerate().find_map(|(i, q)| Some((i, place(q)?)));
            let Some((i, place)) = found else { return Left::Nothing };
            let queue = &mut self.queues[i];
            if let Some(gone) = queue.waiting.remove(place) {
                self.seats_waiting -= gone.request.width;
                self.waiting -= 1;
                self.totals.refused += 1;
            }
            queue.bound();
            self.active -= usize::from(queue.is_idle());
            Left::Waiting
        };
        self.note_demand(now);
        self.drop_surplus();
        self.dispatch(now);
        left
    }

    /// Advances virtual time by what the busy queues got since it was last asked.
    fn sync(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.real).as_secs_f64();
        self.real = now;
        if self.active > 0 {
            let wanted = self.seats_in_use + self.seats_waiting;
            self.now += passed * f64::from(wanted.min(self.limit.unwrap_or(wanted))) / self.active as f64;
        }
    }

    fn note_demand(&mut self, now: Instant) {
        self.demand.set(f64::from(self.seats_in_use + self.seats_waiting), now);
    }

    /// Something wider than the whole level runs when it is alone.
    fn has_room_for(&self, width: u32) -> bool {
        match self.limit {
            None => true,
            Some(limit) if width > limit => self.seats_in_use == 0,
            Some(limit) => self.seats_in_use + width <= limit,
        }
    }

    /// The queue of the flow's hand with the least work waiting. The first looked at changes from request to request, so
    /// that flows whose hands overlap do not all prefer the same queue.
    fn choose(&mut self, hash: u64) -> usize {
        let hand = deal(hash, self.queuing.queues, self.queuing.hand);
        let offset = self.enqueued % hand.len();
        self.enqueued = self.enqueued.wrapping_add(1);
        let work = |i: usize| self.queues[i].waiting.iter().map(|w| w.request.width).sum::<u32>();
        let turned = hand[offset..].iter().chain(&hand[..offset]).copied();
        turned.min_by_key(|i| work(*i)).unwrap_or_default()
    }

    fn run(&mut self, id: u64, queue: Option<usize>, mut request: Request, now: Instant) {
        request.started.get_or_insert(request.arrived);
        self.seats_in_use += request.width;
        self.totals.dispatched += 1;
        self.running.insert(id, Running { queue, since: now, request });
        self.note_demand(now);
    }

    /// Starts what can start, the queue that would be done first leading. A level without seats holds what waits.
    fn dispatch(&mut self, now: Instant) {
        while self.waiting > 0 && self.limit.is_none_or(|limit| self.seats_in_use < limit) {
            let mut best: Option<(usize, f64)> = None;
            let count = self.queues.len();
            for i in (1..=count).map(|step| (self.robin + step) % count) {
                let Some(first) = self.queues[i].waiting.front() else { continue };
                let done = self.queues[i].next + first.request.work();
                if best.is_none_or(|(_, least)| done < least) {
                    best = Some((i, done));
                }
            }
            let Some((i, _)) = best else { return };
            let width = self.queues[i].waiting.front().map_or(0, |w| w.request.width);
            if !self.has_room_for(width) {
                return;
            }
            self.robin = i;
            let queue = &mut self.queues[i];
            let Some(mut first) = queue.waiting.pop_front() else { return };
            queue.next += first.request.work();
            queue.running += 1;
            queue.seats_in_use += width;
            queue.bound();
            self.waiting -= 1;
            self.seats_waiting -= width;
            let waited = now.saturating_duration_since(first.since);
            first.request.started = first.request.arrived.checked_add(waited).ok();
            self.run(first.id, Some(i), first.request, now);
            // Whoever waits may have been dropped meanwhile; it then leaves under the same lock, as one that runs.
            let _ = first.wake.send(());
        }
    }

    fn drop_surplus(&mut self) {
        while self.queues.len() > self.queuing.queues && self.queues.last().is_some_and(Queue::is_idle) {
            self.queues.pop();
        }
    }
}

/// The hand that `hash` deals: `hand` different queues of `queues`, every hand as likely as any other. The queues must be
/// no more than the hash has room for, which the kind's validation sees to.
fn deal(mut hash: u64, queues: usize, hand: usize) -> Vec<usize> {
    let mut drawn: Vec<usize> = Vec::with_capacity(hand);
    let mut out = Vec::with_capacity(hand);
    for i in 0..hand.clamp(1, queues.max(1)) {
        let left = (queues - i) as u64;
        // The hash's next digit says which of the queues still in the deck is drawn; counting over those already gone,
        // latest first, gives its number in the full deck.
        let digit = (hash % left) as usize;
        hash /= left;
        out.push(drawn.iter().rev().fold(digit, |card, earlier| card + usize::from(card >= *earlier)));
        drawn.push(digit);
    }
    out
}

/// A queue as it is shown.
pub struct QueueView<'a> {
    /// Those that wait, first come first.
    pub waiting: Vec<&'a Request>,
    /// Requests at work.
    pub running: usize,
    /// Their seats.
    pub seats_in_use: u32,
    /// Virtual time at which the next begins.
    pub next: f64,
}

impl QueueView<'_> {
    /// Seats of those that wait.
    #[must_use]
    pub fn seats_waiting(&self) -> u32 {
        self.waiting.iter().map(|r| r.width).sum()
    }

    /// Seat-seconds they are guessed to need.
    #[must_use]
    pub fn work(&self) -> f64 {
        self.waiting.iter().map(|r| r.work()).sum()
    }
}

impl QueueSet {
    /// The queues.
    pub fn queues(&self) -> impl Iterator<Item = QueueView<'_>> {
        self.queues.iter().map(|q| QueueView {
            waiting: q.waiting.iter().map(|w| &w.request).collect(),
            running: q.running,
            seats_in_use: q.seats_in_use,
            next: q.next,
        })
    }

    /// The requests at work.
    pub fn running(&self) -> impl Iterator<Item = &Request> {
        self.running.values().map(|r| &r.request)
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::time::Duration;

    fn request(width: u32) -> Request {
        Request {
            schema: "s".into(),
            distinguisher: String::new(),
            width,
            arrived: Timestamp::UNIX_EPOCH,
            started: None,
            user: String::new(),
            info: RequestInfo::default(),
        }
    }

    fn is_running(start: &Start) -> bool {
        matches!(start, Start::Running)
    }

    #[test]
    fn hands_are_different_queues_and_all_are_dealt() {
        assert_eq!(deal(0, 8, 3), [0, 1, 2]);
        assert_eq!(deal(8 * 7 * 6 - 1, 8, 3), [7, 6, 5]);
        let hands: HashSet<_> = (0..8 * 7 * 6).map(|hash| deal(hash, 8, 3)).collect();
        assert_eq!(hands.len(), 8 * 7 * 6, "every ordered hand exactly once");
        assert!(hands.iter().all(|h| h.iter().collect::<HashSet<_>>().len() == 3 && h.iter().all(|q| *q < 8)));
        assert_eq!(deal(5, 1, 1), [0]);
    }

    #[test]
    fn without_queues_what_finds_no_seat_is_refused() {
        let now = Instant::now();
        let mut set = QueueSet::new(Some(2), Queuing::default(), now);
        assert!(is_running(&set.start(1, 0, request(2), now)));
        assert!(matches!(set.start(2, 0, request(1), now), Start::Refused("concurrency-limit")));
        assert_eq!(set.leave(1, now), Left::Running);
        assert!(is_running(&set.start(3, 0, request(5), now)), "wider than the level, but alone");
        assert_eq!((set.leave(3, now), set.leave(3, now)), (Left::Running, Left::Nothing));
        let mut exempt = QueueSet::new(None, Queuing::default(), now);
        assert!((0..1000).all(|id| is_running(&exempt.start(id, 0, request(1), now))));
    }

    #[test]
    fn a_full_queue_refuses_and_those_who_give_up_make_room() {
        let now = Instant::now();
        let mut set = QueueSet::new(Some(1), Queuing { queues: 1, hand: 1, length: 2 }, now);
        assert!(is_running(&set.start(1, 0, request(1), now)));
        let Start::Waiting(mut second) = set.start(2, 0, request(1), now) else { panic!("a seat too many") };
        assert!(matches!(set.start(3, 0, request(1), now), Start::Waiting(_)));
        assert!(matches!(set.start(4, 0, request(1), now), Start::Refused("queue-full")));
        assert_eq!(set.leave(3, now), Left::Waiting);
        assert!(matches!(set.start(5, 0, request(1), now), Start::Waiting(_)));
        assert!(second.try_recv().is_err(), "not its turn");
        set.leave(1, now);
        assert!(second.try_recv().is_ok() && set.is_running(2) && !set.is_running(5));
        set.leave(2, now);
        set.leave(5, now);
        assert!(set.is_idle() && set.seats_in_use == 0 && set.active == 0 && set.seats_waiting == 0);
        assert_eq!(set.totals, Totals { dispatched: 3, refused: 2, ..Totals::default() });
    }

    /// A flow that sends a lot does not get more than one that sends little, and wide requests count for what they take.
    #[test]
    fn flows_share_evenly() {
        let start = Instant::now();
        let mut set = QueueSet::new(Some(1), Queuing { queues: 2, hand: 1, length: 1000 }, start);
        let mut waiting = Vec::new();
        for id in 0..100 {
            waiting.push(set.start(id, 0, request(1), start));
        }
        for id in 100..110 {
            waiting.push(set.start(id, 1, request(1), start));
        }
        let mut order = Vec::new();
        let mut now = start;
        while !set.is_idle() {
            let id = *set.running.keys().next().unwrap();
            order.push(id);
            now += Duration::from_millis(10);
            set.leave(id, now);
        }
        let last = order.iter().position(|id| *id == 109).unwrap();
        assert!((18..=21).contains(&last), "ten of one flow end with about ten of the other: {last}");
        assert_eq!(order.len(), 110);
    }

    #[test]
    fn queues_too_many_go_when_empty() {
        let now = Instant::now();
        let mut set = QueueSet::new(Some(1), Queuing { queues: 4, hand: 1, length: 9 }, now);
        assert!(is_running(&set.start(1, 3, request(2), now)), "wider than the level, but alone");
        assert!(matches!(set.start(2, 3, request(1), now), Start::Waiting(_)));
        set.configure(Some(1), Queuing { queues: 1, hand: 1, length: 9 }, now);
        assert_eq!(set.queues.len(), 4);
        set.leave(1, now);
        assert!(set.is_running(2));
        set.leave(2, now);
        assert_eq!(set.queues.len(), 1);
    }

    #[test]
    fn a_level_without_seats_holds_requests_until_it_gets_some() {
        let now = Instant::now();
        let queuing = Queuing { queues: 1, hand: 1, length: 1 };
        let mut set = QueueSet::new(Some(0), queuing, now);
        assert!(matches!(set.start(1, 0, request(1), now), Start::Waiting(_)));
        assert!(matches!(set.start(2, 0, request(1), now), Start::Refused("queue-full")));
        set.configure(Some(1), queuing, now);
        assert!(set.is_running(1));
    }
}
