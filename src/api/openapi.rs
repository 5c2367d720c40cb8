//! The API's document: OpenAPI 3.1, from the list of routes and the types that they speak.
//!
//! *In*: [`Route`]s. *Out*: a document. *Bound*: pure. *When full*: does not apply.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::model::Failure;
use super::routes::{Access, Content, Route};

/// Failures that every route has.
const COMMON: [(u16, &str); 3] = [(414, "The request's address is too long."), (408, "The request took too long."), (500, "A defect.")];
const UNAUTHORIZED: (u16, &str) = (401, "The token is missing or wrong.");

/// The document of these routes.
pub(crate) fn document(routes: &[Route]) -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
        .for_serialize()
        .into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for route in routes {
        let operation = operation(route, &mut generator);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Strata",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Reads are open where the listener is on loopback; elsewhere they need the token, as everything that changes something \
                            does. The token is in the file `token` of the data folder. Failures are JSON: what is wrong, and the fix where it is known.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let mut operation = json!({ "operationId": route.id, "summary": route.summary });
    let mut parameters: Vec<Value> = route
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    parameters.extend(route.query.into_iter().flat_map(|query| query_parameters(query)));
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(body) = route.body {
        operation["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": body(generator) } } });
    }
    let mut responses = Map::new();
    for (status, description, content) in route.answers {
        let content = match content {
            Content::Text => json!({ "text/plain": { "schema": { "type": "string" } } }),
            Content::File(media_type) => json!({ *media_type: { "schema": { "type": "string" } } }),
            Content::Json(schema) => json!({ "application/json": { "schema": schema(generator) } }),
            Content::Lines => json!({ "application/x-ndjson": { "schema": { "type": "string" } } }),
        };
        responses.insert(status.to_string(), json!({ "description": description, "content": content }));
    }
    let failure = Failure::schema_name();
    generator.subschema_for::<Failure>();
    let unauthorized = (route.access != Access::Open).then_some(&UNAUTHORIZED);
    let malformed = (!route.path.contains("readyz") && route.query.is_none() && route.path.contains('{'))
        .then_some(&(400, "The path is not understood."));
    let of_body: &[(u16, &str)] = if route.body.is_some() {
        &[(413, "The body is too large."), (415, "The body is not JSON by its content type."), (422, "The body is not as the schema says.")]
    } else {
        &[]
    };
    for (status, description) in route.failures.iter().chain(unauthorized).chain(malformed).chain(of_body).chain(&COMMON) {
        let schema = json!({ "$ref": format!("#/components/schemas/{failure}") });
        let response = json!({ "description": description, "content": { "application/json": { "schema": schema } } });
        responses.entry(status.to_string()).or_insert(response);
    }
    operation["responses"] = responses.into();
    operation["security"] = match route.access {
        Access::Open => json!([]),
        Access::Read => json!([{}, { "token": [] }]),
        Access::Change => json!([{ "token": [] }]),
    };
    operation
}

/// The fields of an object as parameters.
fn query_parameters(query: fn(&mut SchemaGenerator) -> Schema) -> Vec<Value> {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| {
            settings.inline_subschemas = true;
            settings.meta_schema = None;
        })
        .into_generator();
    let object = query(&mut generator).to_value();
    let Some(fields) = object["properties"].as_object() else { return Vec::new() };
    let parameter = |(name, schema): (&String, &Value)| {
        let mut schema = schema.clone();
        let description = schema.as_object_mut().and_then(|schema| schema.remove("description")).unwrap_or_default();
        json!({ "name": name, "in": "query", "required": false, "description": description, "schema": schema })
    };
    fields.iter().map(parameter).collect()
}
