//! What holds for many routes, said once: who must send a token, how errors are answered, and what a repeat of a write needs.

use std::collections::BTreeMap;

use utoipa::openapi::{
    Components, ContentBuilder, Header, ObjectBuilder, OpenApi, PathItem, Ref, RefOr, Required, Response,
    ResponseBuilder, SchemaFormat, Type,
    header::HeaderBuilder,
    path::{Operation, Parameter, ParameterBuilder, ParameterIn},
    schema::{AllOfBuilder, ArrayBuilder, KnownFormat, Schema},
    security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
};

use crate::{
    auth::session,
    ids::{Room, Slug, Sub, Week},
    log::Position,
    web::{
        openapi::{REPLAYED, define, header, operations, schemas_of, take_definitions},
        problem::{PROBLEM_JSON, Rendered},
    },
};

/// How backends say who calls.
pub(super) const BEARER: &str = "bearer";
/// How browsers do.
pub(super) const COOKIE: &str = "cookie";

/// How each error is answered, unless a route has words of its own: status, name, and which codes mean what.
const ANSWERS: [(&str, &str, &str); 12] = [
    (
        "400",
        "BadRequest",
        "`token_in_query`, `invalid_query`, `invalid_path`, `invalid_header`, `invalid_room`, `too_many_rooms`, \
         `malformed_json`, or `bad_request` for what has no code of its own.",
    ),
    ("401", "Unauthorized", "`unauthorized`: the token, the ticket or the cookie is missing or not valid."),
    (
        "403",
        "Forbidden",
        "`forbidden`: the caller may not do this, or may not join the room. `origin_not_allowed`: the page may not write with \
         the session's cookie.",
    ),
    ("404", "NotFound", "`not_found`: there is none, or the caller may not read it."),
    ("408", "Timeout", "`timeout`: the request had not arrived within `request-timeout`."),
    ("409", "InProgress", "`idempotency_in_progress`: the first request with this `Idempotency-Key` is still running."),
    ("413", "BodyTooLarge", "`body_too_large`: the body is larger than `body-bytes-max`."),
    ("415", "UnsupportedMediaType", "`unsupported_media_type`: the body is not declared as JSON."),
    (
        "422",
        "Unprocessable",
        "`invalid_body`: the body is JSON, but not what is expected; `errors` says where. `idempotency_key_reused`: the \
         `Idempotency-Key` was used for another request.",
    ),
    (
        "429",
        "TooManyRequests",
        "`rate_limited`: a limit is reached, the caller's `writes`, tickets or sessions, or their address's `connects` or `failures` (of \
         authentication). `too_many_streams`: the caller has `streams-per-user` open on this node.",
    ),
    ("500", "Internal", "`internal`: the server's log has the cause under the request's id."),
    (
        "503",
        "Unavailable",
        "`unavailable`: Postgres is out of reach. `draining`: the server is shutting down. `overloaded`: it has as many streams \
         as it can serve. Ask again later.",
    ),
];

/// Parameters that are the same wherever they are, and what they are called among the components.
const PARAMETERS: [(&str, &str); 4] =
    [("after", "After"), ("limit", "Limit"), ("If-Match", "IfMatch"), ("Idempotency-Key", "IdempotencyKey")];

/// What a write is told of its limit.
const LIMITS: [(&str, &str); 2] = [("RateLimit", "RateLimit"), ("RateLimit-Policy", "RateLimitPolicy")];

/// What routes refer to by name.
pub(super) fn components() -> Components {
    let mut components = Components::new();
    define(&mut components, schemas_of::<Rendered>());
    define(&mut components, [schemas_of::<Slug>(), schemas_of::<Sub>(), schemas_of::<Room>()].concat());
    define(&mut components, [schemas_of::<Week>(), schemas_of::<Position>()].concat());
    for (name, schema, description) in headers() {
        let header = HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build();
        components.headers.insert(name.to_owned(), header.into());
    }
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").description(Some(
        "`sub` and `exp` are required. Read as well: `nbf`, `name`, `roles` (`member`, `manager`, `admin`, `service`; none \
         is `member`), `divisions` (slugs), `topics` (names), and `aud` and `iss` where the server is set to check them.",
    ));
    components.add_security_scheme(BEARER, SecurityScheme::Http(bearer.build()));
    let cookie = ApiKeyValue::with_description(
        session::NAME,
        "What `POST /v1/session` sets. The header `Authorization` goes before it. A write with it has an `Origin`: the server's \
         own, or one of `cors-origins`.",
    );
    components.add_security_scheme(COOKIE, SecurityScheme::ApiKey(ApiKey::Cookie(cookie)));
    components
}

