use super::*;
use mtm_core::{GenNum, Lsn};
use proptest::prelude::*;

const ME: u8 = 1;

fn gid(origin: u8, xid: u64) -> Gid {
    Gid { origin: NodeId::new(origin).unwrap(), xid: Xid(xid), generation: GenNum(3) }
}

fn checkpoint(remembered: &[(Gid, Found)]) -> Checkpoint {
    let first = Checkpoint::first(NodeId::new(ME).unwrap(), 7, Lsn(1));
    Checkpoint { remembered: remembered.to_vec(), ..first }
}

/// Its number in the server is another one.
fn local(gid: Gid) -> LocalXid {
    LocalXid(gid.xid.0 + 1000)
}

fn announced(gid: Gid) -> Word {
    Word::Announced { gid, local: local(gid) }
}

fn only_announced(gid: Gid) -> Found {
    Found::AnnouncedOnly { local: local(gid) }
}

/// What is found after these records, with these prepared and these own ones in the commit log.
fn found(
    remembered: &[(Gid, Found)],
    words: &[Word],
    prepared: &[Gid],
    committed: &[u64],
) -> Vec<(Gid, Found)> {
    let mut restart = Restart::new(&checkpoint(remembered));
    words.iter().for_each(|word| _ = restart.read(*word));
    let gids = prepared.iter().copied().collect();
    let prepared = Prepared { gids, ..Prepared::default() };
    restart.finish(&prepared, |xid| committed.contains(&xid.0)).found
}

const ACCEPTED: Found = Found::AbortAccepted { prepared: false };
const ACCEPTED_PREPARED: Found = Found::AbortAccepted { prepared: true };

#[test]
fn an_own_transaction_is_announced_until_its_commit_is_found() {
    let own = gid(ME, 900);
    let words = [Word::Marked { xid: 900, gid: own }, announced(own)];
    assert_eq!(found(&[], &words, &[], &[]), [(own, only_announced(own))]);
    assert_eq!(found(&[], &words, &[], &[1900]), [(own, Found::Committed)]);
    let committed = [words[0], words[1], Word::Committed { xid: 900, gid: None }];
    assert_eq!(found(&[], &committed, &[], &[]), [(own, Found::Committed)]);
    // Another transaction's commit is none of its.
    let other = [words[0], words[1], Word::Committed { xid: 901, gid: None }];
    assert_eq!(found(&[], &other, &[], &[]), [(own, only_announced(own))]);
}

/// What is open after these records.
fn open(words: &[Word]) -> Vec<Gid> {
    let mut restart = Restart::new(&checkpoint(&[]));
    words.iter().for_each(|word| _ = restart.read(*word));
    restart.open().iter().copied().collect()
}

#[test]
fn what_is_kept_open_is_open_until_it_ends() {
    let (one, other) = (gid(2, 7), gid(3, 7));
    let opened = Word::Opened { xid: 50, gid: one };
    assert_eq!(open(&[opened]), [one]);
    // The commit record of the local transaction has no name of its own.
    assert_eq!(open(&[opened, Word::Committed { xid: 50, gid: None }]), []);
    assert_eq!(open(&[opened, Word::Committed { xid: 51, gid: None }]), [one]);
    assert_eq!(open(&[opened, Word::Closed(one)]), []);
    assert_eq!(open(&[opened, Word::Closed(other)]), [one]);
    // Applied again after a crash, prepared, and committed then.
    assert_eq!(open(&[opened, Word::Committed { xid: 60, gid: Some(one) }]), []);
    // An accepted abort leaves it where it is, as it leaves what is prepared.
    assert_eq!(open(&[opened, Word::AbortAccepted(one)]), [one]);
    // A number of the server is used once; a name may come again after it was closed.
    let again = Word::Opened { xid: 70, gid: one };
    assert_eq!(open(&[opened, Word::Closed(one), again]), [one]);
}

#[test]
fn the_commit_log_speaks_of_own_transactions_only() {
    // Another node's number may be a committed one here.
    let others = gid(2, 900);
    let remembered = [(others, only_announced(others))];
    assert_eq!(found(&remembered, &[], &[], &[1900]), [(others, only_announced(others))]);
}

#[test]
fn an_accepted_abort_of_an_own_announced_one_leaves_it_announced() {
    let own = gid(ME, 900);
    let words = [announced(own), Word::AbortAccepted(own)];
    assert_eq!(found(&[], &words, &[], &[]), [(own, only_announced(own))]);
    let remembered = [(own, only_announced(own))];
    assert_eq!(found(&remembered, &words[1..], &[], &[]), [(own, only_announced(own))]);
    // Never heard of before: only the acceptance is known.
    assert_eq!(found(&[], &words[1..], &[], &[]), [(own, ACCEPTED)]);
}

