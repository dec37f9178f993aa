//! Each anomaly, made up, is found; what is allowed is not.

use super::*;
use crate::torture::history::{Body, Level, Outcome, Step};

const RC: Level = Level::ReadCommitted;
const RR: Level = Level::RepeatableRead;

/// Builds histories; each transaction takes one second, starting when it is told to.
#[derive(Default)]
struct Made(Vec<Record>);

impl Made {
    fn new() -> Self {
        Self(vec![Record::Start(Start { seed: 1, nodes: 3, accounts: 2, balance: 10 })])
    }

    fn op(mut self, node: usize, begin: u64, level: Level, outcome: Outcome, body: Body) -> Self {
        let (begin, end) = (begin * 1_000_000, (begin + 1) * 1_000_000);
        self.0.push(Record::Op(Op {
            client: u32::try_from(node).unwrap(),
            node,
            begin,
            end,
            level,
            outcome,
            body,
        }));
        self
    }

    fn list(self, node: usize, begin: u64, level: Level, steps: &[Step]) -> Self {
        let steps = steps.to_vec();
        self.op(node, begin, level, Outcome::Acknowledged, Body::List { steps })
    }

    fn transfer(self, token: u64, outcome: Outcome) -> Self {
        let body = Body::Transfer { token, from: 0, to: 1, amount: 3, two_phase: false };
        self.op(1, token, RC, outcome, body)
    }

    fn unique(self, begin: u64, key: u64, token: u64, outcome: Outcome) -> Self {
        self.op(1, begin, RC, outcome, Body::Unique { key, token })
    }

    fn state(mut self, node: usize, at: u64, change: impl FnOnce(&mut State)) -> Self {
        let mut state =
            State { at: at * 1_000_000, node, balances: vec![10, 10], ..State::default() };
        change(&mut state);
        self.0.push(Record::State(state));
        self
    }

    /// A quiet point where the lists are these.
    fn lists(self, lists: &[(u64, &[u64])]) -> Self {
        self.state(1, 1000, |state| {
            state.lists = lists.iter().map(|(k, v)| (*k, v.to_vec())).collect();
        })
    }

    fn found(&self) -> Vec<Anomaly> {
        let mut found: Vec<Anomaly> =
            check(&self.0).violations.iter().map(|violation| violation.anomaly).collect();
        found.dedup();
        found
    }
}

fn refused() -> Outcome {
    Outcome::Refused("40001".into())
}

fn unknown() -> Outcome {
    Outcome::Unknown("08007".into())
}

use Step::{Append, Read};

fn read(key: u64, list: &[u64]) -> Step {
    Read(key, list.to_vec())
}

#[test]
fn a_right_history_is_right() {
    let made = Made::new()
        .transfer(1, Outcome::Acknowledged)
        .transfer(2, refused())
        .transfer(3, unknown())
        .unique(1, 5, 50, Outcome::Acknowledged)
        .unique(1, 5, 51, refused())
        .list(1, 10, RR, &[Append(1, 1), Append(1, 2)])
        .list(2, 11, RR, &[read(1, &[1, 2]), Append(1, 3), read(1, &[1, 2, 3])])
        .list(3, 12, RC, &[read(1, &[1, 2]), read(1, &[1, 2, 3])])
        .state(1, 50, |state| {
            state.balances = vec![4, 16];
            state.ledger = vec![1, 3];
            state.uniques = [(5, 50)].into();
            state.lists = [(1, vec![1, 2, 3])].into();
        });
    assert_eq!(made.found(), []);
}

#[test]
fn lost_write() {
    let made = Made::new().transfer(1, Outcome::Acknowledged);
    assert_eq!(made.state(1, 9, |_| ()).found(), [Anomaly::Lost]);
    let made = Made::new().unique(1, 5, 50, Outcome::Acknowledged);
    assert_eq!(made.state(1, 9, |_| ()).found(), [Anomaly::Lost]);
    let made = Made::new().list(1, 1, RC, &[Append(1, 1)]);
    assert_eq!(made.lists(&[]).found(), [Anomaly::Lost]);
    let table = "side_1".to_owned();
    let made = Made::new().op(1, 1, RC, Outcome::Acknowledged, Body::Schema { table });
    assert_eq!(made.lists(&[]).found(), [Anomaly::Lost]);
}

