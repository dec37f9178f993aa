//! Everything that two nodes say to each other, and its bytes.
//!
//! One byte that names the channel, then the message of that channel. A message travels at most
//! once, in no order with others: whoever waits for an answer asks again.
//!
//! | first byte | channel | then |
//! |---|---|---|
//! | `G` | generations | `mtm_generations::Message` |
//! | `P` | transactions | [`PeerMessage`] |
//! | `R` | a refusal with its texts | the gid, SQLSTATE (5 bytes), message, detail |
//! | `L` | a sign of life with the end of the sender's flushed log | 8 bytes, then 8 of its clock |
//! | `H` | the answer to it | the 8 bytes of the clock |

use crate::message::{MAX_TEXT, Refusal};
use crate::peer_message::PeerMessage;
use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader, Writer};
use mtm_core::{GenNum, Gid, Instant, Lsn};
use mtm_generations as generations;

const GENERATION: u8 = b'G';
const PEER: u8 = b'P';
const REFUSED: u8 = b'R';
const ALIVE: u8 = b'L';
const HEARD: u8 = b'H';

/// A message from one node to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wire<'a> {
    /// About generations; a status is the heartbeat.
    Generation(generations::Message),
    /// About a transaction.
    Peer(PeerMessage),
    /// Means [`PeerMessage::Refused`], and says why.
    Refused(Gid, Refusal<'a>),
    /// A sign of life: the end of the sender's flushed log, and its own clock.
    Alive(Lsn, Instant),
    /// The answer to the sign of life that was sent then, and for how long the receiver may rely on
    /// the sender, which is in this generation ([`crate::Effect::Lend`]).
    Heard(Instant, u64, GenNum),
}

impl<'a> Wire<'a> {
    /// Appends the message's bytes. Longer texts than [`MAX_TEXT`] are cut.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Generation(message) => {
                out.push(GENERATION);
                message.encode(out);
            }
            Self::Peer(message) => {
                out.push(PEER);
                message.encode(out);
            }
            Self::Refused(gid, refusal) => {
                let mut w = Writer::new(out);
                w.u8(REFUSED);
                gid.encode(&mut w);
                refusal.encode(&mut w);
            }
            Self::Alive(lsn, at) => {
                let mut w = Writer::new(out);
                w.u8(ALIVE);
                w.u64(lsn.0);
                w.u64(at.0);
            }
            Self::Heard(at, for_us, num) => {
                let mut w = Writer::new(out);
                w.u8(HEARD);
                w.u64(at.0);
                w.u64(*for_us);
                w.u64(num.0);
            }
        }
    }

    /// Reads one message that fills `bytes`.
    ///
    /// # Errors
    /// When the bytes are not exactly one message.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let unknown = r.error(DecodeErrorKind::Unknown("channel"));
        let channel = r.u8()?;
        let rest = r.take(r.remaining())?;
        Ok(match channel {
            GENERATION => Self::Generation(generations::Message::decode(rest)?),
            PEER => Self::Peer(PeerMessage::decode(rest)?),
            REFUSED => {
                let mut r = Reader::new(rest);
                let gid = Gid::decode(&mut r)?;
                let refusal = Refusal::decode(&mut r)?;
                r.finish()?;
                Self::Refused(gid, refusal)
            }
            ALIVE => {
                let mut r = Reader::new(rest);
                let (lsn, at) = (Lsn(r.u64()?), Instant(r.u64()?));
                r.finish()?;
                Self::Alive(lsn, at)
            }
            HEARD => {
                let mut r = Reader::new(rest);
                let (at, for_us, num) = (Instant(r.u64()?), r.u64()?, GenNum(r.u64()?));
                r.finish()?;
                Self::Heard(at, for_us, num)
            }
            _ => return Err(unknown),
        })
    }
}

impl<'a> Refusal<'a> {
    pub(crate) fn encode(&self, w: &mut Writer<'_>) {
        w.raw(&self.sqlstate);
        w.str(cut(self.message));
        w.str(cut(self.detail));
    }

    pub(crate) fn decode(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let mut sqlstate = [0; 5];
        sqlstate.copy_from_slice(r.take(5)?);
        Ok(Self { sqlstate, message: short(r)?, detail: short(r)? })
    }
}

/// A text no longer than this node would send.
fn short<'a>(r: &mut Reader<'a>) -> Result<&'a str, DecodeError> {
    let long = r.error(DecodeErrorKind::Range("text of a refusal"));
    let text = r.str()?;
    if text.len() > MAX_TEXT { Err(long) } else { Ok(text) }
}

