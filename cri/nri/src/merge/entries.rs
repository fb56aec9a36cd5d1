//! Fields that are lists or maps: each entry has a key, may be removed, and then be set anew.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::NriError;
use crate::owners::Owners;
use crate::v1alpha1::{Field, KeyValue, LinuxDevice, LinuxNamespace, LinuxNetDevice, Mount, PosixRlimit};

/// What is to be removed, if a key says so.
pub fn removal(key: &str) -> Option<&str> {
    key.strip_prefix('-')
}

/// An entry of a list.
pub(super) trait Entry: Clone {
    fn key(&self) -> &str;
}

impl Entry for Mount {
    fn key(&self) -> &str {
        &self.destination
    }
}

impl Entry for LinuxDevice {
    fn key(&self) -> &str {
        &self.path
    }
}

impl Entry for LinuxNamespace {
    fn key(&self) -> &str {
        &self.r#type
    }
}

impl Entry for PosixRlimit {
    fn key(&self) -> &str {
        &self.r#type
    }
}

impl Entry for KeyValue {
    fn key(&self) -> &str {
        &self.key
    }
}

/// A value of a map.
pub(super) trait Value: Clone + Default {}

impl Value for String {}
impl Value for LinuxNetDevice {}

/// Lists: `container` is what plugins are shown, `adjust` what is wanted so far, removals included.
pub(super) fn list<T: Entry>(
    owners: &mut Owners<'_>,
    field: Field,
    container: &mut Vec<T>,
    adjust: &mut Vec<T>,
    wish: Vec<T>,
) -> Result<(), NriError> {
    let set = wanted(owners, field, adjust, &wish)?;
    container.retain(|entry| !set.touched.contains(entry.key()));
    container.extend(set.added.clone());
    adjust.retain(|entry| {
        let key = removal(entry.key()).unwrap_or(entry.key());
        !set.touched.contains(key)
    });
    adjust.extend(set.removals);
    adjust.extend(set.added);
    Ok(())
}

/// The environment, which plugins are shown as `KEY=VALUE`. A variable that is changed keeps its place.
pub(super) fn environment(
    owners: &mut Owners<'_>,
    container: &mut Vec<String>,
    adjust: &mut Vec<KeyValue>,
    wish: Vec<KeyValue>,
) -> Result<(), NriError> {
    let set = wanted(owners, Field::Env, adjust, &wish)?;
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    container.retain(|variable| !set.touched.contains(&name(variable)));
    container.extend(set.added.iter().map(|e| format!("{}={}", e.key, e.value)));
    adjust.retain(|entry| !set.touched.contains(removal(&entry.key).unwrap_or(&entry.key)));
    adjust.extend(set.removals);
    adjust.extend(set.added);
    Ok(())
}

struct Wanted<T> {
    added: Vec<T>,
    /// As they came, with their mark, unless the same is added, too.
    removals: Vec<T>,
    /// The keys of both.
    touched: BTreeSet<String>,
}

fn wanted<T: Entry>(
    owners: &mut Owners<'_>,
    field: Field,
    adjust: &[T],
    wish: &[T],
) -> Result<Wanted<T>, NriError> {
    let added: Vec<T> = wish
        .iter()
        .filter(|entry| removal(entry.key()).is_none())
        .cloned()
        .collect();
    let adds = |key: &str| added.iter().any(|entry| entry.key() == key);
    let mut touched: BTreeSet<String> = added.iter().map(|entry| entry.key().to_owned()).collect();
    let mut removals = Vec::new();
    for entry in wish {
        let Some(key) = removal(entry.key()) else { continue };
        if adds(key) || adjust.iter().any(|old| old.key() == key) {
            owners.clear_entry(field, key);
        }
        if !adds(key) {
            removals.push(entry.clone());
        }
        touched.insert(key.to_owned());
    }
    for entry in &added {
        owners.claim_entry(field, entry.key())?;
    }
    Ok(Wanted {
        added,
        removals,
        touched,
    })
}

/// Maps: annotations, sysctls, network devices.
pub(super) fn texts<V: Value>(
    owners: &mut Owners<'_>,
    field: Field,
    container: &mut BTreeMap<String, V>,
    adjust: &mut BTreeMap<String, V>,
    wish: BTreeMap<String, V>,
) -> Result<(), NriError> {
    for key in wish.keys().filter_map(|key| removal(key)) {
        if wish.contains_key(key) || adjust.contains_key(key) {
            owners.clear_entry(field, key);
        }
        container.remove(key);
        adjust.remove(key);
        adjust.insert(format!("-{key}"), V::default());
    }
    for (key, value) in wish {
        if removal(&key).is_some() {
            continue;
        }
        owners.claim_entry(field, &key)?;
        adjust.remove(&format!("-{key}"));
        container.insert(key.clone(), value.clone());
        adjust.insert(key, value);
    }
    Ok(())
}
