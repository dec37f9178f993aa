//! Values of every kind arrive as they were.

use super::arena::Arena;
use super::checks;
use anyhow::{Context, Result, ensure};

checks!("rows":
    built_in_types,
    text_instead_of_binary,
    user_defined_types,
    range_and_multirange_types,
    extension_types,
    nulls_and_empty_values,
    toast,
    toast_unchanged_columns,
    generated_columns,
    generated_columns_that_identify_rows,
    dropped_and_added_columns,
    many_columns,
    wide_rows_in_one_transaction,
    floats_keep_their_bits,
    locale_dependent_output_settings,
);

/// Column definitions and values; updated afterwards through a key of another type.
const BUILT_IN: &[(&str, &str)] = &[
    ("bool", "true"),
    ("bytea", "'\\x00ff10'"),
    ("\"char\"", "'c'"),
    ("name", "'a name'"),
    ("int8", "'-9223372036854775808'"),
    ("int2", "'-32768'"),
    ("int4", "2147483647"),
    ("text", "E'text with \\'quotes\\', \\n and \u{20ac}'"),
    ("oid", "4294967295"),
    ("json", "'{\"a\":  [1, null]}'"),
    ("jsonb", "'{\"a\":  [1, null, \"x\"]}'"),
    ("xml", "'<a>b</a>'"),
    ("point", "'(1,2.5)'"),
    ("lseg", "'[(0,0),(1,1)]'"),
    ("path", "'((0,0),(1,1),(2,0))'"),
    ("box", "'(1,1),(0,0)'"),
    ("polygon", "'((0,0),(1,1),(2,0))'"),
    ("line", "'{1,2,3}'"),
    ("circle", "'<(0,0),2>'"),
    ("float4", "'1.5e-30'"),
    ("float8", "'-Infinity'"),
    ("money", "'12.34'"),
    ("macaddr", "'08:00:2b:01:02:03'"),
    ("macaddr8", "'08:00:2b:01:02:03:04:05'"),
    ("inet", "'192.168.0.1/24'"),
    ("cidr", "'2001:db8::/32'"),
    ("bpchar(10)", "'padded'"),
    ("varchar(10)", "'varying'"),
    ("date", "'0044-03-15 BC'"),
    ("time", "'23:59:59.999999'"),
    ("timetz", "'12:00:00+05:30'"),
    ("timestamp", "'infinity'"),
    ("timestamptz", "'2026-01-01 00:00:00.000001+00'"),
    ("interval", "'1 mon 2 days 03:04:05.6'"),
    ("bit(5)", "B'10101'"),
    ("varbit", "B'1'"),
    ("numeric", "'123456789012345678901234567890.123456789'"),
    ("numeric(10,2)", "'NaN'"),
    ("uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
    ("pg_lsn", "'16/B374D848'"),
    ("tsvector", "'a fat cat'"),
    ("tsquery", "'fat & (rat | cat)'"),
    ("jsonpath", "'$.a[*] ? (@ > 1)'"),
    ("xid8", "'12345678901'"),
    ("int4[]", "'{{1,2},{3,NULL}}'"),
    ("text[]", "'[2:3]={\"a b\",\"NULL\"}'"),
    ("timestamptz[]", "'{2026-01-01 00:00:00+00}'"),
    ("regclass", "'pg_catalog.pg_class'"),
    ("regtype", "'int4'"),
    ("tid", "'(1,2)'"),
    ("refcursor", "'cursor'"),
];

fn fill_built_in(a: &Arena, table: &str, writer: usize, before: &str) -> Result<()> {
    let columns: Vec<String> =
        BUILT_IN.iter().enumerate().map(|(i, (kind, _))| format!("c{i} {kind}")).collect();
    let values: Vec<&str> = BUILT_IN.iter().map(|pair| pair.1).collect();
    a.run(1, &format!("CREATE TABLE {table}(id int PRIMARY KEY, {})", columns.join(", ")))?;
    let session = a.on(writer)?;
    session.run(before)?;
    session.run(&format!(
        "INSERT INTO {table} VALUES (1, {}); INSERT INTO {table}(id) VALUES (2)",
        values.join(", ")
    ))?;
    for (i, (kind, value)) in BUILT_IN.iter().enumerate() {
        session
            .run(&format!("UPDATE {table} SET c{i} = {value} WHERE id = 2"))
            .with_context(|| format!("type {kind}"))?;
    }
    for (i, (kind, value)) in BUILT_IN.iter().enumerate() {
        let all = a
            .same(&format!("SELECT string_agg(c{i}::text, '|' ORDER BY id) FROM {table}"))
            .with_context(|| format!("type {kind}"))?;
        let written = a.ask(
            writer,
            &format!("SELECT {value}::{kind}::text || '|' || {value}::{kind}::text"),
        )?;
        ensure!(all == written, "type {kind}: wrote {written}, found {all}");
    }
    Ok(())
}

fn built_in_types(a: &Arena) -> Result<()> {
    fill_built_in(a, "r_types", 2, "SELECT 1")
}

fn text_instead_of_binary(a: &Arena) -> Result<()> {
    // binary_basetypes is read when a configuration is loaded; the other half of the codec must be
    // as right as the usual one.
    for id in a.ids() {
        a.run(id, "ALTER SYSTEM SET multimaster.binary_basetypes = off")?;
        a.run(id, "SELECT pg_reload_conf()")?;
    }
    let result = fill_built_in(a, "r_types_text", 3, "SELECT 1");
    for id in a.ids() {
        a.run(id, "ALTER SYSTEM RESET multimaster.binary_basetypes")?;
        a.run(id, "SELECT pg_reload_conf()")?;
    }
    result
}

fn user_defined_types(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TYPE r_mood AS ENUM ('sad', 'ok', 'happy');
         CREATE TYPE r_pair AS (a int, b text, m r_mood);
         CREATE DOMAIN r_positive AS int CHECK (VALUE > 0);
         CREATE DOMAIN r_pairs AS r_pair[];
         CREATE TABLE r_user(id int PRIMARY KEY, m r_mood, ms r_mood[], p r_pair, ps r_pair[], d r_positive, dp r_pairs)",
    )?;
    a.run(
        2,
        "INSERT INTO r_user VALUES
           (1, 'happy', '{sad,ok}', ROW(1, 'x, \"y\"', 'ok'), ARRAY[ROW(2, NULL, 'sad')::r_pair, NULL], 5, ARRAY[ROW(3, '', NULL)::r_pair]),
           (2, NULL, NULL, NULL, NULL, NULL, NULL)",
    )?;
    a.run(3, "UPDATE r_user SET m = 'sad', p.b = 'changed', d = 6 WHERE id = 1")?;
    a.run(3, "ALTER TYPE r_mood ADD VALUE 'great'")?;
    a.run(1, "UPDATE r_user SET m = 'great' WHERE id = 2")?;
    let all =
        a.same("SELECT string_agg(whole_row::text, '/' ORDER BY id) FROM r_user whole_row")?;
    ensure!(all.contains("changed") && all.contains("great"), "{all}");
    let error = a.on(2)?.refused("INSERT INTO r_user(id, d) VALUES (3, -1)")?;
    ensure!(error.state == "23514", "{error}");
    Ok(())
}

