//! DDL on tables and what hangs on them. After the group the definitions on all nodes are compared.

use super::arena::Arena;
use super::checks;
use anyhow::{Context, Result, ensure};

checks!("schema":
    create_write_and_drop_on_different_nodes,
    ddl_and_rows_in_one_transaction,
    ddl_is_rolled_back,
    ddl_in_savepoints,
    alter_table_columns,
    alter_type_using,
    alter_table_volatile_default,
    alter_table_constraints,
    alter_table_rename_and_move,
    create_table_as,
    select_into,
    create_table_as_execute,
    create_table_like,
    indexes,
    indexes_concurrently,
    views,
    materialized_views,
    comments,
    schemas_and_search_path,
    drop_cascade,
    if_exists_and_if_not_exists,
    sequences_as_objects,
    identity_columns,
    statistics_objects,
    tablespace_defaults,
    quoted_names,
    ddl_on_all_nodes_at_once,
    pgbench_init_on_any_node,
);

fn create_write_and_drop_on_different_nodes(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE s_basic(id int PRIMARY KEY, v text)")?;
    a.run(2, "INSERT INTO s_basic VALUES (1, 'two')")?;
    a.run(3, "ALTER TABLE s_basic ADD w int DEFAULT 3")?;
    a.run(1, "INSERT INTO s_basic VALUES (2, 'one', 1)")?;
    a.expect("SELECT * FROM s_basic ORDER BY id", "1,two,3;2,one,1")?;
    a.run(2, "DROP TABLE s_basic")?;
    a.expect("SELECT to_regclass('s_basic') IS NULL", "t")
}

fn ddl_and_rows_in_one_transaction(a: &Arena) -> Result<()> {
    a.run(
        2,
        "BEGIN; CREATE TABLE s_mixed(id int PRIMARY KEY); INSERT INTO s_mixed VALUES (1);
         ALTER TABLE s_mixed ADD v text; UPDATE s_mixed SET v = 'x'; INSERT INTO s_mixed VALUES (2, 'y');
         CREATE INDEX s_mixed_v ON s_mixed(v); ALTER TABLE s_mixed RENAME v TO w; DELETE FROM s_mixed WHERE w = 'x'; COMMIT",
    )?;
    a.expect("SELECT id, w FROM s_mixed", "2,y")
}

fn ddl_is_rolled_back(a: &Arena) -> Result<()> {
    a.run(1, "BEGIN; CREATE TABLE s_undone(id int PRIMARY KEY); INSERT INTO s_undone VALUES (1); ROLLBACK")?;
    a.expect("SELECT to_regclass('s_undone') IS NULL", "t")?;
    a.run(2, "CREATE TABLE s_undone(id int PRIMARY KEY, other int)")?;
    a.expect("SELECT count(*) FROM s_undone", "0")
}

fn ddl_in_savepoints(a: &Arena) -> Result<()> {
    a.run(
        3,
        "BEGIN; SAVEPOINT a; CREATE TABLE s_sp_no(id int); INSERT INTO s_sp_no VALUES (1); ROLLBACK TO a;
         SAVEPOINT b; CREATE TABLE s_sp_yes(id int PRIMARY KEY); RELEASE b; INSERT INTO s_sp_yes VALUES (1); COMMIT",
    )?;
    a.expect("SELECT to_regclass('s_sp_no') IS NULL, (SELECT count(*) FROM s_sp_yes)", "t,1")
}

fn alter_table_columns(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE s_alter(id int PRIMARY KEY, a int, b text); INSERT INTO s_alter SELECT g, g, 'x' FROM generate_series(1, 10) g")?;
    a.run(2, "ALTER TABLE s_alter ADD c timestamptz NOT NULL DEFAULT '2026-01-01', DROP b, ALTER a SET DEFAULT 5, ALTER a SET NOT NULL")?;
    a.run(3, "ALTER TABLE s_alter RENAME a TO aa; INSERT INTO s_alter(id) VALUES (11)")?;
    a.run(1, "ALTER TABLE s_alter ALTER aa SET STATISTICS 500, ALTER aa DROP DEFAULT, SET (fillfactor = 70)")?;
    a.expect("SELECT count(*), sum(aa), min(c)::date FROM s_alter", "11,60,2026-01-01")
}

