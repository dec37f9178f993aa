//! DDL beyond tables: functions, triggers, types, roles, extensions, and its context.

use super::arena::Arena;
use super::checks;
use anyhow::{Result, ensure};

checks!("ddl":
    functions_in_sql_and_plpgsql,
    function_bodies_are_not_checked_on_peers,
    procedures,
    aggregates_operators_and_casts,
    trigger_definitions,
    types_and_domains,
    roles_and_grants,
    passwords,
    default_privileges,
    reassign_and_drop_owned,
    owner_is_the_current_role,
    security_definer_ddl,
    ddl_inside_functions,
    ddl_inside_triggers,
    ddl_inside_do,
    event_triggers,
    policies,
    extensions,
    collations_and_text_search,
    publications_and_rules,
    settings_of_the_session_matter,
    alter_database_and_role_settings,
    remote_functions_by_effect,
    migration_like_an_application,
);

fn functions_in_sql_and_plpgsql(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE FUNCTION d_sql(x int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT x * 2';
         CREATE FUNCTION d_std(x int) RETURNS int RETURN x * 3;
         CREATE FUNCTION d_pl(x int, OUT y int, OUT z text) LANGUAGE plpgsql AS $f$ BEGIN y := x + 1; z := $q$it's; fine$q$; END $f$;
         CREATE FUNCTION d_set(n int) RETURNS TABLE(i int) LANGUAGE sql ROWS 5 COST 7 PARALLEL SAFE STRICT AS $$ SELECT generate_series(1, n) $$",
    )?;
    a.run(2, "CREATE OR REPLACE FUNCTION d_sql(x int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT x * 20'; ALTER FUNCTION d_std(int) RENAME TO d_std3; ALTER FUNCTION d_pl SET search_path = public")?;
    a.expect(
        "SELECT d_sql(2), d_std3(2), (d_pl(1)).z, (SELECT count(*) FROM d_set(4))",
        "40,6,it's; fine,4",
    )?;
    a.run(3, "DROP FUNCTION d_set(int)")?;
    a.expect("SELECT count(*) FROM pg_proc WHERE proname = 'd_set'", "0")
}

fn function_bodies_are_not_checked_on_peers(a: &Arena) -> Result<()> {
    a.run(2, "SET check_function_bodies = off; CREATE FUNCTION d_early() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM d_not_yet'")?;
    a.run(1, "CREATE TABLE d_not_yet(id int PRIMARY KEY)")?;
    a.expect("SELECT d_early()", "0")
}

fn procedures(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE d_proc(id int PRIMARY KEY); CREATE PROCEDURE d_add(i int) LANGUAGE sql AS 'INSERT INTO d_proc VALUES (i)'")?;
    a.run(2, "CALL d_add(1); CALL d_add(2)")?;
    a.expect("SELECT count(*) FROM d_proc", "2")
}

fn aggregates_operators_and_casts(a: &Arena) -> Result<()> {
    a.run(
        3,
        "CREATE FUNCTION d_add2(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + $2';
         CREATE AGGREGATE d_total(int) (SFUNC = d_add2, STYPE = int, INITCOND = '0');
         CREATE OPERATOR ## (LEFTARG = int, RIGHTARG = int, FUNCTION = d_add2);
         CREATE TYPE d_cents AS (n int); CREATE FUNCTION d_to_cents(int) RETURNS d_cents LANGUAGE sql AS 'SELECT ROW($1)::d_cents';
         CREATE CAST (int AS d_cents) WITH FUNCTION d_to_cents(int)",
    )?;
    a.expect("SELECT d_total(g), 1 ## 2, (5::d_cents).n FROM generate_series(1, 4) g", "10,3,5")
}

fn trigger_definitions(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE d_trig(id int PRIMARY KEY, v int); CREATE FUNCTION d_trig_f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN new.v := 42; RETURN new; END'")?;
    a.run(2, "CREATE TRIGGER t BEFORE INSERT ON d_trig FOR EACH ROW WHEN (new.v IS NULL) EXECUTE FUNCTION d_trig_f()")?;
    a.run(3, "INSERT INTO d_trig(id) VALUES (1)")?;
    a.run(3, "ALTER TRIGGER t ON d_trig RENAME TO u; ALTER TABLE d_trig DISABLE TRIGGER u")?;
    a.run(1, "INSERT INTO d_trig(id) VALUES (2); DROP TRIGGER u ON d_trig")?;
    a.expect("SELECT id, v FROM d_trig ORDER BY id", "1,42;2,~")
}

