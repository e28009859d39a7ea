//! Files of environment variables, as `fileKeyRef` reads them: `NAME='value'` lines in a subset of the shell's syntax
//! (KEP-3721).

use crate::volumes::subpath;
use std::path::Path;

/// The value of `key` in a file of a volume; `None` where the file does not set it.
pub(crate) fn value(volume: &Path, file: &str, key: &str) -> Result<Option<String>, String> {
    let text =
        subpath::read(volume, file).map_err(|e| format!("failed to open environment variable file {file:?}: {e}"))?;
    parse(&text, key)
}

/// Everything between single quotes is the value, line ends too. What follows the key's line is not looked at.
fn parse(text: &str, key: &str) -> Result<Option<String>, String> {
    let mut lines = text.split('\n').map(|l| l.strip_suffix('\r').unwrap_or(l)).zip(1..);
    while let Some((line, number)) = lines.next() {
        let line = line.trim_start_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let invalid =
            |number: usize, what: &str| Err(format!("invalid environment variable format at line {number}: {what}"));
        let Some((name, rest)) = line.split_once('=') else { return invalid(number, "missing '='") };
        if name.trim_end_matches([' ', '\t']).is_empty() {
            return invalid(number, "empty variable name");
        }
        if name.ends_with([' ', '\t']) {
            return invalid(number, "whitespace before '=' is not allowed");
        }
        // As in a shell: `NAME= 'x'` sets NAME to nothing.
        if rest.starts_with([' ', '\t']) {
            if name == key {
                return Ok(Some(String::new()));
            }
            continue;
        }
        let Some(mut rest) = rest.strip_prefix('\'') else {
            return invalid(number, "value must be enclosed in single quotes");
        };
        let (mut value, mut last) = (String::new(), number);
        let after = loop {
            if let Some((end, after)) = rest.split_once('\'') {
                value.push_str(end);
                break after;
            }
            value.push_str(rest);
            value.push('\n');
            let Some((next, at)) = lines.next() else {
                return Err(format!(
                    "invalid environment variable format starting at line {number}: unclosed single quote"
                ));
            };
            (rest, last) = (next, at);
        };
        let after = after.trim_start_matches([' ', '\t']);
        if !after.is_empty() && !after.starts_with('#') {
            return invalid(last, "unexpected content after closing quote");
        }
        if name == key {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_between_quotes() {
        let text = "# c\n\n  A='1'\nB='two\n  lines' # c\nC= 'x'\nD='a=$A#\\n'\n";
        for (key, wanted) in
            [("A", Some("1")), ("B", Some("two\n  lines")), ("C", Some("")), ("D", Some("a=$A#\\n")), ("E", None)]
        {
            assert_eq!(parse(text, key).unwrap().as_deref(), wanted, "{key}");
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error_up_to_the_key() {
        for (text, what) in [
            ("A", "at line 1: missing '='"),
            ("X='1'\n='2'", "at line 2: empty variable name"),
            ("A ='1'", "at line 1: whitespace before '=' is not allowed"),
            ("A=1", "at line 1: value must be enclosed in single quotes"),
            ("A=\"1\"", "at line 1: value must be enclosed in single quotes"),
            ("A='1'2'", "at line 1: unexpected content after closing quote"),
            ("X='1\nA='2'", "at line 2: unexpected content after closing quote"),
            ("X='1'\nA='1\n", "starting at line 2: unclosed single quote"),
        ] {
            let error = parse(text, "A").unwrap_err();
            assert_eq!(error, format!("invalid environment variable format {what}"), "{text}");
        }
        assert_eq!(parse("A='1'\nbroken", "A").unwrap().as_deref(), Some("1"));
    }

    #[test]
    fn files_are_read_in_their_volume_only() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(volume.join("f"), "A='in'\n").unwrap();
        std::fs::write(dir.path().join("f"), "A='out'\n").unwrap();
        std::os::unix::fs::symlink("../f", volume.join("up")).unwrap();
        nix::unistd::mkfifo(&volume.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        // A link that climbs too far ends at the volume's root.
        for file in ["f", "up"] {
            assert_eq!(value(&volume, file, "A").unwrap().as_deref(), Some("in"), "{file}");
        }
        for file in ["missing", "pipe", "."] {
            assert!(value(&volume, file, "A").is_err(), "{file}");
        }
    }
}
