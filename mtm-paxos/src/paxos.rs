//! One node of one instance: acceptor, proposer and learner together.
//!
//! Owns the three parts and when to try again. Must never let a message leave before the record
//! it rests on: such messages exist only inside a [`Flush`].

use crate::acceptor::Answer;
use crate::{Acceptor, AcceptorRecord, Flush, Learner, Message, Outgoing, Proposer, Value};
use mtm_core::{Ballot, Instant, Machine, NodeId, NodeSet, Outbox, Rng};

/// Durations, in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Timing {
    /// How long a ballot, or a question, waits for its answers.
    pub retry_us: u64,
    /// So much more at most, drawn anew each time: it separates nodes that outbid each other.
    pub jitter_us: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { retry_us: 200_000, jitter_us: 200_000 }
    }
}

/// What may happen to an instance.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Input<V> {
    /// Nothing happened, but `deadline` has come.
    Wake,
    /// Try to have this decided, unless something else is. The first proposal stays.
    Propose(V),
    /// Find out what is decided, again and again; propose nothing.
    Ask,
    /// A message arrived, perhaps from this node itself.
    Message {
        /// From this node.
        from: NodeId,
        /// This message.
        message: Message<V>,
    },
}

/// What the driver must do.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect<V> {
    /// Make the record durable, replacing older ones in order, then send what
    /// [`Flush::on_disk`] gives.
    Flush(Flush<V>),
    /// Send this; it rests on nothing that is not durable yet.
    Send(Outgoing<V>),
    /// This is decided, once for all. Said once.
    Decided(V),
}

/// A mistake of the driver.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Misuse {
    /// The node is not one of those that decide.
    #[error("node {0} is not in the cohort {1}")]
    NotInCohort(NodeId, NodeSet),
}

/// One node's part in deciding one value of type `V`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Paxos<V> {
    me: NodeId,
    cohort: NodeSet,
    initial: Option<NodeId>,
    timing: Timing,
    acceptor: Acceptor<V>,
    proposer: Proposer<V>,
    learner: Learner<V>,
    asks: bool,
    retry_at: Option<Instant>,
    rng: Rng,
}

impl<V: Value> Paxos<V> {
    /// The node `me` of `cohort`, with its durable record ([`AcceptorRecord::new`] if it has
    /// none). `seed` should differ between nodes; it decides nothing but when to try again.
    ///
    /// # Errors
    /// When the node is not in the cohort.
    pub fn new(
        me: NodeId,
        cohort: NodeSet,
        record: AcceptorRecord<V>,
        timing: Timing,
        seed: u64,
    ) -> Result<Self, Misuse> {
        if !cohort.contains(me) {
            return Err(Misuse::NotInCohort(me, cohort));
        }
        Ok(Self {
            me,
            cohort,
            initial: None,
            timing,
            proposer: Proposer::new(me, cohort, record.promised),
            acceptor: Acceptor::new(record),
            learner: Learner::new(cohort),
            asks: false,
            retry_at: None,
            rng: Rng::new(seed),
        })
    }

    /// `node` owns the initial ballot, which needs no promises: what it proposes is decided in
    /// one round if nobody disturbs it. All nodes of the cohort must be told the same.
    #[must_use]
    pub const fn with_initial_proposer(mut self, node: NodeId) -> Self {
        self.initial = Some(node);
        self
    }

    /// This node.
    pub const fn node(&self) -> NodeId {
        self.me
    }

    /// The nodes that decide, by majority.
    pub const fn cohort(&self) -> NodeSet {
        self.cohort
    }

    /// What is decided, as far as is known here. A restart forgets it; `Propose` or `Ask` brings
    /// it back.
    pub const fn decided(&self) -> Option<&V> {
        self.learner.decided()
    }

    /// What is, or is being made, durable.
    pub const fn record(&self) -> &AcceptorRecord<V> {
        self.acceptor.record()
    }

    fn others(&self) -> NodeSet {
        self.cohort.without(self.me)
    }

    fn is_busy(&self) -> bool {
        self.decided().is_none() && (self.asks || self.proposer.wish().is_some())
    }

    fn retry_after(&mut self, now: Instant) {
        let wait = self.timing.retry_us.saturating_add(self.rng.below(self.timing.jitter_us));
        self.retry_at = Some(now.plus_us(wait.max(1)));
    }