fn range_and_multirange_types(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TYPE r_floatrange AS RANGE (subtype = float8, subtype_diff = float8mi);
         CREATE TABLE r_range(id int PRIMARY KEY, i int4range, n nummultirange, t tstzrange, f r_floatrange, EXCLUDE USING gist (i WITH &&))",
    )?;
    a.run(2, "INSERT INTO r_range VALUES (1, '[1,5)', '{[1,2],(3,4]}', '[2026-01-01,)', '[1.5,2.5]'), (2, 'empty', '{}', '(,)', NULL)")?;
    let error = a.on(3)?.refused("INSERT INTO r_range(id, i) VALUES (3, '[4,6)')")?;
    ensure!(error.state == "23P01", "{error}");
    let all =
        a.same("SELECT string_agg(whole_row::text, '/' ORDER BY id) FROM r_range whole_row")?;
    ensure!(all.contains("[1,5)") && all.contains("[1.5,2.5]"), "{all}");
    Ok(())
}

fn extension_types(a: &Arena) -> Result<()> {
    a.run(1, "CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE TABLE r_ext(id citext PRIMARY KEY, h hstore)")?;
    a.run(2, "INSERT INTO r_ext VALUES ('Key', 'a=>1, b=>NULL')")?;
    a.run(3, "UPDATE r_ext SET h = h || 'c=>3' WHERE id = 'KEY'")?;
    a.expect("SELECT id, h -> 'c', h ? 'b' FROM r_ext", "Key,3,t")
}

fn nulls_and_empty_values(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE r_null(id int PRIMARY KEY, a text, b bytea, c int[])")?;
    a.run(2, "INSERT INTO r_null VALUES (1, '', '', '{}'), (2, NULL, NULL, NULL)")?;
    a.run(3, "UPDATE r_null SET a = NULL WHERE id = 1; UPDATE r_null SET a = '' WHERE id = 2")?;
    a.expect("SELECT id, a, b, c FROM r_null ORDER BY id", "1,~,\\x,{};2,,~,~")
}

