//! The referee: a small database of its own, which keeps what it has granted.

use super::{Packet, World, node};
use crate::planted::Driver;
use mtm_core::GenNum;

impl World {
    /// A request arrives at the referee. Its row is durable before it answers.
    pub(super) fn ask_referee(&mut self, from: usize, packet: Packet) {
        if !self.referee_up {
            return;
        }
        match packet {
            Packet::AskReferee(num) => {
                let granted = self.referee.request(node(from), num).is_ok();
                self.coverage.grants += u64::from(granted);
                let referee = self.hosts.len();
                self.send_to(referee, from, Packet::Referee(num, granted));
            }
            Packet::CleanReferee(num) => {
                let any = self.neglects(Driver::CleanAnyNumber);
                self.referee.clean(if any { GenNum(u64::MAX) } else { num });
            }
            Packet::Generation(_)
            | Packet::Peer(_)
            | Packet::Alive { .. }
            | Packet::Lend { .. }
            | Packet::Closed(_)
            | Packet::Referee(..) => {}
        }
    }
}
