//! Accounts: what the company has where. Managers, admins and services keep them; for everybody else there are none.
//!
//! An account's slug is its id and never changes, and a new one has nothing on it. A balance has two decimals and may be
//! negative. Whoever writes one locks the account first and judges its rules behind the lock, so what an alert says of
//! it is true at the commit. Accounts have no events of their own.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Amount, Domain, rules};
use crate::{
    auth::Treasurer,
    db::{Conn, Db},
    error::{Error, OnConstraint as _, Result},
    ids::{Slug, Text},
    web::{
        self, Answer, Changed, Current, Describe as _, Entity, FieldVersions, IfMatch, List, Mutation, Page, PathArg,
        Query, Seen,
    },
};

/// An account's columns.
macro_rules! columns {
    () => {
        "id, name, division, balance::float8 as balance, version, field_versions"
    };
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<Domain> {
    OpenApiRouter::new()
        .routes(routes!(list_accounts))
        .routes(routes!(read_account, set_account))
        .routes(routes!(set_balance))
        .headed(
            "accounts",
            "What the company has where. Managers, admins and services keep them; for others there are none",
        )
}

/// An account as it is answered.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Account {
    #[schema(value_type = Slug)]
    pub(super) id: String,
    #[schema(value_type = Name)]
    pub(super) name: String,
    #[schema(required, value_type = Option<Slug>)]
    pub(super) division: Option<String>,
    pub(super) balance: Amount,
    #[schema(minimum = 1)]
    version: i64,
    #[serde(skip)]
    field_versions: FieldVersions,
}

impl Entity for Account {
    const NOUN: &'static str = "account";

    fn version(&self) -> i64 {
        self.version
    }

    fn field_versions(&self) -> Option<&FieldVersions> {
        Some(&self.field_versions)
    }
}

type Name = Text<1, 200>;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Set {
    name: Name,
    /// One that exists; without it the account is no division's.
    division: Option<Slug>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SetBalance {
    balance: Amount,
}

/// List the accounts
///
/// For managers, admins and services. In the order of their ids.
#[utoipa::path(get, path = "/accounts", params(Page), responses((status = 404)))]
async fn list_accounts(State(db): State<Db>, _: Treasurer, Query(page): Query<Page>) -> Result<Seen<List<Account>>> {
    let mut read = db.read().await?;
    let accounts: Vec<Account> =
        sqlx::query_as(concat!("select ", columns!(), " from crewcast.accounts where id > $1 order by id limit $2"))
            .bind(page.after.as_deref().unwrap_or_default())
            .bind(page.rows())
            .fetch_all(&mut *read)
            .await?;
    Ok(Seen::at(&read, page.list(accounts, |account| account.id.clone())))
}

/// Read an account
#[utoipa::path(get, path = "/accounts/{id}", params(("id" = Slug, Path)), responses((status = 404)))]
async fn read_account(State(db): State<Db>, _: Treasurer, PathArg(id): PathArg<Slug>) -> Result<Seen<Account>> {
    let mut read = db.read().await?;
    let account: Option<Account> =
        sqlx::query_as(concat!("select ", columns!(), " from crewcast.accounts where id = $1"))
            .bind(id.as_str())
            .fetch_optional(&mut *read)
            .await?;
    Ok(Seen::entity(&read, account.ok_or_else(Error::not_found)?))
}

/// Make an account, or change its name and its division
///
/// For managers, admins and services. A new account has a balance of 0. It causes no event.
#[utoipa::path(
    put,
    path = "/accounts/{id}",
    params(("id" = Slug, Path), IfMatch),
    request_body = inline(Set),
    responses((status = 404))
)]
async fn set_account(
    _: Treasurer,
    PathArg(id): PathArg<Slug>,
    if_match: IfMatch,
    Mutation { mut tx, body: set }: Mutation<Set>,
) -> Result<Answer<web::Set<Account>>> {
    if let Some(account) = make(&mut tx, &id, &set).await? {
        return tx.commit(Answer::set(true, &account)).await;
    }
    let old = lock(&mut tx, id.as_str()).await?.ok_or_else(Error::not_found)?;
    let mut account = old.clone();
    let mut changed = Changed::default();
    changed.set("name", &mut account.name, Some(set.name.into_string()));
    changed.set("division", &mut account.division, Some(set.division.map(|division| division.to_string())));
    if_match.merge(&old, &changed)?;
    if changed.is_empty() {
        return tx.commit(Answer::set(false, &old)).await;
    }
    let account = store(&mut tx, &account, &changed).await?;
    tx.commit(Answer::set(false, &account)).await
}

/// Set an account's balance
///
/// For managers, admins and services. Causes an `alert:new` for each rule that the balance falls below.
#[utoipa::path(
    put,
    path = "/accounts/{id}/balance",
    params(("id" = Slug, Path), IfMatch),
    request_body = inline(SetBalance),
    responses((status = 404))
)]
async fn set_balance(
    _: Treasurer,
    PathArg(id): PathArg<Slug>,
    if_match: IfMatch,
    Mutation { mut tx, body: set }: Mutation<SetBalance>,
) -> Result<Answer<Current<Account>>> {
    let old = lock(&mut tx, id.as_str()).await?.ok_or_else(Error::not_found)?;
    let mut account = old.clone();
    let mut changed = Changed::default();
    changed.set("balance", &mut account.balance, Some(set.balance));
    if_match.merge(&old, &changed)?;
    if changed.is_empty() {
        return tx.commit(Answer::current(&old)).await;
    }
    let account = store(&mut tx, &account, &changed).await?;
    rules::judge(&mut tx, &account).await?;
    tx.commit(Answer::current(&account)).await
}

/// A new account; none when there is one of that name.
async fn make(conn: &mut Conn, id: &Slug, set: &Set) -> Result<Option<Account>> {
    sqlx::query_as(concat!(
        "insert into crewcast.accounts (id, name, division) values ($1, $2, $3) on conflict (id) do nothing returning ",
        columns!()
    ))
    .bind(id.as_str())
    .bind(set.name.as_str())
    .bind(set.division.as_ref().map(Slug::as_str))
    .fetch_optional(conn)
    .await
    .on_constraint("accounts_division", no_such_division)
}

/// Locks an account, if it is there: nobody else writes its balance or changes its rules until the transaction ends.
///
/// # Errors
/// When Postgres refuses.
pub(super) async fn lock(conn: &mut Conn, id: &str) -> Result<Option<Account>> {
    let account =
        sqlx::query_as(concat!("select ", columns!(), " from crewcast.accounts where id = $1 for no key update"))
            .bind(id)
            .fetch_optional(conn)
            .await?;
    Ok(account)
}

async fn store(conn: &mut Conn, account: &Account, changed: &Changed) -> Result<Account> {
    sqlx::query_as(concat!(
        "update crewcast.accounts
         set name = $2, division = $3, balance = $4, version = version + 1, field_versions = field_versions || $5
         where id = $1
         returning ",
        columns!()
    ))
    .bind(&account.id)
    .bind(&account.name)
    .bind(&account.division)
    .bind(account.balance)
    .bind(changed.versions(account.version + 1))
    .fetch_one(conn)
    .await
    .on_constraint("accounts_division", no_such_division)
}

fn no_such_division() -> Error {
    Error::invalid_body("/division", "there is no such division")
}
