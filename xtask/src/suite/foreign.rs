//! Foreign keys against other nodes: parents go while children come.

use super::arena::{Arena, is_retryable};
use super::checks;
use crate::session::SqlError;
use anyhow::{Context, Result, ensure};
use std::sync::atomic::{AtomicU64, Ordering};

checks!("foreign":
    parent_against_child,
    parent_key_update_against_child,
    child_update_against_parent_delete,
    cascade_against_child,
    set_null_against_child,
    partitioned_parent_against_child,
    partitioned_child_against_parent,
    other_types_against_parent,
    deferred_child_against_parent,
    self_reference_against_delete,
    conflict_of_nodes_is_told_as_one,
    retry_gives_the_true_error,
    constraint_not_validated,
    no_orphans_under_load,
);

/// Two transactions up to COMMIT on two nodes, then both at the same moment: at most one may win.
pub(super) fn race(a: &Arena, one: &str, two: &str) -> Result<[Result<(), SqlError>; 2]> {
    let (first, second) = (a.on(1)?, a.on(2)?);
    first.run(&format!("BEGIN; {one}"))?;
    second.run(&format!("BEGIN; {two}"))?;
    let (x, y) = Arena::both(|| first.run("COMMIT").map(drop), || second.run("COMMIT").map(drop));
    Ok([x, y])
}

/// Runs races that must not both be won, and asks all nodes for orphans after each. `{}` stands
/// for the number of the round. Both sides must win now and then.
fn races(a: &Arena, rounds: u32, one: &str, two: &str, orphans: &str) -> Result<()> {
    races_or(a, rounds, one, two, orphans, &[])
}

/// As [`races`]; the loser may also get one of these errors.
fn races_or(
    a: &Arena,
    rounds: u32,
    one: &str,
    two: &str,
    orphans: &str,
    also: &[&str],
) -> Result<()> {
    let mut won = 0;
    for round in 1..=rounds {
        let fill = |sql: &str| sql.replace("{}", &round.to_string());
        let outcomes = race(a, &fill(one), &fill(two))?;
        for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            let known = is_retryable(error) || also.contains(&error.state.as_str());
            ensure!(known, "round {round}: the loser got {error}");
        }
        let winners = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        ensure!(winners < 2, "round {round}: both were committed");
        won += winners;
        a.expect(&format!("SELECT count(*) FROM ({orphans}) orphans"), "0")
            .with_context(|| format!("round {round}"))?;
    }
    ensure!(won as u32 * 2 >= rounds, "only {won} of {rounds} races had a winner");
    Ok(())
}

/// Children without parent.
pub(super) fn orphans(child: &str, parent: &str) -> String {
    format!(
        "SELECT FROM {child} c WHERE c.parent IS NOT NULL
            AND NOT EXISTS (SELECT FROM {parent} p WHERE p.id = c.parent)"
    )
}

fn parent_against_child(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_p(id int PRIMARY KEY); CREATE TABLE i_c(id int PRIMARY KEY, parent int REFERENCES i_p);
         INSERT INTO i_p SELECT generate_series(1, 30)",
    )?;
    let (delete, insert) = ("DELETE FROM i_p WHERE id = {}", "INSERT INTO i_c VALUES ({}, {})");
    races(a, 15, delete, insert, &orphans("i_c", "i_p"))?;
    a.run(3, "TRUNCATE i_p, i_c; INSERT INTO i_p SELECT generate_series(1, 30)")?;
    races(a, 15, insert, delete, &orphans("i_c", "i_p"))
}

fn parent_key_update_against_child(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_kp(id int PRIMARY KEY); CREATE TABLE i_kc(id int PRIMARY KEY, parent int REFERENCES i_kp ON UPDATE CASCADE);
         INSERT INTO i_kp SELECT generate_series(1, 20); INSERT INTO i_kc SELECT g + 100, g FROM generate_series(1, 20) g",
    )?;
    races(
        a,
        20,
        "UPDATE i_kp SET id = id + 1000 WHERE id = {}",
        "INSERT INTO i_kc VALUES ({}, {})",
        &orphans("i_kc", "i_kp"),
    )
}

