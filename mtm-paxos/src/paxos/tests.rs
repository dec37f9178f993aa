use super::*;

fn node(n: u8) -> NodeId {
    NodeId::new(n).expect("small")
}

fn paxos(me: u8) -> Paxos<u64> {
    let cohort = NodeSet::first(3);
    Paxos::new(node(me), cohort, AcceptorRecord::new(), Timing::default(), u64::from(me))
        .expect("it is in the cohort")
}

fn step(p: &mut Paxos<u64>, now: u64, input: Input<u64>) -> Vec<Effect<u64>> {
    let mut out = Outbox::new();
    p.step(Instant(now), input, &mut out).expect("no mistake is made here");
    out.drain().collect()
}

fn message(from: u8, message: Message<u64>) -> Input<u64> {
    Input::Message { from: node(from), message }
}

#[test]
fn a_stranger_has_no_part() {
    let cohort = NodeSet::first(3);
    let made = Paxos::<u64>::new(node(4), cohort, AcceptorRecord::new(), Timing::default(), 1);
    assert_eq!(made.map(|_| ()), Err(Misuse::NotInCohort(node(4), cohort)));
    let mut p = paxos(1);
    let ballot = Ballot { round: 1, node: node(4) };
    assert_eq!(step(&mut p, 0, message(4, Message::Phase1a { ballot })), []);
}

#[test]
fn the_initial_proposer_needs_one_round() {
    let mut p = paxos(1).with_initial_proposer(node(1));
    let effects = step(&mut p, 0, Input::Propose(7));
    let [Effect::Flush(flush)] = effects.as_slice() else { panic!("{effects:?}") };
    let ballot = Ballot { round: 0, node: node(1) };
    assert_eq!(flush.record().accepted, Some((ballot, 7)));
    let accepted = Message::Accepted { ballot, value: 7 };
    assert_eq!(step(&mut p, 0, message(1, accepted.clone())), []);
    let decided = step(&mut p, 0, message(2, accepted));
    assert_eq!(decided[0], Effect::Decided(7));
}

#[test]
fn round_0_is_nobodys_but_the_initial_proposers() {
    let mut p = paxos(2).with_initial_proposer(node(1));
    let of = |n| Message::Accept { ballot: Ballot { round: 0, node: node(n) }, value: 7 };
    assert_eq!(step(&mut p, 0, message(3, of(3))), []);
    assert_eq!(step(&mut p, 0, message(3, of(1))), [], "and nobody speaks for it");
    assert_eq!(step(&mut p, 0, message(1, of(1))).len(), 1);
}

#[test]
fn after_a_restart_the_initial_ballot_is_used_up() {
    let mut p = paxos(1).with_initial_proposer(node(1));
    step(&mut p, 0, Input::Propose(7));
    let record = p.record().clone();
    let mut again = Paxos::new(node(1), NodeSet::first(3), record, Timing::default(), 5)
        .expect("it is in the cohort")
        .with_initial_proposer(node(1));
    let effects = step(&mut again, 0, Input::Propose(8));
    let [Effect::Flush(flush)] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(flush.record().promised, Some(Ballot { round: 1, node: node(1) }));
    assert_eq!(flush.record().accepted.as_ref().map(|a| a.1), Some(7), "7 is not forgotten");
}

#[test]
fn who_knows_tells_who_asks() {
    let mut p = paxos(1);
    assert_eq!(step(&mut p, 0, message(2, Message::Ask)), []);
    step(&mut p, 0, message(3, Message::Decided { value: 9 }));
    let told = Effect::Send(Message::Decided { value: 9 }.to(NodeSet::only(node(2))));
    assert_eq!(step(&mut p, 0, message(2, Message::Ask)), [told]);
    assert_eq!(step(&mut p, 0, message(3, Message::Decided { value: 9 })), [], "said once");
}

#[test]
fn who_waits_tries_again_at_its_deadline_and_not_before() {
    let mut p = paxos(1);
    assert_eq!(p.deadline(), None);
    assert_eq!(step(&mut p, 0, Input::Propose(7)).len(), 1);
    let at = p.deadline().expect("it waits for promises");
    assert_eq!(step(&mut p, at.0 - 1, Input::Wake), []);
    assert_eq!(step(&mut p, at.0, Input::Wake).len(), 1);
}
