//! Device rules on cgroup version 2: a small program in the kernel's `cgroup/dev` hook.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::Cgroup;
use crate::error::{Error, IoContext, Result};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;

#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination in the low, source in the high four bits.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Attaches a program that allows only the given version 1 style rules (`c 1:3 rwm`); `None` allows all. Nothing happens
/// on version 1.
pub(crate) fn attach_v2(cgroup: &Cgroup, rules: Option<&[String]>) -> Result<()> {
    let (true, Some(rules)) = (cgroup.is_v2(), rules) else { return Ok(()) };
    let Some(dir) = cgroup.directory("") else { return Ok(()) };
    let program = compile(rules).map_err(|rule| Error::InvalidConfig { field: "device rule".into(), reason: rule })?;
    let program = load(&program).ctx("loading the device program for", &dir)?;
    let target = File::open(&dir).ctx("opening", &dir)?;
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    let attach = Attach {
        target: target.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: 0,
    };
    // SAFETY: `attach` is valid for its size.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, std::mem::size_of::<Attach>()) };
    if result < 0 {
        return Err(Error::io("attaching the device program to", &dir, io::Error::last_os_error()));
    }
    Ok(())
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel: u32,
        flags: u32,
    }
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
    };
    // SAFETY: `load` and what it points to are valid for the call; the new descriptor is owned at once.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, std::mem::size_of::<Load>());
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as i32)) }
    }
}

/// One test per rule, the first that fits allows; else denied.
fn compile(rules: &[String]) -> std::result::Result<Vec<Instruction>, String> {
    let op = |code: u8, dst: u8, src: u8, offset: i16, immediate: i32| Instruction {
        code,
        registers: dst | src << 4,
        offset,
        immediate,
    };
    // r2 = type, r3 = access, r4 = major, r5 = minor, from `struct bpf_cgroup_dev_ctx` in r1.
    let mut program = vec![
        op(0x61, 2, 1, 0, 0),
        op(0x54, 2, 0, 0, 0xffff),
        op(0x61, 3, 1, 0, 0),
        op(0x74, 3, 0, 0, 16),
        op(0x61, 4, 1, 4, 0),
        op(0x61, 5, 1, 8, 0),
    ];
    for rule in rules {
        let bad = || rule.clone();
        let mut fields = rule.split_whitespace();
        let kind = match fields.next() {
            Some("b") => 1,
            Some("c") => 2,
            _ => return Err(bad()),
        };
        let (major, minor) = fields.next().and_then(|f| f.split_once(':')).ok_or_else(bad)?;
        let number = |text: &str| match text {
            "*" => Ok(None),
            n => n.parse::<i32>().map(Some).map_err(|_| bad()),
        };
        let (major, minor) = (number(major)?, number(minor)?);
        let mut access = 0;
        for letter in fields.next().ok_or_else(bad)?.chars() {
            access |= match letter {
                'm' => 1,
                'r' => 2,
                'w' => 4,
                _ => return Err(bad()),
            };
        }
        let mut tests = vec![op(0x55, 2, 0, 0, kind)];
        if access != 7 {
            // w6 = access outside the rule's; must be nothing.
            tests.extend([op(0xbc, 6, 3, 0, 0), op(0x54, 6, 0, 0, !access), op(0x55, 6, 0, 0, 0)]);
        }
        if let Some(major) = major {
            tests.push(op(0x55, 4, 0, 0, major));
        }
        if let Some(minor) = minor {
            tests.push(op(0x55, 5, 0, 0, minor));
        }
        tests.extend([op(0xb7, 0, 0, 0, 1), op(0x95, 0, 0, 0, 0)]);
        let length = tests.len();
        for (i, test) in tests.iter_mut().enumerate() {
            if test.code == 0x55 {
                test.offset = (length - i - 1) as i16;
            }
        }
        program.extend(tests);
    }
    program.extend([op(0xb7, 0, 0, 0, 0), op(0x95, 0, 0, 0, 0)]);
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's verifier is the judge of the program.
    #[test]
    fn programs_pass_the_verifier() {
        let rules: Vec<String> =
            ["c *:* m", "b *:* m", "c 1:3 rwm", "c 136:* rw", "b 8:0 r"].map(String::from).to_vec();
        let program = compile(&rules).unwrap();
        match load(&program) {
            Ok(_) => {}
            // Without the right to load programs there is nothing to judge with.
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => eprintln!("skipped: {e}"),
            Err(e) => panic!("{e}"),
        }
        for bad in ["", "x 1:1 r", "c 1 r", "c 1:a r", "c 1:1 z", "c 1:1"] {
            assert!(compile(&[bad.to_string()]).is_err(), "{bad:?}");
        }
    }
}
