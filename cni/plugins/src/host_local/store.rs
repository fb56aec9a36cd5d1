//! The directory of a network: one file per address in use, called like the address, holding the owner; the last
//! address of each set of ranges; and the lock. While a [`Store`] lives, it holds the lock.
//!
//! An address's file appears whole, by a rename. Looking for an owner's addresses means to know what is in every
//! file; within one process that knowledge is kept, and each file is read once, as long as it stays the same file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{DirEntryExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use cni_types::ErrorCode;
use nix::fcntl::{Flock, FlockArg};

use crate::{
    error::PluginError,
    host_local::pool::{Range, RangeSet},
    owner::Owner,
};

/// Whoever holds the lock does so for milliseconds.
const LOCK_LIMIT: Duration = Duration::from_secs(30);
const NEW: &str = ".new";
/// So many networks' files are remembered.
const MAX_KNOWN: usize = 64;

/// A file that changed so shortly before it was read may have changed again without looking changed.
const SETTLED: Duration = Duration::from_millis(50);

/// How closely files are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// The same name and inode is the same file. Wrong only when another program took an address back and gave it away
    /// again since: enough for finding free addresses, and for a hint.
    Quick,
    /// It must not have changed since it was read either.
    Thorough,
}

/// What a file said.
#[derive(Debug, Clone)]
struct Known {
    inode: u64,
    /// When it had changed; none when that was too shortly before.
    changed: Option<(i64, i64)>,
    text: String,
}

impl Known {
    fn new(entry: &fs::DirEntry, text: String) -> Self {
        let changed = entry
            .metadata()
            .ok()
            .map(|meta| (meta.ctime(), meta.ctime_nsec()))
            .filter(|(seconds, nanos)| {
                let changed = Duration::new(
                    u64::try_from(*seconds).unwrap_or(0),
                    u32::try_from(*nanos).unwrap_or(0),
                );
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                now.checked_sub(changed).is_some_and(|age| age > SETTLED)
            });
        Known {
            inode: entry.ino(),
            changed,
            text,
        }
    }

    fn is_unchanged(&self, entry: &fs::DirEntry) -> bool {
        let now = entry
            .metadata()
            .ok()
            .map(|meta| (meta.ctime(), meta.ctime_nsec()));
        self.changed.is_some() && self.changed == now
    }
}

/// What was read, by directory.
static KNOWN: Mutex<BTreeMap<PathBuf, BTreeMap<IpAddr, Known>>> = Mutex::new(BTreeMap::new());

#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    /// What was found, kept up to date with what this store changes: under the lock nobody else does.
    files: BTreeMap<IpAddr, Known>,
    _lock: Flock<File>,
}

/// Takes what is remembered of a directory; a store puts it back at its end.
fn remembered(dir: &Path) -> BTreeMap<IpAddr, Known> {
    KNOWN
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .remove(dir)
        .unwrap_or_default()
}

impl Drop for Store {
    fn drop(&mut self) {
        let mut all = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_KNOWN {
            all.clear();
        }
        all.insert(self.dir.clone(), std::mem::take(&mut self.files));
    }
}

