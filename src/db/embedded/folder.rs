//! Where things are: the lock on the data folder, the folder of the cluster, the folder of its socket.
//!
//! ```text
//! <data folder>/lock                one server at a time; holds "pid address" while it is held
//! <data folder>/postgres/           the cluster's folder, or a link to one under /var/lib/crewcast
//!                        data/      Postgres's own
//!                        data.tmp*  half-made by initdb, never used
//!                        socket/    0700; a link to a short path where this one is too long for a socket
//!                        postgres.log, postgres.log.1
//! ```
//! As root, only `data` and `socket` belong to the user that runs Postgres: the rest stays root's, so that nothing
//! that root opens here can be swapped by that user.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::account::Account;
use super::error::StartError;

/// Where root keeps the clusters of data folders that the user who runs Postgres cannot reach.
const ELSEWHERE: &str = "/var/lib/crewcast";

/// Longest path of a Unix socket, in bytes without the closing NUL.
const SOCKET_PATH_BYTES_MAX: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// The socket's file name, which Postgres makes from its port.
pub(super) const SOCKET_NAME: &str = ".s.PGSQL.5432";

/// The lock on a data folder, held for as long as the cluster may run.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl Lock {
    /// Locks `data_dir` and writes down who holds it.
    ///
    /// # Errors
    ///
    /// [`StartError::InUse`] when another server, or another one in this process, holds it.
    pub(super) fn take(data_dir: &Path, address: &str) -> Result<Lock, StartError> {
        let path = data_dir.join("lock");
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(&path).map_err(StartError::at(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StartError::InUse { folder: data_dir.to_owned(), holder: holder(&mut file) });
            }
            Err(TryLockError::Error(error)) => return Err(StartError::at(&path)(error)),
        }
        let written = file.set_len(0).and_then(|()| writeln!(file, "{} {address}", std::process::id()));
        written.map_err(StartError::at(&path))?;
        Ok(Lock { file })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Unlocked by name: a child that another thread is just forking holds a copy of the file until it execs.
        let _ = self.file.set_len(0);
        let _ = self.file.unlock();
    }
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let _ = file.read_to_string(&mut text);
    match text.trim().split_once(' ') {
        Some((pid, address)) => format!("process {pid}, which serves {address}"),
        None => "another server that is just starting or stopping".to_owned(),
    }
}

/// Makes the data folder and gives its real, absolute path.
pub(super) fn data_dir(path: &Path) -> Result<PathBuf, StartError> {
    if !path.is_dir() {
        fs::create_dir_all(path).map_err(StartError::at(path))?;
        // Others may pass through (as root, Postgres's user has to) and not look around.
        fs::set_permissions(path, Permissions::from_mode(0o711)).map_err(StartError::at(path))?;
    }
    path.canonicalize().map_err(StartError::at(path))
}

/// Finds or makes the cluster's folder for `data_dir` (real and absolute), and the user who runs the cluster.
pub(super) fn cluster(data_dir: &Path, say: &dyn Fn(&str)) -> Result<(PathBuf, Account), StartError> {
    let own = data_dir.join("postgres");
    let base = match fs::read_link(&own) {
        Ok(target) => linked(data_dir, &own, target)?,
        Err(_) => own.clone(),
    };
    let data = base.join("data");
    let account = Account::for_data(&data)?;
    let way = match () {
        () if base.is_dir() => base.as_path(),
        () if base == own => data_dir,
        () => Path::new("/"),
    };
    let base = match account.barrier(way) {
        None => base,
        Some(barrier) if data.exists() || base != own => {
            return Err(StartError::Unreachable { folder: data, user: account.name(), barrier });
        }
        Some(_) => elsewhere(data_dir, &own)?,
    };
    make_passable(&base).map_err(StartError::at(&base))?;
    if base != own {
        say(&format!(
            "user {} cannot reach {}: its Postgres keeps the data in {}",
            account.name(),
            data_dir.display(),
            base.display()
        ));
    }
    Ok((base, account))
}

/// The folder that the link `own` leads to, once it is sure that the link was made for this data folder.
fn linked(data_dir: &Path, own: &Path, target: PathBuf) -> Result<PathBuf, StartError> {
    let expected = Path::new(ELSEWHERE).join(name(data_dir));
    if target.to_string_lossy().starts_with(&*expected.to_string_lossy()) {
        return Ok(target);
    }
    Err(StartError::Moved { link: own.to_owned(), target, expected })
}

