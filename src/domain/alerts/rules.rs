//! Alert rules: what is to be told when an account's balance falls below a threshold, and to whom.
//!
//! A rule raises one alert when the balance falls below it, and none again before the balance has been at or above it.
//! So a rule is *armed* while the balance is at or above. One that is made, or given another threshold, while the balance
//! is below is not armed and raises nothing: an alert tells that something happened, and whoever writes a rule can see
//! the balance. Its account never changes.
//!
//! Everybody locks in one order: the account, then its rules.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    Amount, Audience, Domain, NewAlert, Severity,
    accounts::{self, Account},
    raise,
};
use crate::{
    auth::Treasurer,
    db::{Conn, Db},
    error::{Error, Result},
    ids::Slug,
    web::{
        Answer, Changed, Current, Entity, FieldVersions, IfMatch, List, Made, Mutation, Nothing, Page, PathArg, Query,
        Seen, Tx, present,
    },
};

/// A rule's columns.
macro_rules! columns {
    () => {
        "id, account_id, below::float8 as below, severity, audience, armed, version, field_versions"
    };
}

/// The routes.
pub(super) fn router() -> OpenApiRouter<Domain> {
    OpenApiRouter::new().routes(routes!(list_alert_rules, make_alert_rule)).routes(routes!(
        read_alert_rule,
        change_alert_rule,
        delete_alert_rule
    ))
}

/// A rule as it is answered.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = AlertRule)]
struct Rule {
    id: Uuid,
    #[schema(value_type = Slug)]
    account_id: String,
    below: Amount,
    severity: Severity,
    audience: Audience,
    #[serde(skip)]
    armed: bool,
    #[schema(minimum = 1)]
    version: i64,
    #[serde(skip)]
    field_versions: FieldVersions,
}

impl Entity for Rule {
    const NOUN: &'static str = "alert rule";

    fn version(&self) -> i64 {
        self.version
    }

    fn field_versions(&self) -> Option<&FieldVersions> {
        Some(&self.field_versions)
    }
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Make {
    account_id: Slug,
    below: Amount,
    severity: Severity,
    audience: Audience,
}

/// What is left out stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Change {
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    below: Option<Amount>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    severity: Option<Severity>,
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    audience: Option<Audience>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
struct Filter {
    /// Only those of this account.
    account_id: Option<Slug>,
    #[serde(flatten)]
    #[param(ignore)]
    page: Page,
}

/// List the alert rules
///
/// For managers, admins and services. Oldest first.
#[utoipa::path(get, path = "/alert-rules", params(Filter, Page), responses((status = 404)))]
async fn list_alert_rules(
    State(db): State<Db>,
    _: Treasurer,
    Query(filter): Query<Filter>,
) -> Result<Seen<List<Rule>>> {
    let page = filter.page;
    let after = page.after_id()?;
    let mut read = db.read().await?;
    let rules: Vec<Rule> = sqlx::query_as(concat!(
        "select ",
        columns!(),
        " from crewcast.alert_rules
         where id > $1 and ($2::text is null or account_id = $2)
         order by id limit $3"
    ))
    .bind(after)
    .bind(filter.account_id.as_ref().map(Slug::as_str))
    .bind(page.rows())
    .fetch_all(&mut *read)
    .await?;
    Ok(Seen::at(&read, page.list(rules, |rule| rule.id.to_string())))
}

/// Make an alert rule
///
/// For managers, admins and services. A rule that is made while the balance is below waits for it to rise first. It causes
/// no event.
#[utoipa::path(post, path = "/alert-rules", request_body = inline(Make), responses((status = 404)))]
async fn make_alert_rule(_: Treasurer, Mutation { mut tx, body: make }: Mutation<Make>) -> Result<Answer<Made<Rule>>> {
    let account = accounts::lock(&mut tx, make.account_id.as_str()).await?;
    let account = account.ok_or_else(|| Error::invalid_body("/accountId", "there is no such account"))?;
    let rule: Rule = sqlx::query_as(concat!(
        "insert into crewcast.alert_rules (id, account_id, below, severity, audience, armed)
         values ($1, $2, $3, $4, $5, $6)
         returning ",
        columns!()
    ))
    .bind(Uuid::now_v7())
    .bind(&account.id)
    .bind(make.below)
    .bind(make.severity)
    .bind(make.audience)
    .bind(!account.balance.is_below(make.below))
    .fetch_one(&mut *tx)
    .await?;
    tx.commit(Answer::made(format!("/v1/alert-rules/{}", rule.id), &rule)).await
}

/// Read an alert rule
#[utoipa::path(get, path = "/alert-rules/{id}", params(("id" = Uuid, Path)), responses((status = 404)))]
async fn read_alert_rule(State(db): State<Db>, _: Treasurer, PathArg(id): PathArg<Uuid>) -> Result<Seen<Rule>> {
    let mut read = db.read().await?;
    let rule = find(&mut read, id).await?;
    Ok(Seen::entity(&read, rule))
}

/// Change some of an alert rule's fields
///
/// For managers, admins and services. With a threshold that the balance is below already the rule waits for it to rise
/// first. It causes no event.
#[utoipa::path(
    patch,
    path = "/alert-rules/{id}",
    params(("id" = Uuid, Path), IfMatch),
    request_body = inline(Change),
    responses((status = 404))
)]
async fn change_alert_rule(
    _: Treasurer,
    PathArg(id): PathArg<Uuid>,
    if_match: IfMatch,
    Mutation { mut tx, body: change }: Mutation<Change>,
) -> Result<Answer<Current<Rule>>> {
    let (account, old) = lock(&mut tx, id).await?;
    let mut rule = old.clone();
    let changed = change.apply(&mut rule);
    if_match.merge(&old, &changed)?;
    if changed.is_empty() {
        return tx.commit(Answer::current(&old)).await;
    }
    rule.armed = !account.balance.is_below(rule.below);
    let rule = store(&mut tx, &rule, &changed).await?;
    tx.commit(Answer::current(&rule)).await
}

