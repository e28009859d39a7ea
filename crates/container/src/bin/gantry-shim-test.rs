//! The shim, container init and the built-in image's program without the rest, for this crate's conformance suite.

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_deref().and_then(|a| a.to_str()) {
        Some("shim") => gantry_container::shim_main(arguments),
        Some("container-init") => gantry_container::container_init_main(arguments),
        Some("self") => gantry_container::self_main(arguments),
        _ => {
            eprintln!("usage: gantry-shim-test shim|container-init|self ARGUMENTS");
            std::process::exit(2);
        }
    }
}
