//! Messages with file descriptors over a `SOCK_SEQPACKET` unix socket: the framing is the kernel's.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Greatest message. Larger payloads travel in files.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Greatest number of file descriptors with one message.
pub const MAX_FDS: usize = 4;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: creates a new descriptor, which OwnedFd then owns.
    unsafe {
        let fd = check(libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// A connected pair.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for the two descriptors, which the OwnedFds then own.
    unsafe {
        check(libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()))?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

/// The address of `name` in a directory. Going through a descriptor keeps it below the 108 bytes such an address may
/// have, however long the directory's path is.
fn address(dir: &OwnedFd, name: &str) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
    // SAFETY: all-zero is a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = Path::new(&path).as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Ok((address, (mem::size_of::<libc::sa_family_t>() + bytes.len() + 1) as libc::socklen_t))
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(std::fs::File::open(path)?.into())
}

/// Listens on `path`, replacing a stale socket. Only root may connect.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    let (parent, name) = split(path)?;
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let dir = open_dir(parent)?;
    let fd = socket()?;
    let (address, len) = address(&dir, name)?;
    // SAFETY: `address` is valid for `len` bytes.
    unsafe {
        let mask = libc::umask(0o177);
        let bound = check(libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len));
        libc::umask(mask);
        bound?;
        check(libc::listen(fd.as_raw_fd(), 64))?;
    }
    Ok(fd)
}

/// Connects to `path`.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let (parent, name) = split(path)?;
    let dir = open_dir(parent)?;
    let fd = socket()?;
    let (address, len) = address(&dir, name)?;
    // SAFETY: `address` is valid for `len` bytes.
    unsafe { check(libc::connect(fd.as_raw_fd(), (&raw const address).cast(), len))? };
    Ok(fd)
}

fn split(path: &Path) -> io::Result<(&Path, &str)> {
    match (path.parent(), path.file_name().and_then(|n| n.to_str())) {
        (Some(parent), Some(name)) => Ok((parent, name)),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Accepts one connection.
pub fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: null address is allowed; the new descriptor is then owned.
    unsafe {
        let fd = check(libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
        ))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

// Room for MAX_FDS descriptors, aligned as a control message header must be.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Sends one message.
pub fn send(socket: &OwnedFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if message.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let mut part = libc::iovec { iov_base: message.as_ptr() as *mut libc::c_void, iov_len: message.len() };
    let mut control = Control([0; 64]);
    // SAFETY: all-zero is a valid msghdr; the pointers set below live until sendmsg returns; CMSG_* stay within
    // `control`, which has room for MAX_FDS descriptors.
    unsafe {
        let mut header: libc::msghdr = mem::zeroed();
        header.msg_iov = &mut part;
        header.msg_iovlen = 1;
        if !fds.is_empty() {
            let bytes = (fds.len() * mem::size_of::<RawFd>()) as u32;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(bytes) as _;
            let first = libc::CMSG_FIRSTHDR(&header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(bytes) as _;
            let data = libc::CMSG_DATA(first).cast::<RawFd>();
            for (i, fd) in fds.iter().enumerate() {
                data.add(i).write_unaligned(fd.as_raw_fd());
            }
        }
        loop {
            let sent = libc::sendmsg(socket.as_raw_fd(), &header, libc::MSG_NOSIGNAL);
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

/// Receives one message into `buffer`; `None` at the end of the connection.
pub fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = Control([0; 64]);
    // SAFETY: as in `send`; received descriptors are new and owned at once.
    unsafe {
        let mut header: libc::msghdr = mem::zeroed();
        header.msg_iov = &mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = control.0.len() as _;
        let got = loop {
            let got = libc::recvmsg(socket.as_raw_fd(), &mut header, libc::MSG_CMSG_CLOEXEC);
            if got >= 0 {
                break got as usize;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        };
        let mut fds = Vec::new();
        let mut item = libc::CMSG_FIRSTHDR(&header);
        while !item.is_null() {
            if (*item).cmsg_level == libc::SOL_SOCKET && (*item).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*item).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(item).cast::<RawFd>();
                for i in 0..bytes / mem::size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(i).read_unaligned()));
                }
            }
            item = libc::CMSG_NXTHDR(&header, item);
        }
        // An orderly end and an empty message look the same; we never send empty ones.
        Ok(if got == 0 { None } else { Some((got, fds)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    #[test]
    fn messages_keep_their_bounds_and_carry_descriptors() {
        let (a, b) = pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send(&a, b"one", &[writer.as_fd()]).unwrap();
        send(&a, b"second", &[]).unwrap();
        drop((a, writer));
        let mut buffer = [0; 64];
        let (n, fds) = receive(&b, &mut buffer).unwrap().unwrap();
        assert_eq!(&buffer[..n], b"one");
        assert_eq!(fds.len(), 1);
        std::fs::File::from(fds.into_iter().next().unwrap()).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        let (n, fds) = receive(&b, &mut buffer).unwrap().unwrap();
        assert_eq!((&buffer[..n], fds.len()), (&b"second"[..], 0));
        assert!(receive(&b, &mut buffer).unwrap().is_none());
    }

    #[test]
    fn a_long_directory_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("s.sock");
        let listener = listen(&path).unwrap();
        let client = connect(&path).unwrap();
        let server = accept(&listener).unwrap();
        send(&client, b"hi", &[]).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(receive(&server, &mut buffer).unwrap().unwrap().0, 2);
    }
}