fn child_update_against_parent_delete(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_up(id int PRIMARY KEY); CREATE TABLE i_uc(id int PRIMARY KEY, parent int REFERENCES i_up);
         INSERT INTO i_up SELECT generate_series(0, 20); INSERT INTO i_uc SELECT g, 0 FROM generate_series(1, 20) g",
    )?;
    races(
        a,
        20,
        "DELETE FROM i_up WHERE id = {}",
        "UPDATE i_uc SET parent = {} WHERE id = {}",
        &orphans("i_uc", "i_up"),
    )
}

/// The cascade deletes the children its own node knows of, and only these may go.
fn cascade_against_child(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_cp(id int PRIMARY KEY); CREATE TABLE i_cc(id int PRIMARY KEY, parent int REFERENCES i_cp ON DELETE CASCADE);
         INSERT INTO i_cp SELECT generate_series(1, 20); INSERT INTO i_cc SELECT g + 100, g FROM generate_series(1, 20) g",
    )?;
    races(
        a,
        20,
        "DELETE FROM i_cp WHERE id = {}",
        "INSERT INTO i_cc VALUES ({}, {})",
        &orphans("i_cc", "i_cp"),
    )
}

fn set_null_against_child(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_np(id int PRIMARY KEY); CREATE TABLE i_nc(id int PRIMARY KEY, parent int REFERENCES i_np ON DELETE SET NULL);
         INSERT INTO i_np SELECT generate_series(1, 20); INSERT INTO i_nc SELECT g + 100, g FROM generate_series(1, 20) g",
    )?;
    races(
        a,
        20,
        "INSERT INTO i_nc VALUES ({}, {})",
        "DELETE FROM i_np WHERE id = {}",
        &orphans("i_nc", "i_np"),
    )
}

/// Two levels of partitions, their columns in another order than the parent table's.
fn partitioned_parent_against_child(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_pp(note text, id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE i_pp1 PARTITION OF i_pp FOR VALUES FROM (0) TO (10);
         CREATE TABLE i_pp2(id int NOT NULL, note text) PARTITION BY RANGE (id);
         CREATE TABLE i_pp2a PARTITION OF i_pp2 FOR VALUES FROM (10) TO (15);
         CREATE TABLE i_pp2b(x int, note text, id int NOT NULL); ALTER TABLE i_pp2b DROP x;
         ALTER TABLE i_pp2 ATTACH PARTITION i_pp2b FOR VALUES FROM (15) TO (40);
         ALTER TABLE i_pp ATTACH PARTITION i_pp2 FOR VALUES FROM (10) TO (40);
         CREATE TABLE i_ppc(id int PRIMARY KEY, parent int REFERENCES i_pp);
         INSERT INTO i_pp(id) SELECT generate_series(1, 25)",
    )?;
    races(
        a,
        25,
        "DELETE FROM i_pp WHERE id = {}",
        "INSERT INTO i_ppc VALUES ({}, {})",
        &orphans("i_ppc", "i_pp"),
    )
}

fn partitioned_child_against_parent(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_qp(id int PRIMARY KEY);
         CREATE TABLE i_qc(id int, parent int REFERENCES i_qp) PARTITION BY LIST (id);
         CREATE TABLE i_qc1 PARTITION OF i_qc FOR VALUES IN (1, 2, 3, 4, 5, 6, 7);
         CREATE TABLE i_qc2(parent int, id int); ALTER TABLE i_qc ATTACH PARTITION i_qc2 DEFAULT;
         INSERT INTO i_qp SELECT generate_series(1, 14)",
    )?;
    races(
        a,
        14,
        "INSERT INTO i_qc VALUES ({}, {})",
        "DELETE FROM i_qp WHERE id = {}",
        &orphans("i_qc", "i_qp"),
    )
}

