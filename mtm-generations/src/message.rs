//! Messages of [`Membership`](crate::Membership) and their bytes.
//!
//! One tag byte, then the fields in the order of the variants, big-endian; node sets are 16 bits.
//! Every message may be lost, doubled, delayed and reordered.

use crate::generation::{Elected, Generation, node_set};
use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader, Writer};
use mtm_core::{GenNum, NodeSet};

/// What nodes tell each other about generations.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Message {
    /// The heartbeat: what the sender hears and where it stands.
    Status {
        /// Peers the sender hears, itself included; only itself if it wants to be left out.
        hears: NodeSet,
        /// The sender's current generation.
        current: Elected,
        /// The sender's last vote.
        last_vote: GenNum,
        /// Last generation in which the sender was ONLINE.
        last_online_in: GenNum,
    },
    /// The sender proposes this generation and asks for a vote.
    VoteRequest(Generation),
    /// The sender's one vote for this number.
    Vote {
        /// The number voted for.
        num: GenNum,
        /// Last generation in which the voter was ONLINE: it will not be in one between.
        last_online_in: GenNum,
    },
    /// No vote: the number is used up or the proposal is not acceptable.
    VoteRefused {
        /// The number asked for.
        num: GenNum,
        /// The refusing node's last vote; a later proposal needs a higher number.
        last_vote: GenNum,
    },
    /// This generation was elected.
    Elected(Elected),
    /// The sender relies on nothing that was lent to it in generations below
    /// ([`Effect::Lend`](crate::Effect::Lend)).
    Released(GenNum),
}

const STATUS: u8 = b'S';
const VOTE_REQUEST: u8 = b'Q';
const VOTE: u8 = b'V';
const VOTE_REFUSED: u8 = b'N';
const ELECTED: u8 = b'E';
const RELEASED: u8 = b'R';

impl Message {
    /// Appends the message's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        match self {
            Self::Status { hears, current, last_vote, last_online_in } => {
                w.u8(STATUS);
                w.u16(hears.bits() as u16);
                current.encode(&mut w);
                w.u64(last_vote.0);
                w.u64(last_online_in.0);
            }
            Self::VoteRequest(generation) => {
                w.u8(VOTE_REQUEST);
                generation.encode(&mut w);
            }
            Self::Vote { num, last_online_in } => {
                w.u8(VOTE);
                w.u64(num.0);
                w.u64(last_online_in.0);
            }
            Self::VoteRefused { num, last_vote } => {
                w.u8(VOTE_REFUSED);
                w.u64(num.0);
                w.u64(last_vote.0);
            }
            Self::Elected(elected) => {
                w.u8(ELECTED);
                elected.encode(&mut w);
            }
            Self::Released(num) => {
                w.u8(RELEASED);
                w.u64(num.0);
            }
        }
    }

    /// Reads one message that fills `bytes`.
    ///
    /// # Errors
    /// When the bytes are not exactly one message.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let unknown = r.error(DecodeErrorKind::Unknown("message tag"));
        let message = match r.u8()? {
            STATUS => Self::Status {
                hears: node_set(&mut r)?,
                current: Elected::decode(&mut r)?,
                last_vote: GenNum(r.u64()?),
                last_online_in: GenNum(r.u64()?),
            },
            VOTE_REQUEST => Self::VoteRequest(Generation::decode(&mut r)?),
            VOTE => Self::Vote { num: GenNum(r.u64()?), last_online_in: GenNum(r.u64()?) },
            VOTE_REFUSED => {
                Self::VoteRefused { num: GenNum(r.u64()?), last_vote: GenNum(r.u64()?) }
            }
            ELECTED => Self::Elected(Elected::decode(&mut r)?),
            RELEASED => Self::Released(GenNum(r.u64()?)),
            _ => return Err(unknown),
        };
        r.finish()?;
        Ok(message)
    }
}
