//! Makes the programs that are shipped smaller (docs/decisions.md).
//!
//! Statically linked ones relocate themselves when they start, and a list of 24 bytes for each pointer is 230 kB of the
//! plugin: it is packed. Their start-up code is this host's glibc, which knows packed ones from 2.36 on. And functions
//! that are the same to the byte are there once, which Rust allows and rustc's own linker for this target does.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    let for_this_host = std::env::var("HOST").is_ok_and(|host| is("TARGET", &host));
    let shipped = is("PROFILE", "release") && is("CARGO_CFG_TARGET_ENV", "gnu");
    if shipped && for_this_host && glibc() >= Some((2, 36)) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    if shipped && for_this_host && is("CARGO_CFG_TARGET_ARCH", "x86_64") {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}

/// The version of this host's glibc: `ldd (Debian GLIBC 2.36-9+deb12u10) 2.36`.
fn glibc() -> Option<(u32, u32)> {
    let said = Command::new("ldd").arg("--version").output().ok()?.stdout;
    let said = String::from_utf8_lossy(&said);
    let (major, minor) = said.lines().next()?.rsplit(' ').next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
