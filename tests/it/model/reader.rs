//! Somebody who follows rooms, is cut again and again, and goes on with the last id of a complete frame.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crewcast::sse::{Frame, Parser};
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;

use super::{END, Rng};
use crate::support::{Client, PATIENCE};

/// An event as it arrived.
pub(super) struct Seen {
    pub(super) seq: i64,
    pub(super) kind: String,
    pub(super) data: String,
}

pub(super) struct Reader {
    clients: Vec<Client>,
    query: String,
    rng: Rng,
    cut: bool,
    arrived: Arc<AtomicU64>,
    seen: Vec<Seen>,
    /// When the last event came.
    heard: Instant,
}

impl Reader {
    /// Each connection goes to one of the clients' nodes.
    pub(super) fn new(clients: Vec<Client>, rooms: &[&str], rng: Rng, cut: bool, arrived: Arc<AtomicU64>) -> Self {
        Self {
            clients,
            query: format!("rooms={}", rooms.join(",")),
            rng,
            cut,
            arrived,
            seen: Vec::new(),
            heard: Instant::now(),
        }
    }

    /// Reads from this id to the event that ends the run.
    pub(super) async fn read(mut self, from: &str) -> Vec<Seen> {
        let mut id = from.to_owned();
        loop {
            let mut response = self.connect(&id).await;
            let mut parser = Parser::resuming(&id);
            // From inside the first frame to far behind it.
            let most = 1 << (6 + self.rng.below(9));
            let mut left = if self.cut { self.rng.below(most) } else { usize::MAX };
            while left > 0 {
                let chunk = tokio::time::timeout(PATIENCE, response.chunk()).await.expect("a silent stream");
                let Ok(Some(chunk)) = chunk else { break };
                let chunk = &chunk[..chunk.len().min(left)];
                left -= chunk.len();
                for frame in parser.push(chunk) {
                    if self.is_end(frame) {
                        return self.seen;
                    }
                }
            }
            id = parser.last_id().to_owned();
        }
    }

    /// A stream; while Postgres is away there is none.
    async fn connect(&mut self, id: &str) -> Response {
        let client = self.clients[self.rng.below(self.clients.len())].clone();
        let connecting = async {
            loop {
                let request = client.request(Method::GET, &format!("/events?{}", self.query));
                let response = request.header("last-event-id", id).send().await.unwrap();
                if response.status() == StatusCode::OK {
                    return response;
                }
                assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, connecting).await.expect("no stream is opened any more")
    }

    fn is_end(&mut self, frame: Frame) -> bool {
        match frame.event.as_str() {
            END => return true,
            "heartbeat" => assert!(self.heard.elapsed() < PATIENCE, "the end does not come"),
            // Of who is there, which is in no log.
            kind if kind.starts_with("presence:") => {}
            "stream:open" => assert!(frame.data.contains(r#""resume":"replayed""#), "{}", frame.data),
            "stream:reset" | "stream:closing" => panic!("{}: {}", frame.event, frame.data),
            _ => {
                self.heard = Instant::now();
                let data: Value = serde_json::from_str(&frame.data).unwrap();
                let seq = data["meta"]["seq"].as_i64().unwrap();
                self.seen.push(Seen { seq, kind: frame.event, data: frame.data });
                self.arrived.fetch_add(1, Ordering::Relaxed);
            }
        }
        false
    }
}