/// Values that do not compress and must go out of line, from 1 byte to 5 MB.
fn toast(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE r_toast(id int PRIMARY KEY, v text); ALTER TABLE r_toast ALTER v SET STORAGE EXTERNAL")?;
    a.run(2, "INSERT INTO r_toast SELECT n, repeat('0123456789', n) FROM unnest(ARRAY[1, 100, 200, 1000, 100000, 500000]) n")?;
    let all =
        a.same("SELECT sum(length(v)), md5(string_agg(md5(v), '' ORDER BY id)) FROM r_toast")?;
    ensure!(all.starts_with("6013010,"), "{all}");
    a.run(3, "UPDATE r_toast SET v = v || 'end'; DELETE FROM r_toast WHERE id = 100000")?;
    a.expect("SELECT count(*), sum(length(v)) FROM r_toast", "5,5013025")
}

/// An update that does not touch a toasted column must leave it as it is on the peers.
fn toast_unchanged_columns(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE r_unchanged(id int PRIMARY KEY, n int, v text); ALTER TABLE r_unchanged ALTER v SET STORAGE EXTERNAL")?;
    a.run(
        1,
        "INSERT INTO r_unchanged VALUES (1, 0, repeat('x', 100000)), (2, 0, repeat('y', 100000))",
    )?;
    a.run(2, "UPDATE r_unchanged SET n = n + 1")?;
    a.run(3, "UPDATE r_unchanged SET id = id + 10")?;
    a.run(3, "ALTER TABLE r_unchanged REPLICA IDENTITY FULL")?;
    a.run(
        1,
        "UPDATE r_unchanged SET n = n + 1 WHERE id = 12; DELETE FROM r_unchanged WHERE id = 11",
    )?;
    a.expect("SELECT id, n, length(v), left(v, 1) FROM r_unchanged", "12,2,100000,y")
}

fn generated_columns(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE r_generated(id int PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2) STORED,
           c timestamptz DEFAULT now(), r float8 DEFAULT random())",
    )?;
    a.run(2, "INSERT INTO r_generated(id, a) SELECT g, g FROM generate_series(1, 10) g; UPDATE r_generated SET a = a + 100 WHERE id = 3")?;
    a.expect("SELECT sum(b) FROM r_generated", "310")?;
    a.same("SELECT string_agg(whole_row::text, '/' ORDER BY id) FROM r_generated whole_row")?;
    Ok(())
}

/// A generated column in the key, in a unique index, from a function, and on a partition.
fn generated_columns_that_identify_rows(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE FUNCTION r_gen_f(t text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT lower(t) $$;
         CREATE TABLE r_gen_key(a int, v text, b int GENERATED ALWAYS AS (a * 2) STORED PRIMARY KEY);
         CREATE TABLE r_gen_full(a int, b text GENERATED ALWAYS AS (r_gen_f('X' || a)) STORED, c int);
         CREATE TABLE r_gen_uni(id int PRIMARY KEY, t text, l text GENERATED ALWAYS AS (r_gen_f(t)) STORED UNIQUE);
         CREATE TABLE r_gen_part(id int PRIMARY KEY, t text, l text GENERATED ALWAYS AS (r_gen_f(t)) STORED) PARTITION BY RANGE (id);
         CREATE TABLE r_gen_part1(l text GENERATED ALWAYS AS (r_gen_f(t)) STORED, t text, id int NOT NULL);
         ALTER TABLE r_gen_part ATTACH PARTITION r_gen_part1 FOR VALUES FROM (0) TO (10);
         CREATE TABLE r_gen_part2 PARTITION OF r_gen_part FOR VALUES FROM (10) TO (20)",
    )?;
    a.run(2, "INSERT INTO r_gen_key(a, v) VALUES (1, 'x'), (2, 'y'), (3, 'z'); INSERT INTO r_gen_full(a, c) VALUES (1, 1), (2, 2), (3, 3)")?;
    a.run(3, "UPDATE r_gen_key SET v = 'new' WHERE b = 2; UPDATE r_gen_key SET a = 20 WHERE a = 2; DELETE FROM r_gen_key WHERE a = 3")?;
    a.run(1, "UPDATE r_gen_full SET a = 10 WHERE b = 'x1'; DELETE FROM r_gen_full WHERE a = 2")?;
    a.expect("SELECT a, v, b FROM r_gen_key ORDER BY a", "1,new,2;20,y,40")?;
    a.expect("SELECT a, b FROM r_gen_full ORDER BY a", "3,x3;10,x10")?;
    a.run(2, "INSERT INTO r_gen_uni VALUES (1, 'One')")?;
    let error = a.on(3)?.refused("INSERT INTO r_gen_uni VALUES (2, 'ONE')")?;
    ensure!(error.state == "23505", "{error}");
    a.run(3, "UPDATE r_gen_uni SET t = 'Two'; INSERT INTO r_gen_uni VALUES (2, 'ONE')")?;
    a.expect("SELECT id, l FROM r_gen_uni ORDER BY id", "1,two;2,one")?;
    a.run(2, "INSERT INTO r_gen_part VALUES (1, 'A'), (12, 'B')")?;
    a.run(3, "UPDATE r_gen_part SET id = id + 10, t = t || 'X' WHERE id = 1; UPDATE r_gen_part SET t = 'C' WHERE id = 12")?;
    a.expect(
        "SELECT tableoid::regclass, id, l FROM r_gen_part ORDER BY id",
        "r_gen_part2,11,ax;r_gen_part2,12,c",
    )
}

