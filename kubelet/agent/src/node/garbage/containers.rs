//! Which dead containers, sandboxes and log folders go.
//!
//! Of a pod that stays, the newest dead containers of each name are kept, one by default, because `lastState` and the
//! logs of the previous run are read from them. Of a pod that is gone nothing is kept. Before the sources of pods are all
//! known, no pod counts as gone.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

/// The settings, of the flags that upstream calls deprecated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// `--minimum-container-ttl-duration`.
    pub minimum_age: SignedDuration,
    /// `--maximum-dead-containers-per-container`; negative: all.
    pub most_per_container: i32,
    /// `--maximum-dead-containers`; negative: no limit.
    pub most: i32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            minimum_age: SignedDuration::ZERO,
            most_per_container: 1,
            most: -1,
        }
    }
}

/// A container that doesn't run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dead {
    /// Its ID.
    pub id: String,
    /// The pod.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Which of that name it is, counted from 0: the node's clock may have stepped back since the one before.
    pub attempt: u32,
    /// When it was made.
    pub created: Timestamp,
}

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Its ID.
    pub id: String,
    /// The pod.
    pub uid: String,
    /// Which of the pod's it is, counted from 0.
    pub attempt: u32,
    /// When it was made.
    pub created: Timestamp,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether any container is in it, dead or not.
    pub has_containers: bool,
}

/// What is known of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodState {
    /// It runs, or will.
    Alive,
    /// It has ended for good, but is still there to be read about.
    Ended,
    /// Nobody knows it.
    Gone,
}

/// The containers to remove, in order. `everything` is set when the node is short of room: then nothing of pods that have
/// ended is kept either.
pub fn containers(
    policy: &Policy,
    dead: &[Dead],
    state: impl Fn(&str) -> PodState,
    sources_ready: bool,
    everything: bool,
    now: Timestamp,
) -> Vec<String> {
    let mut units: BTreeMap<(&str, &str), Vec<&Dead>> = BTreeMap::new();
    for one in dead
        .iter()
        .filter(|one| now.duration_since(one.created) >= policy.minimum_age)
    {
        units.entry((&one.uid, &one.name)).or_default().push(one);
    }
    for unit in units.values_mut() {
        unit.sort_by(|one, two| {
            (two.attempt, two.created, &two.id).cmp(&(one.attempt, one.created, &one.id))
        });
    }
    let mut remove = Vec::new();
    if sources_ready {
        units.retain(|(uid, _), unit| {
            let state = state(uid);
            let goes = state == PodState::Gone || everything && state == PodState::Ended;
            if goes {
                remove.append(unit);
            }
            !goes
        });
    }
    if let Ok(most) = usize::try_from(policy.most_per_container) {
        keep_newest(&mut units, most, &mut remove);
    }
    if let Ok(most) = usize::try_from(policy.most)
        && units.values().map(Vec::len).sum::<usize>() > most
    {
        let each = (most / units.len().max(1)).max(1);
        keep_newest(&mut units, each, &mut remove);
        let mut left: Vec<&Dead> = units.into_values().flatten().collect();
        left.sort_by(|one, two| (two.created, &two.id).cmp(&(one.created, &one.id)));
        remove.extend(left.into_iter().skip(most));
    }
    remove.into_iter().map(|one| one.id.clone()).collect()
}

fn keep_newest<'a>(
    units: &mut BTreeMap<(&str, &str), Vec<&'a Dead>>,
    most: usize,
    remove: &mut Vec<&'a Dead>,
) {
    for unit in units.values_mut() {
        remove.extend(unit.drain(most.min(unit.len())..));
    }
}

/// The sandboxes to remove: those without containers that aren't ready, but the newest of a pod that is alive.
pub fn sandboxes(
    all: &[Sandbox],
    state: impl Fn(&str) -> PodState,
    sources_ready: bool,
    everything: bool,
) -> Vec<String> {
    let mut newest: BTreeMap<&str, (u32, Timestamp, &str)> = BTreeMap::new();
    for one in all {
        let age = (one.attempt, one.created, one.id.as_str());
        let entry = newest.entry(&one.uid).or_insert(age);
        *entry = (*entry).max(age);
    }
    let goes = |one: &&Sandbox| {
        let state = state(&one.uid);
        let ended = sources_ready && (state == PodState::Gone || everything && state == PodState::Ended);
        let replaced = newest
            .get(one.uid.as_str())
            .is_some_and(|(_, _, id)| *id != one.id);
        !one.ready && !one.has_containers && (ended || replaced)
    };
    all.iter().filter(goes).map(|one| one.id.clone()).collect()
}

/// Which folders of `podLogsDir` go: `NAMESPACE_NAME_UID` of pods that are gone, once the sources are known. What isn't
/// named like that stays.
pub fn log_folders<'a>(
    folders: impl IntoIterator<Item = &'a str>,
    state: impl Fn(&str) -> PodState,
    sources_ready: bool,
) -> BTreeSet<&'a str> {
    let of_gone = |folder: &&str| {
        let parts: Vec<&str> = folder.split('_').collect();
        matches!(parts[..], [_, _, uid] if !uid.is_empty() && state(uid) == PodState::Gone)
    };
    folders
        .into_iter()
        .filter(|_| sources_ready)
        .filter(of_gone)
        .collect()
}
