//! criterion benches live beside this file.
