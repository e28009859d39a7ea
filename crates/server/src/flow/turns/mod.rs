//! Whose work the server does next, where there is more of it than processors.
//!
//! Seats bound how much is under way. They do not bound what it costs: a thousand short requests over a few connections
//! find seats one after the other, and whoever else asks waits behind them at every step, from the first byte to the
//! last. Here all work for clients over the network (handshakes, connections, requests and their answers) belongs to an
//! account: that of the user whom its connection speaks for, or of the address as long as that is not known, in the priority
//! level of the last request for a resource. Levels share the time as they share seats ([`levels`]), and in a level the
//! account that used the least time goes next ([`line`]): those who want more than their part share evenly what the others
//! leave.
//!
//! Work is a future. It has a turn when it was woken, and what it takes is what its turn lasted: nobody is charged for
//! waiting, for the disk or for another server, and nobody holds anything meanwhile that others wait for. A turn is not
//! cut short, so one may have to wait for as many as there are processors. The work of one account is done in the order
//! in which it was woken.

mod levels;
mod line;

use crate::authn::{ANONYMOUS, UserInfo};
pub use levels::{Figures, LevelId};
use levels::{Levels, Place};
use line::Payer;
use parking_lot::Mutex;
use std::cell::Cell;
use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::{coop, yield_now};
use tokio::time::Instant;

/// For how long, and how many times, a worker takes turns before others that share its thread have theirs.
const SLICE: Duration = Duration::from_micros(100);
const SLICE_TURNS: usize = 64;
/// After so many slices the kernel is asked what came in. The runtime by itself would after sixty-one, and whoever sends one
/// request at a time would wait for that.
const SLICES_BLIND: u32 = 4;

struct State {
    line: Levels<Arc<Task>>,
    /// All work that is not done, so that it can be given up.
    tasks: HashMap<u64, Arc<Task>>,
    last_task: u64,
    /// Workers with nothing to do.
    sleeping: Vec<(usize, Waker)>,
    /// Whether no more connections will come.
    closed: bool,
    /// Whether nobody works any more.
    abandoned: bool,
}

impl State {
    fn is_over(&self) -> bool {
        self.abandoned || self.closed && self.tasks.is_empty()
    }

    /// Puts a task in line. Returns who is to be woken for it.
    fn put(&mut self, task: Arc<Task>) -> Option<(usize, Waker)> {
        self.line.push(task.connected.place(), task);
        // Whoever is at work here comes to it next.
        if self.line.waiting() == 1 && AT_WORK.get() { None } else { self.sleeping.pop() }
    }
}

fn wake(workers: impl IntoIterator<Item = (usize, Waker)>) {
    workers.into_iter().for_each(|(_, worker)| worker.wake());
}

/// All the work for clients over the network.
pub struct Turns(Mutex<State>);

thread_local! {
    /// Whether this thread is at a turn, after which it looks for the next itself.
    static AT_WORK: Cell<bool> = const { Cell::new(false) };
}

impl Turns {
    /// Nothing to do, and nobody who would do it.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            line: Levels::new(),
            tasks: HashMap::new(),
            last_task: 0,
            sleeping: Vec::new(),
            closed: false,
            abandoned: false,
        })))
    }

    /// Begins to work, with as many workers as the runtime has threads, until it is [closed](Turns::close).
    pub fn start(self: &Arc<Self>) {
        for worker in self.workers(Handle::current().metrics().num_workers()) {
            tokio::spawn(worker);
        }
    }

    fn workers(self: &Arc<Self>, count: usize) -> Vec<Worker> {
        (0..count).map(|number| Worker { turns: self.clone(), number, slices: 0 }).collect()
    }

    /// From now on there are these priority levels: their names and shares. Returns what they are called here.
    pub fn divide(&self, levels: &[(&str, u32)]) -> Vec<LevelId> {
        self.0.lock().line.divide(levels)
    }

    /// What was measured of each level.
    #[must_use]
    pub fn figures(&self) -> Vec<Figures> {
        self.0.lock().line.figures()
    }

    /// What runs the work of a connection from this address.
    #[must_use]
    pub fn connection(self: &Arc<Self>, from: IpAddr) -> Spawner {
        let place = self.0.lock().line.join(LevelId::UNKNOWN, Payer::Address(from));
        let (level, account) = (AtomicUsize::new(place.level), AtomicUsize::new(place.account));
        Spawner(Arc::new(Connected { turns: self.clone(), from, level, account }))
    }

    /// Stops when all work is done.
    pub fn close(&self) {
        let sleeping = {
            let mut state = self.0.lock();
            state.closed = true;
            std::mem::take(&mut state.sleeping)
        };
        wake(sleeping);
    }

    fn push(&self, task: Arc<Task>) {
        let mut state = self.0.lock();
        if !state.abandoned {
            let worker = state.put(task);
            drop(state);
            wake(worker);
        }
    }

    /// Gives up what is not done: nobody will do it.
    fn abandon(&self) {
        let (line, tasks) = {
            let mut state = self.0.lock();
            state.abandoned = true;
            (std::mem::replace(&mut state.line, Levels::new()), std::mem::take(&mut state.tasks))
        };
        drop(line);
        for task in tasks.into_values() {
            let work = task.work.lock().take();
            drop(work);
        }
    }
}

