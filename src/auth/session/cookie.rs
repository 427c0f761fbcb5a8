//! The cookie: what a browser brings by itself.

use std::{fmt, str::FromStr};

use axum::http::{
    HeaderMap, HeaderValue,
    header::{AUTHORIZATION, COOKIE},
};
use time::OffsetDateTime;

use crate::auth::opaque::{self, Digest};

/// Its name. Browsers take a cookie with this prefix from no other host, over no connection that can be listened to, and
/// only for the whole host (draft-ietf-httpbis-rfc6265bis, section 4.1.3.2).
pub const NAME: &str = "__Host-crewcast";

/// What every value begins with, so that people and scanners know one when they see it.
const PREFIX: &str = "ccs_";

/// What goes with it: no script reads it, and no page of another site sends it.
const ATTRIBUTES: &str = "Path=/; HttpOnly; Secure; SameSite=Strict";

/// The cookie of a session, as the browser has it. It is shown to nobody else.
pub struct Cookie(String);

/// This is no cookie of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("that is not the cookie of a session")]
pub struct NoCookie;

impl Cookie {
    /// A new one, of the operating system's randomness.
    pub(super) fn random() -> Self {
        Self(opaque::random(PREFIX))
    }

    /// The cookie that names a request's caller: none where the request has an `Authorization` header, or no cookie of
    /// this name.
    ///
    /// # Errors
    /// When it is no cookie of a session, or there is more than one: a browser has one.
    pub fn of(headers: &HeaderMap) -> Option<Result<Self, NoCookie>> {
        if headers.contains_key(AUTHORIZATION) {
            return None;
        }
        let mut all = Self::all(headers);
        let first = all.next()?;
        Some(if all.next().is_none() { first } else { Err(NoCookie) })
    }

    /// Every cookie of this name that a request brings.
    pub fn all(headers: &HeaderMap) -> impl Iterator<Item = Result<Self, NoCookie>> {
        let pairs = headers.get_all(COOKIE).into_iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
        let values = pairs.filter_map(|pair| pair.trim_ascii().strip_prefix(NAME.as_bytes())?.strip_prefix(b"="));
        values.map(|value| std::str::from_utf8(value).map_err(|_| NoCookie)?.parse())
    }

    pub(super) fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }

    /// The header that gives it to the browser, until then.
    pub fn set(&self, ends_at: OffsetDateTime) -> HeaderValue {
        // With zero seconds it would be gone at once.
        let seconds = (ends_at - OffsetDateTime::now_utc()).whole_seconds().max(1);
        let text = format!("{NAME}={}; Max-Age={seconds}; {ATTRIBUTES}", self.0);
        let mut set = HeaderValue::try_from(text).expect("base64url and numbers are visible ASCII");
        set.set_sensitive(true);
        set
    }
}

/// The header that takes the cookie from the browser.
pub fn clear() -> HeaderValue {
    HeaderValue::try_from(format!("{NAME}=; Max-Age=0; {ATTRIBUTES}")).expect("names are visible ASCII")
}

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[cookie]")
    }
}

impl FromStr for Cookie {
    type Err = NoCookie;

    fn from_str(text: &str) -> Result<Self, NoCookie> {
        if opaque::is_one(PREFIX, text) { Ok(Self(text.to_owned())) } else { Err(NoCookie) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(cookies: &[&[u8]]) -> HeaderMap {
        cookies.iter().map(|cookie| (COOKIE, HeaderValue::from_bytes(cookie).unwrap())).collect()
    }

    fn of(cookies: &[&[u8]]) -> Option<Result<String, NoCookie>> {
        Cookie::of(&headers(cookies)).map(|cookie| cookie.map(|cookie| cookie.0))
    }

    #[test]
    fn one_cookie_of_the_name_is_found_among_others() {
        let Cookie(good) = Cookie::random();
        let own = format!("{NAME}={good}");
        for list in [
            own.clone(),
            format!("a=b; {own}"),
            format!("{own};c"),
            format!("x-{NAME}=1;  {own} ; {NAME}2=3; __host-crewcast=4"),
        ] {
            assert_eq!(of(&[list.as_bytes()]), Some(Ok(good.clone())), "{list}");
        }
        assert_eq!(of(&[b"theme=\xff", own.as_bytes()]), Some(Ok(good)), "what others put there is theirs");
        assert_eq!(of(&[]), None);
        for none in ["a=b; c", NAME, "__host-crewcast=ccs_x", "x=__Host-crewcast=y"] {
            assert_eq!(of(&[none.as_bytes()]), None, "{none}");
        }
    }

    #[test]
    fn what_is_no_cookie_of_a_session_or_more_than_one_is_refused() {
        let Cookie(good) = Cookie::random();
        let own = format!("{NAME}={good}");
        for bad in [
            format!("{NAME}="),
            format!("{NAME}=nonsense"),
            format!("{own}A"),
            format!("{NAME}=\"{good}\""),
            format!("{NAME}={}", good.replace("ccs_", "cct_")),
            format!("{own}; {own}"),
            format!("{own}; {NAME}=x"),
        ] {
            assert_eq!(of(&[bad.as_bytes()]), Some(Err(NoCookie)), "{bad}");
        }
        assert_eq!(of(&[own.as_bytes(), own.as_bytes()]), Some(Err(NoCookie)));
        assert_eq!(of(&[format!("{NAME}=\u{fc}").as_bytes()]), Some(Err(NoCookie)));
        assert_eq!(Cookie::all(&headers(&[format!("{own}; {NAME}=x; {own}").as_bytes()])).flatten().count(), 2);
    }

    #[test]
    fn a_header_goes_first() {
        let Cookie(good) = Cookie::random();
        let mut headers = headers(&[format!("{NAME}={good}").as_bytes()]);
        headers.insert(AUTHORIZATION, "nonsense".parse().unwrap());
        assert!(Cookie::of(&headers).is_none());
        assert_eq!(Cookie::all(&headers).count(), 1);
    }

    #[test]
    fn a_cookie_is_for_the_host_alone_and_shows_itself_to_nobody() {
        let cookie = Cookie::random();
        let until = |left: time::Duration| cookie.set(OffsetDateTime::now_utc() + left);
        let expected = format!("{NAME}={}; Max-Age=59; Path=/; HttpOnly; Secure; SameSite=Strict", cookie.0);
        assert_eq!(until(time::Duration::milliseconds(59_900)), expected.as_str());
        assert!(until(time::Duration::milliseconds(10)).to_str().unwrap().contains("Max-Age=1;"));
        assert_eq!(clear(), "__Host-crewcast=; Max-Age=0; Path=/; HttpOnly; Secure; SameSite=Strict");
        assert_eq!(format!("{cookie:?} {:?}", until(time::Duration::HOUR)), "[cookie] Sensitive");
    }
}
