use super::*;
use crate::frame::decode_frame;
use crate::session::Fault;
use mtm_core::NodeId;

fn node(n: u8) -> NodeId {
    NodeId::new(n).unwrap()
}

fn link() -> Link {
    let mut config = LinkConfig::new(77, node(1), node(2), 5, 1);
    config.queue_bytes = 100;
    Link::new(Instant(0), config)
}

fn events(link: &mut Link) -> Vec<LinkEvent> {
    core::iter::from_fn(|| link.poll_event()).collect()
}

/// Frames that the link wants to send, as kind, number and payload.
fn transmitted(link: &mut Link, now: u64) -> Vec<(Kind, u64, Vec<u8>)> {
    let mut out = Vec::new();
    while link.poll_transmit(Instant(now), &mut out) > 0 {}
    let mut reader = FrameReader::new(MAX_PAYLOAD);
    reader.feed(&out);
    let mut frames = Vec::new();
    while let Some(f) = reader.next_frame().unwrap() {
        frames.push((f.kind, f.seq, f.payload.to_vec()));
    }
    frames
}

fn messages(frames: &[(Kind, u64, Vec<u8>)]) -> Vec<&[u8]> {
    frames.iter().filter(|f| f.0 == Kind::Message).map(|f| &f.2[..]).collect()
}

fn frame(kind: Kind, seq: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_frame(kind, seq, payload, &mut out);
    out
}

/// Connects and greets.
fn greet(link: &mut Link, now: u64) -> Hello {
    link.handle_timeout(Instant(now));
    assert_eq!(events(link), [LinkEvent::Connect]);
    link.handle_connected(Instant(now));
    let frames = transmitted(link, now);
    assert_eq!(frames.len(), 1);
    assert_eq!((frames[0].0, frames[0].1), (Kind::Hello, 0));
    Hello::decode(&frames[0].2).unwrap()
}

fn accept(link: &mut Link, now: u64, incarnation: u64) {
    link.handle_bytes(Instant(now), &frame(Kind::Accept, 0, &incarnation.to_be_bytes()));
}

