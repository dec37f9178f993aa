//! Checks of a running cluster.
