//! What a change of a public surface means for embedders, and which version it needs.
//!
//! Where the lines of a surface do not say enough, the stricter answer is given.

use std::collections::BTreeSet;

/// What embedders notice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Change {
    /// Nothing.
    Nothing,
    /// There is more.
    Addition,
    /// What compiled may not compile any more.
    Breaking,
}

/// Major, minor, patch.
pub(crate) type Version = (u64, u64, u64);

/// Reads a version.
pub(crate) fn version(text: &str) -> Option<Version> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}

/// The lowest version that may follow `old` with this change: of two versions that begin with 0,
/// the second number says whether they are compatible.
pub(crate) const fn needed(old: Version, change: Change) -> Version {
    match (old, change) {
        (old, Change::Nothing) => old,
        ((0, minor, patch), Change::Addition) => (0, minor, patch + 1),
        ((0, minor, _), Change::Breaking) => (0, minor + 1, 0),
        ((major, minor, _), Change::Addition) => (major, minor + 1, 0),
        ((major, ..), Change::Breaking) => (major + 1, 0, 0),
    }
}

type Lines<'a> = BTreeSet<&'a str>;

/// The change between two surfaces, and its lines with what each of them means.
pub(crate) fn compare(old: &str, new: &str) -> (Change, Vec<String>) {
    let (old, new): (Lines<'_>, Lines<'_>) = (old.lines().collect(), new.lines().collect());
    let gone = old.difference(&new).map(|line| ('-', *line, removed(line, &new)));
    let more = new.difference(&old).map(|line| ('+', *line, added(line, &old)));
    let all: Vec<_> = gone.chain(more).collect();
    let change = all.iter().map(|(_, _, change)| *change).max().unwrap_or(Change::Nothing);
    (
        change,
        all.iter().map(|(sign, line, change)| format!("{sign} {line}   [{change:?}]")).collect(),
    )
}

fn removed(line: &str, new: &Lines<'_>) -> Change {
    let item = line.split_once(": #[").map(|(item, _)| item);
    let stays = match item {
        // Whoever had to expect more may go on doing so.
        Some(_) if line.ends_with(": #[non_exhaustive]") => true,
        Some(item) => derives(line, item).is_subset(&all_derives(new, item)),
        // What became const can do more than before.
        None => new.contains(line.replacen(": fn ", ": const fn ", 1).as_str()),
    };
    if stays { Change::Addition } else { Change::Breaking }
}

fn added(line: &str, old: &Lines<'_>) -> Change {
    let has = |line: String| old.iter().any(|l| *l == line || l.starts_with(&format!("{line}<")));
    let Some((module, what)) = line.split_once(": ") else { return Change::Breaking };
    if let Some(item) = what.strip_suffix(": #[non_exhaustive]") {
        let known = ["struct", "enum"].iter().any(|kind| has(format!("{module}: {kind} {item}")));
        return if known { Change::Breaking } else { Change::Addition };
    }
    let name = what.split([':', '.', '<', ' ']).next().unwrap_or_default();
    let open = has(format!("{module}: {name}: #[non_exhaustive]"));
    let place = what.split(": ").next().unwrap_or_default();
    let breaks = if let Some((variant, _)) = place.split_once('.').filter(|_| place.contains("::"))
    {
        // A variant has one more field.
        has(format!("{module}: {variant}"))
    } else if place.contains("::") && !place.contains(['(', ' ']) {
        // Whoever matches on an enum has one more case.
        has(format!("{module}: enum {name}")) && !open
    } else if place.contains('.') && !place.contains(['(', ' ']) {
        // Whoever writes down or takes apart a struct whose fields are all public does not know this one.
        let field = format!("{module}: {name}.");
        !open && old.iter().any(|line| line.starts_with(&field))
    } else {
        // Whoever implements a trait may lack this item.
        let (known, item) = (format!("{module}: trait {name}"), format!("{name}: "));
        let is_trait = |line: &&str| {
            line.strip_prefix(&known).is_some_and(|rest| rest.starts_with([':', '<']))
        };
        what.starts_with(&item) && old.iter().any(is_trait)
    };
    if breaks { Change::Breaking } else { Change::Addition }
}

