//! The roll: who is there, judged by what is seen of their leases.
//!
//! *In*: leases as a watch shows them, and this process' own monotonic clock. *Out*: the members that are there, those that are gone. *Bound*: one line per
//! lease. *When full*: does not apply.
//!
//! Time counts only while somebody is seen to renew, at most [`TICK_MAX`] between two renewals. A member is gone when for [`VALID`] of that time others
//! renewed and it did not. So no foreign wall clock matters, and while the API server or the watch is away nobody is seen, no time passes, and the list stays
//! as it is. The rule holds for this process too: where others are seen and it cannot renew, it has no share. Where nobody is seen, it keeps its share for
//! as long as that lasts: whether it is cut off alone or the API server is away for all, it cannot know, and twins are dropped while a gap is for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

/// How long a lease is valid after it was renewed. Larger: what a killed member scraped is missed for longer; smaller: one that is starved for a moment
/// loses its share.
pub const VALID: Duration = Duration::from_secs(10);

/// The most that counts between two renewals that are seen. Larger: after an outage of the API server members may pass for gone before they come back;
/// smaller than [`super::RENEW`]: who is alone with a dead one never learns of it.
const TICK_MAX: Duration = Duration::from_secs(4);

/// A lease as it was seen last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// Its object, which another one of the same name is not.
    pub(super) uid: String,
    /// Changes with every renewal.
    pub(super) version: String,
}

/// A member whose lease is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gone {
    pub(super) name: String,
    pub(super) seen: Seen,
}

#[derive(Debug)]
struct Known {
    /// None: its lease was not seen yet; that of this process alone.
    seen: Option<Seen>,
    /// The time that counted when it renewed last.
    at: Duration,
}

/// Who is there.
#[derive(Debug)]
pub(super) struct Roll {
    own: String,
    /// The lease of this process is wanted: until then it is there without one.
    has_joined: bool,
    counted: Duration,
    last: Instant,
    known: BTreeMap<String, Known>,
    /// Names of a list that is not whole yet.
    listed: Option<BTreeSet<String>>,
}

impl Roll {
    pub(super) fn new(own: &str, now: Instant) -> Self {
        let known = BTreeMap::from([(own.to_owned(), Known { seen: None, at: Duration::ZERO })]);
        Self { own: own.to_owned(), has_joined: false, counted: Duration::ZERO, last: now, known, listed: None }
    }

    /// Who is there, sorted; this process too, if it is.
    pub(super) fn live(&self) -> Vec<String> {
        self.known.keys().cloned().collect()
    }

    /// This process renews from now on.
    pub(super) fn joined(&mut self) {
        self.has_joined = true;
        let counted = self.counted;
        self.known.entry(self.own.clone()).or_insert(Known { seen: None, at: counted }).at = counted;
    }

    /// A lease was seen. Those that are over now are taken off the roll.
    pub(super) fn saw(&mut self, name: &str, seen: Seen, now: Instant) -> Vec<Gone> {
        if let Some(listed) = &mut self.listed {
            listed.insert(name.to_owned());
        }
        if self.known.get(name).is_some_and(|known| known.seen.as_ref() == Some(&seen)) {
            return Vec::new();
        }
        self.counted += now.saturating_duration_since(self.last).min(TICK_MAX);
        self.last = now;
        self.known.insert(name.to_owned(), Known { seen: Some(seen), at: self.counted });
        self.expire()
    }

    /// A lease was deleted: by its member, or by another one to which it was over. The own one is made again by whoever renews it.
    pub(super) fn left(&mut self, name: &str) {
        if name != self.own {
            self.known.remove(name);
        }
    }

    /// A whole list begins.
    pub(super) fn list(&mut self) {
        self.listed = Some(BTreeSet::new());
    }

    /// The list is whole: whose lease is not in it has left.
    pub(super) fn listed(&mut self) {
        if let Some(listed) = self.listed.take() {
            self.known.retain(|name, _| *name == self.own || listed.contains(name));
        }
    }

