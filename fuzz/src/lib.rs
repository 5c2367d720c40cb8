//! The functions that are fuzzed; the programs in `bin/` hand them bytes.
//!
//! - *In:* any bytes. *Out:* a panic where something that holds for all bytes does not. *Bound:* the bytes. *When full:* does not apply.

pub mod targets;
