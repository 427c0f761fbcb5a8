//! The schema, brought up to date.

use sqlx::migrate::{MigrateError, Migrator};

use super::Conn;

/// Brings the schema `crewcast` up to date. A schema that is needs no rights but to be read.
///
/// # Errors
/// When a migration fails, or one that was applied before has changed.
pub async fn migrate(conn: &mut Conn) -> Result<(), MigrateError> {
    let mut migrator: Migrator = sqlx::migrate!();
    if is_current(conn, &migrator).await? {
        return Ok(());
    }
    migrator.dangerous_set_table_name("crewcast.migrations");
    migrator.create_schema("crewcast");
    migrator.run(conn.raw()).await
}

async fn is_current(conn: &mut Conn, migrator: &Migrator) -> sqlx::Result<bool> {
    let exists: bool =
        sqlx::query_scalar("select to_regclass('crewcast.migrations') is not null").fetch_one(&mut *conn).await?;
    if !exists {
        return Ok(false);
    }
    let applied: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("select version, checksum from crewcast.migrations where success order by version")
            .fetch_all(conn)
            .await?;
    let ours = migrator.iter().map(|migration| (migration.version, migration.checksum.to_vec()));
    Ok(ours.eq(applied))
}
