//! Makes the checked-in generated files, and checks that they say what upstream says.
//!
//! `hack-gen cri FILE` takes the facts (names, numbers, types) of upstream's CRI `api.proto` and writes
//! `cri/api/proto/runtime/v1/api.proto` and the Rust code made from it. `hack-gen check-cri FILE` compares
//! descriptors: what is checked in against FILE, and the generated code against what is checked in.
//! FILE comes from the Go module `k8s.io/cri-api` at the version in `hack/versions.env`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use prost_types::FileDescriptorSet;

const PROTO_DIR: &str = "cri/api/proto";
const PROTO_FILE: &str = "runtime/v1/api.proto";
const RUST_FILE: &str = "cri/api/src/v1.rs";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["cri", upstream] => generate_cri(Path::new(upstream)),
        ["check-cri", upstream] => check_cri(Path::new(upstream)),
        _ => bail!("usage: hack-gen cri FILE | check-cri FILE"),
    }
}

fn generate_cri(upstream: &Path) -> Result<()> {
    let text =
        fs::read_to_string(upstream).with_context(|| format!("failed to read `{}`", upstream.display()))?;
    let ours = Path::new(PROTO_DIR).join(PROTO_FILE);
    fs::create_dir_all(ours.parent().context("a proto path has a parent")?)?;
    fs::write(&ours, facts_only(&text)).with_context(|| format!("failed to write `{}`", ours.display()))?;
    fs::write(RUST_FILE, rust_code()?).with_context(|| format!("failed to write `{RUST_FILE}`"))
}

fn check_cri(upstream: &Path) -> Result<()> {
    let dir = tempdir()?;
    let copy = dir.join(PROTO_FILE);
    fs::create_dir_all(copy.parent().context("a proto path has a parent")?)?;
    fs::copy(upstream, &copy).with_context(|| format!("failed to read `{}`", upstream.display()))?;
    let theirs = descriptors(&dir);
    fs::remove_dir_all(&dir)?;
    ensure!(
        theirs?.encode_to_vec() == descriptors(Path::new(PROTO_DIR))?.encode_to_vec(),
        "{PROTO_DIR}/{PROTO_FILE} differs from `{}`: run `cargo xtask gen`",
        upstream.display()
    );
    ensure!(
        fs::read_to_string(RUST_FILE)? == rust_code()?,
        "{RUST_FILE} is stale: run `cargo xtask gen`"
    );
    println!("{PROTO_FILE}: descriptors equal, generated code up to date");
    Ok(())
}

fn tempdir() -> Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("hack-gen-{}", std::process::id()));
    fs::create_dir_all(&dir).with_context(|| format!("failed to create `{}`", dir.display()))?;
    Ok(dir)
}

/// The file's descriptors without source positions, so that layout and comments don't count.
fn descriptors(dir: &Path) -> Result<FileDescriptorSet> {
    let mut compiler = protox::Compiler::new([dir])?;
    compiler.include_source_info(false).include_imports(true);
    Ok(compiler.open_file(PROTO_FILE)?.file_descriptor_set())
}

fn rust_code() -> Result<String> {
    let out = tempdir()?;
    let generated = tonic_prost_build::configure()
        .out_dir(&out)
        .build_transport(true)
        .compile_fds(descriptors(Path::new(PROTO_DIR))?)
        .context("failed to generate Rust")
        .and_then(|()| Ok(fs::read_to_string(out.join("runtime.v1.rs"))?));
    fs::remove_dir_all(&out)?;
    generated
}

/// The declarations alone: comments dropped, blank runs folded to one line, our own header.
fn facts_only(text: &str) -> String {
    let mut out = String::from(
        "// Names, numbers and types of CRI v1, made by `cargo xtask gen` from the Go module k8s.io/cri-api.\n",
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
    use super::facts_only;

    #[test]
    fn comments_of_both_kinds_are_dropped() {
        let got = facts_only("/* a\n b */\nmessage A { // x\n  /* y */ int32 b = 1;\n}\n");
        assert!(got.ends_with("message A {\n   int32 b = 1;\n}\n"), "{got}");
    }
}
