//! Any bytes as the payload of a logical message: announcement, DDL, syncpoint.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mtm_logrep::announcement::Announcement;
use mtm_logrep::ddl;
use mtm_logrep::syncpoint::Syncpoint;

fuzz_target!(|bytes: &[u8]| {
    let mut again = Vec::new();
    if let Ok(a) = Announcement::decode(bytes) {
        Announcement::encode(&a.gid, a.xid, a.children.iter().copied(), &mut again);
        assert_eq!(again, bytes);
    }
    if let Ok(message) = ddl::Message::decode(bytes) {
        assert_eq!(message.encode(), bytes);
        assert!(ddl::peek(bytes).is_ok());
    }
    again.clear();
    if let Ok(syncpoint) = Syncpoint::decode(bytes) {
        syncpoint.encode(&mut again);
        assert_eq!(again, bytes);
    }
});
