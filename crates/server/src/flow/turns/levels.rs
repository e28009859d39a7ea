//! Which priority level's work is done next.
//!
//! Levels share the time by their concurrency shares, as they share seats, and the users of one share its part: however many
//! users flood a level, others keep their parts. A level that wants less leaves the rest to the others.
//!
//! Source: start-time fair queuing in two steps (Goyal, Vin and Cheng, SIGCOMM 1996).

use super::line::{CREDIT, GUESS, Line, Payer};
use std::time::Duration;

/// What a nanosecond costs a level with one share.
const WHOLE: u64 = 1 << 20;
/// Shares beyond do not count; with them a nanosecond would cost nothing.
const SHARES_MAX: u32 = 1 << 16;
/// Shares of the work of those who have not asked for anything yet: as many as of those of whom nobody knows more than a
/// name, in upstream's level `global-default`.
const SHARES_UNKNOWN: u32 = 20;

/// One of the levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelId(pub(super) usize);

impl LevelId {
    /// That of connections which have not asked for a resource yet.
    pub const UNKNOWN: Self = Self(0);
}

/// An account of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) level: usize,
    pub(super) account: usize,
}

struct Level<T> {
    /// None where there is none of this number any more.
    name: Option<String>,
    /// At least one: even a level without shares has a part, or what belongs to it would never end.
    shares: u32,
    line: Line<T>,
    /// What it used, on the scale of [`Levels::now`]: nanoseconds by their price, which may become more than 64 bits hold.
    used: u128,
    turns: u64,
    lasted: Duration,
}

impl<T> Level<T> {
    fn new(name: &str, shares: u32, used: u128) -> Self {
        let (name, shares) = (Some(name.to_owned()), shares.clamp(1, SHARES_MAX));
        Self { name, shares, line: Line::new(), used, turns: 0, lasted: Duration::ZERO }
    }

    fn cost(&self, nanoseconds: u64) -> u128 {
        u128::from(nanoseconds.saturating_mul(WHOLE / u64::from(self.shares)))
    }
}

/// What was measured of a level.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// Its name; empty for [`LevelId::UNKNOWN`].
    pub level: String,
    /// Its shares, as far as they count.
    pub shares: u32,
    /// Turns that ended.
    pub turns: u64,
    /// How long they lasted together.
    pub lasted: Duration,
    /// Work that waits for its turn.
    pub waiting: usize,
    /// Users and addresses with connections.
    pub users: usize,
}

/// Who waits for a turn.
pub(super) struct Levels<T> {
    levels: Vec<Level<T>>,
    waiting: usize,
    /// What the level used that had the last turn.
    now: u128,
}

impl<T> Levels<T> {
    pub(super) fn new() -> Self {
        Self { levels: vec![Level::new("", SHARES_UNKNOWN, 0)], waiting: 0, now: 0 }
    }

    /// How much is in line.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whose account this is.
    pub(super) fn payer(&self, place: Place) -> Option<&Payer> {
        self.levels[place.level].line.payer(place.account)
    }

    /// From now on there are these levels, with these shares, and that of the unknown. Work of one that is no more keeps its
    /// part until its connections ask again.
    pub(super) fn divide(&mut self, levels: &[(&str, u32)]) -> Vec<LevelId> {
        for level in &mut self.levels[1..] {
            level.name = level.name.take().filter(|name| levels.iter().any(|(wanted, _)| wanted == name));
        }
        levels.iter().map(|(name, shares)| self.level(name, *shares)).collect()
    }

    fn level(&mut self, name: &str, shares: u32) -> LevelId {
        if let Some(number) = self.levels.iter().position(|level| level.name.as_deref() == Some(name)) {
            self.levels[number].shares = shares.clamp(1, SHARES_MAX);
            return LevelId(number);
        }
        let is_free = |level: &Level<T>| level.name.is_none() && level.line.accounts() == 0;
        let number = self.levels.iter().position(is_free).unwrap_or(self.levels.len());
        let level = Level::new(name, shares, self.now);
        match self.levels.get_mut(number) {
            Some(place) => *place = level,
            None => self.levels.push(level),
        }
        LevelId(number)
    }