fn alter_type_using(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE s_using(id int PRIMARY KEY, v text, w int); INSERT INTO s_using SELECT g, g::text, g FROM generate_series(1, 100) g")?;
    a.run(2, "ALTER TABLE s_using ALTER v TYPE int USING v::int * 2, ALTER w TYPE numeric(10,2), ALTER id TYPE bigint")?;
    a.run(3, "UPDATE s_using SET v = v + 1 WHERE id = 1")?;
    a.expect("SELECT sum(v), sum(w) FROM s_using", "10101,5050.00")
}

/// A rewrite that computes a new value for each row must compute the same one on every node.
fn alter_table_volatile_default(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE s_volatile(id int PRIMARY KEY); INSERT INTO s_volatile SELECT generate_series(1, 50)")?;
    a.run(2, "ALTER TABLE s_volatile ADD r float8 DEFAULT random(), ADD t timestamptz DEFAULT clock_timestamp(), ADD u uuid DEFAULT gen_random_uuid()")?;
    a.same("SELECT md5(string_agg(whole_row::text, '/' ORDER BY id)) FROM s_volatile whole_row")?;
    a.run(3, "ALTER TABLE s_volatile ADD n serial")?;
    a.same(
        "SELECT md5(string_agg(whole_row::text, '/' ORDER BY id)), count(DISTINCT n) FROM s_volatile whole_row",
    )?;
    Ok(())
}

fn alter_table_constraints(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE s_con(id int, a int, b int); CREATE TABLE s_con_ref(id int PRIMARY KEY)",
    )?;
    a.run(
        2,
        "ALTER TABLE s_con ADD PRIMARY KEY (id), ADD CONSTRAINT s_con_a CHECK (a > 0) NOT VALID",
    )?;
    a.run(3, "ALTER TABLE s_con ADD CONSTRAINT s_con_fk FOREIGN KEY (b) REFERENCES s_con_ref NOT VALID; ALTER TABLE s_con VALIDATE CONSTRAINT s_con_a")?;
    a.run(1, "ALTER TABLE s_con RENAME CONSTRAINT s_con_a TO s_con_positive; ALTER TABLE s_con VALIDATE CONSTRAINT s_con_fk")?;
    let error = a.on(2)?.refused("INSERT INTO s_con VALUES (1, 0, NULL)")?;
    ensure!(error.state == "23514" && error.message.contains("s_con_positive"), "{error}");
    a.run(3, "ALTER TABLE s_con DROP CONSTRAINT s_con_fk; INSERT INTO s_con VALUES (1, 1, 99)")?;
    a.expect("SELECT b FROM s_con", "99")
}

fn alter_table_rename_and_move(a: &Arena) -> Result<()> {
    a.run(1, "CREATE SCHEMA s_other; CREATE TABLE s_before(id int PRIMARY KEY)")?;
    a.run(2, "ALTER TABLE s_before RENAME TO s_after")?;
    a.run(3, "ALTER TABLE s_after SET SCHEMA s_other")?;
    a.run(1, "INSERT INTO s_other.s_after VALUES (1)")?;
    a.expect("SELECT count(*) FROM s_other.s_after", "1")
}

fn create_table_as(a: &Arena) -> Result<()> {
    a.run(
        2,
        "CREATE TABLE s_ctas AS SELECT g AS id, random() AS r FROM generate_series(1, 100) g",
    )?;
    a.run(3, "CREATE TABLE s_ctas_empty AS SELECT * FROM s_ctas WITH NO DATA; CREATE TABLE IF NOT EXISTS s_ctas AS SELECT 1")?;
    a.same("SELECT count(*), sum(r) FROM s_ctas")?;
    a.expect("SELECT (SELECT count(*) FROM s_ctas), (SELECT count(*) FROM s_ctas_empty)", "100,0")
}

fn select_into(a: &Arena) -> Result<()> {
    a.run(1, "SELECT g AS id, clock_timestamp() AS t INTO s_into FROM generate_series(1, 10) g")?;
    a.same("SELECT md5(string_agg(whole_row::text, '/' ORDER BY id)) FROM s_into whole_row")?;
    a.expect("SELECT count(*) FROM s_into", "10")
}

fn create_table_as_execute(a: &Arena) -> Result<()> {
    let session = a.on(3)?;
    session.run("PREPARE q(int) AS SELECT g AS id FROM generate_series(1, $1) g")?;
    session.run("CREATE TABLE s_ctas_exec AS EXECUTE q(5)")?;
    a.expect("SELECT count(*) FROM s_ctas_exec", "5")
}

