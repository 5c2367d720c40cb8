//! An API server in memory, for tests: what it answers to a request is a function.

use std::convert::Infallible;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use kube::Client;
use kube::client::Body;
use serde_json::Value;

struct Server<A>(A);

/// A client of a server that answers so: a status and a body, to a method, an address and a body, which is null where there is none.
pub(crate) fn client<F>(answer: impl Fn(Method, Uri, Value) -> F + Clone + Send + 'static) -> Client
where
    F: Future<Output = (u16, Value)> + Send + 'static,
{
    Client::new(Server(answer), "strata")
}

impl<A, F> tower_service::Service<Request<Body>> for Server<A>
where
    A: Fn(Method, Uri, Value) -> F + Clone + Send + 'static,
    F: Future<Output = (u16, Value)> + Send + 'static,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.0.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.expect("it is whole").to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            let (status, answer) = answer(parts.method, parts.uri, body).await;
            Ok(Response::builder().status(status).body(Full::from(answer.to_string())).expect("a response"))
        })
    }
}
