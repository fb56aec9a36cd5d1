//! The hash of a container's spec: tells whether a running container is still the one that the spec asks for.
//!
//! As upstream since 1.31 it covers only what may change in a pod's life without a resize: name and image. So a kubelet that
//! knows new fields finds the containers of an older one unchanged.

use controlplane_api::k8s_openapi::api::core::v1::Container;

/// FNV-1a over name and image. Stable for ever: containers carry it across upgrades.
pub fn container_hash(container: &Container) -> u64 {
    let image = container.image.as_deref().unwrap_or_default();
    let bytes = container.name.bytes().chain([0]).chain(image.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
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
        assert_eq!(container_hash(&web), 0x1b02_ace9_941c_fe44);
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
