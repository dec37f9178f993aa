//! A link and its peer over a connection that breaks, stalls and cuts bytes anywhere, with the
//! peer's server restarting: every message arrives at most once and in order, every one that
//! does not arrive is accounted for, and a healed connection delivers all that waited.
#![cfg(not(loom))]

use mtm_core::{GenNum, Instant, NodeId, NodeSet};
use mtm_dmq::{
    Inbound, InboundConfig, InboundEvent, Link, LinkConfig, LinkEvent, Reject, SessionId,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::collections::BTreeSet;

const CLUSTER: u64 = 1;

fn node(n: u8) -> NodeId {
    NodeId::new(n).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Send,
    /// Lets time pass.
    Wait(u64),
    /// Moves so many bytes.
    Carry(usize),
    /// The connection breaks; what is on the way is lost.
    Break,
    /// The peer's server starts again.
    Restart,
    /// Whether connecting works from now on.
    Reachable(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => Just(Step::Send),
        8 => (0u64..200_000).prop_map(Step::Wait),
        20 => (0usize..200).prop_map(Step::Carry),
        2 => Just(Step::Break),
        1 => Just(Step::Restart),
        1 => prop::bool::weighted(0.7).prop_map(Step::Reachable),
    ]
}

struct World {
    now: Instant,
    link: Link,
    inbound: Option<Inbound>,
    forth: Vec<u8>,
    back: Vec<u8>,
    reachable: bool,
    incarnation: u64,
    newest: SessionId,
    next_message: u64,
    /// Queued in the link, as far as the world knows.
    waiting: BTreeSet<u64>,
    delivered: Vec<u64>,
    dropped: usize,
    /// Handed out by the link and gone with a connection.
    on_the_way: usize,
    refused: usize,
    ups: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut config = LinkConfig::new(CLUSTER, node(1), node(2), 1, seed);
        config.queue_bytes = 400;
        config.transmit_bytes = 60;
        Self {
            now: Instant(1),
            link: Link::new(Instant(1), config),
            inbound: None,
            forth: Vec::new(),
            back: Vec::new(),
            reachable: true,
            incarnation: 10,
            newest: SessionId::default(),
            next_message: 0,
            waiting: BTreeSet::new(),
            delivered: Vec::new(),
            dropped: 0,
            on_the_way: 0,
            refused: 0,
            ups: 0,
        }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Send => {
                let id = self.next_message;
                self.next_message += 1;
                match self.link.send(&id.to_be_bytes()) {
                    Ok(()) => drop(self.waiting.insert(id)),
                    Err(_) => self.refused += 1,
                }
            }
            Step::Wait(us) => self.now = self.now.plus_us(us),
            Step::Carry(bytes) => self.carry(bytes),
            Step::Break => self.disconnect(),
            Step::Restart => {
                self.disconnect();
                self.incarnation += 1;
            }
            Step::Reachable(reachable) => self.reachable = reachable,
        }
        self.timeouts();
        self.events();
    }

    /// Whatever was on the way is lost.
    fn lose(&mut self) {
        self.forth.clear();
        self.back.clear();
        self.on_the_way = self.waiting.len() - self.link.queued() - self.dropped;
    }

    fn disconnect(&mut self) {
        self.lose();
        if self.inbound.take().is_some() {
            self.link.handle_closed(self.now);
        }
    }

    fn timeouts(&mut self) {
        if self.link.poll_timeout().is_some_and(|at| at <= self.now) {
            self.link.handle_timeout(self.now);
        }
        if let Some(inbound) = &mut self.inbound
            && inbound.poll_timeout().is_some_and(|at| at <= self.now)
        {
            inbound.handle_timeout(self.now);
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.link.poll_event() {
            match event {
                LinkEvent::Connect if self.reachable => {
                    let config = InboundConfig::new(CLUSTER, node(2), self.incarnation);
                    self.inbound = Some(Inbound::new(self.now, config));
                    self.link.handle_connected(self.now);
                }
                LinkEvent::Connect => self.link.handle_closed(self.now),
                LinkEvent::Down { .. } => {
                    self.inbound = None;
                    self.lose();
                }
                LinkEvent::PeerRestarted { dropped, .. } => self.dropped += dropped,
                LinkEvent::Up { .. } => self.ups += 1,
                LinkEvent::Overflow { .. } | LinkEvent::Echo { .. } => {}
            }
        }
        let mut over = false;
        if let Some(inbound) = &mut self.inbound {
            let mut accepted = None;
            while let Some(event) = inbound.poll_event() {
                match event {
                    InboundEvent::Hello(hello) => {
                        assert!(hello.session > self.newest, "sessions get newer");
                        accepted = Some(hello.session);
                    }
                    InboundEvent::Message(bytes) => {
                        let id = u64::from_be_bytes(bytes.try_into().expect("whole"));
                        assert!(self.waiting.remove(&id), "{id} arrived twice or out of nowhere");
                        self.delivered.push(id);
                    }
                    InboundEvent::Heartbeat(heartbeat) => {
                        assert_eq!(heartbeat.generation, GenNum(0));
                    }
                    InboundEvent::Failed(error) => {
                        assert!(
                            matches!(error, mtm_dmq::SessionError::Silent { .. })
                                || matches!(error, mtm_dmq::SessionError::HandshakeTimeout { .. }),
                            "{error}"
                        );
                        over = true;
                    }
                }
            }
            if let Some(session) = accepted {
                self.newest = session;
                inbound.accept(self.now).expect("just asked");
                assert_eq!(inbound.poll_event(), None, "a link sends nothing before it is up");
            }
        }
        if over {
            self.disconnect();
        }
    }

    fn carry(&mut self, bytes: usize) {
        let Some(inbound) = &mut self.inbound else { return };
        self.link.poll_transmit(self.now, &mut self.forth);
        inbound.poll_transmit(&mut self.back);
        let n = bytes.min(self.forth.len());
        let chunk: Vec<u8> = self.forth.drain(..n).collect();
        inbound.handle_bytes(self.now, &chunk);
        let n = bytes.min(self.back.len());
        let chunk: Vec<u8> = self.back.drain(..n).collect();
        self.link.handle_bytes(self.now, &chunk);
    }

    /// Nothing breaks any more: lets everything flow until the link is idle.
    fn heal(&mut self) {
        self.reachable = true;
        for _ in 0..100 {
            self.apply(&Step::Wait(100_000));
            for _ in 0..20 {
                self.apply(&Step::Carry(1_000));
            }
        }
        assert!(self.link.is_up(), "a healed connection comes back within ten seconds");
        assert_eq!(self.link.queued(), 0, "what waited is delivered");
    }
}

