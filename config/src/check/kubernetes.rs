//! Checks of the section `kubernetes`.
//!
//! *In*: the section. *Out*: problems. *Bound*: one pass. *When full*: does not apply.

use super::Findings;
use crate::Config;
use crate::tree::steps;

/// Bytes of `kubernetes.group`: it is a label's value, and begins the names of leases.
const GROUP_BYTES_MAX: usize = 63;

impl Findings<'_> {
    pub(super) fn kubernetes(&mut self, config: &Config) {
        let Some(kubernetes) = &config.kubernetes else { return };
        let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let group = kubernetes.group();
        let is_name =
            (1..=GROUP_BYTES_MAX).contains(&group.len()) && group.bytes().all(is_inner) && !group.starts_with('-') && !group.ends_with('-');
        if !is_name {
            let message = format!("'{group}' is no name: small letters, digits and '-' inside, at most {GROUP_BYTES_MAX} of them");
            self.problem(&steps!["kubernetes", "group"], message);
        }
    }
}
