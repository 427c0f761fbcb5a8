//! The API's document: that the file is it, that it is sound, and that the server does what it says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use crewcast::{auth::Role, error::Code, http::openapi};
use reqwest::{Method, StatusCode, header::CONTENT_TYPE};
use serde_json::{Value, json};

use crate::{
    support::{Client, PATIENCE, Stream, database, server, token},
    tidy::sources,
};

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// Everything that can be done: each method of each route, as `GET` and `/v1/projects/{id}`.
pub fn actions() -> Vec<(String, String)> {
    let document = Document::made();
    let operations = document.operations().map(|(path, method, _)| (method.to_uppercase(), path.to_owned()));
    operations.collect()
}

/// The document, and what it says about an answer.
pub struct Document(Value);

impl Document {
    /// As the routes make it.
    pub fn made() -> Self {
        Self(serde_json::to_value(openapi::document()).unwrap())
    }

    fn operations(&self) -> impl Iterator<Item = (&str, &str, &Value)> {
        self.0["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
            METHODS.into_iter().filter_map(move |method| Some((path.as_str(), method, item.get(method)?)))
        })
    }

    /// The routes that take no token.
    pub fn open(&self) -> BTreeSet<String> {
        let open = self.operations().filter(|(.., operation)| operation["security"] == json!([]));
        open.map(|(path, ..)| path.to_owned()).collect()
    }

    /// The names of the frames that the service has.
    fn kinds(&self) -> impl Iterator<Item = &str> {
        let frames = &self.0["components"]["schemas"]["EventFrame"];
        frames["discriminator"]["mapping"].as_object().unwrap().keys().map(String::as_str)
    }

    /// What a reference names, or the value itself.
    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(name) => self.0.pointer(name.trim_start_matches('#')).unwrap_or_else(|| panic!("no {name}")),
            None => value,
        }
    }

    /// What is wrong with a value that should be as a schema has it.
    fn errors(&self, schema: &Value, value: &Value) -> Vec<String> {
        let schema = json!({ "allOf": [schema], "components": self.0["components"] });
        let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
    }

    /// Fails unless the document has this answer.
    pub fn check(&self, method: &str, path: &str, (status, media_type, body): (StatusCode, &str, &[u8])) {
        let at = format!("{method} {path} {status} {media_type}");
        let is_asked =
            |(route, verb, _): &(&str, &str, &Value)| verb.eq_ignore_ascii_case(method) && is_of(path, route);
        let (_, _, operation) = self.operations().find(is_asked).unwrap_or_else(|| panic!("{at}: no such operation"));
        let answer = self.resolve(&operation["responses"][status.as_str()]);
        assert!(answer["description"].is_string(), "{at}: no such answer");
        let essence = media_type.split(';').next().unwrap_or_default();
        let Some(content) = answer["content"].as_object() else {
            return assert!(body.is_empty(), "{at}: a body");
        };
        let content = content.get(essence).unwrap_or_else(|| panic!("{at}: not of this type"));
        if essence.ends_with("json") {
            let body = serde_json::from_slice(body).unwrap();
            assert_eq!(self.errors(&content["schema"], &body), [""; 0], "{at}: {body}");
        }
    }
}

/// Whether a path is one of a route such as `/v1/projects/{id}`.
pub fn is_of(path: &str, route: &str) -> bool {
    let path: Vec<&str> = path.split('?').next().unwrap_or_default().split('/').collect();
    let route: Vec<&str> = route.split('/').collect();
    path.len() == route.len() && path.iter().zip(route).all(|(part, name)| name.starts_with('{') || *part == name)
}

/// Every value of this name in it, with the address of each.
fn find<'a>(value: &'a Value, name: &str, at: &str, found: &mut Vec<(String, &'a Value)>) {
    let parts: Vec<(String, &Value)> = match value {
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(nth, value)| (nth.to_string(), value)).collect(),
        _ => return,
    };
    for (part, value) in parts {
        let at = format!("{at}/{part}");
        if part == name {
            found.push((at.clone(), value));
        }
        find(value, name, &at, found);
    }
}

