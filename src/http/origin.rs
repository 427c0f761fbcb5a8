//! Which pages may write with a session's cookie.
//!
//! A browser sends the cookie by itself, whoever made the page that asks. `SameSite=Strict` keeps it from pages of other
//! sites, and not from those of other origins of the same site: another port, another subdomain. So a write with the
//! cookie says in `Origin` which page it is from, as browsers do, and that is the server's own or one of `cors-origins`.
//! What browsers say besides (`Sec-Fetch-Site`) must not contradict it. Signing in is judged alike: a page that signs its
//! visitor in as somebody else would see what they do then.
//!
//! Reads need no such rule: what a page of another origin may read of an answer is for its browser to say.

use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue,
        header::{HOST, ORIGIN},
    },
    middleware::Next,
    response::Response,
};

use super::{address::Address, limit, security::Kind};
use crate::{
    app::App,
    auth::session::Cookie,
    config::Config,
    error::{Code, Error, Result},
};

/// Whose page calls, as its browser says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Page {
    /// Nothing is said: it is no page, or its browser's own read.
    Unsaid,
    /// The server's own.
    Own,
    /// One of `cors-origins`.
    Named,
    /// Any other.
    Foreign,
}

impl Page {
    /// Whose page sent these headers.
    pub(super) fn of(headers: &HeaderMap, config: &Config) -> Self {
        let mut origins = headers.get_all(ORIGIN).into_iter();
        let (origin, other) = (origins.next(), origins.next());
        match origin {
            None => Self::Unsaid,
            Some(_) if other.is_some() => Self::Foreign,
            Some(origin) if config.cors_origins.iter().any(|named| origin == named.as_str()) => Self::Named,
            Some(origin) if is_own(origin, headers, config) => Self::Own,
            Some(_) => Self::Foreign,
        }
    }
}

/// Whether an origin is the server's own. Where nobody says what that is, it is the one that was called: as `Host` has it or,
/// where a proxy changed that, as the browser says.
fn is_own(origin: &HeaderValue, headers: &HeaderMap, config: &Config) -> bool {
    if let Some(own) = &config.public_url {
        return origin == own.as_str();
    }
    let host = origin.as_bytes().splitn(3, |byte| *byte == b'/').nth(2);
    let is_called = host.is_some() && host == headers.get(HOST).map(HeaderValue::as_bytes);
    is_called || is_from(headers, "same-origin")
}

/// Whether the browser says that the page has this relation to the server (Fetch Metadata).
fn is_from(headers: &HeaderMap, relation: &str) -> bool {
    headers.get("sec-fetch-site").is_some_and(|site| site == relation)
}

/// Middleware: refuses writes with the cookie from pages that are not known.
pub(super) async fn guard(State(app): State<App>, address: Address, request: Request, next: Next) -> Result<Response> {
    let is_write = limit::has_a_caller(&request) && limit::is_write(request.method());
    // What is no cookie of ours names nobody, and is told so.
    if is_write && matches!(Cookie::of(request.headers()), Some(Ok(_))) {
        admit(&app, address, request.headers(), Origin::Needed)?;
    }
    Ok(next.run(request).await)
}

/// Whether a request must say which page it is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Browsers do, and only they are meant.
    Needed,
    /// Others may call as well.
    Welcome,
}

/// Lets a request of the server's own pages and of named ones through.
///
/// # Errors
/// 403, which is noted in the security log.
pub(super) fn admit(app: &App, address: Address, headers: &HeaderMap, origin: Origin) -> Result<()> {
    let (page, is_crossing) = (Page::of(headers, &app.config), is_from(headers, "cross-site"));
    let is_fine = match page {
        Page::Named => true,
        Page::Own => !is_crossing,
        Page::Unsaid => origin == Origin::Welcome && !is_crossing,
        Page::Foreign => false,
    };
    if is_fine {
        return Ok(());
    }
    // Those of foreign pages are noted already.
    if page != Page::Foreign {
        app.security.note(Kind::BadOrigin, address, None);
    }
    let why = match page {
        Page::Unsaid => "A write with the session's cookie says in the header `Origin` which page it is from.",
        _ => {
            "This page is neither of the server's own origin, CREWCAST_PUBLIC_URL, nor of one in CREWCAST_CORS_ORIGINS."
        }
    };
    Err(Error::new(Code::OriginNotAllowed, why))
}
