//! Links the release binary at a fixed address. A static binary that can be loaded anywhere (what rustc asks for by default)
//! rewrites megabytes of pointers whenever it starts: memory of its own for each pod's shim, and time before each container.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let variable = |name| std::env::var(name).unwrap_or_default();
    // Whether callers can be told from frames, see src/sampling.rs.
    println!("cargo:rustc-check-cfg=cfg(frame_pointers)");
    if variable("CARGO_ENCODED_RUSTFLAGS").contains("force-frame-pointers") {
        println!("cargo:rustc-cfg=frame_pointers");
    }
    if variable("CARGO_CFG_TARGET_ENV") == "gnu" && variable("PROFILE") == "release" {
        // Not with mold: its older versions leave indirect functions of such a binary unresolved, which crashes at the start.
        for argument in ["-static", "-no-pie", "-fuse-ld=bfd"] {
            println!("cargo:rustc-link-arg-bins={argument}");
        }
    }
}