#[test]
fn refused_write_present() {
    let made = Made::new().transfer(1, refused()).state(1, 9, |state| {
        state.ledger = vec![1];
        state.balances = vec![7, 13];
    });
    assert_eq!(made.found(), [Anomaly::Phantom]);
    let made = Made::new().op(1, 1, RC, refused(), Body::List { steps: vec![Append(1, 1)] });
    assert_eq!(made.lists(&[(1, &[1])]).found(), [Anomaly::Phantom]);
}

#[test]
fn write_by_nobody() {
    assert_eq!(Made::new().lists(&[(1, &[7])]).found(), [Anomaly::Phantom]);
}

#[test]
fn torn_transaction() {
    let steps = vec![Append(1, 1), Append(2, 2)];
    let made = Made::new().op(1, 1, RC, unknown(), Body::List { steps });
    assert_eq!(made.lists(&[(1, &[1])]).found(), [Anomaly::Torn]);
}

#[test]
fn value_twice() {
    let made = Made::new().list(1, 1, RC, &[Append(1, 1)]);
    assert_eq!(made.lists(&[(1, &[1, 1])]).found(), [Anomaly::Twice]);
}

#[test]
fn unique_key_twice() {
    let made =
        Made::new().unique(1, 5, 50, Outcome::Acknowledged).unique(2, 5, 51, Outcome::Acknowledged);
    assert_eq!(made.found(), [Anomaly::TwoWinners]);
}

#[test]
fn an_unknown_outcome_does_not_change_after_a_quiet_point() {
    let paid = |state: &mut State| {
        state.ledger = vec![1];
        state.balances = vec![7, 13];
    };
    let made = Made::new().transfer(1, unknown()).state(1, 5, |_| ()).state(1, 9, paid);
    assert_eq!(made.found(), [Anomaly::Unsettled]);
    let made = Made::new().transfer(1, Outcome::Acknowledged).state(1, 5, paid).state(1, 9, |_| ());
    assert_eq!(made.found(), [Anomaly::Unsettled]);
}

#[test]
fn nodes_differ() {
    let made = Made::new().transfer(1, unknown()).state(1, 9, |_| ()).state(2, 9, |state| {
        state.ledger = vec![1];
        state.balances = vec![7, 13];
    });
    assert_eq!(made.found(), [Anomaly::NodesDiffer]);
}

#[test]
fn wrong_sums() {
    let body = Body::Sum { totals: vec![20, 19] };
    let made = Made::new().op(1, 1, RC, Outcome::Acknowledged, body);
    assert_eq!(made.found(), [Anomaly::WrongSum]);
    let made = Made::new().state(1, 9, |state| state.balances = vec![9, 11]);
    assert_eq!(made.found(), [Anomaly::WrongSum]);
}

#[test]
fn dirty_write() {
    let made = Made::new().list(1, 1, RC, &[Append(1, 1), Append(2, 1)]).list(
        2,
        1,
        RC,
        &[Append(1, 2), Append(2, 2)],
    );
    assert_eq!(made.lists(&[(1, &[1, 2]), (2, &[2, 1])]).found(), [Anomaly::G0]);
}

#[test]
fn aborted_read() {
    let made = Made::new().op(1, 1, RC, refused(), Body::List { steps: vec![Append(1, 1)] }).list(
        2,
        1,
        RC,
        &[read(1, &[1])],
    );
    assert_eq!(made.lists(&[]).found(), [Anomaly::G1a]);
}

#[test]
fn read_of_what_then_was_lost() {
    let made = Made::new().op(1, 1, RC, unknown(), Body::List { steps: vec![Append(1, 1)] }).list(
        2,
        1,
        RC,
        &[read(1, &[1])],
    );
    assert_eq!(made.lists(&[]).found(), [Anomaly::G1a]);
}

#[test]
fn aborted_read_after_the_last_quiet_point() {
    let made = Made::new()
        .lists(&[])
        .op(1, 2000, RC, refused(), Body::List { steps: vec![Append(1, 1)] })
        .list(2, 2001, RC, &[read(1, &[1])]);
    assert_eq!(made.found(), [Anomaly::G1a]);
    let made = Made::new().lists(&[]).list(1, 2000, RC, &[Append(1, 1)]).list(
        2,
        2001,
        RC,
        &[read(1, &[1])],
    );
    assert_eq!(made.found(), []);
}

#[test]
fn intermediate_read() {
    let made =
        Made::new().list(1, 1, RC, &[Append(1, 1), Append(1, 2)]).list(2, 1, RC, &[read(1, &[1])]);
    assert_eq!(made.lists(&[(1, &[1, 2])]).found(), [Anomaly::G1b]);
}

