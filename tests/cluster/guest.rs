//! A machine of another kind for one test: a QEMU guest with a distribution's kernel and nothing but busybox, in which
//! cgroup version 2 is all there is. It is emulated, since what a virtual machine offers as KVM may hang; that takes a
//! minute and works everywhere.
//!
//! The kernel is where `.ci/packages` unpacks it.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The guest's first program: makes a root that can be pivoted away from, which the kernel's initial one cannot.
const FIRST: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /new
$b mount -t tmpfs -o size=75% root /new
for each in /*; do case $each in /new|/init|/bin|/dev) ;; *) $b mv $each /new/ ;; esac; done
$b mkdir /new/bin
$b cp $b /new/bin/busybox
$b ln -s busybox /new/bin/sh
exec $b switch_root /new /second
"#;

/// The second: mounts what a machine has, loads modules, runs the test's script and turns the machine off.
const SECOND: &str = r#"#!/bin/sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /var/log /sbin /etc /root
/bin/busybox --install -s /bin
export PATH=/bin:/sbin HOME=/root
ln -sf /bin/busybox /sbin/modprobe
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --make-rshared /
echo 'root:x:0:0:root:/root:/bin/sh' >/etc/passwd
echo 'root:x:0:' >/etc/group
echo '127.0.0.1 localhost' >/etc/hosts
echo 'nameserver 192.0.2.53' >/etc/resolv.conf
ip link set lo up
hostname guest
for module in overlay veth nf_tables nf_conntrack bridge br_netfilter; do modprobe $module; done
sh /script
echo "guest: exit code $?"
poweroff -f
"#;

/// Parts of the kernel's modules that pods need.
const MODULES: [&str; 5] =
    ["kernel/net", "kernel/fs/overlayfs", "kernel/lib", "kernel/crypto", "kernel/drivers/net/veth.ko"];

/// A machine that is not yet on.
pub struct Guest {
    files: Vec<(String, PathBuf)>,
}

fn tools() -> PathBuf {
    PathBuf::from(std::env::var("GANTRY_TOOLS").unwrap_or_else(|_| "/var/cache/gantry-tools".into())).join("guest")
}

/// One entry of a cpio archive in the "newc" format, which the kernel unpacks into its initial root.
fn entry(out: &mut impl Write, name: &str, mode: u32, data: &mut dyn io::Read, size: u64) -> io::Result<()> {
    let padding = |n: u64| [0u8; 4][..((4 - n % 4) % 4) as usize].to_vec();
    write!(out, "070701")?;
    let length = name.len() as u64 + 1;
    for field in [0, u64::from(mode), 0, 0, 1, 0, size, 0, 0, 0, 0, length, 0] {
        write!(out, "{field:08x}")?;
    }
    out.write_all(name.as_bytes())?;
    out.write_all(&[0])?;
    out.write_all(&padding(110 + length))?;
    assert_eq!(io::copy(data, out)?, size, "{name} changed while it was packed");
    out.write_all(&padding(size))
}

fn tree(out: &mut impl Write, from: &Path, to: &str) -> io::Result<()> {
    let meta = fs::metadata(from)?;
    if !meta.is_dir() {
        return entry(out, to, 0o100_755, &mut File::open(from)?, meta.len());
    }
    entry(out, to, 0o040_755, &mut io::empty(), 0)?;
    for each in fs::read_dir(from)? {
        let each = each?;
        tree(out, &each.path(), &format!("{to}/{}", each.file_name().to_string_lossy()))?;
    }
    Ok(())
}

/// The directories above a path, outermost first.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

impl Guest {
    /// A machine with busybox and kernel modules.
    pub fn new() -> Self {
        Self { files: Vec::new() }
    }

    /// Puts a file of this machine into the guest, executable, at an absolute path.
    pub fn file(mut self, path: &str, source: impl AsRef<Path>) -> Self {
        self.files.push((path.trim_start_matches('/').to_owned(), source.as_ref().to_owned()));
        self
    }

    /// The same for a program, without what only debuggers read.
    pub fn program(self, path: &str, source: impl AsRef<Path>, scratch: &Path) -> Self {
        let stripped = scratch.join(path.replace('/', "_"));
        let done = Command::new("strip").arg("-o").arg(&stripped).arg(source.as_ref()).status();
        assert!(done.expect("install binutils").success(), "strip {}", source.as_ref().display());
        self.file(path, stripped)
    }

    fn pack(&self, script: &str, archive: &Path) -> io::Result<()> {
        let modules = fs::read_dir(tools().join("lib/modules"))?.next().expect("a kernel's modules")?;
        let version = modules.file_name().to_string_lossy().into_owned();
        let mut all = vec![("bin/busybox".to_owned(), PathBuf::from("/bin/busybox"))];
        all.extend(MODULES.iter().map(|m| (format!("lib/modules/{version}/{m}"), modules.path().join(m))));
        for list in ["modules.dep", "modules.alias", "modules.symbols", "modules.builtin", "modules.order"] {
            all.push((format!("lib/modules/{version}/{list}"), modules.path().join(list)));
        }
        all.extend(self.files.iter().cloned());
        let mut out = io::BufWriter::new(File::create(archive)?);
        let mut made = std::collections::HashSet::new();
        for (name, source) in &all {
            for directory in parents(name) {
                if made.insert(directory.to_owned()) {
                    entry(&mut out, directory, 0o040_755, &mut io::empty(), 0)?;
                }
            }
            tree(&mut out, source, name)?;
        }
        for (name, text) in [("init", FIRST), ("second", SECOND), ("script", script)] {
            entry(&mut out, name, 0o100_755, &mut text.as_bytes(), text.len() as u64)?;
        }
        entry(&mut out, "TRAILER!!!", 0, &mut io::empty(), 0)?;
        out.flush()
    }

    /// Turns the machine on, runs a shell script in it, and returns what came over its console. Panics with that where
    /// the script fails or does not end in time.
    pub fn run(self, script: &str, scratch: &Path, patience: Duration) -> String {
        let archive = scratch.join("initrd");
        self.pack(script, &archive).unwrap_or_else(|e| panic!("packing the guest's files: {e}"));
        let kernels = fs::read_dir(tools().join("boot")).expect("a guest kernel: see .ci/packages");
        let kernel = kernels.flatten().map(|e| e.path());
        let kernel = kernel.into_iter().find(|p| p.to_string_lossy().contains("/vmlinuz-")).expect("a guest kernel");
        let (machine, console) = match std::env::consts::ARCH {
            "aarch64" => ("virt", "ttyAMA0"),
            _ => ("pc", "ttyS0"),
        };
        let mut qemu = Command::new(format!("qemu-system-{}", std::env::consts::ARCH))
            .args(["-accel", "tcg,thread=multi", "-machine", machine, "-cpu", "max", "-smp", "2", "-m", "3072"])
            .args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"])
            .args(["-append", &format!("console={console} quiet panic=-1")])
            .args(["-kernel".as_ref(), kernel.as_os_str(), "-initrd".as_ref(), archive.as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("install qemu-system");
        let console = qemu.stdout.take().unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let deadline = std::time::Instant::now() + patience;
        let mut text = String::new();
        let ended = loop {
            match lines.recv_timeout(deadline.saturating_duration_since(std::time::Instant::now())) {
                Ok(line) => {
                    text.push_str(&line);
                    text.push('\n');
                }
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break true,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => break false,
            }
        };
        let _ = qemu.kill();
        qemu.wait().unwrap();
        assert!(ended, "the guest did not end within {patience:?}:\n{text}");
        assert!(text.contains("guest: exit code 0\n"), "the guest's script failed:\n{text}");
        text
    }
}
