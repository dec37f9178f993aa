//! Any bytes as a message between two nodes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mtm_node::wire::Wire;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = Wire::decode(bytes) {
        let mut again = Vec::new();
        message.encode(&mut again);
        assert_eq!(again, bytes);
    }
});