    fn try_again(&mut self, now: Instant, out: &mut Outbox<Effect<V>>) {
        self.retry_after(now);
        let Some(wish) = self.proposer.wish().cloned() else {
            out.push(Effect::Send(Message::Ask.to(self.others())));
            return;
        };
        if self.initial == Some(self.me) && self.acceptor.is_untouched() {
            self.proposer.begun_initial(Ballot { round: 0, node: self.me });
            out.push(Effect::Flush(self.acceptor.begin_initial(self.me, wish, self.cohort)));
        } else if let Some(ballot) = self.proposer.begin() {
            out.push(Effect::Flush(self.acceptor.begin(ballot, self.cohort)));
        }
    }

    /// A ballot is its owner's to speak of, and round 0 is the initial proposer's alone.
    fn is_legitimate(&self, from: NodeId, ballot: Ballot) -> bool {
        ballot.node == from && (ballot.round > 0 || self.initial == Some(from))
    }

    fn answer(answer: Answer<V>, out: &mut Outbox<Effect<V>>) {
        out.push(match answer {
            Answer::Now(outgoing) => Effect::Send(outgoing),
            Answer::AfterFlush(flush) => Effect::Flush(flush),
        });
    }

    fn receive(
        &mut self,
        now: Instant,
        from: NodeId,
        message: Message<V>,
        out: &mut Outbox<Effect<V>>,
    ) {
        if !self.cohort.contains(from) {
            return;
        }
        match message {
            Message::Phase1a { ballot } | Message::Accept { ballot, .. }
                if !self.is_legitimate(from, ballot) => {}
            Message::Phase1a { .. } | Message::Accept { .. } | Message::Ask
                if self.decided().is_some() =>
            {
                self.tell(NodeSet::only(from), out);
            }
            Message::Ask => {}
            Message::Phase1a { ballot } => {
                self.proposer.heard(ballot);
                Self::answer(self.acceptor.phase1a(ballot), out);
            }
            Message::Accept { ballot, value } => {
                self.proposer.heard(ballot);
                Self::answer(self.acceptor.accept(ballot, value, self.cohort), out);
            }
            Message::Promise { ballot, accepted } => {
                if let Some((ballot, value)) = self.proposer.promised(from, ballot, accepted) {
                    out.push(Effect::Send(Message::Accept { ballot, value }.to(self.cohort)));
                }
            }
            Message::Refused { ballot, promised } => {
                if self.proposer.refused(ballot, promised) {
                    let wait = self.rng.below(self.timing.jitter_us);
                    self.retry_at = Some(now.plus_us(wait.max(1)));
                }
            }
            Message::Accepted { ballot, value } => {
                if self.learner.accepted(from, ballot, value) {
                    self.learned(out);
                    // The others learn from the acceptances themselves; this is for those whose
                    // copy was lost, and comes from one node only.
                    if ballot.node == self.me {
                        self.tell(self.others(), out);
                    }
                }
            }
            Message::Decided { value } => {
                if self.learner.told(value) {
                    self.learned(out);
                }
            }
        }
    }

    fn tell(&self, to: NodeSet, out: &mut Outbox<Effect<V>>) {
        if let Some(value) = self.decided().cloned()
            && !to.is_empty()
        {
            out.push(Effect::Send(Message::Decided { value }.to(to)));
        }
    }

    fn learned(&mut self, out: &mut Outbox<Effect<V>>) {
        self.retry_at = None;
        out.push(Effect::Decided(self.decided().expect("it was just learned").clone()));
    }
}

impl<V: Value> Machine for Paxos<V> {
    type Input = Input<V>;
    type Effect = Effect<V>;
    type Misuse = Misuse;

    fn step(
        &mut self,
        now: Instant,
        input: Input<V>,
        out: &mut Outbox<Effect<V>>,
    ) -> Result<(), Misuse> {
        match input {
            Input::Wake => {}
            Input::Propose(value) => {
                self.proposer.wish_for(value);
                if !self.proposer.is_running() {
                    self.retry_at = Some(now);
                }
            }
            Input::Ask => {
                self.asks = true;
                self.retry_at.get_or_insert(now);
            }
            Input::Message { from, message } => self.receive(now, from, message, out),
        }
        if self.is_busy() && self.retry_at.is_some_and(|at| at <= now) {
            self.try_again(now, out);
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        if self.is_busy() { self.retry_at } else { None }
    }
}

#[cfg(test)]
mod tests;
