//! The hash of a container's spec: tells whether a running container is still the one that the spec asks for.
//!
//! As upstream since 1.31 it covers only what may change in a pod's life without a resize: name and image. So a kubelet that
//! knows new fields finds the containers of an older one unchanged; and as the number is upstream's too, containers stay
//! when one kubelet takes over from the other.

use std::collections::BTreeMap;

use controlplane_api::k8s_openapi::api::core::v1::Container;

/// A 32-bit FNV-1a over name and image: over the bytes of their JSON, as Go prints them. Stable for ever: containers carry
/// it across upgrades.
pub fn container_hash(container: &Container) -> u64 {
    let fields: BTreeMap<&str, &str> = BTreeMap::from([
        ("image", container.image.as_deref().unwrap_or_default()),
        ("name", &container.name),
    ]);
    let mut json = serde_json::to_string(&fields).unwrap_or_default();
    for (plain, escaped) in [
        ('<', "\\u003c"),
        ('>', "\\u003e"),
        ('&', "\\u0026"),
        ('\u{2028}', "\\u2028"),
        ('\u{2029}', "\\u2029"),
    ] {
        if json.contains(plain) {
            json = json.replace(plain, escaped);
        }
    }
    let bytes: Vec<String> = json.bytes().map(|byte| byte.to_string()).collect();
    let printed = format!("([]uint8)[{}]", bytes.join(" "));
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    u64::from(printed.bytes().fold(0x811c_9dc5, step))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str, image: &str) -> Container {
        Container {
            name: name.to_owned(),
            image: Some(image.to_owned()),
            ..Default::default()
        }
    }

    #[test]
    fn only_name_and_image_count_and_the_value_never_changes() {
        let web = container("web", "nginx:1");
        assert_eq!(container_hash(&web), 0x8556_27a5);
        assert_eq!(
            container_hash(&web),
            container_hash(&Container {
                tty: Some(true),
                ..web.clone()
            })
        );
        assert_ne!(container_hash(&web), container_hash(&container("web", "nginx:2")));
        assert_ne!(
            container_hash(&container("ab", "c")),
            container_hash(&container("a", "bc"))
        );
    }
}
