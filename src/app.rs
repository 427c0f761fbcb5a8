//! The application: what is started in which order, and how it ends.

use std::{net::SocketAddr, ops::Deref, os::unix::fs::OpenOptionsExt as _, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use axum::extract::FromRef;
use sqlx::postgres::PgConnectOptions;
use tokio::{
    net::TcpSocket,
    sync::oneshot,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{
        Checks, InvalidKey, Verifier, generate_secret,
        jwks::Fetcher,
        session::{self, SessionSettings, Sessions},
        ticket::{self, TicketSettings, Tickets},
    },
    bus::{self, Bus},
    config::{Config, Keys, Secret},
    db::{
        self, Conn, ConnectError, Db, Sweep,
        embedded::{self, Embedded},
    },
    domain::{
        Domain, Retention,
        alerts::{AlertRetention, hooks::Signatures},
        people::People,
        rights::{JoinSettings, Joins},
    },
    files::Files,
    http::{
        self,
        accept::{AcceptSettings, Acceptor},
        limit::Limiters,
        security::Security,
        warden::{Rights, close_rooms},
    },
    hub::{
        Hub, HubSettings, Pump, PumpSettings,
        presence::{self, Keeper, PresenceSettings},
    },
    ids::NodeKey,
    log::{epoch::Failover, named, retention::Keep},
    metrics::Metrics,
    tasks::Tasks,
    web::IdempotencyTtl,
};

/// Connections that may wait to be accepted; the kernel's own bound may be lower.
const BACKLOG: u32 = 4096;

/// The share of `drain-deadline` that the machine has for its own end, when streams and requests take all of the rest.
const OWN_END: Duration = Duration::from_secs(1);

/// The time that a private Postgres has for its end after everybody else's. Nothing committed is lost when it is too short.
const POSTGRES_END: Duration = Duration::from_secs(5);

/// What every handler can reach. A request is handed through a dozen layers, each of which clones it: it is one pointer.
#[derive(Clone)]
pub struct App(Arc<Parts>);

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl FromRef<App> for Arc<Verifier> {
    fn from_ref(app: &App) -> Self {
        app.verifier.clone()
    }
}

impl FromRef<App> for Tickets {
    fn from_ref(app: &App) -> Self {
        app.tickets.clone()
    }
}

/// The parts of a running server.
pub struct Parts {
    /// The settings.
    pub config: Arc<Config>,
    /// Postgres.
    pub db: Db,
    /// This node's life: its streams' ids say it.
    pub node: NodeKey,
    /// The streams.
    pub hub: Arc<Hub>,
    /// Who may join which room.
    pub joins: Joins,
    /// Whom this node has seen.
    pub people: People,
    /// Who is calling.
    pub verifier: Arc<Verifier>,
    /// What other backends sign with.
    pub signatures: Arc<Signatures>,
    /// Who is calling from a browser's stream.
    pub tickets: Tickets,
    /// Who is calling from a browser that signed in.
    pub sessions: Sessions,
    /// Who has done how much of late.
    pub limiters: Arc<Limiters>,
    /// The security log.
    pub security: Arc<Security>,
    /// What the node counts.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the node is to get no more traffic.
    pub draining: CancellationToken,
    /// What runs besides requests.
    pub tasks: Tasks,
    /// What the nodes tell each other.
    pub bus: Bus,
    /// Cancelled when an admin wants this node to end: whoever runs it stops it then.
    pub leave: CancellationToken,
}

impl App {
    /// What the domain's handlers can reach.
    pub fn domain(&self) -> Domain {
        let idempotency_ttl = IdempotencyTtl(self.config.limits.idempotency_ttl);
        Domain {
            db: self.db.clone(),
            verifier: self.verifier.clone(),
            people: self.people.clone(),
            idempotency_ttl,
            retention: Retention(self.config.limits.retention),
            signatures: self.signatures.clone(),
        }
    }
}

/// A running server. Stop it with [`Server::stop`]: dropping it stops nothing in order.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// What its handlers reach.
    pub app: App,
    postgres: Option<Embedded>,
    /// Told by when the connections must have ended, once no more are to be taken.
    closing: oneshot::Sender<Instant>,
    /// Says then whether none of them had to be cut.
    served: oneshot::Receiver<bool>,
}