fn dropped_and_added_columns(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE r_columns(a text, id int PRIMARY KEY, b text); INSERT INTO r_columns VALUES ('x', 1, 'y')")?;
    a.run(2, "ALTER TABLE r_columns DROP a")?;
    a.run(3, "INSERT INTO r_columns VALUES (2, 'z')")?;
    a.run(1, "ALTER TABLE r_columns ADD c int DEFAULT 7, ADD d text")?;
    a.run(2, "UPDATE r_columns SET d = 'new'; INSERT INTO r_columns VALUES (3, 'q', 8, 'r')")?;
    a.expect("SELECT * FROM r_columns ORDER BY id", "1,y,7,new;2,z,7,new;3,q,8,r")
}

fn many_columns(a: &Arena) -> Result<()> {
    let columns: Vec<String> = (0..1000).map(|i| format!("c{i} int")).collect();
    a.run(1, &format!("CREATE TABLE r_many(id int PRIMARY KEY, {})", columns.join(", ")))?;
    a.run(2, "INSERT INTO r_many(id, c0, c999) VALUES (1, 1, 2); UPDATE r_many SET c500 = 3")?;
    a.expect("SELECT c0, c500, c999, c1 FROM r_many", "1,3,2,~")
}

fn wide_rows_in_one_transaction(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE r_wide(id int PRIMARY KEY, v text)")?;
    a.run(
        2,
        "INSERT INTO r_wide SELECT g, repeat(md5(g::text), 200) FROM generate_series(1, 2000) g",
    )?;
    let all = a.same(
        "SELECT count(*), sum(length(v)), md5(string_agg(md5(v), '' ORDER BY id)) FROM r_wide",
    )?;
    ensure!(all.starts_with("2000,12800000,"), "{all}");
    Ok(())
}

fn floats_keep_their_bits(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE r_float(id int PRIMARY KEY, f float8, g float4)")?;
    let session = a.on(2)?;
    session.run("SET extra_float_digits = -15; INSERT INTO r_float SELECT i, 1.0 / i, 1.0 / i FROM generate_series(1, 500) i")?;
    session.run("UPDATE r_float SET f = f * 3 WHERE id > 250")?;
    a.same("SELECT md5(string_agg(encode(float8send(f), 'hex') || encode(float4send(g), 'hex'), '' ORDER BY id)) FROM r_float")?;
    Ok(())
}

/// The writer's output settings must not change what arrives.
fn locale_dependent_output_settings(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE r_settings(id int PRIMARY KEY, d date, t timestamptz, i interval, b bytea, m numeric)")?;
    let session = a.on(2)?;
    session.run(
        "SET DateStyle = 'SQL, DMY'; SET IntervalStyle = 'sql_standard'; SET bytea_output = 'escape'; SET TimeZone = 'Asia/Tokyo'",
    )?;
    session.run("INSERT INTO r_settings VALUES (1, '03/02/2026', '03/02/2026 10:00', '1-2', '\\x00ff', 1.10)")?;
    session.run("UPDATE r_settings SET i = i * 2")?;
    a.expect(
        "SELECT d, t AT TIME ZONE 'UTC', i, b, m FROM r_settings",
        "2026-02-03,2026-02-03 01:00:00,2 years 4 mons,\\x00ff,1.10",
    )
}
