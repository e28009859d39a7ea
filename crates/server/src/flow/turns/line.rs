//! Whose work of one priority level is done next.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

/// What a turn is charged when it begins; the difference is settled when it ends.
pub(super) const GUESS: u64 = nanoseconds(Duration::from_micros(30));
/// What a turn costs besides its work.
const TURN: u64 = nanoseconds(Duration::from_micros(2));
/// How much of what it did not use an account may catch up on, and a level.
pub(super) const CREDIT: u64 = nanoseconds(Duration::from_millis(10));
/// An account with so much in line pays double, with twice as much three times, and no more than this many times: it shares the
/// machine with those who wait for each answer, and part of what its many requests cost (in the kernel, and in a client on the
/// same machine) is not seen here.
const CROWD: usize = 32;
const CROWD_PAYS_MAX: usize = 4;

pub(super) const fn nanoseconds(time: Duration) -> u64 {
    // No turn lasts for centuries.
    time.as_nanos() as u64
}

/// Who answers for some work.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Payer {
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

/// Who waits for a turn, by start-time fair queuing.
pub(super) struct Line<T> {
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
    pub(super) fn new() -> Self {
        let (accounts, free, numbers) = (Vec::new(), Vec::new(), HashMap::new());
        Self { accounts, free, numbers, ready: BinaryHeap::new(), waiting: 0, now: 0 }
    }

    /// How much is in line.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many accounts there are.
    pub(super) fn accounts(&self) -> usize {
        self.numbers.len()
    }

    /// Whose account this is.
    pub(super) fn payer(&self, number: usize) -> Option<&Payer> {
        self.accounts[number].payer.as_ref()
    }

    /// The account of `payer`, which has one more connection now.
    pub(super) fn join(&mut self, payer: Payer) -> usize {
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
    pub(super) fn leave(&mut self, number: usize) {
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
    pub(super) fn push(&mut self, number: usize, item: T) {
        let account = &mut self.accounts[number];
        if account.waiting.is_empty() {
            account.used = account.used.max(self.now.saturating_sub(CREDIT));
            self.ready.push(Reverse((account.used, number)));
        }
        account.waiting.push_back(item);
        self.waiting += 1;
    }

    /// What is next, and the account that has the turn, which is charged [`GUESS`] for it.
    pub(super) fn pop(&mut self) -> Option<(usize, T)> {
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

    /// What a turn that lasted so long costs an account.
    pub(super) fn price(&self, number: usize, lasted: Duration) -> u64 {
        let times = (1 + self.accounts[number].waiting.len() / CROWD).min(CROWD_PAYS_MAX);
        times as u64 * (TURN + nanoseconds(lasted))
    }

    /// Charges an account for a turn; `ahead` is what it was charged for the same turn before.
    pub(super) fn charge(&mut self, number: usize, price: u64, ahead: u64) {
        let account = &mut self.accounts[number];
        account.used = (account.used + price).saturating_sub(ahead);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> Payer {
        Payer::User(name.to_owned())
    }

    fn settle(line: &mut Line<usize>, number: usize, lasted: Duration) {
        let price = line.price(number, lasted);
        line.charge(number, price, GUESS);
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
                settle(line, id, Duration::from_micros(micros));
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
            settle(&mut line, id, Duration::from_millis(1));
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

    const COUNT: usize = 6000;

    #[test]
    fn a_crowd_pays_more() {
        for (in_line, times) in [(20, 1), (50, 2), (80, 3), (1000, 4)] {
            let mut line = Line::new();
            let (crowd, single) = (line.join(user("crowd")), line.join(user("single")));
            for id in std::iter::repeat_n(crowd, in_line).chain([single, single]) {
                line.push(id, id);
            }
            let mut turns = [0usize; 2];
            for _ in 0..COUNT {
                let (id, _) = line.pop().unwrap();
                turns[usize::from(id == single)] += 1;
                settle(&mut line, id, Duration::from_micros(50));
                line.push(id, id);
            }
            assert!(turns[0].abs_diff(COUNT / (1 + times)) <= COUNT / 50, "{in_line} in line: {turns:?}");
        }
    }
}
