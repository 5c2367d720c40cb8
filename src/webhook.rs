//! The admission webhook's listener: the API server asks about objects of Strata's kinds before it stores them.
//!
//! *In*: the section `kubernetes.webhook`; requests over TLS. *Out*: reviews with defaults, refusals and warnings. *Bound*: [`BODIES_MAX`] bodies of
//! [`BYTES_MAX`] at a time, each read within [`BODY_WITHIN`]; connections: see [`Serve`]. *When full*: a request waits; 413, 408.

mod telemetry;

use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Json, Router};
use config::{Config, ListenerTls};
use kubernetes::client::Cluster;
use kubernetes::overlay::object::{Kind, Object};
use kubernetes::overlay::{self, Options};
use kubernetes::resources;
use kubernetes::webhook::Keeper;
use kubernetes::webhook::review::{self, BYTES_MAX, Judge, MUTATE, Question, VALIDATE, Verdict};
use serde_json::Value;
use telemetry::{Outcome, Telemetry};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::api::serve::Serve;
use crate::api::tls::Tls;
use crate::board::Board;
use crate::objects;
use crate::run::listen;

/// Where it is configured.
const FIELD: &str = "kubernetes.webhook";
/// Certificate and key in the data folder, where Strata makes them.
const FILE: &str = "webhook.pem";
/// Bodies that are read or answered at a time. Larger: more memory for strangers; smaller: a few slow ones keep the API server waiting.
const BODIES_MAX: usize = 8;
/// How long a body may take. Larger: a slow stranger holds a place for longer; smaller: a large object of a busy API server is refused.
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// How long a connection may be idle: longer than the 90 s for which the API server keeps one, so that it is the one to close it, and asks nothing
/// on a connection that ends. Larger: strangers hold connections longer; smaller: now and then a request fails.
const IDLE_MAX: Duration = Duration::from_secs(120);

/// Between two looks at the certificate's files. Larger: metrics and readiness know of another one later; smaller: more looks.
const LOOK: Duration = Duration::from_secs(5);

/// The webhook, bound and not yet answering.
pub(crate) struct Webhook {
    listener: TcpListener,
    certificate: Certificate,
    asked: Arc<Asked>,
    /// When the certificate ends, ms; none: it has none yet.
    ends: watch::Sender<Option<i64>>,
}

/// Where the certificate comes from.
enum Certificate {
    /// Strata makes it; the file is there when the keeper says so.
    Own(Keeper, ListenerTls),
    /// Somebody else does.
    Given(Tls),
}

/// What a request is answered with.
struct Asked {
    rules: Rules,
    room: Semaphore,
    telemetry: Telemetry,
}

/// How objects are judged: as the overlay does, with the configuration of now.
struct Rules {
    board: Arc<Board>,
    options: Options,
    own_namespace: String,
}

impl Webhook {
    /// Binds it; none: it is not configured, or another role's.
    ///
    /// *Errors*: the field, and what is wrong with its address, its files or the cluster.
    pub(crate) async fn open(config: &Config, board: &Arc<Board>) -> anyhow::Result<Option<Self>> {
        let Some(kubernetes) = config.kubernetes.as_ref().filter(|_| board.role().relays()) else { return Ok(None) };
        let Some(webhook) = &kubernetes.webhook else { return Ok(None) };
        let listener = listen("kubernetes.webhook.listen", &webhook.listen).await?;
        let cluster = Cluster::open(kubernetes).await.context(FIELD)?;
        let own_namespace = cluster.namespace.clone();
        let tls = |cert_file, key_file| ListenerTls { cert_file, key_file, client_ca_file: None };
        let certificate = match (&webhook.secret, &webhook.cert_file, &webhook.key_file) {
            (None, Some(cert_file), Some(key_file)) => Certificate::Given(Tls::new(FIELD, tls(cert_file.clone(), key_file.clone()))?),
            (secret, ..) => {
                let folder = &config.buffer.data_dir;
                let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
                made.with_context(|| format!("cannot make '{}' (buffer.data_dir)", folder.display()))?;
                let file = folder.join(FILE);
                // That one or the other is named was checked.
                let secret = secret.as_deref().unwrap_or(&webhook.service);
                let keeper = Keeper::new(cluster, &webhook.service, secret, webhook.configuration.as_deref(), file.clone());
                Certificate::Own(keeper, tls(file.clone(), file))
            }
        };
        let rules = Rules { board: Arc::clone(board), options: objects::options(kubernetes.clone(), config), own_namespace };
        let telemetry = Telemetry::register(board.registry()).context("cannot register the metrics of the webhook")?;
        let asked = Arc::new(Asked { rules, room: Semaphore::new(BODIES_MAX), telemetry });
        let (ends, seen) = watch::channel(None);
        board.set_webhook(seen);
        Ok(Some(Self { listener, certificate, asked, ends }))
    }