/// Delete an alert rule
///
/// For managers, admins and services. The alerts that it has raised stay.
#[utoipa::path(
    delete,
    path = "/alert-rules/{id}",
    params(("id" = Uuid, Path), IfMatch),
    responses((status = 404))
)]
async fn delete_alert_rule(
    _: Treasurer,
    PathArg(id): PathArg<Uuid>,
    if_match: IfMatch,
    mut tx: Tx,
) -> Result<Answer<Nothing>> {
    let (_, rule) = lock(&mut tx, id).await?;
    if_match.require(&rule)?;
    sqlx::query("delete from crewcast.alert_rules where id = $1").bind(id).execute(&mut *tx).await?;
    tx.commit(Answer::nothing()).await
}

impl Change {
    /// Changes the rule, and says which fields are not what they were.
    fn apply(self, rule: &mut Rule) -> Changed {
        let mut changed = Changed::default();
        changed.set("below", &mut rule.below, self.below);
        changed.set("severity", &mut rule.severity, self.severity);
        changed.set("audience", &mut rule.audience, self.audience);
        changed
    }
}

/// Arms and disarms the rules of an account for the balance that it has now, and raises the alerts of those that it fell
/// below. The account is locked.
///
/// # Errors
/// When Postgres refuses.
pub(super) async fn judge(tx: &mut Tx, account: &Account) -> Result<()> {
    let mut crossed: Vec<Rule> = sqlx::query_as(concat!(
        "update crewcast.alert_rules set armed = not armed
         where account_id = $1 and armed <> ($2::float8::numeric >= below)
         returning ",
        columns!()
    ))
    .bind(&account.id)
    .bind(account.balance)
    .fetch_all(&mut **tx)
    .await?;
    crossed.sort_by_key(|rule| rule.id);
    for rule in crossed.into_iter().filter(|rule| !rule.armed) {
        raise(tx, fell_below(account, rule)).await?;
    }
    Ok(())
}

fn fell_below(account: &Account, rule: Rule) -> NewAlert {
    let (balance, below) = (account.balance.figure(), rule.below.figure());
    NewAlert {
        kind: "balance".to_owned(),
        severity: rule.severity,
        title: format!("{} fell below {below}", account.name),
        body: format!("The balance is {balance}."),
        audience: rule.audience,
        project_id: None,
        division: account.division.clone(),
        account_id: Some(account.id.clone()),
        value: Some(balance),
        threshold: Some(below),
    }
}

async fn find(conn: &mut Conn, id: Uuid) -> Result<Rule> {
    let rule = sqlx::query_as(concat!("select ", columns!(), " from crewcast.alert_rules where id = $1"))
        .bind(id)
        .fetch_optional(conn)
        .await?;
    rule.ok_or_else(Error::not_found)
}

/// A rule and its account, which is locked: nobody else changes either.
async fn lock(conn: &mut Conn, id: Uuid) -> Result<(Account, Rule)> {
    let account_id = find(conn, id).await?.account_id;
    let account = accounts::lock(conn, &account_id).await?.ok_or_else(Error::not_found)?;
    // A statement of its own: its snapshot is younger than the lock.
    Ok((account, find(conn, id).await?))
}

async fn store(conn: &mut Conn, rule: &Rule, changed: &Changed) -> Result<Rule> {
    let rule = sqlx::query_as(concat!(
        "update crewcast.alert_rules
         set below = $2, severity = $3, audience = $4, armed = $5, version = version + 1,
             field_versions = field_versions || $6
         where id = $1
         returning ",
        columns!()
    ))
    .bind(rule.id)
    .bind(rule.below)
    .bind(rule.severity)
    .bind(&rule.audience)
    .bind(rule.armed)
    .bind(changed.versions(rule.version + 1))
    .fetch_one(conn)
    .await?;
    Ok(rule)
}
