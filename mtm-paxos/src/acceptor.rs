//! The part that remembers.
//!
//! Owns the [`AcceptorRecord`] and nothing else. Must never: say what is not in the record, let
//! a promised ballot go down, accept below its promise.

use crate::{AcceptorRecord, Flush, Message, Outgoing, Value};
use mtm_core::{Ballot, NodeId, NodeSet};

/// What an acceptor answers.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Answer<V> {
    /// This may leave at once: it promises nothing.
    Now(Outgoing<V>),
    /// This only after the record is on disk.
    AfterFlush(Flush<V>),
}

/// One node's acceptor.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Acceptor<V> {
    record: AcceptorRecord<V>,
}

impl<V: Value> Acceptor<V> {
    /// An acceptor with what it wrote before it stopped, or with [`AcceptorRecord::new`].
    pub const fn new(record: AcceptorRecord<V>) -> Self {
        Self { record }
    }

    /// What is, or is being made, durable.
    pub const fn record(&self) -> &AcceptorRecord<V> {
        &self.record
    }

    /// `ballot`'s proposer asks for a promise.
    ///
    /// Asked again, it answers again, and again behind its record: the first answer may still
    /// wait for the disk.
    pub fn phase1a(&mut self, ballot: Ballot) -> Answer<V> {
        if let Some(refused) = self.refuse(ballot) {
            return Answer::Now(refused);
        }
        self.record.promised = Some(ballot);
        let message = Message::Promise { ballot, accepted: self.record.accepted.clone() };
        Answer::AfterFlush(self.behind_record(NodeSet::only(ballot.node), message))
    }

    /// `ballot`'s proposer asks to accept `value`. Every learner is told, so that what is decided
    /// is known even when the proposer dies.
    pub fn accept(&mut self, ballot: Ballot, value: V, learners: NodeSet) -> Answer<V> {
        if let Some(refused) = self.refuse(ballot) {
            return Answer::Now(refused);
        }
        self.record.promised = Some(ballot);
        self.record.accepted = Some((ballot, value.clone()));
        Answer::AfterFlush(self.behind_record(learners, Message::Accepted { ballot, value }))
    }

    /// Whether `node` may begin with its initial ballot: nothing was ever promised here.
    pub const fn is_untouched(&self) -> bool {
        self.record.promised.is_none()
    }

    fn refuse(&self, ballot: Ballot) -> Option<Outgoing<V>> {
        let promised = self.record.promised.filter(|promised| *promised > ballot)?;
        Some(Message::Refused { ballot, promised }.to(NodeSet::only(ballot.node)))
    }

    fn behind_record(&self, to: NodeSet, message: Message<V>) -> Flush<V> {
        Flush::new(self.record.clone(), vec![message.to(to)])
    }

    /// The initial ballot of its owner, begun by accepting `value` itself.
    pub(crate) fn begin_initial(&mut self, me: NodeId, value: V, cohort: NodeSet) -> Flush<V> {
        let ballot = Ballot { round: 0, node: me };
        self.record.promised = Some(ballot);
        self.record.accepted = Some((ballot, value.clone()));
        let accept = Message::Accept { ballot, value: value.clone() }.to(cohort.without(me));
        let accepted = Message::Accepted { ballot, value }.to(cohort);
        Flush::new(self.record.clone(), vec![accept, accepted])
    }

    /// A ballot of this node, begun by promising it itself. After a crash the number is used up.
    pub(crate) fn begin(&mut self, ballot: Ballot, cohort: NodeSet) -> Flush<V> {
        self.record.promised = Some(ballot);
        let accepted = self.record.accepted.clone();
        let ask = Message::Phase1a { ballot }.to(cohort.without(ballot.node));
        let promise = Message::Promise { ballot, accepted }.to(NodeSet::only(ballot.node));
        Flush::new(self.record.clone(), vec![ask, promise])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ballot(round: u64, node: u8) -> Ballot {
        Ballot { round, node: NodeId::new(node).expect("small") }
    }

    #[test]
    fn a_promise_binds() {
        let mut a = Acceptor::<u64>::new(AcceptorRecord::new());
        assert!(matches!(a.phase1a(ballot(2, 1)), Answer::AfterFlush(_)));
        assert!(matches!(a.phase1a(ballot(1, 3)), Answer::Now(_)));
        assert!(matches!(a.accept(ballot(1, 3), 7, NodeSet::first(3)), Answer::Now(_)));
        assert_eq!(a.record().accepted, None);
        assert!(matches!(a.accept(ballot(2, 1), 7, NodeSet::first(3)), Answer::AfterFlush(_)));
        assert_eq!(a.record().accepted, Some((ballot(2, 1), 7)));
    }

    #[test]
    fn a_promise_tells_what_was_accepted_and_only_behind_the_record() {
        let mut a = Acceptor::new(AcceptorRecord::new());
        let _ = a.accept(ballot(1, 1), 7u64, NodeSet::first(3));
        let Answer::AfterFlush(flush) = a.phase1a(ballot(2, 2)) else { panic!("must be durable") };
        assert_eq!(flush.record().promised, Some(ballot(2, 2)));
        let message = Message::Promise { ballot: ballot(2, 2), accepted: Some((ballot(1, 1), 7)) };
        assert_eq!(flush.on_disk(), [message.to(NodeSet::only(ballot(2, 2).node))]);
    }

    #[test]
    fn equal_rounds_are_ordered_by_node() {
        let mut a = Acceptor::<u64>::new(AcceptorRecord::new());
        assert!(matches!(a.phase1a(ballot(1, 2)), Answer::AfterFlush(_)));
        assert!(matches!(a.phase1a(ballot(1, 1)), Answer::Now(_)));
        assert!(matches!(a.phase1a(ballot(1, 3)), Answer::AfterFlush(_)));
    }
}
