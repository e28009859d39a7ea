//! Room on the stack for expressions that nest deep. The grammar allows 250 levels, which is more than the stack of a
//! worker thread is sure to hold.

use std::panic::resume_unwind;
use std::thread;

/// Up to this nesting the stack of any thread has room.
const SHALLOW: usize = 24;
/// What one level takes at most, in octets.
const PER_LEVEL: usize = 128 << 10;
/// What all levels that the grammar allows take.
const MOST: usize = 500 * PER_LEVEL;

/// How deep the expression of a text can nest: its brackets, and operators that nest without brackets.
pub(crate) fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest, mut operators) = (0usize, 0, 0);
    for b in text.bytes() {
        match b {
            b'(' | b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'?' | b'+' | b'-' | b'*' | b'/' | b'%' | b'<' | b'>' | b'=' | b'.' => operators += 1,
            _ => {}
        }
    }
    // Chains of operators nest with smaller steps than brackets.
    deepest + operators / 8
}

/// Does something with enough stack for a nesting. What nests deep runs on a thread of its own.
pub(crate) fn with_room<T: Send>(nesting: usize, work: impl FnOnce() -> T + Send) -> T {
    if nesting <= SHALLOW {
        return work();
    }
    let size = (nesting * PER_LEVEL).min(MOST);
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("cel".to_owned())
            .stack_size(size)
            .spawn_scoped(scope, work)
            .expect("the system has room for one more thread");
        worker.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}
