//! Which statements go to the peers, and with what context.
mod classify;
mod settings;

pub(crate) use classify::{Scope, scope};
pub(crate) use settings::{Setting, travels};
