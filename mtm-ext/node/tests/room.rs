//! Nothing is begun that would not fit into the table of transactions, also after a restart
//! (specs/adr/0115).

use mtm_core::{GenNum, Gid, Instant, LocalXid, Machine, NodeId, NodeSet, Outbox, Xid};
use mtm_generations::{Membership, Record, Timing};
use mtm_node::table::Slot;
use mtm_node::{Below, Core, Effect, Entry, Found, Input, Misuse, Node, Rejection};

const PLACES: usize = 64;
/// Of three nodes: twice as much of each, and one more, are all places.
const SHARE: u64 = 64 / 7;

struct Host {
    core: Core,
    slots: Vec<Slot<Entry>>,
}

impl Host {
    fn of(record: Record, fenced: bool) -> Self {
        let membership = Membership::new(record, Timing::default(), 1, fenced);
        Self { core: Core::new(membership, 300_000), slots: vec![Slot::FREE; PLACES] }
    }

    fn online(id: u8) -> Self {
        Self::of(Record::initial(node(id), 7, NodeSet::first(3)), false)
    }

    fn step(&mut self, input: Input) -> Result<Vec<Effect>, Misuse> {
        let mut out = Outbox::new();
        Node::new(&mut self.core, &mut self.slots).step(Instant(1), input, &mut out)?;
        Ok(out.as_slice().to_vec())
    }

    fn feed(&mut self, input: Input) -> Vec<Effect> {
        self.step(input).expect("the driver makes no mistake")
    }

    /// Announces until that is refused; how many were.
    fn announce_all(&mut self) -> u64 {
        for done in 0.. {
            let answer = self.feed(Input::Announce(LocalXid(done)));
            if answer.contains(&Effect::Rejected(LocalXid(done), Rejection::TableFull)) {
                return done;
            }
            assert!(matches!(answer[..], [Effect::WriteAnnouncement(_), ..]), "{answer:?}");
        }
        unreachable!("there is an end")
    }
}

fn node(id: u8) -> NodeId {
    NodeId::new(id).expect("a node")
}

fn gid(origin: u8, xid: u64) -> Gid {
    Gid { origin: node(origin), xid: Xid(xid), generation: GenNum(1) }
}

fn below(origin: u8, xid: u64) -> Below {
    let mut below = [Xid(0); mtm_core::MAX_NODES as usize];
    below[node(origin).index()] = Xid(xid);
    below
}

#[test]
fn an_origin_announces_its_share_and_goes_on_when_some_are_saved_as_forgotten() {
    let mut host = Host::online(1);
    // The first number is 1.
    assert_eq!(host.announce_all(), SHARE - 1);
    host.feed(Input::Saved(below(1, 5)));
    assert_eq!(host.announce_all(), 5);
}

#[test]
fn a_peer_holds_what_is_beyond_the_origins_share() {
    let mut host = Host::online(1);
    let (last, beyond) = (gid(2, SHARE - 1), gid(2, SHARE));
    assert_eq!(host.feed(Input::Delivered(last))[0], Effect::Apply(last));
    assert_eq!(host.feed(Input::Delivered(beyond))[0], Effect::Hold(beyond));
    // Others have shares of their own.
    assert_eq!(host.feed(Input::Delivered(gid(3, 1)))[0], Effect::Apply(gid(3, 1)));
    host.feed(Input::Saved(below(2, 1)));
    assert_eq!(host.feed(Input::Delivered(beyond))[0], Effect::Apply(beyond));
}

/// A node that is no member and reads ahead.
fn outsider() -> Host {
    let mut record = Record::initial(node(3), 7, NodeSet::first(3));
    record.current.generation.members = NodeSet::first(2);
    Host::of(record, false)
}

#[test]
fn recovery_waits_for_room_and_goes_on() {
    let mut host = outsider();
    let num = GenNum(1);
    let most = PLACES as u64 - 1;
    for xid in 0..most {
        let gid = gid(1, xid);
        assert_eq!(host.feed(Input::Replay { num, gid })[0], Effect::ApplyCommitted(gid));
        host.feed(Input::RecoveryDone(gid));
    }
    let full = gid(2, 1);
    assert_eq!(host.feed(Input::Replay { num, gid: full })[0], Effect::Hold(full));
    let holds = Input::DonorHolds { num, gid: full, accepted_abort: false };
    assert_eq!(host.feed(holds)[0], Effect::Hold(full));
    // The donor's syncpoint alone is not enough: a restart now would find all of them.
    host.feed(Input::Syncpoint { num, below: below(1, most) });
    assert_eq!(host.feed(Input::Replay { num, gid: full })[0], Effect::Hold(full));
    host.feed(Input::Saved(below(1, most)));
    assert_eq!(host.feed(Input::Replay { num, gid: full })[0], Effect::ApplyCommitted(full));
}

#[test]
fn a_restart_finds_places_for_everything() {
    // Whatever the order is in which streams bring their transactions.
    let mut host = Host::online(1);
    let mut begun: Vec<Gid> = (1..=host.announce_all()).map(|xid| gid(1, xid)).collect();
    for xid in 0..1000 {
        for origin in [2, 3] {
            let gid = gid(origin, xid);
            if host.feed(Input::Delivered(gid)).contains(&Effect::Apply(gid)) {
                begun.push(gid);
            }
        }
    }
    let asked = gid(3, 40);
    host.feed(Input::Message { from: node(3), message: mtm_node::PeerMessage::AskAbort(asked) });
    if Node::new(&mut host.core, &mut host.slots).transaction(&asked).is_some() {
        begun.push(asked);
    }
    assert!(begun.len() as u64 > 3 * (SHARE - 1));
    let mut restarted = Host::of(Record::initial(node(1), 7, NodeSet::first(3)), true);
    for gid in begun {
        restarted.feed(Input::Found { gid, found: Found::Committed });
    }
}

#[test]
fn a_number_out_of_all_bounds_takes_nobodys_room() {
    let mut host = Host::online(1);
    let wild = gid(2, u64::MAX);
    host.feed(Input::Message { from: node(2), message: mtm_node::PeerMessage::AskAbort(wild) });
    assert!(Node::new(&mut host.core, &mut host.slots).transaction(&wild).is_none());
    assert_eq!(host.feed(Input::Delivered(gid(3, 1)))[0], Effect::Apply(gid(3, 1)));
}