impl Server {
    /// Starts Postgres if it is ours to start, brings the schema up to date, reads the log, and only then listens.
    /// `say` gets notices of one line for the person at the terminal.
    ///
    /// # Errors
    /// One line that says what to do about it.
    pub async fn start(config: Config, say: impl Fn(&str) + Send + Sync + 'static) -> anyhow::Result<Self> {
        let config = Arc::new(config);
        let socket = bind(config.listen)?;
        let files = Files::open(config.database.database_connections, config.limits.streams_max)?;
        let (verifier, fetcher) = verifier(&config, &say)?;
        let signatures = Arc::new(signatures(&config.keys)?);
        let (postgres, options) = postgres(&config, say).await?;
        migrate(&options).await?;
        let metrics = Arc::new(Metrics::default());
        metrics.postgres_connections_max.set(config.database.database_connections.into());
        let connections = config.database.database_connections;
        let db = Db::new(options, connections, config.limits.request_timeout, metrics.clone());
        let (stop, draining) = (CancellationToken::new(), CancellationToken::new());
        let tasks = Tasks::new(stop.clone());
        // Of a start that fails the parts are to end, and have not died.
        let given_up = stop.clone().drop_guard();
        if let Some(postgres) = &postgres {
            tasks.part("postgres", postgres.keep_watch(stop.clone()));
        }
        tasks.part("postgres: watch", db.clone().watch(stop.clone()));
        let joins = Joins::start(db.clone(), join_settings(&config), &tasks, stop.clone());
        let (node, warden) = (NodeKey::random(), Arc::new(Rights(joins.clone())));
        let settings = hub_settings(&config, files, node);
        let (pump, hub) = Pump::prime(db.clone(), pump_settings(&config), settings, metrics.clone(), warden).await?;
        tasks.part("pump", pump.run(stop.clone()));
        tasks.part("hub", hub.clone().stay_whole(stop.clone()));
        if let Some(fetcher) = fetcher {
            tasks.part("jwks", fetcher.run(stop.clone()));
        }
        let retention = db::Retention::new(db.clone(), keep(&config), node, metrics.clone());
        tasks.part("retention", retention.run(stop.clone()));
        tasks.part("sweeps", db::keep_sweeping(db.clone(), sweeps(&config), stop.clone()));
        let people = People::start(db.clone(), &tasks, stop.clone());
        let tickets = Tickets::start(db.clone(), ticket_settings(&config), metrics.clone(), &tasks, stop.clone());
        let sessions = session_settings(&config);
        let sessions = Sessions::start(db.clone(), sessions, metrics.clone(), &tasks, stop.clone());
        let (bus, heard) = Bus::over_postgres(&db, node, metrics.clone(), &tasks, stop.clone());
        let presence = hub.presence();
        let keeper = Keeper::prime(presence.clone(), db.clone(), hub.node().to_owned(), bus.clone()).await;
        tasks.part("presence: keeper", keeper.run(stop.clone()));
        tasks.part("presence: clock", presence.clone().watch_the_clock(stop.clone()));
        let (limiters, security) = http::limiters(&config, &metrics);
        tasks.part("limits", limiters.clone().sweep(stop.clone()));
        let verifier = Arc::new(verifier);
        let app = App(Arc::new(Parts {
            config,
            db,
            node,
            hub,
            joins,
            people,
            verifier,
            signatures,
            tickets,
            sessions,
            limiters,
            security,
            metrics,
            draining,
            tasks,
            bus,
            leave: CancellationToken::new(),
        }));
        let tasks = &app.tasks;
        tasks.part("bus: echo", app.bus.clone().echo(app.db.echo(), stop.clone()));
        tasks.part("rooms of deleted projects", close_rooms(app.hub.clone(), app.joins.clone(), stop.clone()));
        tasks.part("sessions: keeper", http::session::keep(app.clone(), stop.clone()));
        tasks.part("commands", http::command::serve(app.clone(), heard, stop.clone()));
        let acceptor = acceptor(&app, socket, files)?;
        let (address, (closing, closed), (serves, served)) =
            (acceptor.address()?, oneshot::channel(), oneshot::channel());
        tasks.part("acceptor", async move {
            let _ = serves.send(acceptor.run(closed).await);
            // It ends before the other parts do.
            stop.cancelled().await;
        });
        given_up.disarm();
        Ok(Self { address, app, postgres, closing, served })
    }

