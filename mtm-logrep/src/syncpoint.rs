//! From where a lagging node may read another node's log.
//!
//! A slot on node D holds D's log for a peer P. Its confirmed position must mean: *P has
//! everything, of every origin, that D's log holds before it*. Now and then D writes a syncpoint:
//! a position of its log and, for each origin O, an upper bound `W[O]` of what D has begun to apply
//! from O. When P reads it in D's stream, it may confirm that position as soon as its own
//! low-watermark ([`crate::progress`]) of every O has reached `W[O]`. Nothing is blocked, no table
//! is needed.
//!
//! D reads the position *first*, then the bounds, then writes the message: what comes into the log
//! between reading the bounds and writing the message is before the message, but not before the
//! position.
//!
//! Payload of the non-transactional logical message with [`PREFIX`]:
//!
//! ```text
//! version u8 = 1 | position u64 | number of origins u8 | (origin u8 | W[origin] u64)*
//! ```
//! Origins are ascending, bounds are not 0.

use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader, Writer};
use mtm_core::{Lsn, MAX_NODES, NodeId};
use std::collections::VecDeque;

/// Prefix of the logical message.
pub const PREFIX: &str = "mtm-sync";

const VERSION: u8 = 1;
/// More than this wait only when a peer is far behind; the oldest and the newest serve it best.
const WAITING_MAX: usize = 64;

/// One position for each origin; 0 is "nothing yet".
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Bounds {
    of: [Lsn; MAX_NODES as usize],
}

impl Bounds {
    /// Nothing of anybody.
    pub const fn new() -> Self {
        Self { of: [Lsn(0); MAX_NODES as usize] }
    }

    /// The position for this origin.
    pub const fn get(&self, origin: NodeId) -> Lsn {
        self.of[origin.index()]
    }

    /// Sets the position for this origin.
    pub const fn set(&mut self, origin: NodeId, lsn: Lsn) {
        self.of[origin.index()] = lsn;
    }

    /// Whether `finished` has reached these bounds for every origin but `except`.
    pub fn are_reached(&self, finished: &Self, except: NodeId) -> bool {
        let others = self.of.iter().zip(&finished.of).enumerate();
        others.filter(|(i, _)| *i != except.index()).all(|(_, (bound, have))| bound <= have)
    }
}

/// What D writes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Syncpoint {
    /// Position in D's log, read before the bounds.
    pub position: Lsn,
    /// Upper bounds of what D had begun of each origin; of D itself, the position.
    pub bounds: Bounds,
}

impl Syncpoint {
    /// Appends the message's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        let known: Vec<_> = (1..=MAX_NODES)
            .filter_map(NodeId::new)
            .filter(|origin| self.bounds.get(*origin) != Lsn(0))
            .collect();
        w.u8(VERSION);
        w.u64(self.position.0);
        w.u8(known.len() as u8);
        for origin in known {
            w.u8(origin.get());
            w.u64(self.bounds.get(origin).0);
        }
    }

    /// Reads a message that fills `bytes`.
    ///
    /// # Errors
    /// When the bytes are not exactly one message of our version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let unknown = r.error(DecodeErrorKind::Unknown("version of syncpoint"));
        if r.u8()? != VERSION {
            return Err(unknown);
        }
        let (position, mut bounds, mut last) = (Lsn(r.u64()?), Bounds::new(), 0);
        for _ in 0..r.u8()? {
            let wrong = r.error(DecodeErrorKind::Range("origin"));
            let (origin, lsn) = (r.node()?, Lsn(r.u64()?));
            if origin.get() <= last || lsn == Lsn(0) {
                return Err(wrong);
            }
            last = origin.get();
            bounds.set(origin, lsn);
        }
        r.finish()?;
        Ok(Self { position, bounds })
    }
}

/// Syncpoints that node `me` has read in one peer's stream and not confirmed yet.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Syncpoints {
    me: NodeId,
    waiting: VecDeque<(Lsn, Bounds)>,
    confirmed: Lsn,
}

impl Syncpoints {
    /// None yet; the slot was confirmed up to `confirmed`.
    pub const fn new(me: NodeId, confirmed: Lsn) -> Self {
        Self { me, waiting: VecDeque::new(), confirmed }
    }