/// Headers that several answers have: name, schema and description.
fn headers() -> [(&'static str, RefOr<Schema>, &'static str); 9] {
    let text = || ObjectBuilder::new().schema_type(Type::String);
    let seconds = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1));
    let address = text().format(Some(SchemaFormat::Custom("uri-reference".to_owned())));
    let id = text().format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid)));
    [
        (
            "Cursor",
            Ref::from_schema_name("Cursor").into(),
            "The position in the event log of the snapshot that was read; resume a stream from it.",
        ),
        ("ETag", text().pattern(Some("^\"[0-9]+\"$")).into(), "The version, in quotes."),
        ("IdempotentReplayed", text().enum_values(Some(["true"])).into(), "There when this was answered before."),
        ("Location", address.into(), "Where it is."),
        (
            "PageTag",
            text().into(),
            "The page's own; sent back in `If-None-Match` it saves the page while that is the same.",
        ),
        (
            "RateLimit",
            text().examples(["\"writes\";r=99;t=1"]).into(),
            "What is left of a limit (draft-ietf-httpapi-ratelimit-headers): `r` more now, all of them again in `t` seconds. \
             Of a refusal, `t` is `Retry-After`.",
        ),
        (
            "RateLimitPolicy",
            text().examples(["\"writes\";q=100;w=60"]).into(),
            "The limit, `q` in `w` seconds. Who did nothing for that long may use all at once; they come back evenly.",
        ),
        ("RequestId", id.into(), "The id of the request, made by the server."),
        ("RetryAfter", seconds.into(), "Seconds."),
    ]
}

/// Completes every operation.
pub(super) fn complete(document: &mut OpenApi) {
    refuse_pages(document);
    let shown: BTreeMap<String, String> = operations(&mut document.paths)
        .filter_map(|(path, operation)| Some((path.to_owned(), answered(operation)?)))
        .collect();
    let components = document.components.get_or_insert_default();
    for (status, name, description) in ANSWERS {
        components.responses.insert(name.to_owned(), problem(status, description, "Problem").into());
    }
    for (path, operation) in operations(&mut document.paths) {
        if let Some(entity) = shown.get(path).filter(|_| has(operation, "If-Match")) {
            answer_conflicts(components, operation, entity);
        }
        define(components, of_operation(operation));
        share_parameters(components, operation);
    }
}

/// A write may come with a cookie from a page that may not write.
fn refuse_pages(document: &mut OpenApi) {
    let paths = document.paths.paths.values_mut();
    let writes = paths.flat_map(|PathItem { put, post, patch, delete, .. }| [put, post, patch, delete]).flatten();
    for operation in writes {
        operation.responses.responses.entry("403".to_owned()).or_insert_with(|| Response::default().into());
    }
}

/// 412 with the entity that the path is of.
fn answer_conflicts(components: &mut Components, operation: &mut Operation, entity: &str) {
    let name = format!("{entity}Conflict");
    define(components, [(name.clone(), conflict(entity).into())]);
    let description = "`version_conflict`: somebody else has changed what the versions in `If-Match` had. The answer has the \
                       present state.";
    components.responses.insert(name.clone(), problem("412", description, &name).into());
    operation.responses.responses.insert("412".to_owned(), Ref::from_response_name(name).into());
}

/// Completes an operation, and takes the schemas that its answers brought along.
fn of_operation(operation: &mut Operation) -> Vec<(String, RefOr<Schema>)> {
    operation.operation_id = operation.operation_id.take().map(|name| camel_case(&name));
    let is_repeatable = is_repeatable(operation);
    if is_repeatable {
        operation.parameters.get_or_insert_default().push(idempotency_key().into());
    }
    for status in statuses(operation, is_repeatable) {
        operation.responses.responses.entry(status.to_owned()).or_insert_with(|| Response::default().into());
    }
    let mut definitions = Vec::new();
    for (status, answer) in &mut operation.responses.responses {
        if let RefOr::T(response) = answer {
            definitions.extend(take_definitions(response));
        }
        settle(status, answer, is_repeatable);
    }
    definitions
}

fn share_parameters(components: &mut Components, operation: &mut Operation) {
    for parameter in operation.parameters.iter_mut().flatten() {
        let RefOr::T(own) = parameter else { continue };
        let Some((_, name)) = PARAMETERS.iter().find(|(of, _)| *of == own.name) else { continue };
        components.parameters.insert((*name).to_owned(), own.clone().into());
        *parameter = RefOr::Ref(Ref::new(format!("#/components/parameters/{name}")));
    }
}

