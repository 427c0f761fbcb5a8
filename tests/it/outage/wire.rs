//! What is between a server and its Postgres: a wire that can be cut without a word, and a pooler with few places.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use sqlx::postgres::PgConnectOptions;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
};

/// What becomes of new connections.
#[derive(Clone, Copy, PartialEq)]
pub enum Newcomers {
    /// They are carried.
    Carried,
    /// They are taken, and never answered.
    Silent,
    /// They are told that they are in, and nothing after that, as poolers do.
    Queued,
}

/// Carries connections to the Postgres of a test's database.
pub struct Wire {
    /// The URL of the database through the wire.
    pub url: String,
    cut: watch::Sender<u32>,
    newcomers: Arc<AtomicU8>,
    /// The socket of the Postgres that it leads to.
    far: watch::Sender<String>,
}

fn socket_of(url: &str) -> String {
    let options: PgConnectOptions = url.parse().unwrap();
    format!("{}/.s.PGSQL.5432", options.get_socket().unwrap().display())
}

impl Wire {
    /// To the database of this URL, whose Postgres listens on a Unix socket.
    pub async fn to(url: &str) -> Self {
        let options: PgConnectOptions = url.parse().unwrap();
        let far = watch::Sender::new(socket_of(url));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = format!("postgres://postgres@127.0.0.1:{port}/{}?sslmode=disable", options.get_database().unwrap());
        let (cut, newcomers) = (watch::Sender::new(0), Arc::<AtomicU8>::default());
        tokio::spawn(carry(listener, far.clone(), cut.clone(), newcomers.clone()));
        Self { url, cut, newcomers, far }
    }

    /// The connections that there are stay open, and nothing passes any more, either way. New ones work.
    pub fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }

    /// From now on it leads to the Postgres of this URL; the connections that there are end.
    pub fn lead_to(&self, url: &str) {
        self.far.send_replace(socket_of(url));
    }

    /// What becomes of connections from now on.
    pub fn newcomers(&self, newcomers: Newcomers) {
        self.newcomers.store(newcomers as u8, Ordering::SeqCst);
    }
}

async fn carry(listener: TcpListener, far: watch::Sender<String>, cut: watch::Sender<u32>, newcomers: Arc<AtomicU8>) {
    while let Ok((near, _)) = listener.accept().await {
        let (mut cut, how) = (cut.subscribe(), newcomers.load(Ordering::SeqCst));
        let mut leads = far.subscribe();
        let socket = leads.borrow_and_update().clone();
        tokio::spawn(async move {
            let mut near = near;
            match how {
                how if how == Newcomers::Carried as u8 => {
                    let Ok(mut far) = UnixStream::connect(socket).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = leads.changed() => {}
                        // Neither end is closed, and nobody reads any more.
                        _ = cut.changed() => std::future::pending().await,
                    }
                }
                how if how == Newcomers::Queued as u8 => {
                    let _ = let_in(&mut near).await;
                    std::future::pending().await
                }
                _ => std::future::pending().await,
            }
        });
    }
}

/// Says what a server says to who has come in: all is well, its version, and that it waits for a statement.
async fn let_in(near: &mut TcpStream) -> std::io::Result<()> {
    let mut startup = [0; 4096];
    if near.read(&mut startup).await? == 0 {
        return Ok(());
    }
    let mut said = b"R\0\0\0\x08\0\0\0\0".to_vec();
    let version = b"server_version\x0015.0\0";
    said.push(b'S');
    said.extend((version.len() as u32 + 4).to_be_bytes());
    said.extend(version);
    said.extend(b"K\0\0\0\x0c\0\0\0\x01\0\0\0\x01Z\0\0\0\x05I");
    near.write_all(&said).await
}
