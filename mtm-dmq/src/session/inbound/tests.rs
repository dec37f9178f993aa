use super::*;
use crate::frame::{Frame, FrameError};
use crate::session::{Fault, SessionId};
use mtm_core::wire::DecodeErrorKind;
use mtm_core::{GenNum, NodeSet};

const CLUSTER: u64 = 77;

fn node(n: u8) -> NodeId {
    NodeId::new(n).unwrap()
}

fn hello() -> Hello {
    let session = SessionId { incarnation: 5, session: 1 };
    Hello { cluster: CLUSTER, from: node(1), to: node(2), session }
}

/// What the connecting side would send, byte by byte.
#[derive(Default)]
struct Peer {
    sent: Sequence,
}

impl Peer {
    fn frame(&mut self, kind: Kind, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode_frame(kind, self.sent.assign(), payload, &mut out);
        out
    }

    fn hello(&mut self, hello: Hello) -> Vec<u8> {
        let mut payload = Vec::new();
        hello.encode(&mut payload);
        self.frame(Kind::Hello, &payload)
    }
}

fn inbound() -> Inbound {
    Inbound::new(Instant(0), InboundConfig::new(CLUSTER, node(2), 9))
}

fn open() -> (Inbound, Peer) {
    let (mut inbound, mut peer) = (inbound(), Peer::default());
    inbound.handle_bytes(Instant(0), &peer.hello(hello()));
    assert_eq!(inbound.poll_event(), Some(InboundEvent::Hello(hello())));
    inbound.accept(Instant(0)).unwrap();
    inbound.poll_transmit(&mut Vec::new());
    (inbound, peer)
}

/// The failure that comes next, and what the peer is told.
fn failure(inbound: &mut Inbound) -> (SessionError, Reject) {
    let Some(InboundEvent::Failed(error)) = inbound.poll_event() else { panic!("no failure") };
    assert_eq!(inbound.poll_event(), None);
    let mut out = Vec::new();
    inbound.poll_transmit(&mut out);
    let mut reader = FrameReader::new(MAX_PAYLOAD);
    reader.feed(&out);
    let mut told = None;
    while let Some(frame) = reader.next_frame().unwrap() {
        if frame.kind == Kind::Reject {
            told = Some(Reject::decode(frame.payload).unwrap());
        }
    }
    (error, told.expect("the peer is told"))
}

fn rejected(hello: Hello) -> Reject {
    let (mut inbound, mut peer) = (inbound(), Peer::default());
    inbound.handle_bytes(Instant(0), &peer.hello(hello));
    let (error, told) = failure(&mut inbound);
    assert_eq!(error, SessionError::Rejected(told));
    told
}

#[test]
fn a_session_opens_and_delivers_in_order() {
    let (mut inbound, mut peer) = (inbound(), Peer::default());
    let mut bytes = peer.hello(hello());
    bytes.extend(peer.frame(Kind::Message, b"one"));
    bytes.extend(peer.frame(Kind::Message, b"two"));
    inbound.handle_bytes(Instant(3), &bytes);
    assert_eq!(inbound.poll_event(), Some(InboundEvent::Hello(hello())));
    // Nothing passes before the driver has answered.
    assert_eq!(inbound.poll_event(), None);
    assert_eq!(inbound.peer(), None);
    inbound.accept(Instant(4)).unwrap();
    assert_eq!(inbound.peer(), Some(hello()));
    assert_eq!(inbound.poll_event(), Some(InboundEvent::Message(b"one")));
    assert_eq!(inbound.poll_event(), Some(InboundEvent::Message(b"two")));
    assert_eq!(inbound.poll_event(), None);
    let mut out = Vec::new();
    inbound.poll_transmit(&mut out);
    let frame = crate::frame::decode_frame(&out).unwrap();
    assert_eq!((frame.kind, frame.seq), (Kind::Accept, 0));
    assert_eq!(Accept::decode(frame.payload), Ok(Accept { incarnation: 9 }));
    assert_eq!(inbound.accept(Instant(4)), Err(InboundMisuse));
}

#[test]
fn heartbeats_are_echoed_and_only_the_newest() {
    let (mut inbound, mut peer) = open();
    for clock in [10, 20] {
        let heartbeat = Heartbeat {
            generation: GenNum(3),
            connected: NodeSet::first(2),
            clock: Instant(clock),
        };
        let mut payload = Vec::new();
        heartbeat.encode(&mut payload);
        inbound.handle_bytes(Instant(1), &peer.frame(Kind::Heartbeat, &payload));
        assert_eq!(inbound.poll_event(), Some(InboundEvent::Heartbeat(heartbeat)));
    }
    let mut out = Vec::new();
    inbound.poll_transmit(&mut out);
    let echo = Frame { kind: Kind::Echo, seq: 1, payload: &20u64.to_be_bytes() };
    assert_eq!(crate::frame::decode_frame(&out), Ok(echo));
    assert_eq!(inbound.poll_transmit(&mut out), 0);
}

