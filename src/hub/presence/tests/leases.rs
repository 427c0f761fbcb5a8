use std::time::Duration;

use tokio::time::Instant;

use crate::{
    hub::presence::leases::{Beat, Findings, Follow, Leases},
    ids::NodeKey,
};

const SECOND: Duration = Duration::from_secs(1);
const LEASE: u32 = 10;

/// Looks every second.
struct Stage {
    leases: Leases,
    now: Instant,
    node: NodeKey,
}

impl Stage {
    fn new() -> Self {
        let leases = Leases::new(SECOND * LEASE, SECOND, SECOND * 30);
        Self { leases, now: Instant::now(), node: NodeKey::random() }
    }

    /// What a look finds after a second, in which the node got to this beat and this batch.
    fn look(&mut self, beat: i64, batch: i64) -> Findings {
        self.look_at(&[self.row(beat, batch)])
    }

    fn row(&self, beat: i64, batch: i64) -> Beat {
        Beat { node: self.node, beat, batch, ended: false, age: Duration::ZERO }
    }

    fn look_at(&mut self, rows: &[Beat]) -> Findings {
        self.now += SECOND;
        let findings = self.leases.looked(rows, self.now);
        for (node, _) in &findings.read {
            let batch = rows.iter().find(|row| row.node == *node).unwrap().batch;
            self.leases.followed(*node, batch, self.now);
        }
        findings
    }

    fn reads(&self, follow: Follow) -> Findings {
        Findings { read: vec![(self.node, follow)], dead: vec![] }
    }

    fn is_dead(&self) -> Findings {
        Findings { read: vec![], dead: vec![self.node] }
    }
}

#[test]
fn a_node_is_read_as_a_whole_first_and_then_what_is_new() {
    let mut stage = Stage::new();
    assert_eq!(stage.look(1, 7), stage.reads(Follow::Whole));
    assert_eq!(stage.look(2, 7), Findings::default());
    assert_eq!(stage.look(2, 9), stage.reads(Follow::Since(7)));
    stage.now += SECOND * 60;
    assert_eq!(stage.look(3, 9), stage.reads(Follow::Whole), "what has been deleted meanwhile?");
}

#[test]
fn a_node_that_stands_still_for_a_lease_is_dead_once() {
    let mut stage = Stage::new();
    stage.look(1, 1);
    for _ in 1..LEASE {
        assert_eq!(stage.look(1, 1), Findings::default());
    }
    assert_eq!(stage.look(1, 1), stage.is_dead());
    assert_eq!(stage.leases.alive(), 0);
    for _ in 0..LEASE {
        assert_eq!(stage.look(1, 1), Findings::default());
    }
    assert_eq!(stage.look(2, 1), stage.reads(Follow::Whole), "it was only away, and all of it was dropped");
    assert_eq!(stage.leases.alive(), 1);
}

#[test]
fn each_beat_begins_the_lease_anew() {
    let mut stage = Stage::new();
    for beat in 1..10 {
        for _ in 1..LEASE {
            assert_eq!(stage.look(beat, 0).dead, []);
        }
    }
}

#[test]
fn time_in_which_we_could_not_look_does_not_count() {
    let mut stage = Stage::new();
    stage.look(1, 1);
    for _ in 0..5 {
        stage.leases.failed();
        stage.now += SECOND * 60;
        assert_eq!(stage.look(1, 1).dead, []);
    }
    // A look that takes a minute has not looked for a minute.
    stage.now += SECOND * 60;
    assert_eq!(stage.look(1, 1).dead, []);
    for _ in 3..LEASE {
        assert_eq!(stage.look(1, 1).dead, []);
    }
    assert_eq!(stage.look(1, 1), stage.is_dead());
}

#[test]
fn a_table_that_was_emptied_costs_nobody_anything_for_a_lease() {
    let mut stage = Stage::new();
    stage.look(1, 5);
    for _ in 1..LEASE {
        assert_eq!(stage.look_at(&[]), Findings::default());
    }
    assert_eq!(stage.look(2, 6), stage.reads(Follow::Since(5)), "it wrote everything again");
    for _ in 1..LEASE {
        assert_eq!(stage.look_at(&[]), Findings::default());
    }
    assert_eq!(stage.look_at(&[]), stage.is_dead());
    assert_eq!(stage.look(2, 6), stage.reads(Follow::Whole), "then nothing of it is kept");
}

#[test]
fn a_node_that_said_good_bye_is_never_dead() {
    let mut stage = Stage::new();
    let rows = [Beat { ended: true, age: SECOND * 60, ..stage.row(3, 2) }];
    assert_eq!(stage.look_at(&rows), stage.reads(Follow::Whole));
    for _ in 0..3 * LEASE {
        assert_eq!(stage.look_at(&rows), Findings::default());
    }
    assert_eq!(stage.look_at(&[]), Findings::default());
}

#[test]
fn a_node_that_was_silent_before_it_is_seen_has_the_rest_of_its_lease() {
    let mut stage = Stage::new();
    // Whoever has looked before is no different.
    stage.look_at(&[]);
    let rows = [Beat { age: SECOND * (LEASE - 3), ..stage.row(1, 1) }];
    assert_eq!(stage.look_at(&rows), stage.reads(Follow::Whole));
    for _ in 1..3 {
        assert_eq!(stage.look_at(&rows), Findings::default());
    }
    assert_eq!(stage.look_at(&rows), stage.is_dead());
}

#[test]
fn a_node_that_died_before_it_is_seen_is_not_read_until_it_beats() {
    let mut stage = Stage::new();
    stage.leases.failed();
    let rows = [Beat { age: SECOND * LEASE, ..stage.row(1, 1) }];
    for _ in 0..2 * LEASE {
        assert_eq!(stage.look_at(&rows), Findings::default(), "nobody was shown who could leave");
    }
    assert_eq!(stage.leases.alive(), 0);
    assert_eq!(stage.look(2, 1), stage.reads(Follow::Whole), "all waited for Postgres");
    assert_eq!(stage.leases.alive(), 1);
}

#[test]
fn a_node_that_is_known_is_not_dead_because_postgres_was_away_from_all() {
    let mut stage = Stage::new();
    stage.look(1, 1);
    for beat in 2..4 {
        // It beat once more before, and did not get to it since.
        stage.leases.failed();
        stage.now += SECOND * 60;
        let rows = [Beat { age: SECOND * 60, ..stage.row(beat, 1) }];
        for _ in 0..LEASE {
            assert_eq!(stage.look_at(&rows).dead, []);
        }
    }
}
