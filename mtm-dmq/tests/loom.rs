//! Rings, mailboxes and tasks under every interleaving and every stale value that the memory model
//! allows, within the stated bounds.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p mtm-dmq --release --test loom`. At most three
//! threads and three preemptions; 410,000 executions, half a minute on two busy cores.
//!
//! Bugs that were planted by hand and found: publishing without release (kept, below); freeing a
//! message by a store instead of a compare-and-swap; confirming the head by a load instead of a
//! compare-and-swap (which is how the ring was first written); opening a mailbox by a store; not
//! looking at the correlation id before taking, or after; taking a task, or letting go of it, by a
//! store.
//!
//! Backends are processes and loom runs threads; the memory model is the same, and nothing here
//! holds a pointer, so what is shown for one holds for the other. What loom cannot show: it
//! executes loads in program order, so a load never sees a store that comes later. The release
//! of the head cursor (a consumer's copying must not sink below it) is therefore argued in
//! `ring.rs` and not found broken here.
#![cfg(loom)]

use loom::model::Builder;
use loom::sync::{Arc, Mutex};
use loom::thread;
use mtm_core::Instant;
use mtm_dmq::holder::Holder;
use mtm_dmq::sync::{AtomicU64, Ordering};
use mtm_dmq::{Mailboxes, PushError, Ring, TakeError};

const PREEMPTIONS: usize = 3;
const NEVER: Instant = Instant(u64::MAX);

/// Runs `f` in every way, and insists that there were many: a search that does not search looks
/// the same as code without bugs.
fn explore(f: impl Fn() + Sync + Send + 'static) {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let executions = std::sync::Arc::new(AtomicUsize::new(0));
    let mut builder = Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    let counter = std::sync::Arc::clone(&executions);
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        f();
    });
    let executions = executions.load(Ordering::Relaxed);
    println!("{executions} executions");
    assert!(executions >= 1_000, "only {executions} executions");
}

fn ring_words(capacity_bytes: usize) -> Arc<Vec<AtomicU64>> {
    let words: Vec<_> = (0..Ring::words_for(capacity_bytes)).map(|_| AtomicU64::new(0)).collect();
    Ring::init(&words);
    Arc::new(words)
}

/// Two words of bytes that can be told from every other message and from any mixture.
fn message(n: u8) -> [u8; 16] {
    [n; 16]
}

fn popped(ring: &Ring<'_>) -> Option<u8> {
    let mut bytes = Vec::new();
    if !ring.pop(&mut bytes).expect("a ring whose users keep the rules is never corrupt") {
        return None;
    }
    let n = bytes.first().copied().unwrap_or(0);
    assert_eq!(bytes, message(n), "a torn message");
    Some(n)
}

