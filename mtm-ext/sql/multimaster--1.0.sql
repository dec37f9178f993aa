/* multimaster--1.0.sql */
\echo Use "CREATE EXTENSION multimaster" to load this file. \quit

CREATE FUNCTION mtm.require_preload() RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'require_preload_wrapper';
SELECT mtm.require_preload();

CREATE FUNCTION mtm.init_cluster(my_conninfo text, peers_conninfo text[]) RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'init_cluster_wrapper';
COMMENT ON FUNCTION mtm.init_cluster(text, text[]) IS
    'makes a cluster of this node and its peers';

-- The steps of init_cluster on each node.
CREATE FUNCTION mtm.check_connection(conninfo text, server text) RETURNS text
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'check_connection_wrapper';
CREATE FUNCTION mtm.prepare_node(cluster_id text, node_id int, conninfos text[]) RETURNS text[]
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'prepare_node_wrapper';
CREATE FUNCTION mtm.activate_node() RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'activate_node_wrapper';
CREATE FUNCTION mtm.unconfigure_node() RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'unconfigure_node_wrapper';
COMMENT ON FUNCTION mtm.unconfigure_node() IS
    'takes this node out of a cluster that could not be completed';

CREATE PROCEDURE mtm.dmq_receive(from_node int, cluster_id text)
    LANGUAGE c AS 'MODULE_PATHNAME', 'dmq_receive_wrapper';
CREATE PROCEDURE mtm.line_serve(from_node int, cluster_id text)
    LANGUAGE c AS 'MODULE_PATHNAME', 'line_serve_wrapper';

CREATE FUNCTION mtm.status(
    OUT my_node_id int, OUT status text, OUT connected int[], OUT gen_num int8,
    OUT gen_members int[], OUT gen_members_online int[], OUT gen_configured int[],
    OUT reason text)
    RETURNS SETOF record
    LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'status_wrapper';
COMMENT ON FUNCTION mtm.status() IS
    'state of this node: online, isolated, recovery, catchup or disabled, and why';

CREATE FUNCTION mtm.nodes(
    OUT id int, OUT conninfo text, OUT is_self bool, OUT enabled bool, OUT connected bool,
    OUT sender_pid int, OUT receiver_pid int, OUT n_workers int, OUT receiver_mode text)
    RETURNS SETOF record
    LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nodes_wrapper';
COMMENT ON FUNCTION mtm.nodes() IS 'all nodes of the cluster as this one sees them';

CREATE FUNCTION mtm.transaction_table(OUT used int, OUT places int, OUT next_number int8)
    RETURNS SETOF record
    LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'transaction_table_wrapper';
COMMENT ON FUNCTION mtm.transaction_table() IS
    'how many transactions this node keeps in mind, and the number of its next one';
CREATE FUNCTION mtm.return_to_cluster() RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'return_to_cluster_wrapper';
COMMENT ON FUNCTION mtm.return_to_cluster() IS
    'lets this node come back after its data differed and were repaired';
REVOKE ALL ON FUNCTION mtm.return_to_cluster() FROM PUBLIC;

CREATE VIEW mtm.cluster_nodes AS SELECT id, conninfo, is_self FROM mtm.nodes();
COMMENT ON VIEW mtm.cluster_nodes IS 'all nodes of the cluster and how they are reached';

CREATE FUNCTION mtm.generation_history(
    OUT num int8, OUT members int[], OUT donors int[], OUT configured int[], OUT since float8,
    OUT why text)
    RETURNS SETOF record
    LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'generation_history_wrapper';

CREATE VIEW mtm.generations AS
    SELECT num, members, donors, configured, pg_catalog.to_timestamp(since) AS since, why
      FROM mtm.generation_history() ORDER BY num;
COMMENT ON VIEW mtm.generations IS
    'generations this node has been in, the last 1000: who its members were, since when, and why';
COMMENT ON COLUMN mtm.generations.num IS 'number of the generation';
COMMENT ON COLUMN mtm.generations.members IS 'nodes whose agreement every commit needed';
COMMENT ON COLUMN mtm.generations.donors IS 'members that had everything when it began';
COMMENT ON COLUMN mtm.generations.configured IS 'nodes of the cluster at that time';
COMMENT ON COLUMN mtm.generations.since IS 'when this node went into it';
COMMENT ON COLUMN mtm.generations.why IS 'what changed from the one before';

