//! A disk that fills up: a clear error, nothing left, and a pull that works when there is room again.

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_remount};

use crate::testing::{Compression, FakeRegistry, open_at, tar_of};
use crate::{PullErrorKind, SnapshotOptions};

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    let thread = std::thread::spawn(move || {
        const CLONE_NEWNS: i32 = 0x20000;
        const CLONE_FS: i32 = 0x200;
        oci_runtime_sys::clone::unshare(CLONE_NEWNS | CLONE_FS).unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        mount("tmpfs", &root, "tmpfs", MountFlags::empty(), c"size=3m").unwrap();
        // Threads that this runtime starts live in the namespace of this one.
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(async {
                let registry = FakeRegistry::start();
                let big = "0123456789abcdef".repeat(1 << 18);
                // Too large when unpacked, and too large as it is.
                let unpacked = registry.push("x", "1", &[tar_of(&[("big", &big)])], Compression::Gzip);
                registry.push("y", "1", &[tar_of(&[("big", &big)])], Compression::Plain);
                let images = open_at(&root).await;
                for name in ["x:1", "y:1"] {
                    let error = images.pull(&registry.name(name), None).await.unwrap_err();
                    assert_eq!(
                        error.kind(),
                        PullErrorKind::NoSpace,
                        "{}",
                        crate::disk::Chain(&error)
                    );
                    assert!(images.list().is_empty());
                }
                for dir in ["ingest", "layers"] {
                    assert!(crate::disk::names(&root.join(dir)).unwrap().is_empty(), "{dir}");
                }
                mount_remount(&root, MountFlags::empty(), c"size=40m").unwrap();
                let image = images.pull(&registry.name("x:1"), None).await.unwrap();
                assert_eq!(image.id, unpacked.id);
                images
                    .prepare("key", &image.id, SnapshotOptions::default())
                    .await
                    .unwrap();
            });
    });
    thread.join().unwrap();
}
