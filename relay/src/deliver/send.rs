//! Sending one part: retries without end, bisection of what is rejected.
//!
//! *In*: a part. *Out*: what was delivered, who offended, what was given up meanwhile. *Bound*: one request at a time. *When full*: waits.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tracing::warn;
use xxhash_rust::xxh3::Xxh3;

use super::{Deliver, HELD_RETRY, Halt};
use crate::backoff::{BACKOFF_FIRST, Backoff, jitter};
use crate::dead::Offender;
use crate::sink::{Answer, Batch};
use crate::step::Part;
use crate::telemetry::Activity;
use crate::template::Route;

/// Requests of a bisection without any success after which the whole batch counts as rejected for now. Larger: a broken sink is asked more
/// often; smaller: a batch that begins with many offenders is taken for wholly rejected, and waits for the next one's outcome.
const PROBES_MAX: usize = 64;

/// What became of a part's items.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub delivered: u64,
    pub offenders: Vec<Offender>,
    pub given_up: u64,
}

/// How long a request may have taken when a stop no longer waits for it. Larger: a sink that hangs takes the time of the others; smaller: what a
/// slow one has taken goes again.
const SEND_GRACE: Duration = Duration::from_secs(5);

pub(super) enum Sent {
    Done(Outcome),
    /// Nothing was taken: the sink's answer.
    AllRejected(Arc<str>),
}

/// The last word on one request.
enum Word {
    Delivered,
    Rejected { items: Option<Vec<usize>>, answer: Arc<str> },
    GivenUp,
}

/// Samples per second.
pub(super) struct Bucket {
    rate: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    pub fn new(rate: u64) -> Self {
        Self { rate: rate.max(1) as f64, level: 0.0, at: Instant::now() }
    }

    /// How long to wait before so many samples.
    pub fn take(&mut self, samples: u64) -> Duration {
        let now = Instant::now();
        self.level = (self.level - now.duration_since(self.at).as_secs_f64() * self.rate).max(0.0);
        self.at = now;
        let wait = self.level / self.rate;
        self.level += samples as f64;
        Duration::from_secs_f64(wait)
    }
}

