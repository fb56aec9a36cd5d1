//! RPCs that crictl has no command for: streamed lists, metrics, limits of pods, the runtime's configuration, logs that
//! are reopened.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use cri_api::v1::*;
use serde_json::json;
use tests_harness::{ContainerSpec, Driver, Node, PodSpec, wait_until};
use tonic::Code;

use crate::bed::{PATIENCE, in_node, settled, sleeper, until_logged, until_state};
use crate::client::{Cri, create};

/// More than one message of a streamed list holds.
const MANY: usize = 120;

#[test]
fn streamed_lists_hold_what_plain_lists_do() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        let (first, _) = crictl.start_pod(&PodSpec::new("one"), &sleeper("main"))?;
        let (second, running) = crictl.start_pod(
            &PodSpec::new("two").with("/labels", json!({ "app": "two" })),
            &sleeper("main"),
        )?;
        let cri = Cri::connect(node)?;
        for n in 0..MANY {
            // All in one pod, which then has more to remove than its shim does at once.
            let request = create(&first, "one", &format!("c{n}"), "true");
            cri.call(|mut c| async move { c.runtime.create_container(request).await })
                .with_context(|| format!("container {n}"))?;
        }
        containers(&cri)?;
        pods(&cri, &second)?;
        images(&cri)?;
        statistics(&cri, &running)?;
        crictl.remove_pod(&first)?;
        crictl.remove_pod(&second)?;
        node.assert_no_leaks(&before)
    });
}

fn containers(cri: &Cri) -> Result<()> {
    let plain = cri
        .call(|mut c| async move { c.runtime.list_containers(ListContainersRequest::default()).await })?
        .containers;
    let messages = cri.collect(|mut c| async move {
        c.runtime
            .stream_containers(StreamContainersRequest::default())
            .await
    })?;
    ensure!(
        messages.len() > 1,
        "{} containers came in one message",
        plain.len()
    );
    ensure!(
        messages.iter().all(|m| !m.containers.is_empty()),
        "a message is empty"
    );
    let streamed: Vec<_> = messages.into_iter().flat_map(|m| m.containers).collect();
    ensure!(plain.len() == MANY + 2 && sorted(&plain, |c| &c.id) == sorted(&streamed, |c| &c.id));
    let filter = ContainerFilter {
        state: Some(ContainerStateValue {
            state: ContainerState::ContainerRunning as i32,
        }),
        ..Default::default()
    };
    let running = cri.collect(|mut c| async move {
        c.runtime
            .stream_containers(StreamContainersRequest { filter: Some(filter) })
            .await
    })?;
    let running: Vec<_> = running.into_iter().flat_map(|m| m.containers).collect();
    ensure!(running.len() == 2, "{running:?} run");
    Ok(())
}

fn pods(cri: &Cri, second: &str) -> Result<()> {
    let plain = cri
        .call(|mut c| async move { c.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await })?
        .items;
    let streamed = cri.collect(|mut c| async move {
        c.runtime
            .stream_pod_sandboxes(StreamPodSandboxesRequest::default())
            .await
    })?;
    let streamed: Vec<_> = streamed.into_iter().flat_map(|m| m.pod_sandboxes).collect();
    ensure!(plain.len() == 2 && sorted(&plain, |p| &p.id) == sorted(&streamed, |p| &p.id));
    let labelled = |value: &str| {
        let filter = PodSandboxFilter {
            label_selector: [("app".to_owned(), value.to_owned())].into(),
            ..Default::default()
        };
        cri.collect(|mut c| async move {
            c.runtime
                .stream_pod_sandboxes(StreamPodSandboxesRequest { filter: Some(filter) })
                .await
        })
    };
    let found = labelled("two")?;
    ensure!(found.len() == 1 && found[0].pod_sandboxes.len() == 1 && found[0].pod_sandboxes[0].id == second);
    ensure!(
        labelled("nothing")?.is_empty(),
        "an empty list is a stream without messages"
    );
    Ok(())
}

fn images(cri: &Cri) -> Result<()> {
    let plain = cri
        .call(|mut c| async move { c.images.list_images(ListImagesRequest::default()).await })?
        .images;
    let streamed =
        cri.collect(|mut c| async move { c.images.stream_images(StreamImagesRequest::default()).await })?;
    let streamed: Vec<_> = streamed.into_iter().flat_map(|m| m.images).collect();
    ensure!(!plain.is_empty() && sorted(&plain, |i| &i.id) == sorted(&streamed, |i| &i.id));
    Ok(())
}

