//! Where this process spends its time: a signal for every ten milliseconds of processor time, whose handler notes where
//! the thread that it met was.
//!
//! Callers are followed by frame pointers where the binary was built with them (`-C force-frame-pointers=yes`); otherwise
//! only the place itself is known. Costs nothing while nobody samples.

use gantry_server::debug::{Mapping, Sampled, Stack};
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Processor time between two samples.
const PERIOD: Duration = Duration::from_millis(10);
/// How often samples are fetched.
const FETCH: Duration = Duration::from_millis(100);
/// Samples that are kept between two fetches: enough for a hundred processors.
const SLOTS: usize = 1024;
/// Callers beyond this many are left out.
const DEPTH: usize = 64;

const FREE: u8 = 0;
const WRITING: u8 = 1;
const FULL: u8 = 2;

struct Slot {
    state: AtomicU8,
    depth: AtomicUsize,
    frames: [AtomicU64; DEPTH],
}

// Zeroes: no memory is taken for it before somebody samples.
static SAMPLES: [Slot; SLOTS] = [const {
    Slot { state: AtomicU8::new(FREE), depth: AtomicUsize::new(0), frames: [const { AtomicU64::new(0) }; DEPTH] }
}; SLOTS];
static NEXT: AtomicUsize = AtomicUsize::new(0);
static PROCESS: AtomicI32 = AtomicI32::new(0);
static BUSY: AtomicBool = AtomicBool::new(false);

/// Program counter and frame pointer of an interrupted thread.
#[cfg(target_arch = "x86_64")]
fn registers(context: &libc::ucontext_t) -> (u64, u64) {
    let register = |i: c_int| usize::try_from(i).map_or(0, |i| context.uc_mcontext.gregs[i].cast_unsigned());
    (register(libc::REG_RIP), register(libc::REG_RBP))
}

/// Program counter and frame pointer of an interrupted thread.
#[cfg(target_arch = "aarch64")]
fn registers(context: &libc::ucontext_t) -> (u64, u64) {
    (context.uc_mcontext.pc, context.uc_mcontext.regs[29])
}

/// Two words at an address, where there is memory.
fn read_pair(process: libc::pid_t, address: u64) -> Option<[u64; 2]> {
    let mut pair = [0_u64; 2];
    let local = libc::iovec { iov_base: pair.as_mut_ptr().cast(), iov_len: size_of_val(&pair) };
    let remote = libc::iovec { iov_base: address as *mut c_void, iov_len: size_of_val(&pair) };
    // SAFETY: the kernel writes to `pair` no more than it has room for, and checks the other address itself.
    let read = unsafe { libc::process_vm_readv(process, &raw const local, 1, &raw const remote, 1, 0) };
    (usize::try_from(read) == Ok(size_of_val(&pair))).then_some(pair)
}

/// Notes where the thread was. Only what is allowed in a signal handler: atomics, and one system call.
extern "C" fn tick(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    let slot = &SAMPLES[NEXT.fetch_add(1, Ordering::Relaxed) % SLOTS];
    if slot.state.compare_exchange(FREE, WRITING, Ordering::Acquire, Ordering::Relaxed).is_err() {
        return;
    }
    // SAFETY: the kernel passes a context that is valid until the handler returns.
    let (counter, mut frame) = registers(unsafe { &*context.cast::<libc::ucontext_t>() });
    slot.frames[0].store(counter, Ordering::Relaxed);
    let mut depth = 1;
    if cfg!(frame_pointers) {
        // SAFETY: the thread's own error number, which the interrupted code may be about to read.
        let error = unsafe { libc::__errno_location() };
        // SAFETY: as above.
        let saved = unsafe { *error };
        let process = PROCESS.load(Ordering::Relaxed);
        while depth < DEPTH
            && let Some([next, back]) = read_pair(process, frame)
            && back != 0
        {
            slot.frames[depth].store(back - 1, Ordering::Relaxed);
            depth += 1;
            if next <= frame {
                break;
            }
            frame = next;
        }
        // SAFETY: as above.
        unsafe { *error = saved };
    }
    slot.depth.store(depth, Ordering::Relaxed);
    slot.state.store(FULL, Ordering::Release);
}

