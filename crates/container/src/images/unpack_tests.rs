//! Malicious and odd layers.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use super::*;

struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Tar {
        Tar(tar::Builder::new(Vec::new()))
    }

    fn entry(mut self, kind: EntryType, path: &str, link: Option<&str>, data: &[u8]) -> Tar {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        // Written past the builder, which refuses the paths these tests are about.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        if let Some(link) = link {
            header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o640 });
        header.set_uid(12);
        header.set_gid(34);
        header.set_mtime(1_000_000);
        header.set_size(data.len() as u64);
        header.set_device_major(0).unwrap();
        header.set_device_minor(0).unwrap();
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn file(self, path: &str, data: &str) -> Tar {
        self.entry(EntryType::Regular, path, None, data.as_bytes())
    }

    fn unpack(self) -> (tempfile::TempDir, Result<()>) {
        let outer = tempfile::tempdir().unwrap();
        fs::create_dir(outer.path().join("layer")).unwrap();
        fs::write(outer.path().join("secret"), "untouched").unwrap();
        let bytes = self.0.into_inner().unwrap();
        let result = unpack(&bytes[..], &outer.path().join("layer"), "layer-1");
        assert_eq!(fs::read_to_string(outer.path().join("secret")).unwrap(), "untouched");
        (outer, result)
    }
}

#[test]
fn ordinary_content_keeps_its_attributes() {
    let (dir, result) = Tar::new()
        .entry(EntryType::Directory, "./etc/", None, b"")
        .file("./etc/passwd", "root:x:0:0::/:")
        .entry(EntryType::Symlink, "etc/link", Some("passwd"), b"")
        .entry(EntryType::Link, "etc/hard", Some("etc/passwd"), b"")
        .file("no/parents/given", "x")
        .entry(EntryType::Fifo, "pipe", None, b"")
        .unpack();
    result.unwrap();
    let layer = dir.path().join("layer");
    let meta = fs::metadata(layer.join("etc/passwd")).unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777, meta.mtime(), meta.nlink()),
        (12, 34, 0o640, 1_000_000, 2)
    );
    assert_eq!(fs::metadata(layer.join("etc")).unwrap().mtime(), 1_000_000);
    assert_eq!(fs::read_link(layer.join("etc/link")).unwrap(), Path::new("passwd"));
    assert_eq!(fs::read_to_string(layer.join("no/parents/given")).unwrap(), "x");
    assert!(fs::symlink_metadata(layer.join("pipe")).unwrap().file_type().is_fifo());
}

#[test]
fn paths_out_of_the_image_are_refused_by_name() {
    for path in ["../secret", "a/../../secret", "..", "/../secret"] {
        let (_dir, result) = Tar::new().file(path, "evil").unpack();
        match result {
            Err(Error::InvalidImage { entry, .. }) => assert!(entry.contains(path.trim_start_matches('/')), "{entry}"),
            other => panic!("{path}: {other:?}"),
        }
    }
}

#[test]
fn links_do_not_lead_out() {
    // Through a link to a directory: resolved inside the layer.
    let (dir, result) =
        Tar::new().entry(EntryType::Symlink, "out", Some("../.."), b"").file("out/secret", "evil").unpack();
    result.unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("layer/secret")).unwrap(), "evil");

    // Onto a link: replaced, not followed.
    let (dir, result) = Tar::new().entry(EntryType::Symlink, "f", Some("../secret"), b"").file("f", "evil").unpack();
    result.unwrap();
    assert!(fs::symlink_metadata(dir.path().join("layer/f")).unwrap().is_file());

    // A hard link to something outside.
    for target in ["../secret", "/etc/shadow-not-here"] {
        let (_dir, result) = Tar::new().entry(EntryType::Link, "f", Some(target), b"").unpack();
        assert!(matches!(result, Err(Error::InvalidImage { .. })), "{target}: {result:?}");
    }

    // A hard link through a symbolic link to the outside.
    let (_dir, result) = Tar::new()
        .entry(EntryType::Symlink, "up", Some(".."), b"")
        .entry(EntryType::Link, "stolen", Some("up/secret"), b"")
        .unpack();
    assert!(matches!(result, Err(Error::InvalidImage { .. })), "{result:?}");
}

#[test]
fn whiteouts_become_overlay_marks() {
    let (dir, result) = Tar::new()
        .file("d/.wh.gone", "")
        .file("d/.wh..wh..opq", "")
        .file("d/kept", "x")
        .file("d/.wh.kept", "")
        .file(".wh..wh.plnk", "")
        .unpack();
    result.unwrap();
    let layer = dir.path().join("layer");
    let gone = fs::symlink_metadata(layer.join("d/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert!(fs::symlink_metadata(layer.join("d/kept")).unwrap().is_file());
    assert!(!layer.join(".wh..wh.plnk").exists());
    for bad in [".wh.", ".wh...", "x/.wh.."] {
        let (_dir, result) = Tar::new().file(bad, "").unpack();
        assert!(matches!(result, Err(Error::InvalidImage { .. })), "{bad}: {result:?}");
    }
}

#[test]
fn a_device_that_would_be_a_whiteout_is_refused() {
    let (_dir, result) = Tar::new().entry(EntryType::Char, "dev/x", None, b"").unpack();
    assert!(matches!(result, Err(Error::InvalidImage { .. })), "{result:?}");
}

#[test]
fn later_entries_replace_earlier_ones_of_another_type() {
    let (dir, result) = Tar::new()
        .entry(EntryType::Directory, "a", None, b"")
        .file("a/x", "1")
        .file("a", "now a file")
        .file("b", "file")
        .entry(EntryType::Directory, "b", None, b"")
        .unpack();
    result.unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("layer/a")).unwrap(), "now a file");
    assert!(dir.path().join("layer/b").is_dir());
    assert_eq!(fs::metadata(dir.path().join("layer/a")).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn a_truncated_archive_names_the_entry() {
    let bytes = Tar::new().file("big", &"x".repeat(5000)).0.into_inner().unwrap();
    let dir = tempfile::tempdir().unwrap();
    for cut in [700, 1500, 5000] {
        let target = dir.path().join(cut.to_string());
        fs::create_dir(&target).unwrap();
        match unpack(&bytes[..cut], &target, "layer-9") {
            Err(Error::InvalidImage { entry, reason }) => {
                assert!(entry.contains("layer-9") && entry.contains("big"), "{entry}: {reason}");
            }
            other => panic!("{cut}: {other:?}"),
        }
    }
}

#[test]
fn garbage_is_no_archive() {
    let dir = tempfile::tempdir().unwrap();
    let garbage: Vec<u8> = (0..4096u32).map(|i| (i * 7 + 13) as u8).collect();
    assert!(matches!(unpack(&garbage[..], dir.path(), "l"), Err(Error::InvalidImage { .. })));
}
