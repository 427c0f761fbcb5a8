//! Peers that acknowledge nothing are cut, whatever is written to them; those that acknowledge a little are not.

use std::time::Duration;

use crewcast::auth::Role;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::{Instant, interval},
};

use crate::support::{Client, connect, database, publish, server, token};

/// A connection whose peer takes little ahead, with this as the first that it says.
async fn say(address: &str, first: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut socket = socket.connect(address.parse().unwrap()).await.unwrap();
    socket.write_all(first.as_bytes()).await.unwrap();
    socket
}

/// A stream of a room that says nothing else, as an HTTP/1.0 client asks for it.
async fn follow(address: &str, room: &str) -> TcpStream {
    let token = token("ana", &[Role::Admin]);
    say(address, &format!("GET /events?rooms={room} HTTP/1.0\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"))
        .await
}

/// What the kernel holds of the server's for the other end of this connection.
fn waiting_bytes(socket: &TcpStream) -> u64 {
    let ports = |address: &str| u16::from_str_radix(address.rsplit(':').next().unwrap(), 16).unwrap();
    let (own, theirs) = (socket.local_addr().unwrap().port(), socket.peer_addr().unwrap().port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let mut lines = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|fields| (ports(fields[1]), ports(fields[2])) == (theirs, own)).expect("it is open");
    u64::from_str_radix(line[4].split(':').next().unwrap(), 16).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_nothing_is_cut_however_small_what_is_written_is() {
    const PROBES: usize = 20_000;
    let url = database().await;
    let server = server(&url, &["--stall-timeout=500ms", "--poll=20ms"]).await;
    let (ana, address) = (Client::admin(&server), server.address.to_string());
    let stream = follow(&address, "topic:a").await;
    ana.stats_when(|stats| stats["streams"]["open"] == 1).await;
    let mut probes = say(&address, "").await;
    let asking = tokio::spawn(async move {
        // The server does not take all of them.
        let _ = probes.write_all("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".repeat(PROBES).as_bytes()).await;
        std::future::pending::<()>().await;
    });
    let mut conn = connect(&url).await;
    for first in (1..=11_000).step_by(100) {
        publish(&mut conn, "topic:a", first..=first + 99, 300).await;
    }
    let stats = ana.stats_when(|stats| stats["deliveries"]["stalledConnections"] == 2).await;
    assert_eq!(stats["streams"]["open"], 0, "{stats}");
    assert_eq!(stats["streams"]["closed"]["gone"], 1, "{stats}");
    asking.abort();
    drop(stream);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_acknowledges_nothing_is_cut_also_when_no_write_waits() {
    let url = database().await;
    let server = server(&url, &["--stall-timeout=500ms", "--heartbeat=100ms", "--poll=20ms"]).await;
    let (ana, address) = (Client::admin(&server), server.address.to_string());
    // One whose peer has taken all that there is, and one that does not.
    let mut quiet = ana.stream("rooms=topic:quiet", "").await;
    quiet.expect("stream:open").await;
    let stream = follow(&address, "topic:a").await;
    ana.stats_when(|stats| stats["streams"]["open"] == 2).await;
    publish(&mut connect(&url).await, "topic:a", 1..=1, 40_000).await;
    let stats = ana.stats_when(|stats| stats["streams"]["open"] == 1).await;
    assert_eq!(stats["deliveries"]["stalledConnections"], 1, "{stats}");
    publish(&mut connect(&url).await, "topic:quiet", 1..=1, 1).await;
    quiet.expect("test:n").await;
    drop((quiet, stream));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_reads_nothing_holds_little_of_the_kernels_memory() {
    let url = database().await;
    let server = server(&url, &["--stall-timeout=1h", "--poll=20ms"]).await;
    let (ana, address) = (Client::admin(&server), server.address.to_string());
    let stream = follow(&address, "topic:a").await;
    ana.stats_when(|stats| stats["streams"]["open"] == 1).await;
    let mut conn = connect(&url).await;
    for first in (1..=2500).step_by(100) {
        publish(&mut conn, "topic:a", first..=first + 99, 4000).await;
    }
    // Its queue has been full, so that its socket is.
    ana.stats_when(|stats| stats["replays"]["queueOverflows"].as_i64().is_some_and(|times| times > 0)).await;
    let held = waiting_bytes(&stream);
    println!("{held} bytes wait in the kernel");
    assert!((100_000..700_000).contains(&held), "{held}");
    drop(stream);
    server.stop().await;
}

/// Its window opens in steps that have no room for a whole segment of the sender's, so that the kernel probes it all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_a_few_bytes_at_a_time_and_steadily_is_not_cut() {
    let url = database().await;
    let server = server(&url, &["--stall-timeout=2s", "--poll=20ms"]).await;
    let (ana, address) = (Client::admin(&server), server.address.to_string());
    let mut steady = follow(&address, "topic:a").await;
    ana.stats_when(|stats| stats["streams"]["open"] == 1).await;
    publish(&mut connect(&url).await, "topic:a", 1..=100, 20_000).await;
    let (mut pace, until) = (interval(Duration::from_millis(100)), Instant::now() + Duration::from_secs(9));
    let mut bytes = vec![0; 400];
    // The pace is what is tested: 4 kB each second.
    while Instant::now() < until {
        pace.tick().await;
        steady.read_exact(&mut bytes).await.unwrap();
    }
    let stats = ana.stats().await;
    assert_eq!((&stats["streams"]["open"], &stats["deliveries"]["stalledConnections"]), (&1.into(), &0.into()));
    assert!(waiting_bytes(&steady) > 0, "there was more to read all the time");
    drop(steady);
    server.stop().await;
}
