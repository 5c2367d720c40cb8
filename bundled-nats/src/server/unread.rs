//! What a server that has recovered its store lists and does not read back.
//!
//! *In*: a connection. *Out*: a subject of which there should be a message and is none: a block is damaged on disk. Such a server takes what is written
//! behind the damage, answers that nothing is there, and forgets it with the next start, which leaves out what is damaged. *Bound*: a request for each subject.
//! *When full*: does not apply.

use crate::client::{Answers, NatsLog};
use crate::link::Link;
use crate::port::Log as _;

/// The first such subject of these streams; none: everything is read back, or the server does not say.
pub(super) async fn first(link: &Link, streams: impl Iterator<Item = &'static str>) -> Option<String> {
    for stream in streams {
        let log = NatsLog::new(link.clone(), stream, Answers::Any);
        for subject in log.subjects().await.ok()?.into_keys() {
            let is_gone = log.last(&subject).await.ok()?.is_none();
            // Somebody else may have purged it meanwhile.
            if is_gone && log.subjects().await.ok()?.contains_key(&subject) {
                return Some(subject);
            }
        }
    }
    None
}