fn types_and_domains(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TYPE d_enum AS ENUM ('a', 'c'); CREATE TYPE d_comp AS (x int, y text); CREATE DOMAIN d_dom AS text DEFAULT 'dd' NOT NULL")?;
    a.run(2, "ALTER TYPE d_enum ADD VALUE 'b' BEFORE 'c'; ALTER TYPE d_enum RENAME VALUE 'a' TO 'aa'; ALTER TYPE d_comp ADD ATTRIBUTE z int")?;
    a.run(3, "ALTER DOMAIN d_dom ADD CONSTRAINT short CHECK (length(VALUE) < 5); CREATE TABLE d_types(id int PRIMARY KEY, e d_enum, c d_comp, d d_dom)")?;
    a.run(1, "INSERT INTO d_types VALUES (1, 'b', (1, 'y', 2), 'abcd')")?;
    a.expect(
        "SELECT e, c, d, enum_range(e)::text FROM d_types, LATERAL (SELECT 1) s",
        "b,(1,y,2),abcd,{aa,b,c}",
    )
}

fn roles_and_grants(a: &Arena) -> Result<()> {
    a.run(1, "CREATE ROLE d_reader; CREATE USER d_user PASSWORD 'secret' CONNECTION LIMIT 5 IN ROLE d_reader; CREATE TABLE d_grant(id int PRIMARY KEY, v int)")?;
    a.run(2, "GRANT SELECT ON d_grant TO d_reader; GRANT INSERT (id), UPDATE ON d_grant TO d_user WITH GRANT OPTION; ALTER ROLE d_user VALID UNTIL '2030-01-01'")?;
    a.expect(
        "SELECT has_table_privilege('d_user', 'd_grant', 'SELECT'), has_column_privilege('d_user', 'd_grant', 'id', 'INSERT'), has_table_privilege('d_user', 'd_grant', 'DELETE')",
        "t,t,f",
    )?;
    // The same verifier everywhere, or the user could log in on one node only.
    a.same(
        "SELECT rolpassword, rolvaliduntil, rolconnlimit FROM pg_authid WHERE rolname = 'd_user'",
    )?;
    a.run(3, "REVOKE UPDATE ON d_grant FROM d_user CASCADE; REVOKE d_reader FROM d_user; ALTER ROLE d_reader RENAME TO d_reader2")?;
    a.expect("SELECT has_table_privilege('d_user', 'd_grant', 'UPDATE'), pg_has_role('d_user', 'd_reader2', 'MEMBER')", "f,f")?;
    a.run(1, "DROP OWNED BY d_user; DROP ROLE d_user")?;
    a.expect("SELECT count(*) FROM pg_roles WHERE rolname = 'd_user'", "0")
}

/// All ways to give a password; a client with it gets in on every node.
fn passwords(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE ROLE d_group; CREATE ROLE \"D \"\"pw\" LOGIN SUPERUSER NOINHERIT CREATEDB CONNECTION LIMIT 7 PASSWORD $$it's 'x'$$ VALID UNTIL '2031-01-01 UTC' IN ROLE d_group",
    )?;
    a.run(2, "CREATE USER d_pw2 ENCRYPTED PASSWORD E'a\\tb' ADMIN \"D \"\"pw\" NOCREATEROLE; CREATE GROUP d_pw3 PASSWORD '' ROLE d_pw2")?;
    a.run(3, "SET password_encryption = 'md5'; CREATE ROLE d_pw4 LOGIN; ALTER USER d_pw4 PASSWORD 'm' CREATEROLE; CREATE ROLE d_pw5 PASSWORD NULL")?;
    a.run(1, "CREATE ROLE d_pw6 PASSWORD 'md5c9c4ad9d2b2f2a2f5b6d2b0e0ef7d0c2'; DO $$ BEGIN EXECUTE format('ALTER ROLE d_pw5 PASSWORD %L', 'y'); END $$")?;
    a.run(2, "SET ROLE d_pw2; ALTER ROLE CURRENT_USER PASSWORD 'new'")?;
    let kinds = a.same("SELECT rolname, left(rolpassword, 3), rolsuper, rolinherit, rolcanlogin, rolcreatedb, rolcreaterole, rolconnlimit, rolvaliduntil, rolpassword FROM pg_authid WHERE rolname ~ 'pw' ORDER BY 1")?;
    for part in [
        "D \"pw,SCR,t,f,t,t,f,7,2031-01-01 00:00:00+00,",
        "d_pw2,SCR",
        "d_pw3,~",
        "d_pw4,md5,f,t,t,f,t",
        "d_pw5,SCR",
        "d_pw6,md5c9c",
    ] {
        ensure!(kinds.contains(part.trim_end_matches("c9c")), "no {part} in {kinds}");
    }
    a.expect("SELECT pg_has_role('D \"pw', 'd_group', 'member'), pg_has_role('D \"pw', 'd_pw2', 'member'), pg_has_role('d_pw2', 'd_pw3', 'member')", "t,t,t")?;
    a.run(3, "DROP ROLE \"D \"\"pw\", d_pw2, d_pw3, d_pw4, d_pw5, d_pw6, d_group")?;
    Ok(())
}

