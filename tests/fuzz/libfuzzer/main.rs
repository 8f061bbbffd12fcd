//! Drives the target named by `$FUZZ_TARGET` with libFuzzer: see `tests/fuzz/run`.
#![no_main]

#[path = "../memory.rs"]
mod memory;
#[path = "../targets/mod.rs"]
#[allow(dead_code, reason = "what seeds are made of")]
mod targets;

use std::sync::OnceLock;

use targets::Target;

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    static TARGET: OnceLock<&Target> = OnceLock::new();
    let target = TARGET.get_or_init(|| {
        let target = Target::named(&std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET"));
        target.check(&[]); // what is made once
        target
    });
    target.check(input);
});
