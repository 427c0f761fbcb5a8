use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    hub::presence::{
        facts::{Editing, Facts, Status, Update, Who},
        user::User,
        view::{News, SETTLE, View},
    },
    ids::NodeKey,
};

const GRACE: Duration = Duration::from_secs(5);
const SECOND: Duration = Duration::from_secs(1);

/// A view, and a stream for each name.
struct Stage {
    view: View,
    node: NodeKey,
    now: Instant,
    streams: BTreeMap<&'static str, Uuid>,
    stamp: i64,
}

impl Stage {
    fn new(users_max: usize) -> Self {
        let (node, now) = (NodeKey::random(), Instant::now());
        Self { view: View::new(users_max), node, now, streams: BTreeMap::new(), stamp: 0 }
    }

    /// Opens a stream of this name, whose first letter is its user.
    fn open(&mut self, name: &'static str, rooms: &[&str], resumed: bool) -> Vec<String> {
        let stream = *self.streams.entry(name).or_insert_with(|| self.node.stream());
        let who = Who::new(&name[..1], None, None);
        told(self.view.opened(stream, who, rooms, resumed, self.now))
    }

    fn close(&mut self, name: &str, grace: Duration) -> Vec<String> {
        told(self.view.closed(self.streams[name], grace, self.now))
    }

    fn report(&mut self, name: &str, update: Update) -> Vec<String> {
        self.stamp += 1;
        told(self.view.reported(self.streams[name], update, self.stamp, self.now))
    }

    fn is(&mut self, name: &str, status: Status) -> Vec<String> {
        self.report(name, Update { status: Some(status), ..Update::default() })
    }

    fn pass(&mut self, time: Duration) -> Vec<String> {
        self.now += time;
        told(self.view.passed(self.now))
    }

    /// Long enough for what nobody says any more to be shown no more.
    fn settle(&mut self) -> Vec<String> {
        self.pass(SETTLE)
    }

    fn snapshot(&mut self, room: &str) -> (usize, Vec<String>) {
        let snapshot = self.view.snapshot(room, self.now);
        (snapshot.total, snapshot.users.iter().map(|user| user.user_id.to_string()).collect())
    }
}

fn views(viewing: &str) -> Update {
    Update { viewing: Some(Some(viewing.into())), ..Update::default() }
}

fn edits(room: &str, field: &str) -> Update {
    Update { editing: Some(Some(Editing { room: room.into(), field: field.into() })), ..Update::default() }
}

/// News in one line each: room, user, status, what is viewed, what is edited.
fn told(news: Vec<News>) -> Vec<String> {
    let line = |news| match news {
        News::Changed(shown) => {
            let editing = shown.editing.map(|editing| format!(" edits {}", editing.field)).unwrap_or_default();
            let viewing = shown.viewing.map(|viewing| format!(" views {viewing}")).unwrap_or_default();
            let status = format!("{:?}", shown.status).to_lowercase();
            format!("{}: {} {status}{viewing}{editing}", shown.room, shown.user_id)
        }
        News::Counted(room, total) => format!("{room}: {total}"),
        News::Anew(snapshot) => format!("{}: anew {}", snapshot.room, snapshot.total),
    };
    news.into_iter().map(line).collect()
}

const PROJECT: &str = "project:0192f0c1-2b7a-7cc0-8a2e-0123456789ab";

#[test]
fn three_tabs_are_one_user_who_leaves_with_the_last() {
    let mut stage = Stage::new(10);
    assert_eq!(stage.open("a1", &["company"], false), ["company: a online"]);
    assert_eq!(stage.open("a2", &["company"], false), [""; 0]);
    assert_eq!(stage.open("a3", &["company"], false), [""; 0]);
    assert_eq!(stage.snapshot("company"), (1, vec!["a".to_owned()]));
    assert_eq!(stage.close("a1", Duration::ZERO), [""; 0]);
    assert_eq!(stage.close("a2", GRACE), [""; 0]);
    assert_eq!(stage.pass(GRACE), [""; 0]);
    assert_eq!(stage.close("a3", Duration::ZERO), [""; 0]);
    assert_eq!(stage.snapshot("company"), (1, vec!["a".to_owned()]));
    assert_eq!(stage.settle(), ["company: a offline"]);
    assert_eq!(stage.snapshot("company"), (0, vec![]));
    assert_eq!(stage.view.len(), (0, 0), "nothing is left of them");
}