    fn expire(&mut self) -> Vec<Gone> {
        let (counted, own) = (self.counted, self.own.clone());
        let mut gone = Vec::new();
        self.known.retain(|name, known| {
            let is_over = counted - known.at > VALID && (self.has_joined || *name != own);
            // Only others delete it: who cannot renew may not be able to delete either, and is not to race with itself.
            gone.extend(known.seen.take_if(|_| is_over && *name != own).map(|seen| Gone { name: name.clone(), seen }));
            !is_over
        });
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scene {
        roll: Roll,
        now: Instant,
        version: u64,
    }

    impl Scene {
        /// "b", with "a" and "c" beside it.
        fn new() -> Self {
            let now = Instant::now();
            let mut scene = Self { roll: Roll::new("b", now), now, version: 0 };
            scene.roll.joined();
            scene.renew(0, &["a", "b", "c"]);
            scene
        }

        /// These renew every two seconds for so long; who passes for gone meanwhile.
        fn renew(&mut self, seconds: u64, names: &[&str]) -> Vec<String> {
            let mut gone = Vec::new();
            for _ in 0..=seconds / 2 {
                for name in names {
                    self.version += 1;
                    let seen = Seen { uid: (*name).to_owned(), version: self.version.to_string() };
                    gone.extend(self.roll.saw(name, seen, self.now).into_iter().map(|gone| gone.name));
                }
                self.now += Duration::from_secs(2);
            }
            gone
        }

        fn live(&self) -> String {
            self.roll.live().concat()
        }
    }

    #[test]
    fn who_is_not_seen_to_renew_while_others_are_is_gone() {
        let mut scene = Scene::new();
        assert!(scene.renew(8, &["a", "b"]).is_empty() && scene.live() == "abc", "it is still valid");
        assert_eq!((scene.renew(4, &["a", "b"]), scene.live()), (vec!["c".to_owned()], "ab".to_owned()));
        scene.renew(0, &["c"]);
        assert_eq!(scene.live(), "abc", "it is back with its first renewal");
        assert_eq!(
            (scene.renew(14, &["b"]), scene.live()),
            (vec!["a".to_owned(), "c".to_owned()], "b".to_owned()),
            "the last one is enough"
        );
    }

    #[test]
    fn while_nobody_is_seen_the_list_stays_however_long_that_is() {
        let mut scene = Scene::new();
        scene.now += Duration::from_secs(3600);
        // The API server is back; who came first does not take the others for gone.
        assert!(scene.renew(4, &["b"]).is_empty() && scene.live() == "abc");
        assert!(scene.renew(2, &["a", "c"]).is_empty() && scene.live() == "abc");
    }

    #[test]
    fn who_slept_takes_nobody_for_gone_and_goes_on() {
        let mut scene = Scene::new();
        // What waited in the socket for 20 s comes at once.
        scene.now += Duration::from_secs(20);
        for version in 0..10 {
            for name in ["a", "c"] {
                let seen = Seen { uid: name.to_owned(), version: format!("{name}{version}") };
                assert!(scene.roll.saw(name, seen, scene.now).is_empty());
            }
        }
        scene.roll.left("b");
        assert_eq!(scene.live(), "abc", "its own lease is made again");
    }

    #[test]
    fn who_cannot_renew_while_others_do_has_no_share_until_it_can() {
        let mut scene = Scene::new();
        assert!(scene.renew(12, &["a", "c"]).is_empty(), "nobody deletes its own lease");
        assert_eq!(scene.live(), "ac");
        scene.renew(0, &["b"]);
        assert_eq!(scene.live(), "abc");
        let mut starting = Scene { roll: Roll::new("b", scene.now), ..scene };
        starting.renew(20, &["a"]);
        assert_eq!(starting.live(), "ab", "before it joins it is there without a lease");
    }

    #[test]
    fn who_left_is_gone_at_once_and_a_list_says_who_left_unseen() {
        let mut scene = Scene::new();
        scene.roll.left("a");
        assert_eq!(scene.live(), "bc");
        scene.roll.list();
        scene.renew(0, &["a"]);
        assert_eq!(scene.live(), "abc", "nothing goes before the list is whole");
        scene.roll.listed();
        assert_eq!(scene.live(), "ab");
    }

    #[test]
    fn a_list_that_shows_what_was_seen_before_is_no_renewal() {
        let mut scene = Scene::new();
        let (seen, now) = (Seen { uid: "c".to_owned(), version: "3".to_owned() }, scene.now);
        assert!(scene.renew(8, &["a", "b"]).is_empty());
        assert!(scene.roll.saw("c", seen, now).is_empty());
        assert_eq!(scene.renew(4, &["a", "b"]), ["c"]);
    }
}
