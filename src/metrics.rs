//! Every metric of the service, declared once with its unit and meaning.
//!
//! Counters only go up. Gauges that can be looked up are set when somebody asks, and cost nothing between. Labels are
//! closed lists: no name that a client chose becomes one.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, text},
    metrics::{MetricType, TypedMetric as _, counter, gauge, histogram},
    registry::{Registry, Unit},
};

/// Counts up.
pub type Counter = counter::Counter<u64, AtomicU64>;
/// Goes up and down.
pub type Gauge = gauge::Gauge;

/// Counters that a label of a closed list tells apart. What was counted is the list: whoever shows all of them cannot leave
/// one out.
#[derive(Debug, Clone, Default)]
pub struct Counters(Arc<RwLock<BTreeMap<Label, Counter>>>);

/// A label's name and its value.
type Label = (&'static str, &'static str);

impl Counters {
    /// One more of these; how many there were before.
    pub fn count(&self, label: &'static str, value: &'static str) -> u64 {
        if let Some(counter) = self.read().get(&(label, value)) {
            return counter.inc();
        }
        let mut counters = self.0.write().unwrap_or_else(PoisonError::into_inner);
        counters.entry((label, value)).or_default().inc()
    }

    /// How many there were of each, by the label's value; what there was none of is not named.
    pub fn all(&self) -> BTreeMap<&'static str, u64> {
        self.read().iter().map(|((_, value), counter)| (*value, counter.get())).collect()
    }

    /// Each change is one call of the map: nothing is half done when a panic comes.
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Label, Counter>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EncodeMetric for Counters {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.read().iter().try_for_each(|(label, counter)| counter.encode(encoder.encode_family(&[*label])?))
    }

    fn metric_type(&self) -> MetricType {
        Counter::TYPE
    }
}

/// Seconds, in buckets from 100 µs to 100 s.
#[derive(Debug, Clone)]
pub struct Seconds(histogram::Histogram);

/// The upper bounds of the buckets of [`Seconds`].
const SECONDS: [f64; 14] = [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0, 100.0];

impl Default for Seconds {
    fn default() -> Self {
        Self(histogram::Histogram::new(SECONDS))
    }
}

impl Seconds {
    /// Takes one into account.
    pub fn observe(&self, duration: Duration) {
        self.0.observe(duration.as_secs_f64());
    }
}

impl EncodeMetric for Seconds {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.0.metric_type()
    }
}

macro_rules! metrics {
    ($($name:ident: $kind:ident $(in $unit:ident)? = $meaning:literal;)*) => {
        /// What the node counts and measures.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $(#[doc = $meaning] pub $name: $kind,)*
        }

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::with_prefix("crewcast");
                $(
                    let $name = $kind::default();
                    metrics!(@register registry $name $meaning $($unit)?);
                )*
                Self { registry, $($name,)* }
            }
        }
    };
    (@register $registry:ident $name:ident $meaning:literal) => {
        $registry.register(stringify!($name), $meaning, $name.clone());
    };
    (@register $registry:ident $name:ident $meaning:literal $unit:ident) => {
        $registry.register_with_unit(stringify!($name), $meaning, Unit::$unit, $name.clone());
    };
}

