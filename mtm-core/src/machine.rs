//! The one shape of multimaster's state machines.

/// Time in microseconds from an arbitrary start; the driver's monotonic clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Instant(pub u64);

impl Instant {
    /// This instant and `us` microseconds, saturating.
    #[must_use]
    pub const fn plus_us(self, us: u64) -> Self {
        Self(self.0.saturating_add(us))
    }

    /// Microseconds since `earlier`, 0 if it is later.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Ties "make this durable" to "this may leave only afterwards".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Token(pub u64);

/// Effects of one step, in order.
#[derive(Clone, Debug)]
pub struct Outbox<E> {
    effects: Vec<E>,
}

impl<E> Outbox<E> {
    /// An empty outbox.
    pub const fn new() -> Self {
        Self { effects: Vec::new() }
    }

    /// Adds an effect after the others.
    pub fn push(&mut self, effect: E) {
        self.effects.push(effect);
    }

    /// Takes all effects in order.
    pub fn drain(&mut self) -> impl Iterator<Item = E> + '_ {
        self.effects.drain(..)
    }

    /// Effects so far, in order.
    pub fn as_slice(&self) -> &[E] {
        &self.effects
    }
}

impl<E> Default for Outbox<E> {
    fn default() -> Self {
        Self::new()
    }
}

/// A deterministic machine: inputs come in, effects go out, nothing else happens.
///
/// A step must not read clocks, randomness or the environment, and must not block.
pub trait Machine {
    /// What may happen to the machine.
    type Input;
    /// What the driver must do, plain data.
    type Effect;
    /// A driver's mistake.
    type Misuse;

    /// Handles one input.
    ///
    /// # Errors
    /// Only for mistakes of the driver, never for what a peer sends; nothing has changed then.
    fn step(
        &mut self,
        now: Instant,
        input: Self::Input,
        out: &mut Outbox<Self::Effect>,
    ) -> Result<(), Self::Misuse>;

    /// When to call `step` with the machine's wake-up input at the latest.
    fn deadline(&self) -> Option<Instant>;
}