impl Deliver {
    /// Waits until a replay may send so many samples.
    pub(super) async fn pay(&mut self, samples: u64) -> Result<(), Halt> {
        let Some(bucket) = &mut self.rate else { return Ok(()) };
        let wait = bucket.take(samples);
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Halt::Stopped),
            () = sleep(wait) => Ok(()),
        }
    }

    /// Sends a part's items, taking it apart where the sink rejects. `probing`: a sink that takes nothing of it is not asked for every item.
    pub(super) async fn send(&mut self, part: &Part, probing: bool) -> Result<Sent, Halt> {
        let whole = part.batch.items.len();
        let mut outcome = Outcome::default();
        let (mut tries, mut last) = (0, Arc::from(""));
        let Groups { order, mut ranges, unrouted } = Groups::of(&part.batch, self.sink.routes_apart());
        for (item, answer) in unrouted {
            last = answer.clone();
            outcome.offenders.push(Offender { item, answer });
        }
        while let Some(Range { from, to, key }) = ranges.pop() {
            let cut;
            let batch = if to - from == whole && key.is_empty() {
                &part.batch
            } else {
                cut = part.batch.share(&order[from..to], &if key.is_empty() { format!("{from}-{to}") } else { key.clone() });
                &cut
            };
            tries += 1;
            let word = match self.request(batch, part.seq).await {
                Ok(word) => word,
                Err(halt) => {
                    self.half_sent |= outcome.delivered > 0;
                    return Err(halt);
                }
            };
            match word {
                Word::Delivered => outcome.delivered += (to - from) as u64,
                Word::GivenUp => outcome.given_up += (to - from) as u64,
                Word::Rejected { items: Some(items), answer } => {
                    // The sink names them: it has taken the others.
                    let mut named: Vec<usize> = items.into_iter().filter(|item| *item < to - from).collect();
                    named.sort_unstable();
                    named.dedup();
                    outcome.delivered += (to - from - named.len()) as u64;
                    outcome.offenders.extend(named.into_iter().map(|item| Offender { item: order[from + item], answer: answer.clone() }));
                    last = answer;
                }
                Word::Rejected { items: None, answer } if to - from <= 1 => {
                    outcome.offenders.extend(order[from..to].iter().map(|item| Offender { item: *item, answer: answer.clone() }));
                    last = answer;
                }
                Word::Rejected { items: None, answer } => {
                    ranges.extend(Range { from, to, key }.halves());
                    last = answer;
                }
            }
            if probing && outcome.delivered == 0 && outcome.given_up == 0 && tries >= PROBES_MAX {
                return Ok(Sent::AllRejected(last));
            }
        }
        if probing && !outcome.offenders.is_empty() && outcome.offenders.len() == whole {
            return Ok(Sent::AllRejected(last));
        }
        Ok(Sent::Done(outcome))
    }

    /// One request until the sink has a last word, or its samples are given up.
    async fn request(&mut self, batch: &Batch, seq: u64) -> Result<Word, Halt> {
        let mut backoff = Backoff::default();
        let mut tries = 0u64;
        loop {
            self.rest(seq).await?;
            if self.skips(seq) {
                return Ok(Word::GivenUp);
            }
            tries += 1;
            if tries > 1 {
                self.gauges.metrics.retries.inc();
            }
            let answer = {
                let (begun, stop) = (Instant::now(), self.stop.clone());
                let late = async move {
                    stop.cancelled().await;
                    sleep_until(begun + SEND_GRACE).await;
                };
                tokio::select! {
                    biased;
                    answer = self.sink.send(batch, 0..batch.items.len()) => Some(answer),
                    () = late => None,
                }
            };
            let Some(answer) = answer else {
                warn!(relay = self.name(), "the sink does not answer: its batch is not waited for, and goes again under the same key");
                // It may have been taken.
                self.half_sent = true;
                return Err(Halt::Stopped);
            };
            let wait = match answer {
                Answer::Delivered => {
                    if tries > 1 {
                        self.fine();
                    }
                    return Ok(Word::Delivered);
                }
                Answer::Reject { items, reason } => return Ok(Word::Rejected { items, answer: reason.into() }),
                Answer::Retry { after, reason } => {
                    let own = backoff.wait();
                    // A sink may ask to be called again at once, to look for answers that are on their way.
                    let wait = after.unwrap_or(own);
                    let wait = if wait.is_zero() && tries > 1 { own.min(BACKOFF_FIRST) } else { wait };
                    self.trouble(Activity::Retrying, reason, wait);
                    wait
                }
                Answer::Fatal { reason } => {
                    let wait = jitter(HELD_RETRY);
                    self.trouble(Activity::Held, reason, wait);
                    wait
                }
            };
            self.write_if_due().await?;
            let pause = sleep(wait);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return Err(Halt::Stopped),
                    () = self.control.sender.notified() => if self.skips(seq) || self.control.paused().is_some() { break },
                    () = &mut pause => break,
                }
            }
        }
    }
}

/// Items of one route, or all: a range of [`Groups::order`], and the part of the key that names it; empty: by its place.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    from: usize,
    to: usize,
    key: String,
}

/// How a part is taken apart before anything is sent.
struct Groups {
    /// Items, those of one route together; in one route they keep their order, and so do the samples of a series.
    order: Vec<usize>,
    /// What to send, the first on top.
    ranges: Vec<Range>,
    /// Items without a route, and why.
    unrouted: Vec<(usize, Arc<str>)>,
}

impl Range {
    /// Both halves, the first on top.
    fn halves(self) -> [Self; 2] {
        let middle = self.from + (self.to - self.from) / 2;
        let key = |from: usize, to: usize| match self.key.split_once('.') {
            _ if self.key.is_empty() => String::new(),
            Some((route, range)) => {
                let start = range.split('-').next().and_then(|start| start.parse::<usize>().ok()).unwrap_or(0);
                format!("{route}.{}-{}", start + from - self.from, start + to - self.from)
            }
            None => format!("{}.{}-{}", self.key, from - self.from, to - self.from),
        };
        [Self { from: middle, to: self.to, key: key(middle, self.to) }, Self { from: self.from, to: middle, key: key(self.from, middle) }]
    }
}

