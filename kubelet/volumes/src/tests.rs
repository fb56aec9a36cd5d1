//! Tests of the whole: pods in, directories and mounts out.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use controlplane_api::k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, ConfigMap, Pod, PodCertificateProjection, ResourceFieldSelector, Secret,
    ServiceAccountTokenProjection,
};

use super::*;

struct Nothing;

impl ObjectSource for Nothing {
    fn config_map(&self, _: &str, _: &str) -> Result<Option<Arc<ConfigMap>>, ObjectError> {
        Ok(None)
    }
    fn secret(&self, _: &str, _: &str) -> Result<Option<Arc<Secret>>, ObjectError> {
        Ok(None)
    }
    fn service_account_token(
        &self,
        _: &Pod,
        _: &ServiceAccountTokenProjection,
    ) -> Result<String, ObjectError> {
        Err(ObjectError::new("no tokens"))
    }
    fn cluster_trust_bundle(&self, _: &ClusterTrustBundleProjection) -> Result<Option<Vec<u8>>, ObjectError> {
        Ok(None)
    }
    fn pod_certificate(
        &self,
        _: &Pod,
        _: &str,
        _: usize,
        _: &PodCertificateProjection,
    ) -> Result<PodCertificate, ObjectError> {
        Err(ObjectError::new("no certificates"))
    }
    fn allocatable_memory(&self) -> Result<u64, ObjectError> {
        Ok(1 << 30)
    }
}

impl Downward for Nothing {
    fn field(&self, _: &Pod, path: &str) -> Result<String, ObjectError> {
        Ok(path.to_owned())
    }
    fn resource(&self, _: &Pod, selector: &ResourceFieldSelector) -> Result<String, ObjectError> {
        Ok(selector.resource.clone())
    }
}

pub(crate) fn volumes(root: &Path) -> Volumes {
    let seams = Seams {
        objects: Arc::new(Nothing),
        downward: Arc::new(Nothing),
        now: Box::new(jiff::Timestamp::now),
        plugins: Vec::new(),
    };
    Volumes::new(root, seams).unwrap()
}

pub(crate) fn pod(volumes: &str, mounts: &str) -> Pod {
    let text = format!(
        r#"{{"metadata": {{"name": "p", "namespace": "default", "uid": "u-1"}},
            "spec": {{"containers": [{{"name": "c", "volumeMounts": {mounts}}}], "volumes": {volumes}}}}}"#
    );
    serde_json::from_str(&text).unwrap()
}

fn no_env(_: &str) -> Option<String> {
    None
}

#[test]
fn an_empty_dir_is_made_once_and_goes_with_its_pod() {
    let root = tempfile::tempdir().unwrap();
    let volumes = volumes(root.path());
    let pod = pod(
        r#"[{"name": "work", "emptyDir": {}}, {"name": "idle", "emptyDir": {}}]"#,
        r#"[{"name": "work", "mountPath": "/work", "readOnly": true}]"#,
    );
    assert!(volumes.set_up(&pod).unwrap().is_ready());
    let dir = root.path().join("pods/u-1/volumes/kubernetes.io~empty-dir/work");
    assert_eq!(dir.metadata().unwrap().permissions().mode() & 0o7777, 0o777);
    assert!(!dir.with_file_name("idle").exists());
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::write(dir.join("kept"), "x").unwrap();
    assert!(volumes.set_up(&pod).unwrap().is_ready());
    assert_eq!(std::fs::read(dir.join("kept")).unwrap(), b"x");
    assert_eq!(dir.metadata().unwrap().permissions().mode() & 0o7777, 0o700);
    let mounts = volumes.mounts(&pod, "c", &no_env).unwrap();
    assert_eq!(mounts.len(), 1);
    assert_eq!(mounts[0].source, MountSource::Path(dir.canonicalize().unwrap()));
    assert!(mounts[0].read_only && mounts[0].selinux_relabel);
    assert_eq!(volumes.present().unwrap(), ["u-1"]);
    volumes.tear_down("u-1").unwrap();
    volumes.tear_down("u-1").unwrap();
    assert_eq!(volumes.present().unwrap(), Vec::<String>::new());
}

#[test]
fn what_no_plugin_knows_is_told_in_upstreams_words() {
    let root = tempfile::tempdir().unwrap();
    let volumes = volumes(root.path());
    let pod = pod(
        r#"[{"name": "data", "persistentVolumeClaim": {"claimName": "x"}}]"#,
        r#"[{"name": "data", "mountPath": "/data"}]"#,
    );
    let outcome = volumes.set_up(&pod).unwrap();
    assert_eq!(
        outcome.failed[0].message,
        "failed to get Plugin from volumeSpec for volume \"data\" err=no volume plugin matched"
    );
    assert_eq!(
        outcome.summary().unwrap(),
        "Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[], failed to process \
         volumes=[data]: failed to get Plugin from volumeSpec for volume \"data\" err=no volume plugin matched"
    );
    assert!(matches!(
        volumes.mounts(&pod, "c", &no_env),
        Err(VolumeError::NoVolume { .. })
    ));
}
