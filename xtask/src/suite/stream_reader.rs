//! Reads what a node's output plugin says, through SQL, into something that can be compared.

use super::arena::Arena;
use crate::host::client;
use crate::server::DATABASE;
use crate::wait::until;
use anyhow::{Context, Result, bail, ensure};
use mtm_core::{GenNum, Gid, Lsn};
use mtm_logrep::row::{Relation, RowMessage, RowReader, Tuple, Value};
use mtm_logrep::stream::{Packet, StreamMessage};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

/// What a message said, after the pieces before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// Pieces of an announced transaction.
    Announced,
    /// An announcement that recovery passes over.
    Announcement,
    Mark,
    Replay,
    ReplayPrepared,
    Discard,
    Held(bool),
    HeldElsewhere(bool),
    HeldGone(bool),
    ParallelSafe(GenNum),
    Syncpoint([u64; 16]),
    /// An announced transaction that is over by now.
    Over,
    /// Something of a transaction in progress, or a refusal.
    Other,
}

/// One event of a stream.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) said: Said,
    pub(super) gid: Option<Gid>,
    pub(super) lsn: Lsn,
    /// Number of pieces and the length of the longest.
    pub(super) pieces: (usize, usize),
    /// Row messages, one after the other.
    payload: Vec<u8>,
}

impl Event {
    /// The transaction as origin and number.
    pub(super) fn who(&self) -> (usize, u64) {
        self.gid.map_or((0, 0), |gid| (usize::from(gid.origin.get()), gid.xid.0))
    }

    /// How often each kind of row message occurs: `+` for rows that came, `~` for changed ones,
    /// `-` for removed ones, `0` for emptied tables, `!` for DDL.
    pub(super) fn counts(&self) -> Result<BTreeMap<char, usize>> {
        let mut counts = BTreeMap::new();
        for message in RowReader::new(&self.payload) {
            let kind = match message? {
                RowMessage::Relation(_) | RowMessage::Subxact(_) | RowMessage::User(_) => continue,
                RowMessage::Insert { .. } => '+',
                RowMessage::Update { .. } => '~',
                RowMessage::Delete { .. } => '-',
                RowMessage::Truncate { .. } => '0',
                RowMessage::Ddl(_) => '!',
            };
            *counts.entry(kind).or_default() += 1;
        }
        Ok(counts)
    }

    /// How often it says what the transaction does to a user's two-phase transaction.
    pub(super) fn names(&self) -> Result<usize> {
        let mut names = 0;
        for message in RowReader::new(&self.payload) {
            names += usize::from(matches!(message?, RowMessage::User(_)));
        }
        Ok(names)
    }

    /// The new rows in words: `+table(1,text)`.
    pub(super) fn rows(&self) -> Result<String> {
        let mut tables: Vec<Relation<'_>> = Vec::new();
        let mut out = String::new();
        let name = |tables: &[Relation<'_>], table: u32| {
            let found = tables.get(table as usize).map(Relation::name);
            String::from_utf8_lossy(found.unwrap_or_default()).into_owned()
        };
        for message in RowReader::new(&self.payload) {
            match message? {
                RowMessage::Relation(relation) => tables.push(relation),
                RowMessage::Insert { table, new } => {
                    write!(out, "+{}({})", name(&tables, table), words(&new))?;
                }
                RowMessage::Update { table, new, .. } => {
                    write!(out, "~{}({})", name(&tables, table), words(&new))?;
                }
                RowMessage::Delete { table, .. } => write!(out, "-{}", name(&tables, table))?,
                RowMessage::Truncate { tables: emptied, .. } => {
                    for table in emptied.iter() {
                        write!(out, "0{}", name(&tables, table))?;
                    }
                }
                RowMessage::Ddl(_) => out.push('!'),
                // Names are none of the rows.
                RowMessage::User(_) => {}
                RowMessage::Subxact(_) => bail!("subtransactions are told apart"),
            }
        }
        Ok(out)
    }
}