fn derives<'a>(line: &'a str, item: &str) -> BTreeSet<&'a str> {
    let list = line.strip_prefix(item).and_then(|rest| rest.strip_prefix(": #[derive("));
    list.and_then(|list| list.strip_suffix(")]"))
        .map(|list| list.split(", ").collect())
        .unwrap_or_default()
}

fn all_derives<'a>(lines: &Lines<'a>, item: &str) -> BTreeSet<&'a str> {
    lines.iter().flat_map(|line| derives(line, item)).collect()
}

const OLD: &str = "\
m: E: #[derive(Clone, Debug)]
m: E::One
m: E::Two
m: E::Two.0: u8
m: Hidden: fn new() -> Self
m: Open: #[non_exhaustive]
m: Open::One
m: Plain.a: u8
m: T: fn go(&self)
m: enum E
m: enum Open<V>
m: fn free(a: u8)
m: struct Hidden
m: struct Plain
m: trait T: 
m: use e::E
";

/// `OLD` without the lines in `minus`, with those in `plus`.
fn change(minus: &[&str], plus: &[&str]) -> Change {
    let kept = OLD.lines().filter(|line| !minus.contains(line));
    let new: Vec<&str> = kept.chain(plus.iter().copied()).collect();
    compare(OLD, &new.join("\n")).0
}

#[test]
fn what_is_gone_or_different_breaks() {
    assert_eq!(change(&[], &[]), Change::Nothing);
    for line in OLD.lines().filter(|line| !line.contains("non_exhaustive")) {
        assert_eq!(change(&[line], &[]), Change::Breaking, "{line}");
    }
    assert_eq!(change(&["m: fn free(a: u8)"], &["m: fn free(a: u16)"]), Change::Breaking);
    let derive = "m: E: #[derive(Clone, Debug)]";
    assert_eq!(change(&[derive], &["m: E: #[derive(Debug)]"]), Change::Breaking);
}

#[test]
fn some_additions_break() {
    for line in [
        "m: E::Three",
        "m: E::Two.1: u8",
        "m: Plain.b: u8",
        "m: Plain: #[non_exhaustive]",
        "m: E: #[non_exhaustive]",
        "m: T: fn come(&self)",
    ] {
        assert_eq!(change(&[], &[line]), Change::Breaking, "{line}");
    }
}

#[test]
fn most_additions_do_not() {
    for line in [
        "m: fn other()",
        "m: mod more",
        "m: use e::F",
        "m: struct New",
        "m: New: #[non_exhaustive]",
        "m: New.a: u8",
        "m: New::One",
        "m: New::One.0: crate::x::Y",
        "m: Open::Two",
        "m: Hidden.a: u8",
        "m: Hidden: fn more(&self) -> Option<a::B>",
        "m: impl From<a::B> for E",
    ] {
        assert_eq!(change(&[], &[line]), Change::Addition, "{line}");
    }
    assert_eq!(change(&["m: Open: #[non_exhaustive]"], &[]), Change::Addition);
    let derive = "m: E: #[derive(Clone, Debug)]";
    assert_eq!(change(&[derive], &["m: E: #[derive(Clone, Debug, Eq)]"]), Change::Addition);
    let become_const =
        change(&["m: Hidden: fn new() -> Self"], &["m: Hidden: const fn new() -> Self"]);
    assert_eq!(become_const, Change::Addition);
}

#[test]
fn versions_that_are_needed() {
    let of = |text, change| needed(version(text).expect("a version"), change);
    assert_eq!(of("0.1.3", Change::Nothing), (0, 1, 3));
    assert_eq!(of("0.1.3", Change::Addition), (0, 1, 4));
    assert_eq!(of("0.1.3", Change::Breaking), (0, 2, 0));
    assert_eq!(of("2.1.3", Change::Addition), (2, 2, 0));
    assert_eq!(of("2.1.3", Change::Breaking), (3, 0, 0));
    assert_eq!(version("0.1"), None);
}
