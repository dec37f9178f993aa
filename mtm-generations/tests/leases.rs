//! Reading by lease: what a node lends, when it may go on without who relies on it, and what a
//! holder may count on (specs/adr/0118).

use mtm_core::{GenNum, Instant, Machine, NodeId, NodeSet, Outbox};
use mtm_generations::{
    Effect, Elected, Generation, Input, Membership, Message, Misuse, Record, Timing,
};

const LEASE: u64 = 2_000_000;
/// What a holder counts with.
const HELD: u64 = LEASE - LEASE / 10;
const START: u64 = 70_000_000;

fn n(i: u8) -> NodeId {
    NodeId::new(i).unwrap()
}

fn all() -> NodeSet {
    NodeSet::first(3)
}

fn node(id: u8, restarted: bool) -> Membership {
    let timing = Timing { lease_us: LEASE, ..Timing::default() };
    Membership::new(Record::initial(n(id), 7, all()), timing, 5, restarted)
}

fn step(node: &mut Membership, at: u64, input: Input) -> Vec<Effect> {
    let mut out = Outbox::new();
    node.step(Instant(at), input, &mut out).unwrap();
    out.as_slice().to_vec()
}

fn message(from: u8, message: Message) -> Input {
    Input::Message { from: n(from), message }
}

fn elected(num: u64, members: NodeSet) -> Elected {
    let generation = Generation { num: GenNum(num), members, ..Generation::initial(all()) };
    Elected { generation, donors: members }
}

fn sign_of_life(node: &mut Membership, at: u64, from: u8) -> bool {
    let sent = Instant(at - 1_000);
    let input = Input::SignOfLife { from: n(from), sent };
    let num = node.current().generation.num;
    step(node, at, input).contains(&Effect::Lend { to: n(from), sent, for_us: LEASE, num })
}

fn lent(from: u8, sent: u64, num: u64) -> Input {
    Input::Lent { from: n(from), sent: Instant(sent), for_us: LEASE, num: GenNum(num) }
}

fn wants_without_3(node: &mut Membership, at: u64) -> Vec<Effect> {
    step(node, at, message(2, Message::Elected(elected(2, NodeSet::first(2)))))
}

fn is_offered(effects: &[Effect]) -> bool {
    effects.contains(&Effect::SwitchWanted(GenNum(2)))
}

#[test]
fn nobody_goes_on_without_who_may_rely_on_it() {
    let mut one = node(1, false);
    assert!(sign_of_life(&mut one, START, 3));
    let effects = wants_without_3(&mut one, START + 10);
    let recall = Message::Elected(elected(2, NodeSet::first(2)));
    let recall = Effect::Send { to: NodeSet::only(n(3)), message: recall, after: None };
    assert!(effects.contains(&recall) && !is_offered(&effects), "{effects:?}");
    // Nothing more is lent to who is left out, and what is lent counts in full.
    assert!(!sign_of_life(&mut one, START + 20, 3));
    let early = one.step(Instant(START + 30), Input::Switch, &mut Outbox::new());
    assert_eq!(early, Err(Misuse::NoSwitch));
    assert!(!is_offered(&step(&mut one, START + LEASE - 1, Input::Wake)));
    assert!(one.deadline().unwrap() <= Instant(START + LEASE));
    assert!(is_offered(&step(&mut one, START + LEASE, Input::Wake)));
    step(&mut one, START + LEASE, Input::Switch);
    assert_eq!(one.current().generation.num, GenNum(2));
}

#[test]
fn it_goes_on_when_the_word_is_given_back() {
    let mut one = node(1, false);
    sign_of_life(&mut one, START, 3);
    wants_without_3(&mut one, START + 10);
    // That of an older generation than the one it was lent in says nothing about it.
    assert!(!is_offered(&step(&mut one, START + 20, message(3, Message::Released(GenNum(1))))));
    assert!(is_offered(&step(&mut one, START + 30, message(3, Message::Released(GenNum(2))))));
}

#[test]
fn who_is_gone_keeps_nobody_waiting() {
    let mut one = node(1, false);
    sign_of_life(&mut one, START, 3);
    wants_without_3(&mut one, START + 10);
    let closed = |at| Input::Closed { peers: NodeSet::only(n(3)), at: Instant(at) };
    // Lent on a later connection than those that have closed.
    assert!(!is_offered(&step(&mut one, START + 20, closed(START - 1))));
    assert!(is_offered(&step(&mut one, START + 30, closed(START + 20))));
}

