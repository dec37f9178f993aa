//! A peer that sends well-formed frames of any kind, number and content, and sometimes anything:
//! the accepting side never panics, fails once at most, and delivers nothing before its driver
//! has accepted the session.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mtm_core::{Instant, NodeId};
use mtm_dmq::{Hello, Inbound, InboundConfig, InboundEvent, Kind, SessionId, encode_frame};

const KINDS: [Kind; 6] =
    [Kind::Hello, Kind::Accept, Kind::Reject, Kind::Heartbeat, Kind::Echo, Kind::Message];

fuzz_target!(|input: (bool, Vec<(u8, i8, Vec<u8>)>)| {
    let (greet, steps) = input;
    let (me, peer) = (NodeId::new(2).expect("2"), NodeId::new(1).expect("1"));
    let mut inbound = Inbound::new(Instant(0), InboundConfig::new(7, me, 1));
    let (mut seq, mut accepted, mut failed) = (0u64, false, false);
    let mut bytes = Vec::new();
    if greet {
        let session = SessionId { incarnation: 1, session: 1 };
        let mut payload = Vec::new();
        Hello { cluster: 7, from: peer, to: me, session }.encode(&mut payload);
        encode_frame(Kind::Hello, 0, &payload, &mut bytes);
        seq = 1;
    }
    for (kind, skew, payload) in steps {
        match KINDS.get(usize::from(kind % 8)) {
            Some(kind) => {
                let skew = if skew > 100 { 1 } else { 0 };
                encode_frame(*kind, seq + skew, &payload, &mut bytes);
                seq += 1;
            }
            None => bytes.extend_from_slice(&payload),
        }
        inbound.handle_bytes(Instant(seq), &bytes);
        bytes.clear();
        let mut ask = false;
        loop {
            if std::mem::take(&mut ask) {
                inbound.accept(Instant(seq)).expect("asked");
                accepted = true;
            }
            match inbound.poll_event() {
                Some(InboundEvent::Hello(_)) => {
                    assert!(!accepted && !failed);
                    ask = true;
                }
                Some(InboundEvent::Message(_) | InboundEvent::Heartbeat(_)) => {
                    assert!(accepted && !failed);
                }
                Some(InboundEvent::Failed(_)) => {
                    assert!(!failed);
                    failed = true;
                }
                None => break,
            }
        }
        let mut out = Vec::new();
        inbound.poll_transmit(&mut out);
        assert_eq!(inbound.poll_transmit(&mut out), 0);
    }
});