fn all<'a>(value: &'a Value, name: &str) -> Vec<(String, &'a Value)> {
    let mut found = Vec::new();
    find(value, name, "", &mut found);
    found
}

#[test]
fn the_file_is_the_document() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.yaml");
    let same = fs::read_to_string(file).unwrap() == openapi::yaml();
    assert!(same, "openapi.yaml is not what the routes say: run `cargo run -- openapi > openapi.yaml`");
}

#[test]
fn the_document_is_the_same_each_time_it_is_made() {
    assert_eq!(openapi::document().to_yaml().unwrap(), openapi::yaml());
}

#[test]
fn every_reference_resolves_and_every_component_is_used() {
    let Document(document) = Document::made();
    let references = all(&document, "$ref");
    for (at, name) in &references {
        let pointer = name.as_str().and_then(|name| name.strip_prefix('#'));
        assert!(pointer.and_then(|pointer| document.pointer(pointer)).is_some(), "{at}: there is no {name}");
    }
    let mapped = all(&document, "mapping").into_iter().flat_map(|(_, mapping)| mapping.as_object().unwrap().values());
    let used: BTreeSet<&str> =
        references.iter().map(|(_, name)| *name).chain(mapped).filter_map(Value::as_str).collect();
    for kind in ["schemas", "responses", "parameters", "headers"] {
        for name in document["components"][kind].as_object().unwrap().keys() {
            assert!(used.contains(format!("#/components/{kind}/{name}").as_str()), "{kind}/{name} is used nowhere");
        }
    }
}

#[test]
fn every_operation_has_a_name_of_its_own_a_summary_and_a_heading() {
    let document = Document::made();
    let headings: Vec<&Value> = document.0["tags"].as_array().unwrap().iter().map(|tag| &tag["name"]).collect();
    assert_eq!(headings.iter().collect::<std::collections::HashSet<_>>().len(), headings.len(), "{headings:?}");
    let mut names = BTreeSet::new();
    for (path, method, operation) in document.operations() {
        let name = operation["operationId"].as_str().unwrap();
        assert!(names.insert(name) && !name.contains('_'), "{method} {path}: {name}");
        assert!(operation["summary"].as_str().is_some_and(|summary| !summary.contains('\n')), "{name} has no summary");
        let tags = operation["tags"].as_array().unwrap();
        assert!(tags.len() == 1 && headings.contains(&&tags[0]), "{name} is under {tags:?}");
    }
}

#[test]
fn every_part_of_a_path_is_declared_and_every_answer_described() {
    let document = Document::made();
    for (path, method, operation) in document.operations() {
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let declared = parameters.iter().map(|parameter| document.resolve(parameter));
        let in_path = declared.filter(|parameter| parameter["in"] == "path");
        let declared: BTreeSet<String> =
            in_path.map(|parameter| parameter["name"].as_str().unwrap().to_owned()).collect();
        let parts = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        assert_eq!(declared, parts.map(str::to_owned).collect(), "{method} {path}");
        let answers = operation["responses"].as_object().unwrap();
        assert!(answers.keys().any(|status| status.starts_with('2')), "{method} {path} never succeeds");
        for (status, answer) in answers {
            let answer = document.resolve(answer);
            assert!(!answer["description"].as_str().unwrap_or_default().is_empty(), "{method} {path} {status}");
            assert!(answer["headers"]["X-Request-Id"].is_object(), "{method} {path} {status}");
        }
    }
}

#[test]
fn bodies_refuse_what_they_do_not_name() {
    let document = Document::made();
    for (path, method, operation) in
        document.operations().filter(|(.., operation)| operation["requestBody"].is_object())
    {
        let body = &operation["requestBody"]["content"]["application/json"]["schema"];
        let errors = document.errors(body, &json!({ "nonsense": 1 }));
        let alternatives = body["oneOf"].as_array().cloned().unwrap_or_else(|| vec![body.clone()]);
        let strict = alternatives.iter().all(|body| body["additionalProperties"] == json!(false));
        assert!(!errors.is_empty() && strict, "{method} {path}: {body}");
    }
}