#[test]
fn an_earlier_life_may_have_lent_to_everybody() {
    let mut one = node(1, true);
    step(&mut one, START, Input::Fenced(false));
    assert!(!is_offered(&wants_without_3(&mut one, START + 10)));
    assert!(is_offered(&step(&mut one, START + LEASE, Input::Wake)));
}

#[test]
fn who_was_out_before_a_restart_keeps_nobody_waiting() {
    let mut record = Record::initial(n(1), 7, all());
    record.current = elected(2, NodeSet::first(2));
    (record.last_vote, record.last_online_in) = (GenNum(2), GenNum(2));
    let timing = Timing { lease_us: LEASE, ..Timing::default() };
    let mut one = Membership::new(record, timing, 5, true);
    step(&mut one, START, Input::Fenced(false));
    let again = Message::Elected(elected(3, NodeSet::first(2)));
    let effects = step(&mut one, START + 10, message(2, again));
    assert!(effects.contains(&Effect::SwitchWanted(GenNum(3))), "{effects:?}");
}

#[test]
fn who_cannot_be_connected_to_is_told_on_its_own_connection() {
    let mut one = node(1, false);
    sign_of_life(&mut one, START, 3);
    wants_without_3(&mut one, START + 10);
    let sign = Input::SignOfLife { from: n(3), sent: Instant(START) };
    let recall = Effect::Recall { to: n(3), elected: elected(2, NodeSet::first(2)) };
    assert!(step(&mut one, START + 20, sign).contains(&recall));
}

#[test]
fn nothing_is_lent_in_a_generation_that_a_crash_undoes() {
    let mut one = node(1, false);
    let effects = step(&mut one, START, message(2, Message::Elected(elected(2, all()))));
    assert!(is_offered(&effects));
    let effects = step(&mut one, START, Input::Switch);
    let Some(Effect::Persist { token, .. }) = effects.first() else { panic!("{effects:?}") };
    assert!(!sign_of_life(&mut one, START + 10, 3));
    step(&mut one, START + 20, Input::Persisted(*token));
    assert!(sign_of_life(&mut one, START + 30, 3));
}

#[test]
fn a_holder_counts_with_less_from_the_sending_on() {
    let mut three = node(3, false);
    assert_eq!(three.leased_until(Instant(START)), None, "nobody has lent anything");
    step(&mut three, START + 500, lent(1, START, 1));
    assert_eq!(three.leased_until(Instant(START + 500)), Some(Instant(START + HELD)));
    assert_eq!(three.leased_until(Instant(START + HELD)), None);
    // The longer one of two makes the majority.
    step(&mut three, START + 1_000, lent(2, START + 700, 1));
    assert_eq!(three.leased_until(Instant(START + HELD)), Some(Instant(START + 700 + HELD)));
}

#[test]
fn who_hears_that_it_is_left_out_gives_back() {
    let mut three = node(3, false);
    step(&mut three, START, lent(1, START, 1));
    let effects = wants_without_3(&mut three, START + 10);
    let released = Message::Released(GenNum(2));
    let released = |to| Effect::Send { to, message: released, after: None };
    assert!(effects.contains(&released(NodeSet::first(2))), "{effects:?}");
    // It may be lost: who still waits asks again.
    let again = wants_without_3(&mut three, START + 10);
    assert!(again.contains(&released(NodeSet::only(n(2)))), "{again:?}");
    assert_eq!(three.leased_until(Instant(START + 10)), None);
    // An answer that was on its way, and one from a generation that this node is not in.
    step(&mut three, START + 20, lent(1, START + 5, 1));
    step(&mut three, START + 20, lent(2, START + 5, 2));
    assert_eq!(three.leased_until(Instant(START + 20)), None);
}

#[test]
fn an_answer_to_what_was_not_sent_yet_is_none() {
    let mut three = node(3, false);
    step(&mut three, START, lent(1, START + 1, 1));
    assert_eq!(three.leased_until(Instant(START)), None);
}

#[test]
fn who_lends_to_nobody_waits_for_nobody() {
    let mut one = Membership::new(Record::initial(n(1), 7, all()), Timing::default(), 5, true);
    step(&mut one, START, Input::Fenced(false));
    assert!(!sign_of_life(&mut one, START, 3));
    assert!(is_offered(&wants_without_3(&mut one, START + 10)));
}
