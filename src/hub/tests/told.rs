//! A stream that is told things while its client does not read, or while others lose rights.

use std::{
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use super::{
    super::{
        NotJoined, Opening, Refusal, Refused, Renewal, Session, Wish,
        change::{Catching, Missed},
        frames::Reset,
        past::Chapter,
        start::{Past, Source, Then},
    },
    node::{DB, Node, Sizes},
    stream::Log,
    *,
};
use crate::{
    error::Code,
    sse::{Frame, Parser},
};

fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits for something"),
    }
}

fn node(log: &Log) -> Node {
    Node::new(Sizes::AMPLE, log.cluster.now(), Snapshot::empty())
}

/// A stream in room `a` whose credentials are good for an hour.
fn open(hub: &Arc<Hub>) -> Session {
    let _inside = DB.0.enter();
    open_here(hub)
}

fn open_here(hub: &Arc<Hub>) -> Session {
    let opening = Opening {
        stream_id: NodeKey::random().stream(),
        holder: Arc::new(Ana),
        rooms: vec!["a".to_owned()],
        judged: hub.rights(),
        refused: Vec::new(),
        types: TypeFilter::default(),
        last_event_id: None,
        expires_at: OffsetDateTime::now_utc() + HOUR,
    };
    now(Session::open(hub, opening)).unwrap()
}

const HOUR: Duration = Duration::from_hours(1);

fn wish(hub: &Hub, session: &Session, room: &str) -> Wish {
    let holder = hub.mailbox(session.id()).unwrap().holder();
    let (refused, leaving) = (Vec::new(), Vec::new());
    Wish { rooms: vec![room.to_owned()], refused, after: None, leaving, rooms_max: 1000, holder, judged: hub.rights() }
}

fn renewal(hub: &Hub, session: &Session, lost: &[&str]) -> Renewal {
    let lost = lost.iter().map(|room| Refused { room: (*room).to_owned(), reason: Refusal::Revoked }).collect();
    let rooms = hub.mailbox(session.id()).unwrap().rooms();
    Renewal { holder: Arc::new(Ana), expires_at: OffsetDateTime::now_utc() + HOUR, rooms, lost, judged: hub.rights() }
}

/// All that the stream has to say now.
fn read(session: &mut Session) -> Vec<Frame> {
    let (mut parser, mut frames) = (Parser::default(), Vec::new());
    while let Poll::Ready(Some(chunk)) = session.next(&mut Context::from_waker(Waker::noop())) {
        frames.extend(parser.push(&chunk));
    }
    frames
}

fn kinds(frames: &[Frame]) -> Vec<&str> {
    frames.iter().map(|frame| frame.event.as_str()).collect()
}

#[test]
fn a_client_that_does_not_read_joins_so_often_and_no_more() {
    let node = node(&Log::new(vec![1]));
    let (hub, mut session) = (&node.hub, open(&node.hub));
    for nth in 0..16 {
        now(hub.join(session.id(), wish(hub, &session, &format!("room{nth}")))).unwrap();
    }
    let refused = now(hub.join(session.id(), wish(hub, &session, "one")));
    assert!(matches!(refused, Err(NotJoined::Failed(error)) if error.code() == Code::Overloaded));
    let _inside = DB.0.enter();
    assert_eq!(kinds(&read(&mut session)).len(), 1 + 16, "it is told of each once it reads");
    now(hub.join(session.id(), wish(hub, &session, "one"))).unwrap();
}

#[test]
fn what_was_judged_before_rights_were_taken_there_is_judged_again() {
    let node = node(&Log::new(vec![1]));
    let (hub, session) = (&node.hub, open(&node.hub));
    let (join, other) = (wish(hub, &session, "b"), wish(hub, &session, "c"));
    let (renewal, judged) = (renewal(hub, &session, &["a"]), hub.rights());
    let taken = ["a".to_owned(), "b".to_owned()];
    // Ana's warden finds no room revocable: what is asked for here is that others are judged again.
    hub.state().rights.taken(Some(&taken));
    assert!(matches!(now(hub.join(session.id(), join)), Err(NotJoined::Stale)));
    assert!(matches!(hub.renew(session.id(), renewal), Err(NotJoined::Stale)));
    assert_eq!(hub.mailbox(session.id()).unwrap().rooms(), ["a"], "nothing of it was done");
    let rooms = ["b".to_owned()];
    let claim = || Claim {
        stream: NodeKey::random().stream(),
        holder: Arc::new(Ana),
        rooms: &rooms,
        types: TypeFilter::default(),
        judged,
    };
    assert_eq!(Seat::take(hub, claim()).unwrap_err(), seat::Full::Stale);
    now(hub.join(session.id(), other)).unwrap();
}

