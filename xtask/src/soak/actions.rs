//! What the clients do.

use super::schema::{ACCOUNTS, HOT, ROWS};
use crate::session::{Session, SqlError};

/// Where a client is and what it draws its choices from.
#[derive(Debug)]
pub(super) struct Client {
    /// Its node.
    pub(super) node: usize,
    /// Its own number.
    pub(super) number: u64,
    /// How much it has done.
    pub(super) turn: u64,
    state: u64,
}

impl Client {
    /// A client on a node.
    pub(super) const fn new(node: usize, number: u64) -> Self {
        Self { node, number, turn: 0, state: number.wrapping_mul(0x9e37_79b9_7f4a_7c15) }
    }

    /// A number below `n` (`SplitMix64`).
    pub(super) const fn draw(&mut self, n: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// One transaction. It may be run again after an error that says so.
pub(super) type Action = fn(&Session, &mut Client) -> Result<(), SqlError>;

/// The mixed load: how often of all, under which name, what.
pub(super) const MIXED: &[(u64, &str, Action)] = &[
    (22, "update own row", own_row),
    (12, "update shared row", shared_row),
    (8, "transfer", transfer),
    (10, "insert serial", insert_serial),
    (8, "insert identity", insert_identity),
    (4, "delete", delete),
    (5, "copy", copy),
    (6, "child", child),
    (2, "parent", parent),
    (5, "sequence", sequence),
    (5, "savepoint", savepoint),
    (4, "prepared by user", prepared),
    (3, "without key", without_key),
    (3, "partitioned", partitioned),
    (4, "changing table", changing),
    (3, "cleared table", cleared),
    (1, "large", large),
    (1, "read", read),
];

fn done(session: &Session, sql: &str) -> Result<(), SqlError> {
    session.run(sql).map(drop)
}

fn own_row(session: &Session, c: &mut Client) -> Result<(), SqlError> {
    let third = ROWS / 3;
    let id = (c.node as u64 - 1) * third + 1 + c.draw(third);
    done(
        session,
        &format!("UPDATE soak_row SET n = n + 1, note = 'turn {}' WHERE id = {id}", c.turn),
    )
}

fn shared_row(session: &Session, c: &mut Client) -> Result<(), SqlError> {
    let id = 1 + c.draw(HOT);
    done(session, &format!("UPDATE soak_hot SET n = n + 1 WHERE id = {id}"))
}

fn transfer(session: &Session, c: &mut Client) -> Result<(), SqlError> {
    let (from, to) = (1 + c.draw(ACCOUNTS), 1 + c.draw(ACCOUNTS));
    let amount = 1 + c.draw(10);
    done(
        session,
        &format!(
            "BEGIN; UPDATE soak_account SET amount = amount - {amount} WHERE id = {from};
             UPDATE soak_account SET amount = amount + {amount} WHERE id = {to}; COMMIT"
        ),
    )
}

fn insert_serial(session: &Session, c: &mut Client) -> Result<(), SqlError> {
    let length = 1 + c.draw(400);
    done(
        session,
        &format!("INSERT INTO soak_serial(node, v) VALUES ({}, repeat('v', {length}))", c.node),
    )
}

fn insert_identity(session: &Session, c: &mut Client) -> Result<(), SqlError> {
    done(
        session,
        &format!(
            "INSERT INTO soak_identity(node, v)
             SELECT {}, jsonb_build_object('turn', {}, 'g', g) FROM generate_series(1, 3) g",
            c.node, c.turn
        ),
    )
}

/// Rows of this node only: two nodes that delete the same row are another action's matter.
fn delete(session: &Session, c: &mut Client) -> Result<(), SqlError> {
    done(
        session,
        &format!(
            "DELETE FROM soak_serial WHERE id IN
               (SELECT id FROM soak_serial WHERE node = {} ORDER BY id LIMIT 4)",
            c.node
        ),
    )
}

fn copy(session: &Session, c: &mut Client) -> Result<(), SqlError> {
    let (node, number, turn) = (c.node, c.number, c.turn);
    let lines: String =
        (0..200).map(|n| format!("{node}\t{number}\t{turn}\t{n}\trow {n} of a batch\n")).collect();
    session.copy_in("COPY soak_copy FROM STDIN", &lines).map(drop)
}

fn child(session: &Session, c: &mut Client) -> Result<(), SqlError> {
    let parent = 1 + c.draw(40);
    done(
        session,
        &format!(
            "INSERT INTO soak_child(parent, v)
             SELECT id, 'of ' || id FROM soak_parent WHERE id = {parent}"
        ),
    )
}

/// Removes a parent with its children, or brings it back.
fn parent(session: &Session, c: &mut Client) -> Result<(), SqlError> {
    let id = 1 + c.draw(40);
    if c.draw(2) == 0 {
        return done(session, &format!("DELETE FROM soak_parent WHERE id = {id}"));
    }
    done(
        session,
        &format!("INSERT INTO soak_parent VALUES ({id}, 'again') ON CONFLICT (id) DO NOTHING"),
    )
}

/// A value twice would be a duplicate key.
fn sequence(session: &Session, c: &mut Client) -> Result<(), SqlError> {
    done(
        session,
        &format!(
            "INSERT INTO soak_value SELECT nextval('soak_sequence'), {} FROM generate_series(1, 5)",
            c.node
        ),
    )
}

fn savepoint(session: &Session, c: &mut Client) -> Result<(), SqlError> {
    let id = 1 + c.draw(HOT);
    done(
        session,
        &format!(
            "BEGIN; INSERT INTO soak_saved(kept) VALUES (true);
             SAVEPOINT a; INSERT INTO soak_saved(kept) VALUES (false);
             UPDATE soak_hot SET n = n + 1000 WHERE id = {id};
             ROLLBACK TO a; INSERT INTO soak_saved(kept) VALUES (true); RELEASE a; COMMIT"
        ),
    )
}

fn prepared(session: &Session, c: &mut Client) -> Result<(), SqlError> {
    let gid = format!("user-{}-{}", c.number, c.turn);
    done(
        session,
        &format!(
            "BEGIN; INSERT INTO soak_prepared(v) VALUES ('{gid}'); PREPARE TRANSACTION '{gid}'"
        ),
    )?;
    let end = if c.draw(3) == 0 { "ROLLBACK" } else { "COMMIT" };
    done(session, &format!("{end} PREPARED '{gid}'"))
}

fn without_key(session: &Session, c: &mut Client) -> Result<(), SqlError> {
    let (node, turn) = (c.node, c.turn);
    done(session, &format!("INSERT INTO soak_nokey VALUES ({node}, {turn})"))?;
    if c.draw(4) > 0 {
        return Ok(());
    }
    done(session, &format!("DELETE FROM soak_nokey WHERE node = {node} AND n < {turn}"))
}

fn partitioned(session: &Session, c: &mut Client) -> Result<(), SqlError> {
    let (id, day) = (c.draw(100) + 1000 * c.node as u64, c.draw(100));
    done(
        session,
        &format!(
            "INSERT INTO soak_part VALUES ({id}, {day}, 'a') ON CONFLICT (id, day) DO UPDATE SET v = 'b';
             UPDATE soak_part SET day = 99 - day WHERE id = {id} AND day = {day}
               AND NOT EXISTS (SELECT FROM soak_part WHERE id = {id} AND day = 99 - {day})"
        ),
    )
}

fn changing(session: &Session, c: &mut Client) -> Result<(), SqlError> {
    let id = 1 + c.draw(200);
    done(session, &format!("UPDATE soak_changing SET v = 'turn {}' WHERE id = {id}", c.turn))
}

fn cleared(session: &Session, c: &mut Client) -> Result<(), SqlError> {
    done(session, &format!("INSERT INTO soak_cleared(v) VALUES ('node {}')", c.node))
}

/// Larger than what waits for its commit to be sent; part of it is rolled back.
fn large(session: &Session, c: &mut Client) -> Result<(), SqlError> {
    if c.draw(6) > 0 {
        return own_row(session, c);
    }
    let node = c.node;
    done(
        session,
        &format!(
            "BEGIN; INSERT INTO soak_large(node, v) SELECT {node}, repeat('l', 60) FROM generate_series(1, 15000);
             SAVEPOINT a; DELETE FROM soak_large WHERE node = {node}; ROLLBACK TO a;
             SAVEPOINT b; DELETE FROM soak_large WHERE node = {node} AND id % 10 > 0; RELEASE b; COMMIT"
        ),
    )
}

fn read(session: &Session, _c: &mut Client) -> Result<(), SqlError> {
    done(session, "SELECT count(*), sum(n) FROM soak_row")
}

/// The schema changes, each run on a node drawn by lot, in turn.
pub(super) const SCHEMA: &[(&str, Action)] = &[
    ("add column", |s, c| {
        let turn = c.turn;
        done(
            s,
            &format!(
                "ALTER TABLE soak_changing ADD COLUMN IF NOT EXISTS c{} int DEFAULT {turn}",
                turn % 5
            ),
        )
    }),
    ("create index", |s, _| done(s, "CREATE INDEX IF NOT EXISTS soak_index ON soak_row(n)")),
    ("create table as", |s, _| {
        done(
            s,
            "DROP TABLE IF EXISTS soak_as; CREATE TABLE soak_as AS SELECT id, n FROM soak_row WHERE id < 100",
        )
    }),
    ("drop column", |s, c| {
        done(s, &format!("ALTER TABLE soak_changing DROP COLUMN IF EXISTS c{}", (c.turn + 3) % 5))
    }),
    ("truncate", |s, _| done(s, "TRUNCATE soak_cleared")),
    ("drop index", |s, _| done(s, "DROP INDEX IF EXISTS soak_index")),
    ("rewrite", |s, c| {
        let to = if c.draw(2) == 0 { "varchar" } else { "text" };
        done(s, &format!("ALTER TABLE soak_cleared ALTER COLUMN v TYPE {to} USING v || ''"))
    }),
    ("view and function", |s, c| {
        done(
            s,
            &format!(
                "CREATE OR REPLACE VIEW soak_view AS SELECT id, n FROM soak_hot;
                 CREATE OR REPLACE FUNCTION soak_function() RETURNS int LANGUAGE sql AS 'SELECT {}'",
                c.turn
            ),
        )
    }),
    ("schema change and rows", |s, c| {
        let turn = c.turn;
        done(
            s,
            &format!(
                "BEGIN; CREATE TABLE soak_new_{turn}(id int PRIMARY KEY, v text);
                 INSERT INTO soak_new_{turn} SELECT g, 'x' FROM generate_series(1, 50) g;
                 SAVEPOINT a; ALTER TABLE soak_new_{turn} ADD COLUMN gone int; ROLLBACK TO a;
                 ALTER TABLE soak_new_{turn} ADD COLUMN w int DEFAULT 3;
                 UPDATE soak_new_{turn} SET v = 'y' WHERE id % 2 = 0; COMMIT"
            ),
        )
    }),
    ("drop table", |s, c| {
        done(s, &format!("DROP TABLE IF EXISTS soak_new_{}", c.turn.saturating_sub(1)))
    }),
];