    /// The account of `payer` in a level, which has one more connection now.
    pub(super) fn join(&mut self, level: LevelId, payer: Payer) -> Place {
        Place { level: level.0, account: self.levels[level.0].line.join(payer) }
    }

    /// Takes a connection out of an account.
    pub(super) fn leave(&mut self, place: Place) {
        self.levels[place.level].line.leave(place.account);
    }

    /// Puts something in line.
    pub(super) fn push(&mut self, place: Place, item: T) {
        let level = &mut self.levels[place.level];
        if level.line.waiting() == 0 {
            level.used = level.used.max(self.now.saturating_sub(level.cost(CREDIT)));
        }
        level.line.push(place.account, item);
        self.waiting += 1;
    }

    /// What is next, and whose it is: see [`Levels::settle`].
    pub(super) fn pop(&mut self) -> Option<(Place, T)> {
        let levels = self.levels.iter_mut().enumerate().filter(|(_, level)| level.line.waiting() > 0);
        let (number, level) = levels.min_by_key(|(_, level)| level.used)?;
        let (account, item) = level.line.pop()?;
        self.now = self.now.max(level.used);
        level.used += level.cost(GUESS);
        self.waiting -= 1;
        Some((Place { level: number, account }, item))
    }

    /// Says how long a turn lasted. Pays for it who answers for its connection at its end: whoever became another in it would
    /// otherwise leave what it owes with an account that is forgotten.
    pub(super) fn settle(&mut self, began: Place, ended: Place, lasted: Duration) {
        let level = &mut self.levels[began.level];
        level.used = level.used.saturating_sub(level.cost(GUESS));
        let level = &mut self.levels[ended.level];
        let price = level.line.price(ended.account, lasted);
        level.line.charge(ended.account, price, if began == ended { GUESS } else { 0 });
        level.used += level.cost(price);
        level.turns += 1;
        level.lasted += lasted;
    }