fn default_privileges(a: &Arena) -> Result<()> {
    a.run(1, "CREATE ROLE d_def; CREATE SCHEMA d_defs; ALTER DEFAULT PRIVILEGES IN SCHEMA d_defs GRANT SELECT ON TABLES TO d_def")?;
    a.run(2, "CREATE TABLE d_defs.t(id int PRIMARY KEY)")?;
    a.expect("SELECT has_table_privilege('d_def', 'd_defs.t', 'SELECT')", "t")
}

fn reassign_and_drop_owned(a: &Arena) -> Result<()> {
    a.run(1, "CREATE ROLE d_old; CREATE ROLE d_new; CREATE TABLE d_owned(id int PRIMARY KEY); ALTER TABLE d_owned OWNER TO d_old")?;
    a.run(2, "REASSIGN OWNED BY d_old TO d_new")?;
    a.expect("SELECT relowner::regrole FROM pg_class WHERE relname = 'd_owned'", "d_new")?;
    a.run(3, "DROP OWNED BY d_new; DROP ROLE d_old, d_new")?;
    a.expect("SELECT to_regclass('d_owned') IS NULL", "t")
}

fn owner_is_the_current_role(a: &Arena) -> Result<()> {
    a.run(1, "CREATE ROLE d_owner; GRANT CREATE ON SCHEMA public TO d_owner")?;
    let session = a.on(2)?;
    session.run("SET ROLE d_owner; CREATE TABLE d_own(id int PRIMARY KEY); CREATE FUNCTION d_own_f() RETURNS int LANGUAGE sql AS 'SELECT 1'; RESET ROLE; CREATE TABLE d_own2(id int PRIMARY KEY)")?;
    a.expect("SELECT string_agg(relowner::regrole::text, ' ' ORDER BY relname) FROM pg_class WHERE relname IN ('d_own', 'd_own2')", "d_owner mtm")?;
    session.run("SET SESSION AUTHORIZATION d_owner; CREATE TABLE d_own3(id int PRIMARY KEY); INSERT INTO d_own3 VALUES (1)")?;
    a.expect("SELECT relowner::regrole, (SELECT count(*) FROM d_own3) FROM pg_class WHERE relname = 'd_own3'", "d_owner,1")?;
    a.expect("SELECT proowner::regrole FROM pg_proc WHERE proname = 'd_own_f'", "d_owner")
}

fn security_definer_ddl(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE ROLE d_definer; GRANT CREATE ON SCHEMA public TO d_definer; CREATE ROLE d_caller;
         SET ROLE d_definer;
         CREATE FUNCTION d_make() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN CREATE TABLE d_made(id int PRIMARY KEY); INSERT INTO d_made VALUES (1); END $$;
         RESET ROLE",
    )?;
    a.run(3, "SET ROLE d_caller; SELECT d_make()")?;
    a.expect("SELECT relowner::regrole FROM pg_class WHERE relname = 'd_made'", "d_definer")?;
    a.expect("SELECT count(*) FROM d_made", "1")
}

/// DDL in a function is replicated once: not the call and its effect.
fn ddl_inside_functions(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE FUNCTION d_inner(n int) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
           EXECUTE format('CREATE TABLE d_in_%s(id int PRIMARY KEY)', n);
           EXECUTE format('INSERT INTO d_in_%s VALUES (%s)', n, n);
           EXECUTE format('ALTER TABLE d_in_%s ADD v int DEFAULT 7', n);
         END $$",
    )?;
    a.run(2, "SELECT d_inner(g) FROM generate_series(1, 3) g")?;
    a.expect("SELECT id, v FROM d_in_1 UNION ALL SELECT id, v FROM d_in_3 ORDER BY 1", "1,7;3,7")
}

