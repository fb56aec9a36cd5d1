//! Upstream's `kubelet_internal_checkpoint`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{Devices, Grant, Owner};
use crate::node::checkpoint::{self, CheckpointError, checksum};

/// Its name in the folder of device plugins.
pub const FILE: &str = "kubelet_internal_checkpoint";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    data: Data,
    checksum: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    pod_device_entries: Option<Vec<Entry>>,
    registered_devices: Option<BTreeMap<String, Option<Vec<String>>>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "PodUID")]
    pod_uid: String,
    container_name: String,
    resource_name: String,
    #[serde(rename = "DeviceIDs")]
    device_ids: BTreeMap<i64, Vec<String>>,
    alloc_resp: Option<String>,
}

/// Grants, and the names of devices by resource.
pub type Kept = (
    BTreeMap<Owner, BTreeMap<String, Grant>>,
    BTreeMap<String, Vec<String>>,
);

/// What was kept; `None` without a file.
///
/// # Errors
/// When the file is damaged.
pub fn read(path: &Path) -> Result<Option<Kept>, CheckpointError> {
    let Some(text) = checkpoint::read(path)? else {
        return Ok(None);
    };
    let corrupt = |reason: String| CheckpointError::corrupt(path, reason);
    let file: File = serde_json::from_str(&text).map_err(|error| corrupt(error.to_string()))?;
    let answers: Result<Vec<Vec<u8>>, _> = file
        .data
        .pod_device_entries
        .iter()
        .flatten()
        .map(answer)
        .collect();
    let answers = answers.map_err(|error| corrupt(error.to_string()))?;
    if sum(&file.data, &answers) != file.checksum {
        return Err(corrupt("checkpoint is corrupted".to_owned()));
    }
    let mut grants: BTreeMap<Owner, BTreeMap<String, Grant>> = BTreeMap::new();
    for (entry, answer) in file.data.pod_device_entries.into_iter().flatten().zip(answers) {
        let owner = Owner {
            uid: entry.pod_uid,
            container: entry.container_name,
        };
        let devices = entry
            .device_ids
            .into_iter()
            .map(|(node, ids)| (node, ids.into_iter().collect()));
        let grant = Grant {
            devices: devices.collect(),
            answer,
        };
        grants
            .entry(owner)
            .or_default()
            .insert(entry.resource_name, grant);
    }
    let registered = file.data.registered_devices.into_iter().flatten();
    Ok(Some((
        grants,
        registered
            .map(|(name, ids)| (name, ids.unwrap_or_default()))
            .collect(),
    )))
}

fn answer(entry: &Entry) -> Result<Vec<u8>, base64::DecodeError> {
    STANDARD.decode(entry.alloc_resp.as_deref().unwrap_or_default())
}

/// Keeps who has which devices, and which there are.
///
/// # Errors
/// When the file can't be written.
pub fn write(path: &Path, devices: &Devices) -> Result<(), CheckpointError> {
    let (mut entries, mut answers) = (Vec::new(), Vec::new());
    for (owner, grants) in devices.grants() {
        for (name, grant) in grants {
            let ids = |ids: &BTreeSet<String>| ids.iter().cloned().collect();
            entries.push(Entry {
                pod_uid: owner.uid.clone(),
                container_name: owner.container.clone(),
                resource_name: name.clone(),
                device_ids: grant
                    .devices
                    .iter()
                    .map(|(node, all)| (*node, ids(all)))
                    .collect(),
                alloc_resp: Some(STANDARD.encode(&grant.answer)),
            });
            answers.push(grant.answer.clone());
        }
    }
    let registered = devices.resources().iter().map(|(name, resource)| {
        let healthy = resource.devices.iter().filter(|(_, (healthy, _))| *healthy);
        (name.clone(), Some(healthy.map(|(id, _)| id.clone()).collect()))
    });
    let data = Data {
        pod_device_entries: Some(entries).filter(|entries| !entries.is_empty()),
        registered_devices: Some(registered.collect()),
    };
    let file = File {
        checksum: sum(&data, &answers),
        data,
    };
    let text =
        serde_json::to_string(&file).map_err(|error| CheckpointError::corrupt(path, error.to_string()))?;
    checkpoint::write(path, &text)
}

/// As Go's spew prints it.
fn sum(data: &Data, answers: &[Vec<u8>]) -> u32 {
    let list = |ids: &[String]| format!("[{}]", ids.join(" "));
    let entries = data
        .pod_device_entries
        .as_ref()
        .map_or("<nil>".to_owned(), |entries| {
            let each = entries.iter().zip(answers).map(|(entry, answer)| {
                let ids: Vec<String> = entry
                    .device_ids
                    .iter()
                    .map(|(node, ids)| format!("{node}:{}", list(ids)))
                    .collect();
                let bytes: Vec<String> = answer.iter().map(u8::to_string).collect();
                let answer = match entry.alloc_resp {
                    Some(_) => format!("[{}]", bytes.join(" ")),
                    None => "<nil>".to_owned(),
                };
                format!(
                    "{{PodUID:(string){} ContainerName:(string){} ResourceName:(string){} \
                 DeviceIDs:(checkpoint.DevicesPerNUMA)map[{}] AllocResp:([]uint8){answer}}}",
                    entry.pod_uid,
                    entry.container_name,
                    entry.resource_name,
                    ids.join(" ")
                )
            });
            format!("[{}]", each.collect::<Vec<_>>().join(" "))
        });
    let registered = data
        .registered_devices
        .as_ref()
        .map_or("<nil>".to_owned(), |all| {
            let each = all.iter().map(|(name, ids)| match ids {
                Some(ids) => format!("{name}:{}", list(ids)),
                None => format!("{name}:<nil>"),
            });
            format!("map[{}]", each.collect::<Vec<_>>().join(" "))
        });
    checksum(&format!(
        "(checkpoint.checkpointData){{PodDeviceEntries:([]checkpoint.PodDevicesEntry){entries} \
         RegisteredDevices:(map[string][]string){registered}}}"
    ))
}
