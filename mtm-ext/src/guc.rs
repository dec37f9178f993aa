//! Settings, `multimaster.*`. Names and defaults are the manual's.

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use std::ffi::CString;

/// ms without a heartbeat after which a peer counts as disconnected.
pub static HEARTBEAT_RECV_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(2000);
/// ms between heartbeats.
pub static HEARTBEAT_SEND_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(200);
/// Apply workers per peer.
pub static MAX_WORKERS: GucSetting<i32> = GucSetting::<i32>::new(100);
/// Apply workers that replay what a donor has committed, beside its receiver.
pub static RECOVERY_WORKERS: GucSetting<i32> = GucSetting::<i32>::new(4);
/// Places for unfinished transactions of the cluster, and finished ones not forgotten yet.
pub static MAX_TRANSACTIONS: GucSetting<i32> = GucSetting::<i32>::new(65_536);
/// kB above which a transaction spills to disk on the receiver.
pub static TRANS_SPILL_THRESHOLD: GucSetting<i32> = GucSetting::<i32>::new(102_400);
/// s for connecting to peers, 0 for no limit.
pub static CONNECT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(0);
/// Do not replicate tables without a primary key.
pub static IGNORE_TABLES_WITHOUT_PK: GucSetting<bool> = GucSetting::<bool>::new(false);
/// Built-in types in binary.
pub static BINARY_BASETYPES: GucSetting<bool> = GucSetting::<bool>::new(true);
/// Answer the client only when all members have committed.
pub static WAIT_PEER_COMMITS: GucSetting<bool> = GucSetting::<bool>::new(true);
/// Receivers have lines of their own to the origins (specs/adr/0007).
pub static RECEIVER_LINES: GucSetting<bool> = GucSetting::<bool>::new(true);
/// Drop clients when this node leaves the cluster.
pub static BREAK_CONNECTION: GucSetting<bool> = GucSetting::<bool>::new(false);
/// Cluster-wide growing sequence values.
pub static MONOTONIC_SEQUENCES: GucSetting<bool> = GucSetting::<bool>::new(false);
/// The referee's connection string.
pub static REFEREE_CONNSTRING: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(None);
/// Functions executed on all nodes instead of replicating their effects.
pub static REMOTE_FUNCTIONS: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
/// kB of log between syncpoints.
pub static SYNCPOINT_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(10_240);

/// MB of log kept for an absent node; -1 for no limit.
pub static MAX_RETAINED_WAL: GucSetting<i32> = GucSetting::<i32>::new(-1);

/// What becomes of transactions of different nodes that wait for each other.
pub static DEADLOCK_PREVENTION: GucSetting<Prevention> =
    GucSetting::<Prevention>::new(Prevention::Off);

/// Values of `deadlock_prevention`. Such transactions are found at once in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum Prevention {
    /// Exactly one survives.
    #[name = c"off"]
    Off,
    /// None survives.
    #[name = c"simple"]
    Simple,
    /// Exactly one survives.
    #[name = c"smart"]
    Smart,
}

/// How long connecting to a peer, or its answer, may take, in seconds: what is set, at least 2 as in
/// libpq, or `unset`.
pub fn connect_timeout_s(unset: u32) -> u32 {
    match CONNECT_TIMEOUT.get() {
        0 => unset,
        s => s.max(2).unsigned_abs(),
    }
}

/// Registers all settings. Only in `_PG_init` under `shared_preload_libraries`.
pub fn init() {
    GucRegistry::define_int_guc(
        c"multimaster.heartbeat_recv_timeout",
        c"Time without a heartbeat after which a peer counts as disconnected.",
        c"",
        &HEARTBEAT_RECV_TIMEOUT,
        1,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"multimaster.heartbeat_send_timeout",
        c"Interval between heartbeats.",
        c"",
        &HEARTBEAT_SEND_TIMEOUT,
        1,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"multimaster.max_workers",
        c"Maximum number of apply workers per peer.",
        c"",
        &MAX_WORKERS,
        1,
        10_000,
        GucContext::Postmaster,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"multimaster.recovery_workers",
        c"Number of apply workers that replay in parallel what this node has missed.",
        c"They count among multimaster.max_workers; 0 lets one process replay everything.",
        &RECOVERY_WORKERS,
        0,
        64,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"multimaster.max_transactions",
        c"Transactions of the cluster that are unfinished, or finished and not forgotten, at once.",
        c"Not smaller than on the other nodes.",
        &MAX_TRANSACTIONS,
        1024,
        1 << 22,
        GucContext::Postmaster,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"multimaster.trans_spill_threshold",
        c"Size above which a received transaction is kept on disk.",
        c"",
        &TRANS_SPILL_THRESHOLD,
        0,
        1_048_576,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"multimaster.connect_timeout",
        c"Limit for connecting to a peer; 0 is 2 to 10 s, depending on what for, 1 counts as 2.",
        c"",
        &CONNECT_TIMEOUT,
        0,
        86_400,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_int_guc(
        c"multimaster.syncpoint_interval",
        c"Amount of write-ahead log between syncpoints.",
        c"",
        &SYNCPOINT_INTERVAL,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"multimaster.max_retained_wal",
        c"Amount of write-ahead log kept for an absent node; -1 is no limit.",
        c"A node for which more would have to be kept cannot come back without being made anew.",
        &MAX_RETAINED_WAL,
        -1,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_MB,
    );
    for (name, short, setting, context) in [
        (
            c"multimaster.ignore_tables_without_pk",
            c"Do not replicate tables without a primary key.",
            &IGNORE_TABLES_WITHOUT_PK,
            GucContext::Sighup,
        ),
        (
            c"multimaster.binary_basetypes",
            c"Send values of built-in types in binary format.",
            &BINARY_BASETYPES,
            GucContext::Sighup,
        ),
        (
            c"multimaster.wait_peer_commits",
            c"Answer the client only when all members have committed.",
            &WAIT_PEER_COMMITS,
            GucContext::Userset,
        ),
        (
            c"multimaster.receiver_lines",
            c"Receivers have connections of their own for votes and outcomes.",
            &RECEIVER_LINES,
            GucContext::Sighup,
        ),
        (
            c"multimaster.break_connection",
            c"Drop client connections when this node leaves the cluster.",
            &BREAK_CONNECTION,
            GucContext::Sighup,
        ),
        (
            c"multimaster.monotonic_sequences",
            c"Sequence values grow cluster-wide.",
            &MONOTONIC_SEQUENCES,
            GucContext::Userset,
        ),
    ] {
        GucRegistry::define_bool_guc(name, short, c"", setting, context, GucFlags::default());
    }
    GucRegistry::define_string_guc(
        c"multimaster.referee_connstring",
        c"Connection string of the referee of a cluster with two data nodes.",
        c"",
        &REFEREE_CONNSTRING,
        GucContext::Sighup,
        GucFlags::SUPERUSER_ONLY,
    );
    GucRegistry::define_string_guc(
        c"multimaster.remote_functions",
        c"Functions executed on all nodes instead of replicating their effects.",
        c"",
        &REMOTE_FUNCTIONS,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"multimaster.deadlock_prevention",
        c"What becomes of transactions of different nodes that wait for each other.",
        c"They are always found at once: with off and smart one of them commits, with simple none.",
        &DEADLOCK_PREVENTION,
        GucContext::Sighup,
        GucFlags::default(),
    );
    crate::pg::sys::reserve_settings(c"multimaster");
}