/// What an operation can answer by what it is.
fn statuses(operation: &Operation, is_repeatable: bool) -> Vec<&'static str> {
    let is_open = operation.security.as_ref().is_some_and(Vec::is_empty);
    let sets: [(bool, &[&str]); 4] = [
        (true, &["400"]),
        (!is_open, &["401", "408", "429", "500", "503"]),
        (operation.request_body.is_some(), &["413", "415", "422"]),
        (is_repeatable, &["409", "422"]),
    ];
    sets.into_iter().filter(|(holds, _)| *holds).flat_map(|(_, statuses)| statuses).copied().collect()
}

/// An error without words of its own is the one of its status; one with words is a problem; all have the request's id.
fn settle(status: &str, answer: &mut RefOr<Response>, is_repeatable: bool) {
    let RefOr::T(response) = answer else { return };
    let common = ANSWERS.iter().find(|(of, ..)| *of == status);
    if let Some((_, name, words)) = common {
        if response.description.is_empty() {
            *answer = Ref::from_response_name(*name).into();
            return;
        }
        if is_repeatable && status == "409" {
            response.description = format!("{} {words}", response.description);
            response.headers.insert("Retry-After".to_owned(), RefOr::Ref(header("RetryAfter")));
        }
        let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem")));
        response.content.insert(PROBLEM_JSON.to_owned(), problem.into());
    }
    let limits: &[_] = if is_repeatable { &LIMITS } else { &[] };
    for (name, header_name) in limits.iter().chain([&("X-Request-Id", "RequestId")]) {
        response.headers.insert((*name).to_owned(), RefOr::Ref(header(header_name)));
    }
}

/// The answer to an error.
fn problem(status: &str, description: &str, schema: &str) -> Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).build();
    let problem = ResponseBuilder::new().description(description).content(PROBLEM_JSON, content);
    let problem = problem.header_ref("X-Request-Id", header("RequestId"));
    let problem = match status {
        "429" => LIMITS.into_iter().fold(problem, |problem, (name, of)| problem.header_ref(name, header(of))),
        _ => problem,
    };
    match status {
        "401" => problem.header("WWW-Authenticate", challenge()),
        "409" | "429" | "503" => problem.header_ref("Retry-After", header("RetryAfter")),
        _ => problem,
    }
    .build()
}

fn challenge() -> Header {
    let text = ObjectBuilder::new().schema_type(Type::String);
    HeaderBuilder::new().schema(Some(text)).example(Some(r#"Bearer error="invalid_token""#.into())).build()
}

/// A problem that shows what is there now.
fn conflict(entity: &str) -> AllOfBuilder {
    let version = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1));
    let fields = ArrayBuilder::new().items(ObjectBuilder::new().schema_type(Type::String));
    let members = ObjectBuilder::new()
        .property("current", Ref::from_schema_name(entity))
        .property("currentVersion", version)
        .property("conflictingFields", fields.description(Some("The fields that somebody else has changed.")))
        .required("current")
        .required("currentVersion")
        .required("conflictingFields");
    AllOfBuilder::new().item(Ref::from_schema_name("Problem")).item(members)
}

/// The name of the schema of what a successful answer shows.
fn answered(operation: &Operation) -> Option<String> {
    let RefOr::T(response) = operation.responses.responses.get("200")? else { return None };
    let (_, RefOr::T(content)) = response.content.first()? else { return None };
    match &content.schema {
        Some(RefOr::Ref(schema)) => schema.ref_location.rsplit('/').next().map(str::to_owned),
        _ => None,
    }
}

fn has(operation: &Operation, header: &str) -> bool {
    let mut parameters = operation.parameters.iter().flatten();
    parameters.any(|parameter| matches!(parameter, RefOr::T(parameter) if parameter.name == header))
}

fn is_repeatable(operation: &Operation) -> bool {
    let mut answers = operation.responses.responses.values();
    answers.any(|answer| matches!(answer, RefOr::T(response) if response.headers.contains_key(REPLAYED)))
}

fn idempotency_key() -> Parameter {
    let key = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[!-~]{1,128}$"));
    ParameterBuilder::new()
        .name("Idempotency-Key")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(
            "Names the request, so that it can be repeated: a repeat within `idempotency-ttl` gets the first answer again \
             and changes nothing. It comes back in the events of the change as `meta.mutationId`.",
        ))
        .schema(Some(key))
        .build()
}

/// `readProject` of `read_project`.
fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| name + &word[..1].to_uppercase() + &word[1..])
}