/// Readings differ from call to call, so it is compared whose they are.
fn statistics(cri: &Cri, running: &str) -> Result<()> {
    let plain = cri
        .call(|mut c| async move {
            c.runtime
                .list_container_stats(ListContainerStatsRequest::default())
                .await
        })?
        .stats;
    let streamed = cri.collect(|mut c| async move {
        c.runtime
            .stream_container_stats(StreamContainerStatsRequest::default())
            .await
    })?;
    let streamed: Vec<_> = streamed.into_iter().flat_map(|m| m.container_stats).collect();
    let of = |stats: &[ContainerStats]| {
        let mut ids: Vec<String> = stats
            .iter()
            .map(|s| s.attributes.clone().unwrap_or_default().id)
            .collect();
        ids.sort();
        ids
    };
    ensure!(!plain.is_empty() && of(&plain) == of(&streamed));
    let one = streamed
        .iter()
        .find(|s| s.attributes.as_ref().is_some_and(|a| a.id == running))
        .context("the running container has no statistics")?;
    let memory = one.memory.as_ref().and_then(|m| m.usage_bytes.as_ref());
    ensure!(memory.is_some_and(|m| m.value > 0), "{one:?}");

    let plain = cri
        .call(|mut c| async move {
            c.runtime
                .list_pod_sandbox_stats(ListPodSandboxStatsRequest::default())
                .await
        })?
        .stats;
    let streamed = cri.collect(|mut c| async move {
        c.runtime
            .stream_pod_sandbox_stats(StreamPodSandboxStatsRequest::default())
            .await
    })?;
    let streamed: Vec<_> = streamed.into_iter().flat_map(|m| m.pod_sandbox_stats).collect();
    let of = |stats: &[PodSandboxStats]| {
        let mut ids: Vec<String> = stats
            .iter()
            .map(|s| s.attributes.clone().unwrap_or_default().id)
            .collect();
        ids.sort();
        ids
    };
    ensure!(plain.len() == 2 && of(&plain) == of(&streamed));
    Ok(())
}

fn sorted<'t, T, K: Ord + 't>(items: &'t [T], key: impl Fn(&'t T) -> &'t K) -> Vec<&'t T> {
    let mut items: Vec<&T> = items.iter().collect();
    items.sort_by(|a, b| key(a).cmp(key(b)));
    items
}

#[test]
fn metrics_have_the_labels_that_their_descriptors_name() {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        let busy = ContainerSpec::sh("busy", "while :; do :; done");
        let (sandbox, container) = crictl.start_pod(&PodSpec::new("measured"), &busy)?;
        let cri = Cri::connect(node)?;
        let descriptors = cri
            .call(|mut c| async move {
                c.runtime
                    .list_metric_descriptors(ListMetricDescriptorsRequest::default())
                    .await
            })?
            .descriptors;
        let labels: BTreeMap<&str, &[String]> = descriptors
            .iter()
            .map(|d| (d.name.as_str(), d.label_keys.as_slice()))
            .collect();
        ensure!(labels.len() == descriptors.len(), "a name is described twice");
        ensure!(
            descriptors.iter().all(|d| !d.help.is_empty()),
            "a metric without help"
        );

        // A full second of CPU time, because values are whole numbers.
        let mut last = None;
        wait_until("a second of CPU time", PATIENCE, || {
            let mut pods = cri
                .call(|mut c| async move {
                    c.runtime
                        .list_pod_sandbox_metrics(ListPodSandboxMetricsRequest::default())
                        .await
                })?
                .pod_metrics;
            let pod = pods.pop().context("no pod is measured")?;
            ensure!(pods.is_empty(), "more than one pod is measured");
            let seconds = value(
                &pod.container_metrics,
                &container,
                "container_cpu_usage_seconds_total",
            );
            last = Some(pod);
            Ok(seconds.is_some_and(|s| s > 0))
        })?;
        let pod = last.context("no pod was measured")?;
        ensure!(pod.pod_sandbox_id == sandbox);
        let all = pod
            .metrics
            .iter()
            .chain(pod.container_metrics.iter().flat_map(|c| &c.metrics));
        for metric in all {
            let keys = labels
                .get(metric.name.as_str())
                .with_context(|| format!("{} has no descriptor", metric.name))?;
            ensure!(
                keys.len() == metric.label_values.len(),
                "{}: the labels {keys:?} have the values {:?}",
                metric.name,
                metric.label_values
            );
            let at = keys.iter().position(|k| k == "pod").context("no label `pod`")?;
            ensure!(metric.label_values[at] == "measured", "{metric:?}");
        }
        ensure!(
            value(&pod.container_metrics, &container, "container_memory_usage_bytes").is_some_and(|v| v > 0)
        );
        let received = pod.metrics.iter().any(|m| {
            m.name == "container_network_receive_bytes_total" && m.label_values.contains(&"eth0".into())
        });
        ensure!(received, "the pod's network isn't measured");

        let streamed = cri.collect(|mut c| async move {
            c.runtime
                .stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest::default())
                .await
        })?;
        let streamed: Vec<_> = streamed.into_iter().flat_map(|m| m.pod_sandbox_metrics).collect();
        let names = |pod: &PodSandboxMetrics| -> Vec<String> {
            let containers = pod.container_metrics.iter().flat_map(|c| &c.metrics);
            let all = pod.metrics.iter().chain(containers);
            all.map(|m| format!("{} {:?}", m.name, m.label_values)).collect()
        };
        ensure!(streamed.len() == 1 && names(&streamed[0]) == names(&pod));

        crictl.ok(&["stopp", &sandbox])?;
        let none = cri.call(|mut c| async move {
            c.runtime
                .list_pod_sandbox_metrics(ListPodSandboxMetricsRequest::default())
                .await
        })?;
        ensure!(none.pod_metrics.is_empty(), "a stopped pod is measured");
        crictl.remove_pod(&sandbox)
    });
}

