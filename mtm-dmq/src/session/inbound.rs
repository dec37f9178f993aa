//! The accepting side of a session.

use super::{
    Accept, Heartbeat, Hello, HelloError, PROTOCOL_VERSION, Reject, Sequence, SessionError,
};
use crate::frame::{FrameReader, Kind, MAX_PAYLOAD, Span, encode_frame};
use mtm_core::{Instant, NodeId};

#[cfg(all(test, not(loom)))]
mod tests;

/// What an accepting node knows about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboundConfig {
    /// Its cluster.
    pub cluster: u64,
    /// Its number.
    pub node: NodeId,
    /// The start of its server.
    pub incarnation: u64,
    /// Largest payload that it takes.
    pub max_payload: usize,
    /// How long a new connection may be without `Hello`; 0 is for ever.
    pub handshake_timeout_us: u64,
    /// How long a peer may be silent before the session ends; 0 is for ever.
    pub recv_timeout_us: u64,
}

impl InboundConfig {
    /// A configuration with ten seconds for the handshake and two of silence.
    pub const fn new(cluster: u64, node: NodeId, incarnation: u64) -> Self {
        Self {
            cluster,
            node,
            incarnation,
            max_payload: MAX_PAYLOAD,
            handshake_timeout_us: 10_000_000,
            recv_timeout_us: 2_000_000,
        }
    }
}

/// What happened on an inbound session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InboundEvent<'a> {
    /// A peer of this cluster wants this node. The driver answers with [`Inbound::accept`] or
    /// [`Inbound::reject`]; until then nothing else comes.
    Hello(Hello),
    /// A message, once and in order.
    Message(&'a [u8]),
    /// A sign of life.
    Heartbeat(Heartbeat),
    /// The session is over: send what [`Inbound::poll_transmit`] still has, then close the
    /// connection. Nothing comes after it.
    Failed(SessionError),
}

/// The driver answered a question that was not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no handshake is waiting for an answer")]
pub struct InboundMisuse;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Since then.
    AwaitHello(Instant),
    /// The driver is to answer.
    Deciding(Hello),
    Open(Hello),
    Failed(SessionError),
    Over,
}

/// The accepting side of one connection: checks who it is, that every frame comes once and in
/// order, answers heartbeats, and hands messages over without copying them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    config: InboundConfig,
    state: State,
    reader: FrameReader,
    seen: Sequence,
    sent: Sequence,
    last_heard: Instant,
    transmit: Vec<u8>,
    /// Only the newest heartbeat is echoed if the connection does not take more.
    echo: Option<Instant>,
}

impl Inbound {
    /// A connection has just been opened by someone.
    pub fn new(now: Instant, config: InboundConfig) -> Self {
        Self {
            reader: FrameReader::new(config.max_payload),
            config,
            state: State::AwaitHello(now),
            seen: Sequence::new(),
            sent: Sequence::new(),
            last_heard: now,
            transmit: Vec::new(),
            echo: None,
        }
    }

