//! The private Postgres: starts, kills, neighbours, users and folders.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use crewcast::db::embedded::{Embedded, Options, StartError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

/// Set in a child process: the data folder that it is to serve.
const CHILD_FOLDER: &str = "CREWCAST_TEST_CHILD_FOLDER";

/// How long anything may take before its test fails.
const DEADLINE: Duration = Duration::from_secs(60);

/// A folder that any user may pass through.
fn folder() -> Result<TempDir> {
    Ok(tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir()?)
}

fn options(data_dir: &Path) -> Options {
    Options {
        data_dir: data_dir.to_owned(),
        bin_dir: None,
        fetch: true,
        durable: false,
        address: "127.0.0.1:3001".into(),
    }
}

async fn start(data_dir: &Path) -> Result<Embedded> {
    Ok(Embedded::start(options(data_dir), |_| {}).await?)
}

/// Starts on a folder where that has to fail, and gives the error's one line.
async fn refusal(options: Options) -> Result<String> {
    match Embedded::start(options, |_| {}).await {
        Ok(_) => bail!("it started"),
        Err(error) => {
            let line = error.to_string();
            ensure!(line.lines().count() == 1, "more than a line: {line}");
            Ok(line)
        }
    }
}

async fn add_row(at: &PgConnectOptions) -> Result<()> {
    let mut connection = PgConnection::connect_with(at).await?;
    sqlx::raw_sql("create table if not exists kept (at timestamptz default now()); insert into kept default values")
        .execute(&mut connection)
        .await?;
    Ok(connection.close().await?)
}

async fn rows(at: &PgConnectOptions) -> Result<i64> {
    let mut connection = PgConnection::connect_with(at).await?;
    let count = sqlx::query_scalar("select count(*) from kept").fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(count)
}

async fn setting(at: &PgConnectOptions, name: &str) -> Result<String> {
    let mut connection = PgConnection::connect_with(at).await?;
    Ok(sqlx::query_scalar("select current_setting($1)").bind(name).fetch_one(&mut connection).await?)
}

/// Asks until there is an answer.
async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let began = Instant::now();
    while began.elapsed() < DEADLINE {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("not within {DEADLINE:?}: {what}")
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(pid.cast_signed()), signal)?)
}

/// Whether a process runs: one that has ended and is not reaped yet does not.
fn runs(pid: u32) -> bool {
    if cfg!(target_os = "linux") {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        return stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']));
    }
    let state = Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output();
    state.is_ok_and(|state| !state.stdout.is_empty() && !state.stdout.starts_with(b"Z"))
}

/// A server in a process of its own, to be killed.
struct Server {
    process: Child,
    postmaster: u32,
    /// Kept open: the test harness in the process still writes to it.
    _output: BufReader<ChildStdout>,
}

impl Server {
    fn start(data_dir: &Path) -> Result<Server> {
        Server::with(Command::new(std::env::current_exe()?), data_dir)
    }

