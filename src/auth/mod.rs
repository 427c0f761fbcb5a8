//! Who is calling, and what they may do.
//!
//! A [`Caller`] is what a valid token says. Each right is an extractor type around one: a handler
//! that takes [`Manages`] cannot run for a caller who does not manage, and its signature says so.
//!
//! | | member | manager | admin | service |
//! |---|---|---|---|---|
//! | [`Caller`]: read what one may read | yes | yes | yes | yes |
//! | [`Person`]: comment, presence, own preferences and alerts | yes | yes | yes | no |
//! | [`Manages`]: projects, people, capacity, raising alerts | no | yes | yes | yes |
//! | [`Treasurer`]: accounts and their rules, of which others know nothing | no | yes | yes | yes |
//! | [`Publisher`]: hooks and custom events | no | no | yes | yes |
//! | [`Admin`]: other people's streams, drain | no | no | yes | no |
//!
//! Rights add up: a service that is also an admin may do what either may.

pub mod jwks;
mod opaque;
mod opened;
pub mod session;
pub mod ticket;
mod token;

use std::fmt;
use std::sync::Arc;

use axum::extract::{FromRef, FromRequestParts};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderValue};
use serde::de::Deserializer;
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::error::{Credentials, Error, Result};
use crate::ids::{Room, Slug, Sub, TopicName};

pub use token::{Checks, Claims, InvalidKey, SECRET_BYTES_MIN, Verifier, generate_secret};

/// What a caller is in the company.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum Role {
    /// Works here.
    Member,
    /// Manages projects and people.
    Manager,
    /// May do everything that a person may.
    Admin,
    /// Is another backend, not a person.
    Service,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Member, Self::Manager, Self::Admin, Self::Service];

    /// The name in a token.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Manager => "manager",
            Self::Admin => "admin",
            Self::Service => "service",
        }
    }

    /// The role of that name, if there is one.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// The roles of one caller: at least one, as nobody is nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Roles(u8);

impl Roles {
    /// These roles; none is [`Role::Member`].
    #[must_use]
    pub fn of(roles: impl IntoIterator<Item = Role>) -> Self {
        match roles.into_iter().fold(0, |bits, role| bits | role.bit()) {
            0 => Self(Role::Member.bit()),
            bits => Self(bits),
        }
    }

    /// The roles of these names. Unknown ones are ignored, for a company's tokens also serve other
    /// systems.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self::of(names.into_iter().filter_map(Role::named))
    }

    /// Whether this role is among them.
    #[must_use]
    pub const fn has(self, role: Role) -> bool {
        self.0 & role.bit() != 0
    }

    /// The roles, least first.
    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |role| self.has(*role))
    }
}

impl Default for Roles {
    fn default() -> Self {
        Self::of([])
    }
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl Serialize for Roles {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(Role::as_str))
    }
}

impl<'de> Deserialize<'de> for Roles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        Ok(Self::named(names.iter().map(String::as_str)))
    }
}

/// Somebody with valid credentials: the right to read what their roles let them read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Caller {
    /// Who they are.
    pub sub: Sub,
    /// What they are called.
    pub name: Option<String>,
    /// Where their picture is.
    pub avatar_url: Option<String>,
    /// What they are.
    pub roles: Roles,
    /// The divisions that they belong to.
    pub divisions: Vec<Slug>,
    /// The topics that they may join.
    pub topics: Vec<TopicName>,
    /// When their credentials end, as the token says it; whole seconds.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

impl Caller {
    /// Whether they manage projects and people: managers, admins and services.
    #[must_use]
    pub fn manages(&self) -> bool {
        self.has_any(&[Role::Manager, Role::Admin, Role::Service])
    }

    /// Whether they read and join everything, other people's `user:` rooms too.
    #[must_use]
    pub fn reads_all(&self) -> bool {
        self.has_any(&[Role::Admin, Role::Service])
    }

    /// Whether they are another backend.
    #[must_use]
    pub fn is_service(&self) -> bool {
        self.roles.has(Role::Service)
    }

    /// Whether they are somebody who comments and is seen; a pure service is not.
    #[must_use]
    pub fn is_person(&self) -> bool {
        self.has_any(&[Role::Member, Role::Manager, Role::Admin])
    }

    fn has_any(&self, roles: &[Role]) -> bool {
        roles.iter().any(|role| self.roles.has(*role))
    }

    /// Whether they may join a room, where the token alone decides it. `None` for a project's room
    /// and a member: memberships and the project's division say.
    #[must_use]
    pub fn may_join_without_looking(&self, room: &Room) -> Option<bool> {
        match room {
            _ if self.reads_all() => Some(true),
            Room::User(sub) => Some(*sub == self.sub),
            _ if self.manages() => Some(true),
            Room::Company => Some(true),
            Room::Division(slug) => Some(self.divisions.contains(slug)),
            Room::Topic(name) => Some(self.topics.contains(name)),
            Room::Project(_) => None,
        }
    }
}

