//! Tables of every kind: partitions, keys, triggers, identities, TRUNCATE and COPY.

use super::arena::{Arena, is_retryable};
use super::checks;
use crate::wait::until;
use anyhow::{Result, ensure};
use std::time::Duration;

checks!("tables":
    partitions,
    partition_attach_and_detach,
    row_moves_between_partitions,
    referenced_row_moves_between_partitions,
    inheritance,
    foreign_keys,
    foreign_key_cascades,
    parent_delete_against_child_insert,
    deferrable_unique,
    deferrable_foreign_key,
    deferred_violation_at_commit,
    triggers_fire_once,
    replica_and_always_triggers,
    triggers_of_every_kind_on_peers,
    deferred_constraint_triggers,
    rules_and_views,
    unlogged_tables_stay_local,
    tables_made_local,
    truncate,
    truncate_several_and_restart,
    truncate_and_insert_in_one_transaction,
    copy_in,
    row_security,
    expression_and_partial_indexes,
    applied_rows_are_counted,
);

fn partitions(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE p_part(id int, region text, v int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
         CREATE TABLE p_part_n PARTITION OF p_part FOR VALUES IN ('n');
         CREATE TABLE p_part_s PARTITION OF p_part FOR VALUES IN ('s') PARTITION BY RANGE (id);
         CREATE TABLE p_part_s1 PARTITION OF p_part_s FOR VALUES FROM (0) TO (100);
         CREATE TABLE p_part_s2 PARTITION OF p_part_s FOR VALUES FROM (100) TO (200);
         CREATE TABLE p_part_d PARTITION OF p_part DEFAULT",
    )?;
    a.run(2, "INSERT INTO p_part SELECT g, (ARRAY['n', 's', 'x'])[g % 3 + 1], g FROM generate_series(1, 150) g")?;
    a.run(3, "UPDATE p_part SET v = 0 WHERE id <= 10; DELETE FROM p_part WHERE id > 140")?;
    a.expect(
        "SELECT tableoid::regclass::text, count(*), sum(v) FROM p_part GROUP BY 1 ORDER BY 1",
        "p_part_d,47,3322;p_part_n,46,3225;p_part_s1,33,1595;p_part_s2,14,1673",
    )
}

fn partition_attach_and_detach(a: &Arena) -> Result<()> {
    a.run(
        2,
        "CREATE TABLE p_att(id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
         CREATE TABLE p_att1 PARTITION OF p_att FOR VALUES FROM (0) TO (10);
         CREATE TABLE p_att2(id int PRIMARY KEY, v int); INSERT INTO p_att2 VALUES (15, 1)",
    )?;
    a.run(1, "ALTER TABLE p_att ATTACH PARTITION p_att2 FOR VALUES FROM (10) TO (20)")?;
    a.run(3, "INSERT INTO p_att VALUES (5, 1), (16, 1)")?;
    a.run(2, "ALTER TABLE p_att DETACH PARTITION p_att1")?;
    a.run(1, "UPDATE p_att SET v = 2; UPDATE p_att1 SET v = 3")?;
    a.expect(
        "SELECT id, v FROM p_att UNION ALL SELECT id, v FROM p_att1 ORDER BY 1",
        "5,3;15,2;16,2",
    )
}

fn row_moves_between_partitions(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE p_move(id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
         CREATE TABLE p_move1 PARTITION OF p_move FOR VALUES FROM (0) TO (10);
         CREATE TABLE p_move2 PARTITION OF p_move FOR VALUES FROM (10) TO (20);
         INSERT INTO p_move VALUES (1, 1)",
    )?;
    a.run(2, "UPDATE p_move SET id = 11")?;
    a.expect("SELECT tableoid::regclass, id FROM p_move", "p_move2,11")
}

