//! The container's view of files: overlay root, standard mounts, devices, the caller's mounts, masks.
//!
//! Runs in the container's new process. Every path below the new root is resolved with `openat2(RESOLVE_IN_ROOT)`, and
//! mounts are attached to the descriptor found, so that no symbolic link of an image leads out of it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use super::spec::{CgroupView, DeviceNode, InitMount, InitMountSource, InitSpec, RootFs};
use super::sys;
use super::{Context, Outcome};
use crate::runtime::Propagation;

/// Detached copies of the bind mounts, taken in the host's mount namespace so that they still are peers of their source.
pub(super) fn open_sources(mounts: &[InitMount]) -> Outcome<Vec<Option<OwnedFd>>> {
    mounts
        .iter()
        .map(|mount| match &mount.source {
            InitMountSource::Bind(path) => sys::clone_mount(path, true)
                .map(Some)
                .context(|| format!("mount source {} for {}", path.display(), mount.destination.display())),
            _ => Ok(None),
        })
        .collect()
}

/// Builds the root file system and makes it `/`. The result is the terminal's (master, slave) when there is one.
pub(super) fn enter_root(spec: &InitSpec, sources: Vec<Option<OwnedFd>>) -> Outcome<Option<(OwnedFd, OwnedFd)>> {
    // SAFETY: unshare with a constant flag affects this single-threaded process only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) }).context(|| "new mount namespace".into())?;
    // Mounts made in here must not appear on the host, while the host's unmounts must reach us.
    sys::mount("", Path::new("/"), "", libc::MS_REC | libc::MS_SLAVE, "")
        .context(|| "making / a slave mount".into())?;
    mount_overlay(&spec.root)?;
    let root = open_path(&spec.root.target)?;
    standard_mounts(spec, &root)?;
    for (mount, source) in spec.mounts.iter().zip(sources) {
        one_mount(&root, mount, source)?;
    }
    for device in &spec.devices {
        make_device(&root, device)?;
    }
    let terminal = if spec.process.tty { Some(open_terminal_for_root(&root)?) } else { None };
    pivot(&spec.root.target)?;
    finish(spec)?;
    Ok(terminal)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn open_path(path: &Path) -> Outcome<OwnedFd> {
    let file = fs::OpenOptions::new();
    let mut file = file;
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut file, libc::O_PATH | libc::O_DIRECTORY);
    file.read(true).open(path).map(OwnedFd::from).context(|| format!("open {}", path.display()))
}