#[test]
fn a_prepared_transaction_is_prepared_and_its_acceptance_is_kept() {
    let theirs = gid(2, 5);
    assert_eq!(found(&[], &[], &[theirs], &[]), [(theirs, Found::Prepared)]);
    let accepted = [Word::AbortAccepted(theirs)];
    assert_eq!(found(&[], &accepted, &[theirs], &[]), [(theirs, ACCEPTED_PREPARED)]);
    assert_eq!(found(&[], &accepted, &[], &[]), [(theirs, ACCEPTED)]);
    // Rolled back since it was saved.
    let saved = [(theirs, ACCEPTED_PREPARED)];
    assert_eq!(found(&saved, &[], &[], &[]), [(theirs, ACCEPTED)]);
    assert_eq!(found(&saved, &[], &[theirs], &[]), [(theirs, ACCEPTED_PREPARED)]);
}

#[test]
fn a_prepared_transaction_is_not_committed_whatever_was_saved() {
    let theirs = gid(2, 5);
    // `Committing` is saved as committed; the crash came before COMMIT PREPARED.
    let saved = [(theirs, Found::Committed)];
    assert_eq!(found(&saved, &[], &[theirs], &[]), [(theirs, Found::Prepared)]);
}

#[test]
fn commits_of_others_are_found_by_name_and_by_marker() {
    let (by_name, by_marker, open) = (gid(2, 5), gid(2, 6), gid(2, 7));
    let words = [
        Word::Marked { xid: 31, gid: by_marker },
        Word::Marked { xid: 32, gid: open },
        Word::Committed { xid: 30, gid: Some(by_name) },
        Word::Committed { xid: 31, gid: None },
    ];
    let committed = [(by_name, Found::Committed), (by_marker, Found::Committed)];
    assert_eq!(found(&[], &words, &[], &[]), committed);
}

#[test]
fn what_was_given_up_here_and_replayed_later_is_committed() {
    let own = gid(ME, 900);
    let words = [
        announced(own),
        Word::Marked { xid: 2000, gid: own },
        Word::Committed { xid: 2000, gid: None },
    ];
    assert_eq!(found(&[], &words, &[], &[]), [(own, Found::Committed)]);
}

#[test]
fn an_installation_replaces_earlier_acceptances() {
    let theirs = gid(2, 5);
    let installed = |accepted_abort| Word::Installed { gid: theirs, accepted_abort };
    let cleared = [Word::AbortAccepted(theirs), installed(false)];
    assert_eq!(found(&[], &cleared, &[theirs], &[]), [(theirs, Found::Prepared)]);
    assert_eq!(found(&[(theirs, ACCEPTED)], &cleared[1..], &[], &[]), []);
    let kept = [installed(true)];
    assert_eq!(found(&[], &kept, &[theirs], &[]), [(theirs, ACCEPTED_PREPARED)]);
    let later = [installed(false), Word::AbortAccepted(theirs)];
    assert_eq!(found(&[], &later, &[theirs], &[]), [(theirs, ACCEPTED_PREPARED)]);
}

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn begun(xid: u32, gid: Gid, decided: bool) -> Word {
    Word::User { xid, gid, operation: Operation::Prepare(name("a")), decided }
}

fn second(gid: Gid, first: Gid) -> Word {
    let operation = Operation::Finish { first, decree: Decree::Abort };
    Word::User { xid: 60, gid, operation, decided: false }
}

/// What is found of users, with what has these numbers and these names prepared.
fn users(saved: &Checkpoint, words: &[Word], local: &[u32], gids: &[Gid]) -> Findings {
    let mut restart = Restart::new(saved);
    words.iter().for_each(|word| _ = restart.read(*word));
    let gids = gids.iter().copied().collect();
    restart.finish(&Prepared { gids, local: local.iter().copied().collect() }, |_| false)
}

fn user(first: Gid, stage: Stage) -> FoundUser {
    FoundUser { first, name: name("a"), local: 50, stage, unnoted: false, ended: false }
}

#[test]
fn what_a_user_prepared_is_committed_once_that_is_noted_and_undecided_before() {
    let first = gid(2, 5);
    let words = [begun(50, first, false), Word::UserPrepared(first)];
    let none = checkpoint(&[]);
    let undecided = users(&none, &words[..1], &[50], &[]);
    assert_eq!(undecided.found, [(first, Found::Prepared)]);
    assert_eq!(undecided.users, [user(first, Stage::Preparing)]);
    let prepared = users(&none, &words, &[50], &[]);
    assert_eq!(prepared.found, [(first, Found::Committed)]);
    assert_eq!(prepared.users, [user(first, Stage::Prepared)]);
    // Ended since, or never prepared: the number is another one's.
    assert_eq!(users(&none, &words, &[51], &[]).users, []);
    assert_eq!(users(&none, &words[..1], &[51], &[]).found, []);
}

