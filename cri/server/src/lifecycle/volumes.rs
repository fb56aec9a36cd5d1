//! The `VOLUME`s of an image: folders of the container's own, filled with what the image has there.
//!
//! What is copied comes from the container's root before anything runs in it, by a path that was resolved inside that
//! root; links are copied as links and never followed.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;

use crate::errors::CallError;
use crate::spec::{ImageVolume, resolve_in_image};

/// Deeper folders aren't copied: no image has them.
const MAX_DEPTH: usize = 64;

/// Makes the volumes below `folder`. Blocks.
pub(super) fn make(
    rootfs: &Path,
    folder: &Path,
    image: &ImageConfiguration,
) -> Result<Vec<ImageVolume>, CallError> {
    let Some(paths) = image.config().as_ref().and_then(|c| c.volumes().clone()) else {
        return Ok(Vec::new());
    };
    let mut volumes = Vec::with_capacity(paths.len());
    for (n, path) in paths.iter().enumerate() {
        let place = Path::new(path);
        if !place.is_absolute() || place == Path::new("/") {
            return Err(CallError::Invalid(format!(
                "the image's volume `{path}` is not an absolute path"
            )));
        }
        let host_path = folder.join(n.to_string());
        fs::create_dir_all(&host_path).map_err(CallError::file("make the folder", &host_path))?;
        match resolve_in_image(rootfs, path) {
            Ok(source) if source.is_dir() => copy_folder(&source, &host_path, 0)?,
            // Nothing there, or no folder: an empty volume.
            _ => fs::set_permissions(&host_path, fs::Permissions::from_mode(0o755))
                .map_err(CallError::file("change the mode of", &host_path))?,
        }
        volumes.push(ImageVolume {
            container_path: place.to_owned(),
            host_path,
        });
    }
    Ok(volumes)
}

fn copy_folder(from: &Path, to: &Path, depth: usize) -> Result<(), CallError> {
    if depth > MAX_DEPTH {
        return Ok(());
    }
    let failed = |what| CallError::file(what, from);
    let mut entries: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(from).map_err(failed("list"))? {
        entries.push(entry.map_err(failed("list"))?.path());
    }
    for source in entries {
        let Some(name) = source.file_name() else { continue };
        copy(&source, &to.join(name), depth)?;
    }
    copy_owner(from, to)
}

fn copy(from: &Path, to: &Path, depth: usize) -> Result<(), CallError> {
    let failed = |what| CallError::file(what, from);
    let metadata = fs::symlink_metadata(from).map_err(failed("look at"))?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        fs::create_dir(to).map_err(CallError::file("make the folder", to))?;
        return copy_folder(from, to, depth + 1);
    }
    if kind.is_symlink() {
        let target = fs::read_link(from).map_err(failed("read the link"))?;
        symlink(target, to).map_err(CallError::file("make the link", to))?;
        return lchown(to, Some(metadata.uid()), Some(metadata.gid()))
            .map_err(CallError::file("change the owner of", to));
    }
    if kind.is_file() {
        fs::copy(from, to).map_err(failed("copy"))?;
        return copy_owner(from, to);
    }
    let odd = kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device();
    tracing::debug!(path = %from.display(), odd, "not copied into a volume");
    Ok(())
}

/// Owner first: a change of owner takes set-user-ID bits away.
fn copy_owner(from: &Path, to: &Path) -> Result<(), CallError> {
    let metadata = fs::symlink_metadata(from).map_err(CallError::file("look at", from))?;
    lchown(to, Some(metadata.uid()), Some(metadata.gid()))
        .map_err(CallError::file("change the owner of", to))?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))
        .map_err(CallError::file("change the mode of", to))
}

#[cfg(test)]
mod tests {
    use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder};

    use super::*;

    fn image(volumes: &[&str]) -> ImageConfiguration {
        let volumes: Vec<String> = volumes.iter().map(|&v| v.to_owned()).collect();
        let mut image = ImageConfigurationBuilder::default()
            .rootfs(
                oci_spec::image::RootFsBuilder::default()
                    .typ("layers")
                    .diff_ids(vec![])
                    .build()
                    .unwrap(),
            )
            .build()
            .unwrap();
        image.set_config(Some(ConfigBuilder::default().volumes(volumes).build().unwrap()));
        image
    }

    #[test]
    fn volumes_begin_with_what_the_image_has() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("data/sub")).unwrap();
        fs::write(root.join("data/sub/file"), "x").unwrap();
        fs::set_permissions(root.join("data/sub/file"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("/etc/passwd", root.join("data/link")).unwrap();
        let volumes = make(&root, &dir.path().join("volumes"), &image(&["/data", "/none"])).unwrap();
        assert_eq!(volumes.len(), 2);
        let data = volumes
            .iter()
            .find(|v| v.container_path == Path::new("/data"))
            .unwrap();
        let file = data.host_path.join("sub/file");
        assert_eq!(fs::read_to_string(&file).unwrap(), "x");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o640);
        let link = fs::read_link(data.host_path.join("link")).unwrap();
        assert_eq!(link, Path::new("/etc/passwd"), "a link is copied, not followed");
        assert!(make(&root, &dir.path().join("v2"), &image(&["data"])).is_err());
        assert!(
            make(&root, &dir.path().join("v3"), &image(&[]))
                .unwrap()
                .is_empty()
        );
    }
}
