//! Who may do what: a request's attributes, and those who judge them.
//!
//! A request is an access to a subresource of this node. Paths that have one of their own may be allowed by it or by
//! `proxy`, which allows everything; so a request has several attributes, any of which is enough.

use async_trait::async_trait;
use http::Method;

use super::identity::User;

/// The group that may do anything.
pub const MASTERS: &str = "system:masters";

/// One way in which a request may be allowed; the resource is always `nodes` of the core group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// Who asks.
    pub user: &'a User,
    /// `get`, `create`, `update`, `patch`, `delete`; empty for other methods.
    pub verb: &'static str,
    /// `proxy`, `stats`, `metrics`, `log`, ...
    pub subresource: &'static str,
    /// This node.
    pub node: &'a str,
}

/// Judges attributes.
#[async_trait]
pub trait Authorizer: Send + Sync + 'static {
    /// Whether it is allowed.
    ///
    /// # Errors
    /// A sentence, when that can't be found out.
    async fn authorize(&self, attributes: Attributes<'_>) -> Result<bool, String>;
}

/// Everybody who is somebody may do everything (`authorization.mode: AlwaysAllow`).
#[derive(Debug, Clone, Copy)]
pub struct AlwaysAllow;

#[async_trait]
impl Authorizer for AlwaysAllow {
    async fn authorize(&self, _: Attributes<'_>) -> Result<bool, String> {
        Ok(true)
    }
}

/// A list of who may do what, beside `system:masters` who may do everything: for a node without an API server.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Any of them is enough.
    pub allowed: Vec<Rule>,
}

/// A line of [`Rules`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// A user's name or a group.
    pub subject: String,
    /// Verbs; `*` is all.
    pub verbs: Vec<String>,
    /// Subresources; `*` is all.
    pub subresources: Vec<String>,
}

#[async_trait]
impl Authorizer for Rules {
    async fn authorize(&self, attributes: Attributes<'_>) -> Result<bool, String> {
        let is = |subject: &str| {
            attributes.user.name == subject || attributes.user.groups.iter().any(|group| group == subject)
        };
        let holds = |list: &[String], word: &str| list.iter().any(|entry| entry == "*" || entry == word);
        let master = attributes.user.groups.iter().any(|group| group == MASTERS);
        Ok(master
            || self.allowed.iter().any(|rule| {
                is(&rule.subject)
                    && holds(&rule.verbs, attributes.verb)
                    && holds(&rule.subresources, attributes.subresource)
            }))
    }
}

/// The verb of a method.
pub(super) fn verb(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "GET" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

/// The subresources of a (decoded) path, the most special one first.
pub(super) fn subresources(path: &str) -> &'static [&'static str] {
    let below = |root: &str| {
        path.strip_prefix(root)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if below("/stats") {
        &["stats"]
    } else if below("/metrics") {
        &["metrics"]
    } else if below("/logs") {
        &["log"]
    } else if below("/checkpoint") {
        &["checkpoint"]
    } else if below("/healthz") {
        &["healthz", "proxy"]
    } else if below("/configz") {
        &["configz", "proxy"]
    } else if below("/pods") || below("/runningpods") || below("/timeline") || below("/events") {
        &["pods", "proxy"]
    } else {
        &["proxy"]
    }
}
