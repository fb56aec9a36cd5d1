//! Manifests and images that are wrong: who wrote them is told, and other pods go on.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tests_harness::wait_until;

use crate::bed::{Bed, IMAGE, PATIENCE, container, container_id, manifest, sh, sleeper, with_kubelet};

fn until_logged(bed: &Bed, text: &str) -> Result<()> {
    wait_until(&format!("the kubelet to say {text}"), PATIENCE, || {
        Ok(bed.log().contains(text))
    })?;
    Ok(())
}

#[test]
fn bad_manifests_are_named_with_their_place_and_touch_no_other_pod() {
    with_kubelet(|bed| {
        bed.apply("good.json", &manifest("good", &[sleeper("main")]))?;
        let before = bed.until_ready("good")?;
        bed.apply_text(
            "unknown.yaml",
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  containerz: []\n",
        )?;
        until_logged(bed, "unknown.yaml:6:3")?;
        let wrong = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: b\nspec:\n  containers:\n  - name: c\n    image: 5\n";
        bed.apply_text("type.yaml", wrong)?;
        until_logged(bed, "type.yaml:8:")?;
        bed.apply("value.json", &manifest("Not_A_Name", &[sleeper("main")]))?;
        until_logged(bed, "metadata.name: Invalid value")?;
        bed.apply("twice.json", &manifest("good", &[sleeper("other")]))?;
        until_logged(bed, "good.json names it already")?;
        let large = format!("# {}\n{}", "x".repeat(11 << 20), "apiVersion: v1");
        bed.apply_text("large.yaml", &large)?;
        until_logged(bed, "larger than 10 MiB")?;
        let million = json!("x".repeat(1 << 20));
        let mut pod = manifest("long", &[sh("main", "true")]);
        pod["metadata"]["annotations"] = json!({ "note": million });
        bed.apply("long.json", &pod)?;
        until_logged(bed, "Too long")?;
        let after = bed.until_ready("good")?;
        ensure!(container_id(&before, "main")? == container_id(&after, "main")?);
        ensure!(bed.pods()?.len() == 1, "{:#?}", bed.pods()?);
        Ok(())
    });
}

#[test]
fn images_that_cannot_be_had_are_told_in_the_containers_status() {
    with_kubelet(|bed| {
        let with =
            |image: &str, policy: &str| json!({ "name": "main", "image": image, "imagePullPolicy": policy });
        bed.apply(
            "absent.json",
            &manifest("absent", &[with("orlop.test/absent:1", "IfNotPresent")]),
        )?;
        bed.apply(
            "never.json",
            &manifest("never", &[with("orlop.test/absent:1", "Never")]),
        )?;
        bed.apply(
            "name.json",
            &manifest("name", &[with("orlop.test/Absent", "Always")]),
        )?;
        let waits = |reasons: &'static [&'static str]| {
            move |pod: &Value| {
                let reason = container(pod, "main")["state"]["waiting"]["reason"]
                    .as_str()
                    .unwrap_or_default();
                reasons.contains(&reason)
            }
        };
        bed.until("absent", "not pulled", waits(&["ErrImagePull"]))?;
        let pod = bed.until("absent", "backing off", waits(&["ImagePullBackOff"]))?;
        let said = container(&pod, "main")["state"]["waiting"]["message"]
            .as_str()
            .unwrap_or_default();
        ensure!(
            said.starts_with("Back-off pulling image \"orlop.test/absent:1\": ErrImagePull: "),
            "{said}"
        );
        bed.until("never", "without its image", waits(&["ErrImageNeverPull"]))?;
        bed.until("name", "refused", waits(&["InvalidImageName"]))?;
        Ok(())
    });
}

#[test]
fn containers_that_cannot_be_made_or_started_say_why() {
    with_kubelet(|bed| {
        let mut root = json!({ "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent" });
        root["securityContext"] = json!({ "runAsNonRoot": true });
        bed.apply("root.json", &manifest("root", &[root]))?;
        let mut absent = sleeper("main");
        absent["command"] = json!(["/no/such/program"]);
        bed.apply("program.json", &manifest("program", &[absent]))?;
        let waits = |reason: &'static str| {
            move |pod: &Value| container(pod, "main")["state"]["waiting"]["reason"] == reason
        };
        let pod = bed.until("root", "refused", waits("CreateContainerConfigError"))?;
        let said = container(&pod, "main")["state"]["waiting"]["message"]
            .as_str()
            .unwrap_or_default();
        ensure!(
            said.contains("container has runAsNonRoot and image will run as root"),
            "{said}"
        );
        bed.until("program", "not started", |pod| {
            let reason = container(pod, "main")["state"]["waiting"]["reason"]
                .as_str()
                .unwrap_or_default();
            ["RunContainerError", "CreateContainerError", "CrashLoopBackOff"].contains(&reason)
        })?;
        Ok(())
    });
}
