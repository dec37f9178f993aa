//! The example is run, with many seeds: it ends only when everyone has been left out and is back.

#[allow(dead_code, reason = "the example's own entry is called below")]
#[path = "../examples/three_nodes.rs"]
mod example;

#[test]
fn it_is_short_and_heals() {
    let source = include_str!("../examples/three_nodes.rs");
    assert!(source.lines().count() < 100);
    for seed in 0..50 {
        example::run(seed);
    }
}
