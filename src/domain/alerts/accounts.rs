//! Accounts: what the company has where. Managers, admins and services keep them; for everybody else there are none.
//!
//! An account's slug is its id and never changes, and a new one has nothing on it. A balance has two decimals and may be
//! negative. Whoever writes one locks the account first and judges its rules behind the lock, so what an alert says of
//! it is true at the commit. Accounts have no events of their own.

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::{get, put},
};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::{Amount, Domain, rules};
use crate::{
    auth::Treasurer,
    db::Db,
    error::{Error, OnConstraint as _, Result},
    ids::{Slug, Text},
    web::{Answer, Changed, Entity, FieldVersions, IfMatch, Mutation, Page, PathArg, Query, Seen},
};

/// An account's columns.
macro_rules! columns {
    () => {
        "id, name, division, balance::float8 as balance, version, field_versions"
    };
}

/// The routes.
pub(super) fn router() -> Router<Domain> {
    Router::new()
        .route("/accounts", get(list))
        .route("/accounts/{id}", get(read).put(set))
        .route("/accounts/{id}/balance", put(set_balance))
}

/// An account as it is answered.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub(super) struct Account {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) division: Option<String>,
    pub(super) balance: Amount,
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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Set {
    name: Text<1, 200>,
    division: Option<Slug>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetBalance {
    balance: Amount,
}

async fn list(State(db): State<Db>, _: Treasurer, Query(page): Query<Page>) -> Result<Response> {
    let mut read = db.read().await?;
    let accounts: Vec<Account> =
        sqlx::query_as(concat!("select ", columns!(), " from crewcast.accounts where id > $1 order by id limit $2"))
            .bind(page.after.as_deref().unwrap_or_default())
            .bind(page.rows())
            .fetch_all(&mut *read)
            .await?;
    Ok(Seen::at(&read, page.list(accounts, |account| account.id.clone())).into_response())
}

async fn read(State(db): State<Db>, _: Treasurer, PathArg(id): PathArg<Slug>) -> Result<Response> {
    let mut read = db.read().await?;
    let account: Option<Account> =
        sqlx::query_as(concat!("select ", columns!(), " from crewcast.accounts where id = $1"))
            .bind(id.as_str())
            .fetch_optional(&mut *read)
            .await?;
    Ok(Seen::entity(&read, account.ok_or_else(Error::not_found)?).into_response())
}

async fn set(
    _: Treasurer,
    PathArg(id): PathArg<Slug>,
    if_match: IfMatch,
    Mutation { mut tx, body: set }: Mutation<Set>,
) -> Result<Answer> {
    if let Some(account) = make(&mut tx, &id, &set).await? {
        return tx.commit(Answer::made(format!("/v1/accounts/{id}"), &account)).await;
    }
    let old = lock(&mut tx, id.as_str()).await?.ok_or_else(Error::not_found)?;
    let mut account = old.clone();
    let mut changed = Changed::default();
    changed.set("name", &mut account.name, Some(set.name.into_string()));
    changed.set("division", &mut account.division, Some(set.division.map(|division| division.to_string())));
    if_match.merge(&old, &changed)?;
    if changed.is_empty() {
        return tx.commit(Answer::current(&old)).await;
    }
    let account = store(&mut tx, &account, &changed).await?;
    tx.commit(Answer::current(&account)).await
}

async fn set_balance(
    _: Treasurer,
    PathArg(id): PathArg<Slug>,
    if_match: IfMatch,
    Mutation { mut tx, body: set }: Mutation<SetBalance>,
) -> Result<Answer> {
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
async fn make(conn: &mut PgConnection, id: &Slug, set: &Set) -> Result<Option<Account>> {
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
pub(super) async fn lock(conn: &mut PgConnection, id: &str) -> Result<Option<Account>> {
    let account =
        sqlx::query_as(concat!("select ", columns!(), " from crewcast.accounts where id = $1 for no key update"))
            .bind(id)
            .fetch_optional(conn)
            .await?;
    Ok(account)
}

async fn store(conn: &mut PgConnection, account: &Account, changed: &Changed) -> Result<Account> {
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
