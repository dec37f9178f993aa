//! One node's part in electing generations and moving between them.
//!
//! Owns: the durable record (current generation, last vote, `last_online_in`), the running
//! campaign, what peers said in their heartbeats. Must never: send a vote before it is durable,
//! be ONLINE in a generation below its last vote, choose donors twice for one number.
//! Carries TLA+ `Propose`, `Vote`, `Elect`, `Switch` and the ONLINE step of `Recover`.

mod bug;
mod campaign;
mod lease;
mod switch;
mod vote;

use crate::clique::{Connectivity, largest_clique};
use crate::generation::{Configuration, Elected};
use crate::message::Message;
use crate::record::Record;
use crate::status::{NodeStatus, Reason, StatusInGeneration};
pub use bug::Bug;
use campaign::Campaign;
use lease::Leases;
use mtm_core::{GenNum, Instant, MAX_NODES, Machine, NodeId, NodeSet, Outbox, Token};

/// Durations, in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Timing {
    /// Between two heartbeats.
    pub heartbeat_us: u64,
    /// How long a campaign waits for votes.
    pub vote_wait_us: u64,
    /// Nodes campaign one after the other, so far apart.
    pub stagger_us: u64,
    /// A connected member that is not ONLINE for so long is left out of the next generation.
    pub recovery_limit_us: u64,
    /// A node that starts waits so long for members it has not met yet before it campaigns to
    /// leave them out: when a whole cluster starts, some come late.
    pub patience_us: u64,
    /// How long a peer may rely on this node's answer to its sign of life; 0 if nobody reads
    /// by lease. Below the time after which a silent peer counts as lost, or the same.
    pub lease_us: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat_us: 200_000,
            vote_wait_us: 100_000,
            stagger_us: 50_000,
            recovery_limit_us: 30_000_000,
            patience_us: 2_000_000,
            lease_us: 0,
        }
    }
}

/// What may happen to a membership.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Input {
    /// Nothing happened, but `deadline` has come.
    Wake,
    /// Everything up to this token is durable.
    Persisted(Token),
    /// A message arrived.
    Message {
        /// From this node.
        from: NodeId,
        /// This message.
        message: Message,
    },
    /// The peers this node hears now.
    Connected(NodeSet),
    /// A peer has sent a sign of life. Come what may, `Message::Status` is not one: it may have
    /// waited for a disk.
    SignOfLife {
        /// This peer.
        from: NodeId,
        /// When, by its own clock.
        sent: Instant,
    },
    /// A peer has answered a sign of life, as [`Effect::Lend`] said there. Only an answer to this
    /// life of the node may come, which connections see to.
    Lent {
        /// This peer.
        from: NodeId,
        /// When the sign of life was sent, by this node's clock.
        sent: Instant,
        /// For how long from then on.
        for_us: u64,
        /// The generation the peer was in.
        num: GenNum,
    },
    /// All connections with these peers had closed at this time, in both directions.
    Closed {
        /// These peers.
        peers: NodeSet,
        /// This node's clock before that was looked at.
        at: Instant,
    },
    /// Announced transactions from before the restart are (true) or are no longer (false) open.
    Fenced(bool),
    /// Something local is broken: stay out of the cluster, or come back.
    Withdrawn(bool),
    /// Whether this node has nearly everything, so that including it would stop nobody for long.
    CaughtUp(bool),
    /// The driver holds the generation lock exclusively, no transaction is decided without its
    /// commit record being durable: move into the wanted generation now.
    Switch,
    /// ParallelSafe for this generation is durable in the WAL.
    ParallelSafe(GenNum),
    /// Recovery for this generation is complete and durable.
    Recovered(GenNum),
    /// The referee's answer for this number.
    Referee {
        /// The number asked for.
        num: GenNum,
        /// Whether this node holds the grant.
        granted: bool,
    },
    /// An administrator adds or drops a node.
    Configure(Configuration),
    /// Other durations from now on.
    Timing(Timing),
}

