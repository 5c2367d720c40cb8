//! Reviews: what the API server asks about an object, and what it is told.
//!
//! *In*: an `AdmissionReview` of version 1. *Out*: another one: allowed with warnings, refused with every mistake and its field, or a JSON patch that
//! writes defaults. *Bound*: [`BYTES_MAX`]. *When full*: the request is refused by who reads it.

use k8s_openapi::ByteString;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use serde_json::{Value, json};

use crate::overlay::object::{Kind, Object};

/// Bytes of a request. The API server takes objects of 3 MiB at most, and an update has two of them. Larger: memory for anybody who sends something;
/// smaller: a large object cannot be written.
pub const BYTES_MAX: usize = 8 << 20;

/// Where the paths of Strata's own objects begin; behind it comes the kind, in small letters.
pub const MUTATE: &str = "/mutate-strata-ctx-sh-v1beta1-";
/// The same for what is only looked at.
pub const VALIDATE: &str = "/validate-strata-ctx-sh-v1beta1-";

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Which defaults it gets.
    Mutate,
    /// Whether it may be stored.
    Validate,
}

/// What came of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The object may be stored as it is.
    Allowed,
    /// It gets defaults.
    Defaulted,
    /// It may not be stored.
    Refused,
}

/// How objects are judged.
pub trait Judge: Send + Sync {
    /// The spec with its defaults; `None`: it is one that nobody here knows how to read, which validation says.
    fn defaulted(&self, kind: Kind, spec: &Value) -> Option<Value>;

    /// What works, but not as it is written.
    ///
    /// *Errors*: everything that is wrong, each with its field.
    fn check(&self, object: &Object) -> Result<Vec<String>, Vec<String>>;
}

/// Why a request is no question.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no `AdmissionReview`.
    #[error("cannot read the request as an AdmissionReview of admission.k8s.io/v1")]
    Read(#[source] serde_json::Error),
    /// It is an answer, or nothing.
    #[error("cannot answer an AdmissionReview without a request")]
    Nothing,
}

/// What a path asks, and of which kind; none: nothing of Strata's.
pub fn question(path: &str) -> Option<(Question, &str)> {
    let of = |prefix, question| path.strip_prefix(prefix).map(|kind| (question, kind));
    of(MUTATE, Question::Mutate).or_else(|| of(VALIDATE, Question::Validate))
}

/// Answers a request: the review, and what it says.
///
/// *Errors*: see [`Error`]; the API server takes them for a webhook that fails.
pub fn answer(question: Question, body: &[u8], judge: &dyn Judge) -> Result<(Value, Verdict), Error> {
    let review: AdmissionReview<DynamicObject> = serde_json::from_slice(body).map_err(Error::Read)?;
    let request: AdmissionRequest<DynamicObject> = review.try_into().map_err(|_| Error::Nothing)?;
    let mut response = respond(question, &request, judge);
    let verdict = match &response.patch {
        _ if !response.allowed => Verdict::Refused,
        Some(_) => Verdict::Defaulted,
        None => Verdict::Allowed,
    };
    // As JSON has bytes in Kubernetes: base64. The type writes a list of numbers.
    let patch = response.patch.take().map(ByteString);
    let mut review = serde_json::to_value(response.into_review()).map_err(Error::Read)?;
    if let Some(patch) = patch {
        review["response"]["patch"] = serde_json::to_value(patch).map_err(Error::Read)?;
    }
    Ok((review, verdict))
}

