//! `id`, `ls`, `cat`, `write`.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Outcome, print};
use crate::init::capability;

pub(super) fn id() -> Outcome {
    let status = fs::read_to_string("/proc/self/status").map_err(|e| format!("/proc/self/status: {e}"))?;
    let field = |name: &str| {
        status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(str::trim).unwrap_or("").to_string()
    };
    let mut mask = u64::from_str_radix(&field("CapEff"), 16).unwrap_or(0);
    let mut names = Vec::new();
    while mask != 0 {
        let number = mask.trailing_zeros();
        names.push(capability::name(number).unwrap_or_else(|| number.to_string()));
        mask &= mask - 1;
    }
    // SAFETY: plain getters.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    print(&format!(
        "uid={uid}\ngid={gid}\ngroups={}\ncapabilities={}\nbounding={}\nno_new_privs={}\nseccomp={}\n",
        field("Groups").replace(' ', ","),
        names.join(","),
        field("CapBnd"),
        field("NoNewPrivs"),
        field("Seccomp"),
    ))
}

pub(super) fn list(path: &str) -> Outcome {
    let meta = fs::symlink_metadata(path).map_err(|e| format!("{path}: {e}"))?;
    if !meta.is_dir() {
        return print(&line(Path::new(path), path)?);
    }
    let mut names: Vec<String> = fs::read_dir(path)
        .map_err(|e| format!("{path}: {e}"))?
        .map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()
        .map_err(|e| format!("{path}: {e}"))?;
    names.sort();
    let lines: Result<Vec<String>, String> = names.iter().map(|n| line(&Path::new(path).join(n), n)).collect();
    print(&lines?.concat())
}

fn line(path: &Path, name: &str) -> Result<String, String> {
    let meta = fs::symlink_metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let target = fs::read_link(path).map(|t| format!(" -> {}", t.display())).unwrap_or_default();
    Ok(format!("{} {} {} {} {name}{target}\n", mode(meta.mode()), meta.uid(), meta.gid(), meta.size()))
}

/// A mode as `ls -l` writes it.
fn mode(mode: u32) -> String {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFCHR => 'c',
        libc::S_IFBLK => 'b',
        libc::S_IFIFO => 'p',
        libc::S_IFSOCK => 's',
        _ => '-',
    };
    let mut text: Vec<char> = vec![kind];
    for shift in [6, 3, 0] {
        for (bit, letter) in [(4, 'r'), (2, 'w'), (1, 'x')] {
            text.push(if mode >> shift & bit != 0 { letter } else { '-' });
        }
    }
    for (bit, place, with, without) in [(0o4000, 3, 's', 'S'), (0o2000, 6, 's', 'S'), (0o1000, 9, 't', 'T')] {
        if mode & bit != 0 {
            text[place] = if text[place] == 'x' { with } else { without };
        }
    }
    text.into_iter().collect()
}

pub(super) fn cat(files: &[&str]) -> Outcome {
    let mut out = io::stdout().lock();
    for file in files {
        let mut from = fs::File::open(file).map_err(|e| format!("{file}: {e}"))?;
        io::copy(&mut from, &mut out).map_err(|e| format!("{file}: {e}"))?;
    }
    out.flush().map_err(|e| format!("stdout: {e}"))?;
    Ok(0)
}

pub(super) fn write(file: &str, text: &str) -> Outcome {
    fs::write(file, text).map_err(|e| format!("{file}: {e}"))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        let cases = [
            (0o100644, "-rw-r--r--"),
            (0o041777, "drwxrwxrwt"),
            (0o104755, "-rwsr-xr-x"),
            (0o102640, "-rw-r-S---"),
            (0o120777, "lrwxrwxrwx"),
        ];
        for (bits, text) in cases {
            assert_eq!(mode(bits), text);
        }
    }
}