/// What one connection's work belongs to.
struct Connected {
    turns: Arc<Turns>,
    from: IpAddr,
    /// Where its work is put in line. Changed, and read as one, under the lock of the line.
    level: AtomicUsize,
    account: AtomicUsize,
}

impl Connected {
    fn place(&self) -> Place {
        Place { level: self.level.load(Ordering::Relaxed), account: self.account.load(Ordering::Relaxed) }
    }

    /// Belongs to the account of `payer` in a level instead.
    fn move_to(&self, line: &mut Levels<Arc<Task>>, level: LevelId, payer: Payer) {
        let before = self.place();
        let after = line.join(level, payer);
        self.level.store(after.level, Ordering::Relaxed);
        self.account.store(after.account, Ordering::Relaxed);
        line.leave(before);
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut state = self.turns.0.lock();
        if !state.abandoned {
            let place = self.place();
            state.line.leave(place);
        }
    }
}

/// Runs the work of one connection.
#[derive(Clone)]
pub struct Spawner(Arc<Connected>);

impl Spawner {
    /// The connection speaks for `user` from now on, of whose level nothing is known where it is another.
    pub fn speaks_for(&self, user: &UserInfo) {
        let connected = &*self.0;
        let mut state = connected.turns.0.lock();
        let is_same = |payer: &Payer| match payer {
            Payer::Address(_) => user.username == ANONYMOUS,
            Payer::User(name) => *name == user.username,
        };
        if state.abandoned || state.line.payer(connected.place()).is_some_and(is_same) {
            return;
        }
        let payer = match user.username.as_str() {
            ANONYMOUS => Payer::Address(connected.from),
            name => Payer::User(name.to_owned()),
        };
        connected.move_to(&mut state.line, LevelId::UNKNOWN, payer);
    }

    /// The connection's work belongs to this priority level from now on.
    pub fn belongs_to(&self, level: LevelId) {
        let connected = &*self.0;
        // Nearly always it does already, and nobody has to be asked.
        if connected.level.load(Ordering::Relaxed) == level.0 {
            return;
        }
        let mut state = connected.turns.0.lock();
        if state.abandoned {
            return;
        }
        if let Some(payer) = state.line.payer(connected.place()).cloned() {
            connected.move_to(&mut state.line, level, payer);
        }
    }

    /// Runs `work` to its end.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let work = Mutex::new(Some(Box::pin(work) as Work));
        let mut state = self.0.turns.0.lock();
        if state.abandoned {
            return;
        }
        state.last_task += 1;
        let id = state.last_task;
        let task = Arc::new(Task { connected: self.0.clone(), id, phase: AtomicU8::new(IN_LINE), work });
        state.tasks.insert(id, task.clone());
        let worker = state.put(task);
        drop(state);
        wake(worker);
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, work: F) {
        self.spawn(work);
    }
}

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// It waits to be woken.
const RESTS: u8 = 0;
const IN_LINE: u8 = 1;
const AT_TURN: u8 = 2;
/// It was woken during its turn, so it needs another.
const AGAIN: u8 = 3;
const DONE: u8 = 4;