/// Columns of other types than the parent's, in another order than the index has them.
fn other_types_against_parent(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE DOMAIN i_name AS varchar(20);
         CREATE TABLE i_tp(a numeric, b text, c int8, PRIMARY KEY (a, b, c));
         CREATE TABLE i_tc(id int PRIMARY KEY, z int2, y i_name, x int, FOREIGN KEY (z, y, x) REFERENCES i_tp (c, b, a));
         INSERT INTO i_tp SELECT g, 'n' || g, g FROM generate_series(1, 15) g",
    )?;
    races(
        a,
        15,
        "DELETE FROM i_tp WHERE a = {}",
        "INSERT INTO i_tc VALUES ({}, {}, 'n{}', {})",
        "SELECT FROM i_tc LEFT JOIN i_tp ON a = x AND b = y AND c = z WHERE a IS NULL",
    )
}

fn deferred_child_against_parent(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_dp(id int PRIMARY KEY);
         CREATE TABLE i_dc(id int PRIMARY KEY, parent int REFERENCES i_dp DEFERRABLE INITIALLY DEFERRED);
         INSERT INTO i_dp SELECT generate_series(1, 15)",
    )?;
    // The child is checked at COMMIT on its own node, which may know of the deletion already.
    races_or(
        a,
        15,
        "DELETE FROM i_dp WHERE id = {}",
        "INSERT INTO i_dc VALUES ({}, {})",
        &orphans("i_dc", "i_dp"),
        &["23503"],
    )
}

fn self_reference_against_delete(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_self(id int PRIMARY KEY, parent int REFERENCES i_self);
         INSERT INTO i_self SELECT g FROM generate_series(1, 15) g",
    )?;
    races(
        a,
        15,
        "DELETE FROM i_self WHERE id = {}",
        "INSERT INTO i_self VALUES ({} + 100, {})",
        &orphans("i_self", "i_self"),
    )
}

/// Whoever loses is told that another node's transaction was in the way.
fn conflict_of_nodes_is_told_as_one(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_told(id int PRIMARY KEY); CREATE TABLE i_told_c(id int PRIMARY KEY, parent int REFERENCES i_told);
         INSERT INTO i_told SELECT generate_series(1, 20)",
    )?;
    for id in 1..=20 {
        let delete = format!("DELETE FROM i_told WHERE id = {id}");
        let insert = format!("INSERT INTO i_told_c VALUES ({id}, {id})");
        for error in race(a, &delete, &insert)?.into_iter().filter_map(Result::err) {
            ensure!(error.state == "40001", "{error}");
            ensure!(error.detail.contains("node"), "no node in DETAIL: {error}");
            ensure!(error.detail.contains("MTM-"), "no gid in DETAIL: {error}");
        }
    }
    Ok(())
}

fn retry_gives_the_true_error(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_retry(id int PRIMARY KEY); CREATE TABLE i_retry_c(id int PRIMARY KEY, parent int REFERENCES i_retry);
         INSERT INTO i_retry SELECT generate_series(1, 10)",
    )?;
    for id in 1..=10 {
        let delete = format!("DELETE FROM i_retry WHERE id = {id}");
        let insert = format!("INSERT INTO i_retry_c VALUES ({id}, {id})");
        let [deleted, inserted] = race(a, &delete, &insert)?;
        let again = |node, sql: &str| a.on(node)?.refused(sql);
        let errors = match (deleted, inserted) {
            (Ok(()), Err(_)) => vec![again(2, &insert)?, again(3, &insert)?],
            (Err(_), Ok(())) => vec![again(1, &delete)?, again(3, &delete)?],
            _ => Vec::new(),
        };
        for error in errors {
            ensure!(error.state == "23503", "{error}");
        }
    }
    Ok(())
}

