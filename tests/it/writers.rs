//! Many writers change the same weeks at once, on two nodes: what is told of capacity is true at each commit.

use std::collections::HashMap;

use crewcast::app::Server;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgConnection;
use tokio::task::JoinSet;

use crate::support::{Client, connect, database, server};

const WRITERS: usize = 20;
/// Weeks to come, whenever this runs: who changes division takes them along.
const WEEKS: [&str; 2] = ["2131-W01", "2131-W02"];

/// A database, and an admin on each of its two nodes.
struct Cluster {
    nodes: [Server; 2],
    admins: [Client; 2],
    conn: PgConnection,
}

impl Cluster {
    async fn start() -> Self {
        let url = database().await;
        // Each node's writers are no more than half of its connections: all of them may wait long for a lock.
        let connections = format!("--database-connections={WRITERS}");
        let nodes = [server(&url, &[&connections]).await, server(&url, &[&connections]).await];
        let admins = [Client::admin(&nodes[0]), Client::admin(&nodes[1])];
        Self { nodes, admins, conn: connect(&url).await }
    }

    fn admin(&self, writer: usize) -> Client {
        self.admins[writer % 2].clone()
    }

    async fn stop(self) {
        for node in self.nodes {
            node.stop().await;
        }
    }

    /// Everything that was told of capacity, in the order of seq.
    async fn told(&mut self) -> Vec<Told> {
        let statement =
            "select xact, rooms, data::text from crewcast.events where type = 'capacity:updated' order by seq";
        let rows: Vec<(i64, Vec<String>, String)> = sqlx::query_as(statement).fetch_all(&mut self.conn).await.unwrap();
        let told =
            |(xact, rooms, data): (_, _, String)| Told { xact, rooms, data: serde_json::from_str(&data).unwrap() };
        rows.into_iter().map(told).collect()
    }

    /// The hours of every employee's weeks now, where there are any, from the rows.
    async fn rows(&mut self) -> HashMap<Key, f64> {
        let statement = "select employee_id::text, week, sum(hours)::float8 from crewcast.assignments group by 1, 2";
        let rows: Vec<(String, String, f64)> = sqlx::query_as(statement).fetch_all(&mut self.conn).await.unwrap();
        let rows = rows.into_iter().map(|(employee, week, hours)| ((employee, week), hours));
        rows.filter(|(_, hours)| *hours > 0.0).collect()
    }
}

/// An employee and a week.
type Key = (String, String);

/// A `capacity:updated` as it stands in the log.
struct Told {
    xact: i64,
    rooms: Vec<String>,
    data: Value,
}

impl Told {
    fn key(&self) -> Key {
        let text = |name: &str| self.data[name].as_str().unwrap().to_owned();
        (text("employeeId"), text("week"))
    }

    fn hours(&self) -> f64 {
        self.data["hours"].as_f64().unwrap()
    }
}

/// What the last of these say, where there are hours.
fn last<'a>(told: impl IntoIterator<Item = &'a Told>) -> HashMap<Key, f64> {
    let mut last: HashMap<Key, f64> = told.into_iter().map(|told| (told.key(), told.hours())).collect();
    last.retain(|_, hours| *hours > 0.0);
    last
}

/// For each week, what each event adds to the sum that the one before it told, sorted; what adds nothing is left out.
fn steps(told: &[Told]) -> HashMap<Key, Vec<f64>> {
    let (mut before, mut steps) = (HashMap::<Key, f64>::new(), HashMap::<Key, Vec<f64>>::new());
    for told in told {
        let step = told.hours() - before.insert(told.key(), told.hours()).unwrap_or(0.0);
        steps.entry(told.key()).or_default().push(step);
    }
    sorted(steps)
}

fn sorted(mut steps: HashMap<Key, Vec<f64>>) -> HashMap<Key, Vec<f64>> {
    for steps in steps.values_mut() {
        steps.retain(|step| *step != 0.0);
        steps.sort_by(f64::total_cmp);
    }
    steps.retain(|_, steps| !steps.is_empty());
    steps
}

