//! Nobody hears of a transaction whose number a crash may make be used again (specs/adr/0114).

use mtm_core::{GenNum, Gid, Instant, LocalXid, Machine, NodeId, NodeSet, Outbox, Xid};
use mtm_generations::{Elected, Generation, Membership, Message, Record, Timing};
use mtm_node::table::Slot;
use mtm_node::{Core, Effect, Entry, Found, Input, Node, PeerMessage};

const RETRY_US: u64 = 300_000;

struct Host {
    core: Core,
    slots: Vec<Slot<Entry>>,
    now: Instant,
}

impl Host {
    fn new(fenced: bool) -> Self {
        let record = Record::initial(node(3), 7, NodeSet::first(3));
        let membership = Membership::new(record, Timing::default(), 1, fenced);
        let core = Core::new(membership, RETRY_US);
        Self { core, slots: vec![Slot::FREE; 64], now: Instant(1) }
    }

    fn feed(&mut self, input: Input) -> Vec<Effect> {
        let mut out = Outbox::new();
        let mut node = Node::new(&mut self.core, &mut self.slots);
        node.step(self.now, input, &mut out).expect("the driver makes no mistake");
        out.as_slice().to_vec()
    }

    /// The others go on without this node.
    fn excluded(&mut self) -> Vec<Effect> {
        let members = NodeSet::first(2);
        let generation =
            Generation { num: GenNum(2), members, ..Generation::initial(NodeSet::first(3)) };
        let message = Message::Elected(Elected { generation, donors: members });
        self.feed(Input::Generation(mtm_generations::Input::Message { from: node(1), message }))
    }

    /// Whom it asks for the outcome when it is time to ask again.
    fn asks(&mut self, gid: Gid) -> NodeSet {
        self.now = self.now.plus_us(RETRY_US);
        let effects = self.feed(Input::Generation(mtm_generations::Input::Wake));
        let asked = effects.iter().filter_map(|effect| match effect {
            Effect::Send { to, message } if message.gid() == Some(gid) => {
                assert_eq!(*message, PeerMessage::Query(gid));
                Some(*to)
            }
            _ => None,
        });
        asked.fold(NodeSet::EMPTY, NodeSet::union)
    }
}

fn node(id: u8) -> NodeId {
    NodeId::new(id).expect("a node")
}

fn gid(xid: u64) -> Gid {
    Gid { origin: node(3), xid: Xid(xid), generation: GenNum(1) }
}

#[test]
fn what_is_given_up_is_asked_for_once_its_announcement_is_durable() {
    let mut host = Host::new(false);
    assert_eq!(host.feed(Input::Announce(LocalXid(1)))[0], Effect::WriteAnnouncement(gid(1)));
    host.feed(Input::AnnouncementWritten(gid(1)));
    assert!(host.excluded().contains(&Effect::GiveUp(gid(1))));
    // A crash now would make the next transaction bear this number.
    assert_eq!(host.asks(gid(1)), NodeSet::EMPTY);
    host.feed(Input::AnnouncementDurable(gid(1)));
    assert_eq!(host.asks(gid(1)), NodeSet::only(node(1)));
}

#[test]
fn what_a_restart_finds_announced_is_asked_for() {
    let mut host = Host::new(true);
    host.feed(Input::Found { gid: gid(1), found: Found::AnnouncedOnly { local: LocalXid(1) } });
    host.feed(Input::ScanComplete { next: Xid(2) });
    host.excluded();
    assert_eq!(host.asks(gid(1)), NodeSet::only(node(1)));
}