/// The longest prefix of `text` within `MAX_TEXT` bytes that ends at a character.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use mtm_core::{GenNum, NodeId, NodeSet, Xid};
    use mtm_generations::{Elected, Generation};
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    struct Parts {
        gid: Gid,
        set: NodeSet,
        num: GenNum,
        texts: (String, String),
        which: u8,
    }

    fn any_parts() -> impl Strategy<Value = Parts> {
        let texts = ("\\PC{0,200}", "\\PC{0,300}");
        (1u8..=16, any::<(u64, u64, u64)>(), 0u64..1 << 16, texts, 0u8..13).prop_map(
            |(node, (x, g, num), set, texts, which)| {
                let origin = NodeId::new(node).unwrap();
                let gid = Gid { origin, xid: Xid(x), generation: GenNum(g) };
                let set = NodeSet::from_bits(set).unwrap();
                Parts { gid, set, num: GenNum(num), texts, which }
            },
        )
    }

    fn wire(parts: &Parts) -> Wire<'_> {
        let Parts { gid, set, num, .. } = *parts;
        let initial = Elected::initial(NodeSet::first(5));
        let generation = Generation { num, members: set, ..initial.generation };
        let current = Elected { generation, donors: set };
        let refusal =
            Refusal { sqlstate: *b"40P01", message: &parts.texts.0, detail: &parts.texts.1 };
        let g = generations::Message::Elected(current);
        match parts.which {
            0 => Wire::Generation(g),
            1 => Wire::Generation(generations::Message::VoteRequest(generation)),
            2 => Wire::Generation(generations::Message::Vote { num, last_online_in: num }),
            3 => Wire::Generation(generations::Message::VoteRefused { num, last_vote: num }),
            4 => Wire::Generation(generations::Message::Status {
                hears: set,
                current,
                last_vote: num,
                last_online_in: num,
            }),
            5 => Wire::Peer(PeerMessage::Prepared(gid)),
            6 => Wire::Peer(PeerMessage::AskReport(gid, num)),
            7 => Wire::Peer(PeerMessage::Refused(gid)),
            8 | 9 => Wire::Refused(gid, refusal),
            10 => Wire::Alive(Lsn(gid.xid.0), Instant(num.0)),
            11 => Wire::Generation(generations::Message::Released(num)),
            _ => Wire::Heard(Instant(gid.xid.0), num.0, num),
        }
    }

    fn bytes(message: &Wire<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn messages_round_trip_and_cut_ones_are_errors(parts in any_parts()) {
            let message = wire(&parts);
            let mut sent = bytes(&message);
            let long = parts.texts.0.len().max(parts.texts.1.len()) > MAX_TEXT;
            if !long {
                prop_assert_eq!(Wire::decode(&sent), Ok(message));
            }
            prop_assert_eq!(bytes(&Wire::decode(&sent).unwrap()), sent.clone());
            for end in 0..sent.len() {
                prop_assert!(Wire::decode(&sent[..end]).is_err());
            }
            sent.push(0);
            prop_assert!(Wire::decode(&sent).is_err());
        }

        #[test]
        fn what_reads_encodes_to_the_same_bytes(bytes: Vec<u8>, channel in "[GPRLH]") {
            let sent = [channel.as_bytes(), &bytes].concat();
            for sent in [sent, bytes] {
                if let Ok(message) = Wire::decode(&sent) {
                    prop_assert_eq!(self::bytes(&message), sent);
                }
            }
        }

        #[test]
        fn long_texts_are_cut_at_a_character(text in "\\PC{0,600}") {
            let kept = cut(&text);
            prop_assert!(kept.len() <= MAX_TEXT && text.starts_with(kept));
            prop_assert!(kept == text || kept.len() > MAX_TEXT - 4);
        }
    }

    #[test]
    fn each_channel_has_its_own_byte() {
        let origin = NodeId::new(1).unwrap();
        let gid = Gid { origin, xid: Xid(7), generation: GenNum(2) };
        let refusal = Refusal { sqlstate: *b"40001", message: "m", detail: "" };
        let first = |message: Wire<'_>| bytes(&message)[0];
        let vote = generations::Message::VoteRefused { num: GenNum(1), last_vote: GenNum(1) };
        let all = [
            first(Wire::Generation(vote)),
            first(Wire::Peer(PeerMessage::Prepared(gid))),
            first(Wire::Refused(gid, refusal)),
            first(Wire::Alive(Lsn(7), Instant(1))),
            first(Wire::Heard(Instant(1), 2, GenNum(3))),
        ];
        assert_eq!(all, *b"GPRLH");
        assert!(Wire::decode(b"").is_err() && Wire::decode(b"x").is_err());
    }

    #[test]
    fn too_long_texts_are_refused() {
        let origin = NodeId::new(1).unwrap();
        let gid = Gid { origin, xid: Xid(7), generation: GenNum(2) };
        let mut sent = vec![REFUSED];
        let mut w = Writer::new(&mut sent);
        gid.encode(&mut w);
        w.raw(b"40001");
        w.str(&"x".repeat(MAX_TEXT + 1));
        w.str("");
        assert!(Wire::decode(&sent).is_err());
    }
}
