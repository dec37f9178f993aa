//! What readers must not miss after a restart of all nodes.

use mtm_core::{GenNum, Gid, Instant, Machine, NodeId, NodeSet, Outbox, Xid};
use mtm_generations::{Membership, Record, Timing};
use mtm_node::table::Slot;
use mtm_node::{Core, Entry, Found, Input, Node, PeerMessage};
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
