//! Good and bad names, and the words for the bad ones.

use super::*;

#[test]
fn good_names_are_good() {
    for name in ["a", "0", "my-name", "a--b", &"a".repeat(63)] {
        assert_eq!(dns_label(name), [""; 0], "{name}");
    }
    for name in ["a.b", "a-b.0", &vec!["a"; 127].join(".")] {
        assert_eq!(dns_subdomain(name), [""; 0], "{name}");
    }
    for name in ["a", "A.b_c-d", "example.com/Name", "x/y"] {
        assert_eq!(qualified_name(name), [""; 0], "{name}");
    }
    for value in ["", "a", "A_b.c-9"] {
        assert_eq!(label_value(value), [""; 0], "{value}");
    }
    for name in ["http", "a1-b2", "9p"] {
        assert_eq!(port_name(name), [""; 0], "{name}");
    }
    assert_eq!(dns_subdomain_with_underscores("_sip._tcp.a_b.c"), [""; 0]);
    assert_eq!(environment_variable("a b:c-1"), [""; 0]);
    assert_eq!(prefix_of_dns_subdomain("web-"), [""; 0]);
    assert_eq!(config_key(".dot_Key-1"), [""; 0]);
    assert!(is_sysctl("net.ipv4/ip_forward") && !is_sysctl("net..a") && !is_sysctl("Net.a"));
}

#[test]
fn bad_names_are_refused_in_upstreams_words() {
    assert_eq!(dns_label("a.b"), ["must not contain dots"]);
    assert_eq!(
        dns_label("Web"),
        [
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
          end with an alphanumeric character (e.g. 'my-name', or '123-abc', regex used for validation is \
          '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
        ]
    );
    assert_eq!(dns_label(&"a".repeat(64)), ["must be no more than 63 characters"]);
    assert_eq!(
        dns_subdomain("a..b"),
        [
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
          start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
          '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
        ]
    );
    assert_eq!(
        qualified_name("/-a"),
        [
            "prefix part must be non-empty",
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
          alphanumeric character (e.g. 'MyName', or 'my.name', or '123-abc', regex used for validation is \
          '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
        ]
    );
    assert!(qualified_name("a/b/c")[0].starts_with("a valid label key must consist of"));
    assert!(qualified_name("a/b/c")[0].ends_with("prefix and '/' (e.g. 'example.com/MyName')"));
    assert_eq!(qualified_name("").len(), 2);
    assert!(
        label_value("-a")[0]
            .ends_with("regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')")
    );
    assert_eq!(port_number(0), ["must be between 1 and 65535, inclusive"]);
    assert_eq!(
        port_name("-1--1-and-much-longer-"),
        [
            "must be no more than 15 characters",
            "must not contain consecutive hyphens",
            "must not begin or end with a hyphen"
        ]
    );
    assert_eq!(user_or_group(-1), ["must be between 0 and 2147483647, inclusive"]);
    assert_eq!(
        environment_variable("a=b"),
        ["a valid environment variable name must consist only of printable ASCII characters other than '='"]
    );
    assert_eq!(config_key("..a"), ["must not start with '..'"]);
    assert_eq!(config_key("..").len(), 1);
    assert_eq!(http_header("a b").len(), 1);
    assert_eq!(prefix_of_dns_subdomain("-").len(), 1);
}
