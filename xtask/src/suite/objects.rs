//! DDL that computes, and DDL about objects that other nodes do not have.

use super::arena::Arena;
use super::checks;
use anyhow::{Result, ensure};

checks!("objects":
    added_columns_are_equal_everywhere,
    added_columns_with_values_of_one_node,
    defaults_that_read_tables,
    generated_and_domain_columns,
    ddl_about_temporary_objects,
    permanent_tables_like_temporary_ones,
    functions_in_the_temporary_schema,
    large_objects_stay_local,
    materialized_views_refreshed,
    indexes_concurrently,
    failed_concurrent_index,
    extensions_of_contrib,
    extension_scripts_make_rows,
    extension_is_kept,
    statements_outside_transactions,
);

fn rows(table: &str) -> String {
    format!("SELECT md5(string_agg(t::text, '/' ORDER BY id)) FROM {table} t")
}

fn added_columns_are_equal_everywhere(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE o_add(id int PRIMARY KEY); INSERT INTO o_add SELECT generate_series(1, 300); CREATE FUNCTION o_rand() RETURNS float8 LANGUAGE sql AS 'SELECT random()'; CREATE DOMAIN o_dom AS float8 DEFAULT random()")?;
    a.run(2, "ALTER TABLE o_add ADD a float8 DEFAULT random(), ADD b float8 DEFAULT o_rand() NOT NULL, ADD c o_dom")?;
    a.same(&rows("o_add"))?;
    a.run(3, "ALTER TABLE o_add ADD d int GENERATED ALWAYS AS IDENTITY, ADD e timestamptz DEFAULT now(), ADD f timestamptz DEFAULT statement_timestamp(), ADD g timestamptz DEFAULT clock_timestamp(), ADD h text DEFAULT current_user")?;
    a.same(&rows("o_add"))?;
    // In a transaction, between other changes, and with a subtransaction taken back.
    a.run(1, "BEGIN; UPDATE o_add SET a = 1 WHERE id = 1; ALTER TABLE o_add ADD i uuid DEFAULT gen_random_uuid(); INSERT INTO o_add(id) VALUES (1001);
              SAVEPOINT s; ALTER TABLE o_add ADD j float8 DEFAULT random(); ROLLBACK TO s; ALTER TABLE o_add ADD j float8 DEFAULT random() + 1; DELETE FROM o_add WHERE id = 2; COMMIT")?;
    a.same(&rows("o_add"))?;
    a.expect("SELECT count(*), count(DISTINCT i), bool_and(j >= 1) FROM o_add", "300,300,t")?;
    // Partitions and children.
    a.run(2, "CREATE TABLE o_part(id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE o_part1 PARTITION OF o_part FOR VALUES FROM (0) TO (50); CREATE TABLE o_part2 PARTITION OF o_part FOR VALUES FROM (50) TO (200); INSERT INTO o_part SELECT generate_series(1, 100)")?;
    a.run(3, "ALTER TABLE o_part ADD r float8 DEFAULT random(), ADD s serial")?;
    a.same(&rows("o_part"))?;
    a.expect("SELECT count(DISTINCT r), count(DISTINCT s) FROM o_part", "100,100")?;
    Ok(())
}

/// Such a value is computed once, when the column is added, without touching any row.
fn added_columns_with_values_of_one_node(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE o_once(id int PRIMARY KEY); INSERT INTO o_once SELECT generate_series(1, 20)",
    )?;
    a.run(2, "ALTER TABLE o_once ADD p text DEFAULT current_setting('port'), ADD q int DEFAULT pg_backend_pid(), ADD r text NOT NULL DEFAULT current_setting('data_directory')")?;
    a.same(&rows("o_once"))?;
    let port = a.cluster.node(2)?.port.to_string();
    a.expect("SELECT DISTINCT p FROM o_once", &port)?;
    a.run(3, "INSERT INTO o_once(id, q) VALUES (100, 0)")?;
    a.run(1, "BEGIN; ALTER TABLE o_once ADD s int[] DEFAULT ARRAY[pg_backend_pid(), 7], ALTER p SET DEFAULT 'x'; INSERT INTO o_once(id, q, r, s) VALUES (101, 1, 'y', '{}'); COMMIT")?;
    a.same(&rows("o_once"))?;
    a.expect("SELECT s[2] FROM o_once WHERE id = 1", "7")?;
    // An index would hold each node's own.
    a.run(1, "CREATE TABLE o_once2(id int PRIMARY KEY); INSERT INTO o_once2 VALUES (1)")?;
    let error =
        a.on(2)?.refused("ALTER TABLE o_once2 ADD p int DEFAULT pg_backend_pid() UNIQUE")?;
    ensure!(error.state == "0A000" && error.hint.contains("second statement"), "{error}");
    a.run(3, "ALTER TABLE o_once2 ADD p int DEFAULT pg_backend_pid(); ALTER TABLE o_once2 ADD UNIQUE (p)")?;
    a.same(
        "SET enable_seqscan = off; SELECT id FROM o_once2 WHERE p = (SELECT p + 0 FROM o_once2)",
    )?;
    a.same(&rows("o_once2"))?;
    Ok(())
}