    /// Has this test binary run [`child`] and nothing else.
    fn with(mut command: Command, data_dir: &Path) -> Result<Server> {
        command.args(["--exact", "embedded::child", "--nocapture", "--test-threads=1"]);
        command.env(CHILD_FOLDER, data_dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let mut output = BufReader::new(process.stdout.take().context("it is piped")?);
        let mut line = String::new();
        while output.read_line(&mut line)? > 0 {
            if let Some((_, pid)) = line.split_once("READY ") {
                let postmaster = pid.trim().parse()?;
                return Ok(Server { process, postmaster, _output: output });
            }
            line.clear();
        }
        bail!("the child ended: {}", process.wait()?)
    }

    fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Closes its standard input, on which it stops Postgres and ends.
    fn stop(&mut self) -> Result<()> {
        drop(self.process.stdin.take());
        ensure!(self.process.wait()?.success());
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The server process of the other tests: nothing by itself.
#[tokio::test]
async fn child() -> Result<()> {
    let Some(data_dir) = std::env::var_os(CHILD_FOLDER) else {
        return Ok(());
    };
    let postgres = Embedded::start(Options { durable: true, ..options(Path::new(&data_dir)) }, |_| {}).await?;
    add_row(&postgres.connect_options()).await?;
    println!("READY {}", postgres.postmaster().context("it runs")?);
    tokio::task::spawn_blocking(|| std::io::stdin().lines().count()).await?;
    postgres.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_first_start_makes_a_database_and_later_ones_keep_its_rows() -> Result<()> {
    let folder = folder()?;
    let data_dir = folder.path().join("not there yet");
    let postgres = start(&data_dir).await?;
    let pid = postgres.postmaster().context("it runs")?;
    add_row(&postgres.connect_options()).await?;
    assert_eq!(setting(&postgres.connect_options(), "server_encoding").await?, "UTF8");
    assert_eq!(setting(&postgres.connect_options(), "listen_addresses").await?, "");
    assert_eq!(fs::metadata(data_dir.join("postgres/socket"))?.mode() & 0o777, 0o700);
    postgres.stop().await;
    assert!(!runs(pid));

    let postgres = Embedded::start(Options { durable: true, ..options(&data_dir) }, |_| {}).await?;
    add_row(&postgres.connect_options()).await?;
    assert_eq!(rows(&postgres.connect_options()).await?, 2);
    assert_eq!(setting(&postgres.connect_options(), "fsync").await?, "on");
    drop(postgres);
    assert!(!data_dir.join("postgres/data/postmaster.pid").exists(), "dropping it stops it too");
    Ok(())
}

#[tokio::test]
async fn a_killed_postmaster_is_started_again_with_every_committed_row() -> Result<()> {
    let folder = folder()?;
    let said = Arc::new(Mutex::new(String::new()));
    let heard = said.clone();
    let say = move |line: &str| heard.lock().expect("no panic before").push_str(&format!("{line}\n"));
    let postgres = Embedded::start(Options { durable: true, ..options(folder.path()) }, say).await?;
    let options = postgres.connect_options();
    for killed in 1..=3 {
        add_row(&options).await?;
        let pid = postgres.postmaster().context("it runs")?;
        signal(pid, Signal::SIGKILL)?;
        let next = async || postgres.postmaster().filter(|next| *next != pid);
        eventually("a new postmaster", next).await?;
        assert_eq!(rows(&options).await?, killed);
    }
    let said = said.lock().expect("no panic before").clone();
    assert!(said.contains("signal: 9") && said.contains("runs again"), "{said}");
    postgres.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_second_server_on_a_folder_is_told_who_has_it() -> Result<()> {
    let folder = folder()?;
    let first = start(folder.path()).await?;
    let line = refusal(options(folder.path())).await?;
    let holder = format!("process {}, which serves 127.0.0.1:3001", std::process::id());
    assert!(line.contains(&holder) && line.contains("--data-dir"), "{line}");
    add_row(&first.connect_options()).await?;
    first.stop().await;

    let mut server = Server::start(folder.path())?;
    let line = refusal(options(folder.path())).await?;
    assert!(line.contains(&format!("process {},", server.process.id())), "{line}");
    server.stop()?;
    let next = start(folder.path()).await?;
    assert_eq!(rows(&next.connect_options()).await?, 2);
    Ok(())
}

#[tokio::test]
async fn two_folders_run_side_by_side() -> Result<()> {
    let (one, two) = (folder()?, folder()?);
    let (one, two) = tokio::try_join!(start(one.path()), start(two.path()))?;
    add_row(&one.connect_options()).await?;
    add_row(&two.connect_options()).await?;
    assert_eq!(rows(&one.connect_options()).await?, 1);
    assert_eq!(rows(&two.connect_options()).await?, 1);
    Ok(())
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn killing_the_server_ends_its_postgres_and_loses_nothing() -> Result<()> {
    let folder = folder()?;
    for _ in 0..2 {
        let mut server = Server::start(folder.path())?;
        server.kill()?;
        let pid = server.postmaster;
        eventually("Postgres follows its server", async || (!runs(pid)).then_some(())).await?;
    }
    // At once again: the last one's Postgres may still be about to stop.
    Server::start(folder.path())?.kill()?;
    let postgres = start(folder.path()).await?;
    assert_eq!(rows(&postgres.connect_options()).await?, 3);
    Ok(())
}

#[tokio::test]
async fn killing_the_server_and_its_postgres_loses_nothing() -> Result<()> {
    let folder = folder()?;
    for _ in 0..2 {
        let mut server = Server::start(folder.path())?;
        // Stopped first, so that it cannot start another one in between.
        signal(server.process.id(), Signal::SIGSTOP)?;
        signal(server.postmaster, Signal::SIGKILL)?;
        server.kill()?;
    }
    let base = folder.path().join("postgres");
    assert!(base.join("data/postmaster.pid").exists() && base.join("socket/.s.PGSQL.5432.lock").exists());
    let postgres = start(folder.path()).await?;
    assert_eq!(rows(&postgres.connect_options()).await?, 2);
    Ok(())
}

/// Starts what `Embedded` started, but as a child of this test that nothing ends.
#[cfg(target_os = "linux")]
async fn orphan(data_dir: &Path) -> Result<Child> {
    use std::os::unix::ffi::OsStrExt;

    let postgres = start(data_dir).await?;
    add_row(&postgres.connect_options()).await?;
    let pid = postgres.postmaster().context("it runs")?;
    let line = fs::read(format!("/proc/{pid}/cmdline"))?;
    postgres.stop().await;

    let mut arguments = line.split(|byte| *byte == 0).filter(|argument| !argument.is_empty());
    let mut command = Command::new(std::ffi::OsStr::from_bytes(arguments.next().context("a program")?));
    command.args(arguments.map(std::ffi::OsStr::from_bytes)).current_dir("/");
    let data = data_dir.join("postgres/data");
    let owner = fs::metadata(&data)?;
    if geteuid().is_root() {
        command.uid(owner.uid()).gid(owner.gid());
    }
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let file = data.join("postmaster.pid");
    let ready = async || fs::read_to_string(&file).ok()?.contains("ready").then_some(());
    eventually("the orphan is ready", ready).await?;
    Ok(child)
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_postgres_that_outlived_its_server_is_stopped_and_replaced() -> Result<()> {
    let folder = folder()?;
    let mut orphan = orphan(folder.path()).await?;
    let postgres = start(folder.path()).await?;
    assert!(!runs(orphan.id()));
    orphan.wait()?;
    assert_eq!(rows(&postgres.connect_options()).await?, 1);
    Ok(())
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_dead_postgres_that_nobody_reaps_is_in_nobodys_way() -> Result<()> {
    let folder = folder()?;
    let mut zombie = orphan(folder.path()).await?;
    signal(zombie.id(), Signal::SIGKILL)?;
    let pid = zombie.id();
    eventually("it is a zombie", async || (!runs(pid)).then_some(())).await?;
    let postgres = start(folder.path()).await?;
    assert_eq!(rows(&postgres.connect_options()).await?, 1);
    zombie.wait()?;
    Ok(())
}

#[tokio::test]
async fn a_process_id_that_went_to_another_process_is_left_alone() -> Result<()> {
    let folder = folder()?;
    start(folder.path()).await?.stop().await;
    let mut bystander = Command::new("sleep").arg("600").spawn()?;
    let file = folder.path().join("postgres/data/postmaster.pid");
    fs::write(&file, format!("{}\n/elsewhere\n", bystander.id()))?;
    let postgres = start(folder.path()).await?;
    assert!(runs(bystander.id()));
    postgres.stop().await;
    bystander.kill()?;
    bystander.wait()?;
    Ok(())
}

#[tokio::test]
async fn a_half_made_database_is_not_used() -> Result<()> {
    let folder = folder()?;
    let base = folder.path().join("postgres");
    for name in ["data.tmp", "data.tmp.1"] {
        fs::create_dir_all(base.join(name))?;
        fs::write(base.join(name).join("PG_VERSION"), "15\n")?;
    }
    fs::set_permissions(&base, Permissions::from_mode(0o711))?;
    let postgres = start(folder.path()).await?;
    add_row(&postgres.connect_options()).await?;
    assert!(!base.join("data.tmp").exists() && !base.join("data.tmp.1").exists());
    Ok(())
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_nothing_running() -> Result<()> {
    let folder = folder()?;
    let given_up = tokio::time::timeout(Duration::from_millis(20), start(folder.path())).await;
    assert!(given_up.is_err(), "no machine is that fast");
    assert!(!folder.path().join("postgres/data/postmaster.pid").exists());
    add_row(&start(folder.path()).await?.connect_options()).await
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_works_and_so_do_odd_names() -> Result<()> {
    let folder = folder()?;
    let long = folder.path().join("x".repeat(120));
    let odd = folder.path().join("a, \"b\" c");
    for data_dir in [&long, &odd] {
        for count in 1..=2 {
            let postgres = start(data_dir).await?;
            add_row(&postgres.connect_options()).await?;
            assert_eq!(rows(&postgres.connect_options()).await?, count);
            postgres.stop().await;
        }
    }
    let link = long.join("postgres/socket");
    assert!(!link.is_symlink(), "the folder with the short path goes when Postgres does");

    // After a kill it stays, and is used again.
    let mut server = Server::start(&long)?;
    let short = fs::read_link(&link)?;
    server.kill()?;
    let postgres = start(&long).await?;
    assert_eq!(fs::read_link(&link)?, short);
    postgres.stop().await;
    assert!(!short.exists());
    Ok(())
}

#[tokio::test]
async fn a_wrong_pg_bin_dir_is_named() -> Result<()> {
    let folder = folder()?;
    for wrong in ["/nonexistent", "/usr"] {
        let line = refusal(Options { bin_dir: Some(wrong.into()), ..options(folder.path()) }).await?;
        assert!(line.starts_with(&format!("PG_BIN_DIR={wrong} ")), "{line}");
    }
    Ok(())
}

#[tokio::test]
async fn data_of_another_major_version_is_refused_with_both_versions() -> Result<()> {
    let folder = folder()?;
    start(folder.path()).await?.stop().await;
    fs::write(folder.path().join("postgres/data/PG_VERSION"), "9\n")?;
    let line = refusal(options(folder.path())).await?;
    assert!(line.contains("made by Postgres 9 and the one at hand is Postgres 1"), "{line}");
    Ok(())
}

#[tokio::test]
async fn a_postgres_that_cannot_start_is_quoted() -> Result<()> {
    let folder = folder()?;
    start(folder.path()).await?.stop().await;
    let configuration = folder.path().join("postgres/data/postgresql.auto.conf");
    fs::write(configuration, "work_mem = 'plenty'\n")?;
    let line = refusal(options(folder.path())).await?;
    assert!(line.contains("work_mem") && line.contains("postgres.log"), "{line}");
    Ok(())
}

/// Removes what a test made under `/var/lib/crewcast`.
struct Elsewhere(PathBuf);

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        // Only when it is empty, that is, when nobody else uses it.
        let _ = fs::remove_dir("/var/lib/crewcast");
    }
}

/// Starts on a folder that only root reaches, and says where the data went.
async fn start_elsewhere(data_dir: &Path) -> Result<(Elsewhere, Embedded)> {
    let said = Arc::new(Mutex::new(Vec::new()));
    let heard = said.clone();
    let say = move |line: &str| heard.lock().expect("no panic before").push(line.to_owned());
    let postgres = Embedded::start(options(data_dir), say).await?;
    let elsewhere = Elsewhere(fs::read_link(data_dir.join("postgres"))?);
    let said = said.lock().expect("no panic before").clone();
    ensure!(said.len() == 1 && said[0].contains(&*elsewhere.0.to_string_lossy()), "{said:?}");
    ensure!(elsewhere.0.starts_with("/var/lib/crewcast"));
    Ok((elsewhere, postgres))
}

#[tokio::test]
async fn as_root_a_folder_that_postgres_cannot_reach_gets_one_elsewhere() -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    // Only its owner may enter.
    let closed = folder()?;
    fs::set_permissions(closed.path(), Permissions::from_mode(0o700))?;
    let (one, two) = (closed.path().join("one"), closed.path().join("two"));
    let (_first, postgres) = start_elsewhere(&one).await?;
    let (_second, other) = start_elsewhere(&two).await?;
    add_row(&postgres.connect_options()).await?;
    add_row(&other.connect_options()).await?;
    postgres.stop().await;
    other.stop().await;
    let postgres = start(&one).await?;
    assert_eq!(rows(&postgres.connect_options()).await?, 1);
    postgres.stop().await;

    // A copy of the folder must not run on the same data.
    let copy = closed.path().join("copy");
    fs::create_dir(&copy)?;
    std::os::unix::fs::symlink(fs::read_link(one.join("postgres"))?, copy.join("postgres"))?;
    let line = refusal(options(&copy)).await?;
    assert!(line.contains("to a data folder at another path"), "{line}");

    // Whoever removes the folder wants to start afresh.
    fs::remove_dir_all(&one)?;
    let (_third, postgres) = start_elsewhere(&one).await?;
    assert!(rows(&postgres.connect_options()).await.is_err(), "the old table is back");
    postgres.stop().await;
    Ok(())
}

#[tokio::test]
async fn as_root_data_that_went_out_of_reach_is_not_replaced_by_an_empty_database() -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let folder = folder()?;
    start(folder.path()).await?.stop().await;
    fs::set_permissions(folder.path(), Permissions::from_mode(0o700))?;
    let line = refusal(options(folder.path())).await?;
    assert!(line.contains(&format!("chmod o+x {}", folder.path().display())), "{line}");
    Ok(())
}

/// As root this runs the server as `nobody`, else as the one who runs the tests.
#[tokio::test]
async fn it_runs_as_an_ordinary_user_and_then_as_root_on_the_same_data() -> Result<()> {
    let folder = folder()?;
    let data_dir = folder.path().join("data");
    fs::create_dir(&data_dir)?;
    // The test binary may be where others cannot reach it.
    let program = folder.path().join("server");
    // By another process: a file that was open for writing here might not be run yet ("text file busy").
    let copied = Command::new("cp").arg(std::env::current_exe()?).arg(&program).status()?;
    ensure!(copied.success());
    fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    let mut command = Command::new(&program);
    let user = User::from_name("nobody")?.context("every system has that user")?;
    if geteuid().is_root() {
        chown(&data_dir, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).current_dir("/");
    }
    let mut server = Server::with(command, &data_dir)?;
    let owner = fs::metadata(&data_dir)?.uid();
    // Postgres writes the file itself.
    let pid_file = data_dir.join("postgres/data/postmaster.pid");
    assert_eq!(fs::metadata(&pid_file)?.uid(), owner);
    server.stop()?;
    let postgres = start(&data_dir).await?;
    assert_eq!(rows(&postgres.connect_options()).await?, 1);
    assert_eq!(fs::metadata(&pid_file)?.uid(), owner);
    Ok(())
}

#[tokio::test]
async fn data_of_another_user_is_refused_with_its_owner() -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let folder = folder()?;
    let data = folder.path().join("postgres/data");
    fs::create_dir_all(&data)?;
    let error = Embedded::start(options(folder.path()), |_| {}).await.expect_err("root owns it");
    assert!(matches!(error, StartError::Owner { .. }) && error.to_string().contains("chown -R postgres"), "{error}");
    Ok(())
}
