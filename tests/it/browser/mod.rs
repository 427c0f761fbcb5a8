//! Real clients, through everything that cuts a stream: Chromium with its own `EventSource`, and `curl`.
//!
//! Numbers are published all the while. A client is left alone: it comes back by itself, and at the end it has seen each
//! number once and in order.

mod cable;
mod chromium;
mod cookie;
mod curl;
mod faults;
mod numbers;
mod page;
mod renew;
mod resume;
mod side_by_side;
mod site;
