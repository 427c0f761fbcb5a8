//! Joins in batches: what many ask at once takes few statements, and each gets the answer to their own question.

use std::sync::Arc;

use crewcast::{
    app::Server,
    auth::{Caller, Claims, Roles},
    domain::rights::{JoinStats, STANDINGS},
    error::Code,
    ids::Room,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::{task::JoinHandle, time::timeout};
use uuid::Uuid;

use crate::support::{
    Client, PATIENCE, connect, database, folder, mint, number, private_postgres, server, spoil, sql, token, url,
};

const DIVISIONS: u128 = 4;
const PROJECTS: u128 = 40;
const MEMBERS: u128 = 200;

fn id(project: u128) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + project)
}

fn room(project: u128) -> String {
    format!("project:{}", id(project))
}

/// Projects 7, 17, 27, 37 were deleted an hour ago, 9, 19, 29, 39 two days ago; from 40 on there are none.
fn exists(project: u128) -> bool {
    project < PROJECTS && project % 10 != 9
}

fn division(project: u128) -> u128 {
    project / 3 % DIVISIONS
}

/// Who is a member of what: each of three projects, as many as there are members for them.
fn is_member(member: u128, project: u128) -> bool {
    [member, member * 7 + 3, member * 11 + 9].iter().any(|n| n % PROJECTS == project)
}

/// One in three belongs to no division, one to one, one to two.
fn divisions(member: u128) -> Vec<u128> {
    (0..member % 3).map(|nth| (member / 3 + nth) % DIVISIONS).collect()
}

/// Six projects, two of them one's own; the last may not exist.
fn asked(member: u128) -> Vec<u128> {
    let mut asked = vec![member, member * 7 + 3, member + 9, member * 3 + 1, member * 5 + 2]
        .into_iter()
        .map(|n| n % PROJECTS)
        .collect::<Vec<_>>();
    asked.push(member % (PROJECTS + 5));
    let mut seen = Vec::new();
    asked.retain(|project| !seen.contains(project) && (seen.push(*project), true).1);
    asked
}

/// The table that the functions above tell of.
async fn fill(conn: &mut PgConnection) {
    for n in 0..DIVISIONS {
        sql(conn, &format!("insert into crewcast.divisions (slug, name) values ('d{n}', 'd')")).await;
    }
    for project in 0..PROJECTS {
        let (id, division) = (id(project), division(project));
        let deleted = match project % 10 {
            7 => "now() - interval '1 hour'",
            9 => "now() - interval '2 days'",
            _ => "null",
        };
        let columns = "(id, name, division, status, notes, deleted_at)";
        let values = format!("('{id}', 'p', 'd{division}', 'active', '', {deleted})");
        sql(conn, &format!("insert into crewcast.projects {columns} values {values}")).await;
        let members = (0..MEMBERS).filter(|member| is_member(*member, project)).map(|member| format!("'m{member}'"));
        let members = members.collect::<Vec<_>>().join(",");
        sql(conn, &format!("insert into crewcast.members select '{id}', unnest(array[{members}]::text[]), 'viewer'"))
            .await;
    }
}

fn claims(member: u128) -> Claims {
    let exp = (time::OffsetDateTime::now_utc() + time::Duration::hours(1)).unix_timestamp();
    Claims {
        roles: Roles::default(),
        divisions: divisions(member).iter().map(|n| format!("d{n}").parse().unwrap()).collect(),
        ..Claims::new(format!("m{member}").parse().unwrap(), exp)
    }
}

/// The same member, for asking without HTTP.
fn caller(member: u128) -> Caller {
    let Claims { sub, roles, divisions, .. } = claims(member);
    let expires_at = time::OffsetDateTime::now_utc() + time::Duration::hours(1);
    Caller { sub, roles, divisions, name: None, avatar_url: None, topics: Vec::new(), expires_at }
}

/// Holds up every statement that reads projects, until the lock is dropped or released.
struct Lock {
    conn: PgConnection,
    watch: PgConnection,
}

impl Lock {
    async fn take(url: &str) -> Self {
        let (mut conn, watch) = (connect(url).await, connect(url).await);
        sql(&mut conn, "begin").await;
        sql(&mut conn, "lock table crewcast.projects in access exclusive mode").await;
        Self { conn, watch }
    }

