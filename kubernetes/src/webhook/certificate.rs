//! Certificates of the webhook: an authority and a leaf, made, kept and renewed by Strata.
//!
//! *In*: what is kept in the Secret, the time. *Out*: what is to be kept instead. *Bound*: two authorities at a time. *When full*: does not apply.
//!
//! An authority signs one leaf and its key is thrown away: who reads the Secret can be the webhook, and sign nothing. A renewal therefore brings another
//! authority. It is trusted first, shown when every API server may know of it, and the one before it is forgotten when nobody shows its leaf any more. No
//! process decides alone: whoever looks first writes the next step, and a step that another one wrote meanwhile is not written again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use serde::{Deserialize, Serialize};

/// How long a certificate is good for. Larger: a stolen key is of use for longer; smaller: more renewals, each of which two API objects are written for.
pub const LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long before its end a certificate is renewed. Larger: it is renewed more often; smaller: Strata may be away for so long only.
pub const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);
/// From one step of a renewal to the next. Larger: a renewal takes longer; smaller: an API server, or another process of ours, that is late does not know
/// the authority whose leaf it is shown.
pub const SETTLE: Duration = Duration::from_secs(60);
/// Clocks may differ so much: a certificate is good from so long ago on.
const SLACK: Duration = Duration::from_secs(3600);

/// A leaf and who signed it, PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// The authority's certificate.
    pub authority: String,
    /// The leaf.
    pub cert: String,
    /// Its key.
    pub key: String,
    /// When both end, seconds since the Unix epoch.
    pub ends: u64,
}

/// All that is kept.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// What is shown.
    pub shown: Pair,
    /// What will be shown, and what was shown, while one takes the place of the other.
    pub change: Option<Change>,
}

/// One certificate takes the place of another.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// The other one.
    pub other: Pair,
    /// Whether the other one is yet to be shown.
    pub is_next: bool,
    /// Since when it is so, seconds since the Unix epoch.
    pub since: u64,
}

/// Why no certificate can be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a certificate for '{name}' (kubernetes.webhook.service)")]
pub struct Error {
    name: String,
    #[source]
    source: rcgen::Error,
}

impl Pair {
    /// Makes one for a server of these names.
    ///
    /// *Errors*: see [`Error`].
    pub fn make(names: &[String], now: SystemTime, life: Duration) -> Result<Self, Error> {
        let made = || {
            let mut params = CertificateParams::new([])?;
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params.distinguished_name.push(DnType::CommonName, "strata webhook authority");
            (params.not_before, params.not_after) = ((now - SLACK).into(), (now + life).into());
            let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
            let mut params = CertificateParams::new(names)?;
            params.distinguished_name.push(DnType::CommonName, "strata webhook");
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            (params.not_before, params.not_after) = ((now - SLACK).into(), (now + life).into());
            let key = KeyPair::generate()?;
            let cert = params.signed_by(&key, &authority)?.pem();
            Ok(Self { authority: authority.pem(), cert, key: key.serialize_pem(), ends: seconds(now + life) })
        };
        made().map_err(|source| Error { name: names.first().cloned().unwrap_or_default(), source })
    }
}

impl Kept {
    /// What the API server is to trust, PEM.
    pub fn bundle(&self) -> String {
        let other = self.change.as_ref().map_or("", |change| change.other.authority.as_str());
        format!("{}{other}", self.shown.authority)
    }
}

/// The names by which the API server calls a service.
pub fn names(service: &str, namespace: &str) -> Vec<String> {
    vec![format!("{service}.{namespace}.svc"), format!("{service}.{namespace}.svc.cluster.local")]
}

/// The next step: what is to be kept in the place of what is; none: there is nothing to do.
///
/// *Errors*: see [`Error`].
pub fn next(kept: Option<&Kept>, names: &[String], now: SystemTime) -> Result<Option<Kept>, Error> {
    let Some(kept) = kept else {
        return Ok(Some(Kept { shown: Pair::make(names, now, LIFE)?, change: None }));
    };
    let at = seconds(now);
    match &kept.change {
        Some(change) if at < change.since.saturating_add(SETTLE.as_secs()) => Ok(None),
        Some(Change { other, is_next: true, .. }) => {
            let before = Change { other: kept.shown.clone(), is_next: false, since: at };
            Ok(Some(Kept { shown: other.clone(), change: Some(before) }))
        }
        Some(_) => Ok(Some(Kept { shown: kept.shown.clone(), change: None })),
        None if at.saturating_add(RENEW_BEFORE.as_secs()) < kept.shown.ends => Ok(None),
        None => {
            let after = Change { other: Pair::make(names, now, LIFE)?, is_next: true, since: at };
            Ok(Some(Kept { shown: kept.shown.clone(), change: Some(after) }))
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(kept: Option<&Kept>, now: SystemTime) -> Option<Kept> {
        next(kept, &names("strata-webhook", "strata"), now).expect("good names")
    }

    #[test]
    fn a_renewal_is_trusted_before_it_is_shown_and_the_old_one_until_nobody_shows_it() {
        let begin = SystemTime::now();
        let first = step(None, begin).expect("the first one is made");
        assert!(step(Some(&first), begin + LIFE - RENEW_BEFORE - Duration::from_secs(2)).is_none());

        let due = begin + LIFE - RENEW_BEFORE;
        let trusted = step(Some(&first), due).expect("it is due");
        let new = trusted.change.clone().expect("one is to come").other;
        assert!(trusted.shown == first.shown && new.cert != first.shown.cert);
        let both = |kept: &Kept| kept.bundle().contains(&first.shown.authority) && kept.bundle().contains(&new.authority);
        assert!(both(&trusted) && step(Some(&trusted), due + SETTLE - Duration::from_secs(1)).is_none());

        let shown = step(Some(&trusted), due + SETTLE).expect("it is known everywhere");
        assert!(shown.shown == new && both(&shown));
        assert!(step(Some(&shown), due + SETTLE * 2 - Duration::from_secs(1)).is_none());
        let done = step(Some(&shown), due + SETTLE * 2).expect("the old one goes");
        assert!(done.shown == new && done.bundle() == new.authority && step(Some(&done), due + SETTLE * 3).is_none());
    }

    #[test]
    fn what_is_kept_is_read_again_and_another_text_is_none() {
        let kept = step(None, SystemTime::now()).expect("made");
        let text = serde_json::to_string(&kept).expect("JSON");
        assert!(serde_json::from_str::<Kept>(&text).is_ok_and(|again| again == kept));
        assert!(serde_json::from_str::<Kept>("{\"shown\": {}}").is_err());
        for part in [&kept.shown.authority, &kept.shown.cert] {
            assert!(part.starts_with("-----BEGIN CERTIFICATE-----"), "{part}");
        }
        assert!(kept.shown.key.starts_with("-----BEGIN PRIVATE KEY-----"));
    }

    #[test]
    fn a_name_that_is_none_is_an_error_that_says_so() {
        let error = next(None, &["a\u{e9} b".to_owned()], SystemTime::now()).err().expect("refused");
        assert!(error.to_string().contains("kubernetes.webhook.service"), "{error}");
    }
}