fn through(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Overlay options have their own quoting.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

fn mount_overlay(root: &RootFs) -> Outcome<()> {
    std::env::set_current_dir(&root.layers_dir).context(|| format!("chdir {}", root.layers_dir.display()))?;
    let data =
        format!("lowerdir={},upperdir={},workdir={}", root.layers.join(":"), escape(&root.upper), escape(&root.work));
    sys::mount("overlay", &root.target, "overlay", 0, &data).context(|| format!("mount overlay {data}"))
}

/// A detached mount of an image, or of a path in it.
fn image_tree(root: &OwnedFd, dir: &Path, layers: &[String], sub_path: Option<&Path>) -> Outcome<OwnedFd> {
    std::env::set_current_dir(dir).context(|| format!("chdir {}", dir.display()))?;
    let directory = libc::O_PATH | libc::O_DIRECTORY;
    // The layers lie for a moment on a directory that every container has: nothing needs to be made or removed for it.
    let scratch = Path::new("/proc");
    let below = sys::open_in_root(root, scratch, directory).context(|| "open /proc".into())?;
    if let [only] = layers {
        let mount = sys::clone_mount(Path::new(only), false).context(|| format!("image layer {only}"))?;
        sys::attach_mount(&mount, &below).context(|| "attach image mount".into())?;
    } else {
        let data = format!("lowerdir={}", layers.join(":"));
        sys::mount("overlay", &through(&below), "overlay", libc::MS_RDONLY, &data)
            .context(|| format!("mount overlay {data}"))?;
    }
    let image = sys::open_in_root(root, scratch, directory).context(|| "open an image mount".into())?;
    let tree = (|| {
        let wanted = sub_path.unwrap_or(Path::new("/"));
        let part = sys::open_in_root(&image, wanted, libc::O_PATH)
            .context(|| format!("path {} in the image", wanted.display()))?;
        let tree = sys::clone_mount(&through(&part), false).context(|| "image mount".into())?;
        sys::set_mount_attributes(&tree, sys::ATTR_RDONLY | sys::ATTR_NOEXEC, libc::MS_PRIVATE, false)
            .context(|| "read-only image mount".into())?;
        Ok(tree)
    })();
    let place = sys::c_path(&through(&image)).context(|| "image mount".into())?;
    // SAFETY: the path is a valid C string.
    check(unsafe { libc::umount2(place.as_ptr(), libc::MNT_DETACH) }).context(|| "unmount an image".into())?;
    tree
}

fn standard_mounts(spec: &InitSpec, root: &OwnedFd) -> Outcome<()> {
    let safe = libc::MS_NOSUID | libc::MS_NOEXEC | libc::MS_NODEV;
    special(root, "/proc", "proc", safe, "")?;
    special(root, "/dev", "tmpfs", libc::MS_NOSUID | libc::MS_STRICTATIME, "mode=755,size=65536k")?;
    let dev =
        sys::open_in_root(root, Path::new("/dev"), libc::O_PATH | libc::O_DIRECTORY).context(|| "open /dev".into())?;
    default_devices(&dev)?;
    special(
        root,
        "/dev/pts",
        "devpts",
        libc::MS_NOSUID | libc::MS_NOEXEC,
        "newinstance,ptmxmode=0666,mode=0620,gid=5",
    )?;
    special(root, "/dev/mqueue", "mqueue", safe, "")?;
    let read_only = if spec.writable_sys { 0 } else { libc::MS_RDONLY };
    special(root, "/sys", "sysfs", safe | read_only, "")?;
    cgroup_view(spec, root, safe | read_only)?;
    let shm = sys::clone_mount(&spec.shm, false).context(|| format!("mount source {}", spec.shm.display()))?;
    let target = make_target(root, Path::new("/dev/shm"), true)?;
    sys::attach_mount(&shm, &target).context(|| "mount /dev/shm".into())
}

fn special(root: &OwnedFd, path: &str, kind: &str, flags: libc::c_ulong, data: &str) -> Outcome<()> {
    let target = make_target(root, Path::new(path), true)?;
    sys::mount(kind, &through(&target), kind, flags, data).context(|| format!("mount {kind} on {path}"))
}

fn cgroup_view(spec: &InitSpec, root: &OwnedFd, flags: libc::c_ulong) -> Outcome<()> {
    match &spec.cgroup_view {
        CgroupView::V2 => special(root, "/sys/fs/cgroup", "cgroup2", flags, ""),
        CgroupView::V1(controllers) => {
            // sysfs is read-only by now and has the directory; the tmpfs on it is made read-only at the end.
            special(root, "/sys/fs/cgroup", "tmpfs", flags & !libc::MS_RDONLY, "mode=755,size=64k")?;
            for (name, source) in controllers {
                let target = make_target(root, &Path::new("/sys/fs/cgroup").join(name), true)?;
                let mount = sys::clone_mount(source, false).context(|| format!("cgroup {}", source.display()))?;
                if flags & libc::MS_RDONLY != 0 {
                    sys::set_mount_attributes(&mount, sys::ATTR_RDONLY, 0, false)
                        .context(|| "read-only cgroup".into())?;
                }
                sys::attach_mount(&mount, &target).context(|| format!("mount cgroup {name}"))?;
            }
            if flags & libc::MS_RDONLY != 0 {
                let view = sys::open_in_root(root, Path::new("/sys/fs/cgroup"), libc::O_PATH)
                    .context(|| "open /sys/fs/cgroup".into())?;
                sys::set_mount_attributes(&view, sys::ATTR_RDONLY, 0, false).context(|| "read-only cgroup".into())?;
            }
            Ok(())
        }
    }
}

fn one_mount(root: &OwnedFd, mount: &InitMount, source: Option<OwnedFd>) -> Outcome<()> {
    let place = || mount.destination.display().to_string();
    if !mount.destination.is_absolute() {
        return Err(format!("mount destination {} is not absolute", place()));
    }
    match (&mount.source, source) {
        (InitMountSource::Bind(path), Some(tree)) => {
            let is_dir = fs::metadata(through(&tree)).context(|| format!("stat {}", path.display()))?.is_dir();
            let target = make_target(root, &mount.destination, is_dir)?;
            // The copy is a peer of its source where that is shared; cut or keep the tie as asked.
            let propagation = match mount.propagation {
                Propagation::Private => libc::MS_PRIVATE,
                Propagation::HostToContainer => libc::MS_SLAVE,
                Propagation::Bidirectional => libc::MS_SHARED,
            };
            sys::set_mount_attributes(&tree, 0, propagation, true).context(|| format!("propagation of {}", place()))?;
            if mount.read_only {
                sys::set_mount_attributes(&tree, sys::ATTR_RDONLY, 0, mount.recursive_read_only)
                    .context(|| format!("read-only {}", place()))?;
            }
            sys::attach_mount(&tree, &target).context(|| format!("mount {} on {}", path.display(), place()))
        }
        (InitMountSource::Bind(path), None) => Err(format!("mount source {} was not opened", path.display())),
        (InitMountSource::Tmpfs { size }, _) => {
            let target = make_target(root, &mount.destination, true)?;
            let data = size.map_or("mode=1777".to_string(), |n| format!("mode=1777,size={n}"));
            let flags = if mount.read_only { libc::MS_RDONLY } else { 0 } | libc::MS_NOSUID | libc::MS_NODEV;
            sys::mount("tmpfs", &through(&target), "tmpfs", flags, &data)
                .context(|| format!("mount tmpfs on {}", place()))
        }
        (InitMountSource::Layers { dir, layers, sub_path }, _) => {
            let tree = image_tree(root, dir, layers, sub_path.as_deref())?;
            let is_dir = fs::metadata(through(&tree)).context(|| "stat an image mount".into())?.is_dir();
            let target = make_target(root, &mount.destination, is_dir)?;
            sys::attach_mount(&tree, &target).context(|| format!("mount an image on {}", place()))
        }
    }
}

/// The directory or file `path` below the root, made when missing.
fn make_target(root: &OwnedFd, path: &Path, directory: bool) -> Outcome<OwnedFd> {
    make_target_below(root, path, directory, 16)
}

fn make_target_below(root: &OwnedFd, path: &Path, directory: bool, links: u8) -> Outcome<OwnedFd> {
    match sys::open_in_root(root, path, libc::O_PATH) {
        Ok(fd) => return Ok(fd),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
        Err(e) => return Err(format!("mount destination {}: {e}", path.display())),
    }
    let mut so_far = PathBuf::from("/");
    let mut parent = sys::open_in_root(root, &so_far, libc::O_PATH | libc::O_DIRECTORY).context(|| "open /".into())?;
    let names: Vec<_> =
        path.components().filter_map(|c| if let Component::Normal(name) = c { Some(name) } else { None }).collect();
    for (i, name) in names.iter().enumerate() {
        so_far.push(name);
        let last = i + 1 == names.len();
        let flags = if last && !directory { libc::O_PATH } else { libc::O_PATH | libc::O_DIRECTORY };
        parent = match sys::open_in_root(root, &so_far, flags) {
            Ok(fd) => fd,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                let c_name =
                    sys::c_path(Path::new(name)).context(|| format!("mount destination {}", path.display()))?;
                // SAFETY: the name is a valid C string; `parent` was resolved inside the root.
                let made = unsafe {
                    if last && !directory {
                        let mode = libc::S_IFREG | 0o644;
                        libc::mknodat(parent.as_raw_fd(), c_name.as_ptr(), mode, 0)
                    } else {
                        libc::mkdirat(parent.as_raw_fd(), c_name.as_ptr(), 0o755)
                    }
                };
                match check(made) {
                    // A symbolic link to nothing: what it points to is made, inside the root.
                    Err(e) if e.raw_os_error() == Some(libc::EEXIST) && links > 0 => {
                        let target = link_target(&parent, name, &so_far)
                            .context(|| format!("mount destination {}", so_far.display()))?;
                        make_target_below(root, &target, !last || directory, links - 1)?
                    }
                    other => {
                        other.context(|| format!("create mount destination {}", so_far.display()))?;
                        sys::open_in_root(root, &so_far, flags)
                            .context(|| format!("mount destination {}", so_far.display()))?
                    }
                }
            }
            Err(e) => return Err(format!("mount destination {}: {e}", so_far.display())),
        };
    }
    Ok(parent)
}

