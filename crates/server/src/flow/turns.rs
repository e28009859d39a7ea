//! Whose work the server does next, where there is more of it than processors.
//!
//! Seats bound how much is under way. They do not bound what it costs: a thousand short requests over a few connections
//! find seats one after the other, and whoever else asks waits behind them at every step, from the first byte to the
//! last. Here all work for clients over the network (handshakes, connections, requests and their answers) belongs to an
//! account: that of the user whom its connection speaks for, or of the address as long as that is not known. The account
//! that used the least time goes next, by start-time fair queuing: those who want more than their part share evenly what
//! the others leave.
//!
//! Work is a future. It has a turn when it was woken, and what it takes is what its turn lasted: nobody is charged for
//! waiting, for the disk or for another server, and nobody holds anything meanwhile that others wait for. A turn is not
//! cut short, so one may have to wait for as many as there are processors. The work of one account is done in the order
//! in which it was woken.

use crate::authn::{ANONYMOUS, UserInfo};
use parking_lot::Mutex;
use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BinaryHeap, HashMap, VecDeque};
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

/// What a turn is charged when it begins; the difference is settled when it ends.
const GUESS: u64 = nanoseconds(Duration::from_micros(30));
/// What a turn costs besides its work.
const TURN: u64 = nanoseconds(Duration::from_micros(2));
/// How much of what it did not use an account may catch up on.
const CREDIT: u64 = nanoseconds(Duration::from_millis(10));
/// An account with more than this in line pays double: it shares the machine with those who wait for each answer, and part of
/// what its many requests cost (in the kernel, and in a client on the same machine) is not seen here.
const CROWD: usize = 32;
/// For how long, and how many times, a worker takes turns before others that share its thread have theirs.
const SLICE: Duration = Duration::from_micros(100);
const SLICE_TURNS: usize = 64;
/// After so many slices the kernel is asked what came in. The runtime by itself would after sixty-one, and whoever sends one
/// request at a time would wait for that.
const SLICES_BLIND: u32 = 4;

const fn nanoseconds(time: Duration) -> u64 {
    // No turn lasts for centuries.
    time.as_nanos() as u64
}

/// Who answers for some work.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Payer {
    /// Whoever connects from there and has not said who it is, or is nobody.
    Address(IpAddr),
    User(String),
}

struct Account<T> {
    payer: Option<Payer>,
    /// Connections that belong to it.
    connections: usize,
    waiting: VecDeque<T>,
    /// Nanoseconds used, on the scale of [`Line::now`].
    used: u64,
}

/// Who waits for a turn.
struct Line<T> {
    /// By number; those without a payer are free.
    accounts: Vec<Account<T>>,
    free: Vec<usize>,
    numbers: HashMap<Payer, usize>,
    /// Accounts with something that waits, by what they had used (or were thought to use) when they were last looked at.
    ready: BinaryHeap<Reverse<(u64, usize)>>,
    waiting: usize,
    /// What the account used that had the last turn: who wants nothing for a while does not fall behind.
    now: u64,
}

impl<T> Line<T> {
    fn new() -> Self {
        let (accounts, free, numbers) = (Vec::new(), Vec::new(), HashMap::new());
        Self { accounts, free, numbers, ready: BinaryHeap::new(), waiting: 0, now: 0 }
    }

    /// The account of `payer`, which has one more connection now.
    fn join(&mut self, payer: Payer) -> usize {
        if let Some(number) = self.numbers.get(&payer) {
            self.accounts[*number].connections += 1;
            return *number;
        }
        let number = self.free.pop().unwrap_or(self.accounts.len());
        let account = Account { payer: Some(payer.clone()), connections: 1, waiting: VecDeque::new(), used: self.now };
        match self.accounts.get_mut(number) {
            Some(place) => *place = account,
            None => self.accounts.push(account),
        }
        self.numbers.insert(payer, number);
        number
    }

    /// Takes a connection out of an account, which is forgotten with its last.
    fn leave(&mut self, number: usize) {
        let account = &mut self.accounts[number];
        account.connections -= 1;
        // What waits holds its connection, but may have been put in line under the account it had before.
        if account.connections == 0 && account.waiting.is_empty() {
            self.forget(number);
        }
    }

    fn forget(&mut self, number: usize) {
        if let Some(payer) = self.accounts[number].payer.take() {
            self.numbers.remove(&payer);
            self.free.push(number);
        }
    }