/// A move is a deletion and an insertion; children and triggers see what they do on one node.
fn referenced_row_moves_between_partitions(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE p_mref(id int, z text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
         CREATE TABLE p_mref1 PARTITION OF p_mref FOR VALUES FROM (0) TO (10);
         CREATE TABLE p_mref2(z text, dropped int, id int NOT NULL); ALTER TABLE p_mref2 DROP dropped;
         ALTER TABLE p_mref ATTACH PARTITION p_mref2 FOR VALUES FROM (10) TO (20);
         CREATE TABLE p_mref_c(id int PRIMARY KEY, parent int REFERENCES p_mref ON UPDATE CASCADE);
         CREATE TABLE p_mref_log(id serial PRIMARY KEY, what text);
         CREATE FUNCTION p_mref_f() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO p_mref_log(what) VALUES (tg_op || ' ' || tg_table_name); RETURN coalesce(new, old); END $$;
         CREATE TRIGGER t BEFORE INSERT OR UPDATE OR DELETE ON p_mref FOR EACH ROW EXECUTE FUNCTION p_mref_f();
         INSERT INTO p_mref VALUES (1, 'one'), (2, 'two'); INSERT INTO p_mref_c VALUES (1, 1), (2, 2); TRUNCATE p_mref_log",
    )?;
    a.run(2, "UPDATE p_mref SET id = id + 10")?;
    a.run(3, "UPDATE p_mref SET id = 1 WHERE id = 11")?;
    a.expect(
        "SELECT tableoid::regclass, id, z FROM p_mref ORDER BY id",
        "p_mref1,1,one;p_mref2,12,two",
    )?;
    a.expect("SELECT string_agg(parent::text, ' ' ORDER BY id) FROM p_mref_c", "1 12")?;
    a.expect(
        "SELECT what, count(*) FROM p_mref_log GROUP BY what ORDER BY what",
        "DELETE p_mref1,2;DELETE p_mref2,1;INSERT p_mref1,1;INSERT p_mref2,2;UPDATE p_mref1,2;UPDATE p_mref2,1",
    )
}

fn inheritance(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE p_inh(id int PRIMARY KEY); CREATE TABLE p_inh_child(x int, PRIMARY KEY (id)) INHERITS (p_inh)")?;
    a.run(2, "INSERT INTO p_inh VALUES (1); INSERT INTO p_inh_child VALUES (2, 2); UPDATE p_inh SET id = id + 10")?;
    a.expect("SELECT tableoid::regclass, id FROM p_inh ORDER BY id", "p_inh,11;p_inh_child,12")
}

fn foreign_keys(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE p_parent(id int PRIMARY KEY); CREATE TABLE p_child(id int PRIMARY KEY, parent int REFERENCES p_parent);
         INSERT INTO p_parent VALUES (1), (2)",
    )?;
    a.run(
        2,
        "BEGIN; INSERT INTO p_parent VALUES (3); INSERT INTO p_child VALUES (1, 3), (2, 1); COMMIT",
    )?;
    let error = a.on(3)?.refused("DELETE FROM p_parent WHERE id = 3")?;
    ensure!(error.state == "23503", "{error}");
    let error = a.on(1)?.refused("INSERT INTO p_child VALUES (3, 99)")?;
    ensure!(error.state == "23503", "{error}");
    a.expect("SELECT count(*) FROM p_parent JOIN p_child ON parent = p_parent.id", "2")
}

fn foreign_key_cascades(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE p_cas(id int PRIMARY KEY);
         CREATE TABLE p_cas_child(id int PRIMARY KEY, parent int REFERENCES p_cas ON DELETE CASCADE ON UPDATE CASCADE);
         CREATE TABLE p_cas_null(id int PRIMARY KEY, parent int REFERENCES p_cas ON DELETE SET NULL);
         INSERT INTO p_cas VALUES (1), (2); INSERT INTO p_cas_child VALUES (1, 1), (2, 1), (3, 2); INSERT INTO p_cas_null VALUES (1, 1)",
    )?;
    a.run(2, "DELETE FROM p_cas WHERE id = 1")?;
    a.run(3, "UPDATE p_cas SET id = 20 WHERE id = 2")?;
    a.expect("SELECT id, parent FROM p_cas_child", "3,20")?;
    a.expect("SELECT id, parent FROM p_cas_null", "1,~")
}