/// Where the link `name` in `parent`, which is `path` in the root, points to: a path from the root without `..`.
fn link_target(parent: &OwnedFd, name: &std::ffi::OsStr, path: &Path) -> io::Result<PathBuf> {
    let target = fs::read_link(through(parent).join(name))?;
    let mut clean = PathBuf::from("/");
    for component in path.parent().unwrap_or(Path::new("/")).join(target).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    Ok(clean)
}

fn default_devices(dev: &OwnedFd) -> Outcome<()> {
    const NODES: &[(&str, u32, u32)] =
        &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    const LINKS: &[(&str, &str)] = &[
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("/proc/kcore", "core"),
        ("pts/ptmx", "ptmx"),
    ];
    for (name, major, minor) in NODES {
        mknod_at(dev, Path::new(name), libc::S_IFCHR | 0o666, libc::makedev(*major, *minor), 0, 0)?;
    }
    for (target, name) in LINKS {
        let (target, name) = (
            sys::c_path(Path::new(target)).context(|| "device link".into())?,
            sys::c_path(Path::new(name)).context(|| "device link".into())?,
        );
        // SAFETY: both are valid C strings.
        check(unsafe { libc::symlinkat(target.as_ptr(), dev.as_raw_fd(), name.as_ptr()) })
            .context(|| "device link".into())?;
    }
    Ok(())
}

