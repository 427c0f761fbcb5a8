//! The document: where it is, and how it is fetched within bounds.

use std::net::IpAddr;
use std::time::Duration;

use reqwest::header::{CACHE_CONTROL, HeaderMap};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;
use serde_json::Value;

/// Bytes of the document, at most: large ones, with a certificate beside each key, have some 30 KiB.
const DOCUMENT_BYTES_MAX: usize = 256 * 1024;

/// Keys in the document, at most, of whatever kind.
const KEYS_MAX: usize = 100;

/// Why keys cannot be fetched from an address; one line, with the mend.
#[derive(Debug, thiserror::Error)]
pub enum InvalidAddress {
    /// Nothing that can be fetched.
    #[error(
        "CREWCAST_JWKS_URL is no URL: write https://host/path, where the identity provider publishes its keys (JWKS)"
    )]
    NoUrl,
    /// Whoever is on the way could put keys of their own into the answer.
    #[error(
        "CREWCAST_JWKS_URL must be https://, as over {0}:// anybody on the way could replace the keys; http:// is for loopback only"
    )]
    Insecure(String),
    /// Addresses are shown in logs.
    #[error("CREWCAST_JWKS_URL has a user or a password in it: keys are public, leave them out")]
    Credentials,
    /// The client for HTTPS could not be made.
    #[error("CREWCAST_JWKS_URL cannot be fetched from here (are the system's CA certificates installed?): {0}")]
    Client(String),
}

/// Why there is no document now.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfetched {
    #[error("it answers {0} and not 200; redirects are not followed")]
    Status(StatusCode),
    #[error("it answers with more than {DOCUMENT_BYTES_MAX} bytes")]
    Long,
    #[error("it answers with something that is no JSON object with a list `keys`")]
    NoDocument,
    #[error("it lists {0} keys, and {KEYS_MAX} are the most")]
    ManyKeys(usize),
    #[error(transparent)]
    Http(#[from] reqwest::Error),
}

/// What was fetched.
pub(super) struct Fetched {
    /// The keys, as they are published.
    pub(super) keys: Vec<Value>,
    /// How long the answer says that it stays good.
    pub(super) max_age: Option<Duration>,
}

/// A document at an address.
pub(super) struct Document {
    client: Client,
    url: Url,
}

impl Document {
    /// A document that is waited for no longer than `timeout`, from the connection to the last byte.
    pub(super) fn at(url: &str, timeout: Duration) -> Result<Self, InvalidAddress> {
        let url = trusted(url)?;
        // A redirect could lead to an address that nobody chose to trust.
        let client = Client::builder().timeout(timeout).redirect(Policy::none());
        // HTTPS may go through the proxy that HTTPS_PROXY names: it sees no more than the name of the host. Loopback must not
        // go through any.
        let client = if url.scheme() == "https" { client } else { client.no_proxy() };
        let client =
            client.build().map_err(|error| InvalidAddress::Client(format!("{:#}", anyhow::Error::from(error))))?;
        Ok(Self { client, url })
    }

    /// The address as it may be shown: without its query.
    pub(super) fn shown(&self) -> String {
        let mut url = self.url.clone();
        url.set_query(None);
        url.into()
    }

    /// Fetches it.
    pub(super) async fn fetch(&self) -> Result<Fetched, Unfetched> {
        let response = self.client.get(self.url.clone()).send().await.map_err(nameless)?;
        if response.status() != StatusCode::OK {
            return Err(Unfetched::Status(response.status()));
        }
        let max_age = max_age(response.headers());
        Ok(Fetched { keys: keys(&body(response).await?)?, max_age })
    }
}

/// The error without the address, whose query it would show.
fn nameless(error: reqwest::Error) -> Unfetched {
    Unfetched::Http(error.without_url())
}

