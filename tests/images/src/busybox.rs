//! Building busybox from the distribution's source package.
//!
//! The packaged static busybox runs applets inside the shell and lacks some that the CRI suite calls, so it is built
//! again with other settings. The source package comes through apt; where the machine's own lists have no source
//! entries, a private apt configuration derived from them does. Nothing of the machine's apt state is changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

use crate::testbed::{Testbed, content_key};

/// What differs from busybox's own default configuration.
const SETTINGS: &[(&str, bool)] = &[
    ("STATIC", true),
    ("PGREP", true),
    ("PIDOF", true),
    ("IPCS", true),
    ("BRCTL", true),
    ("NETSTAT", true),
    // The shell must execute what PATH holds: a spec hides /bin/ls and expects the shell to fail.
    ("FEATURE_PREFER_APPLETS", false),
    ("FEATURE_SH_STANDALONE", false),
    ("FEATURE_SH_NOFORK", false),
    // Doesn't compile with the headers of newer kernels.
    ("TC", false),
    ("FEATURE_TC_INGRESS", false),
];

/// Raised when the recipe changes in a way that [`SETTINGS`] doesn't show.
const RECIPE: u8 = 1;

/// The executable, built unless it was before. The first build takes about a minute.
pub fn ensure(bed: &Testbed, progress: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let mut recipe = vec![RECIPE];
    for (name, on) in SETTINGS {
        recipe.extend(name.bytes());
        recipe.push(u8::from(*on));
    }
    let key = content_key(&[&recipe], &[])?;
    let built = bed.ensure(&format!("busybox-{key}"), |dir| {
        let work = dir.join("work");
        fs::create_dir(&work)?;
        progress("fetching busybox's source package");
        let source = fetch(&work)?;
        progress("building busybox (about a minute, once)");
        configure(&source)?;
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        run(make(&source).arg(format!("-j{jobs}")).arg("busybox"))?;
        fs::copy(source.join("busybox"), dir.join("busybox")).context("make left no busybox")?;
        fs::remove_dir_all(&work).with_context(|| format!("failed to remove `{}`", work.display()))
    })?;
    Ok(built.join("busybox"))
}

/// The names busybox answers to.
pub fn applets(busybox: &Path) -> Result<Vec<String>> {
    let list = run(Command::new(busybox).arg("--list"))?;
    Ok(String::from_utf8_lossy(&list.stdout)
        .lines()
        .map(str::to_owned)
        .collect())
}

fn fetch(work: &Path) -> Result<PathBuf> {
    let sources = work.join("sources");
    let lists = work.join("lists");
    fs::create_dir(&sources)?;
    fs::create_dir_all(lists.join("partial"))?;
    let etc = Path::new("/etc/apt");
    let mut found = 0;
    let parts = fs::read_dir(etc.join("sources.list.d"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path());
    for (n, path) in std::iter::once(etc.join("sources.list")).chain(parts).enumerate() {
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        let (kind, text) = match path.extension().and_then(|e| e.to_str()) {
            Some("list") => ("list", source_entries(&text)),
            Some("sources") => ("sources", source_stanzas(&text)),
            _ => continue,
        };
        if !text.trim().is_empty() {
            fs::write(sources.join(format!("{n}.{kind}")), text)?;
            found += 1;
        }
    }
    ensure!(
        found > 0,
        "no package source with a `main` component below `{}`",
        etc.display()
    );
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.current_dir(work)
            .args([
                "-q",
                "-o",
                "Dir::Etc::sourcelist=/dev/null",
                "-o",
                "APT::Sandbox::User=root",
            ])
            .arg("-o")
            .arg(format!("Dir::Etc::sourceparts={}", sources.display()))
            .arg("-o")
            .arg(format!("Dir::State::lists={}", lists.display()))
            // The cache files of the machine's own lists stay as they are.
            .args(["-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="]);
        apt
    };
    run(apt().arg("update"))?;
    run(apt().args(["source", "--only-source", "busybox"]))?;
    fs::read_dir(work)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.join("applets").is_dir())
        .context("the source package unpacked to no busybox")
}