/// One history and its healing; what must hold of each.
fn live(seed: u64, steps: &[Step]) -> World {
    let mut world = World::new(seed);
    for step in steps {
        world.apply(step);
    }
    world.heal();
    assert!(world.delivered.is_sorted(), "in order: {:?}", world.delivered);
    let lost = world.waiting.len();
    assert_eq!(lost, world.dropped + world.on_the_way, "every loss has its reason");
    assert_eq!(world.next_message as usize, world.delivered.len() + lost + world.refused);
    let breaks = |step: &Step| matches!(step, Step::Break | Step::Restart | Step::Wait(_));
    if !steps.iter().any(breaks) {
        assert_eq!(lost, 0, "nothing is lost while nothing breaks");
    }
    // A healed link works: one more message arrives.
    let before = world.delivered.len();
    world.apply(&Step::Send);
    world.heal();
    assert_eq!(world.delivered.len(), before + 1);
    world
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 0..200)
}

proptest! {
    #[test]
    fn messages_arrive_at_most_once_in_order_and_losses_are_explained(
        seed: u64,
        steps in history(),
    ) {
        live(seed, &steps);
    }
}

/// The histories above are worth something only if all of this happens in them.
#[test]
fn histories_exercise_what_they_should() {
    let mut runner = TestRunner::deterministic();
    let (mut delivered, mut dropped, mut on_the_way, mut refused, mut ups) = (0, 0, 0, 0, 0);
    for seed in 0..100 {
        let steps = history().new_tree(&mut runner).expect("no filter").current();
        let world = live(seed, &steps);
        delivered += world.delivered.len();
        dropped += world.dropped;
        on_the_way += world.on_the_way;
        refused += world.refused;
        ups += world.ups;
    }
    println!(
        "{delivered} delivered, {dropped} dropped for a restart, {on_the_way} lost on the way, \
         {refused} refused, {ups} sessions"
    );
    assert!(delivered > 500 && dropped > 100 && on_the_way > 20 && refused > 100 && ups > 150);
}

#[test]
fn a_straggler_of_an_older_session_is_told_to_go() {
    let mut link = Link::new(Instant(1), LinkConfig::new(CLUSTER, node(1), node(2), 1, 0));
    let mut inbound = Inbound::new(Instant(1), InboundConfig::new(CLUSTER, node(2), 1));
    link.set_heartbeat(GenNum(0), NodeSet::EMPTY);
    link.handle_timeout(Instant(1));
    assert_eq!(link.poll_event(), Some(LinkEvent::Connect));
    link.handle_connected(Instant(1));
    let mut bytes = Vec::new();
    link.poll_transmit(Instant(1), &mut bytes);
    inbound.handle_bytes(Instant(1), &bytes);
    let newest = SessionId { incarnation: 2, session: 0 };
    assert!(matches!(inbound.poll_event(), Some(InboundEvent::Hello(h)) if h.session < newest));
    inbound.reject(Reject::Superseded { newest });
    bytes.clear();
    inbound.poll_transmit(&mut bytes);
    link.handle_bytes(Instant(1), &bytes);
    let Some(LinkEvent::Down { reason, .. }) = link.poll_event() else { panic!("up") };
    let expected = "session rejected: the peer knows the newer session 2/0 of this node";
    assert_eq!(reason.to_string(), expected);
}