CREATE FUNCTION mtm.unfinished(
    OUT gid text, OUT origin int, OUT gen_num int8, OUT waits_for text,
    OUT waits_for_nodes int[], OUT pid int)
    RETURNS SETOF record
    LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'unfinished_wrapper';

CREATE VIEW mtm.undecided AS
    SELECT u.gid, u.origin, u.gen_num, t.since,
           pg_catalog.clock_timestamp() - t.since AS age,
           u.waits_for, u.waits_for_nodes, u.pid
      FROM mtm.unfinished() u
      LEFT JOIN pg_catalog.pg_prepared_xact() p ON p.gid = u.gid
      LEFT JOIN pg_catalog.pg_stat_get_activity(NULL) a ON a.pid = u.pid
     CROSS JOIN LATERAL (SELECT coalesce(p.prepared, a.xact_start) AS since) t;
COMMENT ON VIEW mtm.undecided IS
    'transactions of the cluster that are not finished on this node, and what they wait for';
COMMENT ON COLUMN mtm.undecided.gid IS 'name of the transaction in the whole cluster';
COMMENT ON COLUMN mtm.undecided.origin IS 'node on which it was begun';
COMMENT ON COLUMN mtm.undecided.gen_num IS 'generation in which it was announced';
COMMENT ON COLUMN mtm.undecided.since IS
    'when it was prepared here, or begun if it is this node''s own';
COMMENT ON COLUMN mtm.undecided.age IS 'how long ago that was';
COMMENT ON COLUMN mtm.undecided.waits_for IS 'what is missing before it can be finished here';
COMMENT ON COLUMN mtm.undecided.waits_for_nodes IS 'nodes that must do something for that';
COMMENT ON COLUMN mtm.undecided.pid IS 'process of this node that has it, if any';

CREATE FUNCTION mtm.recovery_progress(
    OUT from_node int, OUT gen_num int8, OUT receiver_pid int, OUT replayed int8,
    OUT log_end int8, OUT bytes_replayed int8, OUT seconds float8)
    RETURNS SETOF record
    LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'recovery_progress_wrapper';

CREATE VIEW mtm.recovery AS
    SELECT from_node, gen_num, receiver_pid,
           '0/0'::pg_catalog.pg_lsn + replayed AS replayed_lsn,
           '0/0'::pg_catalog.pg_lsn + log_end AS log_end_lsn,
           log_end - replayed AS bytes_to_go, bytes_per_second,
           CASE WHEN log_end = replayed THEN 0
                ELSE pg_catalog.ceil((log_end - replayed)::float8 / nullif(bytes_per_second, 0))
           END::int8 AS seconds_to_go
      FROM mtm.recovery_progress(),
           LATERAL (SELECT (bytes_replayed / nullif(seconds, 0))::int8 AS bytes_per_second) r;
COMMENT ON VIEW mtm.recovery IS
    'how far this node is in taking over what others committed without it; empty if it is not';
COMMENT ON COLUMN mtm.recovery.from_node IS 'node whose log is replayed';
COMMENT ON COLUMN mtm.recovery.gen_num IS 'generation for which it is';
COMMENT ON COLUMN mtm.recovery.receiver_pid IS 'process that replays';
COMMENT ON COLUMN mtm.recovery.replayed_lsn IS 'position in that node''s log up to which it is done';
COMMENT ON COLUMN mtm.recovery.log_end_lsn IS 'end of that node''s log';
COMMENT ON COLUMN mtm.recovery.bytes_to_go IS 'bytes of log between the two';
COMMENT ON COLUMN mtm.recovery.bytes_per_second IS 'how fast it has been so far';
COMMENT ON COLUMN mtm.recovery.seconds_to_go IS
    'time to the present end of the log at that rate; it grows while others write';

CREATE FUNCTION mtm.make_table_local(relation regclass) RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'make_table_local_wrapper';
COMMENT ON FUNCTION mtm.make_table_local(regclass) IS
    'keeps the rows of a table on each node from now on';

-- For statements from other nodes.
CREATE FUNCTION mtm.set_missing_value(relation regclass, name text, value text) RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'set_missing_value_wrapper';
REVOKE ALL ON FUNCTION mtm.set_missing_value(regclass, text, text) FROM PUBLIC;