    /// The private Postgres's process, when there is one and it runs.
    pub fn postmaster(&self) -> Option<u32> {
        self.postgres.as_ref().and_then(Embedded::postmaster)
    }

    /// Waits until the server is to end by itself: an admin wants it to, or a part of it has died.
    pub async fn wants_to_end(&self) {
        tokio::select! {
            () = self.app.leave.cancelled() => {}
            _ = self.app.tasks.died() => {}
        }
    }

    /// Ends the streams, a few at a time, while newcomers are told to come back; then takes no more connections, finishes
    /// the requests under way, and stops what was started. What is left shortly before `drain-deadline` is cut, and no wait
    /// is longer than that, whatever becomes of Postgres; a private one gets a few seconds more.
    pub async fn stop(self) {
        let limits = &self.app.config.limits;
        let deadline = Instant::now() + limits.drain_deadline;
        let cut = deadline - OWN_END.min(limits.drain_deadline / 4);
        let spread = limits.drain_spread.min(limits.drain_deadline / 2);
        self.app.draining.cancel();
        let drained = timeout_at(cut, self.app.hub.drain(spread)).await.is_ok();
        let served = self.closing.send(cut).is_ok() && matches!(timeout_at(deadline, self.served).await, Ok(Ok(true)));
        if !(drained && served) {
            tracing::warn!("streams or requests were cut at the drain deadline");
        }
        let left = self.app.tasks.end(deadline).await;
        if !left.is_empty() {
            tracing::warn!(?left, "tasks were cut at the drain deadline");
        }
        self.app.db.close();
        if let Some(postgres) = self.postgres {
            let patience = deadline.saturating_duration_since(Instant::now()).max(POSTGRES_END);
            postgres.stop_within(patience).await;
        }
    }
}

/// What tokens are checked with: keys that are fetched, or one that is configured or made in the data folder.
fn verifier(config: &Config, say: &impl Fn(&str)) -> anyhow::Result<(Verifier, Option<Fetcher>)> {
    let keys = &config.keys;
    if let Some(url) = &keys.jwks_url {
        say_what_is_unchecked(keys, say);
        let (verifier, fetcher) = Verifier::from_jwks(url, keys.jwks_timing, checks(keys))?;
        return Ok((verifier, Some(fetcher)));
    }
    if keys.jwt_secret.is_none() && keys.jwt_public_key.is_none() {
        if config.database.database_url.is_some() {
            bail!(
                "DATABASE_URL is set and no key is: set CREWCAST_JWT_SECRET or CREWCAST_JWT_PUBLIC_KEY to the key of \
                 your tokens, or CREWCAST_JWKS_URL to where their keys are"
            );
        }
        make_secret(&keys.data_dir, say)?;
    }
    Ok((configured_verifier(keys)?, None))
}

/// What webhooks are checked with; none configured is none.
fn signatures(keys: &Keys) -> anyhow::Result<Signatures> {
    Signatures::new(keys.webhook_secret.iter().map(Secret::reveal)).context("CREWCAST_WEBHOOK_SECRET")
}

fn checks(keys: &Keys) -> Checks {
    Checks { audience: keys.jwt_audience.clone(), issuer: keys.jwt_issuer.clone() }
}