#[test]
fn what_was_judged_by_other_credentials_is_judged_again() {
    let node = node(&Log::new(vec![1]));
    let (hub, mut session) = (&node.hub, open(&node.hub));
    let by_the_old = wish(hub, &session, "b");
    hub.renew(session.id(), renewal(hub, &session, &["a"])).unwrap();
    assert!(hub.mailbox(session.id()).unwrap().rooms().is_empty(), "credentials and rooms change at once");
    assert!(matches!(now(hub.join(session.id(), by_the_old)), Err(NotJoined::Stale)));
    // Somebody joined while the rooms were judged: they are others now.
    let before = renewal(hub, &session, &[]);
    now(hub.join(session.id(), wish(hub, &session, "b"))).unwrap();
    assert!(matches!(hub.renew(session.id(), before), Err(NotJoined::Stale)));
    let _inside = DB.0.enter();
    assert_eq!(kinds(&read(&mut session)), ["stream:open", "stream:rooms", "stream:rooms"]);
}

#[tokio::test(start_paused = true)]
async fn what_came_after_the_credentials_ended_is_not_for_a_client_that_was_slow() {
    let mut log = Log::new(vec![1]);
    let mut node = node(&log);
    let (mut session, mut renewed) = (open_here(&node.hub), open_here(&node.hub));
    for session in [&mut session, &mut renewed] {
        assert_eq!(kinds(&read(session)), ["stream:open"]);
    }
    let mut longer = renewal(&node.hub, &renewed, &[]);
    longer.expires_at += 2 * HOUR;
    node.hub.renew(renewed.id(), longer).unwrap();
    tokio::time::sleep(HOUR + Duration::from_secs(1)).await;
    let (from, id) = (node.last.clone(), log.cluster.begin());
    log.cluster.publish(id, 1);
    log.cluster.commit(id);
    let to = log.cluster.now();
    node.read(&to, &Snapshot::empty(), log.read(&from, &to));
    node.finish();
    assert_eq!(kinds(&read(&mut session)), ["stream:closing"]);
    let frames = read(&mut renewed);
    assert!(!kinds(&frames).contains(&"stream:closing"), "{frames:?}");
    assert_eq!(frames.iter().filter(|frame| frame.data.starts_with(r#"{"n""#)).count(), 1);
}

#[test]
fn a_stream_that_begins_anew_while_it_catches_up_still_says_that_it_joined() {
    let log = Log::new(vec![1]);
    let mut node = node(&log);
    let hub = node.hub.clone();
    let mut session = open(&hub);
    let _inside = DB.0.enter();
    assert_eq!(kinds(&read(&mut session)), ["stream:open"]);
    now(hub.join(session.id(), wish(&hub, &session, "b"))).unwrap();
    // It stands where it had to reach the room's place first, and the log lets go of what lies between.
    let catching: Box<Catching> = hub.mailbox(session.id()).unwrap().overdue().unwrap();
    assert!(matches!(catching.missed, Missed::Ring(_)));
    let pages = Box::pin(tokio_stream::iter([Err(Reset::TooOld)])) as Pin<Box<_>>;
    let then = Then::Reach(catching);
    let past = Past { chapter: Chapter::default(), pages: Some((pages, None)), catching: None, then };
    session.go_on_from(Source::Past(Box::new(past)));
    assert!(read(&mut session).is_empty(), "it waits for the log");
    node.read(&log.cluster.now(), &Snapshot::empty(), Vec::new());
    node.finish();
    let frames = read(&mut session);
    assert_eq!(kinds(&frames), ["stream:reset", "stream:rooms"]);
    assert!(frames[1].data.contains(r#""joined":["b"]"#), "{}", frames[1].data);
}
