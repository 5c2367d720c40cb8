//! A member before an API server in memory that refuses what is asked of its lease for a while.

use std::sync::{Arc, Mutex, PoisonError};

use http::{Method, Uri};
use serde_json::Value;

use super::*;
use crate::stand_in;

/// What was asked of the one lease.
#[derive(Default)]
struct State {
    is_busy: bool,
    /// When a renewal was granted.
    renewed: Vec<Instant>,
    refusals: usize,
    deleted: usize,
}

#[derive(Clone, Default)]
struct Server(Arc<Mutex<State>>);

impl Server {
    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn answer(self, method: Method, uri: Uri) -> (u16, Value) {
        if uri.query().is_some_and(|query| query.contains("watch=true")) {
            std::future::pending::<()>().await;
        }
        self.with(|state| state.answer(&method))
    }
}

impl State {
    fn answer(&mut self, method: &Method) -> (u16, Value) {
        if *method == Method::GET {
            return (
                200,
                json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "LeaseList", "metadata": { "resourceVersion": "1" }, "items": [] }),
            );
        }
        if self.is_busy {
            self.refusals += 1;
            return (429, json!({ "kind": "Status", "status": "Failure", "code": 429, "reason": "TooManyRequests" }));
        }
        if *method == Method::DELETE {
            self.deleted += 1;
            return (200, json!({ "kind": "Status", "status": "Success" }));
        }
        self.renewed.push(Instant::now());
        (200, json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": "strata.one" } }))
    }
}

/// A member that has renewed its lease.
async fn member(server: &Server) -> Membership {
    let server_side = server.clone();
    let client = stand_in::client(move |method, uri, _| server_side.clone().answer(method, uri));
    let cluster = Cluster { client, namespace: "strata".to_owned() };
    let mut membership = Membership::open(&cluster, "strata", "one").await;
    membership.join_after(std::future::ready(()));
    while server.with(|state| state.renewed.is_empty()) {
        sleep(Duration::from_millis(10)).await;
    }
    membership
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_refused_is_asked_for_again_within_what_the_lease_is_good_for() {
    let server = Server::default();
    let _member = member(&server).await;
    let last = server.with(|state| {
        state.is_busy = true;
        state.renewed.drain(..).next_back().expect("it has renewed")
    });
    // So that others, who count from what they see, do not miss one either.
    sleep(VALID - RENEW * 2).await;
    let refusals = server.with(|state| {
        state.is_busy = false;
        state.refusals
    });
    assert!((4..=12).contains(&refusals), "{refusals} times");
    sleep(RENEW * 3).await;
    let renewed = server.with(|state| state.renewed.clone());
    assert!(renewed[0] - last < VALID - RENEW, "{:?} from one renewal to the next", renewed[0] - last);
    assert!(renewed.windows(2).all(|two| two[1] - two[0] >= RENEW), "{renewed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_given_back_though_that_is_refused_at_first() {
    let server = Server::default();
    let member = member(&server).await;
    server.with(|state| state.is_busy = true);
    let granted = async {
        sleep(REQUEST_MAX / 3).await;
        server.with(|state| state.is_busy = false);
    };
    tokio::join!(member.leave(), granted);
    assert_eq!(server.with(|state| state.deleted), 1);
}

#[test]
fn a_lease_is_called_like_its_member_where_that_is_a_name() {
    let long = "x".repeat(250);
    for (holder, name) in
        [("strata-collector-0", "strata.strata-collector-0"), ("Node1", "strata.node1"), ("node1.example.com", "strata.node1.example.com")]
    {
        assert_eq!(lease_name("strata", holder), name);
    }
    for holder in ["node1%2Eexample", "", "-a", &long] {
        let name = lease_name("strata", holder);
        assert!(name.len() == "strata.".len() + 16 && name != lease_name("strata", &format!("{holder}x")), "{holder}: {name}");
    }
}
