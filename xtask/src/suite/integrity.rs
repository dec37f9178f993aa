//! Constraints that are checked at the end of a transaction, here and on the peers: what is right
//! goes through everywhere, what is wrong nowhere.

use super::arena::{Arena, is_retryable};
use super::checks;
use super::foreign::race;
use crate::session::Session;
use crate::wait::until;
use anyhow::{Context, Result, ensure};
use std::time::Duration;

checks!("integrity":
    peers_look_for_themselves,
    prepared_child_holds_its_parent,
    right_orders_go_through,
    replaced_parents_go_through,
    schema_changes_in_between,
    nulls_and_partial_keys,
    constraints_switched_off,
    parent_is_seen_at_once,
    freed_parent_is_seen_at_once,
    busy_parent_is_not_waited_for,
    users_defaults_do_not_matter,
    values_swapped,
    duplicates_among_nodes,
    exclusion_among_nodes,
);

/// Rows that only one node has, made by an unsupervised session, stand for what the others do not
/// know yet: that node refuses.
fn peers_look_for_themselves(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_own(id int PRIMARY KEY); CREATE TABLE i_own_c(id int PRIMARY KEY, parent int REFERENCES i_own ON DELETE CASCADE);
         CREATE TABLE i_own_u(id int PRIMARY KEY, n int UNIQUE DEFERRABLE INITIALLY DEFERRED);
         INSERT INTO i_own VALUES (1), (2)",
    )?;
    let alone = a.on(3)?;
    alone.run("SET application_name = mtm_admin")?;
    let refused = |sql: &str, state: &str| {
        let error = a.on(1)?.refused(sql)?;
        ensure!(error.state == state && error.detail.contains("Node 3 refused"), "{error}");
        anyhow::Ok(())
    };
    alone.run("INSERT INTO i_own_c VALUES (1, 1)")?;
    refused("DELETE FROM i_own WHERE id = 1", "40001")?;
    refused("UPDATE i_own SET id = 10 WHERE id = 1", "40001")?;
    alone.run("DELETE FROM i_own_c; DELETE FROM i_own WHERE id = 2")?;
    refused("INSERT INTO i_own_c VALUES (2, 2)", "40001")?;
    alone.run("INSERT INTO i_own VALUES (2); INSERT INTO i_own_u VALUES (1, 1)")?;
    refused("INSERT INTO i_own_u VALUES (2, 1)", "23505")?;
    alone.run("DELETE FROM i_own_u")?;
    a.run(
        1,
        "CREATE TABLE i_ownp(id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE i_ownp1 PARTITION OF i_ownp FOR VALUES FROM (0) TO (10);
         CREATE TABLE i_ownp_c(id int, parent int REFERENCES i_ownp) PARTITION BY RANGE (id);
         CREATE TABLE i_ownp_c1 PARTITION OF i_ownp_c FOR VALUES FROM (0) TO (10);
         INSERT INTO i_ownp VALUES (1), (2)",
    )?;
    alone.run("INSERT INTO i_ownp_c VALUES (1, 1)")?;
    refused("DELETE FROM i_ownp WHERE id = 1", "40001")?;
    alone.run("DELETE FROM i_ownp_c; DELETE FROM i_ownp WHERE id = 2")?;
    refused("INSERT INTO i_ownp_c VALUES (2, 2)", "40001")?;
    refused("INSERT INTO i_ownp_c SELECT 2, g % 2 + 1 FROM generate_series(1, 500) g", "40001")?;
    alone.run("INSERT INTO i_ownp VALUES (2)")?;
    a.run(1, "INSERT INTO i_ownp_c SELECT 2, g % 2 + 1 FROM generate_series(1, 500) g; DELETE FROM i_ownp_c")?;
    a.run(
        1,
        "INSERT INTO i_own_u VALUES (2, 1); INSERT INTO i_own_c VALUES (2, 2); DELETE FROM i_own",
    )?;
    a.expect("SELECT count(*) FROM i_own_c", "0")
}