fn respond(question: Question, request: &AdmissionRequest<DynamicObject>, judge: &dyn Judge) -> AdmissionResponse {
    let mut allowed = AdmissionResponse::from(request);
    let asks = matches!(request.operation, Operation::Create | Operation::Update);
    // Whatever is wrong with an object, it may be deleted, and let go by those who hold it.
    let Some(object) = request.object.as_ref().filter(|object| asks && object.metadata.deletion_timestamp.is_none()) else {
        return allowed;
    };
    let Some(kind) = Kind::ours(&request.kind.kind) else {
        return allowed.deny(format!("'{}' is no kind of Strata's: take it out of the webhook configuration", request.kind.kind));
    };
    let spec = object.data.get("spec");
    match question {
        Question::Mutate => match judge.defaulted(kind, spec.unwrap_or(&Value::Null)) {
            Some(defaulted) if spec != Some(&defaulted) => patched(allowed, &defaulted),
            _ => allowed,
        },
        // What was wrong before, perhaps only since the configuration is another, still gets its labels.
        Question::Validate if request.old_object.as_ref().is_some_and(|old| old.data.get("spec") == spec) => allowed,
        Question::Validate => match named(kind, object, request).map(|object| judge.check(&object)) {
            None => allowed.deny("metadata.namespace: it has none"),
            Some(Ok(warnings)) => {
                allowed.warnings = Some(warnings).filter(|warnings| !warnings.is_empty());
                allowed
            }
            Some(Err(problems)) => allowed.deny(problems.join("; ")),
        },
    }
}

/// The object with a name: the API server may ask before it makes one of `generateName`.
fn named(kind: Kind, object: &DynamicObject, request: &AdmissionRequest<DynamicObject>) -> Option<Object> {
    let mut object = object.clone();
    let metadata = &mut object.metadata;
    let begins = metadata.generate_name.clone().unwrap_or_default();
    metadata.name.get_or_insert_with(|| if request.name.is_empty() { begins } else { request.name.clone() });
    metadata.namespace = metadata.namespace.take().or_else(|| request.namespace.clone());
    Object::of(kind, object)
}

