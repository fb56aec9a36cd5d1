//! The shim's executable, out of containers' reach.
//!
//! A container that gets hold of a process of the host's, as CVE-2019-5736 did through `/proc/<pid>/exe`, could
//! write to the file that it was executed from. So shims are executed from a file that can't be written: from an
//! overlay mount of the executable's folder that has lower layers only, and that is mounted nowhere. Made once per
//! daemon; it shares the real file's pages. Where overlays can't be made, a sealed copy in memory does.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use oci_runtime_sys::mount::FsContext;
use oci_runtime_sys::open::openat2;
use oci_runtime_sys::process::{memfd, seal};

/// `MOUNT_ATTR_RDONLY`, `_NOSUID` and `_NODEV`.
const ATTRIBUTES: u64 = 0x1 | 0x2 | 0x4;

/// An executable that nobody can write to.
#[derive(Debug)]
pub struct ShimImage {
    program: OwnedFd,
    kind: ImageKind,
}

/// How the executable is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// A read-only overlay.
    Overlay,
    /// A sealed copy in memory.
    Sealed,
}

/// Why there is no protected executable.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The shim isn't where it should be.
    #[error("failed to open the shim's executable `{path}`")]
    Open {
        /// The executable.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It can't be copied to memory, and overlays can't be made either.
    #[error("failed to seal a copy of `{path}` in memory, after an overlay failed ({overlay})")]
    Seal {
        /// The executable.
        path: PathBuf,
        /// Why there is no overlay.
        overlay: io::Error,
        /// Why there is no copy.
        #[source]
        source: io::Error,
    },
}

impl ShimImage {
    /// Protects the executable at `path`. `empty` is a folder that is made when it is missing, and stays empty.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn new(path: &Path, empty: &Path) -> Result<Self, ImageError> {
        let open = |source| ImageError::Open {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(open)?;
        match over(path, empty) {
            Ok(program) => Ok(Self {
                program,
                kind: ImageKind::Overlay,
            }),
            Err(overlay) => {
                tracing::warn!(path = %path.display(), error = %overlay, "no overlay of the shim's executable: copying it");
                Self::sealed(file).map_err(|source| ImageError::Seal {
                    path: path.to_owned(),
                    overlay,
                    source,
                })
            }
        }
    }

    /// A sealed copy in memory.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sealed(mut file: File) -> io::Result<Self> {
        let mut copy = File::from(memfd("orlop-shim")?);
        io::copy(&mut file, &mut copy)?;
        seal(copy.as_fd())?;
        Ok(Self {
            program: copy.into(),
            kind: ImageKind::Sealed,
        })
    }

    /// How it's protected.
    pub fn kind(&self) -> ImageKind {
        self.kind
    }

    /// The path to execute, valid in this process and its forks.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.program.as_raw_fd()).into()
    }
}

fn over(path: &Path, empty: &Path) -> io::Result<OwnedFd> {
    let path = path.canonicalize()?;
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // Through descriptors, so that no character of a path means anything to overlayfs.
    let folder = File::open(folder)?;
    // An overlay without an upper layer needs two lower ones.
    std::fs::create_dir_all(empty)?;
    let empty = File::open(empty)?;
    let context = FsContext::open("overlay")?;
    let lower = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
    context.string("lowerdir", &format!("{}:{}", lower(&folder), lower(&empty)))?;
    context.create()?;
    let mount = context.mount(ATTRIBUTES)?;
    let flags = nix::libc::O_PATH | nix::libc::O_CLOEXEC | nix::libc::O_NOFOLLOW;
    openat2(mount.as_fd(), Path::new(name), flags, 0, 0)
}