/// Deleting the parent on one node while its child is inserted on another: at most one of them
/// may happen, and no orphan may stay anywhere.
fn parent_delete_against_child_insert(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE p_race(id int PRIMARY KEY); CREATE TABLE p_race_child(id int PRIMARY KEY, parent int REFERENCES p_race);
         INSERT INTO p_race SELECT generate_series(1, 40)",
    )?;
    for id in 1..=40 {
        let (deleter, inserter) = (a.on(1)?, a.on(2)?);
        deleter.run(&format!("BEGIN; DELETE FROM p_race WHERE id = {id}"))?;
        inserter.run(&format!("BEGIN; INSERT INTO p_race_child VALUES ({id}, {id})"))?;
        let (deleted, inserted) =
            Arena::both(|| deleter.run("COMMIT").map(drop), || inserter.run("COMMIT").map(drop));
        ensure!(deleted.is_err() || inserted.is_err(), "parent {id} was deleted and got a child");
        for error in [deleted.err(), inserted.err()].into_iter().flatten() {
            ensure!(is_retryable(&error) || error.state == "23503", "{error}");
        }
        let orphans = "SELECT count(*) FROM p_race_child c WHERE NOT EXISTS (SELECT FROM p_race p WHERE p.id = c.parent)";
        a.expect(orphans, "0")?;
    }
    Ok(())
}

fn deferrable_unique(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE p_defer(id int PRIMARY KEY, n int, UNIQUE (n) DEFERRABLE INITIALLY DEFERRED);
         INSERT INTO p_defer SELECT g, g FROM generate_series(1, 10) g",
    )?;
    a.run(2, "BEGIN; UPDATE p_defer SET n = n + 1; COMMIT")?;
    a.run(3, "BEGIN; UPDATE p_defer SET n = 3 WHERE id = 1; UPDATE p_defer SET n = 2 WHERE id = 2; COMMIT")?;
    a.expect("SELECT sum(n), count(DISTINCT n) FROM p_defer", "65,10")
}

fn deferrable_foreign_key(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE p_dfk(id int PRIMARY KEY);
         CREATE TABLE p_dfk_child(id int PRIMARY KEY, parent int REFERENCES p_dfk DEFERRABLE INITIALLY DEFERRED)",
    )?;
    a.run(2, "BEGIN; INSERT INTO p_dfk_child VALUES (1, 1); INSERT INTO p_dfk VALUES (1); COMMIT")?;
    a.expect("SELECT count(*) FROM p_dfk JOIN p_dfk_child ON parent = p_dfk.id", "1")
}

fn deferred_violation_at_commit(a: &Arena) -> Result<()> {
    let session = a.on(3)?;
    session.run("BEGIN; INSERT INTO p_dfk_child VALUES (2, 99)")?;
    let error = session.refused("COMMIT")?;
    ensure!(error.state == "23503", "{error}");
    a.expect("SELECT count(*) FROM p_dfk_child", "1")
}

fn triggers_fire_once(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE p_trig(id int PRIMARY KEY, v int); CREATE TABLE p_trig_log(id serial PRIMARY KEY, row_id int, what text);
         CREATE FUNCTION p_trig_f() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO p_trig_log(row_id, what) VALUES (coalesce(new.id, old.id), tg_op); RETURN NULL; END $$;
         CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON p_trig FOR EACH ROW EXECUTE FUNCTION p_trig_f();
         CREATE FUNCTION p_trig_b() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN new.v := new.v + 1; RETURN new; END $$;
         CREATE TRIGGER b BEFORE INSERT OR UPDATE ON p_trig FOR EACH ROW EXECUTE FUNCTION p_trig_b()",
    )?;
    for id in a.ids() {
        a.run(
            id,
            &format!(
                "INSERT INTO p_trig VALUES ({id}, 0); UPDATE p_trig SET v = v WHERE id = {id}"
            ),
        )?;
    }
    a.run(2, "DELETE FROM p_trig WHERE id = 1")?;
    a.expect("SELECT id, v FROM p_trig ORDER BY id", "2,2;3,2")?;
    a.expect(
        "SELECT what, count(*) FROM p_trig_log GROUP BY what ORDER BY what",
        "DELETE,1;INSERT,3;UPDATE,3",
    )
}

