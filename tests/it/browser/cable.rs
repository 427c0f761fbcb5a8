//! What is between a client and a server: an address that stays, and a cable that can be pulled.

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
};

/// A free port that stays this test's, also while nothing listens on it.
pub struct Port {
    /// `127.0.0.1` and the port.
    pub address: String,
    /// Bound and never listening: servers may listen there, and the kernel gives the port to nobody else, not even to a
    /// client that calls it.
    _held: TcpSocket,
}

impl Port {
    pub fn hold() -> Self {
        let held = TcpSocket::new_v4().unwrap();
        held.set_reuseaddr(true).unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self { address: held.local_addr().unwrap().to_string(), _held: held }
    }
}

/// Carries connections to a server.
pub struct Cable {
    /// Where clients connect.
    pub address: String,
    plugged: watch::Sender<bool>,
}

impl Cable {
    pub async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (plugged, seen) = watch::channel(true);
        tokio::spawn(carry(listener, server.to_owned(), seen));
        Self { address, plugged }
    }

    /// Cuts every connection, wherever its bytes are, and each that comes.
    pub fn pull(&self) {
        self.plugged.send_replace(false);
    }

    pub fn plug(&self) {
        self.plugged.send_replace(true);
    }
}

async fn carry(listener: TcpListener, server: String, plugged: watch::Receiver<bool>) {
    while let Ok((mut near, _)) = listener.accept().await {
        let (server, mut plugged) = (server.clone(), plugged.clone());
        if !*plugged.borrow_and_update() {
            continue;
        }
        tokio::spawn(async move {
            let carrying = async {
                let mut far = TcpStream::connect(server).await?;
                copy_bidirectional(&mut near, &mut far).await
            };
            tokio::select! {
                // Pulled, and perhaps plugged again since.
                _ = plugged.changed() => {}
                _ = carrying => {}
            }
        });
    }
}