fn defaults_that_read_tables(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE o_source(id int PRIMARY KEY, v int); INSERT INTO o_source SELECT g, g FROM generate_series(1, 10) g; CREATE TABLE o_read(id int PRIMARY KEY); INSERT INTO o_read SELECT generate_series(1, 10);
              CREATE FUNCTION o_next() RETURNS int LANGUAGE plpgsql AS $$ BEGIN UPDATE o_source SET v = v + 1 WHERE id = 1; RETURN (SELECT v FROM o_source WHERE id = 1); END $$;
              CREATE FUNCTION o_sum() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT sum(v) FROM o_source'")?;
    // A volatile one that even writes: it runs once, on its origin.
    a.run(2, "ALTER TABLE o_read ADD n int DEFAULT o_next()")?;
    a.expect(
        "SELECT min(n), max(n), (SELECT v FROM o_source WHERE id = 1) FROM o_read",
        "2,11,11",
    )?;
    a.run(3, "BEGIN; UPDATE o_source SET v = 0 WHERE id = 10; ALTER TABLE o_read ADD s bigint DEFAULT o_sum(); COMMIT")?;
    a.expect("SELECT DISTINCT s FROM o_read", "55")?;
    a.same(&rows("o_read"))?;
    a.run(1, "ALTER TABLE o_read ALTER s TYPE numeric USING s + random()")?;
    a.same(&rows("o_read"))?;
    Ok(())
}

fn generated_and_domain_columns(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE o_gen(id int PRIMARY KEY, v int); INSERT INTO o_gen SELECT g, g FROM generate_series(1, 50) g; CREATE DOMAIN o_pos AS int CHECK (VALUE > 0) DEFAULT 3")?;
    a.run(2, "ALTER TABLE o_gen ADD w int GENERATED ALWAYS AS (v * 2) STORED, ADD p o_pos, ADD q o_pos NOT NULL DEFAULT 4")?;
    a.run(3, "UPDATE o_gen SET v = v + 1 WHERE id < 5; ALTER TABLE o_gen ALTER w DROP EXPRESSION, ALTER v TYPE bigint")?;
    a.same(&rows("o_gen"))?;
    a.expect("SELECT sum(w), sum(p), sum(q) FROM o_gen", "2558,150,200")
}