#[test]
fn strangers_are_rejected_with_the_reason() {
    assert_eq!(rejected(Hello { cluster: 1, ..hello() }), Reject::Cluster { cluster: CLUSTER });
    assert_eq!(rejected(Hello { to: node(3), ..hello() }), Reject::NotThisNode { this: node(2) });
    assert_eq!(rejected(Hello { from: node(2), ..hello() }), Reject::NotConfigured);
    let (mut inbound, mut peer) = (inbound(), Peer::default());
    inbound.handle_bytes(Instant(0), &peer.frame(Kind::Hello, &[0, 9, 1, 2, 3]));
    assert_eq!(failure(&mut inbound).1, Reject::Protocol { known: PROTOCOL_VERSION });
}

#[test]
fn the_driver_may_reject_a_straggler() {
    let (mut inbound, mut peer) = (inbound(), Peer::default());
    inbound.handle_bytes(Instant(0), &peer.hello(hello()));
    assert!(matches!(inbound.poll_event(), Some(InboundEvent::Hello(_))));
    let newest = SessionId { incarnation: 6, session: 1 };
    inbound.reject(Reject::Superseded { newest });
    assert_eq!(failure(&mut inbound).1, Reject::Superseded { newest });
    assert_eq!(inbound.accept(Instant(0)), Err(InboundMisuse));
}

#[test]
fn lost_repeated_and_reordered_frames_end_the_session() {
    let (mut inbound, mut peer) = open();
    let first = peer.frame(Kind::Message, b"1");
    let second = peer.frame(Kind::Message, b"2");
    let mut reordered = inbound.clone();
    reordered.handle_bytes(Instant(1), &[second.clone(), first.clone()].concat());
    let gap = SessionError::Gap { expected: 1, found: 2 };
    assert_eq!(failure(&mut reordered), (gap, Reject::Fault(Fault::Gap)));
    inbound.handle_bytes(Instant(1), &[first.clone(), first].concat());
    assert_eq!(inbound.poll_event(), Some(InboundEvent::Message(b"1")));
    let duplicate = SessionError::Duplicate { expected: 2, found: 1 };
    assert_eq!(failure(&mut inbound), (duplicate, Reject::Fault(Fault::Duplicate)));
    inbound.handle_bytes(Instant(2), &second);
    assert_eq!(inbound.poll_event(), None);
}

#[test]
fn frames_out_of_place_end_the_session() {
    let (mut inbound, mut peer) = (inbound(), Peer::default());
    inbound.handle_bytes(Instant(0), &peer.frame(Kind::Message, b"too early"));
    assert_eq!(failure(&mut inbound).0, SessionError::Unexpected { kind: Kind::Message });
    let (mut inbound, mut peer) = open();
    inbound.handle_bytes(Instant(0), &peer.hello(hello()));
    assert_eq!(failure(&mut inbound).0, SessionError::Unexpected { kind: Kind::Hello });
    let (mut inbound, mut peer) = open();
    inbound.handle_bytes(Instant(0), &peer.frame(Kind::Heartbeat, b"short"));
    let (SessionError::Payload { kind, error }, told) = failure(&mut inbound) else {
        panic!("another failure")
    };
    assert_eq!((kind, error.kind), (Kind::Heartbeat, DecodeErrorKind::Truncated));
    assert_eq!(told, Reject::Fault(Fault::Payload));
}

#[test]
fn corruption_ends_the_session() {
    let (mut inbound, mut peer) = open();
    let mut bytes = peer.frame(Kind::Message, b"damaged");
    *bytes.last_mut().unwrap() ^= 0x40;
    inbound.handle_bytes(Instant(1), &bytes);
    let (error, told) = failure(&mut inbound);
    assert!(matches!(error, SessionError::Frame(FrameError::Checksum { .. })));
    assert_eq!(told, Reject::Fault(Fault::Frame));
}

#[test]
fn whoever_says_nothing_is_dropped() {
    let mut silent = inbound();
    assert_eq!(silent.poll_timeout(), Some(Instant(10_000_000)));
    silent.handle_timeout(Instant(9_999_999));
    assert_eq!(silent.poll_event(), None);
    silent.handle_timeout(Instant(10_000_000));
    let error = SessionError::HandshakeTimeout { after_us: 10_000_000 };
    assert_eq!(failure(&mut silent).0, error);
    assert_eq!(silent.poll_timeout(), None);

    let (mut inbound, mut peer) = open();
    inbound.handle_bytes(Instant(500), &peer.frame(Kind::Message, b""));
    assert_eq!(inbound.poll_event(), Some(InboundEvent::Message(b"")));
    assert_eq!(inbound.poll_timeout(), Some(Instant(2_000_500)));
    inbound.handle_timeout(Instant(2_000_500));
    assert_eq!(failure(&mut inbound).0, SessionError::Silent { after_us: 2_000_000 });
}
