//! Which settings a statement takes along to the peers.

/// A setting as the server describes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// Whether its value comes from the database, the role, the client or the session.
    pub(crate) personal: bool,
    /// Whether a session may set it at all.
    pub(crate) settable: bool,
}

/// What a statement may depend on even if the session did not touch it: a peer's worker may be
/// older than the last ALTER DATABASE or ALTER ROLE.
const ALWAYS: &[&str] = &[
    "array_nulls",
    "backslash_quote",
    "bytea_output",
    "DateStyle",
    "default_table_access_method",
    "default_tablespace",
    "default_text_search_config",
    "default_toast_compression",
    "escape_string_warning",
    "extra_float_digits",
    "IntervalStyle",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "quote_all_identifiers",
    "search_path",
    "standard_conforming_strings",
    "TimeZone",
    "transform_null_equals",
    "xmlbinary",
    "xmloption",
];

/// What belongs to the connection, to the transaction or to one node. The roles travel by name,
/// triggers and function bodies have their own rule.
const NEVER: &[&str] = &[
    "application_name",
    "check_function_bodies",
    "client_encoding",
    "client_min_messages",
    "in_hot_standby",
    "is_superuser",
    "lock_timeout",
    "role",
    "seed",
    "session_authorization",
    "session_preload_libraries",
    "local_preload_libraries",
    "session_replication_role",
    "statement_timeout",
    "synchronous_commit",
    "temp_buffers",
    "temp_tablespaces",
    "zero_damaged_pages",
];

/// Families of the same kind.
const NEVER_PREFIXES: &[&str] = &[
    "debug_",
    "default_transaction_",
    "idle_",
    "ignore_",
    "log_",
    "multimaster.",
    "tcp_",
    "trace_",
    "track_",
    "transaction_",
    "wal_",
];

/// Whether the value of this setting goes to the peers with a statement.
pub(crate) fn travels(setting: &Setting<'_>) -> bool {
    let Setting { name, personal, settable } = *setting;
    if !settable || NEVER.contains(&name) {
        return false;
    }
    if ALWAYS.contains(&name) {
        return true;
    }
    let custom = name.contains('.') && !name.starts_with("multimaster.");
    personal && (custom || !NEVER_PREFIXES.iter().any(|family| name.starts_with(family)))
}
