//! What `specs/invariants.md` and `specs/glossary.md` point to is there.

use std::path::Path;

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Rows of all tables, without their heads.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .filter(|line| {
            line.starts_with("| ")
                && !line.starts_with("| invariant")
                && !line.starts_with("| word")
        })
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
}

/// `file#name` of a cell.
fn places(cell: &str) -> Vec<(&str, &str)> {
    cell.split('`').filter_map(|part| part.split_once('#')).collect()
}

#[test]
fn every_invariant_names_its_checker_and_its_test() {
    let (text, mut n) = (read("specs/invariants.md"), 0);
    for row in rows(&text) {
        n += 1;
        assert!(row.len() >= 4, "{row:?}");
        for cell in &row[1..4] {
            assert!(!places(cell).is_empty(), "{}: nothing stands in {cell:?}", row[0]);
        }
        for (path, name) in row[1..].iter().flat_map(|cell| places(cell)) {
            assert!(read(path).contains(name), "{}: {path} has no {name}", row[0]);
        }
    }
    assert!(n >= 25, "{n} rows");
}

/// Every invariant that the model checker is given stands in the table.
#[test]
fn every_invariant_of_the_specification_is_in_the_table() {
    let text = read("specs/invariants.md");
    let specification = read("specs/tla/README.md");
    let table =
        specification.split("## Invariants").nth(1).and_then(|rest| rest.split("\n## ").next());
    let mut n = 0;
    for row in table.expect("it has one").lines().filter(|line| line.starts_with("| `")) {
        for name in row.split('|').nth(1).unwrap_or_default().split('`').skip(1).step_by(2) {
            n += 1;
            let known = text.contains(&format!("#{name}`"));
            assert!(known, "{name} is not in specs/invariants.md");
        }
    }
    assert!(n >= 10, "{n} names");
}