fn words(tuple: &Tuple<'_>) -> String {
    let one = |value: Value<'_>| match value {
        Value::Null => "~".to_owned(),
        Value::Unchanged => "=".to_owned(),
        Value::Binary(bytes) if bytes.len() == 4 && bytes[0] == 0 => {
            u32::from_be_bytes(bytes.try_into().expect("four bytes")).to_string()
        }
        Value::Text(bytes) | Value::Binary(bytes) => String::from_utf8_lossy(bytes).into_owned(),
    };
    let values: Vec<String> = tuple.values().map(one).collect();
    values.join(",")
}

/// A slot of a check, dropped with it.
pub(super) struct Slot<'a> {
    arena: &'a Arena,
    /// Where it is.
    pub(super) node: usize,
    name: String,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let drop = format!("SELECT pg_drop_replication_slot('{}')", self.name);
        // A session that has just ended may still have it.
        let dropped = until("the slot is free", Duration::from_secs(10), || {
            Ok(self.arena.run(self.node, &drop).is_ok().then_some(()))
        });
        if let Err(error) = dropped {
            println!("    the slot stays: {error:#}");
        }
    }
}

impl<'a> Slot<'a> {
    /// Makes a slot like those of peers.
    pub(super) fn new(arena: &'a Arena, node: usize, name: &str) -> Result<Self> {
        let name = format!("suite_{name}");
        arena.run(
            node,
            &format!(
                "SELECT pg_create_logical_replication_slot('{name}', 'multimaster', false, true)"
            ),
        )?;
        Ok(Self { arena, node, name })
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The statement that reads it; `verb` is peek or get.
    pub(super) fn query(&self, verb: &str, options: &str) -> String {
        let options: String = options.split(' ').map(|word| format!(", '{word}'")).collect();
        format!(
            "SELECT data FROM pg_logical_slot_{verb}_binary_changes('{}', null, null{options})",
            self.name
        )
    }

    /// Passes over everything there is now.
    pub(super) fn skip(&self) -> Result<()> {
        self.advance("pg_current_wal_flush_lsn()")
    }

    /// Reads the slot as peers do, in mode normal, until the result is dropped.
    pub(super) fn follow(&self) -> Result<Follower> {
        let node = self.arena.cluster.node(self.node)?;
        let output = self.arena.cluster.dir.join(format!("{}.stream", self.name));
        let mut command = client("pg_recvlogical");
        command.args(["-h", "127.0.0.1", "-U", DATABASE, "-d", DATABASE, "--start", "--no-loop"]);
        command.args(["-p", &node.port.to_string(), "-S", &self.name, "--fsync-interval=0"]);
        command.args(["-o", "mode=normal", "-f"]).arg(&output);
        let child = command.spawn().context("pg_recvlogical")?;
        let follower = Follower { child, output };
        let active =
            format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{}'", self.name);
        until("pg_recvlogical reads", Duration::from_secs(10), || {
            Ok((self.arena.ask(self.node, &active)? == "t").then_some(()))
        })?;
        Ok(follower)
    }

    /// Confirms what lies before a place.
    pub(super) fn advance(&self, to: &str) -> Result<()> {
        let advance = format!("SELECT pg_replication_slot_advance('{}', {to})", self.name);
        self.arena.run(self.node, &advance).map(|_| ())
    }

    /// What the plugin says in this mode, from the confirmed place on, without announcements that
    /// recovery passes over, and without the node's own syncpoints, which come when it likes.
    pub(super) fn peek(&self, options: &str) -> Result<Vec<Event>> {
        let mut events = self.peek_all(options)?;
        let is_of_checks =
            |event: &Event| !matches!(event.said, Said::Announcement | Said::Syncpoint(_));
        events.retain(is_of_checks);
        Ok(events)
    }

    /// What the plugin says in this mode, from the confirmed place on.
    pub(super) fn peek_all(&self, options: &str) -> Result<Vec<Event>> {
        let session = self.arena.on(self.node)?;
        // What does not fit goes to disk, or out in parts.
        session.run("SET logical_decoding_work_mem = '64kB'")?;
        let rows = session.run(&self.query("peek", options))?;
        let mut events = Vec::new();
        let mut pieces = Event::new(Said::Other, None, Lsn(0));
        for text in rows.into_iter().flatten().flatten() {
            let bytes = unhex(&text)?;
            for message in Packet::new(&bytes) {
                take(message?, &mut pieces, &mut events)?;
            }
        }
        ensure!(pieces.payload.is_empty(), "pieces at the end belong to nothing");
        let places: Vec<Lsn> =
            events.iter().filter(|e| e.lsn != Lsn(0)).map(|event| event.lsn).collect();
        ensure!(places.is_sorted(), "the stream goes back: {places:?}");
        Ok(events)
    }
}

impl Event {
    const fn new(said: Said, gid: Option<Gid>, lsn: Lsn) -> Self {
        Self { said, gid, lsn, pieces: (0, 0), payload: Vec::new() }
    }