/// NOT VALID says nothing of old rows; new ones are checked.
fn constraint_not_validated(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE i_nv(id int PRIMARY KEY); CREATE TABLE i_nv_c(id int PRIMARY KEY, parent int, v int);
         INSERT INTO i_nv SELECT generate_series(1, 10); INSERT INTO i_nv_c VALUES (100, 999);
         ALTER TABLE i_nv_c ADD FOREIGN KEY (parent) REFERENCES i_nv NOT VALID",
    )?;
    a.run(2, "UPDATE i_nv_c SET v = 1")?;
    let orphans = format!("{} AND c.id < 100", orphans("i_nv_c", "i_nv"));
    races(a, 10, "DELETE FROM i_nv WHERE id = {}", "INSERT INTO i_nv_c VALUES ({}, {})", &orphans)
}

/// Parents come and go on two nodes while children are stored, moved and deleted; three kinds of
/// foreign keys at once.
fn no_orphans_under_load(a: &Arena) -> Result<()> {
    const KINDS: [&str; 3] = ["", "ON DELETE CASCADE ON UPDATE CASCADE", "ON DELETE SET NULL"];
    const ROUNDS: usize = 400;
    for (kind, action) in KINDS.iter().enumerate() {
        a.run(
            1,
            &format!(
                "CREATE TABLE i_load{kind}(id int PRIMARY KEY, v int);
                 CREATE TABLE i_load{kind}_c(id int PRIMARY KEY, parent int REFERENCES i_load{kind} {action});
                 INSERT INTO i_load{kind} SELECT g, 0 FROM generate_series(1, 8) g"
            ),
        )?;
    }
    let done: [AtomicU64; 6] = std::array::from_fn(|_| AtomicU64::new(0));
    let work = |node: usize, client: usize| -> Result<()> {
        let session = a.on(node)?;
        let mut random = (node * 31 + client * 17 + 1) as u64;
        for round in 0..ROUNDS {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let draw = |shift: u32, of: u64| (random >> shift) % of;
            let (kind, what, p) = (draw(33, 3), draw(36, 6) as usize, draw(40, 8) + 1);
            let c = draw(45, 40);
            let sql = match what {
                0 => format!("DELETE FROM i_load{kind} WHERE id = {p}"),
                1 => format!("INSERT INTO i_load{kind} VALUES ({p}, 0) ON CONFLICT DO NOTHING"),
                2 => format!("INSERT INTO i_load{kind}_c VALUES ({c}, {p})"),
                3 => format!("UPDATE i_load{kind}_c SET parent = {p} WHERE id = {c}"),
                4 => format!("DELETE FROM i_load{kind}_c WHERE id = {c}"),
                _ => format!("UPDATE i_load{kind} SET v = v + 1 WHERE id = {p}"),
            };
            match session.run(&sql) {
                Ok(_) => _ = done[what].fetch_add(1, Ordering::Relaxed),
                Err(error) => {
                    let known =
                        is_retryable(&error) || ["23503", "23505"].contains(&error.state.as_str());
                    ensure!(known, "round {round} on node {node}: {sql}: {error}");
                }
            }
        }
        Ok(())
    };
    let work = &work;
    std::thread::scope(|scope| {
        let clients = [(1, 0), (2, 0), (1, 1), (2, 1)];
        let threads = clients.map(|(node, client)| scope.spawn(move || work(node, client)));
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic in a writer"))
    })?;
    let done = done.map(|n| n.load(Ordering::Relaxed));
    ensure!(done.iter().all(|n| *n > 20), "too little was committed: {done:?}");
    for kind in 0..KINDS.len() {
        let (child, parent) = (format!("i_load{kind}_c"), format!("i_load{kind}"));
        a.expect(&format!("SELECT count(*) FROM ({}) o", orphans(&child, &parent)), "0")?;
        a.same(&format!("SELECT string_agg(t::text, ' ' ORDER BY id) FROM {child} t"))?;
        a.same(&format!("SELECT string_agg(t::text, ' ' ORDER BY id) FROM {parent} t"))?;
    }
    Ok(())
}
