//! The seam for kinds of volumes that aren't built in.

use std::path::Path;
use std::sync::{Arc, Mutex};

use controlplane_api::k8s_openapi::api::core::v1::Volume;

use super::*;
use crate::{
    Attributes, GroupOwnership, MountSource, PluginError, Seams, SetUp, Source, TearDown, VolumePlugin,
    Volumes,
};

/// A driver that says what it was asked for; its volumes lie one level deeper, as CSI's do.
#[derive(Default)]
struct Driver {
    calls: Mutex<Vec<String>>,
    broken: Mutex<bool>,
}

impl VolumePlugin for Driver {
    fn name(&self) -> &'static str {
        "example.org/driver"
    }
    fn supports(&self, volume: &Volume) -> bool {
        volume.csi.is_some()
    }
    fn set_up(&self, request: &SetUp<'_>) -> Result<bool, PluginError> {
        if *self.broken.lock().unwrap() {
            return Err(PluginError::Told("the driver is broken".to_owned()));
        }
        let group = GroupOwnership {
            group: 5,
            read_only: false,
            on_root_mismatch: true,
        };
        assert_eq!(request.group, Some(group));
        assert!(request.host.objects().allocatable_memory().is_ok());
        let made = request.dir.join("mount");
        std::fs::create_dir_all(&made).map_err(PluginError::kernel("make", &made))?;
        self.calls
            .lock()
            .unwrap()
            .push(format!("up {} {}", request.uid, request.volume.name));
        Ok(true)
    }
    fn refreshes(&self) -> bool {
        true
    }
    fn tear_down(&self, request: &TearDown<'_>) -> Result<(), PluginError> {
        if *self.broken.lock().unwrap() {
            return Err(PluginError::Told("the driver is broken".to_owned()));
        }
        std::fs::remove_dir_all(request.dir).map_err(PluginError::kernel("remove", request.dir))?;
        self.calls
            .lock()
            .unwrap()
            .push(format!("down {} {}", request.uid, request.name));
        Ok(())
    }
    fn source(&self, _volume: &Volume, dir: &Path) -> Source {
        Source::Path(dir.join("mount"))
    }
    fn attributes(&self, _volume: &Volume) -> Attributes {
        Attributes {
            read_only: true,
            relabel: false,
        }
    }
}

#[test]
fn a_plugin_of_somebody_else_sets_up_refreshes_and_tears_down() {
    let root = tempfile::tempdir().unwrap();
    let driver = Arc::new(Driver::default());
    let seams = Seams {
        objects: Arc::new(Objects::default()),
        downward: Arc::new(Asked),
        now: Box::new(jiff::Timestamp::now),
        plugins: vec![Arc::clone(&driver) as Arc<dyn VolumePlugin>],
    };
    let volumes = Volumes::new(root.path(), seams).unwrap();
    let mut pod = with_group(pod_of(r#""csi": {"driver": "x"}"#), 5);
    let context = pod.spec.as_mut().unwrap().security_context.as_mut().unwrap();
    context.fs_group_change_policy = Some("OnRootMismatch".to_owned());
    assert_eq!(failures(&volumes, &pod), Vec::<String>::new());
    assert!(volumes.refresh(&pod).unwrap().changed);
    let mounts = volumes.mounts(&pod, "c", &no_env).unwrap();
    let place = dir_of(root.path(), "example.org~driver").join("mount");
    assert_eq!(mounts[0].source, MountSource::Path(place.canonicalize().unwrap()));
    assert!(mounts[0].read_only && !mounts[0].selinux_relabel);
    *driver.broken.lock().unwrap() = true;
    let message = "MountVolume.SetUp failed for volume \"v\" : the driver is broken";
    let outcome = volumes.set_up(&pod).unwrap();
    assert_eq!(outcome.failed[0].message, message);
    assert_eq!(
        outcome.summary().unwrap(),
        "Unable to attach or mount volumes: unmounted volumes=[v], unattached volumes=[], failed to process \
         volumes=[]: context deadline exceeded"
    );
    // What a driver can't take away stays, and is tried again.
    let error = volumes.tear_down("u-1").unwrap_err();
    assert_eq!(
        error.told(),
        "failed to tear down volume \"v\" of pod u-1: the driver is broken"
    );
    assert!(place.exists());
    *driver.broken.lock().unwrap() = false;
    volumes.tear_down("u-1").unwrap();
    assert_eq!(volumes.present().unwrap(), Vec::<String>::new());
    assert_eq!(
        *driver.calls.lock().unwrap(),
        ["up u-1 v", "up u-1 v", "down u-1 v"]
    );
}
