//! The allocator's free pages.

use std::ptr;
use std::time::Duration;

const EVERY: Duration = Duration::from_secs(10);

/// jemalloc's name of the command that gives all unused pages of all its arenas back to the kernel.
const PURGE: &std::ffi::CStr = c"arena.4096.purge";

/// Gives back to the kernel, from time to time, what the process does not need any more. Never ends.
///
/// jemalloc does so on its own, but looks for such pages only while it is asked for memory: after a burst, when nobody asks,
/// they would stay.
pub async fn give_back() {
    loop {
        tokio::time::sleep(EVERY).await;
        // SAFETY: the command reads nothing and writes nothing.
        let result =
            unsafe { tikv_jemalloc_sys::mallctl(PURGE.as_ptr(), ptr::null_mut(), ptr::null_mut(), ptr::null_mut(), 0) };
        if result != 0 {
            tracing::warn!(result, "the allocator does not give back memory");
            return;
        }
    }
}
