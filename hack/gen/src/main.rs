//! Makes the checked-in generated files, and checks that they say what upstream says.
//!
//! `hack-gen cri FILE` takes the facts (names, numbers, types) of upstream's CRI `api.proto` and writes
//! `cri/api/proto/runtime/v1/api.proto` and the Rust code made from it; `hack-gen nri FILE` does the same for NRI, in
//! `cri/nri`. `hack-gen check-cri FILE` and `check-nri FILE` compare descriptors: what is checked in against FILE, and
//! the generated code against what is checked in. FILE comes from the Go module `k8s.io/cri-api`, or
//! `github.com/containerd/nri`, at the version in `hack/versions.env`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use prost_types::FileDescriptorSet;

/// One interface that others define.
struct Interface {
    name: &'static str,
    module: &'static str,
    /// Where its definition is checked in.
    proto_dir: &'static str,
    proto_file: &'static str,
    /// The code made from it, and how the generator calls it.
    rust_file: &'static str,
    generated: &'static str,
    /// With tonic's clients and servers, and unordered maps; without them, messages alone.
    grpc: bool,
}

const CRI: Interface = Interface {
    name: "CRI v1",
    module: "k8s.io/cri-api",
    proto_dir: "cri/api/proto",
    proto_file: "runtime/v1/api.proto",
    rust_file: "cri/api/src/v1.rs",
    generated: "runtime.v1.rs",
    grpc: true,
};

const NRI: Interface = Interface {
    name: "NRI v1alpha1",
    module: "github.com/containerd/nri",
    proto_dir: "cri/nri/proto",
    proto_file: "nri/v1alpha1/api.proto",
    rust_file: "cri/nri/src/v1alpha1.rs",
    generated: "nri.pkg.api.v1alpha1.rs",
    grpc: false,
};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["cri", upstream] => generate(&CRI, Path::new(upstream)),
        ["check-cri", upstream] => check(&CRI, Path::new(upstream)),
        ["nri", upstream] => generate(&NRI, Path::new(upstream)),
        ["check-nri", upstream] => check(&NRI, Path::new(upstream)),
        _ => bail!("usage: hack-gen cri|nri|check-cri|check-nri FILE"),
    }
}

fn generate(interface: &Interface, upstream: &Path) -> Result<()> {
    let text =
        fs::read_to_string(upstream).with_context(|| format!("failed to read `{}`", upstream.display()))?;
    let ours = Path::new(interface.proto_dir).join(interface.proto_file);
    fs::create_dir_all(ours.parent().context("a proto path has a parent")?)?;
    fs::write(&ours, facts_only(interface, &text))
        .with_context(|| format!("failed to write `{}`", ours.display()))?;
    let file = interface.rust_file;
    fs::write(file, rust_code(interface)?).with_context(|| format!("failed to write `{file}`"))
}

fn check(interface: &Interface, upstream: &Path) -> Result<()> {
    let Interface {
        proto_dir,
        proto_file,
        rust_file,
        ..
    } = interface;
    let dir = tempdir()?;
    let copy = dir.join(proto_file);
    fs::create_dir_all(copy.parent().context("a proto path has a parent")?)?;
    fs::copy(upstream, &copy).with_context(|| format!("failed to read `{}`", upstream.display()))?;
    let theirs = descriptors(interface, &dir);
    fs::remove_dir_all(&dir)?;
    ensure!(
        theirs?.encode_to_vec() == descriptors(interface, Path::new(proto_dir))?.encode_to_vec(),
        "{proto_dir}/{proto_file} differs from `{}`: run `cargo xtask gen`",
        upstream.display()
    );
    ensure!(
        fs::read_to_string(rust_file)? == rust_code(interface)?,
        "{rust_file} is stale: run `cargo xtask gen`"
    );
    println!("{proto_file}: descriptors equal, generated code up to date");
    Ok(())
}

fn tempdir() -> Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("hack-gen-{}", std::process::id()));
    fs::create_dir_all(&dir).with_context(|| format!("failed to create `{}`", dir.display()))?;
    Ok(dir)
}

/// The file's descriptors without source positions, so that layout and comments don't count.
fn descriptors(interface: &Interface, dir: &Path) -> Result<FileDescriptorSet> {
    let mut compiler = protox::Compiler::new([dir])?;
    compiler.include_source_info(false).include_imports(true);
    Ok(compiler.open_file(interface.proto_file)?.file_descriptor_set())
}

fn rust_code(interface: &Interface) -> Result<String> {
    let out = tempdir()?;
    let facts = descriptors(interface, Path::new(interface.proto_dir))?;
    let generated = if interface.grpc {
        tonic_prost_build::configure()
            .out_dir(&out)
            .build_transport(true)
            .compile_fds(facts)
    } else {
        // Maps with an order, so that what is sent is the same each time.
        prost_build::Config::new()
            .out_dir(&out)
            .btree_map(["."])
            .compile_fds(facts)
    };
    let generated = generated
        .context("failed to generate Rust")
        .and_then(|()| Ok(fs::read_to_string(out.join(interface.generated))?));
    fs::remove_dir_all(&out)?;
    generated
}

/// The declarations alone: comments dropped, blank runs folded to one line, our own header.
fn facts_only(interface: &Interface, text: &str) -> String {
    let Interface { name, module, .. } = interface;
    let mut out = format!(
        "// Names, numbers and types of {name}, made by `cargo xtask gen` from the Go module {module}.\n"
    );
    let mut in_block = false;
    for line in text.lines() {
        let mut rest = line;
        let mut kept = String::new();
        while !rest.is_empty() {
            if in_block {
                match rest.find("*/") {
                    Some(end) => {
                        in_block = false;
                        rest = &rest[end + 2..];
                    }
                    None => rest = "",
                }
            } else {
                match (rest.find("//"), rest.find("/*")) {
                    (Some(l), b) if b.is_none_or(|b| l < b) => {
                        // A `//` inside a string literal is not a comment; options here hold none.
                        kept.push_str(&rest[..l]);
                        rest = "";
                    }
                    (_, Some(b)) => {
                        kept.push_str(&rest[..b]);
                        in_block = true;
                        rest = &rest[b + 2..];
                    }
                    _ => {
                        kept.push_str(rest);
                        rest = "";
                    }
                }
            }
        }
        let kept = kept.trim_end();
        if !kept.is_empty() {
            if kept.starts_with(|c: char| c.is_ascii_alphabetic()) && !out.ends_with("\n\n") {
                out.push('\n');
            }
            out.push_str(kept);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{CRI, facts_only};

    #[test]
    fn comments_of_both_kinds_are_dropped() {
        let got = facts_only(&CRI, "/* a\n b */\nmessage A { // x\n  /* y */ int32 b = 1;\n}\n");
        assert!(got.ends_with("message A {\n   int32 b = 1;\n}\n"), "{got}");
    }
}
