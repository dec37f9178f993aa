//! When a node campaigns: patience with members it has not met since its start, and durations
//! that change while it runs.

use mtm_core::{GenNum, Instant, Machine, NodeId, NodeSet, Outbox};
use mtm_generations::{Effect, Elected, Generation, Input, Membership, Message, Record, Timing};

const SECOND: u64 = 1_000_000;
const START: u64 = 70 * SECOND;

fn n(i: u8) -> NodeId {
    NodeId::new(i).unwrap()
}

fn pair() -> NodeSet {
    NodeSet::first(2)
}

fn member(restarted: bool, timing: Timing) -> Membership {
    Membership::new(Record::initial(n(1), 7, NodeSet::first(3)), timing, 5, restarted)
}

/// A step; says how often the node asked for votes and how often it sent heartbeats.
fn step(node: &mut Membership, at: u64, input: Input) -> (usize, usize) {
    let (mut out, mut asked, mut heartbeats) = (Outbox::new(), 0, 0);
    node.step(Instant(at), input, &mut out).unwrap();
    for effect in out.drain() {
        match effect {
            Effect::Persist { token, .. } => {
                let (a, h) = step(node, at, Input::Persisted(token));
                (asked, heartbeats) = (asked + a, heartbeats + h);
            }
            Effect::Send { message: Message::VoteRequest(_), .. } => asked += 1,
            Effect::Send { message: Message::Status { .. }, .. } => heartbeats += 1,
            _ => {}
        }
    }
    (asked, heartbeats)
}

/// These peers are heard and hear each other.
fn hear(node: &mut Membership, at: u64, heard: NodeSet) {
    let mut asked = step(node, at, Input::Connected(heard)).0;
    for from in heard.without(n(1)) {
        let current = Elected::initial(NodeSet::first(3));
        let message = Message::Status {
            hears: heard,
            current,
            last_vote: GenNum(1),
            last_online_in: GenNum(1),
        };
        asked += step(node, at, Input::Message { from, message }).0;
    }
    assert_eq!(asked, 0, "asked while it was told who is there");
}

/// When it first asks for votes, waking exactly when it says.
fn asks_at(node: &mut Membership, mut at: u64, until: u64) -> Option<u64> {
    while let Some(next) = node.deadline().map(|d| d.0.max(at)).filter(|next| *next < until) {
        at = next;
        if step(node, at, Input::Wake).0 > 0 {
            return Some(at);
        }
    }
    None
}

#[test]
fn a_starting_node_waits_for_late_members() {
    for restarted in [false, true] {
        let timing = Timing::default();
        let mut node = member(restarted, timing);
        step(&mut node, START, Input::Fenced(false));
        hear(&mut node, START + 1, pair());
        let over = START + timing.patience_us;
        assert_eq!(asks_at(&mut node.clone(), START, over), None, "restarted {restarted}");
        let asked = asks_at(&mut node, START, over + SECOND).expect("in the end it campaigns");
        assert!(asked <= over + 3 * timing.stagger_us, "{} us late", asked - over);
    }
}

#[test]
fn who_came_in_time_is_not_left_out() {
    let mut node = member(false, Timing::default());
    hear(&mut node, START, pair());
    hear(&mut node, START + SECOND, NodeSet::first(3));
    assert_eq!(asks_at(&mut node, START + SECOND, START + 20 * SECOND), None);
    // A restarted one campaigns as soon as all are there, with all of them.
    let mut node = member(true, Timing::default());
    step(&mut node, START, Input::Fenced(false));
    hear(&mut node, START, pair());
    hear(&mut node, START + SECOND / 2, NodeSet::first(3));
    let asked = asks_at(&mut node, START + SECOND / 2, START + 20 * SECOND);
    assert!(asked.is_some_and(|at| at < START + SECOND), "{asked:?}");
}

#[test]
fn who_was_met_and_is_silent_is_left_out_at_once() {
    let mut node = member(false, Timing::default());
    hear(&mut node, START, NodeSet::first(3));
    hear(&mut node, START + SECOND / 10, pair());
    let asked = asks_at(&mut node, START + SECOND / 10, START + 20 * SECOND);
    assert!(asked.is_some_and(|at| at < START + SECOND / 2), "{asked:?}");
}

#[test]
fn a_node_is_dropped_by_another_one_when_all_members_are_there() {
    let mut node = member(false, Timing::default());
    let configured = node.current().generation.configured;
    let (drop_me, drop_other) = (configured.dropping(n(1)), configured.dropping(n(3)));
    assert!(!node.may_configure(&drop_other.unwrap()), "nobody has been heard yet");
    hear(&mut node, START, NodeSet::first(3));
    assert!(node.may_configure(&drop_other.unwrap()));
    assert!(!node.may_configure(&drop_me.unwrap()));
    let mut out = Outbox::new();
    assert!(node.step(Instant(START), Input::Configure(drop_me.unwrap()), &mut out).is_err());
}

#[test]
fn members_are_those_of_the_generation_it_is_in() {
    // n3 is configured and was left out before: nobody waits for it.
    let mut record = Record::initial(n(1), 7, NodeSet::first(3));
    let generation = Generation { members: pair(), ..record.current.generation };
    record.current = Elected { generation, donors: pair() };
    let mut node = Membership::new(record, Timing::default(), 5, true);
    step(&mut node, START, Input::Fenced(false));
    hear(&mut node, START, pair());
    let asked = asks_at(&mut node, START, START + 20 * SECOND);
    assert!(asked.is_some_and(|at| at < START + SECOND / 2), "{asked:?}");
}

#[test]
fn durations_change_at_once() {
    let slow = Timing {
        heartbeat_us: 60 * SECOND,
        vote_wait_us: 60 * SECOND,
        stagger_us: 60 * SECOND,
        recovery_limit_us: 600 * SECOND,
        patience_us: 600 * SECOND,
        lease_us: 0,
    };
    let mut node = member(false, slow);
    assert_eq!(step(&mut node, START, Input::Wake).1, 1, "the first heartbeat");
    assert_eq!(step(&mut node, START + SECOND, Input::Wake).1, 0);
    let quick = Timing { heartbeat_us: SECOND / 5, ..slow };
    step(&mut node, START + SECOND, Input::Timing(quick));
    assert_eq!(node.deadline(), Some(Instant(START + SECOND + SECOND / 5)));
    assert_eq!(step(&mut node, START + 2 * SECOND, Input::Wake).1, 1);

    // Patience, the turn and the wait for votes are cut short too.
    hear(&mut node, START + 2 * SECOND, pair());
    let quick = Timing { patience_us: SECOND, ..quick };
    assert_eq!(step(&mut node, START + 2 * SECOND, Input::Timing(quick)).0, 0);
    let quick = Timing { stagger_us: SECOND / 20, ..quick };
    step(&mut node, START + 2 * SECOND, Input::Timing(quick));
    let asked = asks_at(&mut node, START + 2 * SECOND, START + 4 * SECOND).expect("its turn");
    let quick = Timing { vote_wait_us: SECOND / 10, ..quick };
    step(&mut node, asked, Input::Timing(quick));
    let again = asks_at(&mut node, asked, asked + 4 * SECOND).expect("nobody voted");
    assert!(again > asked);
}
