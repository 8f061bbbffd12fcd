//! A complete RBD client in Rust.

pub mod config;
