//! The network between the nodes, in our hands: a TCP proxy for each ordered pair of nodes.
//!
//! ```text
//! node a's postmaster --PGSERVICEFILE--> "service=node_b" = 127.0.0.1:port(a, b) --> node b
//! ```
//!
//! A conninfo is the same on all nodes, but a service name in it is looked up by each node in a
//! file of its own, so the proxy knows who connects to whom without namespaces or a kernel module.
//!
//! Bytes from a to b travel on connections that a opened and on connections that b opened; the
//! *way* a -> b is both. A way can be stalled (nothing arrives, nothing is lost, and nobody is
//! told, as when packets are dropped), delayed, or stalled now and then by chance, which is what
//! lost packets look like to a TCP stream. A connection can also be reset.

use super::dice::Dice;
use anyhow::{Context, Result};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Bytes read at once.
const CHUNK: usize = 16 * 1024;
/// Chunks on the way; more than that and the sender's socket fills up.
const IN_FLIGHT: usize = 64;
/// How long one direction goes on after the other has ended.
const LINGER: Duration = Duration::from_secs(5);

/// What one way does to the bytes on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Way {
    /// Nothing arrives.
    pub stalled: bool,
    /// Everything arrives this much later ...
    pub delay_ms: u64,
    /// ... and up to this much more.
    pub jitter_ms: u64,
    /// Of a thousand chunks so many wait for a retransmission.
    pub loss_permille: u64,
}

/// How long a lost packet holds up a stream: the kernel's first and second timeout.
const RETRANSMISSION_MS: [u64; 3] = [200, 400, 1200];

#[derive(Debug)]
struct Pair {
    forth: watch::Sender<Way>,
    reset: watch::Sender<u64>,
}

/// All proxies.
#[derive(Debug)]
pub struct Network {
    nodes: usize,
    /// By `from * nodes + to`, numbers from 0.
    pairs: Arc<Vec<Pair>>,
    ports: Vec<u16>,
    /// The proxies stop with it.
    _runtime: Runtime,
}

impl Network {
    /// Starts the proxies to the nodes' own ports.
    ///
    /// # Errors
    /// When there are no free ports.
    pub fn start(targets: &[u16], seed: u64) -> Result<Self> {
        let nodes = targets.len();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let pairs: Arc<Vec<Pair>> = Arc::new(
            (0..nodes * nodes)
                .map(|_| Pair {
                    forth: watch::Sender::new(Way::default()),
                    reset: watch::Sender::new(0),
                })
                .collect(),
        );
        let mut ports = targets.repeat(nodes);
        for from in 0..nodes {
            for to in (0..nodes).filter(|to| *to != from) {
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
                let listener =
                    runtime.block_on(TcpListener::bind(address)).context("no port for a proxy")?;
                ports[from * nodes + to] = listener.local_addr()?.port();
                let link = Link {
                    pairs: Arc::clone(&pairs),
                    there: from * nodes + to,
                    back: to * nodes + from,
                    target: SocketAddr::from((Ipv4Addr::LOCALHOST, targets[to])),
                };
                let dice = Dice::new(seed).child((from * nodes + to) as u64);
                runtime.spawn(listen(listener, link, dice));
            }
        }
        Ok(Self { nodes, pairs, ports, _runtime: runtime })
    }

    fn at(&self, from: usize, to: usize) -> &Pair {
        &self.pairs[(from - 1) * self.nodes + to - 1]
    }

    /// Where `from` reaches `to`; its own port for itself.
    #[must_use]
    pub fn port(&self, from: usize, to: usize) -> u16 {
        self.ports[(from - 1) * self.nodes + to - 1]
    }

    /// Changes what happens to bytes from `from` to `to`, on open and on new connections.
    pub fn set(&self, from: usize, to: usize, way: Way) {
        self.at(from, to).forth.send_replace(way);
    }

    /// Breaks all connections between the two.
    pub fn reset(&self, one: usize, two: usize) {
        for pair in [self.at(one, two), self.at(two, one)] {
            pair.reset.send_modify(|count| *count += 1);
        }
    }

    /// All ways as they should be.
    pub fn heal(&self) {
        for pair in self.pairs.iter() {
            pair.forth.send_replace(Way::default());
        }
    }
}

/// One ordered pair's proxy.
#[derive(Debug, Clone)]
struct Link {
    pairs: Arc<Vec<Pair>>,
    there: usize,
    back: usize,
    target: SocketAddr,
}