#[test]
fn a_reconnect_inside_the_grace_shows_nothing_and_a_late_one_a_leave() {
    let mut stage = Stage::new(10);
    stage.open("a1", &["company"], false);
    assert_eq!(stage.close("a1", GRACE), [""; 0]);
    assert_eq!(stage.view.next_due(), Some(stage.now + GRACE));
    assert_eq!(stage.pass(GRACE - SECOND), [""; 0]);
    assert_eq!(stage.open("a2", &["company"], true), [""; 0]);
    assert_eq!(stage.pass(GRACE), [""; 0]);
    stage.close("a2", GRACE);
    assert_eq!(stage.pass(GRACE), [""; 0]);
    assert_eq!(stage.settle(), ["company: a offline"]);
    assert_eq!(stage.view.next_due(), None);
}

#[test]
fn a_user_is_online_while_any_stream_is_and_idle_when_all_are() {
    let mut stage = Stage::new(10);
    stage.open("a1", &["company"], false);
    stage.open("a2", &["company"], false);
    assert_eq!(stage.is("a1", Status::Idle), [""; 0]);
    assert_eq!(stage.is("a2", Status::Idle), [""; 0]);
    assert_eq!(stage.settle(), ["company: a idle"]);
    assert_eq!(stage.is("a2", Status::Idle), [""; 0], "nothing is told twice");
    assert_eq!(stage.settle(), [""; 0]);
    assert_eq!(stage.is("a1", Status::Online), ["company: a online"]);
}

#[test]
fn an_idle_laptop_that_connects_again_stays_idle_and_a_new_tab_does_not() {
    let mut stage = Stage::new(10);
    stage.open("a1", &["company"], true);
    stage.is("a1", Status::Idle);
    stage.settle();
    stage.close("a1", GRACE);
    assert_eq!(stage.open("a2", &["company"], true), [""; 0]);
    assert_eq!(stage.pass(GRACE), [""; 0]);
    assert_eq!(stage.open("a3", &["company"], false), ["company: a online"]);
    assert_eq!(stage.open("b1", &["company"], true), ["company: b online"], "nobody was there to be like");
}

#[test]
fn a_room_learns_nothing_of_another_room() {
    let mut stage = Stage::new(10);
    stage.open("a1", &["company", PROJECT], false);
    assert_eq!(stage.report("a1", views(PROJECT)), [format!("{PROJECT}: a online views {PROJECT}")]);
    assert_eq!(stage.report("a1", edits(PROJECT, "name")), [format!("{PROJECT}: a online views {PROJECT} edits name")]);
    let page = ["company: a online views /plan".to_owned(), format!("{PROJECT}: a online views /plan edits name")];
    assert_eq!(stage.report("a1", views("/plan")), page);
    assert_eq!(stage.report("a1", views("user:b")).len(), 2, "a room without presence is shown nowhere");
    let snapshot = stage.view.snapshot("company", stage.now);
    assert_eq!((&snapshot.users[0].viewing, &snapshot.users[0].editing), (&None, &None));
}

#[test]
fn what_is_shown_is_of_the_stream_that_reported_last_of_those_that_are_there() {
    let mut stage = Stage::new(10);
    stage.open("a1", &["company"], false);
    stage.open("a2", &["company"], false);
    stage.report("a1", views("/one"));
    assert_eq!(stage.report("a2", views("/two")), ["company: a online views /two"]);
    assert_eq!(stage.close("a2", Duration::ZERO), ["company: a online views /one"]);
    let nothing = Update { viewing: Some(None), ..Update::default() };
    assert_eq!(stage.report("a1", nothing), ["company: a online"]);
}

