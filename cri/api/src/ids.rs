//! Identifiers of sandboxes and containers: 64 lower-case hex digits, as crictl and the kubelet expect.

use std::fmt;
use std::str::FromStr;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdError {
    text: String,
}

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is not an ID: 64 lower-case hex digits are expected",
            self.text
        )
    }
}

impl std::error::Error for IdError {}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// An ID from 32 random bytes, which the caller draws.
            pub fn from_bytes(bytes: [u8; 32]) -> Self {
                use fmt::Write as _;
                let mut text = String::with_capacity(64);
                for byte in bytes {
                    // Writing to a String can't fail.
                    let _ = write!(text, "{byte:02x}");
                }
                Self(text)
            }

            /// The ID's text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                if text.len() == 64 && text.bytes().all(hex) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(IdError { text: text.to_owned() })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// Names a pod sandbox.
    PodSandboxId
}
id! {
    /// Names a container.
    ContainerId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_text_round_trip() {
        let id = PodSandboxId::from_bytes([0xa5; 32]);
        assert_eq!(id.as_str().len(), 64);
        assert_eq!(id.as_str().parse::<PodSandboxId>(), Ok(id));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "abc", &"A".repeat(64), &"../".repeat(22)[..64]] {
            assert!(text.parse::<ContainerId>().is_err(), "{text}");
        }
    }
}
