//! An API server that refuses: the answer is there at once, whatever time it names, and who persists asks seldom.

use std::cell::Cell;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::core::Status;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;
use crate::examine::{self, examine};
use crate::secret;

/// Far below the time that the server names.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Answers each connection so.
async fn server(answer: &'static str) -> std::io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            // A request without a body comes in one piece.
            if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                stream.write_all(answer.as_bytes()).await.expect("the client waits");
            }
        }
    });
    Ok(url)
}

#[tokio::test]
async fn a_refusal_is_said_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    for (code, head) in
        [(429, "Too Many Requests\r\nretry-after: 300"), (503, "Service Unavailable\r\nretry-after: 300"), (504, "Gateway Timeout")]
    {
        let answer = format!("HTTP/1.1 {code} {head}\r\ncontent-length: 4\r\nconnection: close\r\n\r\nlate").leak();
        let url = server(answer).await.expect("a free port");
        let kubeconfig = serde_json::json!({
            "clusters": [{ "name": "it", "cluster": { "server": url } }],
            "users": [{ "name": "it", "user": {} }],
            "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it" } }],
            "current-context": "it",
        });
        let path = folder.path().join("kubeconfig");
        std::fs::write(&path, kubeconfig.to_string()).expect("a file");
        let section = Cluster::open(&config::Kubernetes { kubeconfig_file: Some(path), ..config::Kubernetes::default() }).await;
        for cluster in [section, Cluster::at(&url, &HttpClientConfig::default())] {
            let cluster = cluster.expect("it is one");
            let leases: Api<Lease> = Api::namespaced(cluster.client, "team");
            let answer = timeout(AT_ONCE, leases.get("one")).await.expect("it is said at once");
            assert!(matches!(&answer, Err(kube::Error::Api(status)) if status.code == code), "{code}: {answer:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_persists_asks_a_busy_server_again_and_no_other() {
    let failed = |code| kube::Error::Api(Status::failure("late", "").with_code(code).boxed());
    let asked = |refusals: usize, code: u16, within: u64| async move {
        let (count, since) = (Cell::new(0), Instant::now());
        let ask = async || -> Result<usize, kube::Error> {
            count.set(count.get() + 1);
            if count.get() > refusals { Ok(count.get()) } else { Err(failed(code)) }
        };
        let answer = persist(Duration::from_secs(within), ask).await;
        assert!(since.elapsed() <= Duration::from_secs(within));
        (count.get(), answer.ok())
    };
    assert_eq!(asked(3, 429, 30).await, (4, Some(4)));
    assert_eq!(asked(3, 503, 30).await, (4, Some(4)));
    assert_eq!(asked(3, 504, 30).await, (4, Some(4)));
    for code in [400, 403, 404, 409, 500] {
        assert_eq!(asked(3, code, 30).await, (1, None), "{code}");
    }
    let (count, answer) = asked(usize::MAX, 429, 30).await;
    assert!(answer.is_none() && (15..40).contains(&count), "{count} times within half a minute");
}

/// An API server that has nothing, takes what it is given, and refuses first; none: it does not answer.
#[derive(Clone)]
struct Busy {
    refusals: Option<usize>,
    asked: Arc<AtomicUsize>,
}

impl Busy {
    fn cluster(refusals: Option<usize>) -> (Cluster, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let client = Client::new(Self { refusals, asked: Arc::clone(&asked) }, "strata");
        (Cluster { client, namespace: "strata".to_owned() }, asked)
    }
}

impl tower_service::Service<Request<Body>> for Busy {
    type Response = Response<Full<bytes::Bytes>>;
    type Error = Infallible;
    type Future = futures::future::BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (asked, refusals) = (self.asked.fetch_add(1, Ordering::Relaxed), self.refusals);
        Box::pin(async move {
            let Some(refusals) = refusals else { std::future::pending().await };
            let (code, body) = match request.method() {
                _ if asked % (refusals + 1) < refusals => (429, "late".into()),
                &http::Method::GET => (404, r#"{"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"}"#.into()),
                _ => (201, request.into_body().collect().await.expect("it is whole").to_bytes()),
            };
            Ok(Response::builder().status(code).body(Full::from(body)).expect("a response"))
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_is_made_though_each_request_for_it_is_refused_at_first() {
    let (cluster, asked) = Busy::cluster(Some(5));
    let made = secret::fill(&cluster, "seeds", &["one".to_owned()], || Ok("seed".to_owned())).await;
    assert_eq!((made.ok(), asked.load(Ordering::Relaxed)), (Some(1), 12));
}

#[tokio::test(start_paused = true)]
async fn who_examines_an_object_hears_within_moments_that_the_server_is_too_busy_or_hangs() {
    for (refusals, within, text) in
        [(Some(usize::MAX - 1), 5, "too busy for it, or not ready (429)"), (None, 30, "does not answer within 30s")]
    {
        let ((cluster, _), since) = (Busy::cluster(refusals), Instant::now());
        let examined = examine(&cluster, examine::Kind::Pod, "team", "web", &[]).await;
        let error = examined.expect_err("nothing is known").to_string();
        assert!(error.contains(text) && since.elapsed() <= Duration::from_secs(within), "{error} after {:?}", since.elapsed());
    }
}
