//! Objects that pods refer to, as the sources of a node without an API server name them.

use std::collections::BTreeMap;
use std::sync::Arc;

use controlplane_api::k8s_openapi::api::core::v1::{ConfigMap, Secret};
use controlplane_api::k8s_openapi::api::node::v1::RuntimeClass;

/// Namespace and name.
type Key = (String, String);

/// ConfigMaps, Secrets and RuntimeClasses.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Objects {
    config_maps: BTreeMap<Key, Arc<ConfigMap>>,
    secrets: BTreeMap<Key, Arc<Secret>>,
    runtime_classes: BTreeMap<String, Arc<RuntimeClass>>,
}

impl Objects {
    /// Adds a ConfigMap; false when there is one of that name.
    pub fn add_config_map(&mut self, object: ConfigMap) -> bool {
        let key = key(
            object.metadata.namespace.as_deref(),
            object.metadata.name.as_deref(),
        );
        self.config_maps.insert(key, Arc::new(object)).is_none()
    }

    /// Adds a Secret, its `stringData` turned into `data` as an API server does; false when there is one of that name.
    pub fn add_secret(&mut self, mut object: Secret) -> bool {
        let key = key(
            object.metadata.namespace.as_deref(),
            object.metadata.name.as_deref(),
        );
        if let Some(strings) = object.string_data.take() {
            let data = object.data.get_or_insert_default();
            for (name, text) in strings {
                data.insert(name, controlplane_api::k8s_openapi::ByteString(text.into_bytes()));
            }
        }
        self.secrets.insert(key, Arc::new(object)).is_none()
    }

    /// Adds a RuntimeClass; false when there is one of that name.
    pub fn add_runtime_class(&mut self, object: RuntimeClass) -> bool {
        let name = object.metadata.name.clone().unwrap_or_default();
        self.runtime_classes.insert(name, Arc::new(object)).is_none()
    }

    /// A ConfigMap.
    pub fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<ConfigMap>> {
        self.config_maps.get(&key(Some(namespace), Some(name))).cloned()
    }

    /// A Secret.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Secret>> {
        self.secrets.get(&key(Some(namespace), Some(name))).cloned()
    }

    /// A RuntimeClass.
    pub fn runtime_class(&self, name: &str) -> Option<Arc<RuntimeClass>> {
        self.runtime_classes.get(name).cloned()
    }

    /// Adds what another source names; what is there already stays.
    pub fn merge(&mut self, other: &Self) {
        for (key, object) in &other.config_maps {
            self.config_maps
                .entry(key.clone())
                .or_insert_with(|| object.clone());
        }
        for (key, object) in &other.secrets {
            self.secrets.entry(key.clone()).or_insert_with(|| object.clone());
        }
        for (name, object) in &other.runtime_classes {
            self.runtime_classes
                .entry(name.clone())
                .or_insert_with(|| object.clone());
        }
    }
}

fn key(namespace: Option<&str>, name: Option<&str>) -> Key {
    let namespace = namespace
        .filter(|namespace| !namespace.is_empty())
        .unwrap_or("default");
    (namespace.to_owned(), name.unwrap_or_default().to_owned())
}
