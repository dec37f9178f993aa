//! What a server must be to become a node, and what falls short of it.
//!
//! Everything is read by plain SQL, so that a server on which the extension is neither preloaded
//! nor created tells all that is wrong with it at once.

use crate::config;

/// The default of `multimaster.max_workers`, for a server that has not loaded the library.
const MAX_WORKERS: &str = "100";

/// What decides whether a server can be a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// 15, say.
    pub major: i32,
    /// Settings.
    pub settings: Settings,
    /// `shared_preload_libraries`.
    pub preload: String,
    /// Whether the extension is created in the database.
    pub created: bool,
    /// Whether it is a standby.
    pub standby: bool,
    /// Whether its data directory belongs to a cluster.
    pub member: bool,
    /// The database's encoding.
    pub encoding: String,
    /// Which server it is.
    pub server: String,
    /// Which database of it.
    pub database: String,
}

/// Settings that must suffice for the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `wal_level`.
    pub wal_level: String,
    /// `max_connections`.
    pub max_connections: i64,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: i64,
    /// `max_worker_processes`.
    pub max_worker_processes: i64,
    /// `max_wal_senders`.
    pub max_wal_senders: i64,
    /// `max_replication_slots`.
    pub max_replication_slots: i64,
    /// Slots that are there already and not ours.
    pub other_slots: i64,
    /// `multimaster.max_workers`.
    pub max_workers: i64,
    /// `output_plugin_libraries`; servers before 15.19 have no such setting.
    pub output_plugin_libraries: Option<String>,
}

/// What tells a running server from every other: its identifier, start and data directory.
pub const SERVER: &str = "(SELECT s.system_identifier::text || ' ' || \
     extract(epoch FROM pg_catalog.pg_postmaster_start_time())::text || ' ' || \
     pg_catalog.current_setting('data_directory') FROM pg_catalog.pg_control_system() AS s)";

/// The query for [`Facts::from_row`]. Only a superuser may ask all of it.
pub fn query() -> String {
    let setting = |name: &str| format!("pg_catalog.current_setting('{name}', true)");
    let columns = [
        setting("wal_level"),
        setting("max_connections"),
        setting("max_prepared_transactions"),
        setting("max_worker_processes"),
        setting("max_wal_senders"),
        setting("max_replication_slots"),
        "(SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots \
          WHERE slot_name <> 'mtm_self' \
            AND NOT (plugin IS NOT DISTINCT FROM 'multimaster' \
                     AND slot_name ~ '^mtm_slot_[0-9]+$'))"
            .to_owned(),
        format!("coalesce({}, '{MAX_WORKERS}')", setting("multimaster.max_workers")),
        setting("output_plugin_libraries"),
        setting("shared_preload_libraries"),
        "EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'multimaster')".to_owned(),
        "pg_catalog.pg_is_in_recovery()".to_owned(),
        format!("(pg_catalog.pg_stat_file('{}', true)).size IS NOT NULL", config::FILE),
        "pg_catalog.getdatabaseencoding()".to_owned(),
        SERVER.to_owned(),
        "pg_catalog.current_database()".to_owned(),
        setting("server_version_num"),
    ];
    format!("SELECT {}", columns.join(", "))
}

impl Facts {
    /// Reads a row of [`query`]; `None` if it is not one.
    pub fn from_row(row: &[Option<String>]) -> Option<Self> {
        let text = |i: usize| row.get(i).cloned().flatten();
        let number = |i: usize| text(i)?.parse::<i64>().ok();
        let truth = |i: usize| text(i).as_deref() == Some("t");
        Some(Self {
            settings: Settings {
                wal_level: text(0)?,
                max_connections: number(1)?,
                max_prepared_transactions: number(2)?,
                max_worker_processes: number(3)?,
                max_wal_senders: number(4)?,
                max_replication_slots: number(5)?,
                other_slots: number(6)?,
                max_workers: number(7)?,
                output_plugin_libraries: text(8),
            },
            preload: text(9)?,
            created: truth(10),
            standby: truth(11),
            member: truth(12),
            encoding: text(13)?,
            server: text(14)?,
            database: text(15)?,
            major: i32::try_from(number(16)?).ok()? / 10_000,
        })
    }
}

/// What must be done to a server before it can be a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A setting falls short.
    Setting(String),
    /// It belongs to a cluster.
    Member,
    /// Something else.
    Other(String),
}

impl Problem {
    /// One line for people.
    pub fn text(&self) -> &str {
        match self {
            Self::Setting(text) | Self::Other(text) => text,
            Self::Member => "it belongs to a cluster already",
        }
    }
}

/// What of this server's settings falls short for a cluster of `n` nodes whose other nodes allow
/// `peer_connections` connections together.
pub fn shortfalls(have: &Settings, n: i64, peer_connections: i64) -> Vec<Problem> {
    let mut problems = Vec::new();
    if have.wal_level != "logical" {
        problems.push(format!("wal_level is \"{}\", must be \"logical\"", have.wal_level));
    }
    let workers = (n - 1) * (have.max_workers + 1) + 6;
    for (name, value, need, why) in [
        (
            "max_prepared_transactions",
            have.max_prepared_transactions,
            peer_connections,
            "max_connections of all other nodes",
        ),
        (
            "max_worker_processes",
            have.max_worker_processes,
            workers,
            "(nodes - 1) * (multimaster.max_workers + 1) + 6",
        ),
        ("max_wal_senders", have.max_wal_senders, n, "the number of nodes"),
        // One for each peer and one, mtm_self, for the node's own log.
        (
            "max_replication_slots",
            have.max_replication_slots,
            n + have.other_slots,
            "the number of nodes, and slots already there",
        ),
    ] {
        if value < need {
            problems.push(format!("{name} is {value}, must be at least {need} ({why})"));
        }
    }
    if let Some(list) = &have.output_plugin_libraries
        && !lists_us(list)
    {
        let with_us = [list.as_str(), "multimaster"].map(str::trim);
        let with_us: Vec<_> = with_us.into_iter().filter(|part| !part.is_empty()).collect();
        let with_us = with_us.join(", ");
        problems.push(format!(
            "output_plugin_libraries is \"{list}\", must list multimaster: \"{with_us}\""
        ));
    }
    problems.into_iter().map(Problem::Setting).collect()
}

/// Whether a list of libraries has ours, with or without a directory.
fn lists_us(list: &str) -> bool {
    list.split(',').any(|one| {
        let file = one.trim().trim_matches('"');
        let file = file.rsplit('/').next().unwrap_or(file);
        file.strip_suffix(".so").unwrap_or(file) == "multimaster"
    })
}

/// Everything that keeps this server from being one of `n` nodes.
pub fn problems(facts: &Facts, n: i64, peer_connections: i64) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !lists_us(&facts.preload) {
        let rest = facts.preload.trim();
        let comma = if rest.is_empty() { "" } else { ", " };
        problems.push(Problem::Setting(format!(
            "shared_preload_libraries is \"{rest}\", must list multimaster first: \
             \"multimaster{comma}{rest}\""
        )));
    }
    problems.extend(shortfalls(&facts.settings, n, peer_connections));
    if facts.standby {
        problems.push(Problem::Other("it is a standby of another server".to_owned()));
    }
    if facts.member {
        problems.push(Problem::Member);
    }
    problems
}
