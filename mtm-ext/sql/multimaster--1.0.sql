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

CREATE FUNCTION mtm.status(
    OUT my_node_id int, OUT status text, OUT connected int[], OUT gen_num int8,
    OUT gen_members int[], OUT gen_members_online int[], OUT gen_configured int[],
    OUT reason text)
    RETURNS SETOF record
    LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'status_wrapper';
COMMENT ON FUNCTION mtm.status() IS 'state of this node';

CREATE FUNCTION mtm.nodes(
    OUT id int, OUT conninfo text, OUT is_self bool, OUT enabled bool, OUT connected bool,
    OUT sender_pid int, OUT receiver_pid int, OUT n_workers int, OUT receiver_mode text)
    RETURNS SETOF record
    LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'nodes_wrapper';
COMMENT ON FUNCTION mtm.nodes() IS 'all nodes of the cluster as this one sees them';

CREATE FUNCTION mtm.return_to_cluster() RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'return_to_cluster_wrapper';
COMMENT ON FUNCTION mtm.return_to_cluster() IS
    'lets this node come back after its data differed and were repaired';
REVOKE ALL ON FUNCTION mtm.return_to_cluster() FROM PUBLIC;

CREATE VIEW mtm.cluster_nodes AS SELECT id, conninfo, is_self FROM mtm.nodes();

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
REVOKE ALL ON mtm.cluster_nodes FROM PUBLIC;

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