fn create_table_like(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE s_like(id int PRIMARY KEY, v text DEFAULT 'd' CHECK (v <> '')); CREATE INDEX ON s_like(v); COMMENT ON COLUMN s_like.v IS 'c'")?;
    a.run(2, "CREATE TABLE s_like_copy(LIKE s_like INCLUDING ALL, extra int)")?;
    a.run(3, "INSERT INTO s_like_copy(id) VALUES (1)")?;
    a.expect("SELECT v FROM s_like_copy", "d")
}

fn indexes(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE s_index(id int PRIMARY KEY, v text, n int[]); INSERT INTO s_index SELECT g, g::text, ARRAY[g] FROM generate_series(1, 100) g")?;
    a.run(2, "CREATE INDEX s_index_v ON s_index(v DESC NULLS LAST) INCLUDE (n) WITH (fillfactor = 80); CREATE INDEX ON s_index USING gin (n)")?;
    a.run(3, "CREATE UNIQUE INDEX s_index_u ON s_index(lower(v)); ALTER INDEX s_index_v RENAME TO s_index_w")?;
    let error = a.on(1)?.refused("INSERT INTO s_index VALUES (101, '7')")?;
    ensure!(error.state == "23505", "{error}");
    a.run(1, "DROP INDEX s_index_w; ALTER TABLE s_index ADD CONSTRAINT s_index_c UNIQUE USING INDEX s_index_x").err();
    a.run(2, "REINDEX INDEX s_index_u")?;
    a.expect("SELECT count(*) FROM pg_indexes WHERE tablename = 's_index'", "4")
}

fn indexes_concurrently(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE s_conc(id int PRIMARY KEY, v int); INSERT INTO s_conc SELECT g, g FROM generate_series(1, 1000) g")?;
    a.run(2, "CREATE INDEX CONCURRENTLY s_conc_v ON s_conc(v)")?;
    a.expect("SELECT indisvalid FROM pg_index WHERE indexrelid = 's_conc_v'::regclass", "t")?;
    a.run(3, "DROP INDEX CONCURRENTLY s_conc_v")?;
    a.expect("SELECT to_regclass('s_conc_v') IS NULL", "t")
}

fn views(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE s_vt(id int PRIMARY KEY, v int); CREATE VIEW s_view AS SELECT id FROM s_vt",
    )?;
    a.run(2, "CREATE OR REPLACE VIEW s_view AS SELECT id, v FROM s_vt; CREATE RECURSIVE VIEW s_rec(n) AS VALUES (1) UNION ALL SELECT n + 1 FROM s_rec WHERE n < 5")?;
    a.run(3, "INSERT INTO s_view VALUES (1, 2); ALTER VIEW s_view RENAME TO s_view2")?;
    a.expect("SELECT v, (SELECT count(*) FROM s_rec) FROM s_view2", "2,5")
}

fn materialized_views(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE s_mt(id int PRIMARY KEY); INSERT INTO s_mt SELECT generate_series(1, 10)",
    )?;
    a.run(2, "CREATE MATERIALIZED VIEW s_mat AS SELECT id, random() AS r FROM s_mt; CREATE UNIQUE INDEX ON s_mat(id)")?;
    a.expect("SELECT count(*) FROM s_mat", "10")?;
    a.run(3, "INSERT INTO s_mt VALUES (11); REFRESH MATERIALIZED VIEW s_mat")?;
    a.expect("SELECT count(*) FROM s_mat", "11")?;
    a.run(1, "INSERT INTO s_mt VALUES (12)")?;
    a.run(1, "REFRESH MATERIALIZED VIEW CONCURRENTLY s_mat")?;
    a.expect("SELECT count(*) FROM s_mat", "12")?;
    // What it computed is volatile; the later comparison of all rows is about replicated rows.
    a.run(2, "DROP MATERIALIZED VIEW s_mat")?;
    Ok(())
}

fn comments(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE s_comment(id int PRIMARY KEY)")?;
    a.run(2, "COMMENT ON TABLE s_comment IS 'a table'; COMMENT ON COLUMN s_comment.id IS 'a column'; COMMENT ON SCHEMA public IS 'ours'")?;
    a.expect(
        "SELECT obj_description('s_comment'::regclass), col_description('s_comment'::regclass, 1)",
        "a table,a column",
    )
}

