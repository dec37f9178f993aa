//! Any bytes as a message and, sealed with a right checksum, as a record.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mtm_core::NodeId;
use mtm_paxos::{AcceptorRecord, Message};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = Message::<Vec<u8>>::decode(bytes) {
        let mut again = Vec::new();
        message.encode(&mut again);
        assert_eq!(again, bytes);
    }
    let mut sealed = [b"MTMp\0\x01".as_slice(), bytes].concat();
    sealed.extend(crc32fast::hash(&sealed).to_be_bytes());
    for node in (1..=2).filter_map(NodeId::new) {
        if let Ok(record) = AcceptorRecord::<Vec<u8>>::from_bytes(&sealed, node) {
            assert_eq!(record.to_bytes(node), sealed);
        }
    }
});