impl Groups {
    fn of(batch: &Batch, apart: bool) -> Self {
        let whole = batch.items.len();
        let mut order: Vec<usize> = (0..whole).collect();
        if !apart || batch.routes.is_empty() {
            return Self { order, ranges: vec![Range { from: 0, to: whole, key: String::new() }], unrouted: Vec::new() };
        }
        let why: Vec<Option<Arc<str>>> = batch
            .routes
            .iter()
            .map(|route| route.iter().find_map(|text| text.as_ref().err()).map(|error| Arc::from(error.to_string())))
            .collect();
        let reason = |item: usize| why.get(batch.items[item].route as usize).and_then(Clone::clone);
        let unrouted: Vec<_> = order.iter().filter_map(|item| reason(*item).map(|why| (*item, why))).collect();
        order.retain(|item| reason(*item).is_none());
        // Stable: the samples of a series stay in order.
        order.sort_by_key(|item| batch.items[*item].route);
        let mut ranges = Vec::new();
        let mut from = 0;
        for group in order.chunk_by(|a, b| batch.items[*a].route == batch.items[*b].route) {
            let to = from + group.len();
            let key = batch.route(group[0]).map_or(0, |route| name(route));
            ranges.push(Range { from, to, key: format!("r{key:016x}") });
            from = to;
        }
        ranges.reverse();
        Self { order, ranges, unrouted }
    }
}

/// What names a route in a key: its texts, wherever in the batch it first comes.
fn name(route: &Route) -> u64 {
    let mut hash = Xxh3::new();
    for text in route.iter().flatten() {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.digest()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sink::tests::lines;
    use crate::template::RenderError;

    /// Items with these routes; 9: a label is missing.
    fn batch(routes: &[u32]) -> Batch {
        let texts: Vec<String> = (0..routes.len()).map(|i| i.to_string()).collect();
        let mut batch = lines(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        batch.routes = (0..10)
            .map(|route| match route {
                9 => Arc::new(vec![Err(RenderError::Missing("ns".to_owned()))].into_boxed_slice()),
                route => Arc::new(vec![Ok(format!("/{route}").into_boxed_str())].into_boxed_slice()),
            })
            .collect();
        batch.items.iter_mut().zip(routes).for_each(|(item, route)| item.route = *route);
        batch
    }

    #[test]
    fn a_group_is_named_by_its_text_and_keeps_its_order() {
        let batch = batch(&[3, 1, 9, 3, 1]);
        let Groups { order, ranges, unrouted } = Groups::of(&batch, true);
        assert_eq!(order, [1, 4, 0, 3]);
        assert_eq!(
            unrouted.iter().map(|(item, why)| (*item, &**why)).collect::<Vec<_>>(),
            [(2, "the series has no label 'ns': give the template a default, '{{ns:…}}'")]
        );
        let first = ranges.last().expect("two groups");
        assert_eq!((first.from, first.to), (0, 2));
        let share = batch.share(&order[first.from..first.to], &first.key);
        assert_eq!((share.bytes.as_slice(), share.key.as_str()), (&b"14"[..], format!("p:1:1/0.{}/abc", first.key).as_str()));
        assert_eq!(first.key, format!("r{:016x}", name(&batch.routes[1])));
        let [second, half] = first.clone().halves();
        assert_eq!((half.key, second.key), (format!("{}.0-1", first.key), format!("{}.1-2", first.key)));
    }

    #[test]
    fn without_routes_nothing_is_taken_apart() {
        let Groups { order, ranges, .. } = Groups::of(&batch(&[3, 1, 9]), false);
        assert_eq!((order, ranges.len()), (vec![0, 1, 2], 1));
    }

    proptest! {
        #[test]
        fn every_item_is_in_one_group_under_one_key(routes in proptest::collection::vec(0u32..10, 1..40)) {
            let batch = batch(&routes);
            let Groups { order, mut ranges, unrouted } = Groups::of(&batch, true);
            let mut all: Vec<usize> = order.iter().copied().chain(unrouted.iter().map(|(item, _)| *item)).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..routes.len()).collect::<Vec<_>>());
            let mut keys = std::collections::HashSet::new();
            let mut next = 0;
            while let Some(range) = ranges.pop() {
                prop_assert!(keys.insert(range.key.clone()), "{}", range.key);
                let group = &order[range.from..range.to];
                prop_assert!(group.iter().all(|item| routes[*item] == routes[group[0]] && routes[*item] != 9));
                prop_assert!(group.is_sorted());
                if group.len() > 1 {
                    ranges.extend(range.halves());
                } else {
                    prop_assert_eq!(range.from, next);
                    next += 1;
                }
            }
        }
    }
}
