//! Every message and record reads back as it was written; nothing else reads at all.

use mtm_core::{GenNum, NodeId, NodeSet};
use mtm_generations::{Configuration, Elected, Generation, Message, Record, RecordError};
use proptest::collection::vec;
use proptest::prelude::*;

fn set() -> impl Strategy<Value = NodeSet> {
    any::<u16>().prop_map(|bits| NodeSet::from_bits(u64::from(bits)).unwrap())
}

fn node() -> impl Strategy<Value = NodeId> {
    (1u8..=16).prop_map(|n| NodeId::new(n).unwrap())
}

fn num() -> impl Strategy<Value = GenNum> {
    any::<u64>().prop_map(GenNum)
}

fn generation() -> impl Strategy<Value = Generation> {
    (num(), set(), any::<u32>(), set(), set()).prop_map(
        |(num, members, version, nodes, previous)| Generation {
            num,
            members,
            configured: Configuration { version, nodes, previous },
        },
    )
}

fn elected() -> impl Strategy<Value = Elected> {
    (generation(), set()).prop_map(|(generation, donors)| Elected { generation, donors })
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (set(), elected(), num(), num()).prop_map(|(hears, current, last_vote, last_online_in)| {
            Message::Status { hears, current, last_vote, last_online_in }
        }),
        generation().prop_map(Message::VoteRequest),
        (num(), num()).prop_map(|(num, last_online_in)| Message::Vote { num, last_online_in }),
        (num(), num()).prop_map(|(num, last_vote)| Message::VoteRefused { num, last_vote }),
        elected().prop_map(Message::Elected),
        num().prop_map(Message::Released),
    ]
}

fn record() -> impl Strategy<Value = Record> {
    (node(), any::<u64>(), num(), proptest::option::of(node()), num(), elected()).prop_map(
        |(node, cluster, last_vote, voted_for, last_online_in, current)| Record {
            node,
            cluster,
            last_vote,
            voted_for,
            last_online_in,
            current,
        },
    )
}

fn bytes_of(message: &Message) -> Vec<u8> {
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
        prop_assert!(Message::decode(&bytes[..keep]).is_err());
        bytes.push(more);
        prop_assert!(Message::decode(&bytes).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_have_one_form(tail in vec(any::<u8>(), 0..80), tag in "[SQVNE]") {
        let _ = Message::decode(&tail);
        let _ = Record::from_bytes(&tail, NodeId::new(1).unwrap(), 7);
        let bytes = [tag.as_bytes(), &tail].concat();
        if let Ok(m) = Message::decode(&bytes) {
            prop_assert_eq!(bytes_of(&m), bytes);
        }
    }

    #[test]
    fn records_round_trip_for_their_node_and_cluster_only(r in record(), other in node()) {
        let bytes = r.to_bytes();
        prop_assert_eq!(Record::from_bytes(&bytes, r.node, r.cluster), Ok(r));
        let foreign = Record::from_bytes(&bytes, r.node, r.cluster ^ 1);
        prop_assert_eq!(foreign, Err(RecordError::OtherCluster));
        if other != r.node {
            let read = Record::from_bytes(&bytes, other, r.cluster);
            prop_assert_eq!(read, Err(RecordError::OtherNode(r.node)));
        }
    }

    #[test]
    fn a_damaged_record_is_an_error(r in record(), at: prop::sample::Index, bit in 0u8..8, keep: prop::sample::Index) {
        let whole = r.to_bytes();
        let mut flipped = whole.clone();
        flipped[at.index(whole.len())] ^= 1 << bit;
        let read = |bytes: &[u8]| Record::from_bytes(bytes, r.node, r.cluster);
        prop_assert!(read(&flipped).is_err());
        prop_assert!(read(&whole[..keep.index(whole.len())]).is_err());
        prop_assert!(read(&[whole.as_slice(), &[0]].concat()).is_err());
    }
}