/// What the driver must do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Make the record durable, replacing older ones in order, then `Input::Persisted(token)`.
    Persist {
        /// Answer with this.
        token: Token,
        /// What must be durable.
        record: Record,
    },
    /// Send a message, but only after `after` is durable.
    Send {
        /// To each of these nodes.
        to: NodeSet,
        /// This message.
        message: Message,
        /// Not before this token is durable.
        after: Option<Token>,
    },
    /// A generation waits for `Input::Switch`, which may come now ([`Membership::may_switch`]).
    SwitchWanted(GenNum),
    /// Answer a sign of life, on the connection it came on; there it is `Input::Lent`.
    Lend {
        /// Its sender.
        to: NodeId,
        /// When it was sent, by its sender's clock.
        sent: Instant,
        /// For how long from then on the sender may rely on this node.
        for_us: u64,
        /// The generation this node is in.
        num: GenNum,
    },
    /// This node is a donor of its new generation: write ParallelSafe to the WAL, flush it, then
    /// `Input::ParallelSafe`.
    WriteParallelSafe(GenNum),
    /// This node is a member but no donor: recover from one of the donors, then
    /// `Input::Recovered`.
    StartRecovery {
        /// The generation.
        num: GenNum,
        /// From whom.
        donors: NodeSet,
    },
    /// Answer a sign of life, on the connection it came on, with `Message::Elected`: its sender is
    /// left out and may not know. Nobody may be able to connect to it.
    Recall {
        /// Its sender.
        to: NodeId,
        /// The generation without it.
        elected: Elected,
    },
    /// This node is ONLINE in the generation from now on, durably.
    Online(GenNum),
    /// Ask the referee for the grant, then `Input::Referee`.
    AskReferee(GenNum),
    /// Tell the referee that both nodes are ONLINE in this generation.
    CleanReferee(GenNum),
}

/// A mistake of the driver.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Misuse {
    /// A token that was never handed out.
    #[error("token {0:?} was never handed out")]
    UnknownToken(Token),
    /// `Switch` without a wanted generation, while fenced, or while a peer that it leaves out
    /// relies on this node.
    #[error("no switch is possible now")]
    NoSwitch,
    /// A configuration change that may not start now.
    #[error("the configuration may not change now")]
    MayNotConfigure,
}

/// Where the node stands between two generations.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Stage {
    /// The generation it is in is durable and nothing is under way.
    Settled,
    /// The new generation is being made durable.
    Entering(Token),
    /// ParallelSafe or recovery is under way.
    Filling,
    /// `last_online_in` is being made durable.
    GoingOnline(Token),
}

/// What a peer said last.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
struct Peer {
    hears: NodeSet,
    current: GenNum,
    last_vote: GenNum,
    last_online_in: GenNum,
}

/// One node's membership: a fixed-size value that a driver may keep in shared memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Membership {
    timing: Timing,
    record: Record,
    handed_out: Token,
    durable: Token,
    stage: Stage,
    /// Highest elected generation above the current one.
    wanted: Option<Elected>,
    fenced: bool,
    withdrawn: bool,
    caught_up: bool,
    /// Restarted: nobody coordinates this node's old transactions until a generation changes.
    must_campaign: bool,
    has_referee: bool,
    connected: NodeSet,
    peers: [Peer; MAX_NODES as usize],
    campaign: Option<Campaign>,
    campaign_at: Option<Instant>,
    configure: Option<Configuration>,
    /// All members of a generation with this version of the configuration were ONLINE in it.
    settled: u32,
    /// Since when every member in the clique has not been ONLINE.
    not_all_online_since: Option<Instant>,
    next_heartbeat: Instant,
    /// The first step after the start.
    started: Option<Instant>,
    /// All members were met, or waited for long enough.
    met_all: bool,
    leases: Leases,
    /// The last generation of which it was said that a switch may come.
    offered: GenNum,
    /// When nobody whom the wanted generation leaves out relies on this node any more.
    free_at: Option<Instant>,
    rng: u64,
    #[cfg(feature = "planted-bugs")]
    planted: Option<Bug>,
}

