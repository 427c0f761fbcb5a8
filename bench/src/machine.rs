//! The machine: cores, limits, and what `/proc` says of processes.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::resource::{Resource, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
    unistd::{Pid, SysconfVar, sysconf},
};

/// Where the server that is measured runs, alone.
pub(crate) const SERVER_CORE: usize = 0;
/// Where all else runs: the load, the publishers and Postgres.
pub(crate) const LOAD_CORE: usize = 1;

/// Files that a process needs besides the sockets of its streams.
const FILES_BESIDES: u64 = 200;

/// Moves a process, or this thread (0), to a core.
pub(crate) fn pin(pid: i32, core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    sched_setaffinity(Pid::from_raw(pid), &cores).with_context(|| format!("moving process {pid} to core {core}"))
}

/// Makes sure that there are two cores.
pub(crate) fn check_cores() -> Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    if cores < 2 {
        bail!("the bench needs two cores, one for the server and one for the load, and may use {cores}");
    }
    Ok(())
}

/// Raises the limit of open files, for this process and its children, and returns how many streams it allows.
pub(crate) fn raise_file_limit() -> Result<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    eprintln!("bench: open files: limit raised from {soft} to {hard}");
    Ok(usize::try_from(hard.saturating_sub(FILES_BESIDES)).unwrap_or(usize::MAX))
}

/// Nanoseconds on the clock that all processes of the machine share.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has this clock");
    u64::try_from(Duration::from(now).as_nanos()).expect("the machine has run for less than 584 years")
}

/// Waits.
#[expect(clippy::disallowed_methods, reason = "the bench's threads are its own")]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Processor time that a process has used, in user and kernel mode.
pub(crate) fn cpu(pid: i32) -> Result<Duration> {
    let stat = read(pid, "stat")?;
    let (_, fields) = stat.rsplit_once(')').context("a stat without a name")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("ticks have a rate")?;
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// Bytes of memory that a process holds.
pub(crate) fn rss(pid: i32) -> Result<u64> {
    let status = read(pid, "status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process without memory")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1024)
}

/// The processes whose parent this one is.
pub(crate) fn children(pid: i32) -> Result<Vec<i32>> {
    let all = fs::read_dir("/proc")?.flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    Ok(all.filter(|child| parent(*child) == Some(pid)).collect())
}

fn parent(pid: i32) -> Option<i32> {
    let stat = read(pid, "stat").ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The command line of a process.
pub(crate) fn arguments(pid: i32) -> Result<Vec<String>> {
    Ok(read(pid, "cmdline")?.split('\0').map(str::to_owned).collect())
}

/// The file that a process runs.
pub(crate) fn program(pid: i32) -> Result<PathBuf> {
    Ok(fs::read_link(format!("/proc/{pid}/exe"))?)
}

fn read(pid: i32, name: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{name}");
    fs::read_to_string(&path).with_context(|| format!("reading {path}: the process is gone"))
}

/// The machine in one line.
pub(crate) fn describe() -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let memory = fs::read_to_string("/proc/meminfo")?;
    let memory: u64 = memory.split_whitespace().nth(1).context("no MemTotal")?.parse()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let model = model.map_or("unknown processor", |(_, model)| model);
    Ok(format!("{cores} cores ({model}), {} GiB of memory, Linux {}", memory.div_ceil(1 << 20), kernel.trim()))
}
