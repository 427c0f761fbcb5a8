//! The API's document: what the routes say of themselves, and what holds for all of them.
//!
//! `openapi.yaml` in the repository is this document, and a test compares the two.

mod common;
mod frames;

use std::sync::LazyLock;

use utoipa::openapi::{
    ContentBuilder, Header, InfoBuilder, ObjectBuilder, OpenApi, OpenApiBuilder, ResponseBuilder, SecurityRequirement,
    ServerBuilder, Type, header::HeaderBuilder, info::LicenseBuilder,
};

pub(super) use self::frames::sent;
use super::{DOMAIN, administration, live_streams, operations, pages, stream, streams};
use crate::domain;

const SUMMARY: &str = "Server-Sent Events for construction operations, resumed exactly";

const DESCRIPTION: &str = "\
Change things by REST; each change commits together with its events; `GET /events` streams them to whoever may see them.

What holds for every route:

- Bodies are JSON objects in camelCase with `Content-Type: application/json`. A field that is not named here is refused.
- Every failed answer is a problem (RFC 9457). Switch on its `code`.
- Every answer has an `X-Request-Id`, made by the server.
- A path that is not listed is 404 `not_found`; a method that is not listed is 405 `method_not_allowed` with `Allow`. A route
  with `GET` also takes `HEAD`.
- Anything shaped like a JWT in a query string is 400 `token_in_query`, before anything else.
- Other unknown query parameters are ignored.
- A browser may bring the cookie of a session in place of the token. A write with it is 403 `origin_not_allowed` from a page
  that is neither the server's own nor of an origin that may call.
- Writes under `/v1` and `/hooks` are limited by caller, attempts to open streams and failed authentications by address, on each node by
  itself. Every answer to a write of somebody who is known has `RateLimit` and `RateLimit-Policy`.
";

/// The document.
#[must_use]
pub fn document() -> OpenApi {
    let license = LicenseBuilder::new().name(env!("CARGO_PKG_LICENSE")).identifier(Some(env!("CARGO_PKG_LICENSE")));
    let info = InfoBuilder::new().title("Crewcast").version(env!("CARGO_PKG_VERSION")).license(Some(license.build()));
    let info = info.description(Some(DESCRIPTION));
    let server = ServerBuilder::new().url("http://127.0.0.1:3001").description(Some("A server on this machine"));
    let document = OpenApiBuilder::new()
        // The builder knows no summary, which is new in 3.1.
        .info(info.extensions(Some([("summary", SUMMARY)].into_iter().collect())).build())
        .servers(Some([server.build()]))
        .security(Some(
            [common::BEARER, common::COOKIE].map(|scheme| SecurityRequirement::new::<_, [&str; 0], _>(scheme, [])),
        ))
        .components(Some(common::components()))
        .build();
    // Nested on its own first: nesting would replace the paths that both have.
    let domain = OpenApi::default().nest(DOMAIN, domain::router().into_openapi());
    let mut document = document
        .merge_from(stream().into_openapi())
        .merge_from(streams().into_openapi())
        .merge_from(live_streams().into_openapi())
        .merge_from(domain)
        .merge_from(domain::hooks().into_openapi())
        .merge_from(administration().into_openapi())
        .merge_from(operations().into_openapi())
        .merge_from(pages().into_openapi());
    common::complete(&mut document);
    frames::join(&mut document);
    document
}

/// The document as text.
pub fn yaml() -> &'static str {
    static TEXT: LazyLock<String> =
        LazyLock::new(|| document().to_yaml().expect("the document is texts, numbers, lists and maps"));
    &TEXT
}

/// An answer that is a text.
pub(super) fn text(media_type: &str, description: &str) -> ResponseBuilder {
    let text = ContentBuilder::new().schema(Some(ObjectBuilder::new().schema_type(Type::String)));
    ResponseBuilder::new().description(description).content(media_type, text.build())
}

/// An answer that is always the same text.
pub(super) fn words(words: &str, description: &str) -> ResponseBuilder {
    let words = ObjectBuilder::new().schema_type(Type::String).enum_values(Some([words]));
    let words = ContentBuilder::new().schema(Some(words));
    ResponseBuilder::new().description(description).content("text/plain", words.build())
}

/// A header that never has another value.
pub(super) fn always(value: &str) -> Header {
    let value = ObjectBuilder::new().schema_type(Type::String).enum_values(Some([value]));
    HeaderBuilder::new().schema(Some(value)).build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::openapi;

    #[test]
    fn no_route_is_lost_where_two_parts_have_one_path() {
        let count = |mut document: OpenApi| openapi::operations(&mut document.paths).count();
        let parts = [
            stream().into_openapi(),
            streams().into_openapi(),
            live_streams().into_openapi(),
            domain::router().into_openapi(),
            domain::hooks().into_openapi(),
            administration().into_openapi(),
            operations().into_openapi(),
            pages().into_openapi(),
        ];
        assert_eq!(count(document()), parts.into_iter().map(count).sum::<usize>());
    }
}