fn trusted(url: &str) -> Result<Url, InvalidAddress> {
    let url = Url::parse(url).ok().filter(Url::has_host).ok_or(InvalidAddress::NoUrl)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(InvalidAddress::Credentials);
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        scheme => Err(InvalidAddress::Insecure(scheme.to_owned())),
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

async fn body(mut response: Response) -> Result<Vec<u8>, Unfetched> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(nameless)? {
        if body.len() + chunk.len() > DOCUMENT_BYTES_MAX {
            return Err(Unfetched::Long);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn keys(body: &[u8]) -> Result<Vec<Value>, Unfetched> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let Set { keys } = serde_json::from_slice(body).map_err(|_| Unfetched::NoDocument)?;
    if keys.len() > KEYS_MAX { Err(Unfetched::ManyKeys(keys.len())) } else { Ok(keys) }
}

/// `max-age` of `Cache-Control`; nothing where the answer is not to be kept.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let directives: Vec<String> =
        values.flat_map(|value| value.split(',')).map(|one| one.trim().to_ascii_lowercase()).collect();
    if directives.iter().any(|one| one == "no-store" || one == "no-cache") {
        return Some(Duration::ZERO);
    }
    let seconds = directives.iter().find_map(|one| one.strip_prefix("max-age=")?.trim_matches('"').parse().ok());
    seconds.map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_nobody_on_the_way_can_answer_for_are_trusted() {
        let good = [
            "https://id.example.com/jwks",
            "https://id.example.com:8443/realms/a?x=1",
            "http://localhost:9/jwks",
            "http://127.0.0.1/jwks",
            "http://127.1.2.3/jwks",
            "http://[::1]:9/jwks",
        ];
        for url in good {
            assert!(trusted(url).is_ok(), "{url}");
        }
        for (url, mend) in [
            ("http://id.example.com/jwks", "must be https://"),
            ("http://10.0.0.1/jwks", "must be https://"),
            ("http://localhost.example.com/jwks", "must be https://"),
            ("http://127.0.0.1.example.com/jwks", "must be https://"),
            ("ftp://127.0.0.1/jwks", "must be https://"),
            ("https://ana:hush@id.example.com/jwks", "leave them out"),
            ("http://127.0.0.1@id.example.com/jwks", "leave them out"),
            ("file:///etc/jwks.json", "write https://"),
            ("id.example.com/jwks", "write https://"),
            ("", "write https://"),
        ] {
            let error = trusted(url).unwrap_err().to_string();
            assert!(error.contains(mend) && !error.contains("hush") && !error.contains('\n'), "{url}: {error}");
        }
    }

    #[test]
    fn the_answers_age_is_read_as_caches_do() {
        for (value, expected) in [
            ("max-age=600", Some(600)),
            ("public, Max-Age=20, must-revalidate", Some(20)),
            ("max-age=\"7\"", Some(7)),
            ("no-cache", Some(0)),
            ("max-age=600, no-store", Some(0)),
            ("s-maxage=5", None),
            ("max-age=-1", None),
            ("max-age=soon", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(CACHE_CONTROL, value.parse().unwrap())]);
            assert_eq!(max_age(&headers), expected.map(Duration::from_secs), "{value}");
        }
        assert_eq!(max_age(&HeaderMap::new()), None);
    }

    #[test]
    fn a_document_is_a_list_of_bounded_length() {
        let of = |keys: usize| serde_json::to_vec(&serde_json::json!({ "keys": vec![7; keys] })).unwrap();
        assert_eq!(keys(&of(KEYS_MAX)).unwrap().len(), KEYS_MAX);
        assert!(matches!(keys(&of(KEYS_MAX + 1)), Err(Unfetched::ManyKeys(101))));
        for other in [&b""[..], b"<html>", b"[]", b"{}", br#"{"keys":{}}"#] {
            assert!(matches!(keys(other), Err(Unfetched::NoDocument)));
        }
    }

    #[tokio::test]
    async fn the_query_of_an_address_is_shown_neither_alone_nor_in_errors() {
        let document = Document::at("http://127.0.0.1:1/jwks?key=hush", Duration::from_secs(1)).unwrap();
        assert_eq!(document.shown(), "http://127.0.0.1:1/jwks");
        let error = format!("{:#}", anyhow::Error::from(document.fetch().await.err().unwrap()));
        assert!(error.contains("error") && !error.contains("hush"), "{error}");
    }
}
