//! The forms of names, keys and labels, each checked with upstream's wording: an empty list says that the text is fine.

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const SUBDOMAIN_MOST: usize = 253;
const LABEL_MOST: usize = 63;

fn too_long(most: usize) -> String {
    format!("must be no more than {most} characters")
}

/// What a number must be between.
pub fn range_error(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

fn form(what: &str, regex: &str, examples: &[&str]) -> String {
    let examples: Vec<_> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!(
        "{what} (e.g. {}regex used for validation is '{regex}')",
        examples.join("or ")
    )
}

fn is_lower(c: u8) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

/// Letters as `inner` says, the first and the last of them as `outer` says.
fn is_framed(text: &str, outer: impl Fn(u8) -> bool, inner: impl Fn(u8) -> bool) -> bool {
    match text.as_bytes() {
        [] => false,
        [only] => outer(*only),
        [first, middle @ .., last] => outer(*first) && outer(*last) && middle.iter().all(|c| inner(*c)),
    }
}

fn is_label(text: &str) -> bool {
    is_framed(text, is_lower, |c| is_lower(c) || c == b'-')
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

/// A DNS label (RFC 1123).
pub fn dns_label(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > LABEL_MOST {
        errors.push(too_long(LABEL_MOST));
    }
    if !is_label(text) {
        errors.push(if is_subdomain(text) {
            "must not contain dots".to_owned()
        } else {
            let what = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and \
                        must start and end with an alphanumeric character";
            form(what, LABEL, &["my-name", "123-abc"])
        });
    }
    errors
}

/// A DNS subdomain (RFC 1123).
pub fn dns_subdomain(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > SUBDOMAIN_MOST {
        errors.push(too_long(SUBDOMAIN_MOST));
    }
    if !is_subdomain(text) {
        let what = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                    and must start and end with an alphanumeric character";
        errors.push(form(what, SUBDOMAIN, &["example.com"]));
    }
    errors
}

/// A DNS subdomain in which each label may begin with, and contain, underscores.
pub fn dns_subdomain_with_underscores(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > SUBDOMAIN_MOST {
        errors.push(too_long(SUBDOMAIN_MOST));
    }
    let is_label = |label: &str| {
        let label = label.strip_prefix('_').unwrap_or(label);
        is_framed(label, is_lower, |c| is_lower(c) || c == b'-' || c == b'_')
    };
    if !text.split('.').all(is_label) {
        let what = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or \
                    '.', and must start and end with an alphanumeric character";
        let regex = r"_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*";
        errors.push(form(what, regex, &["example.com"]));
    }
    errors
}

/// A name that is still to be completed by a suffix, so that it may end with a dash.
pub fn prefix_of_dns_subdomain(text: &str) -> Vec<String> {
    match text.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => {
            let kept = rest.char_indices().next_back().map_or(0, |(at, _)| at);
            dns_subdomain(&format!("{}a", &rest[..kept]))
        }
        _ => dns_subdomain(text),
    }
}

fn is_key_name(text: &str) -> bool {
    is_framed(
        text,
        |c| c.is_ascii_alphanumeric(),
        |c| c.is_ascii_alphanumeric() || b"-_.".contains(&c),
    )
}

/// A label's key, an annotation's (in lower case), a condition's type: `name` or `example.com/name`.
pub fn qualified_name(text: &str) -> Vec<String> {
    const WHAT: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                        alphanumeric character";
    let bad_form = || {
        form(
            WHAT,
            "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]",
            &["MyName", "my.name", "123-abc"],
        )
    };
    let mut errors = Vec::new();
    let parts: Vec<_> = text.split('/').collect();
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                errors.extend(
                    dns_subdomain(prefix)
                        .into_iter()
                        .map(|error| format!("prefix part {error}")),
                );
            }
            name
        }
        _ => {
            let more = "with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
            return vec![format!("a valid label key {} {more}", bad_form())];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MOST {
        errors.push(format!("name part {}", too_long(LABEL_MOST)));
    }
    if !is_key_name(name) {
        errors.push(format!("name part {}", bad_form()));
    }
    errors
}

/// A label's value.
pub fn label_value(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > LABEL_MOST {
        errors.push(too_long(LABEL_MOST));
    }
    if !text.is_empty() && !is_key_name(text) {
        let what = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
                    and must start and end with an alphanumeric character";
        let regex = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
        errors.push(form(what, regex, &["MyValue", "my_value", "12345"]));
    }
    errors
}

/// A port's number.
pub fn port_number(port: i32) -> Vec<String> {
    if (1..=65535).contains(&port) {
        Vec::new()
    } else {
        vec![range_error(1, 65535)]
    }
}

/// A port's name (RFC 6335, lower case).
pub fn port_name(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 15 {
        errors.push(too_long(15));
    }
    if text.is_empty() || !text.bytes().all(|c| is_lower(c) || c == b'-') {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|c| c.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        errors.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        errors.push("must not begin or end with a hyphen".to_owned());
    }
    errors
}

/// A user's or a group's number.
pub fn user_or_group(id: i64) -> Vec<String> {
    let most = i64::from(i32::MAX);
    if (0..=most).contains(&id) {
        Vec::new()
    } else {
        vec![range_error(0, most)]
    }
}

/// An HTTP header's name.
pub fn http_header(text: &str) -> Vec<String> {
    if !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') {
        return Vec::new();
    }
    let what = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![form(what, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

/// An environment variable's name: printable ASCII without `=`.
pub fn environment_variable(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.is_empty() {
        errors.push("environment variable name must be non-empty".to_owned());
    }
    if text.bytes().any(|c| !(b' '..=b'~').contains(&c) || c == b'=') {
        let what = "a valid environment variable name must consist only of printable ASCII characters other than '='";
        errors.push(what.to_owned());
    }
    errors
}

/// A key of a ConfigMap or a Secret.
pub fn config_key(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > SUBDOMAIN_MOST {
        errors.push(too_long(SUBDOMAIN_MOST));
    }
    if text.is_empty()
        || !text
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
    {
        let what = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        errors.push(form(
            what,
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match text {
        "." => errors.push("must not be '.'".to_owned()),
        ".." => errors.push("must not be '..'".to_owned()),
        _ if text.starts_with("..") => errors.push("must not start with '..'".to_owned()),
        _ => {}
    }
    errors
}

/// A sysctl's name, its segments separated by dots or slashes.
pub fn is_sysctl(text: &str) -> bool {
    let is_segment = |segment| is_framed(segment, is_lower, |c| is_lower(c) || c == b'-' || c == b'_');
    text.len() <= SUBDOMAIN_MOST && text.split(['.', '/']).all(is_segment)
}

#[cfg(test)]
mod tests;