/// Whoever is prepared must be able to commit: its parent cannot go on any node, while other
/// columns of the parent are free.
fn prepared_child_holds_its_parent(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_2pc(id int PRIMARY KEY, v int);
         CREATE TABLE i_2pcp(id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
         CREATE TABLE i_2pcp1 PARTITION OF i_2pcp FOR VALUES FROM (0) TO (10)",
    )?;
    for parent in ["i_2pc", "i_2pcp"] {
        a.run(1, &format!("CREATE TABLE {parent}_c(id int PRIMARY KEY, parent int REFERENCES {parent}); INSERT INTO {parent} VALUES (1, 0)"))?;
        a.run(
            1,
            &format!(
                "BEGIN; INSERT INTO {parent}_c VALUES (1, 1); PREPARE TRANSACTION 'user-child'"
            ),
        )?;
        for node in a.ids() {
            let error = a
                .on(node)?
                .refused(&format!("SELECT FROM {parent} WHERE id = 1 FOR UPDATE NOWAIT"))?;
            ensure!(error.state == "55P03", "node {node}: {error}");
        }
        a.run(2, &format!("UPDATE {parent} SET v = 1"))?;
        a.run(1, "COMMIT PREPARED 'user-child'")?;
        let error = a.on(3)?.refused(&format!("DELETE FROM {parent}"))?;
        ensure!(error.state == "23503", "{error}");
        a.expect(&format!("SELECT v, (SELECT count(*) FROM {parent}_c) FROM {parent}"), "1,1")?;
    }
    Ok(())
}

/// Children before parents, rows that refer to themselves and to each other: all that is allowed.
fn right_orders_go_through(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_ord(id int PRIMARY KEY);
         CREATE TABLE i_ord_c(id int PRIMARY KEY, parent int REFERENCES i_ord DEFERRABLE INITIALLY DEFERRED);
         CREATE TABLE i_ord_s(id int PRIMARY KEY, parent int NOT NULL REFERENCES i_ord_s);
         CREATE TABLE i_egg(id int PRIMARY KEY, hen int); CREATE TABLE i_hen(id int PRIMARY KEY, egg int REFERENCES i_egg);
         ALTER TABLE i_egg ADD FOREIGN KEY (hen) REFERENCES i_hen DEFERRABLE",
    )?;
    a.run(2, "BEGIN; INSERT INTO i_ord_c VALUES (1, 1); INSERT INTO i_ord VALUES (1); COMMIT")?;
    a.run(
        3,
        "BEGIN; INSERT INTO i_ord_c VALUES (2, 99); DELETE FROM i_ord_c WHERE id = 2; COMMIT",
    )?;
    a.run(3, "BEGIN; INSERT INTO i_ord_c VALUES (2, 99); UPDATE i_ord_c SET parent = 1 WHERE id = 2; COMMIT")?;
    a.run(1, "INSERT INTO i_ord_s VALUES (1, 3), (2, 1), (3, 2), (4, 4)")?;
    a.run(2, "DELETE FROM i_ord_s WHERE id <= 3")?;
    a.run(3, "DELETE FROM i_ord_s")?;
    a.run(
        2,
        "BEGIN; SET CONSTRAINTS ALL DEFERRED; INSERT INTO i_egg VALUES (1, 1); INSERT INTO i_hen VALUES (1, 1); COMMIT",
    )?;
    a.run(
        3,
        "WITH e AS (DELETE FROM i_egg RETURNING id) DELETE FROM i_hen USING e WHERE egg = e.id",
    )?;
    a.expect("SELECT (SELECT count(*) FROM i_egg) + (SELECT count(*) FROM i_hen)", "0")?;
    a.expect("SELECT count(*) FROM i_ord_c JOIN i_ord ON i_ord.id = parent", "2")
}

