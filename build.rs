//! Makes the programs that are shipped smaller (docs/decisions.md).
//!
//! Statically linked ones relocate themselves when they start, and a list of 24 bytes for each pointer is 230 kB of the
//! plugin: it is packed. Their start-up code is this host's glibc, which knows packed ones from 2.36 on. And functions
//! that are the same to the byte are there once, which Rust allows and rustc's own linker does, the usual one for this
//! target from Rust 1.90 on.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    let for_this_host = std::env::var("HOST").is_ok_and(|host| is("TARGET", &host));
    let shipped = is("PROFILE", "release") && is("CARGO_CFG_TARGET_ENV", "gnu");
    if shipped && for_this_host && glibc() >= Some((2, 36)) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    if shipped && is("TARGET", "x86_64-unknown-linux-gnu") && rust() >= Some((1, 90)) {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}

/// The version of this host's glibc: `ldd (Debian GLIBC 2.36-9+deb12u10) 2.36`.
fn glibc() -> Option<(u32, u32)> {
    version(said("ldd")?.lines().next()?.rsplit(' ').next()?)
}

/// The compiler's: `rustc 1.95.0 (59807616e 2026-04-14)`.
fn rust() -> Option<(u32, u32)> {
    version(said(&std::env::var("RUSTC").ok()?)?.split(' ').nth(1)?)
}

fn said(program: &str) -> Option<String> {
    let said = Command::new(program).arg("--version").output().ok()?.stdout;
    Some(String::from_utf8_lossy(&said).into_owned())
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}
