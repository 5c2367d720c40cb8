//! The reference of the custom resources: `docs/kubernetes-resources.md`.
//!
//! *In*: the CRDs. *Out*: Markdown. *Bound*: the size of the CRDs. *When full*: does not apply.

use std::fmt::Write as _;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

use super::crds;

/// What stands before the tables.
const INTRODUCTION: &str = include_str!("reference/introduction.md");

/// Writes the page.
pub fn reference() -> String {
    let mut page = INTRODUCTION.to_owned();
    for crd in crds() {
        kind(&mut page, &crd);
    }
    page
}

fn say(page: &mut String, text: &str) {
    page.push_str(text);
    page.push('\n');
}

fn kind(page: &mut String, crd: &CustomResourceDefinition) {
    let names = &crd.spec.names;
    let Some(version) = crd.spec.versions.first() else { return };
    let Some(schema) = version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref()) else { return };
    let short = names.short_names.iter().flatten().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    say(page, &format!("\n## {}\n\n{}\n", names.kind, schema.description.as_deref().unwrap_or_default()));
    say(page, &format!("`{}.{}`, version `{}`, short {short}.", names.plural, crd.spec.group, version.name));
    rules(page, schema);
    for part in ["spec", "status"] {
        let Some(schema) = schema.properties.as_ref().and_then(|properties| properties.get(part)) else { continue };
        say(page, &format!("\n### {} `{part}`\n\n| Field | Type | Default | What it says |\n|---|---|---|---|", names.kind));
        fields(page, schema, "");
    }
    say(page, &format!("\n### {} columns\n\n| Column | With `-o wide` only | What it says |\n|---|---|---|", names.kind));
    for column in version.additional_printer_columns.iter().flatten() {
        let wide = if column.priority.is_some_and(|priority| priority > 0) { "yes" } else { "" };
        say(page, &format!("| {} | {wide} | {} |", column.name, column.description.as_deref().unwrap_or_default()));
    }
}

/// What the API server refuses of the object as a whole.
fn rules(page: &mut String, schema: &JSONSchemaProps) {
    for message in schema.x_kubernetes_validations.iter().flatten().filter_map(|rule| rule.message.as_ref()) {
        say(page, &format!("\nThe API server holds it to this: {message}."));
    }
}

fn fields(page: &mut String, schema: &JSONSchemaProps, path: &str) {
    let required = schema.required.as_deref().unwrap_or_default();
    for (name, property) in schema.properties.iter().flatten() {
        let path = format!("{path}{name}");
        let default = match &property.default {
            Some(value) => format!("`{}`", value.0),
            None if required.contains(name) => "required".to_owned(),
            None => String::new(),
        };
        let mut what = property.description.clone().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        for message in property.x_kubernetes_validations.iter().flatten().filter_map(|rule| rule.message.as_ref()) {
            // Writing to memory does not fail.
            write!(what, " Held to: {message}.").unwrap_or_default();
        }
        let (word, below) = typed(property);
        say(page, &format!("| `{path}` | {word} | {default} | {} |", what.replace('|', "\\|")));
        if let Some((below, step)) = below {
            fields(page, below, &format!("{path}{step}."));
        }
    }
}

/// The word for a type, and what is below it, behind which step.
fn typed(schema: &JSONSchemaProps) -> (String, Option<(&JSONSchemaProps, &'static str)>) {
    if schema.x_kubernetes_int_or_string == Some(true) {
        return ("number or text".to_owned(), None);
    }
    match (schema.type_.as_deref(), &schema.items, &schema.additional_properties) {
        (Some("array"), Some(JSONSchemaPropsOrArray::Schema(item)), _) => {
            let (word, below) = typed(item);
            (format!("list of {word}"), below.map(|(below, _)| (below, "[]")))
        }
        (Some("object"), _, Some(JSONSchemaPropsOrBool::Schema(value))) => (format!("map of {}", typed(value).0), None),
        (Some("object"), ..) => ("map".to_owned(), schema.properties.is_some().then_some((schema, ""))),
        (Some("string"), ..) => match schema.enum_.as_deref() {
            Some(values) => (values.iter().map(|value| format!("`{}`", value.0)).collect::<Vec<_>>().join(" or "), None),
            None => ("text".to_owned(), None),
        },
        (Some("integer"), ..) => ("whole number".to_owned(), None),
        (Some(word), ..) => (word.to_owned(), None),
        (None, ..) => ("as in the configuration".to_owned(), None),
    }
}
