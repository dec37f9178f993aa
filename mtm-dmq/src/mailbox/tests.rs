use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

const CAPACITY: usize = 64;
const NEVER: Instant = Instant(u64::MAX);

fn words(slots: usize) -> Vec<AtomicU64> {
    (0..Mailboxes::words_for(slots, CAPACITY)).map(|_| AtomicU64::new(0xdead)).collect()
}

fn taken(mailboxes: &Mailboxes<'_>, id: u64) -> Result<Option<Vec<u8>>, TakeError> {
    let mut reply = Vec::new();
    Ok(mailboxes.take(id, &mut reply)?.then_some(reply))
}

#[test]
fn replies_reach_their_owner_in_order() {
    let words = words(2);
    let mailboxes = Mailboxes::init(&words, 2, CAPACITY, 1);
    let (a, b) = (mailboxes.open(7, NEVER).unwrap(), mailboxes.open(8, NEVER).unwrap());
    assert_eq!(mailboxes.post(a, b"yes"), Ok(7));
    assert_eq!(mailboxes.post(b, b""), Ok(8));
    assert_eq!(mailboxes.post(a, b"no"), Ok(7));
    assert_eq!(taken(&mailboxes, a), Ok(Some(b"yes".to_vec())));
    assert_eq!(taken(&mailboxes, a), Ok(Some(b"no".to_vec())));
    assert_eq!(taken(&mailboxes, a), Ok(None));
    assert_eq!(taken(&mailboxes, b), Ok(Some(Vec::new())));
}

#[test]
fn a_late_reply_is_refused_and_never_seen_by_the_next_owner() {
    let words = words(1);
    let mailboxes = Mailboxes::init(&words, 1, CAPACITY, 1);
    let first = mailboxes.open(0, NEVER).unwrap();
    mailboxes.post(first, b"not taken").unwrap();
    assert!(mailboxes.close(first));
    assert!(!mailboxes.close(first));
    let second = mailboxes.open(0, NEVER).unwrap();
    assert_ne!(first, second);
    assert_eq!(taken(&mailboxes, second), Ok(None));
    assert_eq!(mailboxes.post(first, b"late"), Err(PostError::NotOpen { correlation: first }));
    assert_eq!(taken(&mailboxes, first), Err(TakeError::Expired { correlation: first }));
}

#[test]
fn a_reply_that_slips_in_behind_a_new_owner_is_skipped() {
    let words = words(1);
    let mailboxes = Mailboxes::init(&words, 1, CAPACITY, 1);
    let first = mailboxes.open(0, NEVER).unwrap();
    mailboxes.close(first);
    let second = mailboxes.open(0, NEVER).unwrap();
    // The poster found the first mailbox open and was slow to push.
    let ring = Mailboxes::ring(mailboxes.slot(0));
    ring.push_parts(&[&first.to_ne_bytes(), b"late"]).unwrap();
    mailboxes.post(second, b"mine").unwrap();
    assert_eq!(taken(&mailboxes, second), Ok(Some(b"mine".to_vec())));
}

#[test]
fn a_slow_owner_does_not_take_what_belongs_to_the_next() {
    let words = words(1);
    let mailboxes = Mailboxes::init(&words, 1, CAPACITY, 1);
    let first = mailboxes.open(0, NEVER).unwrap();
    let second = first + (1 << SLOT_BITS);
    // The slot is still the first owner's as far as it has seen.
    let ring = Mailboxes::ring(mailboxes.slot(0));
    ring.push_parts(&[&second.to_ne_bytes(), b"for the second"]).unwrap();
    assert_eq!(taken(&mailboxes, first), Err(TakeError::Expired { correlation: first }));
    assert_eq!(ring.popped(), 0);
}

#[test]
fn overflow_and_oversize_have_names() {
    let words = words(1);
    let mailboxes = Mailboxes::init(&words, 1, CAPACITY, 1);
    let id = mailboxes.open(0, NEVER).unwrap();
    mailboxes.post(id, &[1; 32]).unwrap();
    let overflow = PostError::Overflow { correlation: id, needed: 24, free: 16 };
    assert_eq!(mailboxes.post(id, &[2; 8]), Err(overflow));
    let too_large = PostError::TooLarge { needed: 72, capacity: 64 };
    assert_eq!(mailboxes.post(id, &[3; 49]), Err(too_large));
    assert_eq!(taken(&mailboxes, id), Ok(Some(vec![1; 32])));
    mailboxes.post(id, &[4; 48]).unwrap();
    assert_eq!(mailboxes.open(0, NEVER), Err(OpenError::AllInUse { slots: 1 }));
}

