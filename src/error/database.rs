//! What the database says, as our errors.

use super::{Code, Error, Result};
use crate::log::LogError;

/// `on_constraint` on results, where queries need it.
pub trait OnConstraint<T> {
    /// Turns the violation of a named constraint into the error that the client should see.
    ///
    /// # Errors
    /// The error there was, or `other` in place of that violation.
    fn on_constraint(self, name: &str, other: impl FnOnce() -> Error) -> Result<T>;
}

impl<T, E: Into<Error>> OnConstraint<T> for std::result::Result<T, E> {
    fn on_constraint(self, name: &str, other: impl FnOnce() -> Error) -> Result<T> {
        self.map_err(|error| error.into().on_constraint(name, other))
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let unavailable = "The database is out of reach.";
        let code = error.as_database_error().and_then(|db| db.code());
        let mapped = match (&error, code.as_deref()) {
            (_, Some(code)) => for_sqlstate(code),
            (
                // A server that will not do, such as a standby, is none.
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Configuration(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed,
                None,
            ) => Some(Self::unavailable(unavailable)),
            _ => None,
        };
        match mapped {
            Some(mapped) => mapped.with_cause(error),
            None => Self::internal(error),
        }
    }
}

impl Error {
    /// What went wrong with a commit. Where Postgres did not say, nobody knows whether the change was made, and the client must
    /// not be told that it was not.
    pub fn of_commit(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|db| db.code());
        let is_refused = code.is_some_and(|code| !code.starts_with("08") && !code.starts_with("57P"));
        if is_refused || matches!(error, sqlx::Error::Protocol(_)) {
            return error.into();
        }
        let detail = "The database did not say whether the change was made: repeat it with the same Idempotency-Key, or read \
                      first what is there.";
        Self::unavailable(detail).with_cause(error)
    }
}

impl From<LogError> for Error {
    fn from(error: LogError) -> Self {
        match error {
            LogError::TooOld => {
                Self::new(Code::CursorNotResumable, "The cursor is older than what the log still holds.")
            }
            LogError::Foreign => Self::new(Code::CursorNotResumable, "The cursor was made by another log."),
            LogError::Db(error) => error.into(),
            LogError::Unreadable(_) => Self::internal(error),
            LogError::Ahead | LogError::Broken(_) => {
                Self::unavailable("The event log cannot be read at the moment.").with_cause(error)
            }
        }
    }
}

/// Postgres's error codes that are not our mistake
/// (<https://www.postgresql.org/docs/15/errcodes-appendix.html>).
fn for_sqlstate(code: &str) -> Option<Error> {
    match code {
        // A character that the database cannot store, or none at all.
        "22P05" | "22021" => {
            Some(Error::invalid_body("", "contains a character that cannot be stored, such as U+0000"))
        }
        // Serialisation failure, deadlock, a lock or a statement that took too long.
        "40001" | "40P01" | "55P03" | "57014" => {
            Some(Error::unavailable("Others were changing the same things; try again."))
        }
        // Read-only after a failover to another server; a transaction that the server found too long.
        "25006" | "25P03" | "25P04" => Some(Error::unavailable("The database is out of reach.")),
        // Connection exceptions; a role or a database that is not let in any more; connections, memory or disk at their end;
        // shutting down, crashed, starting up; the disk itself.
        code if ["08", "28", "3D", "53", "57P", "58"].iter().any(|class| code.starts_with(class)) => {
            Some(Error::unavailable("The database is out of reach."))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::error::Error as StdError;
    use std::fmt;

    use super::super::Chain;
    use super::*;

    #[derive(Debug)]
    struct Refusal {
        code: &'static str,
        constraint: Option<&'static str>,
    }

    impl fmt::Display for Refusal {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("secret inner words")
        }
    }

    impl StdError for Refusal {}

    impl sqlx::error::DatabaseError for Refusal {
        fn message(&self) -> &str {
            "secret inner words"
        }
        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.code.into())
        }
        fn constraint(&self) -> Option<&str> {
            self.constraint
        }
        fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
            self
        }
        fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
            self
        }
        fn into_error(self: Box<Self>) -> Box<dyn StdError + Send + Sync + 'static> {
            self
        }
        fn kind(&self) -> sqlx::error::ErrorKind {
            sqlx::error::ErrorKind::Other
        }
    }

    fn refusal(code: &'static str) -> sqlx::Error {
        sqlx::Error::Database(Box::new(Refusal { code, constraint: Some("assignments_once") }))
    }

    #[test]
    fn the_databases_errors_become_ours() {
        for (code, expected) in [
            ("22P05", Code::InvalidBody),
            ("22021", Code::InvalidBody),
            ("40001", Code::Unavailable),
            ("40P01", Code::Unavailable),
            ("57P01", Code::Unavailable),
            ("57P03", Code::Unavailable),
            ("53300", Code::Unavailable),
            ("08006", Code::Unavailable),
            ("23505", Code::Internal),
            ("42703", Code::Internal),
        ] {
            assert_eq!(Error::from(refusal(code)).code(), expected, "{code}");
        }
        for (error, expected) in [
            (sqlx::Error::PoolTimedOut, Code::Unavailable),
            (sqlx::Error::PoolClosed, Code::Unavailable),
            (sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into()), Code::Unavailable),
            (sqlx::Error::RowNotFound, Code::Internal),
        ] {
            assert_eq!(Error::from(error).code(), expected);
        }
    }

    #[test]
    fn a_named_constraint_becomes_a_clients_error() {
        let mend = || Error::new(Code::AlreadyExists, "There is such an assignment.");
        let result: Result<(), _> = Err(refusal("23505"));
        let error = result.on_constraint("assignments_once", mend).unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists);
        let result: Result<(), _> = Err(refusal("23505"));
        let error = result.on_constraint("another", mend).unwrap_err();
        assert_eq!(error.code(), Code::Internal);
    }

    #[test]
    fn an_internal_error_tells_the_log_and_not_the_client() {
        let error = Error::from(refusal("42703"));
        assert!(Chain(&error).to_string().contains("secret inner words"));
        let problem = serde_json::to_string(error.problem()).unwrap();
        assert!(!problem.contains("secret"), "{problem}");
    }
}