impl<S> FromRequestParts<S> for Caller
where
    S: Send + Sync,
    Arc<Verifier>: FromRef<S>,
{
    type Rejection = Error;

    /// Who an earlier step found out, else who the `Authorization` header names.
    ///
    /// A step that knows other credentials leaves a `Caller` in the request's extensions; the
    /// rights below then hold for them alike. What is found here is left there too, also a refusal:
    /// a key that nobody has is asked for once.
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        if let Some(known) = parts.extensions.get::<Self>() {
            return Ok(known.clone());
        }
        if let Some(Refused(error)) = parts.extensions.get() {
            return Err(error.again().with_cause(error.clone()));
        }
        let judged = judge(&parts.headers, &Arc::<Verifier>::from_ref(state)).await;
        match &judged {
            Ok(caller) => leave(&mut parts.extensions, Ok(caller.clone())),
            Err(error) => leave(&mut parts.extensions, Err(error.again())),
        }
        judged
    }
}

/// Credentials that were judged, and why they are no good.
#[derive(Clone)]
struct Refused(Arc<Error>);

/// Leaves in a request what its credentials came to.
fn leave(extensions: &mut Extensions, judged: Result<Caller>) {
    match judged {
        Ok(caller) => drop(extensions.insert(caller)),
        Err(error) => drop(extensions.insert(Refused(Arc::new(error)))),
    }
}

async fn judge(headers: &HeaderMap, verifier: &Verifier) -> Result<Caller> {
    let token = bearer(headers)?;
    let token = token.ok_or_else(|| missing(NO_TOKEN))?;
    verifier.verify(token).await
}

/// What is said to whoever brings no credentials.
const NO_TOKEN: &str = "Send the header `Authorization: Bearer {token}`; it is missing.";

/// 401 without any credentials, which is not an error of the token (RFC 6750, section 3).
fn missing(why: &'static str) -> Error {
    Error::unauthorized(why)
        .with_header(axum::http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
        .with_credentials(Credentials::Missing)
}

/// The token in the `Authorization` header, not yet verified; `None` without the header.
///
/// # Errors
/// 401 when the header is there twice, is no text, or is of another scheme.
pub fn bearer(headers: &HeaderMap) -> Result<Option<&str>> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Error::unauthorized("There is more than one `Authorization` header."));
    }
    let text = value.to_str().unwrap_or_default().trim();
    let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
    if !scheme.eq_ignore_ascii_case("bearer") || token.trim().is_empty() {
        return Err(Error::unauthorized("The `Authorization` header is not `Bearer {token}`."));
    }
    Ok(Some(token.trim()))
}

macro_rules! right {
    ($(#[$doc:meta])* $name:ident: $holds:expr, else $refusal:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name(pub Caller);

        impl TryFrom<Caller> for $name {
            type Error = Error;

            fn try_from(caller: Caller) -> Result<Self> {
                let holds: fn(&Caller) -> bool = $holds;
                if holds(&caller) { Ok(Self(caller)) } else { Err($refusal) }
            }
        }

        impl<S> FromRequestParts<S> for $name
        where
            S: Send + Sync,
            Arc<Verifier>: FromRef<S>,
        {
            type Rejection = Error;

            async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
                Self::try_from(Caller::from_request_parts(parts, state).await?)
            }
        }
    };
}

right!(
    /// The right to manage projects, people and capacity: managers, admins and services.
    Manages: Caller::manages, else Error::forbidden("Only managers, admins and services may do this.")
);

right!(
    /// The right to accounts and their rules: managers, admins and services. For everybody else there are none.
    Treasurer: Caller::manages, else Error::not_found()
);

right!(
    /// The right to end other people's streams and to drain the server: admins.
    Admin: |caller| caller.roles.has(Role::Admin), else Error::forbidden("Only admins may do this.")
);

right!(
    /// The right to publish custom events and to call hooks: admins and services.
    Publisher: Caller::reads_all, else Error::forbidden("Only admins and services may do this.")
);

