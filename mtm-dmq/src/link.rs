//! The connecting side: one link to one peer, for as long as both are configured.
//!
//! The link decides when to connect, greets, numbers frames, sends heartbeats at their interval,
//! notices a peer that went silent, and tries again with growing, jittered delays. The driver
//! owns the connection and the clock.
//!
//! **What is delivered.** A message arrives at most once, and messages of one link arrive in the
//! order in which they were sent; nothing more is promised. It is lost
//!
//! - when its connection breaks after [`Link::poll_transmit`] handed it out: it may have arrived,
//!   so it is not sent again;
//! - when the queue has no room ([`QueueFull`] to whoever sends, one
//!   [`LinkEvent::Overflow`] per episode to whoever watches);
//! - when it waited while the peer's server restarted: it was meant for a memory that is gone
//!   ([`LinkEvent::PeerRestarted`] says how many).
//!
//! Asking again is the duty of whoever needs an answer: on [`LinkEvent::Up`], and periodically.

use crate::backoff::Backoff;
use crate::frame::{FRAME_HEADER, FrameReader, Kind, MAX_PAYLOAD, Span, encode_frame};
use crate::session::{Accept, Heartbeat, Hello, Reject, Sequence, SessionError, SessionId};
use mtm_core::wire::Reader;
use mtm_core::{GenNum, Instant, NodeSet};
use std::collections::VecDeque;

mod config;
mod event;
#[cfg(all(test, not(loom)))]
mod tests;

pub use config::LinkConfig;
pub use event::{DownReason, LinkEvent, QueueFull};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Down {
        retry_at: Instant,
    },
    Connecting {
        since: Instant,
    },
    /// `Hello` goes out first, then the peer has its time to answer.
    Greeting {
        since: Instant,
        greeted: bool,
    },
    Up(Up),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Up {
    since: Instant,
    next_heartbeat: Instant,
    heartbeat_due: bool,
    last_heard: Instant,
}

/// A link to one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    config: LinkConfig,
    state: State,
    backoff: Backoff,
    /// Of the last attempt.
    session: u64,
    /// Of the last session.
    peer_incarnation: Option<u64>,
    reader: FrameReader,
    seen: Sequence,
    sent: Sequence,
    heartbeat: Heartbeat,
    queue: VecDeque<Box<[u8]>>,
    queued_bytes: usize,
    overflowing: bool,
    events: VecDeque<LinkEvent>,
}