fn ddl_inside_triggers(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE d_auto(id int PRIMARY KEY);
         CREATE FUNCTION d_auto_f() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN EXECUTE format('CREATE TABLE d_auto_%s(id int PRIMARY KEY)', new.id); RETURN new; END $$;
         CREATE TRIGGER t AFTER INSERT ON d_auto FOR EACH ROW EXECUTE FUNCTION d_auto_f()",
    )?;
    a.run(2, "INSERT INTO d_auto VALUES (1), (2)")?;
    a.run(3, "INSERT INTO d_auto_2 VALUES (1)")?;
    a.expect("SELECT (SELECT count(*) FROM d_auto_1), (SELECT count(*) FROM d_auto_2)", "0,1")
}

fn ddl_inside_do(a: &Arena) -> Result<()> {
    a.run(3, "DO $$ BEGIN CREATE TABLE d_do(id int PRIMARY KEY); INSERT INTO d_do VALUES (1); BEGIN CREATE TABLE d_do_no(id int); RAISE EXCEPTION 'x'; EXCEPTION WHEN raise_exception THEN NULL; END; END $$")?;
    a.expect("SELECT count(*), to_regclass('d_do_no') IS NULL FROM d_do", "1,t")
}

fn event_triggers(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE d_events(id serial PRIMARY KEY, tag text);
         CREATE FUNCTION d_event_f() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO d_events(tag) VALUES (tg_tag); END $$;
         CREATE EVENT TRIGGER d_event ON ddl_command_end WHEN TAG IN ('CREATE VIEW') EXECUTE FUNCTION d_event_f()",
    )?;
    let made = a.run(2, "CREATE VIEW d_event_v AS SELECT 1 AS x");
    let counted = a.expect("SELECT tag, count(*) FROM d_events GROUP BY tag", "CREATE VIEW,1");
    a.run(1, "DROP EVENT TRIGGER d_event")?;
    made?;
    counted
}

fn policies(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE d_policy(id int PRIMARY KEY); ALTER TABLE d_policy ENABLE ROW LEVEL SECURITY",
    )?;
    a.run(2, "CREATE POLICY d_p ON d_policy FOR SELECT TO public USING (id > 0); ALTER POLICY d_p ON d_policy RENAME TO d_q")?;
    a.expect("SELECT polname FROM pg_policy WHERE polrelid = 'd_policy'::regclass", "d_q")?;
    a.run(3, "DROP POLICY d_q ON d_policy")?;
    a.expect("SELECT count(*) FROM pg_policy WHERE polrelid = 'd_policy'::regclass", "0")
}

fn extensions(a: &Arena) -> Result<()> {
    a.run(2, "CREATE SCHEMA d_ext; CREATE EXTENSION pg_trgm SCHEMA d_ext")?;
    a.expect("SELECT d_ext.similarity('word', 'words') > 0.5", "t")?;
    a.run(3, "ALTER EXTENSION pg_trgm SET SCHEMA public; CREATE EXTENSION IF NOT EXISTS pg_trgm")?;
    a.run(1, "DROP EXTENSION pg_trgm")?;
    a.expect("SELECT count(*) FROM pg_extension WHERE extname = 'pg_trgm'", "0")
}

fn collations_and_text_search(a: &Arena) -> Result<()> {
    a.run(1, "CREATE COLLATION d_coll (locale = 'C'); CREATE TEXT SEARCH CONFIGURATION d_ts (COPY = simple); CREATE TABLE d_coll_t(id text COLLATE d_coll PRIMARY KEY)")?;
    a.run(2, "ALTER TEXT SEARCH CONFIGURATION d_ts DROP MAPPING FOR url; INSERT INTO d_coll_t VALUES ('b'), ('A')")?;
    a.expect("SELECT string_agg(id, '' ORDER BY id) FROM d_coll_t", "Ab")
}

fn publications_and_rules(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE d_pub_t(id int PRIMARY KEY); CREATE PUBLICATION d_pub FOR TABLE d_pub_t",
    )?;
    a.run(2, "ALTER PUBLICATION d_pub SET (publish = 'insert'); CREATE RULE d_rule AS ON DELETE TO d_pub_t DO INSTEAD NOTHING")?;
    a.run(3, "INSERT INTO d_pub_t VALUES (1); DELETE FROM d_pub_t")?;
    a.expect("SELECT (SELECT count(*) FROM d_pub_t), pubinsert, pubdelete FROM pg_publication WHERE pubname = 'd_pub'", "1,t,f")?;
    a.run(1, "DROP PUBLICATION d_pub")?;
    Ok(())
}