/// A parent that is deleted and stored again, or that another row takes the place of, is there.
fn replaced_parents_go_through(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_rep(id int PRIMARY KEY, k int UNIQUE DEFERRABLE INITIALLY DEFERRED, n int UNIQUE);
         CREATE TABLE i_rep_c(id int PRIMARY KEY, parent int REFERENCES i_rep (n) DEFERRABLE INITIALLY DEFERRED);
         INSERT INTO i_rep VALUES (1, 1, 1), (2, 2, 2), (3, 3, 3); INSERT INTO i_rep_c VALUES (1, 1), (2, 2)",
    )?;
    a.run(
        2,
        "BEGIN; DELETE FROM i_rep WHERE id = 1; INSERT INTO i_rep VALUES (10, 10, 1); COMMIT",
    )?;
    a.run(
        3,
        "BEGIN; UPDATE i_rep SET n = 20 WHERE n = 2; UPDATE i_rep SET n = 2 WHERE n = 3; COMMIT",
    )?;
    a.run(
        1,
        "CREATE TABLE i_rpp(id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE i_rpp1 PARTITION OF i_rpp FOR VALUES FROM (0) TO (10);
         CREATE TABLE i_rpp2 PARTITION OF i_rpp FOR VALUES FROM (10) TO (20);
         CREATE TABLE i_rppc(id int PRIMARY KEY, parent int REFERENCES i_rpp ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED);
         INSERT INTO i_rpp VALUES (1), (2); INSERT INTO i_rppc VALUES (1, 1), (2, 2)",
    )?;
    a.run(3, "UPDATE i_rpp SET id = 11 WHERE id = 1")?;
    a.run(2, "BEGIN; DELETE FROM i_rpp WHERE id = 2; INSERT INTO i_rpp VALUES (2); COMMIT")?;
    a.expect("SELECT string_agg(parent::text, ' ' ORDER BY id) FROM i_rppc", "11 2")?;
    a.expect("SELECT string_agg(i_rep.id::text, ' ' ORDER BY i_rep.id) FROM i_rep_c JOIN i_rep ON n = parent", "3 10")
}

/// Schema changes and TRUNCATE move the rows that are still to be checked, or take them away.
fn schema_changes_in_between(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_ddl(id int PRIMARY KEY);
         CREATE TABLE i_ddl_c(id int PRIMARY KEY, parent int REFERENCES i_ddl, later int REFERENCES i_ddl DEFERRABLE);
         CREATE TABLE i_ddl_u(id int PRIMARY KEY, n int UNIQUE DEFERRABLE);
         INSERT INTO i_ddl VALUES (1), (2)",
    )?;
    a.run(
        2,
        "BEGIN; INSERT INTO i_ddl_c VALUES (1, 1, 2); ALTER TABLE i_ddl_c ADD v text DEFAULT clock_timestamp()::text;
         INSERT INTO i_ddl_c VALUES (2, 2, 1); ALTER TABLE i_ddl_c DROP v; COMMIT",
    )?;
    a.run(
        3,
        "BEGIN; INSERT INTO i_ddl_c SELECT g, 2, 2 FROM generate_series(1000, 5000) g; DELETE FROM i_ddl_c WHERE id >= 1000;
         INSERT INTO i_ddl_c VALUES (1000, 2, 2); ALTER TABLE i_ddl_c ALTER id TYPE bigint; COMMIT",
    )?;
    a.run(
        3,
        "BEGIN; INSERT INTO i_ddl_c VALUES (3, 1, 1); DELETE FROM i_ddl_c; DELETE FROM i_ddl WHERE id = 1;
         ALTER TABLE i_ddl ALTER id TYPE bigint; TRUNCATE i_ddl_c; INSERT INTO i_ddl_c VALUES (4, 2, 2); COMMIT",
    )?;
    a.run(
        1,
        "BEGIN; INSERT INTO i_ddl_u VALUES (1, 1), (2, 2); UPDATE i_ddl_u SET n = 3 - n; TRUNCATE i_ddl_u;
         INSERT INTO i_ddl_u VALUES (3, 3), (4, 4); UPDATE i_ddl_u SET n = 7 - n; ALTER TABLE i_ddl_u ALTER n TYPE bigint; COMMIT",
    )?;
    a.run(
        2,
        "BEGIN; CREATE TABLE i_ddl_new(id int PRIMARY KEY); CREATE TABLE i_ddl_new_c(id int PRIMARY KEY, parent int REFERENCES i_ddl_new DEFERRABLE);
         INSERT INTO i_ddl_new VALUES (1), (2); INSERT INTO i_ddl_new_c SELECT g, g % 2 + 1 FROM generate_series(1, 2000) g;
         TRUNCATE i_ddl_new_c; INSERT INTO i_ddl_new_c VALUES (1, 1); COMMIT",
    )?;
    a.run(
        3,
        "BEGIN; INSERT INTO i_ddl_new_c VALUES (2, 2); DELETE FROM i_ddl_new_c; DELETE FROM i_ddl_new;
         DROP TABLE i_ddl_new_c; DROP TABLE i_ddl_new; COMMIT",
    )?;
    a.run(
        2,
        "CREATE TABLE i_ddl_d(id int PRIMARY KEY, n int CONSTRAINT i_ddl_dn UNIQUE DEFERRABLE, p int CONSTRAINT i_ddl_dp REFERENCES i_ddl DEFERRABLE);
         INSERT INTO i_ddl_d VALUES (1, 1, 2), (2, 2, 2)",
    )?;
    a.run(
        1,
        "BEGIN; UPDATE i_ddl_d SET n = 3 - n, p = NULL; UPDATE i_ddl_d SET p = 2; ALTER TABLE i_ddl_d DROP CONSTRAINT i_ddl_dn;
         ALTER TABLE i_ddl_d DROP CONSTRAINT i_ddl_dp; DELETE FROM i_ddl_c; DELETE FROM i_ddl; INSERT INTO i_ddl VALUES (2);
         INSERT INTO i_ddl_c VALUES (4, 2, 2); COMMIT",
    )?;
    a.expect("SELECT id, parent, later FROM i_ddl_c", "4,2,2")?;
    a.expect("SELECT string_agg(n::text, ' ' ORDER BY id) FROM i_ddl_u", "4 3")
}