    /// Returns once a statement waits for the lock.
    async fn has_one_waiting(&mut self) {
        // Databases that are copies have their tables under the same numbers.
        let waiting = "select count(*) from pg_locks join pg_database on pg_database.oid = database
                       where not granted and relation = 'crewcast.projects'::regclass and datname = current_database()";
        while number(&mut self.watch, waiting).await == 0 {}
    }

    /// Returns once this many joins have arrived at the server.
    async fn has_seen(&mut self, server: &Server, joins: u64) {
        while server.app.joins.stats().joins < joins {
            // A round trip to Postgres, in place of spinning.
            number(&mut self.watch, "select 1::bigint").await;
        }
    }

    async fn release(mut self) {
        sql(&mut self.conn, "rollback").await;
    }
}

/// Asks for the rooms by opening a stream: the status, the `Retry-After`, and the first frame when there is one.
fn open(server: &Server, token: &str, rooms: &str) -> JoinHandle<(StatusCode, Option<String>, Value)> {
    let client = Client::new(server, token);
    let path = format!("/events?rooms={rooms}");
    tokio::spawn(async move {
        let mut response = client.request(Method::GET, &path).send().await.unwrap();
        let after = response.headers().get("retry-after").map(|after| after.to_str().unwrap().to_owned());
        let mut parser = crewcast::sse::Parser::resuming("");
        let mut frames = Vec::new();
        while response.status() == StatusCode::OK && frames.is_empty() {
            frames = parser.push(&response.chunk().await.unwrap().unwrap());
        }
        let open = frames.first().map_or(Value::Null, |frame| serde_json::from_str(&frame.data).unwrap());
        (response.status(), after, open)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_members_at_once_get_their_own_rooms_from_two_statements() {
    let url = database().await;
    fill(&mut connect(&url).await).await;
    let server = server(&url, &[]).await;
    let open = |member| {
        let rooms = asked(member).iter().map(|project| room(*project)).collect::<Vec<_>>().join(",");
        open(&server, &mint(&claims(member)), &format!("company,{rooms}"))
    };
    let mut lock = Lock::take(&url).await;
    let mut streams = vec![open(0)];
    lock.has_one_waiting().await;
    streams.extend((1..MEMBERS).map(open));
    lock.has_seen(&server, 200).await;
    lock.release().await;
    let (mut granted, mut refused) = (0, 0);
    for (member, stream) in (0..MEMBERS).zip(streams) {
        let (status, _, open) = stream.await.unwrap();
        assert_eq!(status, StatusCode::OK);
        let may = |project: &u128| {
            exists(*project) && (is_member(member, *project) || divisions(member).contains(&division(*project)))
        };
        let (may, may_not): (Vec<u128>, Vec<u128>) = asked(member).into_iter().partition(may);
        (granted, refused) = (granted + may.len(), refused + may_not.len());
        let mut rooms = vec!["company".to_owned()];
        rooms.extend(may.into_iter().map(room));
        rooms.push(format!("user:m{member}"));
        assert_eq!(open["rooms"], json!(rooms), "member {member}");
        let forbidden = |project| json!({ "room": room(project), "reason": "forbidden" });
        assert_eq!(open["refused"], may_not.into_iter().map(forbidden).collect::<Value>(), "member {member}");
    }
    assert!(granted > 200 && refused > 200, "a table that tells little: {granted} and {refused}");
    assert_eq!(server.app.joins.stats(), JoinStats { joins: 200, statements: 2 });
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_token_decides_waits_for_nobody() {
    let url = database().await;
    fill(&mut connect(&url).await).await;
    let server = server(&url, &[]).await;
    let lock = Lock::take(&url).await;
    let admin = token("ana", &[crewcast::auth::Role::Admin]);
    assert_eq!(open(&server, &admin, &room(1)).await.unwrap().0, StatusCode::OK);
    let (status, _, open) = open(&server, &mint(&claims(2)), "company,user:m3,division:d0").await.unwrap();
    assert_eq!((status, &open["rooms"]), (StatusCode::OK, &json!(["company", "division:d0", "user:m2"])));
    assert_eq!(server.app.joins.stats(), JoinStats { joins: 0, statements: 0 });
    lock.release().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_membership_that_is_gone_before_a_join_is_never_granted() {
    const TURNS: u64 = 200;
    let url = database().await;
    let mut conn = connect(&url).await;
    fill(&mut conn).await;
    let server = server(&url, &[]).await;
    // Others ask all the time, so that each join of below meets a statement under way.
    let mut others = tokio::task::JoinSet::new();
    for member in 0..8 {
        let joins = server.app.joins.clone();
        others.spawn(async move {
            let rooms: Vec<Room> = asked(member).iter().map(|project| room(*project).parse().unwrap()).collect();
            let first = joins.may_join(&caller(member), &rooms).await.unwrap();
            loop {
                assert_eq!(joins.may_join(&caller(member), &rooms).await.unwrap(), first);
            }
        });
    }
    let late = Caller { sub: "late".parse().unwrap(), ..caller(0) };
    let rooms = [room(5).parse().unwrap()];
    for _ in 0..TURNS {
        sql(&mut conn, &format!("insert into crewcast.members values ('{}', 'late', 'viewer')", id(5))).await;
        assert_eq!(server.app.joins.may_join(&late, &rooms).await.unwrap(), [true]);
        sql(&mut conn, "delete from crewcast.members where sub = 'late'").await;
        assert_eq!(server.app.joins.may_join(&late, &rooms).await.unwrap(), [false]);
    }
    assert!(others.try_join_next().is_none(), "the others got the same answer every time");
    others.shutdown().await;
    let JoinStats { joins, statements } = server.app.joins.stats();
    assert!(statements < joins && statements > TURNS, "{joins} joins, {statements} statements");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_puts_off_who_comes_next_and_nobody_else() {
    let url = database().await;
    fill(&mut connect(&url).await).await;
    let server = server(&url, &["--joins-waiting-max=2"]).await;
    let (member, rooms) = (mint(&claims(0)), room(0));
    let mut lock = Lock::take(&url).await;
    let mut waiting = vec![open(&server, &member, &rooms)];
    lock.has_one_waiting().await;
    waiting.extend([open(&server, &member, &rooms), open(&server, &member, &rooms)]);
    lock.has_seen(&server, 3).await;
    let (status, after, _) = open(&server, &member, &rooms).await.unwrap();
    assert_eq!((status, after.as_deref()), (StatusCode::SERVICE_UNAVAILABLE, Some("5")));
    let path = format!("/v1/rooms/{rooms}/events");
    let (status, problem) = Client::new(&server, &member).send(Method::GET, &path, Value::Null).await;
    assert_eq!((status, &problem["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("overloaded")));
    // Who needs no looking up is let in meanwhile.
    assert_eq!(open(&server, &member, "company").await.unwrap().0, StatusCode::OK);
    lock.release().await;
    for join in waiting {
        assert_eq!(join.await.unwrap().0, StatusCode::OK);
    }
    assert_eq!(open(&server, &member, &rooms).await.unwrap().0, StatusCode::OK);
    assert_eq!(server.app.joins.stats(), JoinStats { joins: 4, statements: 3 });
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_away_while_waiting_costs_nothing() {
    let url = database().await;
    fill(&mut connect(&url).await).await;
    let server = Arc::new(server(&url, &[]).await);
    let ask = |member| {
        let joins = server.app.joins.clone();
        let rooms = [room(3).parse().unwrap()];
        tokio::spawn(async move { joins.may_join(&caller(member), &rooms).await.unwrap() })
    };
    let gone = async |join: JoinHandle<Vec<bool>>| {
        join.abort();
        assert!(join.await.unwrap_err().is_cancelled());
    };
    let mut lock = Lock::take(&url).await;
    let first = ask(0);
    lock.has_one_waiting().await;
    let (left, stayed, other) = (ask(3), ask(3), ask(6));
    lock.has_seen(&server, 4).await;
    gone(left).await;
    // Also the one whose statement is under way.
    gone(first).await;
    lock.release().await;
    let may = |member| [is_member(member, 3) || divisions(member).contains(&division(3))];
    assert_eq!((stayed.await.unwrap(), other.await.unwrap()), (may(3).to_vec(), may(6).to_vec()));
    assert_eq!(server.app.joins.stats().statements, 2);
    // Nobody is left of a batch: it takes no statement.
    let mut lock = Lock::take(&url).await;
    let first = ask(0);
    lock.has_one_waiting().await;
    let left = ask(3);
    lock.has_seen(&server, 6).await;
    gone(left).await;
    lock.release().await;
    first.await.unwrap();
    assert_eq!(ask(3).await.unwrap(), may(3));
    assert_eq!(server.app.joins.stats(), JoinStats { joins: 7, statements: 4 });
    Arc::into_inner(server).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_those_who_share_a_statement_only_the_one_whose_row_cannot_be_read_fails() {
    let url = database().await;
    let mut conn = connect(&url).await;
    fill(&mut conn).await;
    spoil(&mut conn, "members", "sub", caller(0).sub.as_str()).await;
    let server = server(&url, &[]).await;
    // Each is a member of the project of their number.
    let join = |member| open(&server, &mint(&claims(member)), &room(member));
    let mut lock = Lock::take(&url).await;
    let mut others = vec![join(1)];
    lock.has_one_waiting().await;
    let spoilt = join(0);
    others.extend([join(2), join(3)]);
    lock.has_seen(&server, 4).await;
    lock.release().await;
    assert_eq!(spoilt.await.unwrap().0, StatusCode::INTERNAL_SERVER_ERROR);
    for join in others {
        assert_eq!(join.await.unwrap().0, StatusCode::OK);
    }
    assert_eq!(Client::admin(&server).metrics().await["crewcast_unreadable_total{what=\"joins\"}"], 1.0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_postgres_every_join_is_put_off_and_works_again_after() {
    let folder = folder();
    let postgres = private_postgres(folder.path().to_owned(), true).await;
    let options = postgres.connect_options();
    let url = url(&options, options.get_database().unwrap());
    let server = server(&url, &["--poll=20ms"]).await;
    fill(&mut connect(&url).await).await;
    let (member, rooms) = (mint(&claims(0)), room(0));
    let mut lock = Lock::take(&url).await;
    let mut waiting = vec![open(&server, &member, &rooms)];
    lock.has_one_waiting().await;
    waiting.extend((0..20).map(|_| open(&server, &member, &rooms)));
    lock.has_seen(&server, 21).await;
    postgres.stop().await;
    waiting.push(open(&server, &member, &rooms));
    for join in waiting {
        let (status, after, _) = join.await.unwrap();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(after.unwrap().parse::<u64>().unwrap() > 0);
    }
    drop(lock);
    let postgres = private_postgres(folder.path().to_owned(), true).await;
    loop {
        let (status, _, _) = open(&server, &member, &rooms).await.unwrap();
        if status == StatusCode::OK {
            break;
        }
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    }
    server.stop().await;
    postgres.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_hangs_puts_joins_off_until_it_goes_on() {
    let folder = folder();
    let postgres = private_postgres(folder.path().to_owned(), true).await;
    let options = postgres.connect_options();
    let url = url(&options, options.get_database().unwrap());
    // A statement may take a minute: that Postgres is out of reach is what ends it.
    let server = server(&url, &["--poll=20ms", "--request-timeout=60s"]).await;
    fill(&mut connect(&url).await).await;
    let (member, rooms) = (mint(&claims(0)), room(0));
    assert_eq!(open(&server, &member, &rooms).await.unwrap().0, StatusCode::OK);
    let processes = family(postgres.postmaster().unwrap());
    signal(&processes, Signal::SIGSTOP);
    let waiting: Vec<_> = (0..5).map(|_| open(&server, &member, &rooms)).collect();
    for join in waiting {
        let (status, after, _) = timeout(PATIENCE / 2, join).await.unwrap().unwrap();
        assert_eq!((status, after.as_deref()), (StatusCode::SERVICE_UNAVAILABLE, Some("1")));
    }
    signal(&processes, Signal::SIGCONT);
    while open(&server, &member, &rooms).await.unwrap().0 != StatusCode::OK {}
    server.stop().await;
    postgres.stop().await;
}

/// A process and its children.
pub fn family(parent: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    children.split_whitespace().map(|child| child.parse().unwrap()).chain([parent]).collect()
}

pub fn signal(processes: &[u32], signal: Signal) {
    for process in processes {
        kill(Pid::from_raw(process.cast_signed()), signal).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_takes_too_long_is_given_up_and_the_next_has_its_turn() {
    let url = database().await;
    fill(&mut connect(&url).await).await;
    let server = server(&url, &["--request-timeout=200ms"]).await;
    let lock = Lock::take(&url).await;
    let rooms = [room(0).parse().unwrap()];
    for _ in 0..2 {
        let join = timeout(PATIENCE, server.app.joins.may_join(&caller(0), &rooms)).await;
        assert_eq!(join.expect("an answer").unwrap_err().code(), Code::Unavailable);
    }
    lock.release().await;
    // On a busy machine one may take too long again.
    let granted = loop {
        match server.app.joins.may_join(&caller(0), &rooms).await {
            Ok(granted) => break granted,
            Err(refused) => assert_eq!(refused.code(), Code::Unavailable),
        }
    };
    assert_eq!(granted, [true]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_waits_for_no_join() {
    let url = database().await;
    fill(&mut connect(&url).await).await;
    let server = server(&url, &["--request-timeout=10m"]).await;
    let joins = server.app.joins.clone();
    let ask = |member| {
        let (joins, rooms) = (joins.clone(), [room(0).parse().unwrap()]);
        tokio::spawn(async move { joins.may_join(&caller(member), &rooms).await })
    };
    let mut lock = Lock::take(&url).await;
    let first = ask(0);
    lock.has_one_waiting().await;
    let second = ask(1);
    lock.has_seen(&server, 2).await;
    timeout(PATIENCE, server.stop()).await.expect("no statement is waited for");
    for join in [first, second, ask(2)] {
        assert_eq!(join.await.unwrap().unwrap_err().code(), Code::Draining);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_projects_in_one_statement_are_found_by_index() {
    let url = database().await;
    let (mut conn, mut others) = (connect(&url).await, connect(&url).await);
    sql(&mut conn, "set plan_cache_mode = force_generic_plan").await;
    sql(&mut conn, &format!("prepare standings (uuid[], text[], float8) as {STANDINGS}")).await;
    let list =
        |item: &dyn Fn(u128) -> String| format!("'{{{}}}'", (1..=10_000).map(item).collect::<Vec<_>>().join(","));
    let (ids, subs) = (list(&|n| id(n * 11).to_string()), list(&|n| format!("m{n}")));
    let call = format!("execute standings ({ids}, {subs}, 86400)");
    // The plan is made while the tables are empty, as a server's first one is.
    sql(&mut conn, &call).await;
    sql(&mut others, "insert into crewcast.divisions (slug, name) values ('d0', 'd')").await;
    let all =
        "select ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid as id from generate_series(1, 120000) n";
    let columns = "(id, name, division, status, notes)";
    sql(
        &mut others,
        &format!("insert into crewcast.projects {columns} select id, 'p', 'd0', 'active', '' from ({all}) p"),
    )
    .await;
    sql(
        &mut others,
        &format!("insert into crewcast.members select id, 'm' || n, 'viewer' from ({all}) p, generate_series(1, 2) n"),
    )
    .await;
    for analyzed in [false, true] {
        if analyzed {
            sql(&mut others, "analyze crewcast.projects, crewcast.members").await;
        }
        let explain = format!("explain (analyze, buffers, format json) {call}");
        let plan: Value = sqlx::query_scalar(AssertSqlSafe(explain)).fetch_one(&mut conn).await.unwrap();
        let root = &plan[0]["Plan"];
        assert_eq!(root["Actual Rows"], 10_000);
        let blocks = ["Shared Hit Blocks", "Shared Read Blocks"].map(|name| root[name].as_i64().unwrap());
        let blocks = blocks[0] + blocks[1];
        println!("{blocks} blocks, {} ms", plan[0]["Execution Time"]);
        // Four for a project and three for a membership that is not there.
        assert!(blocks <= 80_000, "{blocks}\n{root:#}");
        assert!(!root.to_string().contains("Seq Scan"), "{root:#}");
    }
}
