//! Claims about one ring, one thread at a time; `tests/loom.rs` has the concurrent ones.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

fn words(capacity_bytes: usize) -> Vec<AtomicU64> {
    (0..Ring::words_for(capacity_bytes)).map(|_| AtomicU64::new(0xdead)).collect()
}

fn popped(ring: &Ring<'_>) -> Option<Vec<u8>> {
    let mut message = Vec::new();
    ring.pop(&mut message).expect("not corrupt").then_some(message)
}

#[test]
fn messages_come_out_in_order_and_once() {
    let words = words(256);
    let ring = Ring::init(&words);
    ring.push(b"one").unwrap();
    ring.push(b"").unwrap();
    ring.push_parts(&[b"th", b"", b"ree and more than a word"]).unwrap();
    assert_eq!((ring.pushed(), ring.popped()), (3, 0));
    assert_eq!(popped(&ring).as_deref(), Some(&b"one"[..]));
    assert_eq!(popped(&ring).as_deref(), Some(&b""[..]));
    assert_eq!(popped(&ring).as_deref(), Some(&b"three and more than a word"[..]));
    assert_eq!(popped(&ring), None);
    assert!(ring.is_empty());
    assert_eq!(ring.len_bytes(), 0);
}

#[test]
fn a_full_ring_says_how_much_is_missing() {
    let words = words(32);
    let ring = Ring::init(&words);
    ring.push(&[1; 16]).unwrap();
    assert_eq!(ring.push(&[2; 8]), Err(PushError::Full { needed: 16, free: 8 }));
    ring.push(b"").unwrap();
    assert_eq!(ring.push(b""), Err(PushError::Full { needed: 8, free: 0 }));
    assert_eq!(ring.len_bytes(), ring.capacity());
    assert_eq!(popped(&ring), Some(vec![1; 16]));
}

#[test]
fn what_can_never_fit_is_another_error() {
    let words = words(32);
    let ring = Ring::init(&words);
    assert_eq!(ring.push(&[0; 25]), Err(PushError::TooLarge { needed: 40, capacity: 32 }));
    ring.push(&[3; 24]).unwrap();
    assert_eq!(popped(&ring), Some(vec![3; 24]));
}

#[test]
fn attaching_checks_format_version_and_size() {
    let words = words(64);
    assert_eq!(Ring::attach(&words).err(), Some(RingError::NotARing));
    Ring::init(&words).push(b"kept").unwrap();
    assert_eq!(popped(&Ring::attach(&words).unwrap()).as_deref(), Some(&b"kept"[..]));
    let formatted = words.len() as u64;
    let shorter = words.len() - 1;
    assert_eq!(
        Ring::attach(&words[..shorter]).err(),
        Some(RingError::Size { words: shorter, formatted })
    );
    assert_eq!(Ring::attach(&words[..3]).err(), Some(RingError::NotARing));
    words[AT_MAGIC].store(MAGIC + 1, Ordering::Relaxed);
    assert_eq!(Ring::attach(&words).err(), Some(RingError::Version { found: 2, known: 1 }));
}

#[test]
fn a_producer_that_died_before_publishing_has_done_nothing() {
    let words = words(64);
    let ring = Ring::init(&words);
    ring.push(b"first").unwrap();
    let published = words[AT_TAIL].load(Ordering::Relaxed);
    ring.push(b"half done").unwrap();
    words[AT_TAIL].store(published, Ordering::Relaxed);
    ring.push(b"second").unwrap();
    assert_eq!(popped(&ring).as_deref(), Some(&b"first"[..]));
    assert_eq!(popped(&ring).as_deref(), Some(&b"second"[..]));
    assert_eq!(popped(&ring), None);
    assert_eq!(ring.pushed(), 2);
}

#[test]
fn a_consumer_that_died_before_freeing_has_taken_nothing() {
    let words = words(64);
    let ring = Ring::init(&words);
    ring.push(b"again").unwrap();
    let before = words[AT_HEAD].load(Ordering::Relaxed);
    assert!(popped(&ring).is_some());
    words[AT_HEAD].store(before, Ordering::Relaxed);
    assert_eq!(popped(&ring).as_deref(), Some(&b"again"[..]));
    assert_eq!(popped(&ring), None);
}