/// ENABLE REPLICA fires only where rows are applied, ENABLE ALWAYS everywhere. What such triggers
/// write themselves stays on their node, so the counting is done in a local table.
fn replica_and_always_triggers(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE p_rep(id int PRIMARY KEY, mark text)")?;
    a.run(
        1,
        "CREATE FUNCTION p_rep_f() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN new.mark := coalesce(new.mark, '') || tg_argv[0]; RETURN new; END $$;
         CREATE TABLE p_rep_origin(id int PRIMARY KEY, mark text); CREATE TABLE p_rep_always(id int PRIMARY KEY, mark text);
         CREATE TRIGGER o BEFORE INSERT ON p_rep_origin FOR EACH ROW EXECUTE FUNCTION p_rep_f('o');
         CREATE TRIGGER a BEFORE INSERT ON p_rep_always FOR EACH ROW EXECUTE FUNCTION p_rep_f('a');
         ALTER TABLE p_rep_always ENABLE ALWAYS TRIGGER a;
         CREATE TRIGGER d BEFORE INSERT ON p_rep FOR EACH ROW EXECUTE FUNCTION p_rep_f('d');
         ALTER TABLE p_rep DISABLE TRIGGER d",
    )?;
    a.run(2, "INSERT INTO p_rep VALUES (1); INSERT INTO p_rep_origin VALUES (1); INSERT INTO p_rep_always VALUES (1)")?;
    a.expect("SELECT mark FROM p_rep", "~")?;
    a.expect("SELECT mark FROM p_rep_origin", "o")?;
    // Fired on the origin ('a' goes out with the row) and again wherever it is applied.
    let answers = [1, 2, 3].map(|id| a.ask(id, "SELECT mark FROM p_rep_always"));
    let answers: Vec<String> = answers.into_iter().collect::<Result<_>>()?;
    ensure!(answers == ["aa", "a", "aa"], "ENABLE ALWAYS: {answers:?}");
    // The difference was made on purpose; it must not disturb the comparison afterwards.
    a.run(1, "DROP TABLE p_rep_always")?;
    Ok(())
}

/// Each kind of trigger on each kind of change says into a local table that it fired.
fn triggers_of_every_kind_on_peers(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE UNLOGGED TABLE p_kind_log(n serial, what text);
         CREATE TABLE p_kind(id int PRIMARY KEY, v int, mark text);
         CREATE FUNCTION p_kind_log() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO p_kind_log(what) VALUES (tg_argv[0] || ' ' || tg_when || ' ' || tg_op);
           IF tg_when = 'BEFORE' AND tg_op = 'UPDATE' THEN new.v := new.v * 10; END IF;
           RETURN coalesce(new, old); END $$",
    )?;
    for (name, how) in [("r", "REPLICA"), ("a", "ALWAYS")] {
        for when in ["BEFORE", "AFTER"] {
            let trigger = format!("{name}_{}", when.to_lowercase());
            a.run(
                2,
                &format!(
                    "CREATE TRIGGER {trigger} {when} INSERT OR UPDATE OR DELETE ON p_kind FOR EACH ROW
                       EXECUTE FUNCTION p_kind_log('{name}');
                     ALTER TABLE p_kind ENABLE {how} TRIGGER {trigger}"
                ),
            )?;
        }
    }
    a.run(2, "CREATE TRIGGER never BEFORE INSERT ON p_kind FOR EACH ROW EXECUTE FUNCTION p_kind_log('origin')")?;
    a.run(3, "INSERT INTO p_kind VALUES (1, 1); UPDATE p_kind SET v = 2; DELETE FROM p_kind; INSERT INTO p_kind VALUES (2, 1)")?;
    let kinds = |names: &[&str]| {
        let mut all: Vec<String> = Vec::new();
        for name in names {
            for when in ["AFTER", "BEFORE"] {
                all.extend(
                    [("DELETE", 1), ("INSERT", 2), ("UPDATE", 1)]
                        .map(|(op, n)| format!("{name} {when} {op},{n}")),
                );
            }
        }
        all
    };
    let asked = "SELECT what, count(*) FROM p_kind_log GROUP BY what ORDER BY what";
    for (node, mut expected) in
        [(1, kinds(&["a", "r"])), (2, kinds(&["a", "r"])), (3, kinds(&["a"]))]
    {
        if node == 3 {
            expected.push("origin BEFORE INSERT,2".to_owned());
        }
        let answer = a.ask(node, asked)?;
        ensure!(answer == expected.join(";"), "node {node}: {answer}");
    }
    a.run(2, "UPDATE p_kind SET v = 3")?;
    // 3 becomes 30 by ENABLE ALWAYS on the origin, and where it arrives 3000 by the two of them.
    for (node, v) in [(1, "3000"), (2, "30"), (3, "3000")] {
        let answer = a.ask(node, "SELECT v FROM p_kind")?;
        ensure!(answer == v, "node {node} has {answer}");
    }
    // The difference was made on purpose; it must not disturb the comparison afterwards.
    a.run(1, "DROP TABLE p_kind")?;
    Ok(())
}