impl Store {
    /// Makes the directory and takes the lock.
    pub(crate) fn open(dir: &Path) -> Result<Self, PluginError> {
        fs::create_dir_all(dir).map_err(PluginError::io("make the directory", dir))?;
        let path = dir.join("lock");
        let mut file = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o644)
            .open(&path)
            .map_err(PluginError::io("open the lock", &path))?;
        let deadline = Instant::now() + LOCK_LIMIT;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => {
                    let mut store = Store {
                        dir: dir.to_owned(),
                        files: remembered(dir),
                        _lock: lock,
                    };
                    store.list(Look::Quick)?;
                    return Ok(store);
                }
                Err((back, nix::Error::EWOULDBLOCK | nix::Error::EINTR)) if Instant::now() < deadline => {
                    file = back;
                    thread::sleep(Duration::from_micros(500));
                }
                Err((_, nix::Error::EWOULDBLOCK)) => {
                    let message = format!(
                        "the lock `{}` is held for more than {} s; find its holder with fuser",
                        path.display(),
                        LOCK_LIMIT.as_secs()
                    );
                    return Err(PluginError::new(ErrorCode::TRY_AGAIN_LATER, message));
                }
                Err((_, error)) => return Err(PluginError::io("lock", &path)(error.into())),
            }
        }
    }

    /// Gives an owner an address of the set: the wanted one, or the one it has from a try that was cut short, or the
    /// next free one.
    pub(crate) fn allocate<'s>(
        &mut self,
        index: usize,
        set: &'s RangeSet,
        wanted: Option<IpAddr>,
        owner: &Owner,
    ) -> Result<(IpAddr, &'s Range), PluginError> {
        let mark = content(owner);
        let mine = self
            .files
            .iter()
            .filter(|(_, known)| known.text == mark)
            .map(|(ip, _)| *ip);
        let kept = mine
            .clone()
            .find(|ip| wanted.is_none_or(|wanted| wanted == *ip) && set.range_of(*ip).is_some());
        if let Some(ip) = kept
            && let Some(range) = set.range_of(ip)
            && self.read(ip)?.as_deref() == Some(&mark)
        {
            return Ok((ip, range));
        }
        let used: BTreeSet<IpAddr> = self.files.keys().copied().collect();
        let chosen = match wanted {
            Some(ip) => Some((ip, self.reservable(set, ip)?)),
            None => set.next_free(&used, self.last(index)),
        };
        let (ip, range) = chosen.ok_or_else(|| {
            PluginError::internal(format!(
                "no address is free in {}; {} are in use: remove pods or widen ipam.ranges",
                set.describe(),
                used.len()
            ))
        })?;
        self.write(ip, &mark)?;
        self.set_last(index, ip)?;
        Ok((ip, range))
    }

    fn reservable<'s>(&self, set: &'s RangeSet, ip: IpAddr) -> Result<&'s Range, PluginError> {
        let range = set.range_of(ip).ok_or_else(|| {
            PluginError::config(format!("requested address {ip} is not in {}", set.describe()))
        })?;
        if range.gateway == ip {
            return Err(PluginError::config(format!(
                "requested address {ip} is the gateway of {}",
                range.subnet
            )));
        }
        match self.files.get(&ip) {
            None => Ok(range),
            Some(known) => {
                let holder = known.text.lines().next().unwrap_or_default();
                Err(PluginError::internal(format!(
                    "requested address {ip} is in use by container {holder}"
                )))
            }
        }
    }

    /// Takes back every address of an owner.
    pub(crate) fn release(&mut self, owner: &Owner) -> Result<(), PluginError> {
        for ip in self.addresses_of(owner)? {
            self.remove(ip)?;
        }
        Ok(())
    }

    /// An owner's addresses. What is remembered is only a hint: it is read again before it is believed, and when it
    /// names none, every file is looked at.
    pub(crate) fn addresses_of(&mut self, owner: &Owner) -> Result<Vec<IpAddr>, PluginError> {
        let mark = content(owner);
        for look in [Look::Quick, Look::Thorough] {
            if look == Look::Thorough {
                self.list(look)?;
            }
            let mut found = Vec::new();
            for (ip, _) in self
                .files
                .iter()
                .filter(|(_, known)| belongs(&known.text, owner, &mark))
            {
                if self.read(*ip)?.is_some_and(|text| belongs(&text, owner, &mark)) {
                    found.push(*ip);
                }
            }
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }

    /// Takes back every address whose owner isn't in the list, or isn't legible.
    pub(crate) fn retain(&mut self, valid: &[Owner]) -> Result<(), PluginError> {
        self.list(Look::Thorough)?;
        let keep: BTreeSet<&Owner> = valid.iter().collect();
        for (ip, known) in self.files.clone() {
            let mut lines = known.text.lines();
            let id = lines.next().unwrap_or_default().trim();
            let kept = match lines.next() {
                Some(ifname) => keep.contains(&Owner::new(id, ifname.trim())),
                // Old versions of upstream wrote no interface.
                None => valid.iter().any(|owner| owner.container_id == id),
            };
            if !kept {
                self.remove(ip)?;
            }
        }
        Ok(())
    }

    pub(crate) fn is_exhausted(&self, set: &RangeSet) -> bool {
        let used: BTreeSet<IpAddr> = self.files.keys().copied().collect();
        set.next_free(&used, None).is_none()
    }

    fn path(&self, ip: IpAddr) -> PathBuf {
        self.dir.join(ip.to_string())
    }

    /// Looks at every address in use.
    fn list(&mut self, look: Look) -> Result<(), PluginError> {
        let mut seen = BTreeSet::new();
        for entry in fs::read_dir(&self.dir).map_err(PluginError::io("list", &self.dir))? {
            let entry = entry.map_err(PluginError::io("list", &self.dir))?;
            let Some(ip) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<IpAddr>().ok())
            else {
                continue;
            };
            let same = self.files.get(&ip).is_some_and(|known| {
                known.inode == entry.ino() && (look == Look::Quick || known.is_unchanged(&entry))
            });
            if !same {
                match self.read(ip)? {
                    // Written and never flushed before the power went. Nobody writes now, because the lock is ours.
                    Some(text) if is_blank(&text) => {
                        self.remove(ip)?;
                        continue;
                    }
                    Some(text) => drop(self.files.insert(ip, Known::new(&entry, text))),
                    None => continue,
                }
            }
            seen.insert(ip);
        }
        if seen.len() != self.files.len() {
            self.files.retain(|ip, _| seen.contains(ip));
        }
        Ok(())
    }

    fn read(&self, ip: IpAddr) -> Result<Option<String>, PluginError> {
        #[cfg(test)]
        tests::READS.with(|reads| reads.set(reads.get() + 1));
        let path = self.path(ip);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(PluginError::io("read", path)(error)),
        }
    }

    fn write(&mut self, ip: IpAddr, text: &str) -> Result<(), PluginError> {
        let new = self.dir.join(NEW);
        let written = File::options()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(PluginError::io("write", &new))?;
        fs::rename(&new, self.path(ip)).map_err(PluginError::io("rename", &new))?;
        // Its inode isn't known yet, so that the next look at the directory reads it.
        self.files.insert(
            ip,
            Known {
                inode: 0,
                changed: None,
                text: text.to_owned(),
            },
        );
        Ok(())
    }

    fn remove(&mut self, ip: IpAddr) -> Result<(), PluginError> {
        let path = self.path(ip);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(PluginError::io("remove", path)(error))
            }
            _ => {
                self.files.remove(&ip);
                Ok(())
            }
        }
    }

    fn last_path(&self, index: usize) -> PathBuf {
        self.dir.join(format!("last_reserved_ip.{index}"))
    }

    /// A file that is missing or damaged only means to begin at the front.
    fn last(&self, index: usize) -> Option<IpAddr> {
        fs::read_to_string(self.last_path(index))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    fn set_last(&self, index: usize, ip: IpAddr) -> Result<(), PluginError> {
        let path = self.last_path(index);
        fs::write(&path, ip.to_string()).map_err(PluginError::io("write", path))
    }
}

