//! What readers must not miss, and when a commit is there for all of them (specs/adr/0118).

use mtm_core::{GenNum, Gid, Instant, LocalXid, Machine, NodeId, NodeSet, Outbox, Xid};
use mtm_generations::{
    Elected, Generation, Input as Generations, Membership, Message, Record, Timing,
};
use mtm_node::table::Slot;
use mtm_node::{Core, Effect, Entry, Found, Input, Node, PeerMessage};
use mtm_paxos::commit::Decree;

fn node(id: u8) -> NodeId {
    NodeId::new(id).expect("a node")
}

#[test]
fn what_a_restart_finds_is_settled_before_readers_are_answered() {
    let record = Record::initial(node(1), 7, NodeSet::first(3));
    let mut core = Core::new(Membership::new(record, Timing::default(), 1, true), 300_000);
    let mut slots = vec![Slot::<Entry>::FREE; 64];
    let mut feed = |input| {
        let mut out = Outbox::new();
        let mut node = Node::new(&mut core, &mut slots);
        node.step(Instant(1), input, &mut out).expect("the driver makes no mistake");
        node.may_lack_commits()
    };
    let gid = |xid| Gid { origin: node(2), xid: Xid(xid), generation: GenNum(1) };
    let decided =
        |gid| Input::Message { from: node(2), message: PeerMessage::Decided(gid, Decree::Commit) };
    feed(Input::Found { gid: gid(4), found: Found::Committed });
    assert!(feed(Input::Found { gid: gid(5), found: Found::Prepared }));
    feed(Input::ScanComplete { next: Xid(1) });
    // To be committed is not committed.
    assert!(feed(decided(gid(5))));
    assert!(!feed(Input::Finished(gid(5))));
    // What comes later is in nobody's way: it is acknowledged when it is seen here.
    feed(Input::Delivered(gid(6)));
    feed(Input::TryPrepare(gid(6)));
    assert!(!feed(Input::PrepareDurable(gid(6))));
}

/// A node with a machine and, if it may, its readers.
struct Host {
    core: Core,
    slots: Vec<Slot<Entry>>,
}

impl Host {
    fn new(id: u8) -> Self {
        let record = Record::initial(node(id), 7, NodeSet::first(3));
        let timing = Timing { lease_us: 1_000_000, ..Timing::default() };
        let core = Core::new(Membership::new(record, timing, 1, false), 300_000);
        Self { core, slots: vec![Slot::<Entry>::FREE; 64] }
    }

    fn node(&mut self) -> Node<'_> {
        Node::new(&mut self.core, &mut self.slots)
    }

    /// A step, and what has to be made durable is.
    fn feed(&mut self, input: Input) -> Vec<Effect> {
        let mut out = Outbox::new();
        self.node().step(Instant(5), input, &mut out).expect("the driver makes no mistake");
        let mut effects = out.as_slice().to_vec();
        for effect in effects.clone() {
            let answer = match effect {
                Effect::Persist { token, .. } => Generations::Persisted(token),
                Effect::WriteParallelSafe(num) => Generations::ParallelSafe(num),
                _ => continue,
            };
            effects.extend(self.feed(Input::Generation(answer)));
        }
        effects
    }

    fn hear(&mut self, from: u8, message: Message) -> Vec<Effect> {
        self.feed(Input::Generation(Generations::Message { from: node(from), message }))
    }

    fn elect(&mut self, num: u64, members: NodeSet, donors: NodeSet) -> Vec<Effect> {
        let all = Generation::initial(NodeSet::first(3));
        let generation = Generation { num: GenNum(num), members, ..all };
        self.hear(2, Message::Elected(Elected { generation, donors }))
    }

    fn lent_by(&mut self, from: u8, num: u64) {
        let (sent, for_us, num) = (Instant(4), 1_000_000, GenNum(num));
        self.feed(Input::Generation(Generations::Lent { from: node(from), sent, for_us, num }));
    }

    fn reads(&mut self) -> bool {
        self.node().reads_until(Instant(5)).is_some()
    }
}

#[test]
fn what_recovery_has_brought_is_settled_before_readers_are_answered() {
    let gid = Gid { origin: node(2), xid: Xid(4), generation: GenNum(2) };
    let mut three = Host::new(3);
    three.elect(2, NodeSet::first(2), NodeSet::first(2));
    let recovery = three.elect(3, NodeSet::first(3), NodeSet::only(node(1)));
    assert!(recovery.iter().any(|e| matches!(e, Effect::StartRecovery { .. })), "{recovery:?}");
    three.feed(Input::DonorHolds { num: GenNum(3), gid, accepted_abort: false });
    let install = three.feed(Input::DonorHoldsNoMore(GenNum(3)));
    assert!(install.contains(&Effect::Install(gid, false)), "{install:?}");
    three.feed(Input::RecoveryDone(gid));
    three.feed(Input::Generation(Generations::Recovered(GenNum(3))));
    three.lent_by(1, 3);
    assert!(three.node().serves() && !three.reads(), "it may be acknowledged without this node");
    let message = PeerMessage::Decided(gid, Decree::Commit);
    three.feed(Input::Message { from: node(2), message });
    assert!(!three.reads(), "to be committed is not committed");
    three.feed(Input::Finished(gid));
    assert!(three.reads());
}

#[test]
fn a_commit_is_acknowledged_when_no_reader_misses_it() {
    let mut one = Host::new(1);
    let gid = Gid { origin: node(1), xid: Xid(1), generation: GenNum(1) };
    one.feed(Input::Announce(LocalXid(9)));
    one.feed(Input::AnnouncementWritten(gid));
    one.feed(Input::AnnouncementDurable(gid));
    for from in [2, 3] {
        one.feed(Input::Message { from: node(from), message: PeerMessage::Prepared(gid) });
    }
    one.feed(Input::CommitDurable(gid));
    let others = NodeSet::first(3).without(node(1));
    assert_eq!(one.node().unseen(&gid), others);
    one.feed(Input::Message { from: node(2), message: PeerMessage::Committed(gid) });
    assert_eq!(one.node().unseen(&gid), NodeSet::only(node(3)));
    // Node 3 is left out; while node 2 has not switched, its readers may be answered.
    let members = NodeSet::first(2);
    one.elect(2, members, members);
    assert!(one.node().serves());
    assert_eq!(one.node().unseen(&gid), NodeSet::only(node(2)));
    let generation =
        Generation { num: GenNum(2), members, ..Generation::initial(NodeSet::first(3)) };
    one.hear(
        2,
        Message::Status {
            hears: members,
            current: Elected { generation, donors: members },
            last_vote: GenNum(2),
            last_online_in: GenNum(2),
        },
    );
    assert_eq!(one.node().unseen(&gid), NodeSet::EMPTY);
}
