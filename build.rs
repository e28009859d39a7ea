//! Links the binary at a fixed address. A static binary that can be loaded anywhere (what rustc asks for by default) rewrites
//! megabytes of pointers whenever it starts: memory of its own for each pod's shim, and time before each container.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("gnu") {
        for argument in ["-static", "-no-pie"] {
            println!("cargo:rustc-link-arg-bins={argument}");
        }
    }
}