    fn add(&mut self, payload: &[u8]) {
        self.payload.extend_from_slice(payload);
        self.pieces = (self.pieces.0 + 1, self.pieces.1.max(payload.len()));
    }
}

fn take(message: StreamMessage<'_>, pieces: &mut Event, events: &mut Vec<Event>) -> Result<()> {
    use StreamMessage as M;
    let zero = Lsn(0);
    let (said, gid, lsn) = match message {
        M::ReplayPiece { payload } => {
            pieces.add(payload);
            return Ok(());
        }
        M::Piece { gid, lsn, last, payload, .. } => {
            pieces.add(payload);
            if !last {
                return Ok(());
            }
            (Said::Announced, Some(gid), lsn)
        }
        M::Announced { gid, lsn } => (Said::Announcement, Some(gid), lsn),
        M::CommitMark { gid, lsn } => (Said::Mark, Some(gid), lsn),
        M::Replay { gid, lsn } => (Said::Replay, Some(gid), lsn),
        M::ReplayPrepared { gid, lsn } => (Said::ReplayPrepared, Some(gid), lsn),
        M::ReplayDiscard => (Said::Discard, None, zero),
        M::Held { gid, accepted_abort } => (Said::Held(accepted_abort), Some(gid), zero),
        M::HeldElsewhere { gid, accepted_abort } => {
            (Said::HeldElsewhere(accepted_abort), Some(gid), zero)
        }
        M::HeldGone { gid, accepted_abort } => (Said::HeldGone(accepted_abort), Some(gid), zero),
        M::ParallelSafe { num, lsn } => (Said::ParallelSafe(num), None, lsn),
        // The node writes its own at any time; those of a check name a sixteenth node.
        M::Syncpoint { below, .. } if below[15].0 == 0 => return Ok(()),
        M::Syncpoint { lsn, below } => (Said::Syncpoint(below.map(|xid| xid.0)), None, lsn),
        M::Unavailable { gid, lsn } => (Said::Over, Some(gid), lsn),
        M::EarlyDone { gid, lsn, .. } | M::Unshippable { gid, lsn, .. } => {
            (Said::Other, Some(gid), lsn)
        }
        M::Early { .. } | M::EarlyAbort { .. } | M::Place { .. } => (Said::Other, None, zero),
    };
    let carries = matches!(
        said,
        Said::Announced | Said::Replay | Said::Discard | Said::Held(_) | Said::HeldGone(_)
    );
    ensure!(carries || pieces.payload.is_empty(), "pieces before {message:?}");
    let before = std::mem::replace(pieces, Event::new(Said::Other, None, zero));
    events.push(Event { said, gid, lsn, ..before });
    Ok(())
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    let digits = text.strip_prefix("\\x").context("not a bytea")?.as_bytes();
    let digit = |d: u8| (d as char).to_digit(16).context("not a hex digit");
    let pair = |pair: &[u8]| Ok((digit(pair[0])? * 16 + digit(pair[1])?) as u8);
    digits.chunks_exact(2).map(pair).collect()
}

/// A process that reads a slot as peers do.
pub(super) struct Follower {
    child: Child,
    output: PathBuf,
}

impl Follower {
    /// What it has read by now.
    pub(super) fn bytes(&self) -> Result<Vec<u8>> {
        Ok(std::fs::read(&self.output)?)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.output);
    }
}

/// Bytes as a literal.
pub(super) fn hex(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("'\\x{digits}'::bytea")
}