fn value(containers: &[ContainerMetrics], id: &str, name: &str) -> Option<u64> {
    let container = containers.iter().find(|c| c.container_id == id)?;
    let metric = container.metrics.iter().find(|m| m.name == name)?;
    metric.value.as_ref().map(|v| v.value)
}

#[test]
fn a_pods_limits_change_while_it_runs() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        let (sandbox, container) = crictl.start_pod(&PodSpec::new("limited"), &sleeper("main"))?;
        let (given, _) = crictl.start_pod(
            &PodSpec::new("given").with("/linux/cgroup_parent", json!(node.child_cgroup("kubelets"))),
            &sleeper("main"),
        )?;
        let memory = |bytes: i64| {
            Some(LinuxContainerResources {
                memory_limit_in_bytes: bytes,
                ..Default::default()
            })
        };
        let cri = Cri::connect(node)?;
        let update = |id: &str, resources, overhead| {
            let request = UpdatePodSandboxResourcesRequest {
                pod_sandbox_id: id.to_owned(),
                resources,
                overhead,
            };
            cri.call(|mut c| async move { c.runtime.update_pod_sandbox_resources(request).await })
        };
        // What the containers may have, and what the pod costs beside them.
        update(&sandbox, memory(64 << 20), memory(16 << 20))?;
        let limit = limit_of(node, &sandbox)?.context("the pod has no memory cgroup")?;
        ensure!(limit == (80 << 20).to_string(), "the pod's limit is {limit}");
        ensure!(crictl.state(&container)? == "CONTAINER_RUNNING");
        update(&sandbox, memory(128 << 20), None)?;
        let limit = limit_of(node, &sandbox)?.context("the pod has no memory cgroup")?;
        ensure!(limit == (128 << 20).to_string(), "the pod's limit is {limit}");

        // A cgroup that the kubelet gave is its own to change.
        let before_update = limit_of(node, "kubelets")?.context("the given cgroup isn't there")?;
        update(&given, memory(64 << 20), None)?;
        ensure!(limit_of(node, "kubelets")?.as_ref() == Some(&before_update));

        let refused = update("no-such-pod", memory(64 << 20), None).err();
        ensure!(refused.is_some_and(|s| s.code() == Code::NotFound && s.message().contains("no-such-pod")));
        crictl.ok(&["stopp", &sandbox])?;
        let refused = update(&sandbox, memory(64 << 20), None).err();
        ensure!(
            refused
                .as_ref()
                .is_some_and(|s| s.code() == Code::FailedPrecondition && s.message().contains(&sandbox)),
            "{refused:?}"
        );
        crictl.remove_pod(&sandbox)?;
        crictl.remove_pod(&given)?;
        // Whoever gave the cgroup removes it.
        let remove = match node.driver() {
            Driver::Cgroupfs => format!(
                "for top in /sys/fs/cgroup /sys/fs/cgroup/*; do rmdir $top{} 2>/dev/null; done; true",
                node.child_cgroup_path("kubelets")
            ),
            Driver::Systemd => format!("systemctl stop {}", node.child_cgroup("kubelets")),
        };
        node.run("sh", &["-c", &remove])?.ok()?;
        node.assert_no_leaks(&before)
    });
}