fn nulls_and_partial_keys(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_null(a int, b int, PRIMARY KEY (a, b));
         CREATE TABLE i_null_s(id int PRIMARY KEY, a int, b int, FOREIGN KEY (a, b) REFERENCES i_null);
         CREATE TABLE i_null_f(id int PRIMARY KEY, a int, b int, FOREIGN KEY (a, b) REFERENCES i_null MATCH FULL);
         INSERT INTO i_null VALUES (1, 1)",
    )?;
    a.run(2, "INSERT INTO i_null_s VALUES (1, NULL, 5), (2, NULL, NULL), (3, 1, 1); INSERT INTO i_null_f VALUES (1, NULL, NULL), (2, 1, 1)")?;
    a.run(3, "UPDATE i_null_s SET a = 7 WHERE id = 2; UPDATE i_null_s SET b = NULL WHERE id = 3; UPDATE i_null_f SET a = NULL, b = NULL")?;
    a.run(1, "DELETE FROM i_null")?;
    a.expect("SELECT count(*) FROM i_null_s JOIN i_null_f USING (id)", "2")
}

/// Who loads data with the checks switched off may store children first.
fn constraints_switched_off(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_off(id int PRIMARY KEY); CREATE TABLE i_off_c(id int PRIMARY KEY, parent int REFERENCES i_off)",
    )?;
    a.run(2, "SET session_replication_role = replica; INSERT INTO i_off_c VALUES (1, 1)")?;
    a.run(3, "BEGIN; SET LOCAL session_replication_role = replica; INSERT INTO i_off_c VALUES (2, 2); COMMIT")?;
    a.run(1, "ALTER TABLE i_off_c DISABLE TRIGGER ALL; INSERT INTO i_off_c VALUES (3, 3); ALTER TABLE i_off_c ENABLE TRIGGER ALL")?;
    a.run(2, "INSERT INTO i_off VALUES (1), (2), (3)")?;
    a.run(3, "SET session_replication_role = replica; DELETE FROM i_off WHERE id = 3")?;
    a.expect("SELECT (SELECT count(*) FROM i_off), (SELECT count(*) FROM i_off_c)", "2,3")
}

/// Sessions of a node that do not wait for the others' commits.
fn hasty(a: &Arena, node: usize) -> Result<Session> {
    let session = a.on(node)?;
    session.run("SET multimaster.wait_peer_commits = off")?;
    Ok(session)
}