fn spawn(
    words: &Arc<Vec<AtomicU64>>,
    f: impl FnOnce(Ring<'_>) -> Vec<u8> + 'static,
) -> thread::JoinHandle<Vec<u8>> {
    let words = Arc::clone(words);
    thread::spawn(move || f(Ring::attach(&words).expect("formatted")))
}

fn push_all(ring: Ring<'_>, numbers: impl IntoIterator<Item = u8>) -> Vec<u8> {
    let fits = |n: &u8| match ring.push(&message(*n)) {
        Ok(()) => true,
        Err(PushError::Full { .. }) => false,
        Err(error) => panic!("{error}"),
    };
    numbers.into_iter().filter(fits).collect()
}

fn pop_some(ring: Ring<'_>, times: usize) -> Vec<u8> {
    (0..times).filter_map(|_| popped(&ring)).collect()
}

/// The ring holds one message and a word: the second goes over its end, and words are used again.
#[test]
fn what_is_pushed_is_popped_once_and_in_order() {
    explore(|| {
        let words = ring_words(32);
        let producer = spawn(&words, |ring| push_all(ring, 1..=3));
        let ring = Ring::attach(&words).unwrap();
        let mut got = pop_some(ring, 3);
        let pushed = producer.join().unwrap();
        got.extend(pop_some(ring, 3));
        assert_eq!(got, pushed);
        assert!(ring.is_empty());
        assert_eq!((ring.pushed(), ring.popped()), (pushed.len() as u64, pushed.len() as u64));
    });
}

/// Producers under their lock, as backends that send to one peer.
#[test]
fn producers_with_a_lock_do_not_disturb_each_other() {
    explore(|| {
        let words = ring_words(32);
        let lock = Arc::new(Mutex::new(()));
        let producer = |n: u8| {
            let lock = Arc::clone(&lock);
            spawn(&words, move |ring| {
                let _guard = lock.lock().unwrap();
                push_all(ring, [n])
            })
        };
        let (a, b) = (producer(1), producer(2));
        let ring = Ring::attach(&words).unwrap();
        let mut got = pop_some(ring, 2);
        let mut pushed = a.join().unwrap();
        pushed.extend(b.join().unwrap());
        got.extend(pop_some(ring, 2));
        got.sort_unstable();
        assert_eq!(got, pushed);
    });
}

/// Against the contract: an old consumer has not quite ended when its successor starts.
#[test]
fn two_consumers_share_messages_but_never_tear_or_repeat_one() {
    explore(|| {
        let words = ring_words(32);
        Ring::attach(&words).unwrap().push(&message(1)).unwrap();
        let producer = spawn(&words, |ring| push_all(ring, [2]));
        let other = spawn(&words, |ring| pop_some(ring, 1));
        let ring = Ring::attach(&words).unwrap();
        let mut got = pop_some(ring, 1);
        got.extend(other.join().unwrap());
        let mut pushed = vec![1];
        pushed.extend(producer.join().unwrap());
        got.extend(pop_some(ring, 2));
        got.sort_unstable();
        assert_eq!(got, pushed);
    });
}

/// Whoever looks on from outside may see old numbers, never impossible ones.
#[test]
fn onlookers_see_a_ring() {
    explore(|| {
        let words = ring_words(32);
        let producer = spawn(&words, |ring| push_all(ring, [1, 2]));
        let consumer = spawn(&words, |ring| pop_some(ring, 2));
        let ring = Ring::attach(&words).unwrap();
        let popped = ring.popped();
        let pushed = ring.pushed();
        assert!(popped <= pushed && pushed <= 2);
        assert!(ring.len_bytes() <= ring.capacity());
        producer.join().unwrap();
        consumer.join().unwrap();
    });
}

/// The checker finds a producer that publishes without release; without this test a checker that
/// finds nothing would look the same as code without bugs.
#[test]
#[should_panic(expected = "a torn message")]
fn a_publication_without_release_is_found() {
    explore(|| {
        let words = ring_words(32);
        let producer = spawn(&words, |ring| {
            ring.push_broken(&message(1)).unwrap();
            vec![1]
        });
        pop_some(Ring::attach(&words).unwrap(), 1);
        producer.join().unwrap();
    });
}

const SLOT_BYTES: usize = 64;

fn mailbox_words() -> Arc<Vec<AtomicU64>> {
    let words: Vec<_> =
        (0..Mailboxes::words_for(1, SLOT_BYTES)).map(|_| AtomicU64::new(0)).collect();
    Mailboxes::init(&words, 1, SLOT_BYTES, 1);
    Arc::new(words)
}

fn taken(mailboxes: &Mailboxes<'_>, id: u64) -> Result<Option<Vec<u8>>, TakeError> {
    let mut reply = Vec::new();
    Ok(mailboxes.take(id, &mut reply)?.then_some(reply))
}

/// A reply arrives while its mailbox expires and the slot is opened again by another: each owner
/// sees its own reply or none.
#[test]
fn replies_never_reach_another_owner() {
    explore(|| {
        let words = mailbox_words();
        let first = Mailboxes::attach(&words).unwrap().open(1, Instant(5)).unwrap();
        let poster = {
            let words = Arc::clone(&words);
            thread::spawn(move || Mailboxes::attach(&words).unwrap().post(first, b"first"))
        };
        let next = {
            let words = Arc::clone(&words);
            thread::spawn(move || {
                let mailboxes = Mailboxes::attach(&words).unwrap();
                mailboxes.expire(Instant(5));
                // The slot is free for sure: this thread alone expires and opens.
                let second = mailboxes.open(2, NEVER).unwrap();
                assert_eq!(taken(&mailboxes, second), Ok(None));
                second
            })
        };
        let mailboxes = Mailboxes::attach(&words).unwrap();
        match taken(&mailboxes, first) {
            Ok(None) | Err(TakeError::Expired { .. }) => {}
            Ok(Some(reply)) => assert_eq!(reply, b"first"),
            Err(error) => panic!("{error}"),
        }
        let second = next.join().unwrap();
        if let Ok(owner) = poster.join().unwrap() {
            assert!(owner == 1 || owner == 2, "an owner to wake");
        }
        assert_eq!(mailboxes.post(second, b"second"), Ok(2));
        assert_eq!(taken(&mailboxes, second), Ok(Some(b"second".to_vec())));
    });
}

/// A slow first owner takes while the second's reply is there already.
#[test]
fn a_slow_owner_never_takes_the_next_ones_reply() {
    explore(|| {
        let words = mailbox_words();
        let first = Mailboxes::attach(&words).unwrap().open(1, Instant(5)).unwrap();
        let slow = {
            let words = Arc::clone(&words);
            thread::spawn(move || {
                let mailboxes = Mailboxes::attach(&words).unwrap();
                assert!(matches!(
                    taken(&mailboxes, first),
                    Ok(None) | Err(TakeError::Expired { .. })
                ));
            })
        };
        let mailboxes = Mailboxes::attach(&words).unwrap();
        assert_eq!(mailboxes.expire(Instant(5)), 1);
        let second = mailboxes.open(2, NEVER).unwrap();
        mailboxes.post(second, b"second").unwrap();
        assert_eq!(taken(&mailboxes, second), Ok(Some(b"second".to_vec())));
        slow.join().unwrap();
    });
}

/// Two want the only slot; expiry meanwhile takes it from nobody whose time has not come.
#[test]
fn a_slot_has_one_owner() {
    explore(|| {
        let words = mailbox_words();
        let open = |owner: u64| {
            let words = Arc::clone(&words);
            thread::spawn(move || Mailboxes::attach(&words).unwrap().open(owner, Instant(9)))
        };
        let (a, b) = (open(1), open(2));
        let mailboxes = Mailboxes::attach(&words).unwrap();
        assert_eq!(mailboxes.expire(Instant(8)), 0);
        let (a, b) = (a.join().unwrap(), b.join().unwrap());
        let id = a.or(b).expect("one has it");
        assert!(a.is_err() || b.is_err(), "not both");
        assert_eq!(mailboxes.post(id, b"x"), Ok(if a.is_ok() { 1 } else { 2 }));
    });
}

/// Two do the same task after each other, and let go of it once more at their ends: whoever does it
/// is alone, and is the one whom everybody finds.
#[test]
fn a_task_has_one_holder_whom_all_find() {
    explore(|| {
        let (holder, inside) = (Arc::new(Holder::new()), Arc::new(AtomicU64::new(0)));
        let work = |me: u32| {
            let (holder, inside) = (Arc::clone(&holder), Arc::clone(&inside));
            thread::spawn(move || {
                let mut done = 0;
                for _ in 0..2 {
                    if holder.take(me) {
                        assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0, "not alone");
                        assert_eq!(holder.get(), Some(me), "nobody knows who does it");
                        inside.store(0, Ordering::Relaxed);
                        assert!(holder.let_go(me), "somebody took it away");
                        done += 1;
                    }
                    assert!(!holder.let_go(me), "let go of what it did not have");
                }
                done
            })
        };
        let (a, b) = (work(1), work(2));
        assert!(holder.get().is_none_or(|holder| holder == 1 || holder == 2));
        assert!(a.join().unwrap() + b.join().unwrap() > 0, "nobody got it");
        assert_eq!(holder.get(), None);
    });
}
