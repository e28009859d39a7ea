//! Mutations of an input, all decided by the seed.

use gantry_api::entropy::Entropy;

/// Inputs do not grow beyond this many bytes.
const BYTES_MAX: usize = 64 << 10;

fn at(entropy: &Entropy, bound: usize) -> usize {
    usize::try_from(entropy.below(bound as u64)).unwrap_or(0)
}

/// One of `seeds` with a few things changed: bits, bytes, pieces of it cut out, doubled or moved, and pieces from
/// `dictionary` or another seed put in.
#[must_use]
pub fn mutated(seeds: &[Vec<u8>], dictionary: &[&str], entropy: &Entropy) -> Vec<u8> {
    let mut data = seeds[at(entropy, seeds.len())].clone();
    for _ in 0..=at(entropy, 6) {
        let place = at(entropy, data.len() + 1);
        let length = at(entropy, 24.min(data.len() - place + 1));
        match at(entropy, 9) {
            0 | 1 if place < data.len() => data[place] ^= 1 << at(entropy, 8),
            2 if place < data.len() => data[place] = entropy.below(256) as u8,
            3 => drop(data.drain(place..place + length)),
            4 => {
                let piece = data[place..place + length].to_vec();
                let to = at(entropy, data.len() + 1);
                data.splice(to..to, piece);
            }
            5 => data.truncate(place),
            6 => {
                let other = &seeds[at(entropy, seeds.len())];
                let from = at(entropy, other.len() + 1);
                let piece = other[from..(from + length).min(other.len())].to_vec();
                data.splice(place..place, piece);
            }
            7 if !dictionary.is_empty() => {
                let word = dictionary[at(entropy, dictionary.len())].as_bytes();
                let end = (place + word.len()).min(data.len());
                data.splice(place..end, word.iter().copied());
            }
            _ if !dictionary.is_empty() => {
                let word = dictionary[at(entropy, dictionary.len())].as_bytes();
                data.splice(place..place, word.iter().copied());
            }
            _ => {}
        }
    }
    data.truncate(BYTES_MAX);
    data
}