impl Membership {
    /// A node with this durable record. After a restart it starts fenced and campaigns once:
    /// nobody else coordinates what it had announced.
    pub const fn new(record: Record, timing: Timing, seed: u64, restarted: bool) -> Self {
        let silent = Peer {
            hears: NodeSet::EMPTY,
            current: GenNum(0),
            last_vote: GenNum(0),
            last_online_in: GenNum(0),
        };
        Self {
            timing,
            record,
            handed_out: Token(0),
            durable: Token(0),
            stage: Stage::Settled,
            wanted: None,
            fenced: restarted,
            withdrawn: false,
            caught_up: false,
            must_campaign: restarted,
            has_referee: false,
            connected: NodeSet::only(record.node),
            peers: [silent; MAX_NODES as usize],
            campaign: None,
            campaign_at: None,
            configure: None,
            settled: 0,
            not_all_online_since: None,
            next_heartbeat: Instant(0),
            started: None,
            met_all: false,
            leases: Leases::new(restarted),
            offered: GenNum(0),
            free_at: None,
            rng: seed | 1,
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }

    /// Breaks one rule, for tests of the tests.
    #[cfg(feature = "planted-bugs")]
    #[must_use]
    pub const fn with_bug(mut self, bug: Option<Bug>) -> Self {
        self.planted = bug;
        self
    }

    #[cfg(feature = "planted-bugs")]
    fn planted(&self, bug: Bug) -> bool {
        self.planted == Some(bug)
    }

    #[cfg(not(feature = "planted-bugs"))]
    #[expect(clippy::unused_self, reason = "the same shape as with the feature")]
    const fn planted(&self, _bug: Bug) -> bool {
        false
    }

    /// The cluster has two data nodes and a referee.
    #[must_use]
    pub const fn with_referee(mut self) -> Self {
        self.has_referee = true;
        self
    }

    /// This node.
    pub const fn node(&self) -> NodeId {
        self.record.node
    }

    /// The generation this node is in, with its donors.
    pub const fn current(&self) -> &Elected {
        &self.record.current
    }

    /// The state that is, or is being made, durable.
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// The elected generation this node should move into.
    pub const fn wanted(&self) -> Option<&Elected> {
        self.wanted.as_ref()
    }

    /// Whether this node is fenced.
    pub const fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// Place in the current generation.
    pub fn status_in_generation(&self) -> StatusInGeneration {
        let current = self.record.current.generation;
        if !current.members.contains(self.node()) {
            return StatusInGeneration::Dead;
        }
        let durable = !matches!(self.stage, Stage::GoingOnline(_) | Stage::Entering(_));
        if durable && self.record.last_online_in == current.num {
            StatusInGeneration::Online
        } else {
            StatusInGeneration::Recovery
        }
    }

    /// Whether this node may announce, prepare and answer in its current generation
    /// (TLA+ `Online`).
    pub fn is_online(&self) -> bool {
        !self.fenced && self.status_in_generation() == StatusInGeneration::Online
    }

    /// Whether what a donor says may still be taken over: until recovery was declared complete,
    /// and by a node that is no member and catches up.
    pub fn may_recover(&self) -> bool {
        match self.status_in_generation() {
            StatusInGeneration::Dead => true,
            StatusInGeneration::Recovery => self.stage == Stage::Filling,
            StatusInGeneration::Online => false,
        }
    }

    /// Members of the current generation known to be ONLINE in it (TLA+: `Online(m)` and
    /// `curGen[m]` is the generation).
    pub fn members_online(&self) -> NodeSet {
        let current = self.record.current.generation;
        current
            .members
            .iter()
            .filter(|&m| {
                if m == self.node() {
                    return self.is_online();
                }
                let peer = &self.peers[m.index()];
                peer.current == current.num && peer.last_online_in == current.num
            })
            .collect()
    }

    /// The largest clique of configured nodes, as this node sees it.
    pub fn clique(&self) -> NodeSet {
        let mut matrix = Connectivity::new();
        let heard = self.hears();
        matrix.set(self.node(), heard);
        for peer in heard.without(self.node()) {
            // What silent peers said long ago says nothing about now.
            matrix.set(peer, self.peers[peer.index()].hears);
        }
        // Who is not heard is in no clique with anybody: were it counted as one of its own, the
        // higher one of two data nodes could never go on alone with the referee's grant.
        largest_clique(&matrix, self.record.current.generation.configured.nodes.intersection(heard))
    }

    /// What users see, and why.
    pub fn status(&self) -> (NodeStatus, Reason) {
        let current = self.record.current.generation;
        let clique = self.clique();
        let cut_off = !clique.contains(self.node()) || !current.configured.has_majority(clique);
        let reason = if !current.configured.nodes.contains(self.node()) {
            Reason::Dropped
        } else if self.fenced {
            Reason::Fenced
        } else if self.withdrawn {
            Reason::Withdrawn
        } else if cut_off && !self.has_referee {
            Reason::NoMajority
        } else if self.cannot_be_online() {
            Reason::PromisedLater
        } else {
            match self.status_in_generation() {
                StatusInGeneration::Online if current.members.is_subset(clique) => Reason::Healthy,
                StatusInGeneration::Online => Reason::MemberUnreachable,
                StatusInGeneration::Recovery => Reason::Recovering,
                StatusInGeneration::Dead if self.caught_up => Reason::Campaigning,
                StatusInGeneration::Dead => Reason::CatchingUp,
            }
        };
        let status = match self.status_in_generation() {
            _ if self.fenced || self.withdrawn || reason == Reason::Dropped => NodeStatus::Disabled,
            StatusInGeneration::Online if current.members.is_subset(clique) => NodeStatus::Online,
            StatusInGeneration::Online => NodeStatus::Isolated,
            _ if cut_off => NodeStatus::Disabled,
            StatusInGeneration::Recovery => NodeStatus::Recovery,
            StatusInGeneration::Dead => NodeStatus::Catchup,
        };
        (status, reason)
    }

    /// What this node says it hears: only itself when it wants to be left out.
    fn hears(&self) -> NodeSet {
        if self.withdrawn || self.fenced {
            NodeSet::only(self.node())
        } else {
            self.connected.with(self.node())
        }
    }

    /// A member that voted for a later generation can never be ONLINE in this one.
    fn cannot_be_online(&self) -> bool {
        let num = self.record.current.generation.num;
        let promised = self.record.last_vote > num && !self.planted(Bug::OnlineDespiteVote);
        self.record.last_online_in < num && promised
    }

    fn persist(&mut self, out: &mut Outbox<Effect>) -> Token {
        self.handed_out = Token(self.handed_out.0 + 1);
        out.push(Effect::Persist { token: self.handed_out, record: self.record });
        self.handed_out
    }

    /// A number below `bound`, from the seed.
    fn draw(&mut self, bound: u64) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        self.rng % bound.max(1)
    }