/// The same numbers at every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) % n
    }
}

#[tokio::test]
async fn twenty_writers_on_one_week_are_told_one_after_the_other() {
    let mut cluster = Cluster::start().await;
    let ana = cluster.admin(0);
    let mut projects = Vec::new();
    for _ in 0..WRITERS {
        projects.push(ana.project("north").await);
    }
    let employee = ana.employee("north", 40.0).await;
    let mut writers = JoinSet::new();
    for (writer, project) in projects.into_iter().enumerate() {
        let (ana, employee) = (cluster.admin(writer), employee.clone());
        writers.spawn(async move {
            // Each has hours of its own, so that a step says whose it is.
            let body =
                json!({ "employeeId": employee, "projectId": project, "week": WEEKS[0], "hours": (writer + 1) as f64 / 4.0 });
            ana.make("/v1/assignments", body).await
        });
    }
    writers.join_all().await;
    let told = cluster.told().await;
    let expected: Vec<f64> = (1..=WRITERS).map(|quarters| quarters as f64 / 4.0).collect();
    assert_eq!(steps(&told), HashMap::from([((employee.clone(), WEEKS[0].to_owned()), expected)]));
    assert_eq!(told.last().unwrap().hours(), 52.5);
    assert_eq!(last(&told), cluster.rows().await);
    for told in &told {
        let utilization = told.data["newUtilization"].as_f64().unwrap();
        assert!((utilization - told.hours() / 40.0).abs() < 0.00006, "{}", told.data);
    }
    cluster.stop().await;
}

/// Somebody with one assignment to a project of their own, which they move about, and what each of their changes adds
/// to the sums of the weeks.
struct Writer {
    ana: Client,
    path: String,
    at: Key,
    hours: f64,
    steps: HashMap<Key, Vec<f64>>,
}

impl Writer {
    async fn start(ana: Client, project: String, employee: &str) -> Self {
        let body = json!({ "employeeId": employee, "projectId": project, "week": WEEKS[0], "hours": 1 });
        let path = format!("/v1/assignments/{}", ana.make("/v1/assignments", body).await);
        let at = (employee.to_owned(), WEEKS[0].to_owned());
        let steps = HashMap::from([(at.clone(), vec![1.0])]);
        Self { ana, path, at, hours: 1.0, steps }
    }

