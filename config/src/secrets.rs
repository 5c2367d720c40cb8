//! Secrets in a configuration: where they are, and `${NAME}` in their place.
//!
//! *In*: the merged tree, the schema that says which values are secret, the environment. *Out*: the tree with values in place of
//! references. *Bound*: [`SECRET_BYTES_MAX`] per variable. *When full*: a problem at the value.
//!
//! A secret that is wholly `${NAME}` is the variable of that name; `$${NAME}` is the text `${NAME}`. Nothing else is expanded, nowhere.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::problem::{Problem, Warning};
use crate::schema;
use crate::tree::{Content, Node, Step};

/// Bytes of a secret in the environment. Larger: nothing is one; smaller: a certificate's key may not fit.
const SECRET_BYTES_MAX: usize = 64 << 10;
/// What stands for a secret where a configuration is shown.
pub(crate) const SHOWN: &str = "<secret>";

/// A secret and the reference that it was written as, if it was.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) path: Vec<Step>,
    pub(crate) reference: Option<String>,
}

/// The name in `${NAME}`.
fn reference(text: &str) -> Option<&str> {
    text.strip_prefix("${")?.strip_suffix('}').filter(|name| !name.contains(['{', '}', '$']))
}

/// Puts the values of variables in the place of their references.
pub(crate) fn expand(
    tree: &mut Node,
    schema: &Value,
    environment: &BTreeMap<String, String>,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Warning>,
) -> Vec<Found> {
    let mut secrets = Vec::new();
    for path in schema::formatted(schema, tree, schema::SECRET) {
        let field = tree.written(&path);
        let Some(node) = tree.at_mut(&path) else { continue };
        let mut found = Found { path, reference: None };
        let Content::Text(text) = &mut node.content else {
            secrets.push(found);
            continue;
        };
        let told = |message: String| Problem { place: node.place.clone(), field: field.clone(), message };
        if let Some(name) = reference(text) {
            match environment.get(name) {
                Some(value) if value.len() > SECRET_BYTES_MAX => {
                    problems.push(told(format!("the environment variable {name} has more than {SECRET_BYTES_MAX} bytes")));
                }
                Some(value) if !value.is_empty() => {
                    found.reference = Some(std::mem::replace(text, value.clone()));
                }
                _ => {
                    let state = if environment.contains_key(name) { "is empty" } else { "is not set" };
                    let message =
                        format!("the environment variable {name} {state}: set it, or write '$${{{name}}}' where this text is meant");
                    problems.push(told(message));
                }
            }
        } else if text.strip_prefix('$').and_then(reference).is_some() {
            text.remove(0);
        } else if text == SHOWN {
            let message = format!("'{SHOWN}' stands for a secret that was not shown: write the secret, a file or '${{NAME}}'");
            warnings.push(Warning(told(message)));
        }
        secrets.push(found);
    }
    secrets
}
