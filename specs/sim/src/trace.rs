//! What happened in a history, for people: as lines, and for the diagram.

use crate::plan::Fault;
use crate::world::Packet;
use mtm_core::{GenNum, Gid, NodeSet};
use mtm_generations as generations;
use mtm_node::{Effect, Input};
use std::fmt;

/// A moment of a history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moment {
    /// When, in microseconds.
    pub at: u64,
    /// What.
    pub what: What,
}

/// What may be worth telling.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// The driver tells the machine of a node.
    Input(usize, Input),
    /// The machine of a node asks its driver.
    Effect(usize, Effect),
    /// A message leaves; it has a number.
    Sent {
        /// From this machine.
        from: usize,
        /// To this one.
        to: usize,
        /// Its number.
        id: u64,
        /// What it says.
        packet: Packet,
    },
    /// This message arrives.
    Arrived(u64),
    /// A transaction arrives in the stream of its origin.
    Delivered(usize, usize, Gid),
    /// A disturbance.
    Fault(Fault),
    /// Disturbances end.
    Healing,
    /// A node is in this generation now: its number, its members, and whether the node is ONLINE.
    Generation(usize, GenNum, NodeSet, bool),
    /// Anything else.
    Note(usize, String),
}

impl What {
    /// The transaction it is about.
    pub fn gid(&self) -> Option<Gid> {
        match self {
            Self::Sent { packet: Packet::Peer(message), .. }
            | Self::Input(_, Input::Message { message, .. }) => message.gid(),
            Self::Delivered(_, _, gid) => Some(*gid),
            Self::Effect(_, effect) => effect_gid(effect),
            Self::Input(_, input) => input_gid(input),
            _ => None,
        }
    }
}

const fn effect_gid(effect: &Effect) -> Option<Gid> {
    match effect {
        Effect::WriteAnnouncement(gid)
        | Effect::WriteCommit(gid)
        | Effect::Answer(gid, _)
        | Effect::GiveUp(gid)
        | Effect::Apply(gid)
        | Effect::Skip(gid)
        | Effect::Hold(gid)
        | Effect::WritePrepare(gid)
        | Effect::Discard(gid)
        | Effect::WriteAbort(gid)
        | Effect::CommitPrepared(gid)
        | Effect::RollbackPrepared(gid)
        | Effect::ApplyCommitted(gid)
        | Effect::DropPrepared(gid)
        | Effect::Install(gid, _) => Some(*gid),
        Effect::Send { message, .. } => message.gid(),
        _ => None,
    }
}

const fn input_gid(input: &Input) -> Option<Gid> {
    match input {
        Input::AnnouncementWritten(gid)
        | Input::AnnouncementFailed(gid)
        | Input::AnnouncementDurable(gid)
        | Input::Cancel(gid)
        | Input::CommitDurable(gid)
        | Input::Delivered(gid)
        | Input::TryPrepare(gid)
        | Input::PrepareDurable(gid)
        | Input::ApplyFailed(gid)
        | Input::AbortDurable(gid)
        | Input::Visible(gid)
        | Input::Finished(gid)
        | Input::Replay { gid, .. }
        | Input::Drop(gid)
        | Input::DonorHolds { gid, .. }
        | Input::RecoveryDone(gid)
        | Input::Found { gid, .. } => Some(*gid),
        _ => None,
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>10.3} ms  ", self.at as f64 / 1000.0)?;
        match &self.what {
            What::Input(i, input) => write!(f, "n{}  <- {input:?}", i + 1),
            What::Effect(i, effect) => write!(f, "n{}    {effect:?}", i + 1),
            What::Sent { from, to, packet, .. } => {
                write!(f, "n{} -> n{}  {packet:?}", from + 1, to + 1)
            }
            What::Arrived(id) => write!(f, "message {id} arrives"),
            What::Delivered(from, to, gid) => {
                write!(f, "n{} => n{}  rows of {gid}", from + 1, to + 1)
            }
            What::Fault(fault) => write!(f, "*** {fault:?}"),
            What::Healing => f.write_str("*** healing"),
            What::Generation(i, num, members, online) => {
                let how = if *online { "ONLINE in" } else { "in" };
                write!(f, "n{}  == {how} generation {num}, members {members}", i + 1)
            }
            What::Note(i, note) => write!(f, "n{}    {note}", i + 1),
        }
    }
}

/// Whether a person wants to see it: not heartbeats, and not what only repeats a message.
pub(crate) const fn is_news(input: &Input) -> bool {
    !matches!(
        input,
        Input::Generation(
            generations::Input::Wake
                | generations::Input::Connected(_)
                | generations::Input::SignOfLife { .. }
                | generations::Input::Lent { .. }
                | generations::Input::Persisted(_)
                | generations::Input::Message { .. }
        ) | Input::Message { .. }
    )
}