    /// Moves the assignment and changes its hours.
    async fn change(&mut self, at: Key, hours: f64) {
        let body = json!({ "employeeId": at.0, "week": at.1, "hours": hours });
        let (status, answer) = self.ana.send(Method::PATCH, &self.path, body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        if at == self.at {
            self.steps.entry(at).or_default().push(hours - self.hours);
        } else {
            self.steps.entry(self.at.clone()).or_default().push(-self.hours);
            self.steps.entry(at.clone()).or_default().push(hours);
            self.at = at;
        }
        self.hours = hours;
    }

    async fn delete(mut self) -> HashMap<Key, Vec<f64>> {
        let (status, answer) = self.ana.send(Method::DELETE, &self.path, Value::Null).await;
        assert_eq!(status, StatusCode::NO_CONTENT, "{answer}");
        self.steps.entry(self.at).or_default().push(-self.hours);
        self.steps
    }
}

#[tokio::test]
async fn assignments_that_move_while_employees_change_division_leave_every_room_with_the_truth() {
    let mut cluster = Cluster::start().await;
    let ana = cluster.admin(0);
    let mut projects = Vec::new();
    for division in ["north", "south"].iter().cycle().take(WRITERS) {
        projects.push(ana.project(division).await);
    }
    let employees = [ana.employee("north", 40.0).await, ana.employee("south", 20.0).await];
    let mut writers = JoinSet::new();
    for (writer, project) in projects.into_iter().enumerate() {
        let (ana, employees) = (cluster.admin(writer), employees.clone());
        writers.spawn(async move {
            let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (writer as u64 + 1));
            let mut assignment = Writer::start(ana, project, &employees[writer % 2]).await;
            for _ in 0..8 {
                let employee = &employees[random.below(2) as usize];
                let week = WEEKS[random.below(2) as usize];
                assignment.change((employee.clone(), week.to_owned()), random.below(5) as f64).await;
            }
            if writer % 4 == 0 { assignment.delete().await } else { assignment.steps }
        });
    }
    let mut movers = JoinSet::new();
    for (mover, employee) in employees.iter().enumerate() {
        let (ana, path) = (cluster.admin(mover), format!("/v1/employees/{employee}"));
        movers.spawn(async move {
            for turn in 0..10 {
                let division = ["north", "south"][(turn + mover) % 2];
                let body = json!({ "division": division, "weeklyHours": 20 + turn });
                let (status, answer) = ana.send(Method::PATCH, &path, body).await;
                assert_eq!(status, StatusCode::OK, "{answer}");
            }
        });
    }
    let mut expected = HashMap::<Key, Vec<f64>>::new();
    for (key, steps) in writers.join_all().await.into_iter().flatten() {
        expected.entry(key).or_default().extend(steps);
    }
    movers.join_all().await;
    let (told, rows) = (cluster.told().await, cluster.rows().await);
    assert_eq!(steps(&told), sorted(expected));
    assert_eq!(last(&told), rows);
    for division in ["north", "south"] {
        // Who follows only this room knows who is in the division, and how full their weeks are.
        let mut seen = HashMap::<Key, &Told>::new();
        seen.extend(
            told.iter().filter(|told| told.rooms.contains(&format!("division:{division}"))).map(|t| (t.key(), t)),
        );
        seen.retain(|_, told| told.data["division"] == division && told.hours() > 0.0);
        let mut now = HashMap::new();
        for week in WEEKS {
            let (_, list) = ana.read(&format!("/v1/capacity?division={division}&week={week}")).await;
            let items = list["items"].as_array().unwrap().iter().filter(|item| item["hours"] != 0);
            let told = items.map(|item| {
                let key = (item["employeeId"].as_str().unwrap().to_owned(), week.to_owned());
                (key, (item["hours"].clone(), item["weeklyHours"].clone(), item["utilization"].clone()))
            });
            now.extend(told.collect::<Vec<_>>());
        }
        let seen: HashMap<_, _> = seen
            .into_iter()
            .map(|(key, told)| (key, told.data.clone()))
            .map(|(key, data)| {
                (key, (data["hours"].clone(), data["weeklyHours"].clone(), data["newUtilization"].clone()))
            })
            .collect();
        assert_eq!(seen, now, "{division}");
    }
    cluster.stop().await;
}

#[tokio::test]
async fn an_assignment_that_many_move_at_once_is_told_of_in_one_place_at_a_time() {
    let mut cluster = Cluster::start().await;
    let ana = cluster.admin(0);
    let project = ana.project("north").await;
    let mut employees = Vec::new();
    for _ in 0..4 {
        employees.push(ana.employee("north", 40.0).await);
    }
    let body = json!({ "employeeId": employees[0], "projectId": project, "week": WEEKS[0], "hours": 8 });
    let path = format!("/v1/assignments/{}", ana.make("/v1/assignments", body).await);
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let (ana, path, employees) = (cluster.admin(writer), path.clone(), employees.clone());
        writers.spawn(async move {
            for turn in 0..10 {
                let (field, value) = match writer % 2 {
                    0 => ("employeeId", &*employees[(writer + turn) % 4]),
                    _ => ("week", WEEKS[(writer / 2 + turn) % 2]),
                };
                let (status, answer) = ana.send(Method::PATCH, &path, json!({ field: value })).await;
                assert_eq!((status, &answer[field]), (StatusCode::OK, &json!(value)), "{answer}");
            }
        });
    }
    writers.join_all().await;
    let (told, mut end) = (cluster.told().await, 0);
    for at_commit in told.chunk_by(|one, next| one.xact == next.xact) {
        end += at_commit.len();
        assert_eq!(last(&told[..end]).into_values().collect::<Vec<_>>(), [8.0]);
    }
    assert_eq!(last(&told), cluster.rows().await);
    cluster.stop().await;
}