    /// Bytes have arrived. Then call [`poll_event`](Self::poll_event) until there is nothing.
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) {
        self.last_heard = self.last_heard.max(now);
        self.reader.feed(bytes);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.state {
            State::AwaitHello(since) => {
                let after_us = self.config.handshake_timeout_us;
                if after_us > 0 && now.since(since) >= after_us {
                    self.fail(SessionError::HandshakeTimeout { after_us });
                }
            }
            State::Open(_) => {
                let after_us = self.config.recv_timeout_us;
                if after_us > 0 && now.since(self.last_heard) >= after_us {
                    self.fail(SessionError::Silent { after_us });
                }
            }
            State::Deciding(_) | State::Failed(_) | State::Over => {}
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let (since, timeout_us) = match self.state {
            State::AwaitHello(since) => (since, self.config.handshake_timeout_us),
            State::Open(_) => (self.last_heard, self.config.recv_timeout_us),
            State::Deciding(_) | State::Failed(_) | State::Over => return None,
        };
        (timeout_us > 0).then(|| since.plus_us(timeout_us))
    }

    /// The receive timeout has changed.
    pub const fn set_recv_timeout(&mut self, recv_timeout_us: u64) {
        self.config.recv_timeout_us = recv_timeout_us;
    }

    /// Who opened this session, once it was accepted.
    pub const fn peer(&self) -> Option<Hello> {
        match self.state {
            State::Open(hello) => Some(hello),
            State::AwaitHello(_) | State::Deciding(_) | State::Failed(_) | State::Over => None,
        }
    }

    /// Opens the session. The driver has made it the newest one of this peer before.
    ///
    /// # Errors
    /// When no [`InboundEvent::Hello`] is unanswered.
    pub fn accept(&mut self, now: Instant) -> Result<(), InboundMisuse> {
        let State::Deciding(hello) = self.state else { return Err(InboundMisuse) };
        self.last_heard = self.last_heard.max(now);
        self.state = State::Open(hello);
        let mut payload = Vec::new();
        Accept { incarnation: self.config.incarnation }.encode(&mut payload);
        encode_frame(Kind::Accept, self.sent.assign(), &payload, &mut self.transmit);
        Ok(())
    }

    /// Refuses the session, or ends it for a reason outside of it (a newer one has come, the
    /// node was dropped, the server stops).
    pub fn reject(&mut self, reason: Reject) {
        self.fail(SessionError::Rejected(reason));
    }

    /// Appends what is to be sent back to `out` and says how many bytes that is.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>) -> usize {
        if let Some(clock) = self.echo.take() {
            let payload = clock.0.to_be_bytes();
            encode_frame(Kind::Echo, self.sent.assign(), &payload, &mut self.transmit);
        }
        out.extend_from_slice(&self.transmit);
        let sent = self.transmit.len();
        self.transmit.clear();
        sent
    }

    /// The next thing that happened, if any.
    pub fn poll_event(&mut self) -> Option<InboundEvent<'_>> {
        loop {
            match self.state {
                State::Over | State::Deciding(_) => return None,
                State::Failed(error) => {
                    self.state = State::Over;
                    return Some(InboundEvent::Failed(error));
                }
                State::AwaitHello(_) | State::Open(_) => {}
            }
            let step = match self.reader.next_span() {
                Ok(Some(span)) => self.seen.check(span.seq).and_then(|()| self.frame(&span)),
                Ok(None) => return None,
                Err(error) => Err(SessionError::Frame(error)),
            };
            match step {
                Ok(Found::Hello(hello)) => {
                    self.state = State::Deciding(hello);
                    return Some(InboundEvent::Hello(hello));
                }
                Ok(Found::Heartbeat(heartbeat)) => {
                    self.echo = Some(heartbeat.clock);
                    return Some(InboundEvent::Heartbeat(heartbeat));
                }
                Ok(Found::Message(span)) => {
                    return Some(InboundEvent::Message(self.reader.payload(&span)));
                }
                Err(error) => self.fail(error),
            }
        }
    }

    fn frame(&self, span: &Span) -> Result<Found, SessionError> {
        let kind = span.kind;
        let payload = self.reader.payload(span);
        match (self.state, kind) {
            (State::AwaitHello(_), Kind::Hello) => self.check_hello(payload).map(Found::Hello),
            (State::Open(_), Kind::Message) => Ok(Found::Message(span.clone())),
            (State::Open(_), Kind::Heartbeat) => Heartbeat::decode(payload)
                .map(Found::Heartbeat)
                .map_err(|error| SessionError::Payload { kind, error }),
            _ => Err(SessionError::Unexpected { kind }),
        }
    }

    fn check_hello(&self, payload: &[u8]) -> Result<Hello, SessionError> {
        let hello = match Hello::decode(payload) {
            Ok(hello) => hello,
            Err(HelloError::Protocol { .. }) => {
                return Err(Reject::Protocol { known: PROTOCOL_VERSION }.into());
            }
            Err(HelloError::Decode(error)) => {
                return Err(SessionError::Payload { kind: Kind::Hello, error });
            }
        };
        if hello.cluster != self.config.cluster {
            return Err(Reject::Cluster { cluster: self.config.cluster }.into());
        }
        if hello.to != self.config.node {
            return Err(Reject::NotThisNode { this: self.config.node }.into());
        }
        // A node with this node's own number is a copy of it.
        if hello.from == self.config.node {
            return Err(Reject::NotConfigured.into());
        }
        Ok(hello)
    }

    /// Ends the session and tells the peer why. The first reason stays.
    fn fail(&mut self, error: SessionError) {
        if matches!(self.state, State::Failed(_) | State::Over) {
            return;
        }
        let reject = match error {
            SessionError::Rejected(reject) => reject,
            _ => Reject::Fault(error.fault()),
        };
        self.echo = None;
        let mut payload = Vec::new();
        reject.encode(&mut payload);
        encode_frame(Kind::Reject, self.sent.assign(), &payload, &mut self.transmit);
        self.state = State::Failed(error);
    }
}

enum Found {
    Hello(Hello),
    Heartbeat(Heartbeat),
    Message(Span),
}
