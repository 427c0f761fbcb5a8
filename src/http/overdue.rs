//! How long a request may take, and whose fault it is when it takes longer.
//!
//! 408 tells a client that its own request did not arrive in time. Whoever has said all that there was to say, and was not
//! answered, waited for us: for Postgres, for a lock. That is 503, and worth another attempt.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::timeout;

use crate::error::Error;

/// What is told to whoever was not answered in time.
const DETAIL: &str = "There was no answer within request-timeout. Whether a change was made is not known: repeat it with the \
                      same Idempotency-Key, or read first what is there.";

/// Middleware: gives a request up that is not answered within `limit`.
pub(super) async fn bound(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let has_arrived = Arc::new(AtomicBool::new(body.is_end_stream()));
    let arriving = Arriving { body, has_arrived: has_arrived.clone() };
    let answer = timeout(limit, next.run(Request::from_parts(parts, Body::new(arriving)))).await;
    match answer {
        Ok(response) => response,
        Err(_) if has_arrived.load(Ordering::Relaxed) => Error::unavailable(DETAIL).into_response(),
        Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
    }
}

/// A body, and whether all of it has come.
struct Arriving {
    body: Body,
    has_arrived: Arc<AtomicBool>,
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || self.body.is_end_stream() {
            self.has_arrived.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
