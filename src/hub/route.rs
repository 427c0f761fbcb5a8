//! The router: from the pump's channel to the ring and to the mailboxes.

use std::sync::Arc;

use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;

use super::{Hub, Live, Routed, Tail};
use crate::ids::BUILTIN_TYPES;

/// Mailboxes that are filled before other tasks get a turn.
const PUTS_MAX: usize = 4096;

/// Routes what the pump sends until `stop`.
pub(super) async fn route(hub: Arc<Hub>, mut live: broadcast::Receiver<Routed>, stop: CancellationToken) {
    let mut puts = 0;
    loop {
        let routed = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            routed = live.recv() => routed,
        };
        match routed {
            Ok(Routed::Announced(tail)) => hub.announced(tail),
            Ok(Routed::Event(event)) => puts += hub.route(&event),
            Ok(Routed::Settled(read)) => hub.settled(read),
            Ok(Routed::Jumped(tail)) => hub.jumped(tail),
            Err(RecvError::Lagged(_)) => live = hub.lagged(),
            Err(RecvError::Closed) => return,
        }
        if live.len() <= hub.settings.channel_events / 2 {
            hub.room.notify_one();
        }
        if puts >= PUTS_MAX {
            puts = 0;
            tokio::task::yield_now().await;
        }
    }
}

impl Hub {
    /// A read begins, or the pump looked and nothing was new.
    fn announced(&self, tail: Arc<Tail>) {
        let asked = tail.asked;
        let mut state = self.state();
        if tail.read > state.tail.read {
            let from = state.tail.at.base().clone();
            state.ring.begin(from, tail.at.base().clone());
        }
        if tail.read >= state.tail.read {
            state.tail = tail;
        }
        drop(state);
        self.answer(asked);
    }

    /// Hands an event to every stream in its rooms; how many mailboxes were looked at.
    fn route(&self, live: &Arc<Live>) -> usize {
        let kind = BUILTIN_TYPES.iter().find(|kind| **kind == live.kind);
        self.metrics.events.count("type", kind.unwrap_or(&"custom"));
        let mut state = self.state();
        // What began before the router lagged is history.
        if live.read <= state.settled.0 {
            return 0;
        }
        state.ring.push(live);
        let (mut puts, mut overflows) = (0, 0);
        for room in &live.rooms {
            for mailbox in state.rooms.members(room) {
                puts += 1;
                overflows += u64::from(!mailbox.put(live));
            }
        }
        drop(state);
        self.metrics.queue_overflows.inc_by(overflows);
        puts
    }

    fn settled(&self, read: u64) {
        let mut state = self.state();
        if read == state.tail.read {
            state.settled = (read, state.tail.at.clone());
            drop(state);
            self.join_waiting();
        }
    }

    fn jumped(&self, tail: Arc<Tail>) {
        // A jump that was announced while the router lagged was made then.
        if tail.read > self.state().tail.read {
            self.jump(tail);
        } else {
            self.answer(tail.asked);
        }
    }

    /// Goes on from the newest announcement. In this order: what is announced in between is in both, and is ignored.
    fn lagged(&self) -> broadcast::Receiver<Routed> {
        self.metrics.hub_lagged.inc();
        tracing::warn!("the router fell behind the pump: every stream reads history");
        let live = self.live.subscribe();
        let tail = self.announced.borrow().clone();
        self.jump(tail);
        live
    }

    fn jump(&self, tail: Arc<Tail>) {
        let asked = tail.asked;
        let held = self.state().jump(tail);
        self.join_waiting();
        self.answer(asked);
        drop(held);
    }

    /// Whoever asked for a read by this number has it.
    fn answer(&self, asked: u64) {
        self.answered.send_if_modified(|answered| {
            let is_news = *answered < asked;
            *answered = asked.max(*answered);
            is_news
        });
    }
}
