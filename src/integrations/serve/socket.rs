//! The file of a Unix socket.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// A socket that listens. Dropping it removes its file, unless another one has taken its place.
#[derive(Debug)]
pub(super) struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file.
    file: (u64, u64),
}

impl UnixSocket {
    pub(super) fn bind(path: PathBuf) -> io::Result<Self> {
        let listener = match Self::bind_new(&path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_behind(&path) => {
                fs::remove_file(&path)?;
                Self::bind_new(&path)?
            }
            listener => listener?,
        };
        let metadata = fs::symlink_metadata(&path)?;
        Ok(UnixSocket { listener, path, file: (metadata.dev(), metadata.ino()) })
    }

    fn bind_new(path: &Path) -> io::Result<UnixListener> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // The file gets the mode of the socket, less the mask of the process: there is no moment in which
        // others may connect.
        fchmod(socket.as_fd(), Mode::RUSR | Mode::WUSR)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, BACKLOG)?;
        Ok(UnixListener::from(socket))
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        let is_ours = |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == self.file;
        if fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
            // The directory may have gone.
            let _removed = fs::remove_file(&self.path);
        }
    }
}

/// A socket on which nobody listens.
fn is_left_behind(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    is_socket && UnixStream::connect(path).is_err_and(refused)
}