    /// What was measured of each level.
    pub(super) fn figures(&self) -> Vec<Figures> {
        let named = self.levels.iter().filter_map(|level| level.name.as_ref().map(|name| (name, level)));
        named
            .map(|(name, level)| Figures {
                level: name.clone(),
                shares: level.shares,
                turns: level.turns,
                lasted: level.lasted,
                waiting: level.line.waiting(),
                users: level.line.accounts(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Duration = Duration::from_micros(50);

    fn user(name: &str) -> Payer {
        Payer::User(name.to_owned())
    }

    /// So many turns of the same length, after each of which its account wants another; how many each level had.
    fn turns(levels: &mut Levels<()>, count: usize) -> Vec<usize> {
        let mut had = vec![0; levels.levels.len()];
        for _ in 0..count {
            let (place, ()) = levels.pop().unwrap();
            had[place.level] += 1;
            levels.settle(place, place, TURN);
            levels.push(place, ());
        }
        had
    }

    #[track_caller]
    fn about(had: usize, of: usize, part: f64) {
        let wanted = of as f64 * part;
        assert!((had as f64 - wanted).abs() <= wanted * 0.05 + 3.0, "{had} of {of} and not {wanted}");
    }

    const COUNT: usize = 100_000;

    #[test]
    fn levels_have_their_parts_however_many_their_users_are() {
        let mut levels = Levels::new();
        let ids = levels.divide(&[("low", 100), ("nodes", 40), ("least", 0)]);
        let crowd: Vec<Place> = (0..1000).map(|n| levels.join(ids[0], user(&format!("low-{n}")))).collect();
        let (node, least) = (levels.join(ids[1], user("node")), levels.join(ids[2], user("least")));
        for place in crowd.into_iter().chain([node, least]) {
            levels.push(place, ());
        }
        let had = turns(&mut levels, COUNT);
        about(had[1], COUNT, 100.0 / 141.0);
        about(had[2], COUNT, 40.0 / 141.0);
        about(had[3], COUNT, 1.0 / 141.0);
        let figures = levels.figures();
        assert_eq!(figures.iter().map(|f| f.level.as_str()).collect::<Vec<_>>(), ["", "low", "nodes", "least"]);
        assert_eq!((figures[1].users, figures[1].waiting), (1000, 1000));
        assert_eq!((figures[2].turns as usize, figures[2].lasted), (had[2], TURN * had[2] as u32));

        // Shares change while there is work.
        assert_eq!(levels.divide(&[("least", 60), ("nodes", 40), ("low", 100)]), [ids[2], ids[1], ids[0]]);
        let had = turns(&mut levels, COUNT);
        about(had[3], COUNT, 60.0 / 200.0);
    }

    #[test]
    fn what_a_level_does_not_want_others_have_at_once() {
        let mut levels = Levels::new();
        let ids = levels.divide(&[("low", 100), ("nodes", 40)]);
        let (low, node) = (levels.join(ids[0], user("low")), levels.join(ids[1], user("node")));
        levels.push(low, ());
        assert_eq!(turns(&mut levels, 10_000), [0, 10_000, 0]);
        // Whoever wanted nothing for so long comes next, and may catch up on no more than its credit.
        levels.push(node, ());
        assert_eq!(turns(&mut levels, 1), [0, 0, 1]);
        let ahead = usize::try_from(CREDIT / 50_000).unwrap();
        let had = turns(&mut levels, 14_000)[2];
        assert!(had <= 4_000 + ahead + 20, "{had}");
    }

    #[test]
    fn nobody_gets_rid_of_what_it_owes_by_becoming_another() {
        for elsewhere in [false, true] {
            let mut levels = Levels::new();
            let ids = levels.divide(&[("one", 10), ("other", 10)]);
            let honest = levels.join(ids[0], user("honest"));
            let mut changing = levels.join(ids[0], user("changing-0"));
            levels.push(honest, ());
            levels.push(changing, ());
            let mut had = [0, 0];
            for n in 1..=4_000 {
                let (place, ()) = levels.pop().unwrap();
                let is_honest = place == honest;
                had[usize::from(is_honest)] += 1;
                if !is_honest {
                    let level = if elsewhere { ids[n % 2] } else { ids[0] };
                    changing = levels.join(level, user(&format!("changing-{n}")));
                    levels.leave(place);
                }
                let ended = if is_honest { honest } else { changing };
                levels.settle(place, ended, TURN);
                levels.push(ended, ());
            }
            // Of two levels it may have the part of the other, and half of this.
            let most = if elsewhere { 3_000 } else { 2_000 };
            assert!(had[0] <= most + 20, "{had:?}");
            assert_eq!(levels.figures().iter().map(|f| f.users).sum::<usize>(), 2);
        }
    }

    #[test]
    fn a_level_that_is_no_more_makes_room() {
        let mut levels = Levels::new();
        let ids = levels.divide(&[("a", 10), ("b", 10)]);
        let place = levels.join(ids[0], user("jane"));
        levels.push(place, ());
        assert_eq!(levels.divide(&[("b", 10), ("c", 10)]), [ids[1], LevelId(3)], "there is still work of it");
        let (popped, ()) = levels.pop().unwrap();
        levels.settle(popped, place, TURN);
        levels.leave(place);
        assert_eq!(levels.divide(&[("b", 10), ("c", 10), ("d", 10)]), [ids[1], LevelId(3), ids[0]]);
        let (level, lasted) = ("d".to_owned(), Duration::ZERO);
        assert_eq!(levels.figures()[1], Figures { level, shares: 10, turns: 0, lasted, waiting: 0, users: 0 });
        assert!(levels.pop().is_none() && levels.waiting() == 0);
    }

    #[test]
    fn shares_beyond_measure_leave_something_to_others() {
        let mut levels = Levels::new();
        let ids = levels.divide(&[("greedy", u32::MAX), ("other", 100)]);
        for id in ids {
            let place = levels.join(id, user("jane"));
            levels.push(place, ());
        }
        assert!(turns(&mut levels, 10_000)[2] > 0);
    }
}