#[test]
fn what_is_prepared_only_when_decided_is_committed_without_a_note() {
    let own = gid(ME, 5);
    let words = [begun(50, own, true), announced(own)];
    let none = checkpoint(&[]);
    let prepared = users(&none, &words, &[50], &[]);
    assert_eq!(prepared.found, [(own, Found::Committed)]);
    assert_eq!(prepared.users, [FoundUser { unnoted: true, ..user(own, Stage::Prepared) }]);
    // The crash came before its PREPARE.
    let lost = users(&none, &words, &[], &[]);
    assert_eq!((lost.found, lost.users), (vec![(own, only_announced(own))], vec![]));
}

#[test]
fn a_second_operation_ends_it_when_it_is_committed_and_holds_it_when_it_is_prepared() {
    let (first, end) = (gid(2, 5), gid(3, 9));
    let stage = Stage::Finishing { second: end, decree: Decree::Abort };
    let words = [begun(50, first, false), Word::UserPrepared(first), second(end, first)];
    let none = checkpoint(&[]);
    assert_eq!(users(&none, &words, &[50], &[]).users, [user(first, Stage::Prepared)]);
    let open = users(&none, &words, &[50], &[end]);
    assert_eq!(open.users, [user(first, stage)]);
    assert_eq!(open.found, [(first, Found::Committed), (end, Found::Prepared)]);
    let done = [words.as_slice(), &[Word::Committed { xid: 60, gid: Some(end) }]].concat();
    let ended = users(&none, &done, &[50], &[]);
    assert_eq!(ended.users, [FoundUser { ended: true, ..user(first, stage) }]);
    assert_eq!(users(&none, &done, &[], &[]).users, []);
}

#[test]
fn what_was_saved_of_users_counts_until_the_log_says_more() {
    let (first, end) = (gid(2, 5), gid(3, 9));
    let saved = |stage| SavedUser { first, name: name("a"), local: 50, stage };
    let with = |stage, remembered: &[(Gid, Found)]| Checkpoint {
        users: vec![saved(stage)],
        ..checkpoint(remembered)
    };
    let stage = Stage::Finishing { second: end, decree: Decree::Abort };
    for stage in [Stage::Preparing, Stage::Prepared] {
        assert_eq!(users(&with(stage, &[]), &[], &[50], &[]).users, [user(first, stage)]);
    }
    let noted = users(&with(Stage::Preparing, &[]), &[Word::UserPrepared(first)], &[50], &[]);
    assert_eq!(noted.users, [user(first, Stage::Prepared)]);
    let open = users(&with(stage, &[]), &[], &[50], &[end]);
    assert_eq!(open.users, [user(first, stage)]);
    let gone = users(&with(stage, &[]), &[], &[50], &[]);
    assert_eq!(gone.users, [user(first, Stage::Prepared)]);
    let remembered = [(end, Found::Committed)];
    let ended = users(&with(stage, &remembered), &[], &[50], &[]);
    assert_eq!(ended.users, [FoundUser { ended: true, ..user(first, stage) }]);
    // It is saved as committed while it is being committed.
    let open = users(&with(stage, &remembered), &[], &[50], &[end]);
    assert_eq!(open.users, [user(first, stage)]);
}

#[test]
fn what_is_finished_and_forgotten_is_left_out() {
    let (old, new, open) = (gid(2, 5), gid(2, 10), gid(2, 4));
    let mut saved = checkpoint(&[(old, Found::Aborted)]);
    saved.forgotten[1] = Xid(10);
    let mut restart = Restart::new(&saved);
    for done in [old, new] {
        restart.read(Word::Committed { xid: 1, gid: Some(done) });
    }
    let prepared = Prepared { gids: [open].into(), ..Prepared::default() };
    assert_eq!(
        restart.finish(&prepared, |_| false).found,
        [(open, Found::Prepared), (new, Found::Committed)]
    );
}

/// The rules of the driver's duty 7b said once more, transaction by transaction: what the records
/// about it say is looked at from the last one back.
fn by_the_rules(
    remembered: Option<Found>,
    words: &[Word],
    prepared: bool,
    committed: &BTreeSet<u64>,
    gid: Gid,
) -> Option<Found> {
    let own = gid.origin.get() == ME;
    let mut last = remembered;
    let mut names = BTreeMap::new();
    for word in words {
        last = match *word {
            Word::Marked { xid, gid } => {
                names.insert(xid, gid);
                last
            }
            Word::Announced { gid: g, local } if g == gid => Some(Found::AnnouncedOnly { local }),
            Word::Committed { xid, gid: g } => {
                let named = names.remove(&xid);
                if g == Some(gid) || named == Some(gid) { Some(Found::Committed) } else { last }
            }
            Word::AbortAccepted(g) if g == gid => {
                if own && last.is_some() {
                    last
                } else {
                    Some(ACCEPTED)
                }
            }
            Word::Installed { gid: g, accepted_abort } if g == gid => {
                accepted_abort.then_some(ACCEPTED_PREPARED)
            }
            _ => last,
        };
    }
    match last {
        Some(Found::AbortAccepted { .. }) => Some(Found::AbortAccepted { prepared }),
        _ if prepared => Some(Found::Prepared),
        Some(Found::AnnouncedOnly { local }) if own && committed.contains(&local.0) => {
            Some(Found::Committed)
        }
        other => other,
    }
}

