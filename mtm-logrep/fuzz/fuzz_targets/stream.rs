//! Any bytes as a stream message: no panic, and what reads encodes to the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mtm_logrep::stream::StreamMessage;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = StreamMessage::decode(bytes) {
        let mut again = Vec::new();
        message.encode(&mut again);
        assert_eq!(again, bytes);
    }
});
