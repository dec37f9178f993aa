use mtm_core::wire::DecodeErrorKind;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Owned {
    Null,
    Unchanged,
    Binary(Vec<u8>),
    Text(Vec<u8>),
}

impl Owned {
    fn write(&self, to: &mut TupleWriter<'_>) {
        match self {
            Self::Null => to.null(),
            Self::Unchanged => to.unchanged(),
            Self::Binary(b) => to.binary(b),
            Self::Text(b) => to.text(b),
        }
    }

    fn value(&self) -> Value<'_> {
        match self {
            Self::Null => Value::Null,
            Self::Unchanged => Value::Unchanged,
            Self::Binary(b) => Value::Binary(b),
            Self::Text(b) => Value::Text(b),
        }
    }
}

type Row = Vec<Owned>;

#[derive(Clone, Debug)]
enum Message {
    Insert(Row),
    Update(Option<(bool, Row)>, Row),
    Delete(bool, Row),
    Truncate(usize, bool, bool),
    Ddl(Vec<u8>),
    User(Vec<u8>),
    Subxact(u32),
}

fn row() -> impl Strategy<Value = Row> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..200);
    let value = prop_oneof![
        Just(Owned::Null),
        Just(Owned::Unchanged),
        bytes().prop_map(Owned::Binary),
        bytes().prop_map(Owned::Text),
    ];
    prop::collection::vec(value, 0..6)
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        row().prop_map(Message::Insert),
        (prop::option::of((any::<bool>(), row())), row())
            .prop_map(|(old, new)| Message::Update(old, new)),
        (any::<bool>(), row()).prop_map(|(full, old)| Message::Delete(full, old)),
        (0usize..4, any::<bool>(), any::<bool>()).prop_map(|(n, c, r)| Message::Truncate(n, c, r)),
        prop::collection::vec(any::<u8>(), 0..50).prop_map(Message::Ddl),
        prop::collection::vec(any::<u8>(), 0..50).prop_map(Message::User),
        any::<u32>().prop_map(Message::Subxact),
    ]
}

fn put(mut to: TupleWriter<'_>, row: &Row) {
    row.iter().for_each(|value| value.write(&mut to));
}

fn put_old(w: &mut RowWriter<'_>, full: bool, row: &Row) {
    let to = if full { w.row(row.len()) } else { w.key(row.len()) };
    put(to, row);
}

fn write(w: &mut RowWriter<'_>, message: &Message) {
    match message {
        Message::Insert(row) => put(w.insert(0, row.len()), row),
        Message::Update(old, new) => {
            w.update(0);
            match old {
                None => w.no_old(),
                Some((full, row)) => put_old(w, *full, row),
            }
            put(w.tuple(new.len()), new);
        }
        Message::Delete(full, old) => {
            w.delete(0);
            put_old(w, *full, old);
        }
        Message::Truncate(n, cascade, restart) => w.truncate(&vec![0; *n], *cascade, *restart),
        Message::Ddl(bytes) => w.ddl(bytes),
        Message::User(bytes) => w.user(bytes),
        Message::Subxact(xid) => w.subxact(*xid),
    }
}

fn same(row: &Row, tuple: &Tuple<'_>) -> bool {
    tuple.len() == row.len() && tuple.values().eq(row.iter().map(Owned::value))
}

fn same_old(full: bool, row: &Row, old: &Old<'_>) -> bool {
    match old {
        Old::Key(key) => !full && same(row, key),
        Old::Row(old) => full && same(row, old),
    }
}

fn equal(wrote: &Message, read: &RowMessage<'_>) -> bool {
    match (wrote, read) {
        (Message::Insert(row), RowMessage::Insert { table: 0, new }) => same(row, new),
        (Message::Update(w, row), RowMessage::Update { table: 0, old, new }) => {
            let olds = match (w, old) {
                (None, None) => true,
                (Some((full, w)), Some(old)) => same_old(*full, w, old),
                _ => false,
            };
            olds && same(row, new)
        }
        (Message::Delete(full, row), RowMessage::Delete { table: 0, old }) => {
            same_old(*full, row, old)
        }
        (Message::Truncate(n, c, r), RowMessage::Truncate { tables, cascade, restart }) => {
            tables.iter().eq(vec![0; *n]) && c == cascade && r == restart
        }
        (Message::Ddl(a), RowMessage::Ddl(b)) | (Message::User(a), RowMessage::User(b)) => a == b,
        (Message::Subxact(a), RowMessage::Subxact(b)) => a == b,
        _ => false,
    }
}