/// The memory limit of a cgroup below the node's own; none if there is no such cgroup.
fn limit_of(node: &Node, name: &str) -> Result<Option<String>> {
    let own = node.child_cgroup_path(name);
    for file in [
        format!("/sys/fs/cgroup/memory{own}/memory.limit_in_bytes"),
        format!("/sys/fs/cgroup{own}/memory.max"),
    ] {
        if let Ok(text) = node.read(&file) {
            return Ok(Some(text.trim().to_owned()));
        }
    }
    Ok(None)
}

#[test]
fn the_runtimes_configuration_is_told_and_a_pod_cidr_is_taken() {
    in_node(Node::builder(), |node| {
        let cri = Cri::connect(node)?;
        let told =
            cri.call(|mut c| async move { c.runtime.runtime_config(RuntimeConfigRequest::default()).await })?;
        let linux = told.linux.context("nothing is told about Linux")?;
        let driver = match node.driver() {
            Driver::Cgroupfs => CgroupDriver::Cgroupfs,
            Driver::Systemd => CgroupDriver::Systemd,
        };
        ensure!(linux.cgroup_driver == driver as i32, "{linux:?}");
        let request = UpdateRuntimeConfigRequest {
            runtime_config: Some(RuntimeConfig {
                network_config: Some(NetworkConfig {
                    pod_cidr: "10.200.0.0/24".to_owned(),
                }),
            }),
        };
        cri.call(|mut c| async move { c.runtime.update_runtime_config(request).await })?;
        // The network's own configuration is what counts.
        let crictl = node.crictl()?;
        let sandbox = crictl.run_pod(&PodSpec::new("addressed"))?;
        let ip = crictl.pod_ip(&sandbox)?;
        ensure!(ip.starts_with("10.88."), "the pod has {ip}");
        crictl.remove_pod(&sandbox)
    });
}

#[test]
fn a_log_is_reopened_whatever_became_of_its_file() {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        let script = "n=0; while :; do echo line $n; n=$((n+1)); sleep 0.02; done";
        let (sandbox, container) =
            crictl.start_pod(&PodSpec::new("logged"), &ContainerSpec::sh("main", script))?;
        let cri = Cri::connect(node)?;
        let reopen = |id: &str| {
            let request = ReopenContainerLogRequest {
                container_id: id.to_owned(),
            };
            cri.call(|mut c| async move { c.runtime.reopen_container_log(request).await })
        };
        let log = "/var/log/pods/logged/main.log";
        until_logged(&crictl, &container, "line 3")?;
        // As the kubelet does: the file is moved, and the container goes on in a new one.
        node.run("mv", &[log, "/var/log/pods/logged/main.log.1"])?.ok()?;
        reopen(&container)?;
        let more = |from: usize| {
            wait_until("more lines in the new file", PATIENCE, || {
                Ok(node.read(log).is_ok_and(|text| text.lines().count() > from))
            })
        };
        more(3)?;
        // Nothing moved: it goes on at the end of the same file.
        reopen(&container)?;
        let lines = node.read(log)?.lines().count();
        more(lines + 3)?;
        // With the folder gone, too, it is made again or refused, but the container goes on.
        let all = node.read("/var/log/pods/logged/main.log.1")? + &node.read(log)?;
        for (n, line) in all.lines().enumerate() {
            ensure!(line.ends_with(&format!(" F line {n}")), "line {n} is {line}");
        }
        node.run("rm", &["-r", "/var/log/pods/logged"])?.ok()?;
        let gone = reopen(&container);
        ensure!(crictl.state(&container)? == "CONTAINER_RUNNING", "{gone:?}");
        node.run("mkdir", &["-p", "/var/log/pods/logged"])?.ok()?;
        reopen(&container)?;
        more(3)?;

        let refused = reopen("no-such-container").err();
        ensure!(refused.is_some_and(|s| s.code() == Code::NotFound));
        crictl.ok(&["stop", "--timeout", "1", &container])?;
        until_state(&crictl, &container, "CONTAINER_EXITED")?;
        let refused = reopen(&container).err();
        ensure!(
            refused
                .as_ref()
                .is_some_and(|s| s.code() == Code::FailedPrecondition && s.message().contains(&container)),
            "{refused:?}"
        );
        crictl.remove_pod(&sandbox)
    });
}
