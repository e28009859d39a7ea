//! Giving memory back while nothing happens.

use std::fs;

/// Where the program's own clean pages are mapped. Looked up once: what is not writable stays clean.
#[derive(Default)]
pub(super) struct Program(Option<Vec<(usize, usize)>>);

impl Program {
    /// Unmaps them. They stay in the page cache and come back at a touch; until then an idle shim does not count for what
    /// it last executed.
    pub(super) fn give_back(&mut self) {
        let ranges = self.0.get_or_insert_with(|| {
            fs::read_to_string("/proc/self/smaps").map(|text| clean_mappings(&text)).unwrap_or_default()
        });
        drop_pages(ranges);
    }
}

fn drop_pages(ranges: &[(usize, usize)]) {
    for &(start, end) in ranges {
        // SAFETY: a private file mapping without a single changed page: the kernel reads the same bytes from the file
        // again when they are needed.
        // Without huge pages, since one touch would map two megabytes of the file again.
        unsafe {
            libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_NOHUGEPAGE);
            libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
        }
    }
}

/// Address ranges of unwritable file mappings in which no page was ever changed. (Relocated constants are unwritable
/// too, but were changed before they became so: dropping those would undo the relocation.)
fn clean_mappings(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut current: Option<(usize, usize)> = None;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or("");
        if let Some(field) = first.strip_suffix(':') {
            let value = words.next().unwrap_or("0");
            if matches!(field, "Private_Dirty" | "Shared_Dirty" | "Anonymous" | "Swap") && value != "0" {
                current = None;
            }
            if field == "VmFlags" {
                found.extend(current.take());
            }
            continue;
        }
        let range = first.split_once('-').and_then(|(start, end)| {
            Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
        });
        let flags = words.next().unwrap_or("");
        let is_file = words.nth(2).is_some_and(|inode| inode != "0");
        let clean = flags.starts_with('r') && !flags.contains('w') && flags.ends_with('p') && is_file;
        current = if clean { range } else { None };
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unchanged_file_mappings_are_dropped() {
        let rest = |dirty: &str| {
            format!(
                "Rss: 8 kB\nShared_Dirty: 0 kB\nPrivate_Dirty: {dirty} kB\nAnonymous: {dirty} kB\nSwap: 0 kB\nVmFlags: rd\n"
            )
        };
        let text = [
            "1000-3000 r--p 00000000 fe:00 77 /bin/x\n".to_string() + &rest("0"),
            "3000-5000 r-xp 00002000 fe:00 77 /bin/x\n".to_string() + &rest("0"),
            "5000-6000 r--p 00004000 fe:00 77 /bin/x\n".to_string() + &rest("4"),
            "6000-7000 rw-p 00005000 fe:00 77 /bin/x\n".to_string() + &rest("0"),
            "8000-9000 r--p 00000000 00:00 0 [vvar]\n".to_string() + &rest("0"),
        ]
        .concat();
        assert_eq!(clean_mappings(&text), [(0x1000, 0x3000), (0x3000, 0x5000)]);
    }

    #[test]
    fn a_trimmed_program_goes_on() {
        let mut program = Program::default();
        for _ in 0..2 {
            program.give_back();
        }
        assert_eq!("still here".len(), 10);
    }
}
