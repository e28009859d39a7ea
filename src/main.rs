//! The `gantry` binary: every role in one file.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// As many arenas as there are CPUs, not four times as many: what is left of a burst lies scattered over fewer pages.
#[repr(transparent)]
struct Options(*const libc::c_char);

// SAFETY: constant text, which anybody may read.
unsafe impl Sync for Options {}

// SAFETY: the allocator looks for its options under this name, and declares it as a pointer to text.
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_OPTIONS: Options = Options(c"narenas_ratio:1".as_ptr());

/// Huge pages would be a third of the memory of an idle cluster, for the allocator touches a little of each of its areas. They
/// are forbidden before the first allocation; what runs in containers gets them back.
extern "C" fn without_huge_pages() {
    // SAFETY: constant arguments; kernels that do not know of this have no huge pages to forbid.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

#[used]
// SAFETY: the C library calls what is in this section before `main`, without expectations to the function.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = without_huge_pages;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next();
    // Container processes are started by re-executing this binary. These roles must stay single-threaded and small, so they are
    // entered before anything else exists.
    match first.as_deref().and_then(|a| a.to_str()) {
        Some("shim") => gantry_container::shim_main(arguments),
        Some("container-init") => gantry_container::container_init_main(arguments),
        Some("self") => gantry_container::self_main(arguments),
        _ => gantry::cli::main(),
    }
}