#[tokio::test]
async fn two_assignments_that_change_places_again_and_again_hold_up_nobody() {
    let mut cluster = Cluster::start().await;
    let ana = cluster.admin(0);
    let projects = [ana.project("north").await, ana.project("north").await];
    let employees = [ana.employee("north", 40.0).await, ana.employee("north", 40.0).await];
    let mut writers = JoinSet::new();
    // Each has a week of its own, so that they meet only in the rows that they lock.
    for (writer, week) in WEEKS.into_iter().enumerate() {
        let (ana, projects, employees) = (cluster.admin(writer), projects.clone(), employees.clone());
        writers.spawn(async move {
            let place = |turn: usize| {
                let place = (turn + writer) % 2;
                json!({ "employeeId": employees[place], "projectId": projects[place], "week": week })
            };
            let Value::Object(mut first) = place(0) else { panic!("an object") };
            first.insert("hours".to_owned(), json!(8));
            let path = format!("/v1/assignments/{}", ana.make("/v1/assignments", Value::Object(first)).await);
            for turn in 1..=40 {
                let (status, answer) = ana.send(Method::PATCH, &path, place(turn)).await;
                assert_eq!(status, StatusCode::OK, "{answer}");
            }
        });
    }
    writers.join_all().await;
    assert_eq!(last(&cluster.told().await), cluster.rows().await);
    cluster.stop().await;
}

#[tokio::test]
async fn a_project_that_is_deleted_while_it_is_planned_for_leaves_nothing_behind() {
    let mut cluster = Cluster::start().await;
    let ana = cluster.admin(0);
    let other = ana.project("north").await;
    let employees = [ana.employee("north", 40.0).await, ana.employee("north", 40.0).await];
    for _ in 0..5 {
        let project = ana.project("north").await;
        let mut writers = JoinSet::new();
        for (writer, employee) in employees.iter().cycle().take(8).enumerate() {
            let (ana, employee, elsewhere) =
                (cluster.admin(writer), employee.clone(), employees[(writer + 1) % 2].clone());
            let (project, other, week) = (project.clone(), other.clone(), format!("2131-W{:02}", writer + 1));
            writers.spawn(async move {
                let body = json!({ "employeeId": employee, "projectId": project, "week": week, "hours": 8 });
                let (status, made) = ana.send(Method::POST, "/v1/assignments", body).await;
                // The project may be gone by now, and the assignment with it.
                assert!([201, 422].contains(&status.as_u16()), "{made}");
                let Some(id) = made["id"].as_str() else { return };
                let path = format!("/v1/assignments/{id}");
                let (status, answer) = ana.send(Method::PATCH, &path, json!({ "employeeId": elsewhere })).await;
                assert!([200, 404].contains(&status.as_u16()), "{answer}");
                if writer % 4 == 0 {
                    let (status, answer) = ana.send(Method::PATCH, &path, json!({ "projectId": other })).await;
                    assert!([200, 404, 409].contains(&status.as_u16()), "{answer}");
                }
            });
        }
        let (status, answer) =
            cluster.admin(1).send(Method::DELETE, &format!("/v1/projects/{project}"), Value::Null).await;
        assert_eq!(status, StatusCode::NO_CONTENT, "{answer}");
        writers.join_all().await;
        let left: i64 = sqlx::query_scalar("select count(*) from crewcast.assignments where project_id = $1::uuid")
            .bind(&project)
            .fetch_one(&mut cluster.conn)
            .await
            .unwrap();
        assert_eq!(left, 0);
        assert_eq!(last(&cluster.told().await), cluster.rows().await);
    }
    cluster.stop().await;
}