#[test]
fn a_report_that_arrives_late_is_not_the_last() {
    let mut stage = Stage::new(10);
    stage.open("a1", &["company"], false);
    stage.open("a2", &["company"], false);
    stage.stamp = 10;
    stage.report("a1", views("/new"));
    stage.stamp = 5;
    assert_eq!(stage.report("a2", views("/old")), [""; 0]);
}

#[test]
fn what_an_update_leaves_out_stays() {
    let mut stage = Stage::new(10);
    stage.open("a1", &["company"], false);
    stage.report("a1", views("/plan"));
    stage.is("a1", Status::Idle);
    assert_eq!(stage.settle(), ["company: a idle views /plan"]);
    assert_eq!(stage.report("a1", edits("company", "motto")), ["company: a idle views /plan edits motto"]);
}

#[test]
fn leaving_a_room_shows_when_no_other_stream_has_been_in_it_for_a_moment() {
    let mut stage = Stage::new(10);
    stage.open("a1", &["company", "division:x"], false);
    stage.open("a2", &["company"], false);
    let (one, two) = (stage.streams["a1"], stage.streams["a2"]);
    assert_eq!(told(stage.view.moved(one, &["company"], stage.now)), [""; 0]);
    assert_eq!(stage.settle(), ["division:x: a offline"]);
    assert_eq!(told(stage.view.moved(one, &[], stage.now)), [""; 0]);
    assert_eq!(told(stage.view.moved(two, &["division:x"], stage.now)), ["division:x: a online"]);
    assert_eq!(stage.settle(), ["company: a offline"]);
}

#[test]
fn a_tab_that_idles_before_another_nodes_is_known_shows_nothing() {
    let mut stage = Stage::new(10);
    stage.open("a1", &["company"], false);
    assert_eq!(stage.is("a1", Status::Idle), [""; 0]);
    stage.now += SETTLE - SECOND / 10;
    assert_eq!(stage.open("a2", &["company"], false), [""; 0]);
    assert_eq!(stage.pass(2 * SETTLE), [""; 0]);
    stage.close("a1", Duration::ZERO);
    stage.close("a2", Duration::ZERO);
    stage.now += SETTLE - SECOND / 10;
    assert_eq!(stage.open("a3", &["company"], false), [""; 0]);
    assert_eq!(stage.pass(2 * SETTLE), [""; 0]);
}

#[test]
fn rooms_of_people_and_topics_have_no_presence() {
    let mut stage = Stage::new(10);
    assert_eq!(stage.open("a1", &["user:a", "topic:x", "company"], false), ["company: a online"]);
    assert_eq!(stage.view.len(), (1, 1));
}

#[test]
fn a_nodes_streams_go_together() {
    let mut stage = Stage::new(10);
    stage.open("a1", &["company"], false);
    stage.open("a2", &["company"], false);
    stage.open("b1", &["company"], false);
    let dead = std::mem::replace(&mut stage.node, NodeKey::random());
    stage.open("b2", &["company"], false);
    stage.report("a1", views("/x"));
    assert_eq!(told(stage.view.kept(dead, &[].into(), stage.now)), ["company: a offline"]);
}

#[test]
fn those_who_edit_come_first_then_those_who_view() {
    let mut stage = Stage::new(3);
    for name in ["e", "d", "c", "b", "a"] {
        stage.open(name, &["company"], false);
    }
    stage.report("d", views("/x"));
    stage.report("e", edits("company", "motto"));
    stage.pass(SECOND);
    assert_eq!(stage.snapshot("company"), (5, ["e", "d", "a"].map(str::to_owned).to_vec()));
}