CREATE TABLE mtm.sequence_definitions (
    sequence oid PRIMARY KEY, node int NOT NULL, stride int NOT NULL, start bigint NOT NULL,
    increment bigint NOT NULL, min bigint NOT NULL, max bigint NOT NULL, cycle boolean NOT NULL);
COMMENT ON TABLE mtm.sequence_definitions IS
    'what users said of sequences, before each node got its share of the values';

CREATE FUNCTION mtm.setval(regclass, bigint) RETURNS bigint
    LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mtm_setval2_wrapper';
CREATE FUNCTION mtm.setval(regclass, bigint, boolean) RETURNS bigint
    LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mtm_setval3_wrapper';
CREATE FUNCTION mtm.sequence_floors(OUT name text, OUT used bigint) RETURNS SETOF record
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'sequence_floors_wrapper';
CREATE FUNCTION mtm.adjust_sequences(names text[], low bigint[], high bigint[]) RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'adjust_sequences_wrapper';
CREATE FUNCTION mtm.alter_sequences() RETURNS bool
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'alter_sequences_wrapper';
COMMENT ON FUNCTION mtm.alter_sequences() IS 'gives every node its share of every sequence';
REVOKE ALL ON FUNCTION mtm.sequence_floors(), mtm.alter_sequences(),
    mtm.adjust_sequences(text[], bigint[], bigint[]) FROM PUBLIC;

-- Messages in the log tell the nodes what is announced, decided and finished. Whoever could write
-- some of his own could make transactions up.
REVOKE ALL ON FUNCTION pg_catalog.pg_logical_emit_message(boolean, text, text),
    pg_catalog.pg_logical_emit_message(boolean, text, bytea) FROM PUBLIC;

REVOKE ALL ON FUNCTION mtm.init_cluster(text, text[]), mtm.check_connection(text, text),
    mtm.prepare_node(text, int, text[]), mtm.activate_node(), mtm.unconfigure_node(), mtm.nodes()
    FROM PUBLIC;
REVOKE ALL ON PROCEDURE mtm.dmq_receive(int, text) FROM PUBLIC;
REVOKE ALL ON PROCEDURE mtm.line_serve(int, text) FROM PUBLIC;
REVOKE ALL ON mtm.cluster_nodes FROM PUBLIC;
GRANT SELECT ON mtm.generations, mtm.undecided, mtm.recovery TO PUBLIC;

CREATE VIEW mtm.retained_wal AS
    SELECT n.id, s.slot_name, s.active,
           CASE WHEN s.slot_name IS NULL OR s.restart_lsn IS NULL THEN 'lost'
                WHEN l.most > 0 AND r.bytes > l.most THEN 'over the limit'
                ELSE 'kept' END AS state,
           r.bytes, nullif(l.most, -1048576) AS bytes_allowed
      FROM mtm.cluster_nodes n
      LEFT JOIN pg_catalog.pg_replication_slots s
        ON s.slot_name = CASE WHEN n.is_self THEN 'mtm_self' ELSE 'mtm_slot_' || n.id END
     CROSS JOIN LATERAL (SELECT pg_catalog.pg_wal_lsn_diff(
           pg_catalog.pg_current_wal_insert_lsn(), s.restart_lsn)::int8 AS bytes) r
     CROSS JOIN LATERAL (SELECT setting::int8 * 1048576 AS most FROM pg_catalog.pg_settings
                          WHERE name = 'multimaster.max_retained_wal') l;
COMMENT ON VIEW mtm.retained_wal IS
    'how much of this node''s write-ahead log is kept for each node';
COMMENT ON COLUMN mtm.retained_wal.id IS 'node for which it is kept';
COMMENT ON COLUMN mtm.retained_wal.slot_name IS 'replication slot that keeps it';
COMMENT ON COLUMN mtm.retained_wal.active IS 'whether that node is receiving';
COMMENT ON COLUMN mtm.retained_wal.state IS
    'kept, over the limit, or lost: that node must be made anew';
COMMENT ON COLUMN mtm.retained_wal.bytes IS 'log kept for it, in bytes';
COMMENT ON COLUMN mtm.retained_wal.bytes_allowed IS
    'multimaster.max_retained_wal in bytes; null if there is no limit';
REVOKE ALL ON mtm.retained_wal FROM PUBLIC;
GRANT USAGE ON SCHEMA mtm TO PUBLIC;