/// Nothing of it reaches the peers, and the same transaction's other work does.
fn ddl_about_temporary_objects(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE o_perm(id int PRIMARY KEY, v int); CREATE FUNCTION o_trig() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END'; CREATE ROLE o_role")?;
    let session = a.on(2)?;
    for sql in [
        "CREATE TEMP TABLE ot(id int PRIMARY KEY, v int DEFAULT 1, w serial)",
        "CREATE INDEX ot_v ON ot(v); CREATE UNIQUE INDEX ot_w ON ot(w)",
        "CREATE INDEX CONCURRENTLY ot_x ON ot(id)",
        "ALTER TABLE ot ADD x text DEFAULT 'x', ALTER v TYPE bigint, ADD CHECK (v > 0)",
        "COMMENT ON TABLE ot IS 'c'; COMMENT ON COLUMN ot.v IS 'c'; COMMENT ON INDEX ot_v IS 'c'; COMMENT ON CONSTRAINT ot_pkey ON ot IS 'c'",
        "CREATE TRIGGER t BEFORE INSERT ON ot FOR EACH ROW EXECUTE FUNCTION o_trig(); ALTER TRIGGER t ON ot RENAME TO u; COMMENT ON TRIGGER u ON ot IS 'c'",
        "CREATE RULE r AS ON DELETE TO ot DO INSTEAD NOTHING; ALTER RULE r ON ot RENAME TO s; DROP RULE s ON ot; DROP TRIGGER u ON ot",
        "CREATE TEMP VIEW ov AS SELECT * FROM ot; CREATE VIEW ov2 AS SELECT id FROM ot; COMMENT ON VIEW ov IS 'c'; ALTER VIEW ov2 RENAME TO ov3; DROP VIEW ov3, ov",
        "CREATE TEMP SEQUENCE os; ALTER SEQUENCE os INCREMENT 5; SELECT nextval('os'); SELECT setval('os', 50); ALTER SEQUENCE os RENAME TO os2; DROP SEQUENCE os2",
        "GRANT SELECT ON ot TO o_role; REVOKE SELECT ON ot FROM o_role; ALTER TABLE ot OWNER TO o_role; ALTER TABLE ot OWNER TO mtm",
        "CREATE STATISTICS pg_temp.ost ON id, v FROM ot; DROP STATISTICS pg_temp.ost",
        "CREATE TYPE pg_temp.oe AS ENUM ('a'); ALTER TYPE pg_temp.oe ADD VALUE 'b'; DROP TYPE pg_temp.oe",
        "CREATE TYPE pg_temp.oc AS (x int); ALTER TYPE pg_temp.oc ADD ATTRIBUTE y int; DROP TYPE pg_temp.oc",
        "CREATE DOMAIN pg_temp.od AS int; ALTER DOMAIN pg_temp.od ADD CHECK (VALUE > 0); ALTER DOMAIN pg_temp.od SET DEFAULT 4; DROP DOMAIN pg_temp.od",
        "CREATE TEMP TABLE oparent(id int) PARTITION BY RANGE (id); CREATE TEMP TABLE ochild PARTITION OF oparent FOR VALUES FROM (0) TO (9); INSERT INTO oparent VALUES (1); ALTER TABLE oparent DETACH PARTITION ochild",
        "CREATE TEMP TABLE octas AS SELECT * FROM ot; SELECT 1 AS one INTO TEMP ointo; CREATE TABLE pg_temp.oq(id int); CREATE TEMP TABLE olike(LIKE o_perm INCLUDING ALL)",
        "ALTER TABLE ot RENAME TO otr; ALTER TABLE otr RENAME v TO vv; ALTER INDEX ot_v RENAME TO ot_vv; DROP INDEX ot_vv",
        "CREATE POLICY op ON otr USING (id > 0); ALTER POLICY op ON otr USING (id > 1); DROP POLICY op ON otr",
        "TRUNCATE otr, o_perm; CLUSTER otr USING ot_pkey",
        "ANALYZE otr; VACUUM otr; REINDEX TABLE otr",
    ] {
        for part in sql.split("; ") {
            session.run(part).map_err(|error| anyhow::anyhow!("{part}: {error}"))?;
        }
        session.run("INSERT INTO o_perm SELECT coalesce(max(id), 0) + 1 FROM o_perm")?;
        a.same("SELECT count(*) FROM o_perm")?;
    }
    session.run("DISCARD TEMP")?;
    session.run("DISCARD ALL")?;
    a.expect(
        "SELECT count(*) FROM pg_class WHERE relname ~ '^o[a-z]*$' AND relname LIKE 'ot%'",
        "0",
    )
}

fn permanent_tables_like_temporary_ones(a: &Arena) -> Result<()> {
    let session = a.on(3)?;
    session.run("CREATE TEMP TABLE o_tmp(id int PRIMARY KEY, v text DEFAULT 'd'); INSERT INTO o_tmp VALUES (1, 'x')")?;
    session
        .run("CREATE TABLE o_as AS SELECT * FROM o_tmp; ALTER TABLE o_as ADD PRIMARY KEY (id)")?;
    a.expect("SELECT * FROM o_as", "1,x")?;
    for sql in
        ["CREATE TABLE o_like(LIKE o_tmp)", "CREATE TABLE o_like2(a int, LIKE o_tmp INCLUDING ALL)"]
    {
        let error = session.refused(sql)?;
        ensure!(
            error.state == "0A000" && error.message.contains("temporary") && !error.hint.is_empty(),
            "{sql}: {error}"
        );
    }
    a.run(1, "CREATE TABLE o_after(id int PRIMARY KEY)")?;
    Ok(())
}

