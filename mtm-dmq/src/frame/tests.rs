use super::*;
use proptest::prelude::*;

const KINDS: [Kind; 6] =
    [Kind::Hello, Kind::Accept, Kind::Reject, Kind::Heartbeat, Kind::Echo, Kind::Message];

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(&KINDS[..])
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..100)
}

fn encoded(kind: Kind, seq: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_frame(kind, seq, payload, &mut out);
    out
}

/// Seals a header and payload of any content with the right checksum.
fn sealed(length: u32, version: u8, kind: u8, reserved: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut w = Writer::new(&mut out);
    w.u32(length);
    w.u8(version);
    w.u8(kind);
    w.u16(reserved);
    w.u64(7);
    let crc = checksum(&out, payload);
    Writer::new(&mut out).u32(crc);
    out.extend_from_slice(payload);
    out
}

#[test]
fn the_layout_is_the_documented_one() {
    let expected = [
        &[0, 0, 0, 2, 1, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9][..],
        &crc32fast::hash(&[0, 0, 0, 2, 1, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, b'h', b'i'])
            .to_be_bytes(),
        b"hi",
    ];
    assert_eq!(encoded(Kind::Message, 9, b"hi"), expected.concat());
}

#[test]
fn faults_have_names() {
    let max = MAX_PAYLOAD as u32;
    let named = |bytes: &[u8]| decode_frame(bytes).unwrap_err();
    assert_eq!(named(b"abc"), FrameError::Truncated { have: 3, needed: FRAME_HEADER });
    assert_eq!(named(&sealed(3, 1, 6, 0, b"ab")), FrameError::Truncated { have: 22, needed: 23 });
    assert_eq!(
        named(&sealed(1, 1, 6, 0, b"a")[..4]),
        FrameError::Truncated { have: 4, needed: 20 }
    );
    let mut two = encoded(Kind::Message, 0, b"a");
    two.extend_from_slice(b"xy");
    assert_eq!(named(&two), FrameError::Trailing { extra: 2 });
    let oversized = FrameError::Oversized { length: max + 1, max: MAX_PAYLOAD };
    assert_eq!(named(&sealed(max + 1, 1, 6, 0, b"")), oversized);
    assert_eq!(named(&sealed(0, 2, 6, 0, b"")), FrameError::Version { found: 2 });
    assert_eq!(named(&sealed(0, 1, 9, 0, b"")), FrameError::Kind { found: 9 });
    assert_eq!(named(&sealed(0, 1, 6, 3, b"")), FrameError::Reserved { found: 3 });
    let mut damaged = encoded(Kind::Message, 0, b"a");
    damaged[FRAME_HEADER] ^= 1;
    assert!(matches!(named(&damaged), FrameError::Checksum { .. }));
}

#[test]
fn a_foreign_protocol_is_noticed_in_its_first_bytes() {
    let mut reader = FrameReader::new(MAX_PAYLOAD);
    reader.feed(b"GET /");
    assert_eq!(reader.next_frame(), Err(FrameError::Version { found: b'/' }));
}

#[test]
fn after_a_fault_nothing_comes_any_more() {
    let mut reader = FrameReader::new(10);
    reader.feed(&encoded(Kind::Message, 0, &[0; 11]));
    let fault = FrameError::Oversized { length: 11, max: 10 };
    assert_eq!(reader.next_frame(), Err(fault));
    reader.feed(&encoded(Kind::Message, 0, b"fine"));
    assert_eq!(reader.next_frame(), Err(fault));
    assert_eq!(reader.pending(), 0);
}

#[test]
fn the_largest_payload_passes() {
    let payload = vec![0x5a; MAX_PAYLOAD];
    let bytes = encoded(Kind::Message, u64::MAX, &payload);
    assert_eq!(decode_frame(&bytes).unwrap().payload, payload);
}

proptest! {
    #[test]
    fn frames_round_trip(kind in kind(), seq: u64, payload in payload()) {
        let bytes = encoded(kind, seq, &payload);
        prop_assert_eq!(decode_frame(&bytes), Ok(Frame { kind, seq, payload: &payload }));
    }

    #[test]
    fn every_truncation_is_an_error(kind in kind(), seq: u64, payload in payload()) {
        let bytes = encoded(kind, seq, &payload);
        for keep in 0..bytes.len() {
            let error = decode_frame(&bytes[..keep]);
            prop_assert!(matches!(error, Err(FrameError::Truncated { .. })), "{keep}: {error:?}");
        }
    }

    #[test]
    fn every_single_bit_corruption_is_an_error(kind in kind(), seq: u64, payload in payload()) {
        let mut bytes = encoded(kind, seq, &payload);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode_frame(&bytes).is_err(), "bit {bit}");
            // In a stream a longer length may wait for bytes, but no frame comes out.
            let mut reader = FrameReader::new(MAX_PAYLOAD);
            reader.feed(&bytes);
            prop_assert!(!matches!(reader.next_frame(), Ok(Some(_))), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(chunks in prop::collection::vec(payload(), 0..8)) {
        let mut reader = FrameReader::new(64);
        for chunk in &chunks {
            let _ = decode_frame(chunk);
            reader.feed(chunk);
            while let Ok(Some(_)) = reader.next_frame() {}
        }
    }

    #[test]
    fn faults_do_not_depend_on_chunks(
        mut bytes in prop::collection::vec(prop_oneof![Just(0), Just(1), any::<u8>()], 0..60),
        size in 1usize..10,
    ) {
        let last = |chunks: &mut dyn Iterator<Item = &[u8]>| {
            let (mut reader, mut last) = (FrameReader::new(64), Ok(()));
            for chunk in chunks {
                reader.feed(chunk);
                while let Some(found) = reader.next_frame().transpose() {
                    last = found.map(|_| ());
                    if last.is_err() {
                        break;
                    }
                }
            }
            last
        };
        for first in [0u8, 0xff] {
            bytes.first_mut().into_iter().for_each(|b| *b = first);
            prop_assert_eq!(last(&mut bytes.chunks(size)), last(&mut [&bytes[..]].into_iter()));
        }
    }

    #[test]
    fn chunks_do_not_matter(
        frames in prop::collection::vec((kind(), any::<u64>(), payload()), 0..10),
        sizes in prop::collection::vec(1usize..90, 1..20),
    ) {
        let mut stream = Vec::new();
        for (kind, seq, payload) in &frames {
            encode_frame(*kind, *seq, payload, &mut stream);
        }
        let (mut reader, mut found) = (FrameReader::new(100), Vec::new());
        let (mut rest, mut sizes) = (&stream[..], sizes.iter().cycle());
        while !rest.is_empty() {
            let (chunk, later) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
            rest = later;
            reader.feed(chunk);
            while let Some(f) = reader.next_frame().unwrap() {
                found.push((f.kind, f.seq, f.payload.to_vec()));
            }
            prop_assert!(reader.pending() < FRAME_HEADER + 100);
        }
        prop_assert_eq!(found, frames);
        prop_assert_eq!(reader.pending(), 0);
    }
}
