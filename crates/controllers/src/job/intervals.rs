//! Sets of completion indexes, kept and written as a Job's status writes them: `1,3-5,7`.

use std::collections::BTreeSet;
use std::fmt;

/// Disjoint closed intervals in increasing order, none next to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intervals(Vec<(i32, i32)>);

impl Intervals {
    /// Reads a list. What is not below `completions` is cut off (an elastic Job may have shrunk), and a part that is no
    /// interval is passed over: the list was valid when it was written.
    #[must_use]
    pub fn parse(text: &str, completions: i32) -> Self {
        let mut all = Self::default();
        for part in text.split(',').filter(|p| !p.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) else { continue };
            if first >= completions {
                break;
            }
            all.push(first, last.min(completions - 1));
        }
        all
    }

    /// The set of these indexes.
    #[must_use]
    pub fn of(indexes: &BTreeSet<i32>) -> Self {
        let mut all = Self::default();
        for i in indexes {
            all.push(*i, *i);
        }
        all
    }

    /// Adds an interval that begins no earlier than the last one.
    fn push(&mut self, first: i32, last: i32) {
        match self.0.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => self.0.push((first, last)),
        }
    }

    /// What is in either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut both: Vec<(i32, i32)> = self.0.iter().chain(&other.0).copied().collect();
        both.sort_unstable();
        let mut all = Self::default();
        for (first, last) in both {
            all.push(first, last);
        }
        all
    }

    /// How many indexes there are.
    #[must_use]
    pub fn total(&self) -> i32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the index is one of them.
    #[must_use]
    pub fn has(&self, index: i32) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(at).is_some_and(|(first, _)| *first <= index)
    }

    /// How many indexes both sets have.
    #[must_use]
    pub fn overlap(&self, other: &Self) -> i32 {
        let (mut a, mut b, mut both) = (self.0.iter().peekable(), other.0.iter().peekable(), 0);
        while let (Some((a_first, a_last)), Some((b_first, b_last))) = (a.peek(), b.peek()) {
            both += (a_last.min(b_last) - a_first.max(b_first) + 1).max(0);
            if a_last < b_last {
                a.next();
            } else {
                b.next();
            }
        }
        both
    }

    /// The lowest indexes below `completions` that are not in the set, `count` at most.
    #[must_use]
    pub fn missing(&self, completions: i32, count: usize) -> Vec<i32> {
        let (mut out, mut next) = (Vec::new(), 0);
        for (first, last) in self.0.iter().copied().chain([(completions, completions)]) {
            while next < first.min(completions) && out.len() < count {
                out.push(next);
                next += 1;
            }
            next = next.max(last.saturating_add(1));
        }
        out
    }
}

impl fmt::Display for Intervals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match last - first {
                0 => write!(f, "{first}")?,
                // Two neighbours are a list of two.
                1 => write!(f, "{first},{last}")?,
                _ => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Intervals {
        Intervals::parse(text, 100)
    }

    #[test]
    fn lists_are_read_and_written() {
        for (text, written, total) in
            [("", "", 0), ("0", "0", 1), ("0,1", "0,1", 2), ("0,1,2", "0-2", 3), ("1,3-5,9", "1,3-5,9", 5)]
        {
            assert_eq!((read(text).to_string().as_str(), read(text).total()), (written, total), "{text}");
        }
        assert_eq!(Intervals::parse("0-3,7", 3).to_string(), "0-2");
        assert_eq!(Intervals::parse("x,2", 3).to_string(), "2");
        assert_eq!(Intervals::of(&BTreeSet::from([4, 2, 3, 8])).to_string(), "2-4,8");
    }

    #[test]
    fn sets_are_joined_searched_and_compared() {
        assert_eq!(read("0-2,7").union(&read("3,5-8")).to_string(), "0-3,5-8");
        let set = read("2-4,8");
        let found: Vec<i32> = (0..10).filter(|i| set.has(*i)).collect();
        assert_eq!(found, [2, 3, 4, 8]);
        assert_eq!(set.overlap(&read("0-2,4-9")), 3);
        assert_eq!(set.overlap(&read("5-7")), 0);
        assert_eq!(set.missing(12, 4), [0, 1, 5, 6]);
        assert_eq!(set.missing(4, 9), [0, 1]);
        assert_eq!(Intervals::default().missing(2, 9), [0, 1]);
    }
}