impl Link {
    /// A link that wants to connect at once.
    pub fn new(now: Instant, config: LinkConfig) -> Self {
        Self {
            state: State::Down { retry_at: now },
            backoff: Backoff::new(config.backoff_min_us, config.backoff_max_us, config.seed),
            session: 0,
            peer_incarnation: None,
            reader: FrameReader::new(MAX_PAYLOAD),
            seen: Sequence::new(),
            sent: Sequence::new(),
            heartbeat: Heartbeat::default(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            overflowing: false,
            events: VecDeque::new(),
            config,
        }
    }

    /// Queues a message, whether the link is up or not.
    ///
    /// # Errors
    /// When there is no room; the message is not queued.
    pub fn send(&mut self, message: &[u8]) -> Result<(), QueueFull> {
        if message.len() > MAX_PAYLOAD {
            return Err(QueueFull::TooLarge { length: message.len(), max: MAX_PAYLOAD });
        }
        let needed = FRAME_HEADER + message.len();
        let free = self.queue_room();
        if needed > free {
            if !self.overflowing {
                self.overflowing = true;
                self.events.push_back(LinkEvent::Overflow { queued: self.queued_bytes });
            }
            return Err(QueueFull::Full { needed, free });
        }
        self.overflowing = false;
        self.queued_bytes += needed;
        self.queue.push_back(message.into());
        Ok(())
    }

    /// Bytes that the queue has room for; each message takes [`FRAME_HEADER`] more than its own.
    pub const fn queue_room(&self) -> usize {
        self.config.queue_bytes.saturating_sub(self.queued_bytes)
    }

    /// Messages waiting.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Whether the session is open.
    pub const fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// What heartbeats say from now on. A change is sent at once.
    pub fn set_heartbeat(&mut self, generation: GenNum, connected: NodeSet) {
        let heartbeat = Heartbeat { generation, connected, ..self.heartbeat };
        if heartbeat != self.heartbeat {
            self.heartbeat = heartbeat;
            if let State::Up(up) = &mut self.state {
                up.heartbeat_due = true;
            }
        }
    }

    /// Interval and timeout have changed; they hold from the next heartbeat on.
    pub const fn set_timing(&mut self, send_interval_us: u64, recv_timeout_us: u64) {
        self.config.send_interval_us = send_interval_us;
        self.config.recv_timeout_us = recv_timeout_us;
    }

    /// The peer was heard by other means (it has connected to this node, say): if the link waits
    /// for its next attempt, that comes at once.
    pub fn handle_peer_alive(&mut self, now: Instant) {
        if let State::Down { retry_at } = &mut self.state {
            *retry_at = now.min(*retry_at);
        }
    }

    /// The connection that [`LinkEvent::Connect`] asked for is there.
    pub fn handle_connected(&mut self, now: Instant) {
        if let State::Connecting { .. } = self.state {
            self.state = State::Greeting { since: now, greeted: false };
        }
    }

    /// The connection is closed, or could not be made. An end that the link itself announced
    /// with [`LinkEvent::Down`] need not be reported.
    pub fn handle_closed(&mut self, now: Instant) {
        match self.state {
            State::Down { .. } => {}
            State::Connecting { .. } => self.down(now, DownReason::ConnectFailed),
            State::Greeting { .. } | State::Up(_) => self.down(now, DownReason::Closed),
        }
    }

    /// Bytes have arrived from the peer.
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) {
        match &mut self.state {
            State::Down { .. } | State::Connecting { .. } => return,
            State::Greeting { .. } => {}
            State::Up(up) => up.last_heard = up.last_heard.max(now),
        }
        self.reader.feed(bytes);
        while matches!(self.state, State::Greeting { .. } | State::Up(_)) {
            let step = match self.reader.next_span() {
                Ok(Some(span)) => self.seen.check(span.seq).and_then(|()| self.frame(now, &span)),
                Ok(None) => return,
                Err(error) => Err(SessionError::Frame(error)),
            };
            if let Err(error) = step {
                self.down(now, DownReason::Session(error));
            }
        }
    }

    fn frame(&mut self, now: Instant, span: &Span) -> Result<(), SessionError> {
        let kind = span.kind;
        let bad = |error| SessionError::Payload { kind, error };
        let payload = self.reader.payload(span);
        match (self.state, kind) {
            (State::Greeting { greeted: true, .. }, Kind::Accept) => {
                let accept = Accept::decode(payload).map_err(bad)?;
                self.accepted(now, accept);
                Ok(())
            }
            (State::Greeting { greeted: true, .. } | State::Up(_), Kind::Reject) => {
                Err(SessionError::Rejected(Reject::decode(payload).map_err(bad)?))
            }
            (State::Up(_), Kind::Echo) => {
                let mut r = Reader::new(payload);
                let clock = r.u64().map_err(bad)?;
                r.finish().map_err(bad)?;
                let round_trip_us = now.since(Instant(clock));
                self.events.push_back(LinkEvent::Echo { round_trip_us });
                Ok(())
            }
            _ => Err(SessionError::Unexpected { kind }),
        }
    }