struct Task {
    connected: Arc<Connected>,
    id: u64,
    phase: AtomicU8,
    work: Mutex<Option<Work>>,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let next = |phase| match phase {
            RESTS => Some(IN_LINE),
            AT_TURN => Some(AGAIN),
            _ => None,
        };
        if self.phase.fetch_update(Ordering::AcqRel, Ordering::Acquire, next) == Ok(RESTS) {
            self.connected.turns.push(self.clone());
        }
    }
}

impl Task {
    /// Its turn. Returns the phase after it: at rest, in line (where its place is yet to be taken), or done.
    fn run(self: &Arc<Self>) -> u8 {
        self.phase.store(AT_TURN, Ordering::Release);
        let waker = Waker::from(self.clone());
        let mut slot = self.work.lock();
        let Some(work) = slot.as_mut() else { return DONE };
        let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(&mut Context::from_waker(&waker))));
        if let Ok(Poll::Pending) = polled {
            drop(slot);
            let rests = self.phase.compare_exchange(AT_TURN, RESTS, Ordering::AcqRel, Ordering::Acquire);
            return rests.map_or_else(
                |_| {
                    self.phase.store(IN_LINE, Ordering::Release);
                    IN_LINE
                },
                |_| RESTS,
            );
        }
        self.phase.store(DONE, Ordering::Release);
        let work = slot.take();
        drop(slot);
        if polled.is_err() {
            // The hook has said what and where. Its connection or its stream ends with it, and nothing else.
            tracing::error!("the work for a client ended abnormally");
        }
        drop(work);
        DONE
    }
}

/// Has one turn after the other, on a thread of the runtime that it shares with the rest of the process.
struct Worker {
    turns: Arc<Turns>,
    number: usize,
    /// Slices that ended with more to do.
    slices: u32,
}

impl Drop for Worker {
    fn drop(&mut self) {
        // At the end there is nothing left; otherwise the runtime is going away.
        self.turns.abandon();
    }
}

impl Future for Worker {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let before = AT_WORK.replace(true);
        let outcome = self.get_mut().slice(cx);
        AT_WORK.set(before);
        outcome
    }
}

