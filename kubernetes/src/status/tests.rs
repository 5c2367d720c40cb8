//! The writer before an API server in memory that has one Relay, of whose writes it tells as a watch does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use http::Method;
use tokio::time::sleep;

use super::*;
use crate::stand_in;

/// Until what changed is in the status: the next turn, and a look at what there is.
const SOON: Duration = Duration::from_secs(EVERY.as_secs() + 2);
/// A field that the definition has no place for, as one of an earlier version would not.
const UNKNOWN: &str = "pending";

/// What the server has, and what was asked of it.
struct State {
    status: Value,
    version: u64,
    lease: Option<Value>,
    written: Vec<Instant>,
    /// Reasons of the Events.
    events: Vec<String>,
    said: watch::Sender<Arc<Said>>,
    /// Whether its watch says nothing.
    is_silent: bool,
    /// What it refuses for now: a part of the path.
    refused: Option<&'static str>,
    refusals: usize,
}

#[derive(Clone)]
struct Server(Arc<Mutex<State>>);

/// The numbers of the one relay, which are others at each look, if they grow.
#[derive(Default)]
struct Counting {
    read: AtomicU64,
    grows: AtomicBool,
    is_paused: AtomicBool,
}

fn id() -> Id {
    Id { kind: Kind::Relay, namespace: "team".to_owned(), name: "one".to_owned() }
}

impl Numbers for Counting {
    fn jobs(&self) -> HashMap<String, Counts> {
        HashMap::new()
    }

    fn relays(&self) -> HashMap<String, Sent> {
        let read = self.read.fetch_add(self.grows.load(Ordering::Relaxed).into(), Ordering::Relaxed);
        let sent = Sent { is_running: true, is_paused: self.is_paused.load(Ordering::Relaxed), read, ..Sent::default() };
        HashMap::from([(id().relay(), sent)])
    }
}

impl State {
    fn new() -> Self {
        let (said, _) = watch::channel(Arc::default());
        Self {
            status: Value::Null,
            version: 0,
            lease: None,
            written: Vec::new(),
            events: Vec::new(),
            said,
            is_silent: false,
            refused: None,
            refusals: 0,
        }
    }

    /// A write of the status, by whomever; what changes nothing is none.
    fn write(&mut self, status: &Value) {
        let mut merged = self.status.as_object().cloned().unwrap_or_default();
        merged.extend(status.as_object().cloned().unwrap_or_default());
        merged.remove(UNKNOWN);
        if self.status != Value::Object(merged.clone()) {
            self.status = Value::Object(merged);
            self.version += 1;
            if !self.is_silent {
                self.tell();
            }
        }
    }

    /// Says what there is now. Without a version it is what an earlier process remembered.
    fn tell(&self) {
        let version = if self.version == 0 { String::new() } else { self.version.to_string() };
        let object = Object { id: id(), uid: "1".to_owned(), generation: 1, version, spec: Value::Null, status: self.status.clone() };
        let verdict = Verdict { is_ready: true, reason: "Running", message: "it runs".to_owned(), notes: Vec::new() };
        self.said.send_replace(Arc::new(Said {
            objects: [(id(), Arc::new(object))].into(),
            verdicts: [(id(), verdict)].into(),
            own_namespace: "strata".to_owned(),
        }));
    }

    fn answer(&mut self, method: &Method, path: &str, body: Value) -> (u16, Value) {
        let failed = |code: u16, reason: &str| (code, json!({ "kind": "Status", "status": "Failure", "code": code, "reason": reason }));
        if self.refused.is_some_and(|part| path.contains(part)) {
            self.refusals += 1;
            return failed(503, "ServiceUnavailable");
        }
        if path.contains("/leases") {
            if *method != Method::GET {
                self.lease = Some(body);
            }
            return self.lease.clone().map_or_else(|| failed(404, "NotFound"), |lease| (200, lease));
        }
        if path.contains("/events") {
            self.events.push(body["reason"].as_str().unwrap_or_default().to_owned());
            return (200, body);
        }
        assert_eq!((method, path), (&Method::PATCH, "/apis/strata.ctx.sh/v1beta1/namespaces/team/relays/one/status"));
        self.written.push(Instant::now());
        if body["metadata"]["resourceVersion"] != json!(self.version.to_string()) {
            return failed(409, "Conflict");
        }
        self.write(&body["status"]);
        let metadata = json!({ "namespace": "team", "name": "one", "resourceVersion": self.version.to_string() });
        (200, json!({ "apiVersion": "strata.ctx.sh/v1beta1", "kind": "Relay", "metadata": metadata, "status": self.status }))
    }
}

