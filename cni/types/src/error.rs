//! Errors as plugins print them: a code of the specification, a message, details.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Version;

/// An error code of the CNI specification ("Error" section). Codes from 100 on belong to the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// The plugin doesn't speak the configuration's version.
    pub const INCOMPATIBLE_VERSION: ErrorCode = ErrorCode(1);
    /// A field of the configuration isn't supported; the message names it.
    pub const UNSUPPORTED_FIELD: ErrorCode = ErrorCode(2);
    /// The container is unknown or gone: nothing needs cleaning up.
    pub const UNKNOWN_CONTAINER: ErrorCode = ErrorCode(3);
    /// A CNI_ variable is missing or wrong.
    pub const INVALID_ENVIRONMENT: ErrorCode = ErrorCode(4);
    /// Reading or writing failed.
    pub const IO_FAILURE: ErrorCode = ErrorCode(5);
    /// The input isn't JSON of the right shape.
    pub const DECODING_FAILURE: ErrorCode = ErrorCode(6);
    /// The configuration is wrong.
    pub const INVALID_CONFIG: ErrorCode = ErrorCode(7);
    /// CNI_NETNS is no network namespace, or not a container's.
    pub const INVALID_NETNS: ErrorCode = ErrorCode(8);
    /// Worth trying again soon.
    pub const TRY_AGAIN_LATER: ErrorCode = ErrorCode(11);
    /// STATUS: ADD can't be served now.
    pub const NOT_AVAILABLE: ErrorCode = ErrorCode(50);
    /// STATUS: as above, and containers that exist may have limited connectivity.
    pub const LIMITED_CONNECTIVITY: ErrorCode = ErrorCode(51);
    /// Anything else that goes wrong inside a plugin of ours.
    pub const INTERNAL: ErrorCode = ErrorCode(999);
}

/// What a plugin answers instead of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}{}{details} (code {})", if details.is_empty() { "" } else { ": " }, code.0)]
pub struct CniError {
    /// What kind.
    pub code: ErrorCode,
    /// One line.
    #[serde(default)]
    pub msg: String,
    /// More about it.
    #[serde(default)]
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: ErrorCode, msg: impl Into<String>) -> Self {
        CniError {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// The same with what lies behind it: the chain of sources, joined.
    #[must_use]
    pub fn because(mut self, source: &dyn std::error::Error) -> Self {
        let mut text = source.to_string();
        let mut next = source.source();
        while let Some(error) = next {
            text.push_str(": ");
            text.push_str(&error.to_string());
            next = error.source();
        }
        self.details = text;
        self
    }

    /// What a plugin prints on standard output, in the version that the caller speaks.
    pub fn to_json(&self, version: Version) -> Value {
        let mut value = json!({ "cniVersion": version, "code": self.code, "msg": self.msg });
        if !self.details.is_empty() {
            value["details"] = Value::String(self.details.clone());
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_print_as_the_specification_says() {
        let error = CniError::new(ErrorCode::INVALID_CONFIG, "subnet is missing");
        assert_eq!(
            error.to_json(Version::V1_0_0).to_string(),
            r#"{"cniVersion":"1.0.0","code":7,"msg":"subnet is missing"}"#
        );
        let error = error.because(&std::io::Error::other("disk gone"));
        assert_eq!(
            error.to_json(Version::V1_1_0).to_string(),
            r#"{"cniVersion":"1.1.0","code":7,"details":"disk gone","msg":"subnet is missing"}"#
        );
        assert_eq!(error.to_string(), "subnet is missing: disk gone (code 7)");
    }
}
