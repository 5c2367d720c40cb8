//! Candidates for a Lease that an API server in memory keeps, each on its own way there, which may be slow or go nowhere.

use std::sync::{Arc, Mutex, PoisonError};

use http::Method;
use serde_json::{Value, json};

use super::*;
use crate::stand_in;

const STEP: Duration = Duration::from_millis(100);

/// The one Lease there is.
#[derive(Default)]
struct Kept {
    lease: Option<Value>,
    version: u64,
    /// Nothing is taken or told for now.
    is_busy: bool,
}

/// How long an answer takes on a candidate's way; none: it never comes.
type Way = Arc<Mutex<Option<Duration>>>;

impl Kept {
    fn answer(&mut self, method: &Method, body: Value) -> (u16, Value) {
        let failed = |code: u16, reason: &str| (code, json!({ "kind": "Status", "status": "Failure", "code": code, "reason": reason }));
        if self.is_busy {
            return failed(429, "TooManyRequests");
        }
        let named = self.lease.as_ref().map(|lease| &lease["metadata"]["resourceVersion"]);
        if *method == Method::GET {
            return self.lease.clone().map_or_else(|| failed(404, "NotFound"), |lease| (200, lease));
        }
        assert!(body.is_object(), "a Lease");
        let mut lease = body;
        let version = &lease["metadata"]["resourceVersion"];
        let is_late = if *method == Method::POST { named.is_some() } else { !version.is_null() && named != Some(version) };
        if is_late {
            return failed(409, "Conflict");
        }
        self.version += 1;
        lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.lease = Some(lease.clone());
        (200, lease)
    }
}

async fn answer(kept: Arc<Mutex<Kept>>, way: Way, method: Method, body: Value) -> (u16, Value) {
    let takes = *way.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(takes) = takes else { std::future::pending().await };
    let answer = kept.lock().unwrap_or_else(PoisonError::into_inner).answer(&method, body);
    sleep(takes).await;
    answer
}

/// A process that wants to lead.
struct Process {
    leadership: Leadership,
    way: Way,
    stop: CancellationToken,
}

impl Process {
    fn start(kept: &Arc<Mutex<Kept>>, name: &str) -> Self {
        let way: Way = Arc::new(Mutex::new(Some(Duration::from_millis(1))));
        let client = stand_in::client({
            let (kept, way) = (Arc::clone(kept), Arc::clone(&way));
            move |method, _, body| answer(Arc::clone(&kept), Arc::clone(&way), method, body)
        });
        let cluster = Cluster { client, namespace: "strata".to_owned() };
        let (candidate, leadership) = Candidate::new(&cluster, "strata-run".to_owned(), name.to_owned());
        let stop = CancellationToken::new();
        tokio::spawn(candidate.run(stop.clone()));
        Self { leadership, way, stop }
    }

    fn answers_take(&self, takes: Option<Duration>) {
        *self.way.lock().unwrap_or_else(PoisonError::into_inner) = takes;
    }
}

/// Who leads meanwhile, in order and once each; never two at a time.
async fn leaders(processes: &[&Process], time: Duration) -> Vec<Option<usize>> {
    let (end, mut seen) = (Instant::now() + time, Vec::new());
    while Instant::now() < end {
        let leading: Vec<usize> = (0..processes.len()).filter(|i| processes[*i].leadership.holds()).collect();
        assert!(leading.len() < 2, "{leading:?} lead at once, after {seen:?}");
        let leader = leading.first().copied();
        if seen.last() != Some(&leader) {
            seen.push(leader);
        }
        sleep(STEP).await;
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn another_one_leads_when_the_one_that_does_surely_does_no_more() {
    let kept = Arc::default();
    let one = Process::start(&kept, "one");
    sleep(STEP).await;
    let other = Process::start(&kept, "other");
    assert_eq!(leaders(&[&one, &other], TAKEN * 4).await, [Some(0)], "who renews goes on");
    one.answers_take(None);
    assert_eq!(leaders(&[&one, &other], TAKEN * 2).await, [Some(0), None, Some(1)]);
    one.answers_take(Some(STEP));
    assert_eq!(leaders(&[&one, &other], TAKEN * 4).await, [Some(1)], "who is back waits for its turn");
    other.stop.cancel();
    assert_eq!(leaders(&[&one, &other], RENEW + STEP * 5).await, [Some(1), None, Some(0)], "who stops lets go");
}

#[tokio::test(start_paused = true)]
async fn of_two_that_take_it_at_once_one_has_it() {
    let kept = Arc::default();
    let one = Process::start(&kept, "one");
    sleep(STEP).await;
    let others = ["two", "three"].map(|name| Process::start(&kept, name));
    one.answers_take(None);
    for other in &others {
        other.answers_take(Some(STEP));
    }
    let seen = leaders(&[&one, &others[0], &others[1]], TAKEN * 3).await;
    assert!(matches!(seen[..], [Some(0), None, Some(1 | 2)]), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_holds_from_when_it_was_asked_for() {
    let kept = Arc::default();
    let one = Process::start(&kept, "one");
    let takes = REQUEST * 2 / 5;
    one.answers_take(Some(takes));
    sleep(takes * 2 + STEP).await;
    assert!(one.leadership.holds());
    one.answers_take(None);
    sleep(HELD - takes * 2 - STEP * 2).await;
    assert!(one.leadership.holds(), "it still holds");
    sleep(STEP * 2).await;
    assert!(!one.leadership.holds(), "it counts from its answer");
}

#[tokio::test(start_paused = true)]
async fn who_leads_goes_on_after_a_time_of_refusals_that_its_renewal_outlasts() {
    let kept: Arc<Mutex<Kept>> = Arc::default();
    let is_busy = |is_busy| kept.lock().unwrap_or_else(PoisonError::into_inner).is_busy = is_busy;
    let one = Process::start(&kept, "one");
    sleep(STEP).await;
    let other = Process::start(&kept, "other");
    is_busy(true);
    assert_eq!(leaders(&[&one, &other], HELD - RETRY * 2).await, [Some(0)], "it was granted");
    is_busy(false);
    assert_eq!(leaders(&[&one, &other], TAKEN * 2).await, [Some(0)], "it asks again soon");
    is_busy(true);
    one.stop.cancel();
    sleep(RETRY).await;
    is_busy(false);
    assert_eq!(leaders(&[&one, &other], RENEW * 2).await, [None, Some(1)], "it lets go of it all the same");
}