async fn listen(listener: TcpListener, link: Link, dice: Dice) {
    let mut count = 0;
    while let Ok((client, _)) = listener.accept().await {
        count += 1;
        let (link, dice) = (link.clone(), dice.child(count));
        tokio::spawn(async move {
            let mut reset = link.pairs[link.there].reset.subscribe();
            reset.mark_unchanged();
            tokio::select! {
                _ = reset.changed() => {}
                () = relay(client, &link, &dice) => {}
            }
        });
    }
}

/// Connects and carries bytes both ways until both ends are closed; dropping it closes both.
async fn relay(client: TcpStream, link: &Link, dice: &Dice) {
    let mut forth = link.pairs[link.there].forth.subscribe();
    let back = link.pairs[link.back].forth.subscribe();
    // A connection request does not arrive on a way on which nothing arrives.
    if forth.wait_for(|way| !way.stalled).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(link.target).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let one = carry(from_client, to_server, forth, dice.child(1));
    let two = carry(from_server, to_client, back, dice.child(2));
    tokio::pin!(one, two);
    tokio::select! {
        () = &mut one => { let _ = tokio::time::timeout(LINGER, two).await; }
        () = &mut two => { let _ = tokio::time::timeout(LINGER, one).await; }
    }
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut way: watch::Receiver<Way>,
    mut dice: Dice,
) {
    let (send, mut receive) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let settings = way.clone();
    let reading = async move {
        let mut buffer = vec![0; CHUNK];
        let mut due = Instant::now();
        while let Ok(size) = from.read(&mut buffer).await {
            let now = *settings.borrow();
            // Order is kept: what is held up holds up what comes behind.
            due = due.max(Instant::now() + late(now, &mut dice));
            if size == 0 || send.send((due, buffer[..size].to_vec())).await.is_err() {
                break;
            }
        }
    };
    let writing = async move {
        while let Some((due, bytes)) = receive.recv().await {
            tokio::time::sleep_until(due).await;
            if way.wait_for(|way| !way.stalled).await.is_err()
                || to.write_all(&bytes).await.is_err()
            {
                return;
            }
        }
        // The end of a connection is news, too, and travels the same way.
        if way.wait_for(|way| !way.stalled).await.is_ok() {
            let _ = to.shutdown().await;
        }
    };
    tokio::join!(reading, writing);
}

fn late(way: Way, dice: &mut Dice) -> Duration {
    let mut ms = way.delay_ms;
    if way.jitter_ms > 0 {
        ms += dice.below(way.jitter_ms + 1);
    }
    if way.loss_permille > 0 && dice.below(1000) < way.loss_permille {
        ms += *dice.pick(&RETRANSMISSION_MS);
    }
    Duration::from_millis(ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    /// A server that answers with what it got, and a connection to it through the proxy.
    fn echo() -> (Network, std::net::TcpStream) {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = server.local_addr().unwrap().port();
        let network = Network::start(&[1, target], 7).unwrap();
        let port = network.port(1, 2);
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = server.accept() {
                std::thread::spawn(move || {
                    let mut buffer = [0; 100];
                    while let Ok(size @ 1..) = stream.read(&mut buffer) {
                        if stream.write_all(&buffer[..size]).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        let stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        (network, stream)
    }

    fn hears(stream: &mut std::net::TcpStream, within_ms: u64) -> Option<Vec<u8>> {
        let limit = Duration::from_millis(within_ms);
        stream.set_read_timeout(Some(limit)).unwrap();
        let mut buffer = [0; 100];
        let size = stream.read(&mut buffer).ok()?;
        Some(buffer[..size].to_vec())
    }

    #[test]
    fn a_stalled_way_holds_what_is_on_open_connections_and_loses_nothing() {
        let (network, mut stream) = echo();
        stream.write_all(b"one").unwrap();
        assert_eq!(hears(&mut stream, 5000).unwrap(), b"one");
        let stalled = Way { stalled: true, ..Way::default() };
        for (from, to) in [(1, 2), (2, 1)] {
            network.set(from, to, stalled);
            stream.write_all(b"two").unwrap();
            assert_eq!(hears(&mut stream, 100), None);
            network.heal();
            assert_eq!(hears(&mut stream, 5000).unwrap(), b"two");
        }
    }

    #[test]
    fn a_reset_ends_the_connection_and_new_ones_work() {
        let (network, mut stream) = echo();
        stream.write_all(b"one").unwrap();
        assert_eq!(hears(&mut stream, 5000).unwrap(), b"one");
        network.reset(2, 1);
        assert_eq!(hears(&mut stream, 5000).unwrap_or_default(), b"");
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", network.port(1, 2))).unwrap();
        stream.write_all(b"two").unwrap();
        assert_eq!(hears(&mut stream, 5000).unwrap(), b"two");
    }
}
