//! How the server's seats are divided among levels: nominally by shares, and every few seconds by demand.

/// What a level must, may and wants to get, in seats. `least` ≤ `wanted`, `least` ≤ `most`.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// What it keeps in any case.
    pub least: f64,
    /// What it wants; others are served in proportion to this.
    pub wanted: f64,
    /// What it may have.
    pub most: f64,
}

/// A want of nothing cannot be in proportion to anything.
const WANTED_MIN: f64 = 0.001;

impl Claim {
    fn wanted(&self) -> f64 {
        self.wanted.max(WANTED_MIN)
    }

    fn at(&self, proportion: f64) -> f64 {
        (proportion * self.wanted()).clamp(self.least, self.most)
    }
}

/// Seats of a level with `shares` of `all` shares of a server with `seats`.
#[must_use]
pub fn nominal(seats: u32, shares: i32, all: i64) -> u32 {
    if all <= 0 {
        return 0;
    }
    (f64::from(seats) * f64::from(shares) / all as f64).ceil() as u32
}

/// `percent` of `seats`, rounded.
#[must_use]
pub fn part(seats: u32, percent: i32) -> u32 {
    (f64::from(seats) * f64::from(percent) / 100.0).round() as u32
}

/// Divides `seats` so that everybody gets the same part of what it wants, within its bounds. Where the bounds leave no
/// choice everybody gets its bound.
#[must_use]
pub fn divide(seats: f64, claims: &[Claim]) -> Vec<f64> {
    let given = |proportion: f64| claims.iter().map(|c| c.at(proportion)).sum::<f64>();
    // The sum grows with the proportion, in straight lines between the proportions at which somebody meets a bound.
    let mut corners: Vec<f64> = claims.iter().flat_map(|c| [c.least / c.wanted(), c.most / c.wanted()]).collect();
    corners.sort_by(f64::total_cmp);
    let mut proportion = 0.0;
    for corner in corners {
        let (below, above) = (given(proportion), given(corner));
        if above >= seats {
            if above > below {
                proportion += (corner - proportion) * ((seats - below) / (above - below)).max(0.0);
            }
            break;
        }
        proportion = corner;
    }
    claims.iter().map(|c| c.at(proportion)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divided(seats: f64, claims: &[(f64, f64, f64)]) -> Vec<i64> {
        let claims: Vec<_> = claims.iter().map(|&(least, wanted, most)| Claim { least, wanted, most }).collect();
        divide(seats, &claims).into_iter().map(|n| n.round() as i64).collect()
    }

    #[test]
    fn everybody_gets_the_same_part_within_bounds() {
        assert_eq!(divided(100.0, &[(0.0, 10.0, 600.0), (0.0, 30.0, 600.0)]), [25, 75]);
        assert_eq!(divided(100.0, &[(40.0, 40.0, 600.0), (0.0, 360.0, 600.0)]), [40, 60]);
        assert_eq!(divided(100.0, &[(0.0, 50.0, 20.0), (0.0, 1.0, 600.0)]), [20, 80]);
        assert_eq!(divided(100.0, &[(0.0, 0.0, 600.0), (0.0, 0.0, 600.0)]), [50, 50]);
        assert_eq!(divided(10.0, &[(8.0, 9.0, 9.0), (8.0, 9.0, 9.0)]), [8, 8], "no less than the least");
        assert_eq!(divided(100.0, &[(8.0, 9.0, 9.0), (8.0, 9.0, 9.0)]), [9, 9], "no more than the most");
    }

    #[test]
    fn shares_of_a_fresh_cluster() {
        let all = 5 + 30 + 40 + 10 + 40 + 100 + 20;
        let of = |shares| nominal(600, shares, all);
        assert_eq!([of(5), of(30), of(40), of(10), of(100), of(20), of(0)], [13, 74, 98, 25, 245, 49, 0]);
        assert_eq!(part(245, 90), 221);
    }
}
