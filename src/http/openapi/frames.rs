//! The frames of a stream as one type, which clients tell apart by `event`. Custom events stand beside it: their names are
//! nobody's to list.

use utoipa::openapi::{
    ObjectBuilder, OpenApi, Ref, RefOr, Schema, Type,
    schema::{AllOfBuilder, AnyOfBuilder, Discriminator, OneOfBuilder},
};

use crate::{
    ids::{BUILTIN_TYPES, HEARTBEAT, custom_type},
    log::Meta,
    web::openapi::{define, frame_name, is_of_the_stream, schemas_of},
};

/// The schema of every frame that the service has a name for.
const EVENT_FRAME: &str = "EventFrame";

/// The schema of the frames that the log has.
const LOGGED_FRAME: &str = "LoggedFrame";

/// The schema of the events that others publish.
const CUSTOM_EVENT: &str = "CustomEvent";

/// Joins the frames that the routes have said they emit.
pub(super) fn join(document: &mut OpenApi) {
    let components = document.components.get_or_insert_default();
    define(components, schemas_of::<Meta<'_>>());
    let kinds: Vec<&str> = BUILTIN_TYPES.iter().copied().chain([HEARTBEAT]).collect();
    let emitted = kinds.into_iter().filter(|kind| components.schemas.contains_key(&frame_name(kind)));
    let (own, logged): (Vec<&str>, Vec<&str>) = emitted.partition(|kind| is_of_the_stream(kind));
    let (all, custom) = ([logged.as_slice(), &own].concat(), Ref::from_schema_name(CUSTOM_EVENT));
    let frames = [
        (EVENT_FRAME, told_apart(&all).into()),
        (LOGGED_FRAME, one_of(&logged).item(custom).description(Some("One event of the log.")).into()),
        (CUSTOM_EVENT, custom_event()),
        ("WithMeta", with_meta()),
        ("Reference", reference()),
    ];
    components.schemas.extend(frames.map(|(name, schema)| (name.to_owned(), schema)));
}

/// What a stream sends.
pub(in crate::http) fn sent() -> AnyOfBuilder {
    [EVENT_FRAME, CUSTOM_EVENT].map(Ref::from_schema_name).into_iter().fold(AnyOfBuilder::new(), AnyOfBuilder::item)
}

fn told_apart(kinds: &[&str]) -> OneOfBuilder {
    let mapping = kinds.iter().map(|kind| (*kind, Ref::from_schema_name(frame_name(kind)).ref_location));
    let on_the_wire = "One event of a stream. On the wire it is the lines `event:`, `id:` and `data:`, and an empty line after \
                       them; `data` is this object's `data` as JSON on one line. The line `retry:` may stand before it.";
    let by_event = Discriminator::with_mapping("event", mapping);
    one_of(kinds).description(Some(on_the_wire)).discriminator(Some(by_event))
}

fn one_of(kinds: &[&str]) -> OneOfBuilder {
    kinds.iter().map(|kind| Ref::from_schema_name(frame_name(kind))).fold(OneOfBuilder::new(), OneOfBuilder::item)
}

/// What every payload of the log has besides its own members.
fn with_meta() -> RefOr<Schema> {
    ObjectBuilder::new().property("meta", Ref::from_schema_name("Meta")).required("meta").into()
}

fn reference() -> RefOr<Schema> {
    let address = ObjectBuilder::new().schema_type(Type::String).description(Some("Where the event is."));
    let reference = ObjectBuilder::new().property("ref", address.examples(["/v1/events/7"])).required("ref");
    let described = AllOfBuilder::new().description(Some("In place of a payload larger than `event-bytes-max`."));
    described.item(Ref::from_schema_name("WithMeta")).item(reference).into()
}

/// Any event under a prefix that is not one of the service's own.
fn custom_event() -> RefOr<Schema> {
    ObjectBuilder::new()
        .description(Some(
            "Published by `POST /v1/rooms/{room}/events` or from SQL with `crewcast.publish`, under any prefix that is not \
             one of the service's own.",
        ))
        .property("id", Ref::from_schema_name("Cursor"))
        .property("event", custom_type())
        .property("data", Ref::from_schema_name("WithMeta"))
        .required("event")
        .required("data")
        .into()
}