fn description() -> Vec<u8> {
    let mut out = Vec::new();
    let columns = [
        Column { name: b"id", key: true, of: ColumnType::BuiltIn(23), typmod: -1 },
        Column {
            name: b"mood",
            key: false,
            of: ColumnType::Named { schema: b"app", name: b"mood" },
            typmod: 7,
        },
    ];
    write_relation(
        &mut out,
        16385,
        b'r',
        ReplicaIdentity::Index,
        (b"public", b"t"),
        columns.into_iter(),
    );
    out
}

fn blob(messages: &[Message]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut w = RowWriter::new(&mut out);
    w.described(&description());
    messages.iter().for_each(|m| write(&mut w, m));
    out
}

#[test]
fn a_description_reads_back() {
    let bytes = description();
    let r = Relation::parse(&bytes).expect("it was just written");
    assert_eq!((r.oid(), r.kind(), r.identity()), (16385, b'r', ReplicaIdentity::Index));
    assert_eq!((r.schema(), r.name(), r.len()), (&b"public"[..], &b"t"[..], 2));
    let columns: Vec<_> = r.columns().collect();
    assert_eq!((columns[0].key, columns[0].of), (true, ColumnType::BuiltIn(23)));
    assert_eq!((columns[1].name, columns[1].typmod), (&b"mood"[..], 7));
}

#[test]
fn a_table_must_be_described_before_it_is_used() {
    let mut out = Vec::new();
    drop(RowWriter::new(&mut out).insert(0, 0));
    let read = RowReader::new(&out).next().expect("there is a message");
    assert_eq!(read.map_err(|e| e.kind), Err(DecodeErrorKind::Range("table number")));
    assert!(RowReader::resume(&out, 1).all(|m| m.is_ok()));
}

#[test]
fn a_one_row_update_is_small() {
    let mut out = Vec::new();
    let mut w = RowWriter::new(&mut out);
    w.update(0);
    w.no_old();
    let mut t = w.tuple(2);
    t.binary(&[0; 4]);
    t.binary(&[0; 4]);
    drop(t);
    assert_eq!(out.len(), 14);
}

proptest! {
    #[test]
    fn what_is_written_reads_back(messages in prop::collection::vec(message(), 0..12)) {
        let blob = blob(&messages);
        let read: Result<Vec<_>, _> = RowReader::new(&blob).collect();
        let read = read.expect("it was just written");
        prop_assert_eq!(read.len(), messages.len() + 1);
        for (wrote, read) in messages.iter().zip(&read[1..]) {
            prop_assert!(equal(wrote, read), "{:?} became {:?}", wrote, read);
        }
    }

    #[test]
    fn a_message_cut_short_is_an_error(message in message(), cut in 1usize..400) {
        let whole = blob(std::slice::from_ref(&message));
        let start = blob(&[]).len();
        let keep = whole.len().saturating_sub(cut).max(start + 1);
        prop_assume!(keep < whole.len());
        prop_assert!(RowReader::new(&whole[..keep]).any(|m| m.is_err()));
    }

    #[test]
    fn a_byte_behind_a_description_is_an_error(extra: u8) {
        let mut bytes = description();
        bytes.push(extra);
        prop_assert_eq!(Relation::parse(&bytes).map_err(|e| e.kind), Err(DecodeErrorKind::Trailing));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>, tables in 0u32..3) {
        for message in RowReader::resume(&bytes, tables) {
            let _ = format!("{message:?}");
        }
    }

    #[test]
    fn corrupted_blobs_never_panic(
        messages in prop::collection::vec(message(), 0..6), at: prop::sample::Index, to: u8,
    ) {
        let mut blob = blob(&messages);
        let at = at.index(blob.len());
        blob[at] = to;
        for message in RowReader::new(&blob) {
            let _ = format!("{message:?}");
        }
    }

    #[test]
    fn numbers_have_one_form(n: u64, padding in 1usize..3) {
        let mut out = Vec::new();
        write::var(&mut out, n);
        prop_assert_eq!(read::var(&mut mtm_core::wire::Reader::new(&out)), Ok(n));
        let last = out.len() - 1;
        out[last] |= 0x80;
        out.extend(std::iter::repeat_n(0x80, padding - 1));
        out.push(0);
        prop_assert!(read::var(&mut mtm_core::wire::Reader::new(&out)).is_err());
    }
}