fn mknod_at(dir: &OwnedFd, name: &Path, mode: u32, rdev: u64, uid: u32, gid: u32) -> Outcome<()> {
    let c_name = sys::c_path(name).context(|| "device name".into())?;
    // SAFETY: the name is a valid C string and no symbolic link is followed. umask is 0 here so that modes are exact.
    unsafe {
        match check(libc::mknodat(dir.as_raw_fd(), c_name.as_ptr(), mode, rdev)) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => return Ok(()),
            other => other.context(|| format!("device {}", name.display()))?,
        }
        check(libc::fchownat(dir.as_raw_fd(), c_name.as_ptr(), uid, gid, libc::AT_SYMLINK_NOFOLLOW))
            .context(|| format!("owner of device {}", name.display()))
    }
}

fn make_device(root: &OwnedFd, device: &DeviceNode) -> Outcome<()> {
    let (Some(parent), Some(name)) = (device.path.parent(), device.path.file_name()) else {
        return Err(format!("device path {} names no file", device.path.display()));
    };
    let dir = make_target(root, parent, true)?;
    mknod_at(&dir, Path::new(name), device.mode, device.rdev, device.uid, device.gid)
}

/// A new terminal: (master, slave). `ptmx` must be a `/dev/ptmx` of the container's own devpts instance.
pub(super) fn terminal_pair(ptmx: OwnedFd) -> Outcome<(OwnedFd, OwnedFd)> {
    use std::os::fd::FromRawFd;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let file = fs::File::from(ptmx);
    let meta = file.metadata().context(|| "stat ptmx".into())?;
    if !meta.file_type().is_char_device() || meta.rdev() != libc::makedev(5, 2) {
        return Err("/dev/pts/ptmx of the container is not a terminal multiplexer".into());
    }
    let unlock: libc::c_int = 0;
    // SAFETY: ioctls with valid arguments on an open descriptor; the new descriptor is owned at once.
    unsafe {
        check(libc::ioctl(file.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock))
            .context(|| "unlock terminal".into())?;
        let slave = libc::ioctl(file.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        check(slave).context(|| "open terminal".into())?;
        Ok((file.into(), OwnedFd::from_raw_fd(slave)))
    }
}

fn open_terminal_for_root(root: &OwnedFd) -> Outcome<(OwnedFd, OwnedFd)> {
    let ptmx = sys::open_in_root(root, Path::new("/dev/pts/ptmx"), libc::O_RDWR | libc::O_NOCTTY)
        .context(|| "open /dev/pts/ptmx".into())?;
    let (master, slave) = terminal_pair(ptmx)?;
    let console = make_target(root, Path::new("/dev/console"), false)?;
    let from = through(&slave);
    sys::mount(&from.to_string_lossy(), &through(&console), "", libc::MS_BIND, "")
        .context(|| "mount /dev/console".into())?;
    Ok((master, slave))
}

fn pivot(target: &Path) -> Outcome<()> {
    std::env::set_current_dir(target).context(|| format!("chdir {}", target.display()))?;
    // SAFETY: constant C strings. With both arguments ".", the old root is stacked on the new one and detached next.
    unsafe {
        check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) as libc::c_int)
            .context(|| "pivot_root".into())?;
        // Its mounts are slaves since the beginning, so the host does not notice.
        check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH)).context(|| "detach old root".into())?;
    }
    std::env::set_current_dir("/").context(|| "chdir /".into())
}