fn functions_in_the_temporary_schema(a: &Arena) -> Result<()> {
    let session = a.on(1)?;
    session.run("CREATE FUNCTION pg_temp.f(i int) RETURNS int LANGUAGE sql AS 'SELECT i'; ALTER FUNCTION pg_temp.f(int) IMMUTABLE; GRANT EXECUTE ON FUNCTION pg_temp.f(int) TO public; COMMENT ON FUNCTION pg_temp.f(int) IS 'c'; ALTER FUNCTION pg_temp.f(int) RENAME TO g")?;
    session.run("CREATE AGGREGATE pg_temp.agg(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0'); CREATE OPERATOR pg_temp.## (LEFTARG = int, RIGHTARG = int, FUNCTION = int4pl)")?;
    ensure!(session.one("SELECT pg_temp.g(3)")? == "3", "the function is gone");
    session.run("DROP OPERATOR pg_temp.## (int, int); DROP AGGREGATE pg_temp.agg(int); DROP FUNCTION pg_temp.g(int)")?;
    a.can_write()
}

/// The manual: they may be created, and are not replicated. Whoever creates one is told.
fn large_objects_stay_local(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE o_lo(id int PRIMARY KEY, o oid); CREATE ROLE o_lo_role")?;
    let session = a.on(2)?;
    let _ = session.notices();
    let oid = session.one("SELECT lo_from_bytea(0, 'abc')")?;
    let told = session.notices().join("\n");
    ensure!(told.contains("large objects are not replicated"), "nobody was told: {told:?}");
    session.run(&format!("COMMENT ON LARGE OBJECT {oid} IS 'c'; GRANT SELECT ON LARGE OBJECT {oid} TO o_lo_role; ALTER LARGE OBJECT {oid} OWNER TO o_lo_role; INSERT INTO o_lo VALUES (1, {oid})"))?;
    ensure!(
        session.one(&format!("SELECT convert_from(lo_get({oid}), 'UTF8')"))? == "abc",
        "the large object is lost"
    );
    ensure!(a.ask(3, "SELECT count(*) FROM pg_largeobject_metadata")? == "0", "it travelled");
    session.run(&format!("SELECT lo_unlink({oid})"))?;
    a.run(3, "DROP ROLE o_lo_role; DELETE FROM o_lo")?;
    Ok(())
}

fn materialized_views_refreshed(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE o_mt(id int PRIMARY KEY, v text); INSERT INTO o_mt SELECT g, repeat(g::text, 500) FROM generate_series(1, 100) g;
              CREATE MATERIALIZED VIEW o_mv AS SELECT id, v, random() AS r FROM o_mt WITH NO DATA; CREATE UNIQUE INDEX ON o_mv(id)")?;
    let error = a.on(3)?.refused("SELECT * FROM o_mv")?;
    ensure!(error.state == "55000", "{error}");
    a.run(2, "REFRESH MATERIALIZED VIEW o_mv")?;
    a.same(&rows("o_mv"))?;
    a.run(3, "BEGIN; DELETE FROM o_mt WHERE id > 90; INSERT INTO o_mt VALUES (200, 'n'); REFRESH MATERIALIZED VIEW CONCURRENTLY o_mv; COMMIT")?;
    a.same(&rows("o_mv"))?;
    a.expect("SELECT count(*) FROM o_mv", "91")?;
    a.run(1, "BEGIN; REFRESH MATERIALIZED VIEW o_mv; ROLLBACK; REFRESH MATERIALIZED VIEW o_mv WITH NO DATA")?;
    let error = a.on(2)?.refused("SELECT * FROM o_mv")?;
    ensure!(error.state == "55000", "{error}");
    a.run(2, "CREATE MATERIALIZED VIEW o_mv2 AS SELECT id, clock_timestamp() AS t FROM o_mt; ALTER MATERIALIZED VIEW o_mv2 RENAME TO o_mv3; CREATE INDEX ON o_mv3(t)")?;
    a.same(&rows("o_mv3"))?;
    a.run(3, "DROP MATERIALIZED VIEW o_mv, o_mv3")?;
    Ok(())
}

