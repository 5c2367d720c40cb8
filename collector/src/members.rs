//! Members: who shares the targets out, and whose a target is.
//!
//! *In*: the names of the processes that are there. *Out*: whether a target is this one's. *Bound*: one hash per member. *When full*: does not apply.
//!
//! A rendezvous hash: of all members the one with the highest score for a target has it. Whoever comes or goes moves its own share alone, and two processes
//! that know of the same members agree without a word between them. This module knows nothing of how they find each other.

use std::time::Duration;

use sample::TargetId;
use tokio::sync::watch;
use xxhash_rust::xxh3::xxh3_64;

/// How much later than this process another one may learn who is there. What moves away is scraped for so long and one interval, so that nothing is missed;
/// relays drop the twins. Larger: more twins at every move; smaller: a slow watch elsewhere costs a slot.
pub const HANDOVER: Duration = Duration::from_secs(2);

/// How the members are learned of.
#[derive(Clone)]
pub struct Sharing {
    /// What this process is called.
    pub own: String,
    /// Who is there, whenever that changes.
    pub live: watch::Receiver<Vec<String>>,
}

/// The members that are there, and which of them this process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members {
    own: String,
    live: Vec<(String, u64)>,
}

impl Sharing {
    /// Who is there now.
    pub fn members(&self) -> Members {
        Members::new(self.own.clone(), self.live.borrow().iter().cloned())
    }
}

impl Members {
    /// `own`: what this process is called; `live`: all that are there. It has nothing where it is not among them, unless nobody is.
    pub fn new(own: impl Into<String>, live: impl IntoIterator<Item = String>) -> Self {
        let hashed = |name: String| {
            let hash = xxh3_64(name.as_bytes());
            (name, hash)
        };
        let mut live: Vec<_> = live.into_iter().map(hashed).collect();
        live.sort_unstable();
        live.dedup();
        Self { own: own.into(), live }
    }

    /// Whose a target is; none: nobody is there.
    pub fn owner(&self, target: TargetId) -> Option<&str> {
        let target = mix(target.0);
        // Sorted by name, so that equal scores are decided alike everywhere.
        self.live.iter().max_by_key(|(_, hash)| mix(hash ^ target)).map(|(name, _)| name.as_str())
    }

    /// Whether this process scrapes a target. Where nobody is known to be there, it does: twins are dropped, a gap is for ever.
    pub fn owns(&self, target: TargetId) -> bool {
        self.owner(target).is_none_or(|owner| owner == self.own)
    }
}

/// Every bit of the result depends on every bit of the input (the finalizer of splitmix64).
const fn mix(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: u64 = 10_000;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("strata-collector-{i}")).collect()
    }

    fn owners(live: &[String]) -> Vec<String> {
        let members = Members::new("nobody", live.to_vec());
        // Neighbours, as bad a set of identities as there may be.
        (0..TARGETS).map(|target| members.owner(TargetId(target)).expect("somebody is there").to_owned()).collect()
    }

    #[test]
    fn shares_are_equal_within_a_few_percent() {
        for count in [2, 3, 10] {
            let (live, fair) = (names(count), TARGETS as f64 / count as f64);
            let owners = owners(&live);
            for name in &live {
                let share = owners.iter().filter(|owner| *owner == name).count() as f64;
                // Four standard deviations of chance.
                assert!((share - fair).abs() < 4.0 * fair.sqrt(), "{name} of {count} has {share}, fair is {fair}");
            }
        }
    }

    #[test]
    fn only_the_share_of_who_comes_or_goes_moves() {
        let live = names(5);
        let before = owners(&live);
        for gone in &live {
            let left: Vec<String> = live.iter().filter(|name| *name != gone).cloned().collect();
            for (was, is) in before.iter().zip(owners(&left)) {
                assert!(*was == is || was == gone, "{was} lost a target to {is} when {gone} went");
            }
        }
    }

    #[test]
    fn each_target_has_one_owner_whoever_is_asked() {
        let live = names(3);
        let mut other_order = live.clone();
        other_order.reverse();
        for target in (0..TARGETS).map(TargetId) {
            let owning = live.iter().filter(|own| Members::new(*own, other_order.clone()).owns(target)).count();
            assert_eq!(owning, 1);
        }
        let (gone, alone) = (Members::new("x", live), Members::new("x", []));
        assert!(!gone.owns(TargetId(1)) && alone.owns(TargetId(1)), "who is not there has nothing, unless nobody is");
    }
}
