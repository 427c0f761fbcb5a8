//! Writes: projects changed by several clients at once, beside pgbench with the same statements.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    Bench,
    http::Http,
    machine::{SERVER_CORE, pause},
    server::Ours,
    table::{Bar, Row, median, short},
};

const CLIENTS: u64 = 8;
const PROJECTS: u64 = 1000;

/// The statements that a change of a project's notes sends, in their order: those of `src/domain/projects.rs` and of
/// `src/log/mod.rs`. Whoever changes those changes these. pgbench takes a colon before a letter or digit for a
/// variable, also inside of quotes.
const SCRIPT: &str = r#"\set n random(1, 1000)
\set v random(1, 1000000000)
\set all true
begin;
select id, name, division, status, starts_on, ends_on, notes, version, created_at, updated_at,
       :all::boolean or exists (select from crewcast.members
                                where project_id = project.id and sub = 'bench' and role = 'editor') as edits
from crewcast.projects project
where id = ('00000000-0000-7000-8000-' || lpad(:n::text, 12, '0'))::uuid and deleted_at is null
  and (:all::boolean or division = any('{}'::text[])
       or exists (select from crewcast.members where project_id = project.id and sub = 'bench'))
for no key update of project;
update crewcast.projects
set name = 'North tower', division = 'bench', status = 'planned', starts_on = null, ends_on = null, notes = :v::text,
    version = version + 1, updated_at = now()
where id = ('00000000-0000-7000-8000-' || lpad(:n::text, 12, '0'))::uuid
returning id, name, division, status, starts_on, ends_on, notes, version, created_at, updated_at;
select crewcast.append(string_to_array(event.rooms, ','), event.type, event.data::json, event.version, null)
from unnest(array[concat('project', chr(58), '00000000-0000-7000-8000-', lpad(:n::text, 12, '0'),
                         ',division', chr(58), 'bench')],
            array[concat('project', chr(58), 'updated')],
            array['{"projectId":"00000000-0000-7000-8000-000000000000","field":"notes","newValue":"' || :v::text
                  || '","updatedBy":"bench"}'],
            array[7::bigint]) as event (rooms, type, data, version);
commit;
"#;

/// Writes a second, and the server's processor time for one.
pub(crate) fn writes(bench: &Bench) -> Result<Vec<Row>> {
    let server = Ours::start(&bench.place, "data", &[])?;
    make_projects(&server)?;
    let script = bench.place.folder.join("change.sql");
    std::fs::write(&script, SCRIPT)?;
    let time = bench.seconds(5);
    let (mut rates, mut costs, mut pgbench) = (Vec::new(), Vec::new(), Vec::new());
    change(bench, &server, bench.seconds(2))?;
    for round in 1..=bench.rounds() {
        let (changes, cpu) = change(bench, &server, time)?;
        rates.push(changes / time.as_secs_f64());
        costs.push(cpu.as_secs_f64() * 1e6 / changes);
        pgbench.push(run_pgbench(&server, &script, time)?);
        let last = |values: &[f64]| short(values.last().copied().unwrap_or(f64::NAN));
        bench.say(&format!("writes, round {round}: {}/s, pgbench {}/s", last(&rates), last(&pgbench)));
    }
    Ok(vec![
        Row {
            figure: "writes".into(),
            unit: "writes/s",
            ours: median(rates),
            baseline: Some(median(pgbench)),
            bar: Bar::RatioAtLeast(0.6),
            note: format!(
                "{CLIENTS} clients PATCH {PROJECTS} projects; baseline: pgbench with the same statements and as many \
                 clients, on the server's core"
            ),
        },
        Row {
            figure: "CPU a write".into(),
            unit: "µs",
            ours: median(costs),
            baseline: None,
            bar: Bar::None,
            note: "the server alone, without Postgres".into(),
        },
    ])
}

fn make_projects(server: &Ours) -> Result<()> {
    server.sql()?.run(&format!(
        "insert into crewcast.divisions (slug, name) values ('bench', 'Bench') on conflict do nothing;
         insert into crewcast.projects (id, name, division, status, notes)
         select ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'North tower', 'bench', 'planned', ''
         from generate_series(1, {PROJECTS}) n on conflict do nothing"
    ))
}

/// Changes projects for this long; how many, and the server's processor time.
fn change(bench: &Bench, server: &Ours, time: Duration) -> Result<(f64, Duration)> {
    let (stop, count) = (&AtomicBool::new(false), &AtomicU64::new(0));
    thread::scope(|scope| {
        let clients: Vec<_> =
            (0..CLIENTS).map(|nth| scope.spawn(move || client(bench, server, nth, stop, count))).collect();
        let (cpu, began) = (server.process.cpu()?, Instant::now());
        pause(time);
        let changes = count.load(Ordering::Relaxed) as f64 * time.as_secs_f64() / began.elapsed().as_secs_f64();
        let cpu = server.process.cpu()? - cpu;
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        Ok((changes, cpu))
    })
}

fn client(bench: &Bench, server: &Ours, nth: u64, stop: &AtomicBool, count: &AtomicU64) -> Result<()> {
    let mut http = Http::connect(&server.process.address, &bench.place.token)?;
    // A step that shares no factor with their number visits all projects, each client from another one on.
    let (mut project, mut value) = (nth * PROJECTS / CLIENTS, crate::machine::now_ns());
    while !stop.load(Ordering::Relaxed) {
        (project, value) = ((project + 371) % PROJECTS, value + 1);
        let path = format!("/v1/projects/00000000-0000-7000-8000-{:012}", project + 1);
        http.send("PATCH", &path, &format!("{{\"notes\":\"{nth}{value}\"}}"))?;
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn run_pgbench(server: &Ours, script: &Path, time: Duration) -> Result<f64> {
    let program = pgbench(server)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("on-core").arg(SERVER_CORE.to_string()).arg(&program);
    command.args(["--no-vacuum", "--protocol=prepared", "--jobs=1", "--username=postgres"]);
    command.arg(format!("--client={CLIENTS}")).arg(format!("--time={}", time.as_secs().max(1)));
    command.arg(format!("--file={}", script.display())).arg("--host").arg(&server.socket).arg("crewcast");
    let output = command.output().with_context(|| format!("running {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let tps = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next());
    let Some(tps) = tps.filter(|_| output.status.success()) else {
        bail!("pgbench: {}", String::from_utf8_lossy(&output.stderr).trim());
    };
    Ok(tps.parse()?)
}

/// Debian keeps it beside the server, others with the clients.
fn pgbench(server: &Ours) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::iter::once(server.programs.clone()).chain(std::env::split_paths(&path));
    folders.find_map(|folder| Some(folder.join("pgbench")).filter(|program| program.is_file())).with_context(|| {
        format!("there is no pgbench in {} nor in PATH: install Postgres's contrib programs", server.programs.display())
    })
}
