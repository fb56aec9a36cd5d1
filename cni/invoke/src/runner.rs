//! Chooses who runs a plugin: our code in this process when the plugin is built in and no foreign executable stands
//! in its place, else the executable. A link to `orlop-cni` is our own code too.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use cni_types::{ExecError, Invocation, PluginExec};
use serde_json::Value;

use crate::process::ProcessExec;

/// The name of our multi-call executable.
const OURS: &str = "orlop-cni";

/// Runs plugins, built in or not.
pub struct Runner {
    bin_dirs: Vec<PathBuf>,
    builtin: Option<Arc<dyn PluginExec>>,
    process: ProcessExec,
}

impl Runner {
    /// Looks for executables in `bin_dirs`, in their order, and gives each at most `timeout`.
    pub fn new(bin_dirs: Vec<PathBuf>, timeout: Duration, builtin: Option<Arc<dyn PluginExec>>) -> Self {
        Runner {
            bin_dirs,
            builtin,
            process: ProcessExec::new(timeout),
        }
    }

    /// The directories that it looks in.
    pub fn bin_dirs(&self) -> &[PathBuf] {
        &self.bin_dirs
    }

    fn choose(&self, plugin: &str) -> Option<Choice<'_>> {
        let builtin = self.builtin.as_deref().filter(|builtin| builtin.provides(plugin));
        match (find(&self.bin_dirs, plugin), builtin) {
            (Some(path), Some(builtin)) if is_ours(&path) => Some(Choice::Builtin(builtin)),
            (Some(path), _) => Some(Choice::Process(path)),
            (None, Some(builtin)) => Some(Choice::Builtin(builtin)),
            (None, None) => None,
        }
    }
}

enum Choice<'a> {
    Builtin(&'a dyn PluginExec),
    Process(PathBuf),
}

impl PluginExec for Runner {
    fn provides(&self, plugin: &str) -> bool {
        self.choose(plugin).is_some()
    }

    fn is_builtin(&self, plugin: &str) -> bool {
        matches!(self.choose(plugin), Some(Choice::Builtin(_)))
    }

    fn exec(
        &self,
        plugin: &str,
        invocation: &Invocation,
        delegate: &dyn PluginExec,
    ) -> Result<Option<Value>, ExecError> {
        match self.choose(plugin) {
            Some(Choice::Builtin(builtin)) => builtin.exec(plugin, invocation, delegate),
            Some(Choice::Process(path)) => self.process.run(plugin, &path, invocation),
            None => Err(ExecError::NotFound {
                plugin: plugin.to_owned(),
                dirs: self
                    .bin_dirs
                    .iter()
                    .map(|d| d.display().to_string())
                    .collect::<Vec<_>>()
                    .join(":"),
            }),
        }
    }
}

fn find(dirs: &[PathBuf], plugin: &str) -> Option<PathBuf> {
    if plugin.is_empty() || plugin.contains('/') || plugin == "." || plugin == ".." {
        return None;
    }
    dirs.iter().map(|dir| dir.join(plugin)).find(|path| {
        path.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

fn is_ours(path: &Path) -> bool {
    path.canonicalize()
        .is_ok_and(|real| real.file_name().is_some_and(|name| name == OURS))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    struct Bridge;
    impl PluginExec for Bridge {
        fn provides(&self, plugin: &str) -> bool {
            plugin == "bridge"
        }
        fn is_builtin(&self, plugin: &str) -> bool {
            self.provides(plugin)
        }
        fn exec(&self, _: &str, _: &Invocation, _: &dyn PluginExec) -> Result<Option<Value>, ExecError> {
            Ok(None)
        }
    }

    #[test]
    fn a_foreign_executable_wins_over_ours() {
        let dir = tempfile::tempdir().unwrap();
        let runner = Runner::new(
            vec![dir.path().into()],
            Duration::from_secs(1),
            Some(Arc::new(Bridge)),
        );
        assert!(matches!(runner.choose("bridge"), Some(Choice::Builtin(_))));
        assert!(runner.choose("calico").is_none());
        let executable = |name: &str| {
            let path = dir.path().join(name);
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        executable("orlop-cni");
        symlink("orlop-cni", dir.path().join("bridge")).unwrap();
        assert!(matches!(runner.choose("bridge"), Some(Choice::Builtin(_))));
        fs::remove_file(dir.path().join("bridge")).unwrap();
        executable("bridge");
        executable("calico");
        assert!(matches!(runner.choose("bridge"), Some(Choice::Process(_))));
        assert!(runner.provides("calico") && !runner.provides("../calico"));
    }
}
