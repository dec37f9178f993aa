//! Any bytes as a message and, sealed with a right checksum, as a record.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mtm_core::NodeId;
use mtm_generations::{Message, Record};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = Message::decode(bytes) {
        let mut again = Vec::new();
        message.encode(&mut again);
        assert_eq!(again, bytes);
    }
    let mut sealed = [b"MTMg\0\x01".as_slice(), bytes].concat();
    sealed.extend(crc32fast::hash(&sealed).to_be_bytes());
    let Some(node) = bytes.first().and_then(|n| NodeId::new(*n)) else { return };
    let mut cluster = [0; 8];
    let Some(of) = bytes.get(1..9) else { return };
    cluster.copy_from_slice(of);
    if let Ok(record) = Record::from_bytes(&sealed, node, u64::from_be_bytes(cluster)) {
        assert_eq!(record.to_bytes(), sealed);
    }
});