metrics! {
    connections: Gauge = "Connections open now";
    connections_max: Gauge = "Connections at most, by the limit of open files; more wait to be accepted";
    connections_accepted: Counter = "Connections accepted";
    connections_stalled: Counter = "Connections cut because their peer acknowledged not one byte of what waited for stall-timeout";
    requests: Counters = "Requests answered, by class of status";
    problems: Counters = "Requests answered with a problem, by its code";

    streams: Gauge = "Streams open now";
    streams_max: Gauge = "Streams at most; more are told to come back";
    streams_opened: Counter = "Streams opened";
    streams_closed: Counters = "Streams that ended, by reason; gone is the client's own leaving";
    streams_refused: Counters = "Streams refused because of what this node has already, by reason; limit is streams-per-user";
    come_backs: Counters = "Browsers that were told in a stream of one event to come back, by reason";
    rooms: Gauge = "Rooms that a stream of this node is in";
    queued_events: Gauge = "Events that wait in the streams' queues, each counted once a stream";
    queued: Gauge in Bytes = "What waits in the streams' queues; a frame that many wait for is counted for each";
    queue_longest: Gauge in Bytes = "The longest queue; queue-bytes bounds it";
    queue_overflows: Counter = "Times a stream's queue was full: it was dropped, and the stream reads history";

    ring_events: Gauge = "Recent events kept in memory";
    ring: Gauge in Bytes = "What the recent events take; ring-bytes bounds it";
    replays: Counters = "Times a stream read history, by where from: the ring or the log";
    replays_waiting: Gauge = "Streams that wait for their turn to read history from Postgres";
    replays_reading: Gauge = "Streams that read history from Postgres now";
    log_pages: Counter = "Pages of history read from Postgres";
    resets: Counters = "Times a stream was told that it cannot go on exactly, by reason";
    unreadable: Counters = "Times a row could not be read, by what it is; the rows beside it were";
    hub_lagged: Counter = "Times the hub fell behind the pump: every stream reads history";

    log_floor_age: Gauge in Seconds = "How long ago the log's floor was noted: whoever was away for less can resume; retention and retention-events say when it rises";
    log_events: Gauge = "Events of the log that can be resumed, up to the position noted last";
    log_events_max: Gauge = "Events that the log keeps if they are not too old; retention-events";
    log_overdue: Gauge = "Events below the floor that are not deleted yet";
    log_deleted: Counter = "Events that this node has deleted because the floor had passed them";
    log_batches: Counter = "Transactions in which it did";
    log_retention_idle: Gauge in Seconds = "How long ago a node last noted a position, raised the floor or deleted something";

    limited: Counters = "Requests refused because a limit of one minute was reached, by limit";
    limit_keys: Gauge = "Callers and addresses that limits are counted for";
    limit_keys_max: Gauge = "Callers and addresses at most; those that did nothing for longest are forgotten";
    limit_keys_forgotten: Counter = "Callers and addresses forgotten because there were too many";
    suspicions: Counters = "Requests that the security log is about, by kind; not each has a line";

    tickets_open: Gauge = "Tickets that have a stream on this node now";
    tickets_made: Counter = "Tickets made";
    tickets_used: Counter = "Times a ticket was taken for a stream";
    tickets_refused: Counters = "Times a ticket was refused, by reason";
    tickets_renewed: Counter = "Times a ticket was renewed because it has a stream";
    tickets_waiting: Gauge = "Tickets that wait to be judged; joins-waiting-max bounds them";
    ticket_statements: Counter = "Statements that judged tickets: all that wait at a moment share one";

    sessions_open: Gauge = "Sessions that have a stream on this node now";
    sessions_begun: Counter = "Times somebody signed in, also once more";
    sessions_ended: Counter = "Sessions signed out of";
    sessions_refused: Counters = "Times a session's cookie was refused, by reason";
    sessions_waiting: Gauge = "Cookies that wait to be judged; joins-waiting-max bounds them";
    session_statements: Counter = "Statements that judged cookies: all that wait at a moment share one";
    session_streams_ended: Counter = "Streams ended because their session was";

    joins: Counter = "Streams and histories whose rooms Postgres had to decide on";
    join_statements: Counter = "Statements that decided on them: all that wait at a moment share one";

    presence_users: Gauge = "People who are somewhere, on any node";
    presence_streams: Gauge = "Their streams, with those that have closed and whose grace runs";
    presence_rooms: Gauge = "Rooms that they are in";
    presence_nodes: Gauge = "Other nodes that give signs of life";
    presence_unwritten: Gauge = "Streams of this node that the other nodes cannot read of yet";
    presence_statements: Counter = "Statements that wrote streams of this node: all that wait at a moment share one";
    typing: Gauge = "Fields that somebody types in, each counted once a person";
    typing_waiting: Gauge = "Fields that somebody types in of whom this node has not read yet; at most 1024";
    typing_dropped: Counter = "Times one more was said to be typed in";

    pump_connected: Gauge = "1 while the log is read, else 0";
    pump_reads: Counter = "Reads of the log that found something new";
    events: Counters = "Events routed, by type; custom ones together";
    deliveries: Counter = "Events handed to a stream's socket";
    writes: Counter = "Pieces in which they were handed over: events that wait go out together";
    delivered: Counter in Bytes = "Bytes handed to the streams' sockets";
    delivery_lag: Seconds in Seconds = "From an event's append to a socket, taken from the last event of every sixteenth piece";

    bus_connected: Gauge = "1 while this node hears the others, else 0";
    bus_heard: Counter = "Messages of other nodes";
    bus_looks: Counter = "Looks at what other nodes said: however much is said at once, and by whomever, it is looked up once";
    bus_statements: Counter = "Statements that told other nodes something: what collects while one runs shares the next";
    bus_dropped: Counter = "Messages that did not fit into a queue, or that Postgres did not take; what they said is looked up later";

    postgres_reachable: Gauge = "1 while Postgres answers, else 0";
    postgres_connections: Gauge = "Connections to Postgres that are open";
    postgres_connections_idle: Gauge = "Connections to Postgres that nothing uses now";
    postgres_connections_max: Gauge = "Connections to Postgres at most; more wait for almost two seconds and are then told to come back";
    postgres_waiting: Gauge = "Those who wait for a connection to Postgres now";
    postgres_not_acquired: Counter = "Times nobody had a connection to Postgres left for somebody in time, or it was out of reach";
    postgres_given_up: Counter = "Connections to Postgres closed in the middle of a statement that nobody waited for any more, or that was not answered";
    postgres_dead: Counter = "Connections to Postgres that were found dead when they were to be used";
    postgres_outages: Counter = "Times Postgres was out of reach";
    resident_memory: Gauge in Bytes = "Memory that the process holds";
    log_lines_dropped: Counter = "Lines of the log that nobody read in time";
    panics: Counter = "Panics, in whatever task: bugs, of which the log has a line each";
}

impl Metrics {
    /// All of them as text for Prometheus.
    pub fn text(&self) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }
}

/// Memory that this process holds, in bytes; none where the system does not say.
pub fn resident_bytes() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split(' ').nth(1)?.parse().ok()?;
    Some(pages * nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_metric_has_its_meaning_and_its_unit() {
        let metrics = Metrics::default();
        metrics.resets.count("reason", "too_old");
        metrics.delivery_lag.observe(Duration::from_millis(3));
        metrics.delivered.inc_by(7);
        let text = metrics.text();
        for line in [
            "# HELP crewcast_streams Streams open now.",
            "crewcast_resets_total{reason=\"too_old\"} 1",
            "crewcast_delivered_bytes_total 7",
            "crewcast_delivery_lag_seconds_bucket{le=\"0.005\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert_eq!(metrics.resets.all(), [("too_old", 1)].into());
    }
}
