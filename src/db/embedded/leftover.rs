//! What a `postmaster.pid` in a folder points to.

use std::fs;
use std::path::Path;

/// What became of the process that a `postmaster.pid` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leftover {
    /// There is no such process.
    Gone,
    /// It runs, and is the postmaster of that folder.
    Postmaster,
    /// It ended and nobody has reaped it, or the number belongs to another process by now.
    Stranger,
}

/// The process id in a `postmaster.pid`; none when there is no such file.
pub(super) fn pid(file: &Path) -> Option<i32> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().next()?.trim().parse().ok().filter(|pid| *pid > 0)
}

/// What `pid` is to the cluster at `data`. A postmaster has the folder's path among its arguments.
#[cfg(target_os = "linux")]
pub(super) fn of(pid: i32, data: &Path) -> Leftover {
    use std::os::unix::ffi::OsStrExt;

    let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else {
        return Leftover::Gone;
    };
    // The state follows the name, which is in parentheses and may hold some itself.
    let after_name = stat.iter().rposition(|byte| *byte == b')').map(|at| &stat[at..]);
    let state = after_name.and_then(|rest| rest.get(2)).copied();
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let ours = arguments.split(|byte| *byte == 0).any(|argument| argument == data.as_os_str().as_bytes());
    if ours && !matches!(state, Some(b'Z' | b'X')) { Leftover::Postmaster } else { Leftover::Stranger }
}

/// What `pid` is to the cluster at `data`. A postmaster has the folder's path among its arguments.
#[cfg(not(target_os = "linux"))]
pub(super) fn of(pid: i32, data: &Path) -> Leftover {
    let ps = std::process::Command::new("ps").args(["-o", "stat=", "-o", "command=", "-p", &pid.to_string()]).output();
    let text = ps.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    match text.trim() {
        "" => Leftover::Gone,
        line if !line.starts_with('Z') && line.contains(&*data.to_string_lossy()) => Leftover::Postmaster,
        _ => Leftover::Stranger,
    }
}
