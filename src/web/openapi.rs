//! How routes describe themselves for the API's document.
//!
//! A handler has its attribute `#[utoipa::path(..)]`, with what only its author knows: method, path, parameters, body and
//! the errors of its own. Its doc comment is the summary and the description, its name the operation's id, and what it
//! answers when all is well its return type says. What holds for every route is added where the document is put together.

use std::collections::BTreeMap;

use utoipa::{
    IntoResponses, PartialSchema, ToSchema,
    openapi::{
        Components, Content, ContentBuilder, ObjectBuilder, PathItem, Ref, RefOr, Response, ResponseBuilder, Schema,
        Type,
        path::{Operation, Paths},
        schema::{AllOfBuilder, AnyOfBuilder},
        tag::TagBuilder,
    },
};
use utoipa_axum::router::OpenApiRouter;

use crate::{
    error::Error,
    ids::{BUILTIN_TYPES, HEARTBEAT},
};

/// The media type of most answers.
const JSON: &str = "application/json";

/// The header of an answer that can be given again: the route takes an `Idempotency-Key`.
pub const REPLAYED: &str = "Idempotent-Replayed";

/// Under this name a response brings along the schemas that it refers to. It is no media type, and is gone from the
/// document once they are among its components.
const DEFINITIONS: &str = "$defs";

/// What an answer looks like, by status: what [`IntoResponses`] wants.
pub type Responses = BTreeMap<String, RefOr<Response>>;

/// What a feature says about its routes as a whole.
pub trait Describe {
    /// Adds an event that the routes cause: its name, the type of its payload, and when it goes to whom.
    ///
    /// # Panics
    /// When the event is none of [`BUILTIN_TYPES`], or two schemas have one name.
    #[must_use]
    fn emits<T: ToSchema>(self, kind: &str, description: &str) -> Self;

    /// Puts the routes that have no heading yet under one.
    #[must_use]
    fn headed(self, name: &str, description: &str) -> Self;
}

impl<S: Send + Sync + Clone + 'static> Describe for OpenApiRouter<S> {
    fn emits<T: ToSchema>(mut self, kind: &str, description: &str) -> Self {
        assert!(BUILTIN_TYPES.contains(&kind) || kind == HEARTBEAT, "{kind} is on the list of events");
        let components = self.get_openapi_mut().components.get_or_insert_default();
        define(components, schemas_of::<T>());
        define(components, [(frame_name(kind), frame::<T>(kind, description))]);
        self
    }

    fn headed(mut self, name: &str, description: &str) -> Self {
        let document = self.get_openapi_mut();
        for (_, operation) in operations(&mut document.paths) {
            operation.tags.get_or_insert_with(|| vec![name.to_owned()]);
        }
        let heading = TagBuilder::new().name(name).description(Some(description)).build();
        document.tags.get_or_insert_default().insert(0, heading);
        self
    }
}

/// Every operation with its path.
pub fn operations(paths: &mut Paths) -> impl Iterator<Item = (&str, &mut Operation)> {
    paths.paths.iter_mut().flat_map(|(path, item)| {
        let PathItem { get, put, post, patch, delete, .. } = item;
        [get, put, post, patch, delete].into_iter().flatten().map(move |operation| (path.as_str(), operation))
    })
}

/// An answer whose body is a `T`.
pub fn json<T: ToSchema>(description: &str) -> ResponseBuilder {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(T::name()))).build();
    let definitions =
        schemas_of::<T>().into_iter().fold(ObjectBuilder::new(), |all, (name, schema)| all.property(name, schema));
    let response = ResponseBuilder::new().description(description).content(JSON, content);
    response.content(DEFINITIONS, Content::new(Some(definitions)))
}

/// A header that several answers have, by its name among the components.
#[must_use]
pub fn header(name: &str) -> Ref {
    Ref::new(format!("#/components/headers/{name}"))
}

/// The names of a body's fields, as the schema of one of them.
#[must_use]
pub fn fields_of<T: PartialSchema>() -> ObjectBuilder {
    let names: Vec<String> = match T::schema() {
        RefOr::T(Schema::Object(object)) => object.properties.into_keys().collect(),
        _ => Vec::new(),
    };
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(names))
}

/// Takes the schemas that a response brought along.
pub fn take_definitions(response: &mut Response) -> Vec<(String, RefOr<Schema>)> {
    match response.content.shift_remove(DEFINITIONS) {
        Some(RefOr::T(Content { schema: Some(RefOr::T(Schema::Object(all))), .. })) => {
            all.properties.into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// Adds schemas to the components.
///
/// # Panics
/// When another schema has the same name: one of them needs `#[schema(as = ..)]`.
pub fn define(components: &mut Components, schemas: impl IntoIterator<Item = (String, RefOr<Schema>)>) {
    for (name, mut schema) in schemas {
        open_parts(&mut schema);
        let other = components.schemas.get(&name).filter(|other| **other != schema);
        assert!(other.is_none(), "two schemas have the name {name}");
        components.schemas.insert(name, schema);
    }
}

/// A part of a whole cannot refuse what the other parts have.
fn open_parts(schema: &mut RefOr<Schema>) {
    let RefOr::T(Schema::AllOf(whole)) = schema else { return };
    for part in &mut whole.items {
        if let RefOr::T(Schema::Object(part)) = part {
            part.additional_properties = None;
        }
    }
}

/// The schema of a type, and those that it refers to.
pub fn schemas_of<T: ToSchema>() -> Vec<(String, RefOr<Schema>)> {
    let mut schemas = vec![(T::name().into_owned(), T::schema())];
    T::schemas(&mut schemas);
    schemas
}

/// The name of the schema of an event's frame: `ProjectUpdated` of `project:updated`.
#[must_use]
pub fn frame_name(kind: &str) -> String {
    let words = kind.split([':', '_', '-', '.']);
    words.flat_map(|word| word[..1].to_uppercase().chars().chain(word[1..].chars()).collect::<Vec<_>>()).collect()
}

/// Whether an event is only ever sent, and not in the log.
#[must_use]
pub fn is_of_the_stream(kind: &str) -> bool {
    kind == HEARTBEAT || ["stream:", "presence:", "typing:"].iter().any(|prefix| kind.starts_with(prefix))
}

fn frame<T: ToSchema>(kind: &str, description: &str) -> RefOr<Schema> {
    let payload = Ref::from_schema_name(T::name());
    let name = ObjectBuilder::new().schema_type(Type::String).enum_values(Some([kind]));
    let data = if is_of_the_stream(kind) { RefOr::Ref(payload) } else { logged(payload) };
    let frame = ObjectBuilder::new().description(Some(description)).property("id", Ref::from_schema_name("Cursor"));
    frame.property("event", name).property("data", data).required("event").required("data").into()
}

/// A payload as the log hands it out.
fn logged(payload: Ref) -> RefOr<Schema> {
    let whole = AllOfBuilder::new().item(Ref::from_schema_name("WithMeta")).item(payload);
    AnyOfBuilder::new().item(whole).item(Ref::from_schema_name("Reference")).into()
}

/// What errors are answered with is the same everywhere, and is said where the document is put together.
impl IntoResponses for Error {
    fn responses() -> Responses {
        Responses::new()
    }
}
