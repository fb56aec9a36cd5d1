//! Compiled filters on disk, by the content of the profile.
//!
//! A name is the hash of everything that the compiler looks at, and of the compiler's version; an entry is written to
//! a temporary name and renamed, so a reader sees a whole one or none, and it carries its own hash, so a damaged one
//! is compiled again and replaced. The directory is the runtime's own (mode 0700): whoever can write there is root.
//! Nothing about the cache can fail a container: an error only costs the time to compile.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use oci_runtime_sys::open;
use oci_spec::runtime::LinuxSeccomp;
use sha2::{Digest as _, Sha256};

use super::{Filter, MAX_INSTRUCTIONS, SeccompError, compile};

/// To be raised with every change of what the compiler makes of a profile.
const VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"orlopbpf";
const HASH: usize = 32;
/// Magic and flags.
const HEADER: usize = 12;
/// The largest entry that can be right.
const LARGEST: u64 = (HEADER + MAX_INSTRUCTIONS * 8 + HASH) as u64;

/// Takes the filter from the cache in `directory` (made if absent), or compiles and keeps it.
///
/// # Errors
/// As for [`compile`]; never because of the cache.
pub fn compile_cached(profile: &LinuxSeccomp, directory: &Path) -> Result<Filter, SeccompError> {
    let path = directory.join(name(profile));
    if let Some(filter) = load(&path) {
        return Ok(filter);
    }
    let filter = compile(profile)?;
    if let Err(error) = store(directory, &path, &filter) {
        tracing::debug!(path = %path.display(), %error, "compiled seccomp filter not cached");
    }
    Ok(filter)
}

/// Feeds a hash with unambiguous pieces: lengths before bytes, counts before lists.
struct Feed(Sha256);

impl Feed {
    fn number(&mut self, value: u64) {
        self.0.update(value.to_le_bytes());
    }

    fn optional(&mut self, value: Option<u64>) {
        self.number(u64::from(value.is_some()));
        self.number(value.unwrap_or(0));
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text);
    }
}

/// The file name for a profile.
fn name(profile: &LinuxSeccomp) -> String {
    let mut feed = Feed(Sha256::new());
    feed.number(u64::from(VERSION));
    feed.text(std::env::consts::ARCH);
    feed.number(profile.default_action() as u64);
    feed.optional(profile.default_errno_ret().map(u64::from));
    let architectures = profile.architectures().as_deref().unwrap_or_default();
    feed.number(architectures.len() as u64);
    architectures.iter().for_each(|a| feed.number(*a as u64));
    feed.number(u64::from(profile.flags().is_some()));
    let flags = profile.flags().as_deref().unwrap_or_default();
    feed.number(flags.len() as u64);
    flags.iter().for_each(|f| feed.number(*f as u64));
    feed.text(
        profile
            .listener_path()
            .as_deref()
            .and_then(Path::to_str)
            .unwrap_or_default(),
    );
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    feed.number(rules.len() as u64);
    for rule in rules {
        feed.number(rule.names().len() as u64);
        rule.names().iter().for_each(|name| feed.text(name));
        feed.number(rule.action() as u64);
        feed.optional(rule.errno_ret().map(u64::from));
        let args = rule.args().as_deref().unwrap_or_default();
        feed.number(args.len() as u64);
        for arg in args {
            feed.number(arg.index() as u64);
            feed.number(arg.value());
            feed.optional(arg.value_two());
            feed.number(arg.op() as u64);
        }
    }
    let mut name = hex(&feed.0.finalize());
    name.push_str(".bpf");
    name
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).expect("a nibble is below 16");
    bytes
        .iter()
        .flat_map(|b| [digit(b >> 4), digit(b & 15)])
        .collect()
}

/// `None` if absent or in any way not what was stored.
fn load(path: &Path) -> Option<Filter> {
    let bytes = open::read(path, 16 << 10, LARGEST + 1).ok()?;
    if bytes.len() as u64 > LARGEST || bytes.len() < HEADER + 8 + HASH {
        return None;
    }
    let (content, hash) = bytes.split_at(bytes.len() - HASH);
    if Sha256::digest(content).as_slice() != hash || !content.starts_with(MAGIC) {
        return None;
    }
    let flags = u32::from_le_bytes(content[MAGIC.len()..HEADER].try_into().ok()?);
    let program = content[HEADER..].to_vec();
    (program.len() % 8 == 0).then_some(Filter { program, flags })
}

fn store(directory: &Path, path: &Path, filter: &Filter) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(HEADER + filter.program.len() + HASH);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&filter.flags.to_le_bytes());
    bytes.extend_from_slice(&filter.program);
    let hash = Sha256::digest(&bytes);
    bytes.extend_from_slice(&hash);
    // One name per process: a killed writer leaves one file, which the next with its pid writes over.
    let temporary = directory.join(format!(".tmp-{}", std::process::id()));
    let mut file = match File::create(&temporary) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            File::create(&temporary)?
        }
        opened => opened?,
    };
    let written = file.write_all(&bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}