fn any_gid() -> impl Strategy<Value = Gid> {
    (1u8..=3, 0u64..3).prop_map(|(origin, xid)| gid(origin, xid))
}

fn any_word() -> impl Strategy<Value = Word> {
    prop_oneof![
        (any_gid(), 0u64..3)
            .prop_map(|(gid, local)| Word::Announced { gid, local: LocalXid(local) }),
        (0u32..4, any_gid()).prop_map(|(xid, gid)| Word::Marked { xid, gid }),
        (0u32..4, prop::option::of(any_gid())).prop_map(|(xid, gid)| Word::Committed { xid, gid }),
        any_gid().prop_map(Word::AbortAccepted),
        (any_gid(), any::<bool>())
            .prop_map(|(gid, accepted_abort)| Word::Installed { gid, accepted_abort }),
    ]
}

fn any_found() -> impl Strategy<Value = Found> {
    prop_oneof![
        Just(ACCEPTED),
        Just(ACCEPTED_PREPARED),
        Just(Found::Committed),
        Just(Found::Aborted),
        (0u64..3).prop_map(|local| Found::AnnouncedOnly { local: LocalXid(local) }),
    ]
}

#[test]
fn announcements_go_on_above_every_number_that_was_ever_durable() {
    let next = |saved: &Checkpoint, words: &[Word]| {
        let mut restart = Restart::new(saved);
        words.iter().for_each(|word| _ = restart.read(*word));
        restart.next()
    };
    let mut saved = checkpoint(&[]);
    assert_eq!(next(&saved, &[]), Xid(1));
    // Also when only abort was accepted, or a marker was written.
    assert_eq!(next(&saved, &[Word::AbortAccepted(gid(ME, 3))]), Xid(4));
    assert_eq!(next(&saved, &[Word::Marked { xid: 9, gid: gid(ME, 4) }]), Xid(5));
    // Also of one of which nothing else is left, and never another node's.
    let (own, theirs) = (gid(ME, 7), gid(2, 70));
    let installed = Word::Installed { gid: own, accepted_abort: false };
    let words = [announced(own), announced(theirs), installed];
    assert_eq!(next(&saved, &words), Xid(8));
    saved.next = Xid(9);
    assert_eq!(next(&saved, &words), Xid(9));
    saved.forgotten[0] = Xid(10);
    assert_eq!(next(&saved, &words), Xid(10));
}

/// Found by the simulator (specs/adr/0114): the peers had accepted abort, the announcement was
/// lost, and the next transaction got the same gid.
#[test]
fn a_number_whose_abort_was_accepted_is_used_up() {
    let mut restart = Restart::new(&checkpoint(&[]));
    restart.read(Word::AbortAccepted(gid(ME, 7)));
    restart.read(Word::AbortAccepted(gid(2, 70)));
    assert_eq!(restart.next(), Xid(8));
}

proptest! {
    #[test]
    fn every_transaction_gets_its_last_word(
        remembered in prop::collection::btree_map(any_gid(), any_found(), 0..6),
        words in prop::collection::vec(any_word(), 0..40),
        prepared in prop::collection::btree_set(any_gid(), 0..6),
        committed in prop::collection::btree_set(0u64..3, 0..3),
    ) {
        let list: Vec<_> = remembered.iter().map(|(gid, found)| (*gid, *found)).collect();
        let mut restart = Restart::new(&checkpoint(&list));
        words.iter().for_each(|word| _ = restart.read(*word));
        let now = Prepared { gids: prepared.clone(), ..Prepared::default() };
        let all = restart.finish(&now, |xid| committed.contains(&xid.0)).found;
        let all: BTreeMap<_, _> = all.into_iter().collect();
        for (origin, xid) in (1..=3).flat_map(|o| (0..3).map(move |x| (o, x))) {
            let gid = gid(origin, xid);
            let rules = by_the_rules(
                remembered.get(&gid).copied(),
                &words,
                prepared.contains(&gid),
                &committed,
                gid,
            );
            prop_assert_eq!(all.get(&gid).copied(), rules, "{}", gid);
        }
    }
}
