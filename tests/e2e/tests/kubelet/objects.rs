//! ConfigMaps and Secrets of a node without an API server: in files beside the pods.

use anyhow::ensure;
use serde_json::json;
use tests_harness::wait_until;

use crate::bed::{PATIENCE, manifest, sleeper, with_configured};

#[test]
fn config_maps_and_secrets_reach_variables_and_files_and_files_follow_changes() {
    with_configured("syncFrequency: 1s\nfileCheckFrequency: 1s\n", |bed| {
        let map = |value: &str| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "map" }, "data": { "key": value } });
        bed.apply("map.json", &map("first"))?;
        let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "secret" }, "stringData": { "word": "hidden" } });
        bed.apply("secret.json", &secret)?;
        let mut main = sleeper("main");
        main["env"] = json!([
            { "name": "KEY", "valueFrom": { "configMapKeyRef": { "name": "map", "key": "key" } } },
            { "name": "WORD", "valueFrom": { "secretKeyRef": { "name": "secret", "key": "word" } } },
        ]);
        main["volumeMounts"] = json!([
            { "name": "map", "mountPath": "/map" },
            { "name": "secret", "mountPath": "/secret", "readOnly": true },
            { "name": "down", "mountPath": "/down" },
        ]);
        let mut pod = manifest("objects", &[main]);
        pod["metadata"]["labels"] = json!({ "app": "objects" });
        pod["spec"]["volumes"] = json!([
            { "name": "map", "configMap": { "name": "map" } },
            { "name": "secret", "secret": { "secretName": "secret" } },
            { "name": "down", "downwardAPI": { "items": [{ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } }] } },
        ]);
        bed.apply("objects.json", &pod)?;
        let pod = bed.until_ready("objects")?;
        let said = bed.exec(
            &pod,
            "main",
            &[
                "sh",
                "-c",
                "echo $KEY $WORD; cat /map/key /secret/word /down/labels",
            ],
        )?;
        ensure!(said == "first hidden\nfirsthiddenapp=\"objects\"", "{said:?}");
        bed.apply("map.json", &map("second"))?;
        wait_until("the file to follow", PATIENCE, || {
            Ok(bed.exec(&pod, "main", &["cat", "/map/key"])? == "second")
        })?;
        Ok(())
    });
}