/// An identity provider signs for many services with the same keys.
fn say_what_is_unchecked(keys: &Keys, say: &impl Fn(&str)) {
    let unset = match (&keys.jwt_audience, &keys.jwt_issuer) {
        (Some(_), Some(_)) => return,
        (None, Some(_)) => "CREWCAST_JWT_AUDIENCE",
        (Some(_), None) => "CREWCAST_JWT_ISSUER",
        (None, None) => "CREWCAST_JWT_AUDIENCE and CREWCAST_JWT_ISSUER",
    };
    say(&format!("warning: tokens that the identity provider made for others are taken, too: set {unset}"));
}

/// The verifier of the configured key, or of the one made in the data folder earlier.
///
/// # Errors
/// When there is none, it is not a key, or keys are fetched: those make no tokens.
pub fn configured_verifier(keys: &Keys) -> anyhow::Result<Verifier> {
    if keys.jwks_url.is_some() {
        return Err(InvalidKey::CannotSign.into());
    }
    let checks = checks(keys);
    if let Some(secret) = &keys.jwt_secret {
        return Ok(Verifier::from_secret(secret.reveal().as_bytes(), checks)?);
    }
    if let Some(file) = &keys.jwt_public_key {
        let pem = std::fs::read(file).with_context(|| format!("CREWCAST_JWT_PUBLIC_KEY {}", file.display()))?;
        return Ok(Verifier::from_public_pem(&pem, checks)?);
    }
    let file = keys.data_dir.join(SECRET_FILE);
    let secret = std::fs::read_to_string(&file).with_context(|| {
        format!("no key in {}: start crewcast once in this folder, or set CREWCAST_JWT_SECRET", file.display())
    })?;
    Verifier::from_secret(secret.trim().as_bytes(), checks).with_context(|| file.display().to_string())
}

const SECRET_FILE: &str = "jwt-secret";

/// Makes a key for development, once, that only its owner can read.
fn make_secret(dir: &Path, say: &impl Fn(&str)) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("--data-dir {}", dir.display()))?;
    let file = dir.join(SECRET_FILE);
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file);
    match made {
        Ok(mut made) => std::io::Write::write_all(&mut made, generate_secret().as_bytes())?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(error).with_context(|| file.display().to_string()),
    }
    say(&format!("made a key for tokens in {}; production sets CREWCAST_JWT_SECRET or a public key", file.display()));
    Ok(())
}

async fn postgres(
    config: &Config,
    say: impl Fn(&str) + Send + Sync + 'static,
) -> anyhow::Result<(Option<Embedded>, PgConnectOptions)> {
    if let Some(url) = &config.database.database_url {
        // The parser's own words may repeat the URL, and with it the password.
        let options = url.reveal().parse().map_err(|_| {
            anyhow::anyhow!("DATABASE_URL is not a Postgres URL: write postgres://user:password@host:5432/database")
        })?;
        return Ok((None, options));
    }
    let options = embedded::Options {
        data_dir: config.keys.data_dir.clone(),
        bin_dir: config.database.pg_bin_dir.clone(),
        fetch: !config.database.no_fetch,
        durable: config.database.durable,
        address: config.listen.to_string(),
    };
    let postgres = Embedded::start(options, say).await?;
    let options = postgres.connect_options();
    Ok((Some(postgres), options))
}

/// Connects and brings the schema up to date.
///
/// # Errors
/// One line; it never shows the password.
pub async fn migrate(options: &PgConnectOptions) -> anyhow::Result<()> {
    let migrated = db::migrate(&mut connect(options).await?).await;
    let at = place(options);
    migrated.map_err(|error| anyhow::anyhow!("{at}: the schema could not be brought up to date: {error}"))
}

/// Connects for a command, or for a start.
///
/// # Errors
/// One line; it never shows the password.
pub async fn connect(options: &PgConnectOptions) -> anyhow::Result<Conn> {
    let at = place(options);
    // sqlx repeats the cause in its own words: the chain would say it twice.
    db::connect(options).await.map_err(|error| match error {
        ConnectError::Db(error) => anyhow::anyhow!("{at} (DATABASE_URL) cannot be reached: {error}"),
        ConnectError::Unfit(why) => anyhow::anyhow!("{at} (DATABASE_URL): {why}"),
    })
}