#[test]
fn every_code_has_its_place() {
    let Document(mut document) = Document::made();
    // There they are all named.
    document["components"]["schemas"].as_object_mut().unwrap().remove("Code");
    let texts = all(&document, "description");
    for code in Code::ALL {
        let named = texts.iter().any(|(_, text)| text.as_str().unwrap_or_default().contains(&format!("`{code}`")));
        assert_eq!(named, !Code::KEPT.contains(code), "{code}: an answer names it, or it is kept for routes to come");
    }
}

#[test]
fn every_route_is_registered_with_its_description() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in ["domain", "http"].iter().flat_map(|part| sources(&src.join(part))) {
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        assert!(!code.contains(".route("), "{}: use `.routes(routes!(..))`", file.display());
    }
}

/// What stands between quotes behind each of these.
fn quoted_after<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
    text.split(before).skip(1).filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next()).collect()
}

#[test]
fn every_event_that_the_domain_appends_is_a_frame_and_the_other_way_round() {
    let domain = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/domain");
    let texts: Vec<String> = sources(&domain).iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let appended: BTreeSet<&str> = texts
        .iter()
        .flat_map(|text| [quoted_after(text, "NewEvent::new("), quoted_after(text, "NewEvent::unversioned(")].concat())
        .collect();
    let document = Document::made();
    let kept_nowhere = ["stream:", "presence:", "typing:", "heartbeat"];
    let logged = document.kinds().filter(|kind| !kept_nowhere.iter().any(|prefix| kind.starts_with(prefix)));
    assert_eq!(appended, logged.collect());
}

#[test]
fn the_command_prints_the_document() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_crewcast")).arg("openapi").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), openapi::yaml());
}

#[tokio::test]
async fn the_document_is_served_to_everybody() {
    let server = server(&database().await, &[]).await;
    let response = reqwest::get(format!("http://{}/openapi.yaml", server.address)).await.unwrap();
    assert_eq!(response.headers()[CONTENT_TYPE], "application/yaml");
    assert_eq!(response.text().await.unwrap(), openapi::yaml());
    server.stop().await;
}

/// Causes every event that the domain has, all seen from `company`, the division and the project.
async fn cause_everything(ana: &Client, project: &str) {
    let send = async |method: Method, path: String, body: Value| {
        let (status, answer) = ana.send(method, &path, body).await;
        assert!(status.is_success(), "{path} {status} {answer}");
    };
    let phases = format!("/v1/projects/{project}/phases");
    let phase = ana.make(&phases, json!({ "name": "Shell" })).await;
    send(Method::PATCH, format!("{phases}/{phase}"), json!({ "position": 3, "endsOn": "2026-12-06" })).await;
    send(Method::DELETE, format!("{phases}/{phase}"), Value::Null).await;
    let comments = format!("/v1/projects/{project}/comments");
    let comment = ana.make(&comments, json!({ "body": "Look.", "mentions": ["eva"] })).await;
    send(Method::PATCH, format!("{comments}/{comment}"), json!({ "body": "Look again." })).await;
    send(Method::DELETE, format!("{comments}/{comment}"), Value::Null).await;
    send(Method::PUT, format!("/v1/projects/{project}/members/eva"), json!({ "role": "editor" })).await;
    send(Method::DELETE, format!("/v1/projects/{project}/members/eva"), Value::Null).await;
    let employee = ana.employee("north", 37.5).await;
    let body = json!({ "employeeId": employee, "projectId": project, "week": "2026-W48", "hours": 8 });
    ana.make("/v1/assignments", body).await;
    send(Method::PUT, format!("/v1/employees/{employee}/capacity"), json!({ "weeklyHours": 0 })).await;
    let preferences = json!({ "alerts": [{ "toast": true, "sound": false, "desktop": false, "badge": true }] });
    send(Method::PUT, "/v1/me/preferences".to_owned(), preferences).await;
    let body =
        json!({ "kind": "x", "severity": "info", "title": "x", "body": "", "audience": ["company"], "value": 0.5 });
    let alert = ana.make("/v1/alerts", body).await;
    send(Method::POST, format!("/v1/alerts/{alert}/ack"), Value::Null).await;
    send(Method::POST, "/v1/rooms/company/events".to_owned(), json!({ "type": "erp:synced", "data": { "n": 1 } }))
        .await;
    send(Method::PATCH, format!("/v1/projects/{project}"), json!({ "endsOn": "2026-12-04", "notes": "x" })).await;
    send(Method::DELETE, format!("/v1/projects/{project}"), Value::Null).await;
}

