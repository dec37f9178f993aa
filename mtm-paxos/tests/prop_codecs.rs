//! Every message and record reads back as it was written; nothing else reads at all.

use mtm_core::{Ballot, NodeId};
use mtm_paxos::commit::Decree;
use mtm_paxos::{AcceptorRecord, Message, RecordError, WireValue};
use proptest::collection::vec;
use proptest::prelude::*;

fn node() -> impl Strategy<Value = NodeId> {
    (1u8..=16).prop_map(|n| NodeId::new(n).unwrap())
}

fn ballot() -> impl Strategy<Value = Ballot> {
    (any::<u64>(), node()).prop_map(|(round, node)| Ballot { round, node })
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..40)
}

fn message() -> impl Strategy<Value = Message<Vec<u8>>> {
    prop_oneof![
        ballot().prop_map(|ballot| Message::Phase1a { ballot }),
        (ballot(), proptest::option::of((ballot(), value())))
            .prop_map(|(ballot, accepted)| Message::Promise { ballot, accepted }),
        (ballot(), value()).prop_map(|(ballot, value)| Message::Accept { ballot, value }),
        (ballot(), value()).prop_map(|(ballot, value)| Message::Accepted { ballot, value }),
        (ballot(), ballot()).prop_map(|(ballot, promised)| Message::Refused { ballot, promised }),
        value().prop_map(|value| Message::Decided { value }),
        Just(Message::Ask),
    ]
}

fn record() -> impl Strategy<Value = AcceptorRecord<Vec<u8>>> {
    (proptest::option::of(ballot()), proptest::option::of((ballot(), value())))
        .prop_map(|(promised, accepted)| AcceptorRecord { promised, accepted })
}

fn bytes_of(message: &Message<Vec<u8>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}

proptest! {
    #[test]
    fn messages_round_trip(m in message()) {
        prop_assert_eq!(Message::decode(&bytes_of(&m)), Ok(m));
    }

    #[test]
    fn a_cut_or_longer_message_is_an_error(m in message(), cut in 1usize..80, more: u8) {
        let mut bytes = bytes_of(&m);
        let keep = bytes.len().saturating_sub(cut);
        prop_assert!(Message::<Vec<u8>>::decode(&bytes[..keep]).is_err());
        bytes.push(more);
        prop_assert!(Message::<Vec<u8>>::decode(&bytes).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_have_one_form(tail in vec(any::<u8>(), 0..60), tag in "[12PANDQ]") {
        let _ = Message::<Vec<u8>>::decode(&tail);
        let _ = AcceptorRecord::<u64>::from_bytes(&tail, NodeId::new(1).unwrap());
        let bytes = [tag.as_bytes(), &tail].concat();
        if let Ok(m) = Message::<Vec<u8>>::decode(&bytes) {
            prop_assert_eq!(bytes_of(&m), bytes);
        }
    }

    #[test]
    fn records_round_trip_for_their_node_only(r in record(), of in node(), other in node()) {
        let bytes = r.to_bytes(of);
        prop_assert_eq!(AcceptorRecord::from_bytes(&bytes, of), Ok(r));
        if of != other {
            let read = AcceptorRecord::<Vec<u8>>::from_bytes(&bytes, other);
            prop_assert_eq!(read, Err(RecordError::OtherNode(of)));
        }
    }

    #[test]
    fn a_damaged_record_is_an_error(r in record(), of in node(), at: prop::sample::Index, bit in 0u8..8, keep: prop::sample::Index) {
        let whole = r.to_bytes(of);
        let mut flipped = whole.clone();
        flipped[at.index(whole.len())] ^= 1 << bit;
        prop_assert!(AcceptorRecord::<Vec<u8>>::from_bytes(&flipped, of).is_err());
        prop_assert!(AcceptorRecord::<Vec<u8>>::from_bytes(&whole[..keep.index(whole.len())], of).is_err());
        let longer = [whole.as_slice(), &[0]].concat();
        prop_assert!(AcceptorRecord::<Vec<u8>>::from_bytes(&longer, of).is_err());
    }

    #[test]
    fn decrees_are_values_too(b in ballot(), commit: bool) {
        let value = if commit { Decree::Commit } else { Decree::Abort };
        let m = Message::Accept { ballot: b, value };
        let mut bytes = Vec::new();
        m.encode(&mut bytes);
        prop_assert_eq!(Message::decode(&bytes), Ok(m));
        let mut r = mtm_core::wire::Reader::new(b"x");
        prop_assert!(Decree::decode(&mut r).is_err());
    }
}