right!(
    /// The right to act as a person (comments, presence, preferences, acknowledging): not services.
    Person: Caller::is_person, else Error::forbidden("Only people may do this, not services.")
);

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::{Request, StatusCode};
    use axum::routing::get;
    use tower::ServiceExt as _;

    use super::*;

    fn caller(roles: &[Role]) -> Caller {
        Caller {
            sub: "ana".parse().unwrap(),
            name: None,
            avatar_url: None,
            roles: Roles::of(roles.iter().copied()),
            divisions: vec!["nord".parse().unwrap()],
            topics: vec!["canteen".parse().unwrap()],
            expires_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn the_token_alone_decides_on_rooms_as_the_table_says() {
        let project = "project:0192f0c1-2b7a-7cc0-8a2e-0123456789ab";
        // Columns: nobody's role, member, manager, admin, service.
        let (yes, no) = (Some(true), Some(false));
        for (room, expected) in [
            ("company", [yes, yes, yes, yes, yes]),
            ("user:ana", [yes, yes, yes, yes, yes]),
            ("user:ben", [no, no, no, yes, yes]),
            ("division:nord", [yes, yes, yes, yes, yes]),
            ("division:sued", [no, no, yes, yes, yes]),
            ("topic:canteen", [yes, yes, yes, yes, yes]),
            ("topic:board", [no, no, yes, yes, yes]),
            (project, [None, None, yes, yes, yes]),
        ] {
            let room: Room = room.parse().unwrap();
            let roles: [&[Role]; 5] = [&[], &[Role::Member], &[Role::Manager], &[Role::Admin], &[Role::Service]];
            for (roles, expected) in roles.into_iter().zip(expected) {
                let decided = caller(roles).may_join_without_looking(&room);
                assert_eq!(decided, expected, "{room} {roles:?}");
            }
        }
    }

    #[test]
    fn rights_are_those_of_the_table_and_add_up() {
        // Columns: Person, Manages, Publisher, Admin.
        for (roles, expected) in [
            (&[][..], [true, false, false, false]),
            (&[Role::Member], [true, false, false, false]),
            (&[Role::Manager], [true, true, false, false]),
            (&[Role::Admin], [true, true, true, true]),
            (&[Role::Service], [false, true, true, false]),
            (&[Role::Service, Role::Admin], [true, true, true, true]),
            (&[Role::Service, Role::Member], [true, true, true, false]),
        ] {
            let caller = || caller(roles);
            let holds = [
                Person::try_from(caller()).is_ok(),
                Manages::try_from(caller()).is_ok(),
                Publisher::try_from(caller()).is_ok(),
                Admin::try_from(caller()).is_ok(),
            ];
            assert_eq!(holds, expected, "{roles:?}");
        }
    }

    #[test]
    fn a_caller_can_be_stored_and_read_back() {
        let ana = caller(&[Role::Manager, Role::Service]);
        let stored = serde_json::to_string(&ana).unwrap();
        assert!(stored.contains(r#""roles":["manager","service"]"#), "{stored}");
        assert_eq!(serde_json::from_str::<Caller>(&stored).unwrap(), ana);
    }

    fn app() -> (Router, Arc<Verifier>) {
        let secret = generate_secret();
        let verifier = Verifier::from_secret(secret.as_bytes(), Checks::default()).unwrap();
        let verifier = Arc::new(verifier);
        let router = Router::new()
            .route("/me", get(|caller: Caller| async move { caller.sub.to_string() }))
            .route("/manage", get(|_: Manages| async {}))
            .with_state(Arc::clone(&verifier));
        (router, verifier)
    }

    fn token(verifier: &Verifier, roles: Roles) -> String {
        let exp = OffsetDateTime::now_utc().unix_timestamp() + 60;
        let claims = Claims { roles, ..Claims::new("ana".parse().unwrap(), exp) };
        verifier.mint(&claims).unwrap()
    }

    async fn status(router: &Router, path: &str, authorization: &[&str]) -> StatusCode {
        let mut request = Request::get(path);
        for value in authorization {
            request = request.header(AUTHORIZATION, *value);
        }
        let request = request.body(axum::body::Body::empty()).unwrap();
        router.clone().oneshot(request).await.unwrap().status()
    }

    #[tokio::test]
    async fn a_caller_is_who_the_bearer_token_names() {
        let (router, verifier) = app();
        let token = token(&verifier, Roles::default());
        for good in ["Bearer", "bearer", "BEARER", "Bearer "] {
            let header = format!("{good} {token}");
            assert_eq!(status(&router, "/me", &[&header]).await, StatusCode::OK, "{good}");
        }
        let good = format!("Bearer {token}");
        let basic = format!("Basic {token}");
        let two_words = format!("Bearer {token} {token}");
        for bad in
            [&[][..], &["Bearer"], &["Bearer "], &[""], &[token.as_str()], &[&basic], &[&two_words], &[&good, &good]]
        {
            let status = status(&router, "/me", bad).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{}", bad.len());
        }
    }

    #[tokio::test]
    async fn a_handler_does_not_run_without_the_right_it_names() {
        let (router, verifier) = app();
        let member = format!("Bearer {}", token(&verifier, Roles::default()));
        let manager = format!("Bearer {}", token(&verifier, Roles::of([Role::Manager])));
        assert_eq!(status(&router, "/manage", &[&member]).await, StatusCode::FORBIDDEN);
        assert_eq!(status(&router, "/manage", &[&manager]).await, StatusCode::OK);
        assert_eq!(status(&router, "/manage", &[]).await, StatusCode::UNAUTHORIZED);
    }

    #[tokio::test]
    async fn a_caller_found_by_an_earlier_step_is_taken() {
        let (router, _) = app();
        let mut request = Request::get("/manage").body(axum::body::Body::empty()).unwrap();
        request.extensions_mut().insert(caller(&[Role::Admin]));
        assert_eq!(router.oneshot(request).await.unwrap().status(), StatusCode::OK);
    }
}