#[test]
fn a_dead_owners_mailbox_expires_at_its_deadline() {
    let words = words(2);
    let mailboxes = Mailboxes::init(&words, 2, CAPACITY, 1);
    let (dead, alive) =
        (mailboxes.open(0, Instant(50)).unwrap(), mailboxes.open(0, Instant(51)).unwrap());
    assert_eq!(mailboxes.expire(Instant(49)), 0);
    assert_eq!(mailboxes.expire(Instant(50)), 1);
    assert_eq!(mailboxes.open_count(), 1);
    assert_eq!(taken(&mailboxes, dead), Err(TakeError::Expired { correlation: dead }));
    assert_eq!(taken(&mailboxes, alive), Ok(None));
    assert!(mailboxes.open(0, NEVER).is_ok());
}

#[test]
fn ids_of_a_later_start_are_new() {
    let words = words(1);
    let before = Mailboxes::init(&words, 1, CAPACITY, 1_000).open(0, NEVER).unwrap();
    let mailboxes = Mailboxes::init(&words, 1, CAPACITY, 2_000);
    let after = mailboxes.open(0, NEVER).unwrap();
    assert!(after > before);
    assert_eq!(mailboxes.post(before, b""), Err(PostError::NotOpen { correlation: before }));
    let nowhere = after | 5;
    assert_eq!(mailboxes.post(nowhere, b""), Err(PostError::NotOpen { correlation: nowhere }));
}

#[test]
fn attaching_checks_format_and_size() {
    let words = words(2);
    assert_eq!(Mailboxes::attach(&words).err(), Some(RingError::NotARing));
    let id = Mailboxes::init(&words, 2, CAPACITY, 1).open(3, NEVER).unwrap();
    assert_eq!(Mailboxes::attach(&words).unwrap().post(id, b"x"), Ok(3));
    let shorter = &words[..words.len() - 1];
    let size = RingError::Size { words: shorter.len(), formatted: words.len() as u64 };
    assert_eq!(Mailboxes::attach(shorter).err(), Some(size));
    words[AT_SLOTS + SLOT_RING].store(0, Ordering::Relaxed);
    assert_eq!(Mailboxes::attach(&words).err(), Some(RingError::NotARing));
}

#[derive(Clone, Debug)]
enum Step {
    Open(u64),
    Post(prop::sample::Index, Vec<u8>),
    Take(prop::sample::Index),
    Close(prop::sample::Index),
    Expire(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        (0u64..100).prop_map(Step::Open),
        (index(), prop::collection::vec(any::<u8>(), 0..30)).prop_map(|(i, m)| Step::Post(i, m)),
        index().prop_map(Step::Take),
        index().prop_map(Step::Close),
        (0u64..100).prop_map(Step::Expire),
    ]
}

proptest! {
    #[test]
    fn mailboxes_behave_like_a_map_of_queues(
        slots in 1usize..4,
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let words = words(slots);
        let mailboxes = Mailboxes::init(&words, slots, CAPACITY, 1);
        let mut ids: Vec<u64> = vec![u64::MAX];
        let mut model: BTreeMap<u64, (u64, VecDeque<Vec<u8>>)> = BTreeMap::new();
        let takes = |m: &Vec<u8>| Mailboxes::OVERHEAD + m.len().div_ceil(8) * 8;
        for step in steps {
            match step {
                Step::Open(deadline) => match mailboxes.open(deadline, Instant(deadline)) {
                    Ok(id) => {
                        prop_assert!(!ids.contains(&id) && model.len() < slots);
                        ids.push(id);
                        model.insert(id, (deadline, VecDeque::new()));
                    }
                    Err(error) => {
                        prop_assert_eq!(error, OpenError::AllInUse { slots });
                        prop_assert_eq!(model.len(), slots);
                    }
                },
                Step::Post(index, reply) => {
                    let correlation = *index.get(&ids);
                    let expected = match model.get_mut(&correlation) {
                        None => Err(PostError::NotOpen { correlation }),
                        Some((owner, replies)) => {
                            let needed = takes(&reply);
                            let free = CAPACITY - replies.iter().map(takes).sum::<usize>();
                            if needed > free {
                                Err(PostError::Overflow { correlation, needed, free })
                            } else {
                                replies.push_back(reply.clone());
                                Ok(*owner)
                            }
                        }
                    };
                    prop_assert_eq!(mailboxes.post(correlation, &reply), expected);
                }
                Step::Take(index) => {
                    let correlation = *index.get(&ids);
                    let expected = match model.get_mut(&correlation) {
                        None => Err(TakeError::Expired { correlation }),
                        Some((_, replies)) => Ok(replies.pop_front()),
                    };
                    prop_assert_eq!(taken(&mailboxes, correlation), expected);
                }
                Step::Close(index) => {
                    let id = *index.get(&ids);
                    prop_assert_eq!(mailboxes.close(id), model.remove(&id).is_some());
                }
                Step::Expire(now) => {
                    let before = model.len();
                    model.retain(|_, (deadline, _)| *deadline > now);
                    prop_assert_eq!(mailboxes.expire(Instant(now)), before - model.len());
                }
            }
            prop_assert_eq!(mailboxes.open_count(), model.len());
        }
    }
}