fn deferred_constraint_triggers(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE p_ctrig(id int PRIMARY KEY); CREATE TABLE p_ctrig_sum(id int PRIMARY KEY, n int); INSERT INTO p_ctrig_sum VALUES (1, 0);
         CREATE FUNCTION p_ctrig_f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE p_ctrig_sum SET n = n + 1; RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER c AFTER INSERT ON p_ctrig DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION p_ctrig_f()",
    )?;
    a.run(2, "BEGIN; INSERT INTO p_ctrig VALUES (1), (2); COMMIT")?;
    a.run(3, "INSERT INTO p_ctrig VALUES (3)")?;
    a.expect("SELECT n FROM p_ctrig_sum", "3")
}

fn rules_and_views(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE p_rule(id int PRIMARY KEY, v int); CREATE VIEW p_view AS SELECT * FROM p_rule WHERE v > 0 WITH CHECK OPTION;
         CREATE TABLE p_rule_log(id int); CREATE RULE r AS ON INSERT TO p_rule DO ALSO INSERT INTO p_rule_log VALUES (new.id)",
    )?;
    a.run(2, "INSERT INTO p_view VALUES (1, 1); UPDATE p_view SET v = 5")?;
    a.expect("SELECT v, (SELECT count(*) FROM p_rule_log) FROM p_rule", "5,1")
}

fn unlogged_tables_stay_local(a: &Arena) -> Result<()> {
    a.run(1, "CREATE UNLOGGED TABLE p_unlogged(id int PRIMARY KEY); CREATE TABLE p_logged(id int PRIMARY KEY)")?;
    a.run(2, "BEGIN; INSERT INTO p_unlogged VALUES (1); INSERT INTO p_logged VALUES (1); COMMIT; INSERT INTO p_unlogged VALUES (2)")?;
    a.expect("SELECT count(*) FROM p_logged", "1")?;
    ensure!(a.ask(2, "SELECT count(*) FROM p_unlogged")? == "2", "own rows are missing");
    ensure!(a.ask(1, "SELECT count(*) FROM p_unlogged")? == "0", "unlogged rows went to a peer");
    Ok(())
}

fn tables_made_local(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE local_table(id int PRIMARY KEY)")?;
    a.run(1, "SELECT mtm.make_table_local('local_table')")?;
    for id in a.ids() {
        a.run(id, "INSERT INTO local_table VALUES (1)")?;
    }
    a.run(2, "INSERT INTO local_table VALUES (2)")?;
    ensure!(a.ask(1, "SELECT count(*) FROM local_table")? == "1", "a local table is replicated");
    Ok(())
}

fn truncate(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE p_trunc(id int PRIMARY KEY); INSERT INTO p_trunc SELECT generate_series(1, 100)")?;
    a.run(2, "TRUNCATE p_trunc")?;
    a.expect("SELECT count(*) FROM p_trunc", "0")?;
    a.run(3, "BEGIN; INSERT INTO p_trunc VALUES (1); TRUNCATE p_trunc; ROLLBACK; INSERT INTO p_trunc VALUES (2)")?;
    a.expect("SELECT id FROM p_trunc", "2")
}

fn truncate_several_and_restart(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE p_tr_a(id serial PRIMARY KEY); CREATE TABLE p_tr_b(id int PRIMARY KEY, a int REFERENCES p_tr_a);
         INSERT INTO p_tr_a DEFAULT VALUES; INSERT INTO p_tr_b SELECT 1, min(id) FROM p_tr_a",
    )?;
    a.run(2, "TRUNCATE p_tr_a RESTART IDENTITY CASCADE")?;
    a.expect("SELECT (SELECT count(*) FROM p_tr_a) + (SELECT count(*) FROM p_tr_b)", "0")?;
    for id in a.ids() {
        a.run(id, "INSERT INTO p_tr_a DEFAULT VALUES")?;
    }
    a.expect("SELECT count(DISTINCT id) FROM p_tr_a", "3")
}