/// The one-line entries of the distribution itself, turned into entries for sources.
fn source_entries(text: &str) -> String {
    text.lines()
        .filter(|line| line.split_whitespace().any(|word| word == "main"))
        .filter_map(|line| line.trim().strip_prefix("deb "))
        .map(|rest| format!("deb-src {rest}\n"))
        .collect()
}

/// The same for stanzas.
fn source_stanzas(text: &str) -> String {
    text.split("\n\n")
        .filter(|stanza| {
            stanza.lines().any(|line| {
                line.starts_with("Components:") && line.split_whitespace().any(|word| word == "main")
            })
        })
        .map(|stanza| {
            let lines: Vec<&str> = stanza
                .lines()
                .map(|line| {
                    if line.starts_with("Types:") {
                        "Types: deb-src"
                    } else {
                        line
                    }
                })
                .collect();
            lines.join("\n") + "\n\n"
        })
        .collect()
}

fn configure(source: &Path) -> Result<()> {
    run(make(source).arg("defconfig"))?;
    let path = source.join(".config");
    let config = fs::read_to_string(&path)?;
    fs::write(&path, configured(&config))?;
    // Settings that the changed ones bring with them take their defaults.
    run(Command::new("sh")
        .arg("-c")
        .arg("yes '' | make oldconfig")
        .current_dir(source))?;
    let config = fs::read_to_string(&path)?;
    for (name, on) in SETTINGS {
        let is_on = config.lines().any(|line| line == format!("CONFIG_{name}=y"));
        ensure!(is_on == *on, "busybox's configuration didn't take `{name}`");
    }
    Ok(())
}

fn configured(config: &str) -> String {
    let ours = |line: &str| {
        SETTINGS.iter().any(|(name, _)| {
            line.starts_with(&format!("CONFIG_{name}=")) || line == format!("# CONFIG_{name} is not set")
        })
    };
    let mut out: String = config
        .lines()
        .filter(|line| !ours(line))
        .map(|line| format!("{line}\n"))
        .collect();
    for (name, on) in SETTINGS {
        out += &if *on {
            format!("CONFIG_{name}=y\n")
        } else {
            format!("# CONFIG_{name} is not set\n")
        };
    }
    out
}

fn make(source: &Path) -> Command {
    let mut make = Command::new("make");
    // The banner would hold the time of the build.
    make.current_dir(source)
        .env("SOURCE_DATE_EPOCH", "0")
        .env("KCONFIG_NOTIMESTAMP", "1")
        .env("TZ", "UTC");
    make
}

fn run(command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("failed to run {command:?} (`hack/deps` installs it)"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed, {}: {}",
        output.status,
        last_lines(&String::from_utf8_lossy(&output.stderr))
    );
    Ok(output)
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_lists_of_sources() {
        assert_eq!(
            source_entries(
                "# deb http://a b main\ndeb [x=y] http://a b main contrib\ndeb http://c d stable\n"
            ),
            "deb-src [x=y] http://a b main contrib\n"
        );
        let stanzas =
            source_stanzas("Types: deb\nURIs: http://a\nComponents: main\n\nTypes: deb\nComponents: x\n");
        assert_eq!(stanzas, "Types: deb-src\nURIs: http://a\nComponents: main\n\n");
    }

    #[test]
    fn settings_replace_the_defaults() {
        let config =
            configured("CONFIG_TC=y\nCONFIG_TCPSVD=y\n# CONFIG_STATIC is not set\nCONFIG_STATIC_LIBGCC=y\n");
        assert!(
            config.starts_with("CONFIG_TCPSVD=y\nCONFIG_STATIC_LIBGCC=y\nCONFIG_STATIC=y\n"),
            "{config}"
        );
        assert!(config.contains("# CONFIG_TC is not set\n"));
    }
}
