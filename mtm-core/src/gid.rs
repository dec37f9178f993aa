//! The name of a transaction in the whole cluster.

use crate::wire::{DecodeError, Reader, Writer};
use crate::{GenNum, NodeId, Xid};
use core::fmt;
use core::str::FromStr;

/// Name of a transaction in the whole cluster: who began it, its number among the announcements
/// there, and the generation it was stamped with when it was announced.
///
/// Its text, `MTM-<origin>-<number>-<generation>`, is the gid of the prepared transaction on peers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gid {
    /// Node on which the transaction runs as an ordinary transaction.
    pub origin: NodeId,
    /// Its number among the origin's announcements.
    pub xid: Xid,
    /// Generation at the announcement.
    pub generation: GenNum,
}

impl Gid {
    /// What the text of every gid begins with; users' gids may not.
    pub const PREFIX: &'static str = "MTM-";

    /// Appends the 17-byte wire form.
    pub fn encode(&self, w: &mut Writer<'_>) {
        w.u8(self.origin.get());
        w.u64(self.xid.0);
        w.u64(self.generation.0);
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// When bytes are missing or the origin is no node number.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let origin = r.node()?;
        Ok(Self { origin, xid: Xid(r.u64()?), generation: GenNum(r.u64()?) })
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}-{}-{}", Self::PREFIX, self.origin, self.xid, self.generation)
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not `MTM-<origin>-<number>-<generation>`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a multimaster gid")]
pub struct ParseGidError;

impl FromStr for Gid {
    type Err = ParseGidError;

    fn from_str(text: &str) -> Result<Self, ParseGidError> {
        let gid = parse(text).ok_or(ParseGidError)?;
        // One transaction has one text: leading zeros and plus signs would make two.
        if gid.to_string() == text { Ok(gid) } else { Err(ParseGidError) }
    }
}

fn parse(text: &str) -> Option<Gid> {
    let mut parts = text.strip_prefix(Gid::PREFIX)?.split('-');
    let origin = NodeId::new(parts.next()?.parse().ok()?)?;
    let xid = Xid(parts.next()?.parse().ok()?);
    let generation = GenNum(parts.next()?.parse().ok()?);
    if parts.next().is_some() {
        return None;
    }
    Some(Gid { origin, xid, generation })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_round_trips(node in 1u8..=16, xid: u64, g: u64) {
            let gid = Gid { origin: NodeId::new(node).unwrap(), xid: Xid(xid), generation: GenNum(g) };
            prop_assert_eq!(gid.to_string().parse::<Gid>(), Ok(gid));
        }

        #[test]
        fn any_text_either_parses_to_itself_or_fails(s in "MTM-[0-9+-]{0,20}") {
            if let Ok(gid) = s.parse::<Gid>() {
                prop_assert_eq!(gid.to_string(), s);
            }
        }
    }
}