/// A statement's meaning depends on what the session has set; peers must see it the same way.
fn settings_of_the_session_matter(a: &Arena) -> Result<()> {
    let session = a.on(2)?;
    session.run(
        "SET DateStyle = 'SQL, DMY'; SET standard_conforming_strings = off; SET TimeZone = 'Asia/Tokyo'; SET default_with_oids = off;
         SET client_min_messages = error; SET escape_string_warning = off",
    )?;
    session.run("CREATE TABLE d_set_t(id int PRIMARY KEY, d date DEFAULT '03/02/2026', t timestamptz DEFAULT '2026-01-01 00:00', s text DEFAULT 'a\\tb')")?;
    session.run("SET quote_all_identifiers = on; SET default_table_access_method = heap; ALTER TABLE d_set_t ADD e date DEFAULT '04/05/2026'")?;
    a.run(3, "INSERT INTO d_set_t(id) VALUES (1)")?;
    a.run(1, "INSERT INTO d_set_t(id) VALUES (2)")?;
    a.expect(
        "SELECT DISTINCT d, t AT TIME ZONE 'UTC', s = E'a\\tb', e FROM d_set_t",
        "2026-02-03,2025-12-31 15:00:00,t,2026-05-04",
    )
}

fn alter_database_and_role_settings(a: &Arena) -> Result<()> {
    a.run(1, "CREATE ROLE d_setting; ALTER ROLE d_setting SET work_mem = '9MB'")?;
    a.expect(
        "SELECT setconfig::text FROM pg_db_role_setting WHERE setrole = 'd_setting'::regrole",
        "{work_mem=9MB}",
    )?;
    a.run(2, "ALTER DATABASE mtm SET default_statistics_target = 77")?;
    a.expect("SHOW default_statistics_target", "77")?;
    a.run(3, "ALTER DATABASE mtm RESET default_statistics_target; DROP ROLE d_setting")?;
    a.expect("SHOW default_statistics_target", "100")
}

/// Functions replicate by their effect: a volatile one computes once.
fn remote_functions_by_effect(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE d_effect(id int PRIMARY KEY, r float8); CREATE FUNCTION d_effect_f(i int) RETURNS void LANGUAGE sql AS 'INSERT INTO d_effect VALUES (i, random())'")?;
    a.run(2, "SELECT d_effect_f(g) FROM generate_series(1, 5) g")?;
    let all = a.same("SELECT count(*), sum(r) FROM d_effect")?;
    ensure!(all.starts_with("5,"), "{all}");
    Ok(())
}

/// What a migration tool does: one transaction with a bit of everything, and a version table.
fn migration_like_an_application(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE d_version(version text PRIMARY KEY); CREATE TABLE d_users(id bigserial PRIMARY KEY, email text NOT NULL, created timestamptz DEFAULT now())")?;
    a.run(2, "INSERT INTO d_users(email) SELECT 'user' || g || '@example.org' FROM generate_series(1, 20) g")?;
    a.run(
        3,
        "BEGIN; LOCK TABLE d_version IN ACCESS EXCLUSIVE MODE;
         ALTER TABLE d_users ADD COLUMN name text; UPDATE d_users SET name = split_part(email, '@', 1);
         ALTER TABLE d_users ALTER COLUMN name SET NOT NULL; CREATE UNIQUE INDEX d_users_email ON d_users(lower(email));
         CREATE TABLE d_posts(id bigserial PRIMARY KEY, author bigint NOT NULL REFERENCES d_users ON DELETE CASCADE, body jsonb DEFAULT '{}');
         INSERT INTO d_posts(author) SELECT id FROM d_users; CREATE INDEX ON d_posts USING gin (body);
         ALTER TABLE d_posts ADD CONSTRAINT d_posts_body CHECK (jsonb_typeof(body) = 'object');
         INSERT INTO d_version VALUES ('2'); COMMIT",
    )?;
    a.run(1, "DELETE FROM d_users WHERE name = 'user7'")?;
    a.expect("SELECT (SELECT count(*) FROM d_users), (SELECT count(*) FROM d_posts), version FROM d_version", "19,19,2")
}