/// Makes a new folder for `data_dir` under [`ELSEWHERE`] and links it from `own`.
///
/// A folder with data that has no link belonged to a data folder of this path that was deleted since: it is neither
/// brought back nor removed.
fn elsewhere(data_dir: &Path, own: &Path) -> Result<PathBuf, StartError> {
    let name = name(data_dir);
    let root = Path::new(ELSEWHERE);
    let mut base = root.join(&name);
    let mut count = 1;
    while base.join("data").exists() {
        count += 1;
        base = root.join(format!("{name}-{count}"));
    }
    let made = make_passable(root).and_then(|()| make_passable(&base));
    made.map_err(StartError::at(&base))?;
    // There is no data in it: `cluster` looked.
    if own.is_dir() {
        fs::remove_dir_all(own).map_err(StartError::at(own))?;
    }
    symlink(&base, own).map_err(StartError::at(own))?;
    Ok(base)
}

/// A name for `data_dir` that no other path has: its last component, to be recognised by, and a hash of all of it.
fn name(data_dir: &Path) -> String {
    let last = data_dir.file_name().unwrap_or_default().to_string_lossy();
    let readable = last.trim_start_matches('.').replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let hash = Sha256::digest(data_dir.as_os_str().as_bytes());
    let hash: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{readable}-{hash}")
}

/// A folder that others may pass through but not list.
fn make_passable(folder: &Path) -> io::Result<()> {
    if !folder.is_dir() {
        fs::create_dir_all(folder)?;
        fs::set_permissions(folder, Permissions::from_mode(0o711))?;
    }
    Ok(())
}

/// Finds or makes the folder for the socket: only the user who runs Postgres (and root) may enter it, which is what
/// lets connections go without a password.
pub(super) fn socket(base: &Path, account: Account) -> Result<PathBuf, StartError> {
    let own = base.join("socket");
    let short = own.as_os_str().len() + 1 + SOCKET_NAME.len() <= SOCKET_PATH_BYTES_MAX;
    let made = if short { socket_here(&own, account) } else { socket_elsewhere(&own, account) };
    made.map_err(StartError::at(&own))
}

fn socket_here(own: &Path, account: Account) -> io::Result<PathBuf> {
    if own.is_symlink() {
        fs::remove_file(own)?;
    }
    if !own.is_dir() {
        fs::create_dir(own)?;
    }
    fs::set_permissions(own, Permissions::from_mode(0o700))?;
    account.give(own)?;
    Ok(own.to_owned())
}

/// A folder with a short path, linked from `own` so that the next start finds it again.
fn socket_elsewhere(own: &Path, account: Account) -> io::Result<PathBuf> {
    if let Ok(folder) = fs::read_link(own)
        && is_private(&folder, account)
    {
        return Ok(folder);
    }
    let temporary = std::env::temp_dir();
    // The folder's own name takes 15 bytes.
    let fits = temporary.as_os_str().len() + 16 + 1 + SOCKET_NAME.len() <= SOCKET_PATH_BYTES_MAX;
    let root = if fits && account.barrier(&temporary).is_none() { &temporary } else { Path::new("/tmp") };
    let folder = tempfile::Builder::new()
        .prefix("crewcast-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(root)?
        .keep();
    account.give(&folder)?;
    if own.is_symlink() {
        fs::remove_file(own)?;
    } else if own.is_dir() {
        fs::remove_dir_all(own)?;
    }
    symlink(&folder, own)?;
    Ok(folder)
}

/// Whether a folder in a place where anybody may write is still the one that was made for the user.
fn is_private(folder: &Path, account: Account) -> bool {
    fs::symlink_metadata(folder).is_ok_and(|metadata| {
        metadata.is_dir() && account.owns(&metadata) && metadata.permissions().mode() & 0o777 == 0o700
    })
}

/// Removes a socket folder that is not in the cluster's own folder. Called once Postgres has stopped.
pub(super) fn leave_socket(base: &Path, socket: &Path) {
    let own = base.join("socket");
    if own.is_symlink() && fs::remove_dir(socket).is_ok() {
        let _ = fs::remove_file(&own);
    }
}