#[test]
fn circular_information_flow() {
    let made = Made::new().list(1, 1, RC, &[Append(1, 1), read(2, &[2])]).list(
        2,
        1,
        RC,
        &[Append(2, 2), read(1, &[1])],
    );
    assert_eq!(made.lists(&[(1, &[1]), (2, &[2])]).found(), [Anomaly::G1c]);
}

#[test]
fn incompatible_orders() {
    let made = Made::new().list(1, 1, RC, &[Append(1, 1)]).list(2, 1, RC, &[Append(1, 2)]).list(
        3,
        2,
        RC,
        &[read(1, &[2])],
    );
    assert_eq!(made.lists(&[(1, &[1, 2])]).found(), [Anomaly::Order]);
}

#[test]
fn own_write_not_seen() {
    let made = Made::new().list(1, 1, RC, &[Append(1, 1), read(1, &[])]);
    assert_eq!(made.lists(&[(1, &[1])]).found(), [Anomaly::Internal]);
}

#[test]
fn unrepeatable_read_only_where_it_is_excluded() {
    let made = |level| {
        Made::new()
            .list(1, 1, RC, &[Append(1, 1)])
            .list(2, 1, level, &[read(1, &[]), read(1, &[1])])
            .lists(&[(1, &[1])])
    };
    assert_eq!(made(RC).found(), []);
    assert!(made(RR).found().contains(&Anomaly::Unrepeatable));
}

#[test]
fn lost_update_only_where_it_is_excluded() {
    let made = |level| {
        Made::new()
            .list(1, 1, level, &[read(1, &[]), Append(1, 1)])
            .list(2, 1, level, &[read(1, &[]), Append(1, 2)])
            .lists(&[(1, &[1, 2])])
    };
    assert_eq!(made(RC).found(), []);
    assert!(made(RR).found().contains(&Anomaly::LostUpdate));
}

#[test]
fn read_skew_only_where_it_is_excluded() {
    let made = |level| {
        Made::new()
            .list(1, 1, RC, &[Append(1, 1), Append(2, 1)])
            .list(2, 1, level, &[read(1, &[]), read(2, &[1])])
            .lists(&[(1, &[1]), (2, &[1])])
    };
    assert_eq!(made(RC).found(), []);
    assert_eq!(made(RR).found(), [Anomaly::GSingle]);
}

#[test]
fn read_skew_along_what_was_read_on_the_same_node() {
    // The second saw the first and wrote; the third sees the second's effect, not the first's.
    let made = |second| {
        Made::new()
            .list(1, 1, RC, &[Append(1, 1)])
            .list(second, 1, RC, &[read(1, &[1]), Append(2, 2)])
            .list(2, 1, RR, &[read(1, &[]), read(2, &[2])])
            .lists(&[(1, &[1]), (2, &[2])])
    };
    assert_eq!(made(2).found(), [Anomaly::GSingle]);
    // Read on another node, the order on this one is not promised; it is only counted.
    let elsewhere = made(3);
    assert_eq!(elsewhere.found(), []);
    let notes = check(&elsewhere.0).notes;
    assert!(notes.contains_key("effects seen before causes read on another node"));
}

#[test]
fn write_skew_is_allowed() {
    let made = Made::new().list(1, 1, RR, &[read(2, &[]), Append(1, 1)]).list(
        2,
        1,
        RR,
        &[read(1, &[]), Append(2, 2)],
    );
    assert_eq!(made.lists(&[(1, &[1]), (2, &[2])]).found(), []);
}

#[test]
fn stale_reads_are_found() {
    let made = Made::new()
        .list(1, 1, RC, &[Append(1, 1)])
        .list(2, 5, RC, &[read(1, &[])])
        .lists(&[(1, &[1])]);
    assert_eq!(made.found(), [Anomaly::Stale]);
    let text = &check(&made.0).violations[0].text;
    assert!(text.contains("did not see 1 in list 1"), "{text}");
    assert!(text.contains("3000 ms before"), "{text}");
}

#[test]
fn histories_survive_the_file() {
    for record in Made::new()
        .transfer(1, refused())
        .list(1, 1, RR, &[Append(1, 1), read(1, &[1])])
        .lists(&[(1, &[1])])
        .0
    {
        let line = serde_json::to_string(&record).unwrap();
        let back: Record = serde_json::from_str(&line).unwrap();
        assert_eq!(back, record);
    }
}