fn down(link: &mut Link) -> DownReason {
    match events(link)[..] {
        [LinkEvent::Down { reason, .. }] => reason,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn a_link_connects_greets_and_sends_what_waits() {
    let mut link = link();
    assert_eq!(link.poll_timeout(), Some(Instant(0)));
    link.send(b"waits").unwrap();
    assert!(!link.wants_transmit());
    let hello = greet(&mut link, 3);
    let session = SessionId { incarnation: 5, session: 3 };
    assert_eq!(hello, Hello { cluster: 77, from: node(1), to: node(2), session });
    assert!(!link.wants_transmit());
    link.set_heartbeat(GenNum(4), NodeSet::first(2));
    accept(&mut link, 9, 6);
    assert_eq!(events(&mut link), [LinkEvent::Up { incarnation: 6 }]);
    assert!(link.is_up() && link.wants_transmit());
    let frames = transmitted(&mut link, 10);
    let heartbeat =
        Heartbeat { generation: GenNum(4), connected: NodeSet::first(2), clock: Instant(10) };
    assert_eq!((frames[0].0, Heartbeat::decode(&frames[0].2)), (Kind::Heartbeat, Ok(heartbeat)));
    assert_eq!(frames[1], (Kind::Message, 2, b"waits".to_vec()));
    assert_eq!((link.queued(), link.queue_room()), (0, 100));
}

#[test]
fn heartbeats_keep_their_interval_and_changes_go_at_once() {
    let mut link = link();
    greet(&mut link, 0);
    accept(&mut link, 0, 6);
    assert_eq!(transmitted(&mut link, 0).len(), 1);
    assert_eq!(link.poll_timeout(), Some(Instant(200_000)));
    link.handle_timeout(Instant(199_999));
    assert!(!link.wants_transmit());
    link.handle_timeout(Instant(200_000));
    assert_eq!(link.poll_timeout(), Some(Instant(400_000)));
    // Missed intervals are not made up for.
    link.handle_timeout(Instant(900_000));
    assert_eq!(transmitted(&mut link, 900_000).len(), 1);
    link.set_heartbeat(GenNum(0), NodeSet::EMPTY);
    assert!(!link.wants_transmit());
    link.set_heartbeat(GenNum(1), NodeSet::EMPTY);
    assert_eq!(transmitted(&mut link, 900_001).len(), 1);
    link.handle_bytes(Instant(900_101), &frame(Kind::Echo, 1, &900_001u64.to_be_bytes()));
    let echo = LinkEvent::Echo { round_trip_us: 100 };
    assert_eq!(events(&mut link).last(), Some(&echo));
}

#[test]
fn a_silent_peer_is_given_up_in_time() {
    let mut link = link();
    greet(&mut link, 0);
    accept(&mut link, 0, 6);
    events(&mut link);
    link.handle_bytes(Instant(1_900_000), &frame(Kind::Echo, 1, &[0; 8]));
    events(&mut link);
    link.handle_timeout(Instant(3_800_000));
    assert_eq!(link.poll_timeout(), Some(Instant(3_900_000)));
    link.handle_timeout(Instant(3_900_000));
    assert_eq!(down(&mut link), SessionError::Silent { after_us: 2_000_000 }.into());
    assert!(!link.is_up());
}

#[test]
fn every_attempt_has_its_limits() {
    let mut link = link();
    link.handle_timeout(Instant(0));
    assert_eq!(link.poll_timeout(), Some(Instant(10_000_000)));
    events(&mut link);
    link.handle_timeout(Instant(10_000_000));
    assert_eq!(down(&mut link), DownReason::ConnectTimeout { after_us: 10_000_000 });
    assert_eq!(link.poll_timeout(), Some(Instant(10_050_000)));
    greet(&mut link, 10_050_000);
    assert_eq!(link.poll_timeout(), Some(Instant(20_050_000)));
    link.handle_timeout(Instant(20_050_000));
    let reason = SessionError::HandshakeTimeout { after_us: 10_000_000 };
    assert_eq!(down(&mut link), reason.into());
}

#[test]
fn delays_grow_until_a_session_lasts() {
    let mut link = link();
    let (mut now, mut delays) = (0, Vec::new());
    for _ in 0..12 {
        link.handle_timeout(Instant(now));
        link.handle_closed(Instant(now));
        let retry_at = link.poll_timeout().unwrap();
        delays.push(retry_at.0 - now);
        now = retry_at.0;
    }
    assert_eq!(delays[0], 50_000);
    assert!(delays.iter().all(|d| (50_000..=2_000_000).contains(d)), "{delays:?}");
    assert!(delays[8..].iter().all(|d| *d >= 1_000_000), "{delays:?}");
    // One that breaks at once changes nothing; one that lasted does.
    for (lasts, most) in [(0, false), (2_000_000, true)] {
        events(&mut link);
        greet(&mut link, now);
        accept(&mut link, now, 6);
        now += lasts;
        link.handle_closed(Instant(now));
        let delay = link.poll_timeout().unwrap().0 - now;
        assert_eq!(delay == 50_000, most);
        now += delay;
    }
}

#[test]
fn a_peer_that_shows_up_is_tried_at_once() {
    let mut link = link();
    link.handle_timeout(Instant(0));
    link.handle_closed(Instant(0));
    link.handle_peer_alive(Instant(7));
    assert_eq!(link.poll_timeout(), Some(Instant(7)));
    link.handle_peer_alive(Instant(9));
    assert_eq!(link.poll_timeout(), Some(Instant(7)));
}

#[test]
fn a_full_queue_is_an_error_and_one_event() {
    let mut link = link();
    link.send(&[0; 60]).unwrap();
    let full = Err(QueueFull::Full { needed: 21, free: 20 });
    assert_eq!((link.send(&[0]), link.send(&[0])), (full, full));
    assert_eq!(events(&mut link), [LinkEvent::Overflow { queued: 80 }]);
    link.send(b"").unwrap();
    assert_eq!(link.send(b""), Err(QueueFull::Full { needed: 20, free: 0 }));
    assert_eq!(events(&mut link), [LinkEvent::Overflow { queued: 100 }]);
    let length = MAX_PAYLOAD + 1;
    let too_large = Err(QueueFull::TooLarge { length, max: MAX_PAYLOAD });
    assert_eq!(link.send(&vec![0; length]), too_large);
    assert_eq!(events(&mut link), []);
}

#[test]
fn what_was_handed_out_is_never_sent_again() {
    let mut link = link();
    greet(&mut link, 0);
    accept(&mut link, 0, 6);
    link.send(b"one").unwrap();
    assert_eq!(messages(&transmitted(&mut link, 0)), [b"one"]);
    link.send(b"two").unwrap();
    link.handle_closed(Instant(1));
    events(&mut link);
    greet(&mut link, 60_000);
    accept(&mut link, 60_000, 6);
    assert_eq!(messages(&transmitted(&mut link, 60_000)), [b"two"]);
}

#[test]
fn what_waited_for_another_start_of_the_peer_is_dropped() {
    let mut link = link();
    greet(&mut link, 0);
    accept(&mut link, 0, 6);
    link.handle_closed(Instant(1));
    link.send(b"for the old start").unwrap();
    events(&mut link);
    greet(&mut link, 60_000);
    accept(&mut link, 60_000, 7);
    let restarted = LinkEvent::PeerRestarted { incarnation: 7, dropped: 1 };
    assert_eq!(events(&mut link), [restarted, LinkEvent::Up { incarnation: 7 }]);
    assert_eq!((link.queued(), link.queue_room()), (0, 100));
    link.send(b"new").unwrap();
    assert_eq!(messages(&transmitted(&mut link, 60_000)), [b"new"]);
}

#[test]
fn sessions_get_newer_even_when_the_clock_stands_still() {
    let mut link = link();
    let first = greet(&mut link, 0).session;
    link.handle_closed(Instant(0));
    events(&mut link);
    link.handle_peer_alive(Instant(0));
    assert!(greet(&mut link, 0).session > first);
}

#[test]
fn rejections_and_nonsense_take_the_link_down_with_their_names() {
    let up = || {
        let mut link = link();
        greet(&mut link, 0);
        accept(&mut link, 0, 6);
        events(&mut link);
        link
    };
    let after = |mut link: Link, bytes: &[u8]| {
        link.handle_bytes(Instant(1), bytes);
        let reason = down(&mut link);
        // What comes later on that connection is ignored.
        link.handle_bytes(Instant(1), bytes);
        link.handle_closed(Instant(1));
        assert_eq!(events(&mut link), []);
        reason
    };
    let mut payload = Vec::new();
    Reject::NotConfigured.encode(&mut payload);
    let mut greeting = link();
    greet(&mut greeting, 0);
    let rejected = SessionError::Rejected(Reject::NotConfigured);
    assert_eq!(after(greeting, &frame(Kind::Reject, 0, &payload)), rejected.into());
    payload.clear();
    Reject::Fault(Fault::Gap).encode(&mut payload);
    let told = SessionError::Rejected(Reject::Fault(Fault::Gap));
    assert_eq!(after(up(), &frame(Kind::Reject, 1, &payload)), told.into());
    let unexpected = SessionError::Unexpected { kind: Kind::Accept };
    assert_eq!(after(up(), &frame(Kind::Accept, 1, &[0; 8])), unexpected.into());
    let gap = SessionError::Gap { expected: 1, found: 2 };
    assert_eq!(after(up(), &frame(Kind::Echo, 2, &[0; 8])), gap.into());
    let payload = after(up(), &frame(Kind::Echo, 1, &[0; 9]));
    assert!(matches!(payload, DownReason::Session(SessionError::Payload { .. })));
    let garbage = after(up(), b"HTTP/1.1 400 Bad Request");
    assert!(matches!(garbage, DownReason::Session(SessionError::Frame(_))));
}

#[test]
fn one_transmission_is_bounded() {
    let mut config = LinkConfig::new(77, node(1), node(2), 5, 1);
    config.transmit_bytes = 100;
    let mut link = Link::new(Instant(0), config);
    greet(&mut link, 0);
    accept(&mut link, 0, 6);
    for _ in 0..10 {
        link.send(&[7; 30]).unwrap();
    }
    let (mut out, mut calls) = (Vec::new(), 0);
    while link.poll_transmit(Instant(0), &mut out) > 0 {
        assert!(out.len() <= 100 + 50);
        out.clear();
        calls += 1;
    }
    assert_eq!(calls, 5);
    assert_eq!(decode_frame(&out).unwrap_err().to_string(), "frame is truncated: 0 of 20 bytes");
}