fn place(options: &PgConnectOptions) -> String {
    format!("Postgres at {}:{}", options.get_host(), options.get_port())
}

/// Takes the address without listening yet: that it is taken shows before anything was started.
fn bind(listen: SocketAddr) -> anyhow::Result<TcpSocket> {
    let bind = || {
        let socket = if listen.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(listen)?;
        std::io::Result::Ok(socket)
    };
    bind().with_context(|| format!("--listen {listen} (CREWCAST_LISTEN): choose another address, such as 127.0.0.1:0"))
}

fn acceptor(app: &App, socket: TcpSocket, files: Files) -> anyhow::Result<Acceptor> {
    let listen = app.config.listen;
    let listener = socket
        .listen(BACKLOG)
        .with_context(|| format!("--listen {listen} (CREWCAST_LISTEN): choose another address, such as 127.0.0.1:0"))?;
    let limits = &app.config.limits;
    let settings = AcceptSettings {
        connections_max: files.connections_max,
        head_timeout: limits.request_timeout,
        stall_timeout: limits.stall_timeout,
    };
    Ok(Acceptor::new(listener, http::router(app.clone()), settings, app.metrics.clone()))
}

fn pump_settings(config: &Config) -> PumpSettings {
    let limits = &config.limits;
    PumpSettings {
        poll: limits.poll,
        event_bytes_max: limits.event_bytes_max,
        failover: if config.database.failover_lossless { Failover::Lossless } else { Failover::Lossy },
    }
}

fn keep(config: &Config) -> Keep {
    let limits = &config.limits;
    Keep { age: limits.retention, events: limits.retention_events, every: limits.floor_every }
}

fn sweeps(config: &Config) -> Vec<Sweep> {
    let alerts = AlertRetention(config.limits.alert_retention).sweeps();
    let others = [
        IdempotencyTtl(config.limits.idempotency_ttl).sweep(),
        ticket::sweep(),
        session::sweep(),
        presence::sweep(config.limits.presence_lease),
        bus::sweep(),
        Sweep { statement: named::SWEEP, age: named::KEPT_MIN },
    ];
    others.into_iter().chain(alerts).collect()
}

fn join_settings(config: &Config) -> JoinSettings {
    let limits = &config.limits;
    JoinSettings {
        retention: limits.retention,
        waiting_max: limits.joins_waiting_max as usize,
        statement_timeout: limits.request_timeout,
    }
}

fn ticket_settings(config: &Config) -> TicketSettings {
    let limits = &config.limits;
    TicketSettings {
        ttl: limits.ticket_ttl,
        idle: limits.ticket_idle,
        per_user: limits.tickets_per_user,
        waiting_max: limits.joins_waiting_max as usize,
        statement_timeout: limits.request_timeout,
    }
}

fn session_settings(config: &Config) -> SessionSettings {
    let limits = &config.limits;
    SessionSettings {
        per_user: limits.sessions_per_user,
        waiting_max: limits.joins_waiting_max as usize,
        statement_timeout: limits.request_timeout,
    }
}

fn hub_settings(config: &Config, files: Files, key: NodeKey) -> HubSettings {
    let limits = &config.limits;
    HubSettings {
        heartbeat: limits.heartbeat,
        expiring_ahead: limits.expiring_ahead,
        replay_events_max: limits.replay_events_max,
        event_bytes_max: limits.event_bytes_max,
        ring_bytes: limits.ring_bytes(),
        queue_bytes: usize::try_from(limits.queue_bytes).unwrap_or(usize::MAX),
        streams_max: files.streams_max,
        streams_per_user: limits.streams_per_user as usize,
        // Requests have the other half.
        replays_max: (config.database.database_connections as usize / 2).max(1),
        channel_events: limits.channel_events,
        node: config.node.clone().unwrap_or_else(|| std::process::id().to_string()),
        key,
        presence: PresenceSettings {
            grace: limits.presence_grace,
            lease: limits.presence_lease,
            users_max: limits.presence_users_max as usize,
            typing_ttl: limits.typing_ttl,
        },
    }
}
