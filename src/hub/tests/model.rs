//! Two nodes with one log, whose transactions commit in any order, and clients that go from one node to the other with
//! every position that there is. Whatever happens at whatever moment, the id of each frame claims exactly the events that
//! its client has; none comes twice, none comes after one that was made of it, and in the end nobody has missed any.

use std::cell::RefCell;

use proptest::{
    prelude::*,
    sample::Index,
    test_runner::{Config, TestRunner},
};

use super::{
    node::{Node, Sizes},
    stream::{Client, Gone, Log, Stream, Way, Ways},
    *,
};
use crate::log::{
    Reading,
    position::tests::{cluster, epoch},
};

/// A step in the life of the nodes and their clients. An `Index` picks among what there is at that moment.
#[derive(Debug, Clone)]
enum Step {
    Log(cluster::Step),
    /// The pump of a node looks at the log, if it has sent what it read.
    Look(usize),
    /// The pump goes on.
    Act(usize, usize),
    Route(usize),
    /// The pump goes on, and the router with it.
    Go(usize, usize),
    /// The pump gives up the read that it is in.
    Jump(usize),
    /// A client comes for the first time, without a position.
    Begin(usize, Wish),
    /// A client comes with a position that somebody had or could have.
    Resume(usize, Index, Wish),
    /// A client comes with any position inside any read.
    ResumeInside(usize, Index, Index, Wish),
    /// One client for each of the newest positions.
    ResumeAll(usize, Wish),
    Turn(Index, usize),
    Beat(Index),
    /// A client's connection is cut, and it comes back, maybe elsewhere.
    Cut(Index, usize),
}

/// What a client asks for.
#[derive(Debug, Clone)]
struct Wish {
    rooms: u8,
    types: &'static str,
    most: Option<i64>,
}

fn any_wish() -> impl Strategy<Value = Wish> {
    let types = prop_oneof![4 => Just(""), 1 => Just("project"), 1 => Just("alert")];
    let most = prop_oneof![6 => Just(None), 1 => (0_i64..8).prop_map(Some)];
    (1_u8..8, types, most).prop_map(|(rooms, types, most)| Wish { rooms, types, most })
}

fn any_step() -> impl Strategy<Value = Step> {
    let node = || 0_usize..2;
    prop_oneof![
        3 => cluster::any_step().prop_map(Step::Log),
        30 => cluster::any_step().prop_filter("of what is common", is_common).prop_map(Step::Log),
        6 => node().prop_map(Step::Look),
        4 => (node(), 1_usize..6).prop_map(|(node, acts)| Step::Act(node, acts)),
        4 => node().prop_map(Step::Route),
        8 => (node(), 1_usize..8).prop_map(|(node, acts)| Step::Go(node, acts)),
        1 => node().prop_map(Step::Jump),
        2 => (node(), any_wish()).prop_map(|(node, wish)| Step::Begin(node, wish)),
        3 => (node(), any::<Index>(), any_wish()).prop_map(|(node, at, wish)| Step::Resume(node, at, wish)),
        4 => (node(), any::<Index>(), any::<Index>(), any_wish())
            .prop_map(|(node, read, k, wish)| Step::ResumeInside(node, read, k, wish)),
        1 => (node(), any_wish()).prop_map(|(node, wish)| Step::ResumeAll(node, wish)),
        8 => (any::<Index>(), 1_usize..5).prop_map(|(stream, most)| Step::Turn(stream, most)),
        4 => any::<Index>().prop_map(Step::Beat),
        4 => (any::<Index>(), node()).prop_map(|(stream, node)| Step::Cut(stream, node)),
    ]
}

fn any_sizes() -> impl Strategy<Value = Sizes> {
    let ring = prop_oneof![1 => Just(0), 3 => 500_usize..6000, 3 => Just(1 << 20)];
    let queue = prop_oneof![1 => Just(1), 2 => 200_usize..1000, 4 => Just(1 << 20)];
    let channel = prop_oneof![1 => Just(2), 1 => Just(8), 3 => Just(256)];
    (ring, queue, channel).prop_map(|(ring_bytes, queue_bytes, channel_events)| Sizes {
        ring_bytes,
        queue_bytes,
        channel_events,
    })
}

fn is_common(step: &cluster::Step) -> bool {
    !matches!(step, cluster::Step::Crash(_) | cluster::Step::Retain(_) | cluster::Step::Rollback(_))
}

struct World {
    log: Log,
    nodes: [Node; 2],
    /// Positions that somebody had.
    known: Vec<Position>,
    /// The ends of each read that a node made, of each between two moments at which somebody read the state, and more.
    reads: Vec<(Snapshot, Snapshot)>,
    streams: Vec<Stream>,
    ways: Ways,
}