    /// A syncpoint came in the peer's stream.
    ///
    /// Leaving one out is always safe, so when too many wait, every second one goes.
    pub fn read(&mut self, Syncpoint { position, bounds }: Syncpoint) {
        let last = self.waiting.back().map_or(self.confirmed, |(last, _)| *last);
        if position <= last {
            return;
        }
        if self.waiting.len() >= WAITING_MAX {
            let mut keep = false;
            self.waiting.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.waiting.push_back((position, bounds));
    }

    /// The position to confirm, given this node's low-watermarks. What `me` originated, it has.
    pub fn confirm(&mut self, finished: &Bounds) -> Lsn {
        while let Some((position, bounds)) = self.waiting.front()
            && bounds.are_reached(finished, self.me)
        {
            self.confirmed = *position;
            self.waiting.pop_front();
        }
        self.confirmed
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Progress;
    use proptest::prelude::*;

    fn node(n: u8) -> NodeId {
        NodeId::new(n).unwrap()
    }

    fn bounds() -> impl Strategy<Value = Bounds> {
        prop::collection::vec(prop_oneof![Just(0u64), any::<u64>()], MAX_NODES as usize).prop_map(
            |of| {
                let mut bounds = Bounds::new();
                (1..=MAX_NODES).for_each(|n| bounds.set(node(n), Lsn(of[usize::from(n) - 1])));
                bounds
            },
        )
    }

    #[derive(Clone, Copy, Debug)]
    enum Do {
        /// D begins the next transaction of this origin.
        Begin(u8),
        /// D looks where its log is.
        Look,
        /// D writes a syncpoint for where it looked, with the bounds of now.
        Write,
        /// P begins the next transaction of this origin.
        Receive(u8),
        /// P finishes one of them.
        Finish(u8, u8),
        Confirm,
    }

    fn todo() -> impl Strategy<Value = Do> {
        prop_oneof![
            4 => (2u8..=4).prop_map(Do::Begin),
            2 => Just(Do::Look),
            2 => Just(Do::Write),
            4 => (2u8..=4).prop_map(Do::Receive),
            4 => (2u8..=4, any::<u8>()).prop_map(|(o, i)| Do::Finish(o, i)),
            2 => Just(Do::Confirm),
        ]
    }

    proptest! {
        #[test]
        fn messages_round_trip(bounds in bounds(), at: u64) {
            let syncpoint = Syncpoint { position: Lsn(at), bounds };
            let mut bytes = Vec::new();
            syncpoint.encode(&mut bytes);
            prop_assert_eq!(Syncpoint::decode(&bytes), Ok(syncpoint));
            prop_assert!(Syncpoint::decode(&bytes[..bytes.len() - 1]).is_err());
            bytes.push(0);
            prop_assert!(Syncpoint::decode(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_have_one_form(tail: Vec<u8>) {
            let _ = Syncpoint::decode(&tail);
            let bytes = [&[VERSION], tail.as_slice()].concat();
            if let Ok(syncpoint) = Syncpoint::decode(&bytes) {
                let mut again = Vec::new();
                syncpoint.encode(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }

        /// P (node 1) reads the log of D (node 2), which applies what 2, 3 and 4 originate; P gets
        /// the same transactions from their origins, at other times, and ends them in any order.
        /// Whatever position P confirms, it has finished all that D's log holds before.
        #[test]
        fn what_is_confirmed_is_finished(todo in prop::collection::vec(todo(), 0..300)) {
            let (mut log, mut position) = (Vec::<(u8, u64)>::new(), Lsn(0));
            let (mut begun, mut received) = ([0u64; 5], [0u64; 5]);
            let mut open: [Vec<u64>; 5] = Default::default();
            let mut done: std::collections::BTreeSet<(u8, u64)> = Default::default();
            let mut progress = [const { None::<Progress> }; 5];
            (2..5).for_each(|o| progress[o] = Some(Progress::new(Lsn(0))));
            let mut syncpoints = Syncpoints::new(node(1), Lsn(0));
            for step in todo {
                match step {
                    Do::Begin(o) => {
                        begun[usize::from(o)] += 10;
                        log.push((o, begun[usize::from(o)]));
                    }
                    Do::Look => position = Lsn(log.len() as u64),
                    Do::Write => {
                        let mut bounds = Bounds::new();
                        (2..=4).for_each(|o| bounds.set(node(o), Lsn(begun[usize::from(o)])));
                        let mut bytes = Vec::new();
                        Syncpoint { position, bounds }.encode(&mut bytes);
                        syncpoints.read(Syncpoint::decode(&bytes).unwrap());
                    }
                    Do::Receive(o) => {
                        let i = usize::from(o);
                        if received[i] < begun[i] {
                            received[i] += 10;
                            progress[i].as_mut().unwrap().begin(Lsn(received[i]));
                            open[i].push(received[i]);
                        }
                    }
                    Do::Finish(o, which) => {
                        let i = usize::from(o);
                        if !open[i].is_empty() {
                            let at = usize::from(which) % open[i].len();
                            let lsn = open[i].swap_remove(at);
                            done.insert((o, lsn));
                            progress[i].as_mut().unwrap().finish(Lsn(lsn));
                        }
                    }
                    Do::Confirm => {
                        let mut finished = Bounds::new();
                        (2..=4).for_each(|o| finished.set(node(o), progress[usize::from(o)].as_ref().unwrap().finished()));
                        let position = syncpoints.confirm(&finished).0 as usize;
                        prop_assert!(log[..position].iter().all(|t| done.contains(t)));
                    }
                }
            }
            // Once everything is finished, the last syncpoint is confirmed.
            let mut all = Bounds::new();
            (2..=4).for_each(|o| all.set(node(o), Lsn(u64::MAX)));
            syncpoints.confirm(&all);
            prop_assert_eq!(syncpoints.waiting(), 0);
        }
    }

    #[test]
    fn a_peer_far_behind_keeps_the_oldest_and_the_newest() {
        let mut syncpoints = Syncpoints::new(node(1), Lsn(0));
        let at = |lsn| {
            let mut b = Bounds::new();
            b.set(node(2), Lsn(lsn));
            b
        };
        (1..=1_000).for_each(|n| syncpoints.read(Syncpoint { position: Lsn(n), bounds: at(n) }));
        assert!(syncpoints.waiting() <= WAITING_MAX);
        assert_eq!(syncpoints.confirm(&at(1)), Lsn(1));
        assert_eq!(syncpoints.confirm(&at(1_000)), Lsn(1_000));
    }
}
