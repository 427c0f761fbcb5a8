//! A page: its frame, its bytes, and how it is answered.

use axum::{
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest as _, Sha256};
use utoipa::{
    IntoResponses,
    openapi::{ObjectBuilder, ResponseBuilder, Type},
};

use crate::{
    http::openapi::{always, text},
    web::openapi::{Responses, header},
};

/// The media type of pages.
const HTML: &str = "text/html";

/// The media type of the OpenAPI document.
pub(super) const YAML: &str = "application/yaml";

/// A client keeps a page, and asks each time whether it is still the same.
const NO_CACHE: &str = "no-cache";

/// In every page, so that each is one request and stays whole when it is saved.
const STYLE: &str = include_str!("style.css");

/// The mark of the service, as an image in an address.
const ICON: &str = concat!(
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E",
    "%3Crect width='32' height='32' rx='7' fill='%23b4510f'/%3E",
    "%3Cpath d='M8 23V13l8-5 8 5v10' fill='none' stroke='%23fff' stroke-width='3'/%3E",
    "%3Ccircle cx='16' cy='20' r='3' fill='%23fff'/%3E%3C/svg%3E",
);

/// The parts of the documentation, as the head of every page lists them.
const PARTS: [(&str, &str); 6] = [
    ("/docs", "Overview"),
    (super::api::PATH, "API"),
    (super::STREAM, "Stream"),
    (super::UPDATES, "Updates"),
    (super::problems::PATH, "Problems"),
    (super::OPENAPI, "OpenAPI"),
];

/// What a page shows.
#[derive(Debug)]
pub(super) struct View {
    /// Where it is.
    pub(super) path: String,
    pub(super) title: String,
    /// What stands beside the text: where to go from here.
    pub(super) contents: Markup,
    pub(super) main: Markup,
}

impl View {
    /// The page as it is sent.
    pub(super) fn page(&self) -> Page {
        Page::new("text/html; charset=utf-8", self.html().into_string())
    }

    fn html(&self) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (self.title) " · Crewcast" }
                    link rel="icon" href=(ICON);
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    a.skip href="#main" { "Skip to the text" }
                    (self.head())
                    div.columns {
                        nav.contents aria-label="Contents" { details { summary { "Contents" } (self.contents) } }
                        main #main tabindex="-1" { (self.main) }
                    }
                    footer { p { "Crewcast " (env!("CARGO_PKG_VERSION")) } }
                }
            }
        }
    }

    fn head(&self) -> Markup {
        html! {
            header.top {
                a.brand href="/docs" { "Crewcast" }
                nav aria-label="Documentation" {
                    ul {
                        @for (path, name) in PARTS {
                            li { a href=(path) aria-current=[self.is_in(path)] { (name) } }
                        }
                    }
                }
            }
        }
    }

    /// Whether this page is that part, or inside it.
    fn is_in(&self, part: &str) -> Option<&'static str> {
        let rest = self.path.strip_prefix(part)?;
        if rest.is_empty() { Some("page") } else { (rest.starts_with('/') && part != "/docs").then_some("true") }
    }
}

/// Bytes that never change while the process runs.
#[derive(Debug)]
pub(super) struct Page {
    media_type: &'static str,
    etag: HeaderValue,
    body: Bytes,
}

impl Page {
    pub(super) fn new(media_type: &'static str, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let etag = format!("\"{}\"", STANDARD.encode(&Sha256::digest(&body)[..12]));
        let etag = HeaderValue::try_from(etag).expect("base64 in quotes is a header value");
        Self { media_type, etag, body }
    }

    /// The page, or that the client has it.
    pub(super) fn answer(&self, request: &HeaderMap) -> Response {
        let headers = [
            (ETAG, self.etag.clone()),
            (CACHE_CONTROL, HeaderValue::from_static(NO_CACHE)),
            (CONTENT_SECURITY_POLICY, policy()),
            (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
            (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        ];
        if self.is_known(request) {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        let media_type = [(CONTENT_TYPE, HeaderValue::from_static(self.media_type))];
        (headers, media_type, self.body.clone()).into_response()
    }

    /// Whether `If-None-Match` names it (RFC 9110, section 13.1.2).
    fn is_known(&self, request: &HeaderMap) -> bool {
        let lines = request.get_all(IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
        let mut tags = lines.flat_map(|line| line.split(',')).map(|tag| tag.trim().trim_start_matches("W/"));
        tags.any(|tag| tag == "*" || tag.as_bytes() == self.etag.as_bytes())
    }
}

/// Nothing runs, nothing is loaded, and the one style sheet is ours.
fn policy() -> HeaderValue {
    let hash = STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; img-src 'self' data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).expect("made of visible ASCII")
}

/// A page as it is answered.
pub(in crate::http) struct Html(pub(super) Response);

/// The OpenAPI document as it is answered.
pub(in crate::http) struct Yaml(pub(super) Response);

impl IntoResponse for Html {
    fn into_response(self) -> Response {
        self.0
    }
}

impl IntoResponse for Yaml {
    fn into_response(self) -> Response {
        self.0
    }
}

impl IntoResponses for Html {
    fn responses() -> Responses {
        let policy = ObjectBuilder::new().schema_type(Type::String);
        let page = text(HTML, "A page that loads nothing else.");
        kept(page.header("Content-Security-Policy", utoipa::openapi::Header::new(policy)))
    }
}

impl IntoResponses for Yaml {
    fn responses() -> Responses {
        kept(text(YAML, "OpenAPI 3.1."))
    }
}

/// What a client keeps, and that it has it.
fn kept(answer: ResponseBuilder) -> Responses {
    let whole = answer.header("Cache-Control", always(NO_CACHE)).header_ref("ETag", header("PageTag"));
    let known = ResponseBuilder::new().description("The client has it, as `If-None-Match` says.");
    let known = known.header_ref("ETag", header("PageTag"));
    [("200".to_owned(), whole.into()), ("304".to_owned(), known.into())].into()
}
