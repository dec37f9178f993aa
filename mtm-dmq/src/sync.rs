//! The atomics that rings and mailboxes are made of: the real ones, or loom's under
//! `--cfg loom`, so that the code the checker explores is the code that runs.

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU64, Ordering};
#[cfg(loom)]
pub use loom::sync::atomic::Ordering;
#[cfg(loom)]
pub use loom_atomics::AtomicU64;

#[cfg(loom)]
mod loom_atomics {
    use loom::sync::atomic::{AtomicU64 as Value, Ordering};

    /// loom's atomic, with the interleavings that loom forgets.
    ///
    /// loom (0.7.3) tries another order of two accesses only if nothing else touched the word
    /// between them. A thread that loads a word and then stores it hides every earlier load by
    /// others behind its own, and orders that matter are never tried: a ring whose producer reads
    /// its own cursor is "checked" in one execution. So each access takes a turn at a word of
    /// its own first. The turn is a relaxed read-modify-write: it conflicts with every other
    /// turn, so all orders are tried, and it synchronises nothing, so no bug is hidden.
    #[derive(Debug)]
    pub struct AtomicU64 {
        value: Value,
        turn: Value,
    }

    impl AtomicU64 {
        /// As the real one.
        pub fn new(value: u64) -> Self {
            Self { value: Value::new(value), turn: Value::new(0) }
        }

        fn take_turn(&self) {
            self.turn.fetch_add(1, Ordering::Relaxed);
        }

        /// As the real one.
        pub fn load(&self, order: Ordering) -> u64 {
            self.take_turn();
            self.value.load(order)
        }

        /// As the real one.
        pub fn store(&self, value: u64, order: Ordering) {
            self.take_turn();
            self.value.store(value, order);
        }

        /// As the real one.
        pub fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
            self.take_turn();
            self.value.fetch_add(value, order)
        }

        /// As the real one.
        ///
        /// # Errors
        /// When the value is another.
        pub fn compare_exchange(
            &self,
            current: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            self.take_turn();
            self.value.compare_exchange(current, new, success, failure)
        }
    }
}