#[test]
fn a_large_room_is_told_counts_once_a_second_and_everything_when_it_is_small_again() {
    let mut stage = Stage::new(10);
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    for name in &names[..10] {
        assert_eq!(stage.open(name, &["company"], false).len(), 1);
    }
    assert_eq!(stage.open("k", &["company"], false), ["company: 11"]);
    assert_eq!(stage.open("l", &["company"], false), [""; 0]);
    assert_eq!(stage.is("l", Status::Idle), [""; 0]);
    assert_eq!(stage.pass(SECOND), ["company: 12"]);
    stage.close("l", Duration::ZERO);
    stage.open("l", &["company"], false);
    assert_eq!(stage.pass(SECOND), [""; 0], "the total is what it was");
    for name in &names[..2] {
        stage.close(name, Duration::ZERO);
    }
    assert_eq!(stage.settle(), ["company: 10"], "it has to shrink by a tenth");
    stage.close("c", Duration::ZERO);
    assert_eq!(stage.settle(), ["company: anew 9"]);
    stage.close("d", Duration::ZERO);
    assert_eq!(stage.settle(), ["company: d offline"]);
}

#[test]
fn whoever_got_an_old_snapshot_of_a_large_room_is_told_the_total() {
    let mut stage = Stage::new(2);
    for name in ["a", "b", "c"] {
        stage.open(name, &["company"], false);
    }
    assert_eq!(stage.pass(SECOND), [""; 0]);
    assert_eq!(stage.snapshot("company").0, 3);
    stage.open("d", &["company"], false);
    assert_eq!(stage.snapshot("company").0, 3, "made a moment ago");
    assert_eq!(stage.close("d", Duration::ZERO), [""; 0]);
    stage.now += SECOND / 2;
    stage.open("d", &["company"], false);
    assert_eq!(stage.snapshot("company").0, 3);
    assert_eq!(stage.pass(SECOND), ["company: 4"]);
    assert_eq!(stage.snapshot("company").0, 4, "another second, another snapshot");
    stage.open("e", &["company"], false);
    assert_eq!(stage.pass(SECOND), ["company: 5"]);
}

#[test]
fn ten_thousand_who_join_one_room_cost_little_each() {
    const USERS: usize = 10_000;
    let mut view = View::new(200);
    let (node, now) = (NodeKey::random(), Instant::now());
    let (mut told, mut snapshots) = (0, Vec::new());
    for nth in 0..USERS {
        let who = Who::new(&format!("user{nth}"), Some("Somebody Else"), None);
        told += view.opened(node.stream(), who, &["company"], false, now).len();
        snapshots.push(view.snapshot("company", now));
        snapshots.dedup_by(|a, b| Arc::ptr_eq(a, b));
    }
    assert_eq!(told, 201, "each until the room was large, then one count");
    assert_eq!(snapshots.len(), 201, "one for each until then, then one for all");
}

#[test]
fn a_row_that_is_read_again_says_anew_how_long_a_closed_stream_counts() {
    let mut stage = Stage::new(10);
    stage.open("a1", &["company"], false);
    stage.close("a1", GRACE);
    let stream = stage.streams["a1"];
    let longer = stage.view.facts(stream).map(|facts| Facts { ends: Some(stage.now + 2 * GRACE), ..facts.clone() });
    assert_eq!(told(stage.view.heard(vec![(stream, longer)], stage.now)), [""; 0]);
    assert_eq!(stage.pass(GRACE), [""; 0]);
    assert_eq!(stage.pass(GRACE), [""; 0]);
    assert_eq!(stage.settle(), ["company: a offline"]);
}

#[test]
fn a_user_with_one_stream_in_one_room_takes_less_than_400_bytes() {
    // A map grows by doubling: it is seven eighths to seven sixteenths full, say two thirds.
    let map = |entry: usize| entry * 3 / 2 + 2;
    let text = |bytes: usize| (16 + bytes).next_multiple_of(16);
    let shared = 16 + size_of::<Who>();
    let names = text(20) + 32;
    let streams = map(size_of::<(Uuid, Arc<str>)>()) + size_of::<(Uuid, Facts)>() + size_of::<Arc<str>>();
    let users = map(size_of::<(Arc<str>, User)>()) + map(size_of::<Arc<str>>());
    let bytes = shared + names + streams + users;
    assert!(bytes < 400, "{bytes}");
}
