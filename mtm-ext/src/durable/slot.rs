//! The replication slot that keeps this node's own log.
//!
//! It is a physical slot that nobody streams from. It stands at the start of the last checkpoint
//! or before: it moves only after the checkpoint's file is durable.

use crate::pg::{sqlrun, walscan};
use crate::report;
use mtm_core::Lsn;
use pgrx::spi::Spi;

/// Its name.
const NAME: &str = "mtm_self";

/// What there is under the name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Missing,
    /// It keeps nothing: it was invalidated by `max_slot_wal_keep_size`.
    Lost,
    /// Somebody streams from it.
    Busy,
    /// It keeps the log.
    Keeps,
}

/// Makes the slot, if it is not there, so that the log from PostgreSQL's last checkpoint on is
/// kept.
pub(super) fn ensure() {
    match state() {
        State::Keeps | State::Busy => return,
        State::Missing => {}
        State::Lost => drop_if_exists(),
    }
    run(&format!("SELECT pg_catalog.pg_create_physical_replication_slot('{NAME}', true)"));
}

/// Lets go of the log before `lsn`. A slot that was dropped or invalidated is made anew.
pub(super) fn advance(lsn: Lsn) {
    match state() {
        State::Keeps => {
            run(&format!(
                "SELECT pg_catalog.pg_replication_slot_advance(slot_name, '{lsn}') \
                 FROM pg_catalog.pg_replication_slots \
                 WHERE slot_name = '{NAME}' AND restart_lsn < '{lsn}'"
            ));
        }
        // It will be advanced the next time.
        State::Busy => {}
        State::Missing | State::Lost => {
            report::warning(
                format!("replication slot \"{NAME}\" does not keep this node's log any more"),
                "",
                "It is made anew now. Do not drop it, and let max_slot_wal_keep_size be unlimited: \
                 a restart that finds a part of the log missing fails.",
            );
            ensure();
        }
    }
}

/// Drops the slot, if it is there.
pub(super) fn drop_if_exists() {
    run(&format!(
        "SELECT pg_catalog.pg_drop_replication_slot(slot_name) \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = '{NAME}'"
    ));
}

fn state() -> State {
    let rows = run(&format!(
        "SELECT restart_lsn IS NULL, active FROM pg_catalog.pg_replication_slots \
         WHERE slot_name = '{NAME}'"
    ));
    match rows.first() {
        None => State::Missing,
        Some((true, _)) => State::Lost,
        Some((false, true)) => State::Busy,
        Some((false, false)) => State::Keeps,
    }
}

/// Runs a statement, in the running transaction or in one of its own, and returns its first two
/// columns, as far as they are truth values.
fn run(sql: &str) -> Vec<(bool, bool)> {
    let run = || {
        Spi::connect(|client| {
            let rows = client.select(sql, None, &[])?;
            let truth = |row: &pgrx::spi::SpiHeapTupleData<'_>, i| {
                row.get::<bool>(i).ok().flatten().unwrap_or(false)
            };
            Ok::<_, pgrx::spi::Error>(rows.map(|row| (truth(&row, 1), truth(&row, 2))).collect())
        })
    };
    let done: Result<_, pgrx::spi::Error> =
        if walscan::in_transaction() { run() } else { sqlrun::in_transaction(run) };
    done.expect("a plain query")
}