    fn heartbeat(&mut self, now: Instant, out: &mut Outbox<Effect>) {
        if now < self.next_heartbeat {
            return;
        }
        self.next_heartbeat = now.plus_us(self.timing.heartbeat_us);
        self.recall(now, out);
        let to = self.record.current.generation.configured.nodes.without(self.node());
        let message = Message::Status {
            hears: self.hears(),
            current: self.record.current,
            last_vote: self.record.last_vote,
            last_online_in: self.record.last_online_in,
        };
        // What a heartbeat says may not be ahead of the disk.
        let after = if self.durable < self.handed_out { Some(self.handed_out) } else { None };
        out.push(Effect::Send { to, message, after });
        let current = self.record.current.generation;
        let full = current.members == current.configured.nodes;
        if self.has_referee && full && self.members_online() == current.members {
            out.push(Effect::CleanReferee(current.num));
        }
    }

    /// What waits for an old duration waits for the new one if that is over earlier.
    fn set_timing(&mut self, now: Instant, timing: Timing) {
        self.timing = timing;
        self.next_heartbeat = self.next_heartbeat.min(now.plus_us(timing.heartbeat_us));
        if let Some(campaign) = &mut self.campaign {
            campaign.end_by(now.plus_us(timing.vote_wait_us));
        }
        let last_turn = now.plus_us((u64::from(MAX_NODES) + 1) * timing.stagger_us);
        self.campaign_at = self.campaign_at.map(|at| at.min(last_turn));
    }

