//! The OpenAPI document, which is made here: its schemas of the types of the messages, its paths of the table below. What is
//! served is a file, so that the server carries neither; a test sees that it is this document, and another that the
//! table has the routes that there are.

use std::{collections::BTreeSet, path::Path};

use schemars::{
    JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, transform::RecursiveTransform,
};
use serde_json::{Map, Value, json};
use windlass::protocol::{
    Acquire, AcquireAll, Acquired, Answers, Change, ForceRelease, ForceReleased, Grant, Locks, Problem,
    Release, Released, Renew, Renewed, Together,
};
use windlass_server::ServerOptions;

use crate::kit::{ask, serve};

const ABOUT: &str = "\
Named locks with fencing tokens and fair queues, over HTTP. Bodies are JSON, whatever `Content-Type` says. Times are durations \
in whole milliseconds. Ids are 32 hexadecimal digits of secure randomness, made by the client. Fields that are not known are \
ignored, and new ones may come: ignore what you do not know. Errors are problems (RFC 9457), whose `kind` says what to do. What \
is not here is 404, another method 405, a head of more than 16 KiB or 64 fields 431.";

/// What any request to a namespace may be answered, and what one with a body besides.
const ASKED: [u16; 4] = [400, 401, 403, 503];
const POSTED: [u16; 3] = [408, 411, 413];

/// What each refusal means.
const REFUSALS: [(u16, &str, &str); 10] = [
    (400, "Invalid", "What was asked makes no sense: `invalid_input` or `invalid_name`. Correct it."),
    (401, "Unknown", "There is no token, or not a good one."),
    (403, "Denied", "The token's rights do not reach so far, or `Host` or `Origin` is not allowed."),
    (408, "Late", "The body did not come in time."),
    (409, "NotHeld", "The claim is not there, or was taken away while it waited."),
    (411, "NoLength", "The body came in pieces: send it at once, with `Content-Length`."),
    (413, "TooLong", "The body is longer than 256 KiB, or what the server allows."),
    (429, "TooMany", "As many claims or waiting claims as this token, certificate or address may have."),
    (503, "Unavailable", "Not now: the server is full, ending, or waits for claims of before an abrupt end."),
    (507, "Storage", "The server's disk is full or broken. What is held can still be renewed and released."),
];

#[test]
fn the_file_that_is_served_is_this_document() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/openapi.json");
    let made = serde_json::to_string_pretty(&document()).unwrap() + "\n";
    if std::env::var_os("WINDLASS_WRITE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let served = std::fs::read_to_string(&path).unwrap();
    assert!(served == made, "server/src/openapi.json is old: run this test with WINDLASS_WRITE=1");
}

#[test]
fn it_has_the_routes_that_there_are() {
    let source = include_str!("../../src/routes.rs");
    let routes = source.split(".route(\"").skip(1).map(|rest| {
        let (path, rest) = rest.split_once("\", ").unwrap();
        (path.to_owned(), rest.split('(').next().unwrap().to_owned())
    });
    let mut there: BTreeSet<(String, String)> = routes.collect();
    there.insert(("/metrics".to_owned(), "get".to_owned()));
    let document = document();
    let paths = document["paths"].as_object().unwrap().iter();
    let methods = |item: &Value| item.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let told = paths.flat_map(|(path, item)| methods(item).into_iter().map(move |name| (path.clone(), name)));
    assert_eq!(told.filter(|(_, name)| name != "parameters").collect::<BTreeSet<_>>(), there);
}

