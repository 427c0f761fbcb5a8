//! Custom events: what other backends have to tell, under names of their own. For admins and services.
//!
//! One event, or up to 100 that commit together and arrive in the order given. A payload is a JSON object that passes as it
//! was written, white space aside; `meta` is the server's own. The names of built-in events are refused, since whoever
//! reads them trusts them to be true.

use serde::{Deserialize, Serialize, de::Error as _};
use serde_json::value::RawValue;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ObjectBuilder, RefOr, Schema,
        schema::{AdditionalProperties, ArrayBuilder, OneOfBuilder},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::Domain;
use crate::{
    auth::Publisher,
    error::{Error, Result},
    ids::{EventType, Room, custom_type},
    log::NewEvent,
    web::{self, Answer, Describe as _, Mutation, PathArg, Posted},
};

/// Events that are posted together.
const EVENTS_MAX: usize = 100;

/// The routes.
pub(super) fn router() -> OpenApiRouter<Domain> {
    OpenApiRouter::new()
        .routes(routes!(publish_events))
        .headed("events", "What other backends have to tell, under names of their own")
}

/// Either one event, or several.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Publish {
    r#type: Option<CustomType>,
    data: Option<Payload>,
    events: Option<Vec<Custom>>,
}

impl PartialSchema for Publish {
    fn schema() -> RefOr<Schema> {
        let events = ArrayBuilder::new().items(Custom::schema()).min_items(Some(1)).max_items(Some(EVENTS_MAX));
        let several = ObjectBuilder::new().property("events", events).required("events");
        let several = several.additional_properties(Some(AdditionalProperties::FreeForm(false)));
        OneOfBuilder::new().item(Custom::schema()).item(several).into()
    }
}

impl ToSchema for Publish {}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Custom {
    #[schema(schema_with = custom_type)]
    r#type: CustomType,
    /// Without a member `meta`, which the server adds.
    #[schema(value_type = Object)]
    data: Payload,
}

/// What was published.
#[derive(Debug, Serialize, ToSchema)]
struct Published {
    /// The events' numbers, in the order given.
    seqs: Vec<i64>,
}

/// Publish custom events to a room
///
/// For admins and services. One event, or up to 100 that commit together, in the order given.
#[utoipa::path(
    post,
    path = "/rooms/{room}/events",
    params(("room" = Room, Path)),
    request_body = inline(Publish),
    responses((status = 403))
)]
async fn publish_events(
    _: Publisher,
    PathArg(room): PathArg<String>,
    Mutation { mut tx, body }: Mutation<Publish>,
) -> Result<Answer<Posted<Published>>> {
    let room = web::room(&room)?;
    for Custom { r#type, data } in body.events()? {
        tx.append(NewEvent::custom(&r#type.0, &room, data.0));
    }
    let seqs = tx.write_events().await?;
    tx.commit(Answer::posted(&Published { seqs })).await
}

impl Publish {
    fn events(self) -> Result<Vec<Custom>> {
        let events = match self {
            Self { r#type: Some(r#type), data: Some(data), events: None } => vec![Custom { r#type, data }],
            Self { r#type: None, data: None, events: Some(events) } => events,
            _ => return Err(Error::invalid_body("", "must have either type and data, or events")),
        };
        if !(1..=EVENTS_MAX).contains(&events.len()) {
            return Err(Error::invalid_body("/events", format!("must be 1 to {EVENTS_MAX} events")));
        }
        Ok(events)
    }
}

/// A name that is not one of the service's own.
#[derive(Debug, Deserialize)]
#[serde(try_from = "EventType")]
struct CustomType(EventType);

impl TryFrom<EventType> for CustomType {
    type Error = String;

    fn try_from(given: EventType) -> Result<Self, String> {
        if given.is_builtin_prefix() {
            return Err(format!("events named {}:.. are made by the server alone", given.prefix()));
        }
        Ok(Self(given))
    }
}

/// A JSON object as it was written.
#[derive(Debug)]
struct Payload(Box<RawValue>);

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        if !raw.get().starts_with('{') {
            return Err(D::Error::custom("must be a JSON object"));
        }
        let fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(raw.get()).map_err(D::Error::custom)?;
        if fields.contains_key("meta") {
            return Err(D::Error::custom("must not have a member meta, which the server adds"));
        }
        if holds_nul(&fields.into()) {
            return Err(D::Error::custom("must not contain U+0000"));
        }
        Ok(Self(raw))
    }
}

/// Whether a text in it holds what Postgres cannot carry.
fn holds_nul(value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(holds_nul),
        Value::Object(fields) => fields.iter().any(|(name, value)| name.contains('\0') || holds_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
