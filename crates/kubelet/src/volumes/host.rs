//! `hostPath` volumes: what the path must be.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Checks (and for the `…OrCreate` types makes) the path.
pub(crate) fn check(path: &Path, kind: &str) -> Result<(), String> {
    let shown = path.display();
    let meta = fs::metadata(path);
    let found = |right: bool, what: &str| match right {
        true => Ok(()),
        false => Err(format!("hostPath type check failed: {shown} is not {what}")),
    };
    let made = |e: std::io::Error| format!("failed to create {shown}: {e}");
    match (kind, meta) {
        ("" | "DirectoryOrCreate", Err(e)) if e.kind() == std::io::ErrorKind::NotFound => {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(made)
        }
        ("FileOrCreate", Err(e)) if e.kind() == std::io::ErrorKind::NotFound => fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(path)
            .map(drop)
            .map_err(made),
        ("", Ok(_)) => Ok(()),
        ("DirectoryOrCreate" | "Directory", Ok(m)) => found(m.is_dir(), "a directory"),
        ("FileOrCreate" | "File", Ok(m)) => found(m.is_file(), "a file"),
        ("Socket", Ok(m)) => found(m.file_type().is_socket(), "a socket file"),
        ("CharDevice", Ok(m)) => found(m.file_type().is_char_device(), "a character device"),
        ("BlockDevice", Ok(m)) => found(m.file_type().is_block_device(), "a block device"),
        ("Directory", Err(_)) => found(false, "a directory"),
        ("File", Err(_)) => found(false, "a file"),
        ("Socket", Err(_)) => found(false, "a socket file"),
        ("CharDevice", Err(_)) => found(false, "a character device"),
        ("BlockDevice", Err(_)) => found(false, "a block device"),
        (_, Err(e)) => Err(format!("stat {shown}: {e}")),
        (other, Ok(_)) => Err(format!("{other:?} is an invalid volume type")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked_and_made() {
        let dir = tempfile::tempdir().unwrap();
        let p = |n: &str| dir.path().join(n);
        check(&p("a/b"), "DirectoryOrCreate").unwrap();
        check(&p("f"), "FileOrCreate").unwrap();
        check(&p("new"), "").unwrap();
        assert!(p("a/b").is_dir() && p("f").is_file() && p("new").is_dir());
        let socket = std::os::unix::net::UnixListener::bind(p("s")).unwrap();
        for (name, kind, ok) in [
            ("a", "Directory", true),
            ("f", "Directory", false),
            ("f", "File", true),
            ("a", "File", false),
            ("none", "File", false),
            ("s", "Socket", true),
            ("f", "Socket", false),
            ("f", "CharDevice", false),
        ] {
            assert_eq!(check(&p(name), kind).is_ok(), ok, "{name} {kind}");
        }
        assert!(check(Path::new("/dev/null"), "CharDevice").is_ok());
        drop(socket);
        let message = check(&p("f"), "Directory").unwrap_err();
        assert_eq!(message, format!("hostPath type check failed: {} is not a directory", p("f").display()));
    }
}