/// The name in a statement means what it means in the writer's search_path.
fn schemas_and_search_path(a: &Arena) -> Result<()> {
    a.run(1, "CREATE SCHEMA s_one CREATE TABLE t(id int PRIMARY KEY) CREATE VIEW v AS SELECT id FROM t; CREATE SCHEMA s_two")?;
    let session = a.on(2)?;
    session.run("SET search_path = s_two, public; CREATE TABLE t(id int PRIMARY KEY, x int); CREATE INDEX t_x ON t(x); INSERT INTO t VALUES (1, 2)")?;
    session.run("SET search_path = s_one; ALTER TABLE t ADD y int; INSERT INTO t VALUES (1, 3)")?;
    session.run("BEGIN; SET LOCAL search_path = s_two; ALTER TABLE t DROP x; COMMIT; ALTER TABLE t ADD z int")?;
    a.run(3, "ALTER SCHEMA s_two RENAME TO s_zwei")?;
    a.expect("SELECT * FROM s_one.t, s_zwei.t AS u", "1,3,~,1")?;
    a.run(1, "DROP SCHEMA s_zwei CASCADE")?;
    a.expect("SELECT to_regclass('s_zwei.t') IS NULL", "t")
}

fn drop_cascade(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE s_drop(id int PRIMARY KEY); CREATE VIEW s_drop_v AS SELECT * FROM s_drop; CREATE TABLE s_drop_c(id int PRIMARY KEY REFERENCES s_drop)")?;
    let error = a.on(2)?.refused("DROP TABLE s_drop")?;
    ensure!(error.state == "2BP01", "{error}");
    a.run(2, "DROP TABLE s_drop CASCADE")?;
    a.run(3, "INSERT INTO s_drop_c VALUES (1)")?;
    a.expect("SELECT to_regclass('s_drop_v') IS NULL, (SELECT count(*) FROM s_drop_c)", "t,1")
}

fn if_exists_and_if_not_exists(a: &Arena) -> Result<()> {
    a.run(
        1,
        "DROP TABLE IF EXISTS s_never; CREATE TABLE IF NOT EXISTS s_once(id int PRIMARY KEY)",
    )?;
    a.run(2, "CREATE TABLE IF NOT EXISTS s_once(id int PRIMARY KEY); CREATE SCHEMA IF NOT EXISTS s_once_s; CREATE SCHEMA IF NOT EXISTS s_once_s")?;
    a.run(3, "ALTER TABLE s_once ADD COLUMN IF NOT EXISTS v int; ALTER TABLE s_once ADD COLUMN IF NOT EXISTS v int; ALTER TABLE IF EXISTS s_never ADD v int")?;
    a.expect("SELECT count(*) FROM s_once WHERE v IS NULL", "0")
}

fn sequences_as_objects(a: &Arena) -> Result<()> {
    a.run(1, "CREATE SEQUENCE s_seq; CREATE TABLE s_seq_t(id int PRIMARY KEY DEFAULT nextval('s_seq'), v int); ALTER SEQUENCE s_seq OWNED BY s_seq_t.id")?;
    for id in a.ids() {
        a.run(id, "INSERT INTO s_seq_t(v) SELECT generate_series(1, 10)")?;
    }
    a.run(2, "ALTER SEQUENCE s_seq RENAME TO s_seq2; ALTER SEQUENCE s_seq2 CACHE 5")?;
    for id in a.ids() {
        a.run(id, "INSERT INTO s_seq_t(v) SELECT generate_series(1, 10)")?;
    }
    a.expect("SELECT count(DISTINCT id) FROM s_seq_t", "60")
}

fn identity_columns(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE s_ident(id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int)")?;
    a.run(2, "INSERT INTO s_ident(v) VALUES (1); INSERT INTO s_ident OVERRIDING SYSTEM VALUE VALUES (1000, 2)")?;
    let error = a.on(3)?.refused("INSERT INTO s_ident VALUES (1, 1)")?;
    ensure!(error.state == "428C9", "{error}");
    a.run(3, "ALTER TABLE s_ident ALTER id SET GENERATED BY DEFAULT; INSERT INTO s_ident VALUES (2000, 3)")?;
    a.run(1, "INSERT INTO s_ident(v) VALUES (4)")?;
    a.expect("SELECT count(*), sum(v) FROM s_ident", "4,10")
}

fn statistics_objects(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE s_stat(id int PRIMARY KEY, a int, b int)")?;
    a.run(2, "CREATE STATISTICS s_stats (dependencies) ON a, b FROM s_stat; ALTER STATISTICS s_stats SET STATISTICS 10")?;
    a.expect("SELECT count(*) FROM pg_statistic_ext WHERE stxname = 's_stats'", "1")
}