impl Worker {
    fn slice(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let began = Instant::now();
        let mut now = began;
        let mut last: Option<(Place, Arc<Task>, u8, Duration)> = None;
        for turn in 0.. {
            // Dropped after the lock, which a connection takes when it goes.
            let mut done = None;
            let mut state = self.turns.0.lock();
            if turn == 0 {
                state.sleeping.retain(|(number, _)| *number != self.number);
            }
            if let Some((place, task, phase, lasted)) = last.take() {
                let after = task.connected.place();
                if !state.abandoned {
                    state.line.settle(place, after, lasted);
                }
                if phase == IN_LINE && !state.abandoned {
                    state.line.push(after, task);
                } else {
                    let whole = (phase == DONE).then(|| state.tasks.remove(&task.id));
                    done = Some((task, whole));
                }
            }
            if state.is_over() {
                let sleeping = std::mem::take(&mut state.sleeping);
                drop(state);
                wake(sleeping);
                return Poll::Ready(());
            }
            let is_long = turn >= SLICE_TURNS || now.duration_since(began) >= SLICE || !coop::has_budget_remaining();
            if is_long && state.line.waiting() > 0 {
                let helper = state.sleeping.pop();
                drop(state);
                wake(helper);
                self.slices = self.slices.wrapping_add(1);
                // Yielding wakes this worker when the kernel was asked.
                if !self.slices.is_multiple_of(SLICES_BLIND) || pin!(yield_now()).poll(cx).is_ready() {
                    cx.waker().wake_by_ref();
                }
                return Poll::Pending;
            }
            let Some((place, task)) = state.line.pop() else {
                state.sleeping.push((self.number, cx.waker().clone()));
                return Poll::Pending;
            };
            drop(state);
            drop(done);
            let phase = task.run();
            let end = Instant::now();
            last = Some((place, task, phase, end.duration_since(now)));
            now = end;
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::sync::oneshot;

    const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn started() -> Arc<Turns> {
        let turns = Turns::new();
        turns.start();
        turns
    }

    fn connected(turns: &Arc<Turns>, name: &str) -> Spawner {
        let spawner = turns.connection(HOME);
        spawner.speaks_for(&UserInfo::new(name, &[]));
        spawner
    }

    /// What was done, in order.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<&'static str>>>);

    impl Log {
        fn note(&self, what: &'static str) {
            self.0.lock().push(what);
        }

        fn taken(&self) -> Vec<&'static str> {
            std::mem::take(&mut self.0.lock())
        }
    }

    /// Wants so many turns, one right after the other.
    async fn work(turns: usize, log: Log, who: &'static str) {
        for left in (0..turns).rev() {
            log.note(who);
            if left > 0 {
                let mut woken = false;
                std::future::poll_fn(|cx| {
                    cx.waker().wake_by_ref();
                    if std::mem::replace(&mut woken, true) { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_wants_little_does_not_wait_for_who_wants_a_lot() {
        let turns = started();
        let (flood, other) = (connected(&turns, "flood"), connected(&turns, "other"));
        let log = Log::default();
        for _ in 0..1000 {
            flood.spawn(work(3, log.clone(), "flood"));
        }
        for _ in 0..8 {
            other.spawn(work(3, log.clone(), "other"));
        }
        drop((flood, other));
        turns.close();
        while !turns.0.lock().tasks.is_empty() {
            yield_now().await;
        }
        let log = log.taken();
        assert_eq!(log.len(), 3 * 1008);
        let last = log.iter().rposition(|who| *who == "other").unwrap();
        assert!(last <= 2 * 24, "24 turns come among as many of the other's: {last}");
        assert!(users(&turns).is_empty(), "accounts go with their connections");
    }

    /// Users by level.
    fn users(turns: &Turns) -> Vec<(String, usize)> {
        let figures = turns.figures().into_iter().filter(|f| f.users > 0);
        figures.map(|f| (f.level, f.users)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_does_not_wait_for_a_crowd_of_users() {
        let turns = started();
        let ids = turns.divide(&[("nodes", 40), ("low", 100)]);
        let log = Log::default();
        let crowd: Vec<Spawner> = (0..1000).map(|n| connected(&turns, &format!("user-{n}"))).collect();
        for one in &crowd {
            one.belongs_to(ids[1]);
            one.spawn(work(20, log.clone(), "crowd"));
        }
        let node = connected(&turns, "node");
        node.belongs_to(ids[0]);
        for _ in 0..20 {
            node.spawn(work(5, log.clone(), "node"));
        }
        assert_eq!(users(&turns), [("nodes".to_owned(), 1), ("low".to_owned(), 1000)]);
        while !turns.0.lock().tasks.is_empty() {
            yield_now().await;
        }
        let log = log.taken();
        assert_eq!(log.len(), 1000 * 20 + 100);
        let last = log.iter().rposition(|who| *who == "node").unwrap();
        assert!(last <= 350 + 10, "100 turns come among two and a half times as many of the others': {last}");
        let figures = turns.figures();
        assert_eq!(figures.iter().map(|f| (f.turns, f.waiting)).collect::<Vec<_>>(), [(0, 0), (100, 0), (20_000, 0)]);
    }

    #[test]
    fn accounts_are_of_users_and_of_addresses() {
        let turns = Turns::new();
        let workers = turns.workers(1);
        let level = turns.divide(&[("level", 10)])[0];
        let accounts = || users(&turns).iter().map(|(_, count)| count).sum::<usize>();
        let (one, two) = (turns.connection(HOME), turns.connection(HOME));
        assert_eq!((accounts(), one.0.place()), (1, two.0.place()));
        one.speaks_for(&UserInfo::anonymous());
        assert_eq!(accounts(), 1, "nobody is not a user");
        one.speaks_for(&UserInfo::new("jane", &[]));
        assert!(accounts() == 2 && one.0.place() != two.0.place());
        two.speaks_for(&UserInfo::new("jane", &[]));
        assert_eq!((accounts(), one.0.place()), (1, two.0.place()));
        one.belongs_to(level);
        assert_eq!(users(&turns), [(String::new(), 1), ("level".to_owned(), 1)]);
        one.speaks_for(&UserInfo::new("jane", &[]));
        two.belongs_to(level);
        assert_eq!(users(&turns), [("level".to_owned(), 1)]);
        one.speaks_for(&UserInfo::new("joe", &[]));
        assert_eq!(users(&turns), [(String::new(), 1), ("level".to_owned(), 1)], "it is another's level");
        drop(one);
        two.spawn(std::future::pending());
        let held = two.clone();
        drop(two);
        assert_eq!(accounts(), 1);
        drop((held, workers));
        assert!(accounts() == 0 && turns.0.lock().tasks.is_empty(), "nobody works any more");
    }

    #[tokio::test(start_paused = true)]
    async fn who_speaks_for_another_in_its_turn_pays_as_that() {
        let turns = started();
        let level = turns.divide(&[("level", 10)])[0];
        let one = connected(&turns, "one");
        let (inner, (done, is_done)) = (one.clone(), oneshot::channel());
        one.spawn(async move {
            inner.speaks_for(&UserInfo::new("other", &[]));
            inner.belongs_to(level);
            done.send(()).unwrap();
        });
        is_done.await.unwrap();
        while !turns.0.lock().tasks.is_empty() {
            yield_now().await;
        }
        assert_eq!(turns.figures().iter().map(|f| f.turns).collect::<Vec<_>>(), [0, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn work_of_one_account_is_done_in_order_and_woken_from_anywhere() {
        let turns = started();
        let one = connected(&turns, "one");
        let log = Log::default();
        let (wake, woken) = oneshot::channel::<()>();
        let (done, is_done) = oneshot::channel();
        let (first, second, nested) = (log.clone(), log.clone(), one.clone());
        one.spawn(async move {
            first.note("first");
            let inner = first.clone();
            nested.spawn(async move { inner.note("third") });
            woken.await.unwrap();
            first.note("woken");
            tokio::time::sleep(Duration::from_secs(3)).await;
            done.send(()).unwrap();
        });
        one.spawn(async move { second.note("second") });
        while log.0.lock().len() < 3 {
            yield_now().await;
        }
        assert_eq!(log.taken(), ["first", "second", "third"]);
        wake.send(()).unwrap();
        is_done.await.unwrap();
        assert_eq!(log.taken(), ["woken"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_ends_abnormally_ends_alone() {
        let turns = started();
        let one = connected(&turns, "one");
        let (gone, is_gone) = oneshot::channel::<()>();
        one.spawn(async move {
            let _gone = gone;
            panic!("wanted by the test");
        });
        let (done, is_done) = oneshot::channel();
        one.spawn(async move { done.send(()).unwrap() });
        is_done.await.unwrap();
        assert!(is_gone.await.is_err(), "what it held is let go of");
    }

    #[test]
    fn with_the_runtime_goes_what_was_not_done() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let held = Arc::new(());
        let turns = runtime.block_on(async {
            let turns = started();
            let one = connected(&turns, "one");
            for _ in 0..10 {
                let held = held.clone();
                one.spawn(async move {
                    std::future::pending::<()>().await;
                    drop(held);
                });
            }
            turns
        });
        drop(runtime);
        assert_eq!(Arc::strong_count(&held), 1);
        let late = connected(&turns, "late");
        late.spawn({
            let held = held.clone();
            async move { drop(held) }
        });
        assert_eq!(Arc::strong_count(&held), 1);
    }

    /// Thousands of tasks that wake one another on several threads: nobody is forgotten.
    #[test]
    fn no_wake_is_lost() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        runtime.block_on(async {
            let turns = started();
            let mut ends = Vec::new();
            for pair in 0..64 {
                let one = connected(&turns, &format!("user-{}", pair % 5));
                let (there, mut from_there) = tokio::sync::mpsc::channel(1);
                let (back, mut from_back) = tokio::sync::mpsc::channel(1);
                let (done, is_done) = oneshot::channel();
                one.spawn(async move {
                    while let Some(n) = from_there.recv().await {
                        back.send(n).await.unwrap();
                    }
                });
                one.spawn(async move {
                    for n in 0..1000 {
                        there.send(n).await.unwrap();
                        assert_eq!(from_back.recv().await, Some(n));
                    }
                    done.send(()).unwrap();
                });
                ends.push(is_done);
            }
            for end in ends {
                end.await.unwrap();
            }
            turns.close();
            while !turns.0.lock().is_over() {
                yield_now().await;
            }
        });
    }
}
