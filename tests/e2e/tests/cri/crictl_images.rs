//! Images with crictl: every form of manifest and layer, lists, removal.

use anyhow::{Context, ensure};
use tests_harness::{ContainerSpec, Node, PodSpec};

use crate::bed::{in_node, settled};

#[test]
fn every_form_of_image_runs() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        let whiteouts = "test ! -e /gone && test ! -e /kept/b && test -e /kept/a && test ! -e /emptied/old && \
             test -e /emptied/new && test \"$(cat /link)\" = a && echo fine";
        let cases = [
            ("docker-manifest", "echo fine"),
            ("index", "echo fine"),
            ("zstd", "echo fine"),
            ("whiteouts", whiteouts),
            ("many-layers", "test \"$(ls /layers | wc -l)\" = 120 && echo fine"),
        ];
        for (name, script) in cases {
            let image = format!("orlop.test/{name}:1");
            crictl.ok(&["pull", &image])?;
            let pod = PodSpec::new(name);
            let container =
                ContainerSpec::new("main", &image, &["sh", "-c", &format!("{script}; sleep 1000")]);
            let (sandbox, id) = crictl.start_pod(&pod, &container)?;
            crate::bed::until_logged(&crictl, &id, "fine").with_context(|| format!("image {name}"))?;
            crictl.remove_pod(&sandbox)?;
            crictl.ok(&["rmi", &image])?;
        }
        node.assert_no_leaks(&before)
    });
}

#[test]
fn images_are_listed_found_and_removed() {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        let tags: Vec<String> = (1..=3)
            .map(|n| format!("gcr.io/k8s-staging-cri-tools/test-image-tags:{n}"))
            .collect();
        for tag in &tags {
            crictl.ok(&["pull", tag])?;
        }
        crictl.ok(&["pull", "orlop.test/busybox:1"])?;
        let images = crictl.json(&["images", "-o", "json"])?;
        let images = images["images"].as_array().context("no images")?;
        ensure!(images.len() == 2, "three tags and one more are {images:?}");
        let tagged = images
            .iter()
            .find(|i| i["repoTags"].as_array().is_some_and(|t| t.len() == 3))
            .context("no image with three tags")?;
        let id = tagged["id"].as_str().context("no ID")?;
        ensure!(id.starts_with("sha256:"), "{id}");
        let by_id = crictl.json(&["inspecti", id])?;
        ensure!(by_id["status"]["id"] == id);
        let short = &id["sha256:".len()..][..12];
        ensure!(
            crictl.json(&["inspecti", short])?["status"]["id"] == id,
            "{short} isn't found"
        );
        // By one tag the whole image goes, with all its names, and by its ID as well.
        for name in [tags[0].as_str(), id] {
            crictl.ok(&["rmi", name])?;
            for gone in tags.iter().map(String::as_str).chain([id]) {
                crictl.run(&["inspecti", gone])?.refused(gone)?;
            }
            ensure!(crictl.ok(&["images", "-q"])?.lines().count() == 1);
            for tag in &tags {
                crictl.ok(&["pull", tag])?;
            }
        }
        crictl.ok(&["rmi", &tags[2]])?;
        ensure!(crictl.ok(&["images", "-q"])?.lines().count() == 1);
        let usage = crictl.json(&["imagefsinfo", "-o", "json"])?;
        ensure!(
            usage.to_string().contains("usedBytes"),
            "imagefsinfo says {usage}"
        );
        crictl.ok(&["rmi", "-a"])?;
        ensure!(crictl.ok(&["images", "-q"])?.is_empty());
        Ok(())
    });
}

#[test]
fn an_image_that_is_pulled_by_digest_is_found_by_it() {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        crictl.ok(&["pull", "orlop.test/busybox:1"])?;
        let status = crictl.json(&["inspecti", "orlop.test/busybox:1"])?;
        let digest = status["status"]["repoDigests"][0]
            .as_str()
            .context("no digest")?
            .to_owned();
        crictl.ok(&["rmi", "orlop.test/busybox:1"])?;
        crictl.ok(&["pull", &digest])?;
        ensure!(crictl.json(&["inspecti", &digest])?["status"]["repoDigests"][0] == digest.as_str());
        let (sandbox, _) = crictl.start_pod(
            &PodSpec::new("pinned"),
            &ContainerSpec::new("a", &digest, &["sleep", "1000"]),
        )?;
        crictl.remove_pod(&sandbox)
    });
}