fn indexes_concurrently(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE o_ci(id int PRIMARY KEY, v int); INSERT INTO o_ci SELECT g, g FROM generate_series(1, 2000) g")?;
    a.run(2, "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS o_ci_v ON o_ci(v)")?;
    a.run(2, "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS o_ci_v ON o_ci(v)")?;
    a.run(3, "REINDEX INDEX CONCURRENTLY o_ci_v")?;
    let error = a.on(1)?.refused("INSERT INTO o_ci VALUES (5000, 7)")?;
    ensure!(error.state == "23505", "{error}");
    a.run(1, "DROP INDEX CONCURRENTLY IF EXISTS o_ci_v, o_ci_none").err();
    a.run(1, "DROP INDEX CONCURRENTLY IF EXISTS o_ci_v")?;
    a.run(3, "DROP INDEX CONCURRENTLY IF EXISTS o_ci_v")?;
    a.expect("SELECT to_regclass('o_ci_v') IS NULL", "t")?;
    let error = a.on(2)?.refused("BEGIN; CREATE INDEX CONCURRENTLY ON o_ci(v)")?;
    ensure!(error.state == "25001", "{error}");
    a.can_write()
}

/// It leaves an invalid index on its node, as on a single server; that one can be dropped.
fn failed_concurrent_index(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE o_fail(id int PRIMARY KEY, v int); INSERT INTO o_fail VALUES (1, 1), (2, 1)",
    )?;
    let error = a.on(2)?.refused("CREATE UNIQUE INDEX CONCURRENTLY o_fail_v ON o_fail(v)")?;
    ensure!(error.state == "23505", "{error}");
    a.run(3, "INSERT INTO o_fail VALUES (3, 1)")?;
    a.run(2, "DROP INDEX o_fail_v")?;
    a.expect("SELECT to_regclass('o_fail_v') IS NULL, (SELECT count(*) FROM o_fail)", "t,3")
}

fn extensions_of_contrib(a: &Arena) -> Result<()> {
    let available = "SELECT count(*) FROM pg_available_extensions WHERE name = ";
    for (name, sql, expected) in [
        ("hstore", "SELECT 'a=>1'::o_x.hstore -> 'a'", "1"),
        ("citext", "SELECT 'A'::o_x.citext = 'a'::o_x.citext", "t"),
        ("btree_gist", "SELECT count(*) > 0 FROM pg_opclass WHERE opcname = 'gist_int4_ops'", "t"),
        ("ltree", "SELECT 'a.b'::o_x.ltree @> 'a.b.c'", "t"),
        ("pgcrypto", "SELECT length(o_x.gen_salt('bf'))", "29"),
        ("tablefunc", "SELECT count(*) FROM o_x.normal_rand(3, 0, 1)", "3"),
        ("uuid-ossp", "SELECT o_x.uuid_nil()", "00000000-0000-0000-0000-000000000000"),
        (
            "postgres_fdw",
            "SELECT fdwname FROM pg_foreign_data_wrapper WHERE fdwname = 'postgres_fdw'",
            "postgres_fdw",
        ),
        (
            "pg_stat_statements",
            "SELECT count(*) FROM pg_extension WHERE extname = 'pg_stat_statements'",
            "1",
        ),
    ] {
        let missing =
            a.ask(1, &format!("{available}'{name}' AND installed_version IS NULL"))? == "0";
        if missing {
            continue;
        }
        a.run(
            2,
            &format!("CREATE SCHEMA IF NOT EXISTS o_x; CREATE EXTENSION \"{name}\" SCHEMA o_x"),
        )?;
        if name == "ltree" {
            a.run(3, "SET search_path = o_x, public; CREATE TABLE o_lt(p ltree PRIMARY KEY); INSERT INTO o_lt VALUES ('a.b'), ('a.c'); CREATE INDEX ON o_lt USING gist (p)")?;
            a.expect("SELECT count(*) FROM o_x.o_lt", "2")?;
        } else if name == "hstore" {
            a.run(3, "CREATE TABLE o_hs(id int PRIMARY KEY, h o_x.hstore); INSERT INTO o_hs VALUES (1, 'k=>v, l=>NULL')")?;
            a.run(1, "UPDATE o_hs SET h = h OPERATOR(o_x.||) 'm=>2'")?;
            a.expect("SELECT h FROM o_hs", "\"k\"=>\"v\", \"l\"=>NULL, \"m\"=>\"2\"")?;
        } else {
            let got = if name == "ltree" {
                String::new()
            } else {
                a.same(&format!("SET search_path = o_x; {sql}"))?
            };
            ensure!(got == expected, "{name}: {got}");
        }
        ensure!(
            a.same(&format!("SELECT count(*) FROM pg_extension WHERE extname = '{name}'"))? == "1",
            "{name} is not everywhere"
        );
    }
    a.run(1, "DROP SCHEMA o_x CASCADE")?;
    a.expect("SELECT count(*) FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE nspname = 'o_x'", "0")
}

