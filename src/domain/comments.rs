//! Comments on projects: whoever reads a project reads and writes them, services aside. Authors change and delete their own,
//! managers and admins delete any. A deleted project's comments are gone with it.
//!
//! A comment can mention people. Whoever is mentioned and may read the project, by the claims that they were last seen
//! with, gets an alert, and no second one for as long as the comment mentions them; whoever may not is not told that there is a project.
//!
//! Events: `comment:new`, `comment:updated` and `comment:deleted` with the comment, to the project's room.

use std::collections::BTreeSet;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema, schema::ArrayBuilder},
};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    Domain,
    alerts::{self, Audience, NewAlert, Severity},
    projects, rights,
};
use crate::{
    auth::{Caller, Person},
    db::{Conn, Db},
    error::{Error, Result},
    ids::{Room, Sub, Text},
    log::NewEvent,
    web::{
        Answer, Changed, Current, Describe as _, Entity, FieldVersions, IfMatch, List, Made, Mutation, Nothing, Page,
        PathArg, Query, Seen, Tx, present,
    },
};

/// People whom one comment mentions.
const MENTIONS_MAX: usize = 20;

/// Characters of an author's name that an alert shows.
const NAME_CHARS_MAX: usize = 150;

/// A comment's columns.
macro_rules! columns {
    () => {
        "id, project_id, author_id, body, mentions, version, field_versions, created_at, updated_at"
    };
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<Domain> {
    OpenApiRouter::new()
        .routes(routes!(list_comments, make_comment))
        .routes(routes!(read_comment, change_comment, delete_comment))
        .emits::<Comment>("comment:new", "To the project's room.")
        .emits::<Comment>("comment:updated", "The comment as it is now. To the project's room.")
        .emits::<Comment>(
            "comment:deleted",
            "The comment as it was, with the version of its deletion. To the project's room. The comments of a deleted \
             project have none: `project:deleted` stands for all.",
        )
        .headed("comments", "Whoever reads a project reads and writes its comments, services aside")
}

/// A comment as it is answered and as its events carry it.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Comment {
    id: Uuid,
    project_id: Uuid,
    #[schema(value_type = Sub)]
    author_id: String,
    #[schema(value_type = Body)]
    body: String,
    #[schema(value_type = Mentions)]
    mentions: Vec<String>,
    #[schema(minimum = 1)]
    version: i64,
    #[serde(skip)]
    field_versions: FieldVersions,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    updated_at: OffsetDateTime,
}

impl Entity for Comment {
    const NOUN: &'static str = "comment";

    fn version(&self) -> i64 {
        self.version
    }

    fn field_versions(&self) -> Option<&FieldVersions> {
        Some(&self.field_versions)
    }
}

type Body = Text<1, 10_000>;

/// Whom a comment mentions: each once, in the order of their names.
#[derive(Debug, Default, Deserialize)]
#[serde(try_from = "Vec<Sub>")]
struct Mentions(BTreeSet<Sub>);

impl TryFrom<Vec<Sub>> for Mentions {
    type Error = String;

    fn try_from(given: Vec<Sub>) -> Result<Self, String> {
        let mentions: BTreeSet<Sub> = given.into_iter().collect();
        if mentions.len() > MENTIONS_MAX {
            return Err(format!("must be at most {MENTIONS_MAX} people"));
        }
        Ok(Self(mentions))
    }
}

impl Mentions {
    fn names(&self) -> Vec<String> {
        self.0.iter().map(Sub::to_string).collect()
    }
}

impl PartialSchema for Mentions {
    fn schema() -> RefOr<Schema> {
        let people = ArrayBuilder::new().items(Sub::schema()).max_items(Some(MENTIONS_MAX));
        people.description(Some("People who are mentioned, each once.")).into()
    }
}

impl ToSchema for Mentions {}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Make {
    body: Body,
    #[serde(default)]
    #[schema(required = false)]
    mentions: Mentions,
}

/// What is left out stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Change {
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    body: Option<Body>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    mentions: Option<Mentions>,
}