#[test]
fn its_references_lead_somewhere() {
    fn each<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|value| each(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| each(value, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = Vec::new();
    each(&document, &mut found);
    assert!(found.len() > 50);
    for reference in found {
        assert!(document.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference}");
    }
}

#[tokio::test]
async fn it_is_served_to_everybody() {
    let address = serve(crate::kit::tokens("token-of-the-operator-1 operator all */*\n")).await;
    let answer = ask(address, "GET", "/openapi.json", &[], "").await;
    assert_eq!((answer.status, answer.field("content-type")), (200, "application/json"));
    assert!(answer.body == include_str!("../../src/openapi.json"));
}

/// A problem that is not the route's own looks like all others.
#[tokio::test]
async fn every_refusal_is_a_problem() {
    let address = serve(ServerOptions::default()).await;
    for (method, path, status) in [
        ("GET", "/nothing", 404),
        ("PUT", "/v1", 405),
        ("GET", "/v1/a/acquire", 405),
        ("POST", "/v1/%ff/acquire", 400),
        ("GET", "/v1/a%20b/locks", 400),
        ("GET", "/v1/a/locks?prefix=a&prefix=b", 400),
        ("GET", "/v1/a/events?prefix=a&prefix=b", 400),
    ] {
        let answer = ask(address, method, path, &[], "").await;
        let problem: Problem =
            serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{e}: {answer:?}"));
        assert_eq!((answer.status, problem.status), (status, status), "{path}: {answer:?}");
        assert_eq!(answer.field("content-type"), Problem::MEDIA_TYPE);
        assert!(!problem.detail.is_empty() && !problem.kind.is_empty(), "{answer:?}");
        assert_eq!(status == 405, !answer.field("allow").is_empty(), "{path}: {answer:?}");
    }
}

fn document() -> Value {
    let mut schemas = Schemas::default();
    let paths = paths(&mut schemas);
    let problem = schemas.answer::<Problem>();
    let refusals =
        REFUSALS.map(|(status, name, meaning)| (name.to_owned(), refusal(status, meaning, &problem)));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Windlass lock server",
            "version": "1",
            "summary": "One lock, everywhere.",
            "description": ABOUT,
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        // Where nobody is asked who they are, the first will do.
        "security": [{}, { "bearer": [] }, { "basic": [] }, { "certificate": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas.all(),
            "responses": Map::from_iter(refusals),
            "parameters": {
                "namespace": {
                    "name": "namespace", "in": "path", "required": true,
                    "description": "A set of locks. It is there once it is used.",
                    "schema": { "type": "string", "pattern": r"^(?!\.{1,2}$)[A-Za-z0-9._-]{1,128}$" },
                },
                "prefix": {
                    "name": "prefix", "in": "query",
                    "description": "Only locks whose names begin so.",
                    "schema": { "type": "string", "default": "" },
                },
            },
            "securitySchemes": {
                "bearer": {
                    "type": "http", "scheme": "bearer",
                    "description": "A token of the server's file, or a JWT that one of its keys signed.",
                },
                "basic": {
                    "type": "http", "scheme": "basic",
                    "description": "The same as password, for clients that know of URLs only. Any user name will do.",
                },
                "certificate": { "type": "mutualTLS", "description": "A client's certificate." },
            },
        },
    })
}

fn paths(schemas: &mut Schemas) -> Value {
    let granted = |schemas: &mut Schemas| schemas.answer::<Acquired<Grant>>();
    let all_granted = |schemas: &mut Schemas| schemas.answer::<Acquired<Vec<Grant>>>();
    let namespaces = json!({
        "type": "object", "required": ["namespaces"],
        "properties": { "namespaces": { "type": "array", "items": { "type": "string" } } },
    });
    let document = json!({ "type": "object" });
    let lock = [409, 429, 507];
    let mut paths = Map::new();
    let mut add = |path: &str, method: &str, operation: Value| {
        let mut item = json!({ method: operation });
        if path.contains("{namespace}") {
            item["parameters"] = json!([{ "$ref": "#/components/parameters/namespace" }]);
        }
        paths.insert(path.to_owned(), item);
    };
    add(
        "/v1/{namespace}/acquire",
        "post",
        post::<Acquire>(
            schemas,
            "Takes a lock, and waits for it.",
            "Held open until the lock is granted, for `wait_ms` at the \
            most. Then the claim keeps its place for `keep_ms`. Asking again with the same id is always safe: it finds the place in line, or the grant whose answer was lost.",
            granted,
            &lock,
        ),
    );
    add(
        "/v1/{namespace}/acquire-all",
        "post",
        post::<AcquireAll>(
            schemas,
            "Takes several locks, all or none.",
            "As `acquire`. Each lock is named once, 1 to 10,000 of \
            them; the grants come in the order of the question.",
            all_granted,
            &lock,
        ),
    );
    add(
        "/v1/{namespace}/change",
        "post",
        post::<Change>(
            schemas,
            "Changes the mode of a claim that is held.",
            "A downgrade is answered at once; an upgrade is held \
            open until it is granted.",
            granted,
            &[409],
        ),
    );
    add(
        "/v1/{namespace}/renew",
        "post",
        post::<Renew>(
            schemas,
            "Renews claims, up to 10,000, and waits for news of them.",
            "A claim may be believed in for its \
            `ttl_ms` from when this was sent, plus `held_ms`, less 1 % and 2 ms.",
            |schemas| schemas.answer::<Renewed>(),
            &[],
        ),
    );
    add(
        "/v1/{namespace}/together",
        "post",
        post::<Together>(
            schemas,
            "Asks for several things that may have to wait, for programs with few connections.",
            "Each is what it is by itself, but for how long the request is held open: it is answered as soon as one of them has its \
            answer, and when the same client asks so another time. What has no answer yet is `null` and keeps its place: ask again. \
            One that is refused has its problem in its place; one that makes no sense is refused with all, and none is asked.",
            |schemas| schemas.answer::<Answers>(),
            &[],
        ),
    );
    add(
        "/v1/{namespace}/release",
        "post",
        post::<Release>(
            schemas,
            "Gives claims back, held or waiting.",
            "One that is not there is no error; the answer names those that had been lost before.",
            |schemas| schemas.answer::<Released>(),
            &[],
        ),
    );
    add(
        "/v1/{namespace}/force-release",
        "post",
        post::<ForceRelease>(
            schemas,
            "Takes a lock away from those who hold it.",
            "They are told at their next renewal. It takes \
            the right `force`.",
            |schemas| schemas.answer::<ForceReleased>(),
            &[],
        ),
    );
    let locks = schemas.answer::<Locks>();
    add(
        "/v1/{namespace}/locks",
        "get",
        get("Who holds and who waits.", "application/json", &locks, &ASKED, true),
    );
    let text = json!({ "type": "string" });
    let events = "Server-sent events `lock`: each lock as in `locks`, then `synced`, then each that changes, free ones without \
                  holders.";
    add("/v1/{namespace}/events", "get", get(events, "text/event-stream", &text, &ASKED, true));
    let events = "The same of all namespaces that one may see, each lock with its `namespace`.";
    add("/v1/events", "get", get(events, "text/event-stream", &text, &[400, 401, 403], false));
    add("/v1", "get", get("The namespaces.", "application/json", &namespaces, &[400, 401, 403], false));
    let here = [400, 403];
    add("/healthz", "get", get("Whether the server runs.", "text/plain", &text, &here, false));
    let ready = "Whether the server grants locks now.";
    add("/readyz", "get", get(ready, "text/plain", &text, &[400, 403, 503, 507], false));
    add("/metrics", "get", get("Numbers for Prometheus.", "text/plain", &text, &[400, 401, 403], false));
    add("/openapi.json", "get", get("This document.", "application/json", &document, &here, false));
    paths.into()
}

fn post<Q: JsonSchema>(
    schemas: &mut Schemas,
    summary: &str,
    description: &str,
    answer: impl FnOnce(&mut Schemas) -> Value,
    refusals: &[u16],
) -> Value {
    let refusals: Vec<u16> = [&ASKED, &POSTED[..], refusals].concat();
    json!({
        "summary": summary,
        "description": description,
        "requestBody": { "required": true, "content": { "application/json": { "schema": schemas.question::<Q>() } } },
        "responses": responses("application/json", &answer(schemas), &refusals),
    })
}

fn get(summary: &str, media_type: &str, schema: &Value, refusals: &[u16], has_prefix: bool) -> Value {
    let mut operation = json!({ "summary": summary, "responses": responses(media_type, schema, refusals) });
    if has_prefix {
        operation["parameters"] = json!([{ "$ref": "#/components/parameters/prefix" }]);
    }
    operation
}

fn responses(media_type: &str, schema: &Value, refusals: &[u16]) -> Value {
    let good = json!({ "description": "Done.", "content": { media_type: { "schema": schema } } });
    let refused = refusals.iter().map(|status| {
        let (_, name, _) = REFUSALS.iter().find(|(of, ..)| of == status).unwrap();
        (status.to_string(), json!({ "$ref": format!("#/components/responses/{name}") }))
    });
    std::iter::once(("200".to_owned(), good)).chain(refused).collect::<Map<_, _>>().into()
}

fn refusal(status: u16, meaning: &str, problem: &Value) -> Value {
    let header = |meaning| json!({ "description": meaning, "schema": { "type": "string" } });
    let headers = match status {
        401 => json!({ "WWW-Authenticate": header("What is wanted, and what is wrong with the token.") }),
        429 | 503 => {
            json!({ "Retry-After": header("After how many seconds to ask again, where that is known.") })
        }
        _ => json!({}),
    };
    json!({ "description": meaning, "headers": headers, "content": { Problem::MEDIA_TYPE: { "schema": problem } } })
}

/// The schemas of questions and of answers; a type that is in both looks the same in both.
struct Schemas {
    questions: SchemaGenerator,
    answers: SchemaGenerator,
}

impl Default for Schemas {
    fn default() -> Self {
        let settings = || {
            let place = "#/components/schemas".into();
            let settings = SchemaSettings::draft2020_12().with(|settings| settings.definitions_path = place);
            settings.with_transform(RecursiveTransform(plain))
        };
        Self {
            questions: settings().for_deserialize().into_generator(),
            answers: settings().for_serialize().into_generator(),
        }
    }
}

impl Schemas {
    fn question<Q: JsonSchema>(&mut self) -> Value {
        self.questions.subschema_for::<Q>().into()
    }

    fn answer<A: JsonSchema>(&mut self) -> Value {
        self.answers.subschema_for::<A>().into()
    }

    fn all(mut self) -> Map<String, Value> {
        let mut all = self.questions.take_definitions(true);
        for (name, schema) in self.answers.take_definitions(true) {
            if let Some(before) = all.insert(name.clone(), schema.clone()) {
                assert_eq!(before, schema, "{name} is another in questions than in answers");
            }
        }
        all
    }
}

/// As a reader of JSON wants it: without links into Rust, and with the bounds of numbers.
fn plain(schema: &mut Schema) {
    let Some(fields) = schema.as_object_mut() else { return };
    if let Some(Value::String(text)) = fields.get_mut("description") {
        *text = without_links(text).split_whitespace().collect::<Vec<_>>().join(" ");
    }
    let most = match fields.get("format").and_then(Value::as_str) {
        Some("uint64" | "uint") => u64::MAX,
        Some("uint32") => u32::MAX.into(),
        Some("uint16") => u16::MAX.into(),
        _ => return,
    };
    fields.entry("maximum").or_insert(most.into());
}

/// [`Text`] and [`text`](of::Rust) as `Text` and `text`.
fn without_links(text: &str) -> String {
    let mut parts = text.split("[`");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (code, rest) = part.split_once("`]").unwrap();
        let rest = rest.strip_prefix('(').map_or(rest, |link| link.split_once(')').unwrap().1);
        plain.push_str(&format!("`{}`{rest}", code.rsplit("::").next().unwrap()));
    }
    plain
}
