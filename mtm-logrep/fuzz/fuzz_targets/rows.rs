//! Any bytes as rows: no panic, every tuple has as many values as it says, and the footprint is
//! found or refused with the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mtm_logrep::plan::{Conflicts, footprint};
use mtm_logrep::row::{Old, RowMessage, RowReader, Tuple};

fn look(tuple: &Tuple<'_>) {
    assert_eq!(tuple.values().count(), tuple.len());
}

fuzz_target!(|bytes: &[u8]| {
    let mut broken = false;
    for message in RowReader::new(bytes) {
        let Ok(message) = message else {
            broken = true;
            continue;
        };
        assert!(!broken, "it ends with the first error");
        match message {
            RowMessage::Relation(relation) => {
                assert_eq!(relation.columns().count(), relation.len());
                let _ = (relation.key_is_bytewise(), format!("{relation:?}"));
            }
            RowMessage::Insert { new, .. } => look(&new),
            RowMessage::Update { old, new, .. } => {
                look(&new);
                if let Some(Old::Key(old) | Old::Row(old)) = old {
                    look(&old);
                }
            }
            RowMessage::Delete { old: Old::Key(old) | Old::Row(old), .. } => look(&old),
            RowMessage::Truncate { tables, .. } => drop(tables.iter().count()),
            RowMessage::Ddl(_) | RowMessage::Subxact(_) => {}
        }
    }
    assert_eq!(footprint(RowReader::new(bytes), |_| Conflicts::ByKey).is_err(), broken);
});