    /// Puts something in line.
    fn push(&mut self, number: usize, item: T) {
        let account = &mut self.accounts[number];
        if account.waiting.is_empty() {
            account.used = account.used.max(self.now.saturating_sub(CREDIT));
            self.ready.push(Reverse((account.used, number)));
        }
        account.waiting.push_back(item);
        self.waiting += 1;
    }

    /// What is next, and the account that pays for it: see [`Line::settle`].
    fn pop(&mut self) -> Option<(usize, T)> {
        loop {
            let mut first = self.ready.peek_mut()?;
            let Reverse((thought, number)) = *first;
            let account = &mut self.accounts[number];
            if thought < account.used {
                // It used more than it was charged for in advance.
                *first = Reverse((account.used, number));
                continue;
            }
            let item = account.waiting.pop_front();
            self.now = self.now.max(account.used);
            account.used += GUESS;
            if account.waiting.is_empty() {
                PeekMut::pop(first);
                if account.connections == 0 {
                    self.forget(number);
                }
            } else {
                *first = Reverse((account.used, number));
                drop(first);
            }
            if let Some(item) = item {
                self.waiting -= 1;
                return Some((number, item));
            }
        }
    }

    /// Says how long the turn lasted for which an account paid.
    fn settle(&mut self, number: usize, lasted: Duration) {
        let account = &mut self.accounts[number];
        let price = if account.waiting.len() > CROWD { 2 } else { 1 };
        account.used = (account.used + price * (TURN + nanoseconds(lasted))).saturating_sub(GUESS);
    }
}

struct State {
    line: Line<Arc<Task>>,
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
        self.line.push(task.connected.account.load(Ordering::Relaxed), task);
        // Whoever is at work here comes to it next.
        if self.line.waiting == 1 && AT_WORK.get() { None } else { self.sleeping.pop() }
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
    /// Begins to work, with as many workers as the runtime has threads, until it is [closed](Turns::close).
    #[must_use]
    pub fn start() -> Arc<Self> {
        let (turns, workers) = Self::with(Handle::current().metrics().num_workers());
        for worker in workers {
            tokio::spawn(worker);
        }
        turns
    }

    fn with(workers: usize) -> (Arc<Self>, Vec<Worker>) {
        let turns = Arc::new(Self(Mutex::new(State {
            line: Line::new(),
            tasks: HashMap::new(),
            last_task: 0,
            sleeping: Vec::new(),
            closed: false,
            abandoned: false,
        })));
        let workers = (0..workers).map(|number| Worker { turns: turns.clone(), number, slices: 0 }).collect();
        (turns, workers)
    }

    /// What runs the work of a connection from this address.
    #[must_use]
    pub fn connection(self: &Arc<Self>, from: IpAddr) -> Spawner {
        let account = AtomicUsize::new(self.0.lock().line.join(Payer::Address(from)));
        Spawner(Arc::new(Connected { turns: self.clone(), from, account }))
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
            (std::mem::replace(&mut state.line, Line::new()), std::mem::take(&mut state.tasks))
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
    /// Changed under the lock of the line.
    account: AtomicUsize,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut state = self.turns.0.lock();
        if !state.abandoned {
            state.line.leave(self.account.load(Ordering::Relaxed));
        }
    }
}

/// Runs the work of one connection.
#[derive(Clone)]
pub struct Spawner(Arc<Connected>);