fn truncate_and_insert_in_one_transaction(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE p_tri(id int PRIMARY KEY); INSERT INTO p_tri VALUES (1), (2)")?;
    a.run(2, "BEGIN; INSERT INTO p_tri VALUES (3); TRUNCATE p_tri; INSERT INTO p_tri VALUES (4), (5); COMMIT")?;
    a.expect("SELECT id FROM p_tri ORDER BY id", "4;5")
}

fn copy_in(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE p_copy(id int PRIMARY KEY, v text, n serial)")?;
    let data: String = (1..=5000).map(|id| format!("{id}\tvalue {id}\n")).collect();
    let copied = a.on(2)?.copy_in("COPY p_copy(id, v) FROM STDIN", &data)?;
    ensure!(copied == 5000, "{copied} rows copied");
    let all = a.same("SELECT count(*), sum(id), count(DISTINCT n), md5(string_agg(v, '' ORDER BY id)) FROM p_copy")?;
    ensure!(all.starts_with("5000,12502500,5000,"), "{all}");
    let session = a.on(3)?;
    let error = session.copy_in("COPY p_copy(id, v) FROM STDIN", "6000\tx\n1\ty\n");
    ensure!(error.is_err_and(|error| error.state == "23505"), "a duplicate was copied");
    session.run("BEGIN; TRUNCATE p_copy")?;
    session.copy_in("COPY p_copy(id, v) FROM STDIN WITH (FREEZE)", "1\tx\n")?;
    session.run("COMMIT")?;
    a.expect("SELECT id, v FROM p_copy", "1,x")
}

/// Policies decide what a user may write on the origin; applying is not subject to them.
fn row_security(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE ROLE p_user; CREATE TABLE p_policy(id int PRIMARY KEY, owner text); GRANT ALL ON p_policy TO p_user;
         ALTER TABLE p_policy ENABLE ROW LEVEL SECURITY; ALTER TABLE p_policy FORCE ROW LEVEL SECURITY;
         CREATE POLICY own ON p_policy USING (owner = current_user)",
    )?;
    let session = a.on(2)?;
    session.run("SET ROLE p_user; INSERT INTO p_policy VALUES (1, 'p_user')")?;
    let error = session.refused("INSERT INTO p_policy VALUES (2, 'somebody')")?;
    ensure!(error.state == "42501", "{error}");
    a.expect("SELECT id, owner FROM p_policy", "1,p_user")
}

fn expression_and_partial_indexes(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE p_expr(id int PRIMARY KEY, v text, deleted bool DEFAULT false);
         CREATE UNIQUE INDEX ON p_expr (lower(v)) WHERE NOT deleted",
    )?;
    a.run(2, "INSERT INTO p_expr VALUES (1, 'Key'), (2, 'other')")?;
    let error = a.on(3)?.refused("INSERT INTO p_expr VALUES (3, 'KEY')")?;
    ensure!(error.state == "23505", "{error}");
    a.run(
        3,
        "UPDATE p_expr SET deleted = true WHERE id = 1; INSERT INTO p_expr VALUES (3, 'KEY')",
    )?;
    a.expect("SELECT id, deleted FROM p_expr ORDER BY id", "1,t;2,f;3,f")?;
    for id in a.ids() {
        a.run(
            id,
            "SET enable_seqscan = off; SELECT FROM p_expr WHERE lower(v) = 'key' AND NOT deleted",
        )?;
    }
    Ok(())
}

/// Autovacuum works on peers only if they count what they apply.
fn applied_rows_are_counted(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE p_count(id int PRIMARY KEY, v int)")?;
    a.run(2, "INSERT INTO p_count SELECT g, g FROM generate_series(1, 500) g")?;
    a.run(3, "BEGIN; INSERT INTO p_count VALUES (1000, 0); TRUNCATE p_count; ROLLBACK")?;
    a.run(2, "UPDATE p_count SET v = 0 WHERE id <= 50; DELETE FROM p_count WHERE id > 490")?;
    for id in a.ids() {
        until("the rows are counted", Duration::from_secs(10), || {
            // Whoever applies reports at most once a second, some only when more comes.
            a.can_write()?;
            let counted = a.ask(
                id,
                "SELECT n_tup_ins >= 500, n_tup_upd, n_tup_del, n_live_tup > 0
                   FROM pg_stat_user_tables WHERE relname = 'p_count'",
            )?;
            ensure!(counted == "t,50,10,t", "node {id} has counted {counted}");
            Ok(Some(()))
        })?;
    }
    Ok(())
}
