//! In which order a walsender says things: a peer that was told a place, and knows of no commit
//! before it that is not durable at its own, gives the log up to there away.

use super::arena::Arena;
use super::checks;
use super::stream_reader::Slot;
use crate::server::DATABASE;
use crate::wait::until;
use anyhow::{Context, Result, bail, ensure};
use mtm_core::Lsn;
use mtm_logrep::stream::{Keepalive, Packet, StreamMessage};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

checks!("stream_order":
    marks_before_places,
    the_last_place_at_shutdown,
);

/// How many rows each node writes.
const ROWS: usize = 60;
const LIMIT: Duration = Duration::from_secs(60);
/// Answers are as frequent as this: each makes the walsender tell its place again.
const ANSWER_EVERY: Duration = Duration::from_millis(2);

/// A connection on which a walsender streams, without what clients' libraries do by themselves.
struct Walsender {
    socket: TcpStream,
    answered: Instant,
    confirmed: Lsn,
}

impl Walsender {
    fn start(port: u16, slot: &str) -> Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_read_timeout(Some(LIMIT))?;
        let mut this = Self { socket, answered: Instant::now(), confirmed: Lsn(0) };
        let mut hello = 196_608_u32.to_be_bytes().to_vec();
        for word in ["user", DATABASE, "database", DATABASE, "replication", "database", ""] {
            hello.extend_from_slice(word.as_bytes());
            hello.push(0);
        }
        this.send(None, &hello)?;
        this.until(b'Z')?;
        let start = format!("START_REPLICATION SLOT {slot} LOGICAL 0/0 (\"mode\" 'normal')\0");
        this.send(Some(b'Q'), start.as_bytes())?;
        this.until(b'W')?;
        Ok(this)
    }

    fn send(&mut self, kind: Option<u8>, body: &[u8]) -> Result<()> {
        let mut bytes: Vec<u8> = kind.into_iter().collect();
        bytes.extend(u32::try_from(body.len() + 4)?.to_be_bytes());
        bytes.extend(body);
        Ok(self.socket.write_all(&bytes)?)
    }

    fn next(&mut self) -> Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.socket.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0; length.checked_sub(4).context("a length")?];
        self.socket.read_exact(&mut body)?;
        if head[0] == b'E' {
            bail!("the walsender fails: {}", String::from_utf8_lossy(&body));
        }
        Ok((head[0], body))
    }

    fn until(&mut self, wanted: u8) -> Result<()> {
        while self.next()?.0 != wanted {}
        Ok(())
    }

    /// The next message of the stream. Says now and then what is confirmed; as long as that is
    /// nothing, the walsender tells its place whenever it may.
    fn copied(&mut self) -> Result<Vec<u8>> {
        let begun = Instant::now();
        self.socket.set_read_timeout(Some(ANSWER_EVERY))?;
        loop {
            if self.answered.elapsed() > ANSWER_EVERY {
                let mut answer = vec![b'r'];
                for _written_flushed_applied in 0..3 {
                    answer.extend(self.confirmed.0.to_be_bytes());
                }
                answer.extend([0; 9]);
                self.send(Some(b'd'), &answer)?;
                self.answered = Instant::now();
            }
            match self.socket.peek(&mut [0]) {
                Err(e) if e.kind() == ErrorKind::WouldBlock && begun.elapsed() < LIMIT => {}
                other => break other.map(drop)?,
            }
        }
        self.socket.set_read_timeout(Some(LIMIT))?;
        let (kind, body) = self.next()?;
        ensure!(kind == b'd', "a message of kind {}", char::from(kind));
        Ok(body)
    }
}

/// What has come.
#[derive(Default)]
struct Seen {
    /// Ends of commits of which marks came.
    marks: BTreeSet<Lsn>,
    /// The last place that says that all marks before it have come, and how many there were.
    place: Lsn,
    places: usize,
}

impl Seen {
    fn take(&mut self, data: &[u8]) -> Result<()> {
        match data.first() {
            Some(b'w') => {
                for message in Packet::new(data.get(25..).context("a head")?) {
                    match message? {
                        StreamMessage::CommitMark { gid, lsn } => {
                            let place = self.place;
                            ensure!(lsn > place, "{gid} ends at {lsn}, told after place {place}");
                            ensure!(self.marks.insert(lsn), "{gid} is marked twice");
                        }
                        StreamMessage::Place { lsn } => self.place = self.place.max(lsn),
                        _ => {}
                    }
                }
            }
            Some(b'k') => {
                if let Some(place) = Keepalive::decode(&data[1..])?.marked() {
                    self.places += usize::from(place > self.place);
                    self.place = self.place.max(place);
                }
            }
            other => bail!("a message that begins with {other:?}"),
        }
        Ok(())
    }
}

fn write(a: &Arena, node: usize) -> Result<()> {
    let session = a.on(node)?;
    for n in 0..ROWS {
        session.run(&format!("INSERT INTO so_rows VALUES ({})", 1000 * node + n))?;
    }
    Ok(())
}

fn marks_before_places(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE so_rows(id int PRIMARY KEY)")?;
    let slot = Slot::new(a, 1, "order")?;
    let mut stream = Walsender::start(a.cluster.node(1)?.port, slot.name())?;
    let mut seen = Seen::default();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let writers: Vec<_> =
            a.ids().into_iter().map(|id| scope.spawn(move || write(a, id))).collect();
        while !writers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            seen.take(&stream.copied()?)?;
        }
        writers.into_iter().try_for_each(|writer| writer.join().expect("no panic"))
    })?;
    let all = ROWS * a.ids().len();
    a.expect("SELECT count(*) FROM so_rows", &all.to_string())?;
    // What is committed and flushed by now is told without anything more being written.
    let end = Lsn(a.ask(1, "SELECT pg_current_wal_flush_lsn() - '0/0'")?.parse()?);
    while seen.marks.len() < all || seen.place < end {
        ensure!(
            begun.elapsed() < LIMIT,
            "{} of {all} marks and place {} of {end}",
            seen.marks.len(),
            seen.place
        );
        seen.take(&stream.copied()?)?;
    }
    // Else nothing was shown.
    ensure!(seen.places > all / 4, "only {} places were told", seen.places);
    Ok(())
}

/// A server that shuts down waits until its peers have confirmed everything. One that heeds only
/// the places that count must get to know the last one.
fn the_last_place_at_shutdown(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE so_last(id int PRIMARY KEY)")?;
    let slot = Slot::new(a, 3, "last")?;
    let node = a.cluster.node(3)?;
    let mut stream = Walsender::start(node.port, slot.name())?;
    let mut seen = Seen::default();
    for n in 0..3 {
        a.run(1, &format!("INSERT INTO so_last VALUES ({n})"))?;
    }
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| node.stop());
        // Until the walsender ends the stream.
        while let Ok(data) = stream.copied() {
            seen.take(&data)?;
            stream.confirmed = seen.place;
        }
        stop.join().expect("no panic")
    })?;
    ensure!(seen.marks.len() >= 3, "only {} marks", seen.marks.len());
    node.start()?;
    a.cluster.wait_online()?;
    until("all nodes write", LIMIT, || a.can_write().map(Some))
}
