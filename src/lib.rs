//! A complete RBD client in Rust.
