//! Errors with a hint, which `ereport!` has no place for.

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::elog::PgLogLevel;
use pgrx::pg_sys::panic::ErrorReport;

/// An ERROR with a detail (none if empty) and a hint.
pub fn error(code: PgSqlErrorCode, message: impl Into<String>, detail: &str, hint: &str) -> ! {
    say(PgLogLevel::ERROR, code, message.into(), detail, hint);
    unreachable!("an ERROR does not return")
}

/// A FATAL, which ends the session, with a detail and a hint (none if empty).
pub fn fatal(code: PgSqlErrorCode, message: impl Into<String>, detail: &str, hint: &str) -> ! {
    say(PgLogLevel::FATAL, code, message.into(), detail, hint);
    unreachable!("a FATAL does not return")
}

/// A WARNING with a detail (none if empty) and a hint (none if empty).
pub fn warning(message: impl Into<String>, detail: &str, hint: &str) {
    let code = PgSqlErrorCode::ERRCODE_WARNING;
    say(PgLogLevel::WARNING, code, message.into(), detail, hint);
}

fn say(level: PgLogLevel, code: PgSqlErrorCode, message: String, detail: &str, hint: &str) {
    let mut report = ErrorReport::new(code, message, "multimaster");
    if !detail.is_empty() {
        report = report.set_detail(detail);
    }
    if !hint.is_empty() {
        report = report.set_hint(hint);
    }
    report.report(level);
}