#[test]
fn counts_wrap_without_losing_messages() {
    let words = words(64);
    let ring = Ring::init(&words);
    let last = Cursor { position: 5, count: COUNT_MASK }.pack();
    words[AT_TAIL].store(last, Ordering::Relaxed);
    words[AT_HEAD].store(last, Ordering::Relaxed);
    ring.push(b"before").unwrap();
    ring.push(b"after").unwrap();
    assert_eq!(ring.pushed(), 1);
    assert_eq!(popped(&ring).as_deref(), Some(&b"before"[..]));
    assert_eq!(popped(&ring).as_deref(), Some(&b"after"[..]));
    assert!(ring.is_empty());
}

#[test]
fn discarding_leaves_a_ring_that_works() {
    let words = words(64);
    let ring = Ring::init(&words);
    ring.push(b"a").unwrap();
    ring.push(b"b").unwrap();
    assert_eq!(ring.discard(), Ok(2));
    assert_eq!(popped(&ring), None);
    ring.push(b"c").unwrap();
    assert_eq!(popped(&ring).as_deref(), Some(&b"c"[..]));
}

#[derive(Clone, Debug)]
enum Step {
    Push(Vec<Vec<u8>>),
    Pop,
}

fn step() -> impl Strategy<Value = Step> {
    let parts = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..4);
    prop_oneof![parts.prop_map(Step::Push), Just(Step::Pop)]
}

proptest! {
    #[test]
    fn a_ring_behaves_like_a_queue(
        capacity in 16usize..200,
        steps in prop::collection::vec(step(), 0..300),
    ) {
        let words = words(capacity);
        let ring = Ring::init(&words);
        let mut model: VecDeque<Vec<u8>> = VecDeque::new();
        let takes = |m: &Vec<u8>| 8 + m.len().div_ceil(8) * 8;
        for step in steps {
            match step {
                Step::Push(parts) => {
                    let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
                    let message = parts.concat();
                    let (needed, used) = (takes(&message), model.iter().map(takes).sum::<usize>());
                    let free = ring.capacity() - used;
                    let expected = if needed > ring.capacity() {
                        Err(PushError::TooLarge { needed, capacity: ring.capacity() })
                    } else if needed > free {
                        Err(PushError::Full { needed, free })
                    } else {
                        model.push_back(message);
                        Ok(())
                    };
                    prop_assert_eq!(ring.push_parts(&slices), expected);
                }
                Step::Pop => prop_assert_eq!(popped(&ring), model.pop_front()),
            }
            prop_assert_eq!(ring.len_bytes(), model.iter().map(takes).sum::<usize>());
            prop_assert_eq!(ring.is_empty(), model.is_empty());
            prop_assert_eq!(ring.pushed() - ring.popped(), model.len() as u64);
        }
    }

    #[test]
    fn arbitrary_words_never_panic_and_never_loop(
        contents in prop::collection::vec(any::<u64>(), AT_DATA + 2..AT_DATA + 12),
        small in any::<bool>(),
    ) {
        let words: Vec<AtomicU64> = contents.iter().map(|&w| AtomicU64::new(w)).collect();
        let capacity = (words.len() - AT_DATA) as u64;
        words[AT_MAGIC].store(MAGIC, Ordering::Relaxed);
        words[AT_CAPACITY].store(capacity, Ordering::Relaxed);
        if small {
            // Cursors that can belong together, so that headers are read too.
            let count = contents[AT_HEAD] >> POSITION_BITS;
            let head = Cursor { position: 1, count };
            let tail = Cursor { position: 1 + capacity as usize, count: (count + 1) & COUNT_MASK };
            words[AT_HEAD].store(head.pack(), Ordering::Relaxed);
            words[AT_TAIL].store(tail.pack(), Ordering::Relaxed);
        }
        let ring = Ring::attach(&words).unwrap();
        let mut message = Vec::new();
        while let Ok(true) = ring.pop(&mut message) {
            prop_assert!(message.len() <= ring.capacity());
        }
        let _ = (ring.push(b"x"), ring.len_bytes(), ring.is_empty(), ring.discard());
    }
}
