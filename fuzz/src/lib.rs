//! The functions that are fuzzed; the program beside it hands them bytes.
//!
//! - *In:* any bytes. *Out:* a panic where something that holds for all bytes does not. *Bound:* the bytes. *When full:* does not apply.

pub mod pages;
pub mod remote_write;

/// A target by its name: that of its folder in `corpus/`, which `make fuzz` goes through.
pub fn target(name: &str) -> Option<fn(&[u8])> {
    pages::TARGETS.iter().chain(&remote_write::TARGETS).find(|(known, _)| *known == name).map(|(_, target)| *target)
}