/// `add` replaces a member that is there.
fn patched(allowed: AdmissionResponse, spec: &Value) -> AdmissionResponse {
    let patch = serde_json::from_value(json!([{ "op": "add", "path": "/spec", "value": spec }]));
    let written = patch.ok().and_then(|patch| allowed.clone().with_patch(patch).ok());
    written.unwrap_or(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Strict;

    impl Judge for Strict {
        fn defaulted(&self, _: Kind, spec: &Value) -> Option<Value> {
            let mut spec = spec.clone();
            spec.as_object_mut()?.entry("prefix").or_insert_with(|| "prometheus.io".into());
            Some(spec)
        }

        fn check(&self, object: &Object) -> Result<Vec<String>, Vec<String>> {
            match object.spec["prefix"].as_str() {
                Some("") => Err(vec![format!("{}: spec.prefix: it is empty", object.id), "spec.other: so is this".to_owned()]),
                Some("old") => Ok(vec!["spec.prefix: nobody writes that any more".to_owned()]),
                _ => Ok(Vec::new()),
            }
        }
    }

    fn asked(question: Question, operation: &str, spec: &Value) -> Value {
        let object = json!({
            "apiVersion": "strata.ctx.sh/v1beta1", "kind": "Discovery", "metadata": {"name": "one", "namespace": "team"}, "spec": spec,
        });
        let deleted = operation == "DELETE";
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "5", "kind": {"group": "strata.ctx.sh", "version": "v1beta1", "kind": "Discovery"},
                "resource": {"group": "strata.ctx.sh", "version": "v1beta1", "resource": "discoveries"},
                "name": "one", "namespace": "team", "operation": operation, "userInfo": {}, "dryRun": false,
                "object": if deleted { &Value::Null } else { &object }, "oldObject": if deleted { &object } else { &Value::Null },
            },
        });
        let (answer, verdict) = answer(question, review.to_string().as_bytes(), &Strict).expect("a question");
        assert_eq!((&answer["kind"], &answer["response"]["uid"]), (&json!("AdmissionReview"), &json!("5")));
        let is_patched = answer["response"].get("patch").is_some_and(|patch| !patch.is_null());
        let said = (answer["response"]["allowed"] == true, is_patched);
        assert_eq!(said, (verdict != Verdict::Refused, verdict == Verdict::Defaulted), "{answer}");
        answer["response"].clone()
    }

    #[test]
    fn defaults_are_a_patch_and_only_where_something_is_missing() {
        let answer = asked(Question::Mutate, "CREATE", &json!({"resources": {}}));
        // [{"op":"add","path":"/spec","value":{"resources":{},"prefix":"prometheus.io"}}]
        assert_eq!(
            answer["patch"],
            "W3sib3AiOiJhZGQiLCJwYXRoIjoiL3NwZWMiLCJ2YWx1ZSI6eyJyZXNvdXJjZXMiOnt9LCJwcmVmaXgiOiJwcm9tZXRoZXVzLmlvIn19XQ=="
        );
        assert_eq!((&answer["allowed"], &answer["patchType"]), (&json!(true), &json!("JSONPatch")));
        let answer = asked(Question::Mutate, "UPDATE", &json!({"prefix": "x"}));
        assert_eq!((&answer["allowed"], answer.get("patch").filter(|patch| !patch.is_null())), (&json!(true), None));
    }

    #[test]
    fn every_mistake_is_said_and_what_is_deleted_is_not_looked_at() {
        let answer = asked(Question::Validate, "CREATE", &json!({"prefix": ""}));
        assert_eq!(
            (&answer["allowed"], &answer["status"]["message"]),
            (&json!(false), &json!("Discovery team/one: spec.prefix: it is empty; spec.other: so is this"))
        );
        let answer = asked(Question::Validate, "UPDATE", &json!({"prefix": "old"}));
        assert_eq!((&answer["allowed"], &answer["warnings"]), (&json!(true), &json!(["spec.prefix: nobody writes that any more"])));
        for question in [Question::Validate, Question::Mutate] {
            assert_eq!(asked(question, "DELETE", &json!({"prefix": ""}))["allowed"], true);
        }
    }

    #[test]
    fn an_object_that_is_wrong_already_is_let_go_and_may_get_labels() {
        let update = |old: &str, metadata: Value| {
            let object = |spec: Value, metadata: Value| json!({"apiVersion": "strata.ctx.sh/v1beta1", "kind": "Discovery", "metadata": metadata, "spec": spec});
            let review = json!({
                "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                "request": {
                    "uid": "6", "kind": {"group": "strata.ctx.sh", "version": "v1beta1", "kind": "Discovery"},
                    "resource": {"group": "strata.ctx.sh", "version": "v1beta1", "resource": "discoveries"},
                    "namespace": "team", "operation": "UPDATE", "userInfo": {},
                    "object": object(json!({"prefix": ""}), metadata), "oldObject": object(json!({"prefix": old}), json!({"name": "one"})),
                },
            });
            answer(Question::Validate, review.to_string().as_bytes(), &Strict).expect("a question").0["response"]["allowed"].clone()
        };
        assert_eq!(update("", json!({"name": "one", "labels": {"app": "web"}})), true);
        assert_eq!(update("x", json!({"name": "one", "deletionTimestamp": "2026-01-01T00:00:00Z"})), true);
        assert_eq!(update("x", json!({"name": "one"})), false);
    }

    #[test]
    fn what_is_no_question_is_refused() {
        assert!(matches!(answer(Question::Validate, b"{", &Strict), Err(Error::Read(_))));
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}).to_string();
        assert!(matches!(answer(Question::Validate, review.as_bytes(), &Strict), Err(Error::Nothing)));
    }

    #[test]
    fn a_path_says_the_question_and_the_kind() {
        assert_eq!(question("/mutate-strata-ctx-sh-v1beta1-discovery"), Some((Question::Mutate, "discovery")));
        assert_eq!(question("/validate-strata-ctx-sh-v1beta1-relay"), Some((Question::Validate, "relay")));
        assert_eq!(question("/readyz"), None);
    }
}