impl Server {
    /// A server, and a writer that writes there.
    fn start(numbers: &Arc<Counting>) -> Self {
        let server = Self(Arc::new(Mutex::new(State::new())));
        let kept = server.clone();
        let client =
            stand_in::client(move |method, uri, body| std::future::ready(kept.with(|state| state.answer(&method, uri.path(), body))));
        let cluster = Cluster { client, namespace: "strata".to_owned() };
        let said = server.with(|state| state.said.subscribe());
        let numbers: Arc<dyn Numbers> = Arc::clone(numbers) as _;
        let writer = Writer::new(cluster, "run", Writes { discoveries: true, relays: true }, numbers, said);
        tokio::spawn(writer.run(CancellationToken::new()));
        server
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The object is seen for the first time.
    fn list(&self) {
        self.with(|state| {
            state.version = 1;
            state.tell();
        });
    }

    fn status(&self) -> Value {
        self.with(|state| state.status.clone())
    }

    fn writes(&self) -> usize {
        self.with(|state| state.written.len())
    }

    fn events(&self) -> Vec<String> {
        self.with(|state| state.events.clone())
    }
}

#[tokio::test(start_paused = true)]
async fn numbers_that_grow_are_written_now_and_then_and_a_change_of_a_condition_is_one_event() {
    let numbers = Arc::new(Counting::default());
    numbers.grows.store(true, Ordering::Relaxed);
    let server = Server::start(&numbers);
    server.list();
    sleep(EVERY * 12).await;
    let written = server.with(|state| state.written.clone());
    assert!((10..=13).contains(&written.len()), "{} writes in a minute", written.len());
    assert!(written.windows(2).all(|two| two[1] - two[0] >= EVERY), "{written:?}");
    assert_eq!(server.events(), ["Running"]);
    for (is_paused, events) in [(true, &["Running", "Paused"][..]), (false, &["Running", "Paused", "Running"])] {
        numbers.is_paused.store(is_paused, Ordering::Relaxed);
        sleep(EVERY * 4).await;
        assert_eq!(server.events(), events);
    }
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_wrote_of_a_status_is_put_right_and_nothing_else_is_written_again() {
    let server = Server::start(&Arc::default());
    server.with(|state| state.tell());
    sleep(EVERY * 3).await;
    assert_eq!(server.writes(), 0, "what is only remembered was not seen yet");
    server.list();
    sleep(SOON).await;
    let right = server.status();
    assert_eq!((right["relay"].as_str(), right.get(UNKNOWN)), (Some("team_one"), None));
    sleep(EVERY * 6).await;
    assert_eq!(server.writes(), 1, "nothing changed, though not all of it is there");
    for (round, wrong) in [json!({ "delivered": 7 }), json!({ "conditions": [], "relay": "another" })].into_iter().enumerate() {
        server.with(|state| state.write(&wrong));
        assert_ne!(server.status(), right);
        sleep(SOON).await;
        let status = server.status();
        assert_eq!((&status["delivered"], &status["relay"]), (&right["delivered"], &right["relay"]));
        assert_eq!(status["conditions"][0]["reason"], "Running");
        sleep(EVERY * 6).await;
        assert_eq!(server.writes(), 2 + round, "once it is right");
    }
    assert_eq!(server.events(), ["Running"], "no condition was another one in truth");
}

#[tokio::test(start_paused = true)]
async fn what_the_server_does_not_take_is_asked_for_no_more_often() {
    let numbers = Arc::new(Counting::default());
    numbers.grows.store(true, Ordering::Relaxed);
    let server = Server::start(&numbers);
    server.list();
    server.with(|state| state.is_silent = true);
    sleep(EVERY * 12).await;
    let (version, asked) = server.with(|state| (state.version, state.written.len()));
    assert!(version == 2 && (10..=13).contains(&asked), "{asked} times in a minute, and it is version {version}");
}

#[tokio::test(start_paused = true)]
async fn what_a_busy_server_refuses_is_asked_for_seldom_and_written_when_it_takes_it() {
    let numbers = Arc::new(Counting::default());
    let server = Server::start(&numbers);
    server.with(|state| state.refused = Some("/events"));
    server.list();
    for (part, is_paused, events) in [
        ("/events", false, &["Running"][..]),
        ("/status", true, &["Running", "Paused"]),
        ("/events", false, &["Running", "Paused", "Running"]),
    ] {
        server.with(|state| (state.refused, state.refusals) = (Some(part), 0));
        numbers.is_paused.store(is_paused, Ordering::Relaxed);
        sleep(EVERY * 12).await;
        let refusals = server.with(|state| state.refusals);
        assert!((9..=13).contains(&refusals), "{part}: {refusals} times in a minute");
        assert_eq!(server.events(), events[..events.len() - 1], "{part}");
        server.with(|state| state.refused = None);
        sleep(SOON).await;
        assert_eq!(server.status()["conditions"][0]["reason"], *events.last().expect("it has one"), "{part}");
        sleep(EVERY * 4).await;
        assert_eq!(server.events(), events, "{part}: once");
    }
}

/// That one cannot be written says nothing of the next, of which one is not asked for each.
#[tokio::test(start_paused = true)]
async fn a_busy_server_is_asked_for_one_object_of_many() {
    let server = Server::start(&Arc::default());
    server.with(|state| state.refused = Some("/status"));
    server.with(|state| {
        state.version = 1;
        state.tell();
        state.said.send_modify(|said| {
            let said = Arc::make_mut(said);
            let (object, verdict) = (said.objects[&id()].as_ref().clone(), said.verdicts[&id()].clone());
            for name in ["three", "two"] {
                let id = Id { name: name.to_owned(), ..id() };
                said.objects.insert(id.clone(), Arc::new(Object { id: id.clone(), ..object.clone() }));
                said.verdicts.insert(id, verdict.clone());
            }
        });
    });
    sleep(EVERY * 12).await;
    let refusals = server.with(|state| state.refusals);
    assert!((9..=13).contains(&refusals), "{refusals} times in a minute");
}
