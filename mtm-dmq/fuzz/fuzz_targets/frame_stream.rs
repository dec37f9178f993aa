//! Any bytes in chunks of any size: no panic, the same frames as in one piece, and every frame
//! encodes to the bytes it came from.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mtm_dmq::{FrameError, FrameReader, decode_frame, encode_frame};

type Found = (Vec<Vec<u8>>, Option<FrameError>);

fn frames(reader: &mut FrameReader, found: &mut Found) {
    loop {
        match reader.next_frame() {
            Ok(Some(frame)) => {
                let mut bytes = Vec::new();
                encode_frame(frame.kind, frame.seq, frame.payload, &mut bytes);
                assert_eq!(decode_frame(&bytes), Ok(frame));
                found.0.push(bytes);
            }
            Ok(None) => return,
            Err(error) => {
                found.1 = Some(error);
                return;
            }
        }
    }
}

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (chunk, bytes) = input;
    let (mut whole, mut cut) = (Found::default(), Found::default());
    let mut reader = FrameReader::new(1 << 16);
    reader.feed(&bytes);
    frames(&mut reader, &mut whole);
    let mut reader = FrameReader::new(1 << 16);
    for chunk in bytes.chunks(usize::from(chunk) + 1) {
        reader.feed(chunk);
        frames(&mut reader, &mut cut);
    }
    assert_eq!(whole, cut);
    assert!(bytes.starts_with(&whole.0.concat()));
});