impl World {
    fn new(masks: Vec<u8>, sizes: [Sizes; 2]) -> Self {
        let log = Log::new(masks);
        let start = log.cluster.now();
        let nodes = sizes.map(|sizes| Node::new(sizes, start.clone(), Snapshot::empty()));
        let known = vec![Position::settled(epoch(), start)];
        Self { log, nodes, known, reads: Vec::new(), streams: Vec::new(), ways: Ways::new() }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Log(step) => self.log_step(step),
            Step::Look(node) => self.look(node),
            Step::Act(node, acts) => (0..acts).for_each(|_| self.nodes[node].act()),
            Step::Route(node) => self.nodes[node].route(),
            Step::Go(node, acts) => self.nodes[node].go(acts),
            Step::Jump(node) if self.nodes[node].is_inside_a_read() => {
                let (now, floor) = (self.log.cluster.now(), self.log.cluster.floor.clone());
                self.nodes[node].jump(&now, &floor);
            }
            Step::Jump(_) => {}
            Step::Begin(node, wish) => {
                self.streams.push(Stream::begin(&self.nodes[node].hub, wish.rooms, wish.types));
            }
            Step::Resume(node, at, wish) => self.resume(node, at.get(&self.known).clone(), &wish),
            Step::ResumeInside(node, read, k, wish) => {
                if !self.reads.is_empty() {
                    let at = self.inside(read, k);
                    self.resume(node, at, &wish);
                }
            }
            Step::ResumeAll(node, wish) => {
                let newest: Vec<Position> = self.known.iter().rev().take(8).cloned().collect();
                newest.into_iter().for_each(|at| self.resume(node, at, &wish));
            }
            Step::Turn(stream, most) => self.with_stream(stream, |world, mut stream| {
                let went = stream.turn(most, &world.log, &mut world.ways);
                world.known.push(stream.client.at.clone());
                went.map(|_| stream)
            }),
            Step::Beat(stream) => self.with_stream(stream, |world, mut stream| {
                stream.beat(&world.log, &mut world.ways);
                world.known.push(stream.client.at.clone());
                Ok(stream)
            }),
            Step::Cut(stream, node) => self.with_stream(stream, |world, stream| {
                let client = stream.client.clone();
                drop(stream);
                world.open(node, client, None)
            }),
        }
    }

    fn log_step(&mut self, step: cluster::Step) {
        let cuts = self.log.cluster.cuts.len();
        self.log.cluster.step(step);
        self.log.note_commits();
        if self.log.cluster.cuts.len() > cuts {
            let [before, now] = [cuts - 1, cuts].map(|cut| self.log.cluster.cuts[cut].seen.clone());
            self.known.push(Position::settled(epoch(), now.clone()));
            self.reads.extend((before != now).then_some((before, now)));
        }
    }

    fn look(&mut self, node: usize) {
        let Self { log, nodes, .. } = self;
        let node = &mut nodes[node];
        if !node.acts.is_empty() {
            return;
        }
        let (from, to, floor) = (node.last.clone(), log.cluster.now(), log.cluster.floor.clone());
        if from != to && !from.includes(&floor) {
            return node.jump(&to, &floor);
        }
        node.read(&to, &floor, log.read(&from, &to));
        self.known.push(Position::settled(epoch(), to.clone()));
        self.reads.extend((from != to).then_some((from, to)));
    }

    /// A position inside a read, or across two.
    fn inside(&self, read: Index, k: Index) -> Position {
        let (from, to) = read.get(&self.reads).clone();
        let seqs = usize::try_from(self.log.cluster.next_seq).unwrap();
        Reading::new(epoch(), from, to).unwrap().at(i64::try_from(k.index(seqs)).unwrap())
    }

    fn resume(&mut self, node: usize, at: Position, wish: &Wish) {
        let client = Client::new(wish.rooms, wish.types, at);
        if let Ok(stream) = self.open(node, client, wish.most) {
            self.streams.push(stream);
        }
    }

    fn open(&mut self, node: usize, client: Client, most: Option<i64>) -> Result<Stream, Gone> {
        if !self.nodes[node].hub.reaches(&client.at) {
            // The router catches up with the beginning of a read that begins from now on.
            self.nodes[node].finish();
            self.look(node);
            self.nodes[node].go(2);
        }
        Stream::resume(&self.nodes[node].hub, client, most, &self.log, &mut self.ways)
    }

    fn with_stream(&mut self, which: Index, then: impl FnOnce(&mut Self, Stream) -> Result<Stream, Gone>) {
        if !self.streams.is_empty() {
            let stream = self.streams.swap_remove(which.index(self.streams.len()));
            if let Ok(stream) = then(self, stream) {
                self.streams.push(stream);
            }
        }
    }

    /// Everything comes to rest: every client has all of the log.
    fn rest(mut self) -> Ways {
        for node in 0..self.nodes.len() {
            self.nodes[node].finish();
            self.look(node);
            self.nodes[node].finish();
        }
        let end = Position::settled(epoch(), self.log.cluster.now());
        for mut stream in self.streams {
            if stream.turn(usize::MAX, &self.log, &mut self.ways).is_ok() {
                stream.beat(&self.log, &mut self.ways);
                assert_eq!(stream.client.at, end);
            }
        }
        self.ways
    }
}

#[test]
fn each_id_claims_exactly_what_its_client_has_whenever_it_comes_and_wherever_it_goes() {
    let ways = RefCell::new(Ways::new());
    let masks = prop::collection::vec(1_u8..8, 1..12);
    let worlds = (masks, [any_sizes(), any_sizes()], prop::collection::vec(any_step(), 0..300));
    let lives = TestRunner::new(Config::with_cases(256)).run(&worlds, |(masks, sizes, steps)| {
        let mut world = World::new(masks, sizes);
        steps.into_iter().for_each(|step| world.step(step));
        for (way, times) in world.rest() {
            *ways.borrow_mut().entry(way).or_default() += times;
        }
        Ok(())
    });
    if let Err(failure) = lives {
        panic!("{failure}");
    }
    for way in Way::ALL {
        assert!(ways.borrow().contains_key(&way), "nobody went this way: {way:?}");
    }
}
