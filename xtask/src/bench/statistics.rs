//! Medians and percentiles.

/// The value below which `share` (0 to 1) of the samples lie (nearest rank); 0 of none.
pub fn percentile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
}

/// The middle value (the lower of two); 0 of none.
pub fn median(samples: &[f64]) -> f64 {
    percentile(samples, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        for (share, expected) in [(0.0, 1.0), (0.01, 1.0), (0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            assert_eq!(percentile(&hundred, share), expected, "{share}");
        }
        for (samples, expected) in [(&[][..], 0.0), (&[7.0], 7.0), (&[3.0, 1.0, 2.0], 2.0), (&[4.0, 1.0], 1.0)] {
            assert_eq!(median(samples), expected, "{samples:?}");
        }
    }
}
