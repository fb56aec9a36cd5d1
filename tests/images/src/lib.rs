//! The images that the tests run, made without internet access to a registry and without Docker.
//!
//! Two programs are built, once for each content of their sources, below `target/testbed`: the test host
//! (`tests/host`, a static Rust executable) and busybox (from the distribution's source package, see [`busybox`]).
//! From them [`set`] lists every image that some test wants, by the reference it will be pulled by, and [`layout`]
//! writes all of them into one OCI image layout. Nothing in it depends on time, names of people or the order of a
//! folder, so that the same sources give the same digests. [`push`] sends a layout to a registry that speaks plain
//! HTTP on the loopback interface; the host part of a reference is dropped there, because the server under test is
//! told to use that registry as the mirror of every host.

pub mod busybox;
pub mod host;
mod layer;
pub mod layout;
pub mod push;
pub mod registry;
pub mod set;
mod testbed;

use std::path::PathBuf;

use anyhow::Result;

pub use testbed::{Testbed, content_key};

/// What decides about the images' bytes, as it was when this was compiled: the files may have changed since.
const SOURCES: [&[u8]; 4] = [
    include_bytes!("layer.rs"),
    include_bytes!("layout.rs"),
    include_bytes!("registry.rs"),
    include_bytes!("set.rs"),
];

/// The layout that holds every image, built if it isn't there yet. Takes a few milliseconds when it is.
pub fn ensure_layout(progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let bed = Testbed::open()?;
    let busybox = busybox::ensure(&bed, progress)?;
    let programs = set::Programs {
        busybox: std::fs::read(&busybox)?,
        applets: busybox::applets(&busybox)?,
        test_host: std::fs::read(host::ensure(&bed, progress)?)?,
    };
    let mut contents: Vec<&[u8]> = vec![&programs.busybox, &programs.test_host];
    contents.extend(SOURCES);
    let key = content_key(&contents, &[])?;
    bed.ensure(&format!("layout-{key}"), |dir| {
        progress("writing the image layout");
        layout::write(dir, &set::all(&programs)?)
    })
}

/// The storage folder of a registry that has every image, for [`registry::config`].
pub fn ensure_registry(progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let layout = ensure_layout(progress)?;
    let name = layout
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .replace("layout", "registry");
    Testbed::open()?.ensure(&name, |dir| registry::write(dir, &layout))
}