    fn accepted(&mut self, now: Instant, accept: Accept) {
        let incarnation = accept.incarnation;
        if self.peer_incarnation.is_some_and(|before| before != incarnation) {
            let dropped = self.queue.len();
            self.queue.clear();
            self.queued_bytes = 0;
            self.events.push_back(LinkEvent::PeerRestarted { incarnation, dropped });
        }
        self.peer_incarnation = Some(incarnation);
        self.state = State::Up(Up {
            since: now,
            next_heartbeat: now.plus_us(self.interval_us()),
            heartbeat_due: true,
            last_heard: now,
        });
        self.events.push_back(LinkEvent::Up { incarnation });
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let next_heartbeat = now.plus_us(self.interval_us());
        match &mut self.state {
            State::Down { retry_at } if *retry_at <= now => self.connect(now),
            State::Down { .. } => {}
            State::Connecting { since } => {
                let after_us = self.config.connect_timeout_us;
                if after_us > 0 && now.since(*since) >= after_us {
                    self.down(now, DownReason::ConnectTimeout { after_us });
                }
            }
            State::Greeting { since, .. } => {
                let after_us = self.config.handshake_timeout_us;
                if after_us > 0 && now.since(*since) >= after_us {
                    self.down(now, SessionError::HandshakeTimeout { after_us }.into());
                }
            }
            State::Up(up) => {
                let after_us = self.config.recv_timeout_us;
                if after_us > 0 && now.since(up.last_heard) >= after_us {
                    self.down(now, SessionError::Silent { after_us }.into());
                } else if up.next_heartbeat <= now {
                    // Even if the connection takes no bytes now: the interval goes on, and the
                    // driver is not woken in vain.
                    up.heartbeat_due = true;
                    up.next_heartbeat = next_heartbeat;
                }
            }
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let after = |since: Instant, us: u64| (us > 0).then(|| since.plus_us(us));
        match self.state {
            State::Down { retry_at } => Some(retry_at),
            State::Connecting { since } => after(since, self.config.connect_timeout_us),
            State::Greeting { since, .. } => after(since, self.config.handshake_timeout_us),
            State::Up(up) => {
                let silent_at = after(up.last_heard, self.config.recv_timeout_us);
                Some(silent_at.map_or(up.next_heartbeat, |at| at.min(up.next_heartbeat)))
            }
        }
    }

    /// Whether [`poll_transmit`](Self::poll_transmit) has something to give.
    pub fn wants_transmit(&self) -> bool {
        match self.state {
            State::Down { .. } | State::Connecting { .. } => false,
            State::Greeting { greeted, .. } => !greeted,
            State::Up(up) => up.heartbeat_due || !self.queue.is_empty(),
        }
    }

    /// Appends bytes to send to `out` and says how many; call it until it gives 0 or the
    /// connection takes no more. What it has given is sent, as far as the link is concerned.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        match &mut self.state {
            State::Greeting { greeted: greeted @ false, .. } => {
                *greeted = true;
                let session =
                    SessionId { incarnation: self.config.incarnation, session: self.session };
                let LinkConfig { cluster, from, to, .. } = self.config;
                let mut payload = Vec::new();
                Hello { cluster, from, to, session }.encode(&mut payload);
                encode_frame(Kind::Hello, self.sent.assign(), &payload, out);
            }
            State::Up(up) => {
                if up.heartbeat_due {
                    up.heartbeat_due = false;
                    let mut payload = Vec::new();
                    Heartbeat { clock: now, ..self.heartbeat }.encode(&mut payload);
                    encode_frame(Kind::Heartbeat, self.sent.assign(), &payload, out);
                }
                while out.len() - start < self.config.transmit_bytes
                    && let Some(message) = self.queue.pop_front()
                {
                    self.queued_bytes -= FRAME_HEADER + message.len();
                    encode_frame(Kind::Message, self.sent.assign(), &message, out);
                }
            }
            State::Down { .. } | State::Connecting { .. } | State::Greeting { .. } => {}
        }
        out.len() - start
    }

    /// The next thing that happened, if any.
    pub fn poll_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }

    fn connect(&mut self, now: Instant) {
        // The clock outlives a restart of this process within one incarnation, so its sessions
        // stay newer than those of the process before.
        self.session = (self.session + 1).max(now.0);
        self.reader = FrameReader::new(MAX_PAYLOAD);
        self.seen = Sequence::new();
        self.sent = Sequence::new();
        self.state = State::Connecting { since: now };
        self.events.push_back(LinkEvent::Connect);
    }

    fn down(&mut self, now: Instant, reason: DownReason) {
        // A session that lasted was no failure; one that breaks again and again is.
        if let State::Up(up) = self.state
            && now.since(up.since) >= self.backoff.max_us()
        {
            self.backoff.reset();
        }
        let retry_at = now.plus_us(self.backoff.after_failure());
        self.state = State::Down { retry_at };
        let failures = self.backoff.failures();
        self.events.push_back(LinkEvent::Down { reason, retry_at, failures });
    }

    /// An interval of 0 would mean heartbeats without end.
    fn interval_us(&self) -> u64 {
        self.config.send_interval_us.max(1_000)
    }
}
