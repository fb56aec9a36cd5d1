//! What a command's end looks like on the error stream.
//!
//! Protocol version 4 and later write a Kubernetes `Status` object; a non-zero exit code is a failure with reason
//! `NonZeroExitCode` and the code among its causes. Earlier versions write nothing on success and a sentence
//! otherwise.

use serde::Serialize;

use crate::api::{ExitStatus, StreamError, StreamErrorKind};

/// How it ended: attach has no exit status.
pub(crate) type Outcome = Result<Option<ExitStatus>, StreamError>;

#[derive(Serialize)]
struct Status {
    metadata: Empty,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct Details {
    causes: Vec<Cause>,
}

#[derive(Serialize)]
struct Cause {
    reason: &'static str,
    message: String,
}

/// The sentence for a failure, `None` for success.
pub(crate) fn sentence(outcome: &Outcome) -> Option<String> {
    match outcome {
        Ok(None | Some(ExitStatus { code: 0 })) => None,
        Ok(Some(ExitStatus { code })) => Some(format!(
            "command terminated with non-zero exit code: exit status {code}"
        )),
        Err(error) => Some(error.message.clone()),
    }
}

/// The `Status` object, as JSON.
pub(crate) fn object(outcome: &Outcome) -> Vec<u8> {
    let message = sentence(outcome);
    let failed = |reason, details, code| Status {
        metadata: Empty {},
        status: "Failure",
        message: message.clone(),
        reason: Some(reason),
        details,
        code: Some(code),
    };
    let status = match outcome {
        Ok(None | Some(ExitStatus { code: 0 })) => Status {
            metadata: Empty {},
            status: "Success",
            message: None,
            reason: None,
            details: None,
            code: None,
        },
        Ok(Some(ExitStatus { code })) => {
            let cause = Cause {
                reason: "ExitCode",
                message: code.to_string(),
            };
            let mut status = failed("NonZeroExitCode", Some(Details { causes: vec![cause] }), 0);
            status.code = None;
            status
        }
        Err(error) => match error.kind {
            StreamErrorKind::NotFound => failed("NotFound", None, 404),
            StreamErrorKind::TooSlow => failed("Timeout", None, 504),
            StreamErrorKind::Failed => failed("InternalError", None, 500),
        },
    };
    serde_json::to_vec(&status).expect("texts and numbers are always JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(outcome: Outcome) -> String {
        String::from_utf8(object(&outcome)).unwrap()
    }

    #[test]
    fn outcomes_are_status_objects() {
        assert_eq!(text(Ok(None)), r#"{"metadata":{},"status":"Success"}"#);
        assert_eq!(
            text(Ok(Some(ExitStatus { code: 0 }))),
            r#"{"metadata":{},"status":"Success"}"#
        );
        assert_eq!(
            text(Ok(Some(ExitStatus { code: 7 }))),
            r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: exit status 7","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#
        );
        assert_eq!(
            text(Err(StreamError::not_found("no such container"))),
            r#"{"metadata":{},"status":"Failure","message":"no such container","reason":"NotFound","code":404}"#
        );
    }
}