/// What is committed on a child's node is there for the child, although another node may still be
/// about to commit the parent.
fn parent_is_seen_at_once(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_soon(id int PRIMARY KEY, v int); CREATE TABLE i_soon_c(id int PRIMARY KEY, parent int REFERENCES i_soon);
         CREATE TABLE i_soonp(id int PRIMARY KEY, v int) PARTITION BY HASH (id);
         CREATE TABLE i_soonp0 PARTITION OF i_soonp FOR VALUES WITH (MODULUS 2, REMAINDER 0);
         CREATE TABLE i_soonp1 PARTITION OF i_soonp FOR VALUES WITH (MODULUS 2, REMAINDER 1);
         CREATE TABLE i_soonp_c(id int PRIMARY KEY, parent int REFERENCES i_soonp)",
    )?;
    let (one, two) = (hasty(a, 1)?, hasty(a, 1)?);
    for id in 1..=150 {
        for parent in ["i_soon", "i_soonp"] {
            one.run(&format!("INSERT INTO {parent} VALUES ({id}, 0)"))?;
            two.run(&format!("INSERT INTO {parent}_c VALUES ({id}, {id})"))
                .with_context(|| format!("child {id} of a parent just stored"))?;
        }
    }
    // These sessions did not wait for the others.
    until("every node has what was committed", Duration::from_secs(20), || {
        let rows = "SELECT (SELECT count(*) FROM i_soon_c), (SELECT count(*) FROM i_soonp_c)";
        a.expect(rows, "150,150").map(Some)
    })
}

/// The other way round: the last child has just gone, or has just got another parent.
fn freed_parent_is_seen_at_once(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_free(id int PRIMARY KEY); CREATE TABLE i_free_c(id int PRIMARY KEY, parent int REFERENCES i_free);
         INSERT INTO i_free SELECT generate_series(0, 200); INSERT INTO i_free_c SELECT g, g FROM generate_series(1, 200) g",
    )?;
    let (one, two) = (hasty(a, 2)?, hasty(a, 2)?);
    for id in 1..=200 {
        let change = match id % 2 {
            0 => format!("UPDATE i_free_c SET parent = 0 WHERE id = {id}"),
            _ => format!("DELETE FROM i_free_c WHERE id = {id}"),
        };
        one.run(&change)?;
        two.run(&format!("DELETE FROM i_free WHERE id = {id}"))
            .with_context(|| format!("parent {id}, whose child has just gone"))?;
    }
    // These sessions did not wait for the others.
    until("every node has what was committed", Duration::from_secs(20), || {
        let rows = "SELECT (SELECT count(*) FROM i_free), (SELECT count(*) FROM i_free_c)";
        a.expect(rows, "1,100").map(Some)
    })
}

/// A transaction that changes a parent's other columns, and does not end, is in no child's way.
fn busy_parent_is_not_waited_for(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_busy(id int PRIMARY KEY, v int); CREATE INDEX ON i_busy (v); INSERT INTO i_busy VALUES (1, 0);
         CREATE TABLE i_busy_c(id int PRIMARY KEY, parent int REFERENCES i_busy)",
    )?;
    let holder = a.on(2)?;
    holder.run("BEGIN; UPDATE i_busy SET v = 1 WHERE id = 1")?;
    for node in [1, 3] {
        let session = a.on(node)?;
        session.run("SET statement_timeout = '5s'")?;
        session.run(&format!("INSERT INTO i_busy_c VALUES ({node}, 1)"))?;
    }
    holder.run("COMMIT")?;
    a.expect("SELECT v, (SELECT count(*) FROM i_busy_c) FROM i_busy", "1,2")
}

/// What transactions are by default is for users' sessions, not for what applies.
fn users_defaults_do_not_matter(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_def(id int PRIMARY KEY); CREATE TABLE i_def_c(id int PRIMARY KEY, parent int REFERENCES i_def);
         INSERT INTO i_def SELECT generate_series(1, 10); INSERT INTO i_def_c VALUES (100, 10)",
    )?;
    let set = |verb: &str, values: [&str; 2]| -> Result<()> {
        for id in a.ids() {
            for (name, value) in ["default_transaction_isolation", "default_transaction_read_only"]
                .iter()
                .zip(values)
            {
                a.run(id, &format!("ALTER SYSTEM {verb} {name}{value}"))?;
            }
            a.run(id, "SELECT pg_reload_conf()")?;
        }
        Ok(())
    };
    set("SET", [" = 'repeatable read'", " = on"])?;
    let work = || -> Result<()> {
        for node in a.ids() {
            let session = a.on(node)?;
            session.run(
                "SET default_transaction_read_only = off; SET multimaster.wait_peer_commits = off",
            )?;
            for n in 0..20 {
                let id = node * 1000 + n;
                session.run(&format!("INSERT INTO i_def VALUES ({id})"))?;
                session.run(&format!("INSERT INTO i_def_c VALUES ({id}, {id})"))?;
                session.run(&format!("DELETE FROM i_def_c WHERE id = {id}"))?;
                session.run(&format!("DELETE FROM i_def WHERE id = {id}"))?;
            }
        }
        Ok(())
    };
    let worked = work();
    // ALTER SYSTEM is possible in a read-only transaction.
    set("RESET", ["", ""])?;
    worked
}