/// List a project's comments
///
/// For whoever may read the project. Oldest first.
#[utoipa::path(get, path = "/projects/{id}/comments", params(("id" = Uuid, Path), Page), responses((status = 404)))]
async fn list_comments(
    State(db): State<Db>,
    caller: Caller,
    PathArg(project_id): PathArg<Uuid>,
    Query(page): Query<Page>,
) -> Result<Seen<List<Comment>>> {
    let after = page.after_id()?;
    let mut read = db.read().await?;
    projects::look(&mut read, &caller, project_id).await?;
    let comments: Vec<Comment> = sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from crewcast.comments where project_id = $1 and id > $2 order by id limit $3"
    ))
    .bind(project_id)
    .bind(after)
    .bind(page.rows())
    .fetch_all(&mut *read)
    .await?;
    Ok(Seen::at(&read, page.list(comments, |comment| comment.id.to_string())))
}

/// Comment on a project
///
/// For whoever may read the project, services aside. Causes `comment:new`, and an `alert:new` of the kind `mention` for everybody who
/// is mentioned and may read the project.
#[utoipa::path(
    post,
    path = "/projects/{id}/comments",
    params(("id" = Uuid, Path)),
    request_body = inline(Make),
    responses((status = 403), (status = 404))
)]
async fn make_comment(
    Person(caller): Person,
    PathArg(project_id): PathArg<Uuid>,
    Mutation { mut tx, body: make }: Mutation<Make>,
) -> Result<Answer<Made<Comment>>> {
    projects::stay(&mut tx, &caller, project_id).await?;
    let comment: Comment = sqlx::query_as(concat!(
        "insert into crewcast.comments (id, project_id, author_id, body, mentions) values ($1, $2, $3, $4, $5) returning ",
        columns!()
    ))
    .bind(Uuid::now_v7())
    .bind(project_id)
    .bind(caller.sub.as_str())
    .bind(make.body.as_str())
    .bind(make.mentions.names())
    .fetch_one(&mut *tx)
    .await?;
    tx.append(NewEvent::new("comment:new", rooms(&comment), comment.version, &comment));
    mention(&mut tx, &caller, &comment, &[]).await?;
    let location = format!("/v1/projects/{project_id}/comments/{}", comment.id);
    tx.commit(Answer::made(location, &comment)).await
}

/// Read a comment
///
/// For whoever may read the project.
#[utoipa::path(
    get,
    path = "/projects/{id}/comments/{commentId}",
    params(("id" = Uuid, Path), ("commentId" = Uuid, Path)),
    responses((status = 404))
)]
async fn read_comment(
    State(db): State<Db>,
    caller: Caller,
    PathArg(ids): PathArg<(Uuid, Uuid)>,
) -> Result<Seen<Comment>> {
    let mut read = db.read().await?;
    projects::look(&mut read, &caller, ids.0).await?;
    let comment = find(&mut read, ids).await?;
    Ok(Seen::entity(&read, comment))
}

/// Change a comment
///
/// For its author. Causes `comment:updated`, and an `alert:new` for everybody who was not mentioned before.
#[utoipa::path(
    patch,
    path = "/projects/{id}/comments/{commentId}",
    params(("id" = Uuid, Path), ("commentId" = Uuid, Path), IfMatch),
    request_body = inline(Change),
    responses((status = 403), (status = 404))
)]
async fn change_comment(
    Person(caller): Person,
    PathArg(ids): PathArg<(Uuid, Uuid)>,
    if_match: IfMatch,
    Mutation { mut tx, body: change }: Mutation<Change>,
) -> Result<Answer<Current<Comment>>> {
    projects::stay(&mut tx, &caller, ids.0).await?;
    let old = lock(&mut tx, ids).await?;
    if old.author_id != caller.sub.as_str() {
        return Err(Error::forbidden("Only its author may change a comment."));
    }
    let mut comment = old.clone();
    let changed = change.apply(&mut comment);
    if_match.merge(&old, &changed)?;
    if changed.is_empty() {
        return tx.commit(Answer::current(&old)).await;
    }
    let comment = store(&mut tx, &comment, &changed).await?;
    tx.append(NewEvent::new("comment:updated", rooms(&comment), comment.version, &comment));
    mention(&mut tx, &caller, &comment, &old.mentions).await?;
    tx.commit(Answer::current(&comment)).await
}