    fn patience_ends(&self) -> Option<Instant> {
        self.started.map(|at| at.plus_us(self.timing.patience_us))
    }

    /// Who was met once and is silent now is missing; who was never met may only be late.
    fn meet(&mut self, now: Instant) {
        if self.met_all {
            return;
        }
        self.started.get_or_insert(now);
        let members = self.record.current.generation.members;
        let over = self.patience_ends().is_some_and(|at| now >= at);
        self.met_all = over || members.is_subset(self.clique());
    }

    /// Nobody sends heartbeats to a node that was dropped: whoever still hears it tells it.
    fn tell_dropped(&self, from: NodeId, out: &mut Outbox<Effect>) {
        let current = self.record.current;
        if !current.generation.configured.nodes.contains(from) {
            let message = Message::Elected(current);
            out.push(Effect::Send { to: NodeSet::only(from), message, after: None });
        }
    }

    fn receive(&mut self, now: Instant, from: NodeId, message: Message, out: &mut Outbox<Effect>) {
        match message {
            Message::Status { hears, current, last_vote, last_online_in } => {
                self.peers[from.index()] =
                    Peer { hears, current: current.generation.num, last_vote, last_online_in };
                self.learn(now, current, out);
                self.tell_dropped(from, out);
            }
            Message::VoteRequest(generation) => self.vote_requested(from, generation, out),
            Message::Vote { num, last_online_in } => {
                self.vote_received(now, from, num, last_online_in, out);
            }
            Message::VoteRefused { num, last_vote } => self.vote_refused(now, from, num, last_vote),
            Message::Elected(elected) => {
                self.asked_again(from, &elected, out);
                self.learn(now, elected, out);
            }
            Message::Released(num) => self.released(from, num),
        }
    }
}

impl Machine for Membership {
    type Input = Input;
    type Effect = Effect;
    type Misuse = Misuse;

    fn step(&mut self, now: Instant, input: Input, out: &mut Outbox<Effect>) -> Result<(), Misuse> {
        self.remember_lending(now);
        match input {
            Input::Wake => {}
            Input::Persisted(token) => self.persisted(now, token, out)?,
            Input::Message { from, message } => self.receive(now, from, message, out),
            Input::Connected(set) => {
                self.connected = set;
            }
            Input::SignOfLife { from, sent } => self.lend(now, from, sent, out),
            Input::Lent { from, sent, for_us, num } => self.borrowed(now, from, sent, for_us, num),
            Input::Closed { peers, at } => self.closed(peers, at),
            Input::Fenced(fenced) => self.fenced = fenced,
            Input::Withdrawn(withdrawn) => self.withdrawn = withdrawn,
            Input::CaughtUp(caught_up) => self.caught_up = caught_up,
            Input::Switch => self.switch(now, out)?,
            Input::ParallelSafe(num) | Input::Recovered(num) => self.filled(num, out),
            Input::Referee { num, granted } => self.referee_answered(now, num, granted, out),
            Input::Configure(configuration) => self.configure(configuration)?,
            Input::Timing(timing) => self.set_timing(now, timing),
        }
        self.meet(now);
        self.heartbeat(now, out);
        self.consider_campaign(now, out);
        self.offer_switch(now, out);
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        let campaign = self.campaign.as_ref().map(Campaign::deadline);
        let patience = self.patience_ends().filter(|_| !self.met_all);
        [Some(self.next_heartbeat), self.campaign_at, campaign, patience, self.free_at]
            .into_iter()
            .flatten()
            .min()
    }
}