fn values_swapped(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE EXTENSION IF NOT EXISTS btree_gist;
         CREATE TABLE i_swap(id int PRIMARY KEY, n int UNIQUE DEFERRABLE, r int4range, EXCLUDE USING gist (r WITH &&) DEFERRABLE INITIALLY DEFERRED);
         INSERT INTO i_swap SELECT g, g, int4range(g * 10, g * 10 + 10) FROM generate_series(1, 10) g",
    )?;
    a.run(2, "UPDATE i_swap SET n = 11 - n, r = int4range(110 - id * 10, 120 - id * 10)")?;
    a.run(3, "BEGIN; UPDATE i_swap SET r = '[10,20)' WHERE id = 9; UPDATE i_swap SET r = '[20,30)' WHERE id = 10; COMMIT")?;
    a.expect(
        "SELECT string_agg(n || ':' || lower(r), ' ' ORDER BY id) FROM i_swap",
        "10:100 9:90 8:80 7:70 6:60 5:50 4:40 3:30 2:10 1:20",
    )
}

fn at_most_one(a: &Arena, rounds: u32, one: &str, two: &str, count: &str) -> Result<()> {
    let mut won = 0;
    for round in 1..=rounds {
        let fill = |sql: &str| sql.replace("{}", &round.to_string());
        let outcomes = race(a, &fill(one), &fill(two))?;
        for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            let known = is_retryable(error) || ["23505", "23P01"].contains(&error.state.as_str());
            ensure!(known, "round {round}: the loser got {error}");
        }
        let winners = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        ensure!(winners < 2, "round {round}: both were committed");
        won += winners;
        a.expect(&fill(count), &winners.to_string())?;
    }
    ensure!(won as u32 * 2 >= rounds, "only {won} of {rounds} races had a winner");
    Ok(())
}

/// The same value of a deferrable unique constraint from two nodes: inserted, and by an update.
fn duplicates_among_nodes(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_dup(id int PRIMARY KEY, n int UNIQUE DEFERRABLE INITIALLY DEFERRED);
         INSERT INTO i_dup SELECT 1000 + g FROM generate_series(1, 10) g",
    )?;
    let count = "SELECT count(*) FROM i_dup WHERE n = {}";
    at_most_one(
        a,
        10,
        "INSERT INTO i_dup VALUES ({}, {})",
        "INSERT INTO i_dup VALUES (100 + {}, {})",
        count,
    )?;
    a.run(3, "UPDATE i_dup SET n = NULL")?;
    at_most_one(
        a,
        10,
        "UPDATE i_dup SET n = {} WHERE id = 1000 + {}",
        "INSERT INTO i_dup VALUES (200 + {}, {})",
        count,
    )
}

/// Ranges that overlap, from two nodes, with the check at once and at the end.
fn exclusion_among_nodes(a: &Arena) -> Result<()> {
    for (name, when) in [("i_ex", ""), ("i_exd", "DEFERRABLE INITIALLY DEFERRED")] {
        a.run(
            1,
            &format!("CREATE TABLE {name}(id int PRIMARY KEY, r int4range, EXCLUDE USING gist (r WITH &&) {when})"),
        )?;
        at_most_one(
            a,
            10,
            &format!("INSERT INTO {name} VALUES ({{}}, int4range({{}} * 10, {{}} * 10 + 6))"),
            &format!(
                "INSERT INTO {name} VALUES (100 + {{}}, int4range({{}} * 10 + 3, {{}} * 10 + 9))"
            ),
            &format!("SELECT count(*) FROM {name} WHERE r && int4range({{}} * 10, {{}} * 10 + 9)"),
        )?;
    }
    Ok(())
}