fn tablespace_defaults(a: &Arena) -> Result<()> {
    a.run(2, "CREATE TABLE s_space(id int PRIMARY KEY USING INDEX TABLESPACE pg_default) TABLESPACE pg_default")?;
    a.run(3, "ALTER TABLE s_space SET UNLOGGED; ALTER TABLE s_space SET LOGGED; INSERT INTO s_space VALUES (1)")?;
    a.expect("SELECT count(*) FROM s_space", "1")
}

fn quoted_names(a: &Arena) -> Result<()> {
    a.run(1, "CREATE SCHEMA \"S \"\"q\"\"\"; CREATE TABLE \"S \"\"q\"\"\".\"Table; 'x'\"(\"Id\" int PRIMARY KEY, \"\u{e4}\u{f6}\" text DEFAULT $$it's$$)")?;
    a.run(2, "INSERT INTO \"S \"\"q\"\"\".\"Table; 'x'\" VALUES (1, 'v'), (2, DEFAULT); UPDATE \"S \"\"q\"\"\".\"Table; 'x'\" SET \"Id\" = 3 WHERE \"Id\" = 2")?;
    a.expect("SELECT * FROM \"S \"\"q\"\"\".\"Table; 'x'\" ORDER BY 1", "1,v;3,it's")
}

/// Different tables from all nodes at the same time: nothing hangs, everything is there, or the
/// statement fails with something an application can retry.
fn ddl_on_all_nodes_at_once(a: &Arena) -> Result<()> {
    let work = |id: usize| -> Result<()> {
        let session = a.on(id)?;
        for n in 0..10 {
            let sql = format!(
                "CREATE TABLE s_par_{id}_{n}(id int PRIMARY KEY); INSERT INTO s_par_{id}_{n} VALUES ({n})"
            );
            let mut tries = 0;
            while let Err(error) = session.run(&sql) {
                tries += 1;
                ensure!(
                    super::arena::is_retryable(&error) && tries < 100,
                    "node {id}, table {n}, try {tries}: {error}"
                );
            }
        }
        Ok(())
    };
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = a.ids().into_iter().map(|id| scope.spawn(move || work(id))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic in a writer"))
    })?;
    a.expect("SELECT count(*) FROM pg_class WHERE relname ~ '^s_par_._.$'", "30")
}

fn pgbench_init_on_any_node(a: &Arena) -> Result<()> {
    for id in [3, 1] {
        crate::bench::pgbench_init(a.cluster.node(id)?, 1, std::time::Duration::from_secs(120))?;
        a.expect("SELECT count(*) FROM pgbench_accounts", "100000")?;
    }
    let script = a.cluster.dir.join("pgbench-suite.sql");
    std::fs::write(&script, crate::bench::load::Script::update(100_000).text())?;
    let script = script.to_str().context("a path in UTF-8")?;
    let each = 500;
    let work = |id| pgbench(a, id, &["-f", script, "-c", "2", "-j", "2", "-t", &each.to_string()]);
    std::thread::scope(|scope| {
        let threads: Vec<_> = a.ids().into_iter().map(|id| scope.spawn(move || work(id))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic in a client"))
    })?;
    let all = 2 * each * a.ids().len();
    a.expect("SELECT sum(abalance) FROM pgbench_accounts", &all.to_string())?;
    for id in a.ids() {
        pgbench(a, id, &["-b", "tpcb-like", "-c", "2", "-t", "20"])?;
    }
    a.same("SELECT sum(abalance), (SELECT sum(bbalance) FROM pgbench_branches), (SELECT count(*) FROM pgbench_history) FROM pgbench_accounts")?;
    a.run(1, "DROP TABLE pgbench_accounts, pgbench_branches, pgbench_tellers, pgbench_history")?;
    Ok(())
}

/// Runs pgbench on a node; no transaction may fail. With -t: one that is under way when -T is over
/// is not tried again.
fn pgbench(a: &Arena, id: usize, options: &[&str]) -> Result<()> {
    let mut command = crate::host::client("pgbench");
    let port = a.cluster.node(id)?.port.to_string();
    command.args(["-h", "127.0.0.1", "-p", &port, "-U", crate::server::DATABASE, "-n"]);
    command.args(options).args(["--max-tries=1000", crate::server::DATABASE]);
    let said = crate::server::said_by(command, &format!("pgbench on node {id}"))?;
    ensure!(said.contains("number of failed transactions: 0 "), "pgbench on node {id}:\n{said}");
    Ok(())
}