/// What is done inside the new root: masks, working directory, read-only root.
fn finish(spec: &InitSpec) -> Outcome<()> {
    for path in &spec.read_only_paths {
        match sys::clone_mount(path, true) {
            Ok(mount) => {
                sys::set_mount_attributes(&mount, sys::ATTR_RDONLY, 0, true)
                    .context(|| format!("{}", path.display()))?;
                let target = open_any(path)?;
                sys::attach_mount(&mount, &target).context(|| format!("read-only {}", path.display()))?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(format!("read-only {}: {e}", path.display())),
        }
    }
    for path in &spec.masked_paths {
        match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => sys::mount("tmpfs", path, "tmpfs", libc::MS_RDONLY, "size=0k")
                .context(|| format!("mask {}", path.display()))?,
            Ok(_) => {
                sys::mount("/dev/null", path, "", libc::MS_BIND, "").context(|| format!("mask {}", path.display()))?
            }
            Err(_) => {} // not on this kernel
        }
    }
    let cwd = &spec.process.cwd;
    if !cwd.exists() {
        fs::create_dir_all(cwd).context(|| format!("working directory {}", cwd.display()))?;
    }
    if spec.read_only_root {
        let root = open_path(Path::new("/"))?;
        sys::set_mount_attributes(&root, sys::ATTR_RDONLY, 0, false).context(|| "read-only root".into())?;
    }
    Ok(())
}

fn open_any(path: &Path) -> Outcome<OwnedFd> {
    let mut options = fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_PATH);
    options.read(true).open(path).map(OwnedFd::from).context(|| format!("open {}", path.display()))
}

/// Makes the mount that holds `path` shared, so that propagation has something to work with. Returns true when `path`
/// had to be bind-mounted on itself for that; the caller then owes an unmount.
pub fn ensure_shared(path: &Path) -> io::Result<bool> {
    let path = fs::canonicalize(path)?;
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let mut best: Option<(usize, bool)> = None;
    for line in text.lines() {
        let Some((front, _)) = line.split_once(" - ") else {
            continue;
        };
        let fields: Vec<&str> = front.split(' ').collect();
        let Some(point) = fields.get(4) else { continue };
        let point = point.replace("\\040", " ");
        if path.starts_with(&point) {
            let shared = fields[6..].iter().any(|f| f.starts_with("shared:"));
            // Later lines win among equals: mounts are stacked.
            if best.is_none_or(|(len, _)| point.len() >= len) {
                best = Some((point.len(), shared));
            }
        }
    }
    if best.is_some_and(|(_, shared)| shared) {
        return Ok(false);
    }
    let text = path.to_string_lossy().into_owned();
    let is_mount_point = best.is_some_and(|(len, _)| len == text.len());
    if !is_mount_point {
        sys::mount(&text, &path, "", libc::MS_BIND | libc::MS_REC, "")?;
    }
    sys::mount("", &path, "", libc::MS_REC | libc::MS_SHARED, "")?;
    Ok(!is_mount_point)
}

/// A read-only detached copy of the running program's file, so that what runs inside a container can never write to the
/// program on the host through `/proc/<pid>/exe`.
pub(crate) fn read_only_self() -> io::Result<OwnedFd> {
    // Through the link itself, so that it also works after the file was replaced by an upgrade.
    let mount = sys::clone_mount(Path::new("/proc/self/exe"), false)?;
    sys::set_mount_attributes(mount.as_fd(), sys::ATTR_RDONLY, libc::MS_PRIVATE, false)?;
    Ok(mount)
}