/// Delete a comment
///
/// For its author, and for managers and admins. Causes `comment:deleted`.
#[utoipa::path(
    delete,
    path = "/projects/{id}/comments/{commentId}",
    params(("id" = Uuid, Path), ("commentId" = Uuid, Path), IfMatch),
    responses((status = 403), (status = 404))
)]
async fn delete_comment(
    Person(caller): Person,
    PathArg(ids): PathArg<(Uuid, Uuid)>,
    if_match: IfMatch,
    mut tx: Tx,
) -> Result<Answer<Nothing>> {
    projects::stay(&mut tx, &caller, ids.0).await?;
    let mut comment = lock(&mut tx, ids).await?;
    if comment.author_id != caller.sub.as_str() && !caller.manages() {
        return Err(Error::forbidden("Only its author and managers may delete a comment."));
    }
    if_match.require(&comment)?;
    sqlx::query("delete from crewcast.comments where id = $1").bind(comment.id).execute(&mut *tx).await?;
    comment.version += 1;
    tx.append(NewEvent::new("comment:deleted", rooms(&comment), comment.version, &comment));
    tx.commit(Answer::nothing()).await
}

impl Change {
    /// Changes the comment, and says which fields are not what they were.
    fn apply(self, comment: &mut Comment) -> Changed {
        let mut changed = Changed::default();
        changed.set("body", &mut comment.body, self.body.map(Text::into_string));
        changed.set("mentions", &mut comment.mentions, self.mentions.map(|mentions| mentions.names()));
        changed
    }
}

fn rooms(comment: &Comment) -> Vec<String> {
    vec![Room::Project(comment.project_id).to_string()]
}

/// What an alert calls somebody: a name has any length.
fn shown(author: &Caller) -> String {
    author.name.as_deref().unwrap_or(author.sub.as_str()).chars().take(NAME_CHARS_MAX).collect()
}

/// Raises an alert for everybody who is mentioned, was not before, and may read the project. Nobody tells themselves.
async fn mention(tx: &mut Tx, author: &Caller, comment: &Comment, before: &[String]) -> Result<()> {
    let is_new = |sub: &&String| !before.contains(sub) && **sub != comment.author_id;
    let new: Vec<String> = comment.mentions.iter().filter(is_new).cloned().collect();
    for reader in rights::readers(tx, comment.project_id, &new).await? {
        let room = Room::User(reader.parse().map_err(Error::internal)?);
        let alert = NewAlert {
            kind: "mention".to_owned(),
            severity: Severity::Info,
            title: format!("{} mentioned you", shown(author)),
            body: comment.body.clone(),
            audience: Audience::of(&room),
            project_id: Some(comment.project_id),
            division: None,
            account_id: None,
            value: None,
            threshold: None,
        };
        alerts::raise(tx, alert).await?;
    }
    Ok(())
}

async fn find(conn: &mut Conn, ids: (Uuid, Uuid)) -> Result<Comment> {
    let find = concat!("select ", columns!(), " from crewcast.comments where project_id = $1 and id = $2");
    let comment = sqlx::query_as(find).bind(ids.0).bind(ids.1).fetch_optional(conn).await?;
    comment.ok_or_else(Error::not_found)
}

/// A comment that is about to be changed: the project's readers write side by side, so the comment itself is locked.
async fn lock(conn: &mut Conn, ids: (Uuid, Uuid)) -> Result<Comment> {
    let lock = "select from crewcast.comments where project_id = $1 and id = $2 for no key update";
    sqlx::query(lock).bind(ids.0).bind(ids.1).execute(&mut *conn).await?;
    find(conn, ids).await
}

async fn store(conn: &mut Conn, comment: &Comment, changed: &Changed) -> Result<Comment> {
    let comment = sqlx::query_as(concat!(
        "update crewcast.comments
         set body = $2, mentions = $3, version = version + 1, field_versions = field_versions || $4, updated_at = now()
         where id = $1
         returning ",
        columns!()
    ))
    .bind(comment.id)
    .bind(&comment.body)
    .bind(&comment.mentions)
    .bind(changed.versions(comment.version + 1))
    .fetch_one(conn)
    .await?;
    Ok(comment)
}