/// Checks the frames that come until one of this type does, and counts them by type.
async fn check_until(last: &str, stream: &mut Stream, document: &Document, seen: &mut BTreeMap<String, usize>) {
    let sent = document.0.pointer("/paths/~1events/get/responses/200/content/text~1event-stream/schema").unwrap();
    // Its heartbeats keep a stream from ever being silent.
    let begun = std::time::Instant::now();
    loop {
        assert!(begun.elapsed() < PATIENCE, "no {last}, but {seen:?}");
        let frame = stream.next_of_all().await.expect("the stream goes on");
        let data: Value = serde_json::from_str(&frame.data).unwrap();
        let value = json!({ "id": frame.id, "event": frame.event, "data": data });
        let errors = document.errors(sent, &value);
        assert_eq!(errors, [""; 0], "{value}");
        *seen.entry(frame.event.clone()).or_default() += 1;
        if frame.event == last {
            return;
        }
    }
}

/// Tells a stream of ana's what she does on it, and on another one in the same room.
async fn cause_whispers(room: &str, ana: &Client, stream: &str) {
    let tell = async |what: &str, body: Value| {
        let (status, answer) = ana.send(Method::PUT, &format!("/v1/streams/{stream}/{what}"), body).await;
        assert_eq!(status, StatusCode::NO_CONTENT, "{answer}");
    };
    tell("presence", json!({ "viewing": "/plan", "editing": { "room": room, "field": "name" } })).await;
    let mut other = ana.stream(&format!("rooms={room}"), "").await;
    let other = other.expect("stream:open").await.1["streamId"].as_str().unwrap().to_owned();
    let body = json!({ "room": room, "field": "name", "typing": true });
    let (status, _) = ana.send(Method::PUT, &format!("/v1/streams/{other}/typing"), body).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (status, _) =
        ana.send(Method::POST, &format!("/v1/streams/{stream}/rooms"), json!({ "join": ["topic:x"] })).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn a_stream_carries_every_frame_of_the_document_as_it_says() {
    let settings = ["--heartbeat=50ms", "--expiring-ahead=2h", "--presence-users-max=1", "--typing-ttl=50ms"];
    let server = server(&database().await, &settings).await;
    let (ana, document, mut seen) = (Client::admin(&server), Document::made(), BTreeMap::new());
    let (cursor, _) = ana.read("/v1/divisions").await;
    let project = ana.project("north").await;
    cause_everything(&ana, &project).await;
    let rooms = format!("rooms=company,division:north,project:{project}");
    let mut stream = ana.stream(&rooms, &cursor).await;
    check_until("project:deleted", &mut stream, &document, &mut seen).await;
    check_until("heartbeat", &mut stream, &document, &mut seen).await;
    let second = ana.project("north").await;
    let room = format!("project:{second}");
    let mut stream = ana.stream(&format!("rooms={room}"), "").await;
    let (_, open) = stream.expect("stream:open").await;
    cause_whispers(&room, &ana, open["streamId"].as_str().unwrap()).await;
    for last in ["presence:snapshot", "presence:change", "typing:start", "typing:stop"] {
        check_until(last, &mut stream, &document, &mut seen).await;
    }
    let eva = Client::new(&server, &token("eva", &[Role::Manager]));
    let _there = eva.stream(&format!("rooms={room}"), "").await;
    check_until("presence:count", &mut stream, &document, &mut seen).await;
    let mut lost = ana.stream("rooms=company", "nonsense").await;
    check_until("stream:expiring", &mut lost, &document, &mut seen).await;
    let stopping = server.stop();
    let (_, ()) = tokio::join!(stopping, check_until("stream:closing", &mut stream, &document, &mut seen));
    assert_eq!(document.kinds().filter(|kind| !seen.contains_key(*kind)).collect::<Vec<_>>(), [""; 0]);
    assert!(seen.contains_key("erp:synced"));
}