/// A script runs on every node; nothing that it does travels as well.
fn extension_scripts_make_rows(a: &Arena) -> Result<()> {
    if a.cluster.kind != crate::cluster::Kind::Multimaster {
        return Ok(());
    }
    let dir = a.cluster.dir.join("tree/usr/share/postgresql/15/extension");
    std::fs::write(dir.join("probe.control"), "default_version = '1'\n")?;
    std::fs::write(
        dir.join("probe--1.sql"),
        "CREATE TABLE probe_rows(id serial PRIMARY KEY, v int);
         CREATE SEQUENCE probe_seq;
         SELECT setval('probe_seq', 100);
         INSERT INTO probe_rows(id, v) SELECT g, g FROM generate_series(1, 5) g;
         SELECT setval('probe_rows_id_seq', 5);
         UPDATE probe_rows SET v = 0 WHERE id = 3;",
    )?;
    std::fs::write(
        dir.join("probe--1--2.sql"),
        "SELECT setval('probe_seq', 200); INSERT INTO probe_rows VALUES (6, 6); DELETE FROM probe_rows WHERE id = 1;",
    )?;
    a.run(2, "CREATE EXTENSION probe")?;
    a.expect("SELECT count(*), sum(v) FROM probe_rows", "5,12")?;
    a.run(3, "ALTER EXTENSION probe UPDATE TO '2'")?;
    a.expect("SELECT count(*), sum(v) FROM probe_rows", "5,17")?;
    for id in a.ids() {
        a.run(id, "INSERT INTO probe_rows(id, v) SELECT nextval('probe_seq'), 0")?;
    }
    a.expect("SELECT count(*), min(id) > 200 FROM probe_rows WHERE v = 0 AND id > 6", "3,t")?;
    a.run(1, "DROP EXTENSION probe")?;
    Ok(())
}

/// It cannot be dropped under a running cluster by mistake.
fn extension_is_kept(a: &Arena) -> Result<()> {
    for sql in [
        "DROP EXTENSION multimaster",
        "DROP EXTENSION IF EXISTS multimaster CASCADE",
        "DROP SCHEMA mtm CASCADE",
    ] {
        let error = a.on(1)?.refused(sql)?;
        ensure!(error.state == "55000" || error.state == "2BP01", "{sql}: {error}");
    }
    a.can_write()
}

fn statements_outside_transactions(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE o_out(id int PRIMARY KEY, v int); INSERT INTO o_out SELECT g, g FROM generate_series(1, 100) g; CREATE INDEX o_out_v ON o_out(v)")?;
    let session = a.on(3)?;
    for sql in [
        "VACUUM",
        "VACUUM (FREEZE, ANALYZE) o_out",
        "VACUUM FULL o_out",
        "REINDEX (VERBOSE) TABLE CONCURRENTLY o_out",
        "REINDEX SCHEMA public",
        "REINDEX DATABASE mtm",
        "CLUSTER o_out USING o_out_v",
        "CLUSTER",
        "ANALYZE",
        "ALTER TYPE o_kind ADD VALUE 'three'",
        "CHECKPOINT",
    ] {
        if sql.contains("o_kind") {
            a.run(1, "CREATE TYPE o_kind AS ENUM ('one', 'two')")?;
        }
        let session = if sql.starts_with("REINDEX") || sql.starts_with("VACUUM") || sql == "ANALYZE"
        {
            a.on(3)?
        } else {
            a.on(2)?
        };
        session
            .patience(std::time::Duration::from_secs(60))
            .run(sql)
            .map_err(|error| anyhow::anyhow!("{sql}: {error}"))?;
        a.run(1, "UPDATE o_out SET v = v + 1 WHERE id = 1")?;
    }
    drop(session);
    a.run(2, "ALTER TABLE o_out SET WITHOUT CLUSTER")?;
    a.expect(
        "SELECT v, enum_range(NULL::o_kind)::text FROM o_out WHERE id = 1",
        "12,{one,two,three}",
    )
}