    /// Answers until it is stopped; requests that are on their way finish.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let Self { listener, certificate, asked, ends } = self;
        let (router, telemetry) = (router(Arc::clone(&asked)), &asked.telemetry);
        let serve = async |tls| {
            tracing::info!(listen = ?listener.local_addr().ok(), "the admission webhook answers");
            let tls = Arc::new(tls);
            let serve = Serve { router, tls: Some(Arc::clone(&tls)), head_timeout: IDLE_MAX };
            tokio::join!(serve.run(listener, stop.clone()), stop.run_until_cancelled(show(&tls, telemetry, &ends)));
        };
        match certificate {
            Certificate::Given(tls) => serve(tls).await,
            Certificate::Own(keeper, files) => {
                let mut is_there = keeper.is_there();
                let served = async {
                    match stop.run_until_cancelled(is_there.wait_for(|is_there| *is_there)).await {
                        Some(Ok(_)) => {}
                        _ => return,
                    }
                    match Tls::new(FIELD, files) {
                        Ok(tls) => serve(tls).await,
                        Err(error) => tracing::error!("{error:#}"),
                    }
                };
                // Both end with the stop; the keeper goes on as long as anybody is answered.
                tokio::join!(served, keeper.run(stop.clone()));
            }
        }
    }
}

/// Shows when the certificate ends, whether anybody asks or not.
async fn show(tls: &Tls, telemetry: &Telemetry, ends: &watch::Sender<Option<i64>>) {
    let mut looks = interval(LOOK);
    loop {
        looks.tick().await;
        let ends_ms = tls.ends_ms();
        telemetry.show_end(ends_ms);
        ends.send_replace(Some(ends_ms));
    }
}

fn router(asked: Arc<Asked>) -> Router {
    let kinds = Kind::OURS.iter().flat_map(|kind| [MUTATE, VALIDATE].map(|prefix| format!("{prefix}{}", kind.name().to_ascii_lowercase())));
    kinds.fold(Router::new(), |router, path| router.route(&path, post(answer))).with_state(asked)
}

async fn answer(State(asked): State<Arc<Asked>>, request: Request) -> Response {
    let Some((question, _)) = review::question(request.uri().path()) else { return StatusCode::NOT_FOUND.into_response() };
    let Ok(_room) = asked.room.acquire().await else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    match judged(question, request, &asked.rules).await {
        Ok((review, verdict)) => {
            asked.telemetry.count(Outcome::Said(verdict));
            Json(review).into_response()
        }
        Err(refused) => {
            asked.telemetry.count(Outcome::Failed);
            refused.into_response()
        }
    }
}

/// The answer to a request, and what it says. *Errors*: status and text, where it is no question.
async fn judged(question: Question, request: Request, rules: &Rules) -> Result<(Value, Verdict), (StatusCode, String)> {
    let body = match timeout(BODY_WITHIN, to_bytes(request.into_body(), BYTES_MAX)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return Err((StatusCode::PAYLOAD_TOO_LARGE, format!("a review has {BYTES_MAX} bytes at most"))),
        Err(_) => return Err((StatusCode::REQUEST_TIMEOUT, String::new())),
    };
    // A large object takes longer to check than others may wait.
    let answer = tokio::task::block_in_place(|| review::answer(question, &body, rules));
    answer.map_err(|error| (StatusCode::BAD_REQUEST, format!("{:#}", anyhow::Error::new(error))))
}

impl Judge for Rules {
    fn defaulted(&self, kind: Kind, spec: &Value) -> Option<Value> {
        resources::defaulted(kind, spec)
    }

    fn check(&self, object: &Object) -> Result<Vec<String>, Vec<String>> {
        overlay::validate(object, &self.own_namespace, &self.options, &self.board.config())
    }
}
