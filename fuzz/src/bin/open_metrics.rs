//! `fuzz::targets::open_metrics` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::targets::open_metrics(bytes));