fn install() -> io::Result<()> {
    PROCESS.store(std::process::id().cast_signed(), Ordering::Relaxed);
    // SAFETY: all zeroes is a valid action.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = tick as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
    // SAFETY: the handler does only what handlers may. It stays: a signal that is late must not end the process.
    let done = unsafe { libc::sigaction(libc::SIGPROF, &raw const action, std::ptr::null_mut()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One signal for each period of processor time; none where it is zero.
fn set_timer(period: Duration) -> io::Result<()> {
    let every = libc::timeval {
        tv_sec: 0,
        tv_usec: libc::suseconds_t::from(i32::try_from(period.as_micros()).unwrap_or(i32::MAX)),
    };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: `timer` is valid, and the former one is not asked for.
    let done = unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, std::ptr::null_mut()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes what was noted since the last time.
fn fetch(stacks: &mut HashMap<Stack, u64>) {
    for slot in SAMPLES.iter().filter(|slot| slot.state.load(Ordering::Acquire) == FULL) {
        let frames = &slot.frames[..slot.depth.load(Ordering::Relaxed).min(DEPTH)];
        let stack = frames.iter().map(|f| f.load(Ordering::Relaxed)).collect();
        *stacks.entry(stack).or_default() += 1;
        slot.state.store(FREE, Ordering::Release);
    }
}

/// Ends sampling, also where whoever asked for it has gone.
struct Running;

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = set_timer(Duration::ZERO) {
            tracing::error!(%error, "sampling cannot be ended");
        }
        BUSY.store(false, Ordering::Release);
    }
}

/// Looks for so long where the process spends its time.
///
/// # Errors
/// Where somebody does already, or the kernel does not let us.
pub async fn sample(wanted: Duration) -> Result<Sampled, String> {
    if BUSY.swap(true, Ordering::AcqRel) {
        return Err("cpu profiling already in use".to_owned());
    }
    let running = Running;
    let mut stacks = HashMap::new();
    // What a former run left.
    fetch(&mut stacks);
    stacks.clear();
    install().and_then(|()| set_timer(PERIOD)).map_err(|e| e.to_string())?;
    let (began, start) = (SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), Instant::now());
    loop {
        let left = wanted.saturating_sub(start.elapsed());
        if left.is_zero() {
            break;
        }
        tokio::time::sleep(left.min(FETCH)).await;
        fetch(&mut stacks);
    }
    let took = start.elapsed();
    drop(running);
    let mappings = std::fs::read_to_string("/proc/self/maps").map_err(|e| format!("/proc/self/maps: {e}"))?;
    Ok(Sampled { stacks, period: PERIOD, took, began, mappings: mappings.lines().filter_map(mapping).collect() })
}

/// A line of `/proc/self/maps`, where it is of code.
fn mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.split_whitespace();
    let (range, rights, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let (start, end) = range.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let file = fields.nth(2).unwrap_or_default().to_owned();
    let mapping = Mapping { start: number(start)?, end: number(end)?, offset: number(offset)?, file };
    rights.contains('x').then_some(mapping)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_busy_is_seen() {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        let busy = std::thread::spawn(move || {
            let mut n = 0_u64;
            while !asked.load(Ordering::Relaxed) {
                n = std::hint::black_box(n.wrapping_mul(31).wrapping_add(7));
            }
            n
        });
        let (sampled, second) = tokio::join!(sample(Duration::from_secs(1)), sample(Duration::from_secs(1)));
        stop.store(true, Ordering::Relaxed);
        busy.join().unwrap();
        let sampled = sampled.unwrap();
        assert_eq!(second.unwrap_err(), "cpu profiling already in use");
        let known = |stack: &Stack| sampled.mappings.iter().any(|m| (m.start..m.end).contains(&stack[0]));
        let seen: u64 = sampled.stacks.iter().filter(|(stack, _)| known(stack)).map(|(_, n)| n).sum();
        assert!(seen > 0, "{sampled:?}");
        assert!(sample(Duration::from_millis(10)).await.is_ok(), "it can be done again");
    }

    #[test]
    fn mappings_are_those_of_code() {
        let code = mapping("00401000-02c3f000 r-xp 00001000 fe:01 1234   /usr/bin/gantry").unwrap();
        let wanted = Mapping { start: 0x40_1000, end: 0x2c3_f000, offset: 0x1000, file: "/usr/bin/gantry".to_owned() };
        assert_eq!(code, wanted);
        assert_eq!(mapping("00400000-00401000 r--p 00000000 fe:01 1234 /usr/bin/gantry"), None);
        assert_eq!(mapping("7ffc1000-7ffc2000 r-xp 00000000 00:00 0 [vdso]").unwrap().file, "[vdso]");
    }
}
