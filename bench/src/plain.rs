//! The baseline: what a competent person writes in an afternoon with axum's own parts. One broadcast channel, one task
//! a stream that filters by room, each event encoded by each stream. It keeps nothing: a stream that lags loses events.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::sse::{Event, KeepAlive, Sse},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio_stream::{Stream, StreamExt as _, wrappers::BroadcastStream};

/// Events that a stream may be behind, as many as in crewcast's own channel.
const CHANNEL_EVENTS_MAX: usize = 1024;

/// An event like crewcast's own.
#[derive(Debug, Serialize, Deserialize)]
struct Tick {
    n: u64,
    t: u64,
    text: String,
    meta: Meta,
}

#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    seq: u64,
    at: String,
    rooms: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Published {
    List(Vec<Tick>),
    One(Tick),
}

#[derive(Deserialize)]
struct Parameters {
    rooms: String,
}

type Channel = broadcast::Sender<Arc<Tick>>;

/// Serves until the process is ended.
pub(crate) fn serve() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let routes = Router::new().route("/events", get(events)).route("/publish", post(publish));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("the plain server listens on http://{}", listener.local_addr()?);
        Ok(axum::serve(listener, routes.with_state(Channel::new(CHANNEL_EVENTS_MAX))).await?)
    })
}

async fn events(
    State(channel): State<Channel>,
    Query(parameters): Query<Parameters>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let rooms: Vec<String> = parameters.rooms.split(',').map(str::to_owned).collect();
    let events = BroadcastStream::new(channel.subscribe()).filter_map(move |tick| {
        // A stream that lagged goes on.
        let tick = tick.ok().filter(|tick| tick.meta.rooms.iter().any(|room| rooms.contains(room)))?;
        let event = Event::default().event("bench:tick").id(tick.meta.seq.to_string());
        Some(Ok(event.json_data(&*tick).expect("a tick is plain data")))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

async fn publish(State(channel): State<Channel>, Json(published): Json<Published>) -> StatusCode {
    let ticks = match published {
        Published::List(ticks) => ticks,
        Published::One(tick) => vec![tick],
    };
    for tick in ticks {
        // Nobody listening is no error.
        let _ = channel.send(Arc::new(tick));
    }
    StatusCode::NO_CONTENT
}