/// Whether a file names nobody: a power cut leaves files empty, or as long as they were and full of zeros.
fn is_blank(text: &str) -> bool {
    text.chars().all(|c| c == '\0' || c.is_whitespace())
}

fn content(owner: &Owner) -> String {
    format!("{}\r\n{}", owner.container_id, owner.ifname)
}

/// Old versions of upstream wrote no interface.
fn belongs(text: &str, owner: &Owner, mark: &str) -> bool {
    text == mark || text == owner.container_id
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    thread_local! {
        /// Files that the test's thread has read.
        pub(super) static READS: Cell<usize> = const { Cell::new(0) };
    }

    fn set(subnet: &str) -> RangeSet {
        RangeSet(vec![
            Range::new(subnet.parse().unwrap(), None, None, None).unwrap(),
        ])
    }

    #[test]
    fn files_are_upstreams() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("net");
        let (v4, v6) = (set("10.9.0.0/24"), set("fd00::/64"));
        let owner = Owner::new("c1", "eth0");
        let mut store = Store::open(&dir).unwrap();
        assert_eq!(
            store.allocate(0, &v4, None, &owner).unwrap().0.to_string(),
            "10.9.0.2"
        );
        assert_eq!(
            store.allocate(1, &v6, None, &owner).unwrap().0.to_string(),
            "fd00::2"
        );
        assert_eq!(fs::read_to_string(dir.join("10.9.0.2")).unwrap(), "c1\r\neth0");
        assert_eq!(fs::read_to_string(dir.join("fd00::2")).unwrap(), "c1\r\neth0");
        assert_eq!(
            fs::read_to_string(dir.join("last_reserved_ip.1")).unwrap(),
            "fd00::2"
        );
        // A try that was cut short is taken up again.
        assert_eq!(
            store.allocate(0, &v4, None, &owner).unwrap().0.to_string(),
            "10.9.0.2"
        );
        store.release(&owner).unwrap();
        assert!(!dir.join("10.9.0.2").exists() && !dir.join("fd00::2").exists());
        // Round robin: not the same one at once.
        assert_eq!(
            store.allocate(0, &v4, None, &owner).unwrap().0.to_string(),
            "10.9.0.3"
        );
    }

    #[test]
    fn addresses_that_name_nobody_are_free() {
        let dir = tempfile::tempdir().unwrap();
        for (ip, content) in [
            ("10.1.0.2", ""),
            ("10.1.0.3", "\0\0\0\0"),
            ("10.1.0.4", "c1\r\neth0"),
        ] {
            fs::write(dir.path().join(ip), content).unwrap();
        }
        let store = Store::open(dir.path()).unwrap();
        let left: Vec<IpAddr> = store.files.keys().copied().collect();
        assert_eq!(left, ["10.1.0.4".parse::<IpAddr>().unwrap()]);
        assert!(!dir.path().join("10.1.0.2").exists() && !dir.path().join("10.1.0.3").exists());
    }

    #[test]
    fn exhaustion_and_wanted_addresses_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let tiny = set("10.9.0.0/30");
        let mut store = Store::open(dir.path()).unwrap();
        store.allocate(0, &tiny, None, &Owner::new("a", "eth0")).unwrap();
        assert!(store.is_exhausted(&tiny));
        let error = store
            .allocate(0, &tiny, None, &Owner::new("b", "eth0"))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("no address is free in 10.9.0.1-10.9.0.2; 1 are in use"),
            "{error}"
        );
        let wide = set("10.8.0.0/24");
        let want = |store: &mut Store, ip: &str, id: &str| {
            store
                .allocate(0, &wide, Some(ip.parse().unwrap()), &Owner::new(id, "eth0"))
                .map(|(ip, _)| ip.to_string())
                .map_err(|e| e.to_string())
        };
        assert_eq!(want(&mut store, "10.8.0.77", "a").unwrap(), "10.8.0.77");
        assert!(
            want(&mut store, "10.8.0.77", "b")
                .unwrap_err()
                .contains("in use by container a")
        );
        assert!(
            want(&mut store, "10.8.0.1", "b")
                .unwrap_err()
                .contains("is the gateway")
        );
        assert!(
            want(&mut store, "10.7.0.1", "b")
                .unwrap_err()
                .contains("is not in")
        );
    }

    #[test]
    fn a_thousand_pods_cost_little_each() {
        let dir = tempfile::tempdir().unwrap();
        let (v4, v6) = (set("10.0.0.0/16"), set("fd00::/64"));
        let add = |id: usize| {
            let mut store = Store::open(dir.path()).unwrap();
            let owner = Owner::new(&format!("c{id}"), "eth0");
            store.allocate(0, &v4, None, &owner).unwrap();
            store.allocate(1, &v6, None, &owner).unwrap();
        };
        let reads = || READS.with(Cell::get);
        (0..1000).for_each(add);
        // Each pod's two files are new to the next one, who reads them; those of the others are known.
        let before = reads();
        (1000..1010).for_each(add);
        assert!(
            reads() - before <= 10 * 2 * 2,
            "{} files were read",
            reads() - before
        );
    }

    #[derive(Debug, Clone)]
    enum Step {
        Add(u8),
        Del(u8),
        Foreign(u8, u8),
        ForeignDel(u8),
        Gc(Vec<u8>),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..12).prop_map(Step::Add),
            (0u8..24).prop_map(Step::Del),
            // Another runtime's containers.
            (2u8..14, 12u8..24).prop_map(|(ip, id)| Step::Foreign(ip, id)),
            (2u8..14).prop_map(Step::ForeignDel),
            proptest::collection::vec(0u8..24, 0..6).prop_map(Step::Gc),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// The directory always holds what a simple model says, whatever a second program does to it meanwhile.
        #[test]
        fn allocation_follows_the_model(steps in proptest::collection::vec(step(), 1..60)) {
            let dir = tempfile::tempdir().unwrap();
            let small = set("10.9.0.0/28");
            let owner = |id: u8| Owner::new(&format!("c{id}"), "eth0");
            let file = |n: u8| dir.path().join(format!("10.9.0.{n}"));
            let mut model: BTreeMap<u8, u8> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Add(id) => {
                        let got = Store::open(dir.path()).unwrap().allocate(0, &small, None, &owner(id));
                        let had: Vec<u8> = model.iter().filter(|(_, i)| **i == id).map(|(ip, _)| *ip).collect();
                        match got {
                            Ok((IpAddr::V4(ip), _)) => {
                                let n = ip.octets()[3];
                                prop_assert!((2..=14).contains(&n));
                                if had.is_empty() {
                                    prop_assert!(model.insert(n, id).is_none(), "{n} handed out twice");
                                } else {
                                    prop_assert!(had.contains(&n));
                                }
                            }
                            Ok(_) => prop_assert!(false),
                            Err(_) => prop_assert_eq!(model.len(), 13),
                        }
                    }
                    Step::Del(id) => {
                        Store::open(dir.path()).unwrap().release(&owner(id)).unwrap();
                        model.retain(|_, i| *i != id);
                    }
                    Step::Foreign(n, id) => {
                        // A second address of one owner is nothing that either program makes.
                        if !model.contains_key(&n) && !model.values().any(|i| *i == id) {
                            fs::write(file(n), content(&owner(id))).unwrap();
                            model.insert(n, id);
                        }
                    }
                    Step::ForeignDel(n) => {
                        if model.remove(&n).is_some() {
                            fs::remove_file(file(n)).unwrap();
                        }
                    }
                    Step::Gc(ids) => {
                        let valid: Vec<Owner> = ids.iter().map(|id| owner(*id)).collect();
                        Store::open(dir.path()).unwrap().retain(&valid).unwrap();
                        model.retain(|_, id| ids.contains(id));
                    }
                }
                let there: BTreeSet<u8> = (0..=255).filter(|n| file(*n).exists()).collect();
                prop_assert_eq!(there, model.keys().copied().collect::<BTreeSet<u8>>());
            }
        }
    }
}
