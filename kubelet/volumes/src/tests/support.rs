//! Objects, pods and namespaces for tests.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use controlplane_api::k8s_openapi::ByteString;
use controlplane_api::k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, ConfigMap, Pod, PodCertificateProjection, ResourceFieldSelector, Secret,
    ServiceAccountTokenProjection,
};
use oci_runtime_sys::mount::{move_to, set_top_propagation};

use crate::mount::{Tmpfs, tmpfs};
use crate::{Downward, ObjectError, ObjectSource, PodCertificate, Seams, Volumes};

/// Objects by name, which tests change.
#[derive(Default)]
pub(crate) struct Objects {
    pub(crate) maps: Mutex<BTreeMap<String, Arc<ConfigMap>>>,
    pub(crate) secrets: Mutex<BTreeMap<String, Arc<Secret>>>,
}

impl Objects {
    pub(crate) fn put_map(&self, name: &str, data: &[(&str, &str)]) {
        let data = data.iter().map(|(key, value)| ((*key).into(), (*value).into()));
        let map = ConfigMap {
            data: Some(data.collect()),
            ..ConfigMap::default()
        };
        self.maps.lock().unwrap().insert(name.into(), Arc::new(map));
    }

    pub(crate) fn put_secret(&self, name: &str, data: &[(&str, &str)]) {
        let data = data
            .iter()
            .map(|(key, value)| ((*key).into(), ByteString(value.as_bytes().to_vec())));
        let secret = Secret {
            data: Some(data.collect()),
            ..Secret::default()
        };
        self.secrets.lock().unwrap().insert(name.into(), Arc::new(secret));
    }
}

impl ObjectSource for Objects {
    fn config_map(&self, _: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, ObjectError> {
        Ok(self.maps.lock().unwrap().get(name).cloned())
    }
    fn secret(&self, _: &str, name: &str) -> Result<Option<Arc<Secret>>, ObjectError> {
        Ok(self.secrets.lock().unwrap().get(name).cloned())
    }
    fn service_account_token(
        &self,
        _: &Pod,
        projection: &ServiceAccountTokenProjection,
    ) -> Result<String, ObjectError> {
        match projection.audience.as_deref() {
            Some("nobody") => Err(ObjectError::because("no token", std::io::Error::other("refused"))),
            audience => Ok(format!("token for {}", audience.unwrap_or("the API"))),
        }
    }
    fn cluster_trust_bundle(
        &self,
        projection: &ClusterTrustBundleProjection,
    ) -> Result<Option<Vec<u8>>, ObjectError> {
        Ok((projection.name.as_deref() == Some("roots")).then(|| b"PEM".to_vec()))
    }
    fn pod_certificate(
        &self,
        _: &Pod,
        volume: &str,
        source: usize,
        _: &PodCertificateProjection,
    ) -> Result<PodCertificate, ObjectError> {
        Ok(PodCertificate {
            key: format!("key of {volume} {source}\n").into_bytes(),
            chain: b"chain\n".to_vec(),
        })
    }
    fn allocatable_memory(&self) -> Result<u64, ObjectError> {
        Ok(64 << 20)
    }
}

/// A downward API that says what it was asked for.
pub(crate) struct Asked;

impl Downward for Asked {
    fn field(&self, pod: &Pod, path: &str) -> Result<String, ObjectError> {
        match path {
            "metadata.labels" => Ok(pod
                .metadata
                .labels
                .iter()
                .flatten()
                .rev()
                .map(|(key, value)| format!("{key}=\"{value}\""))
                .collect::<Vec<_>>()
                .join("\n")),
            "nonsense" => Err(ObjectError::new("unsupported fieldPath: nonsense")),
            path => Ok(path.to_owned()),
        }
    }
    fn resource(&self, _: &Pod, selector: &ResourceFieldSelector) -> Result<String, ObjectError> {
        Ok(selector.resource.clone())
    }
}

pub(crate) fn volumes(root: &Path) -> Volumes {
    volumes_with(root, &Arc::default())
}

pub(crate) fn volumes_with(root: &Path, objects: &Arc<Objects>) -> Volumes {
    let seams = Seams {
        objects: Arc::clone(objects) as Arc<dyn ObjectSource>,
        downward: Arc::new(Asked),
        now: Box::new(jiff::Timestamp::now),
        plugins: Vec::new(),
    };
    Volumes::new(root, seams).unwrap()
}

/// A pod `u-1` with one container `c`.
pub(crate) fn pod(volumes: &str, mounts: &str) -> Pod {
    let text = format!(
        r#"{{"metadata": {{"name": "p", "namespace": "default", "uid": "u-1", "labels": {{"a": "1", "b": "2"}}}},
            "spec": {{"containers": [{{"name": "c", "volumeMounts": {mounts}}}], "volumes": {volumes}}}}}"#
    );
    serde_json::from_str(&text).unwrap()
}

/// A pod with one volume `v`, mounted at `/v`.
pub(crate) fn pod_of(source: &str) -> Pod {
    pod(
        &format!(r#"[{{"name": "v", {source}}}]"#),
        r#"[{"name": "v", "mountPath": "/v"}]"#,
    )
}

pub(crate) fn with_group(mut pod: Pod, group: i64) -> Pod {
    let spec = pod.spec.as_mut().unwrap();
    let context = spec.security_context.get_or_insert_default();
    context.fs_group = Some(group);
    pod
}

pub(crate) fn no_env(_: &str) -> Option<String> {
    None
}

/// The directory of volume `v` of pod `u-1`.
pub(crate) fn dir_of(root: &Path, plugin: &str) -> PathBuf {
    root.join("pods/u-1/volumes").join(plugin).join("v")
}

pub(crate) fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o7777
}

/// The messages of the volumes that failed.
pub(crate) fn failures(volumes: &Volumes, pod: &Pod) -> Vec<String> {
    let outcome = volumes.set_up(pod).unwrap();
    outcome.failed.into_iter().map(|one| one.message).collect()
}

/// Mounts a file system in memory, as somebody else would.
pub(crate) fn mount_tmpfs(at: &Path) {
    let mount = tmpfs(Tmpfs {
        size: Some(1 << 20),
        mode: 0o755,
    });
    let target = oci_runtime_sys::open::place(at).unwrap();
    move_to(mount.unwrap().as_fd(), target.as_fd()).unwrap();
}

/// Runs a test in a mount namespace of its own, with an empty directory for the kubelet's root.
pub(crate) fn in_namespace(run: impl FnOnce(&Path) + Send + 'static) {
    const CLONE_NEWNS: i32 = 0x20000;
    const CLONE_FS: i32 = 0x200;
    const MS_PRIVATE: u64 = 1 << 18;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let thread = std::thread::spawn(move || {
        oci_runtime_sys::clone::unshare(CLONE_NEWNS | CLONE_FS).expect("these tests need root");
        set_top_propagation(Path::new("/"), MS_PRIVATE).unwrap();
        run(&root);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