impl Spawner {
    /// The connection speaks for `user` from now on.
    pub fn speaks_for(&self, user: &UserInfo) {
        let connected = &*self.0;
        let mut state = connected.turns.0.lock();
        let before = connected.account.load(Ordering::Relaxed);
        let is_same = |payer: &Payer| match payer {
            Payer::Address(_) => user.username == ANONYMOUS,
            Payer::User(name) => *name == user.username,
        };
        if state.abandoned || state.line.accounts[before].payer.as_ref().is_some_and(is_same) {
            return;
        }
        let payer = match user.username.as_str() {
            ANONYMOUS => Payer::Address(connected.from),
            name => Payer::User(name.to_owned()),
        };
        let after = state.line.join(payer);
        connected.account.store(after, Ordering::Relaxed);
        state.line.leave(before);
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
        let mut last: Option<(usize, Arc<Task>, u8, Duration)> = None;
        for turn in 0.. {
            // Dropped after the lock, which a connection takes when it goes.
            let mut done = None;
            let mut state = self.turns.0.lock();
            if turn == 0 {
                state.sleeping.retain(|(number, _)| *number != self.number);
            }
            if let Some((account, task, phase, lasted)) = last.take() {
                if !state.abandoned {
                    state.line.settle(account, lasted);
                }
                if phase == IN_LINE && !state.abandoned {
                    state.line.push(task.connected.account.load(Ordering::Relaxed), task);
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
            if is_long && state.line.waiting > 0 {
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
            let Some((account, task)) = state.line.pop() else {
                state.sleeping.push((self.number, cx.waker().clone()));
                return Poll::Pending;
            };
            drop(state);
            drop(done);
            let phase = task.run();
            let end = Instant::now();
            last = Some((account, task, phase, end.duration_since(now)));
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

    fn user(name: &str) -> Payer {
        Payer::User(name.to_owned())
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
        let turns = Turns::start();
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
        assert!(turns.0.lock().line.numbers.is_empty(), "accounts go with their connections");
    }

    #[test]
    fn time_is_what_counts_and_rest_is_not_saved_up() {
        let mut line = Line::new();
        let (heavy, light) = (line.join(user("heavy")), line.join(user("light")));
        let turns = |line: &mut Line<usize>, heavy_for: u64, count: usize| {
            let mut took = [0, 0];
            for _ in 0..count {
                let (id, of) = line.pop().unwrap();
                assert_eq!(id, of);
                let micros = if id == heavy { heavy_for } else { 50 };
                took[usize::from(id != heavy)] += micros;
                line.settle(id, Duration::from_micros(micros));
                line.push(id, id);
            }
            took
        };
        for id in [heavy, heavy, light] {
            line.push(id, id);
        }
        let [by_heavy, by_light] = turns(&mut line, 1000, 2100);
        assert!(by_heavy.abs_diff(by_light) <= by_light / 10, "{by_heavy} and {by_light} µs");

        // A second later: what it did not use of it is gone but for the credit.
        while let Some((id, _)) = line.pop().filter(|(id, _)| *id != light) {
            line.settle(id, Duration::from_millis(1));
            line.push(id, id);
        }
        turns(&mut line, 1000, 1000);
        line.push(light, light);
        let [by_heavy, by_light] = turns(&mut line, 1000, 2100);
        let ahead = Duration::from_micros(by_light.saturating_sub(by_heavy));
        assert!(ahead <= Duration::from_nanos(CREDIT) + Duration::from_millis(2), "{ahead:?}");
        assert!(ahead >= Duration::from_nanos(CREDIT) / 2, "{ahead:?}");
        let late = line.join(user("late"));
        assert_eq!(line.accounts[late].used, line.now, "whoever comes anew has nothing to catch up on");
    }

    #[test]
    fn a_crowd_pays_double() {
        let mut line = Line::new();
        let (crowd, single) = (line.join(user("crowd")), line.join(user("single")));
        for id in std::iter::repeat_n(crowd, 1000).chain([single, single]) {
            line.push(id, id);
        }
        let mut turns = [0, 0];
        for _ in 0..3000 {
            let (id, _) = line.pop().unwrap();
            turns[usize::from(id == single)] += 1;
            line.settle(id, Duration::from_micros(50));
            line.push(id, id);
        }
        assert!((950..=1050).contains(&turns[0]), "{turns:?}");
    }

    #[test]
    fn accounts_are_of_users_and_of_addresses() {
        let (turns, workers) = Turns::with(1);
        let accounts = || turns.0.lock().line.numbers.len();
        let account = |spawner: &Spawner| spawner.0.account.load(Ordering::Relaxed);
        let (one, two) = (turns.connection(HOME), turns.connection(HOME));
        assert_eq!((accounts(), account(&one)), (1, account(&two)));
        one.speaks_for(&UserInfo::anonymous());
        assert_eq!(accounts(), 1, "nobody is not a user");
        one.speaks_for(&UserInfo::new("jane", &[]));
        assert!(accounts() == 2 && account(&one) != account(&two));
        two.speaks_for(&UserInfo::new("jane", &[]));
        assert_eq!((accounts(), account(&one)), (1, account(&two)));
        two.spawn(std::future::pending());
        let held = two.clone();
        drop((one, two));
        assert_eq!(accounts(), 1);
        drop((held, workers));
        assert!(accounts() == 0 && turns.0.lock().tasks.is_empty(), "nobody works any more");
    }

    #[tokio::test(start_paused = true)]
    async fn work_of_one_account_is_done_in_order_and_woken_from_anywhere() {
        let turns = Turns::start();
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
        let turns = Turns::start();
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
            let turns = Turns::start();
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
            let turns = Turns::start();
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
