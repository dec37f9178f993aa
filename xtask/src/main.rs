//! One command for people, tests and CI.
fn main() {}
