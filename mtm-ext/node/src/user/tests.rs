use super::*;
use mtm_core::{GenNum, NodeId, Xid};
use proptest::prelude::*;

fn gid(x: u64) -> Gid {
    Gid { origin: NodeId::new(1).unwrap(), xid: Xid(x), generation: GenNum(1) }
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn prepare(text: &str) -> Operation {
    Operation::Prepare(name(text))
}

fn finish(first: u64, decree: Decree) -> Operation {
    Operation::Finish { first: gid(first), decree }
}

#[test]
fn a_name_is_held_prepared_and_finished() {
    let mut slots = [Slot::FREE; 4];
    let mut users = Users::new(&mut slots);
    assert_eq!(users.hold(gid(1), &prepare("a")), Ok(()));
    assert_eq!(users.hold(gid(1), &prepare("a")), Ok(()), "the same one again");
    assert_eq!(users.hold(gid(2), &prepare("a")), Err(Obstacle::Busy(gid(1))));
    assert_eq!(users.hold(gid(3), &finish(1, Decree::Commit)), Err(Obstacle::Busy(gid(1))));
    users.end(gid(1), &prepare("a"), Decree::Commit);
    assert_eq!(users.hold(gid(2), &prepare("a")), Err(Obstacle::InUse));
    assert_eq!(users.by_name(&name("a")).unwrap().0, gid(1));
    assert_eq!(users.hold(gid(3), &finish(1, Decree::Commit)), Ok(()));
    assert_eq!(users.hold(gid(4), &finish(1, Decree::Abort)), Err(Obstacle::Busy(gid(3))));
    assert_eq!(users.hold(gid(2), &prepare("a")), Err(Obstacle::Busy(gid(3))));
    users.end(gid(3), &finish(1, Decree::Commit), Decree::Commit);
    assert_eq!(users.hold(gid(4), &finish(1, Decree::Abort)), Err(Obstacle::NotPrepared));
    assert_eq!(users.hold(gid(2), &prepare("a")), Ok(()));
}

#[test]
fn what_is_aborted_changes_nothing() {
    let mut slots = [Slot::FREE; 4];
    let mut users = Users::new(&mut slots);
    users.hold(gid(1), &prepare("a")).unwrap();
    users.end(gid(1), &prepare("a"), Decree::Abort);
    assert_eq!(users.iter().count(), 0);
    users.restore(gid(2), name("a")).unwrap();
    users.hold(gid(3), &finish(2, Decree::Commit)).unwrap();
    users.end(gid(9), &finish(2, Decree::Commit), Decree::Commit);
    users.end(gid(3), &finish(2, Decree::Commit), Decree::Abort);
    let prepared = User { name: name("a"), local: 0, stage: Stage::Prepared };
    assert_eq!(users.get(&gid(2)), Some(&prepared));
    // The word that comes late for a first operation does not take back what its user has.
    users.end(gid(2), &prepare("a"), Decree::Abort);
    assert_eq!(users.get(&gid(2)), Some(&prepared));
}

#[test]
fn the_end_of_one_is_not_the_end_of_the_next_of_that_name() {
    let mut slots = [Slot::FREE; 4];
    let mut users = Users::new(&mut slots);
    users.restore(gid(2), name("a")).unwrap();
    assert_eq!(users.hold(gid(3), &finish(1, Decree::Abort)), Err(Obstacle::NotPrepared));
}

#[test]
fn an_operation_is_known_by_its_transaction_as_long_as_it_holds_a_name() {
    let mut slots = [Slot::FREE; 4];
    let mut users = Users::new(&mut slots);
    users.hold(gid(1), &prepare("a")).unwrap();
    users.known_as(&gid(1), 77);
    users.known_as(&gid(2), 78);
    assert_eq!(users.operation_of(&gid(1)), Some(prepare("a")));
    users.end(gid(1), &prepare("a"), Decree::Commit);
    assert_eq!(users.get(&gid(1)).unwrap().local, 77);
    users.hold(gid(3), &finish(1, Decree::Abort)).unwrap();
    assert_eq!(users.operation_of(&gid(3)), Some(finish(1, Decree::Abort)));
    users.end(gid(3), &finish(1, Decree::Abort), Decree::Abort);
    assert_eq!(users.operation_of(&gid(3)), None);
    assert_eq!(users.operation_of(&gid(1)), Some(prepare("a")));
}

#[test]
fn too_many_and_too_long() {
    let mut slots = [Slot::FREE; 1];
    let mut users = Users::new(&mut slots);
    users.hold(gid(1), &prepare("a")).unwrap();
    assert_eq!(users.hold(gid(2), &prepare("b")), Err(Obstacle::TableFull));
    assert_eq!(Name::new(&[b'x'; MAX_NAME + 1]), None);
    assert!(Name::new(&[b'x'; MAX_NAME]).is_some());
}

fn any_operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..=MAX_NAME)
            .prop_map(|bytes| Operation::Prepare(Name::new(&bytes).unwrap())),
        (any::<u64>(), any::<bool>())
            .prop_map(|(x, yes)| finish(x, if yes { Decree::Commit } else { Decree::Abort })),
    ]
}

proptest! {
    #[test]
    fn operations_round_trip_and_cut_ones_are_errors(operation in any_operation()) {
        let mut bytes = Vec::new();
        operation.encode(&mut Writer::new(&mut bytes));
        let mut r = Reader::new(&bytes);
        prop_assert_eq!(Operation::decode(&mut r), Ok(operation));
        prop_assert!(r.finish().is_ok());
        for end in 0..bytes.len() {
            prop_assert!(Operation::decode(&mut Reader::new(&bytes[..end])).is_err());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = Operation::decode(&mut Reader::new(&bytes));
    }

    /// However operations come and go, a name belongs to one transaction and a transaction to at
    /// most one second operation; what is user-prepared goes only with a committed one.
    #[test]
    fn a_name_is_never_shared(
        steps in prop::collection::vec((0u64..12, 0u8..3, 0u8..3, any::<bool>()), 0..200)
    ) {
        let mut slots = [Slot::FREE; 8];
        let mut users = Users::new(&mut slots);
        for (x, which, what, yes) in steps {
            let decree = if yes { Decree::Commit } else { Decree::Abort };
            // Numbers below 6 are first operations of three names, the others are second ones.
            let operation = match x {
                0..6 => prepare(["a", "b", "c"][(x % 3) as usize]),
                _ => finish(x % 3 + 3 * u64::from(which % 2), decree),
            };
            let before: Vec<Gid> = users
                .iter()
                .filter(|(_, user)| user.stage != Stage::Preparing)
                .map(|(gid, _)| *gid)
                .collect();
            let committed = what != 0 && decree == Decree::Commit && x >= 6;
            match what {
                0 => drop(users.hold(gid(x), &operation)),
                _ => users.end(gid(x), &operation, decree),
            }
            let mut names: Vec<Name> = users.iter().map(|(_, user)| user.name).collect();
            names.sort();
            names.dedup();
            prop_assert_eq!(names.len(), users.iter().count());
            let kept = before.iter().all(|first| users.get(first).is_some());
            prop_assert!(kept || committed);
        }
    }
}
