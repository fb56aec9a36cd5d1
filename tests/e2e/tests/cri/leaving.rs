//! Callers that go before the answer: whatever was made for them goes again, and what they asked for can be asked for
//! once more at once.
//!
//! Each call is held up in its middle by something foreign that waits at a gate: a network plugin, a runtime, a
//! registry that is stopped. Beside that, deadlines of every length cut calls of the built-in parts at random places.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cri_api::v1::*;
use serde_json::json;
use tests_harness::{Node, NodeBuilder, PodSpec, Snapshot, tools, wait_until};
use tonic::{Code, Status};

use crate::bed::{PATIENCE, in_node, settled, sleeper};
use crate::client::{Cri, Leaving, create, run_pod};

const GATE: &str = "/run/gate";
/// What waits at the gate: it says that it is there, and goes on when the gate is open.
const WAIT: &str = "if [ -e /run/gate/closed ]; then echo x >/run/gate/reached; \
                    while [ -e /run/gate/closed ]; do sleep 0.02; done; fi";

fn close(node: &Node) -> Result<()> {
    node.run("rm", &["-f", &format!("{GATE}/reached")])?.ok()?;
    node.write(&format!("{GATE}/closed"), "")
}

fn open(node: &Node) -> Result<()> {
    node.run("rm", &["-f", &format!("{GATE}/closed")])?.ok()?;
    Ok(())
}

fn reached(node: &Node) -> Result<bool> {
    Ok(node.read(&format!("{GATE}/reached")).is_ok())
}

fn script(node: &Node, path: &str, text: &str) -> Result<()> {
    node.write(path, &format!("#!/bin/sh\n{text}\n"))?;
    node.run("chmod", &["+x", path])?.ok()?;
    Ok(())
}

/// As [`once_free`], for a caller whose time may have been over when the answer was on its way: then the thing is
/// whole and listed, and whoever finds it removes it (`remove_listed`).
fn once_free_or_found<T>(
    mut ask: impl FnMut() -> Result<T, Status>,
    mut remove_listed: impl FnMut() -> Result<()>,
) -> Result<T> {
    once_free(|| {
        let answer = ask();
        if answer.as_ref().is_err_and(|s| s.code() == Code::AlreadyExists) {
            remove_listed().map_err(|e| Status::unknown(format!("{e:#}")))?;
        }
        answer
    })
}

/// Asks until the answer isn't that the name is taken: what was left is being removed.
fn once_free<T>(mut ask: impl FnMut() -> Result<T, Status>) -> Result<T> {
    let mut answer = None;
    wait_until("the name to be free", PATIENCE, || match ask() {
        Err(status) if status.code() == Code::AlreadyExists => Ok(false),
        other => {
            answer = Some(other);
            Ok(true)
        }
    })?;
    Ok(answer.context("asked at least once")??)
}

fn until_clean(node: &Node, before: &Snapshot) -> Result<()> {
    wait_until("nothing to be left", PATIENCE, || {
        Ok(before.leaks(&node.snapshot()?).is_empty())
    })
    .map(drop)
    .or_else(|_| node.assert_no_leaks(before))
}

#[test]
fn run_pod_sandbox_is_left() {
    in_node(Node::builder(), |node| {
        let usual: serde_json::Value = serde_json::from_str(&node.read("/etc/cni/net.d/10-orlop.conflist")?)?;
        let mut gated = usual.clone();
        gated["plugins"]
            .as_array_mut()
            .context("the network has plugins")?
            .push(json!({ "type": "gate" }));
        // The last of the chain, so that everything is made by then. It hands on what it was given.
        script(
            node,
            "/opt/cni/bin/gate",
            &format!(
                "cat >/run/gate.in; {WAIT}; [ $CNI_COMMAND = DEL ] || sed 's/.*\"prevResult\":\\({{.*}}\\),\"type\":\"gate\".*/\\1/' /run/gate.in"
            ),
        )?;
        node.write("/etc/cni/net.d/10-orlop.conflist", &gated.to_string())?;
        let before = settled(node)?;
        for how in Leaving::ALL {
            close(node)?;
            let left = Cri::connect(node)?.leave(
                how,
                run_pod("left"),
                |mut c, request| async move { c.runtime.run_pod_sandbox(request).await },
                || reached(node),
            );
            open(node)?;
            left.with_context(|| format!("{how:?}"))?;
            let cri = Cri::connect(node)?;
            let sandbox = once_free(|| {
                cri.call(|mut c| async move { c.runtime.run_pod_sandbox(run_pod("left")).await })
            })
            .with_context(|| format!("{how:?}: the same pod again"))?
            .pod_sandbox_id;
            let crictl = node.crictl()?;
            ensure!(
                crictl.ok(&["pods", "-q"])? == sandbox,
                "{how:?}: there is another pod"
            );
            crictl.remove_pod(&sandbox)?;
            until_clean(node, &before).with_context(|| format!("{how:?}"))?;
        }
        Ok(())
    });
}

/// A node whose handler `gated` is our own runtime behind a gate, once [`gate_runtime`] has put it there.
fn gated() -> NodeBuilder {
    Node::builder().config("[runtimes.gated]\npath = '/run/gated-runtime'\n")
}

/// Puts the runtime there; it is held up when it does `verb`.
fn gate_runtime(node: &Node, verb: &str) -> Result<()> {
    let ours = tools::ours("orlop-oci")?;
    script(
        node,
        "/run/gated-runtime",
        &format!(
            "case \" $* \" in *\" {verb} \"*) {WAIT};; esac\nexec {} \"$@\"",
            ours.display()
        ),
    )
}

#[test]
fn create_container_is_left() {
    in_node(gated(), |node| {
        gate_runtime(node, "create")?;
        let before = settled(node)?;
        let crictl = node.crictl()?;
        let pod = PodSpec::new("host");
        let sandbox = crictl
            .try_run_pod(&pod, &["--runtime", "gated"])?
            .ok()?
            .text()
            .to_owned();
        let with_pod = node.snapshot()?;
        for how in Leaving::ALL {
            close(node)?;
            let request = || create(&sandbox, "host", "left", "sleep 1000");
            let left = Cri::connect(node)?.leave(
                how,
                request(),
                |mut c, request| async move { c.runtime.create_container(request).await },
                || reached(node),
            );
            open(node)?;
            left.with_context(|| format!("{how:?}"))?;
            let cri = Cri::connect(node)?;
            let container =
                once_free(|| cri.call(|mut c| async move { c.runtime.create_container(request()).await }))
                    .with_context(|| format!("{how:?}: the same container again"))?
                    .container_id;
            ensure!(
                crictl.ok(&["ps", "-aq"])? == container,
                "{how:?}: there is another container"
            );
            crictl.ok(&["start", &container])?;
            crictl.ok(&["rm", "-f", &container])?;
            until_clean(node, &with_pod).with_context(|| format!("{how:?}"))?;
        }
        crictl.remove_pod(&sandbox)?;
        until_clean(node, &before)
    });
}

#[test]
fn exec_sync_is_left() {
    in_node(Node::builder(), |node| {
        let pid = node.daemon()?.pid();
        let before = settled(node)?;
        let crictl = node.crictl()?;
        let (sandbox, container) = crictl.start_pod(&PodSpec::new("asked"), &sleeper("main"))?;
        let with_pod = node.snapshot()?;
        let descriptors = || -> Result<usize> { Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count()) };
        let files = descriptors()?;
        for how in Leaving::ALL {
            let request = ExecSyncRequest {
                container_id: container.clone(),
                cmd: ["sh", "-c", "echo begun; exec sleep 4321"]
                    .map(str::to_owned)
                    .to_vec(),
                timeout: 0,
            };
            Cri::connect(node)?
                .leave(
                    how,
                    request,
                    |mut c, request| async move { c.runtime.exec_sync(request).await },
                    || Ok(node.run("pgrep", &["-x", "-f", "sleep 4321"])?.code == 0),
                )
                .with_context(|| format!("{how:?}"))?;
            // Nobody will ever hear what the command says: it is ended, as one that takes too long is.
            wait_until("the command's end", PATIENCE, || {
                Ok(node.run("pgrep", &["-x", "-f", "sleep 4321"])?.code != 0)
            })
            .with_context(|| format!("{how:?}"))?;
            ensure!(crictl.ok(&["exec", "-s", &container, "echo", "here"])? == "here");
            until_clean(node, &with_pod).with_context(|| format!("{how:?}"))?;
        }
        wait_until("the daemon's descriptors to be closed", PATIENCE, || {
            Ok(descriptors()? <= files + 2)
        })?;
        crictl.remove_pod(&sandbox)?;
        node.assert_no_leaks(&before)
    });
}

fn pull(image: &str) -> PullImageRequest {
    PullImageRequest {
        image: Some(ImageSpec {
            image: image.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn pull_image_is_left() {
    const LEFT: &str = "orlop.test/many-layers:1";
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        let files = || -> Result<String> {
            let list = "cd /var/lib/orlop/cri/images && find . -mindepth 2 | sort";
            Ok(node.run("sh", &["-c", list])?.ok()?.text().to_owned())
        };
        crictl.ok(&["pull", LEFT])?;
        crictl.ok(&["rmi", LEFT])?;
        wait_until("the image's files to be gone", PATIENCE, || {
            Ok(!files()?.contains("/trash/"))
        })?;
        let without = files()?;
        for how in Leaving::ALL {
            // The registry takes the connection, and doesn't answer.
            node.run("pkill", &["-STOP", "-x", "docker-registry"])?.ok()?;
            let asked = || {
                let waiting = node.run("ss", &["-Htn", "state", "established", "dst", "127.0.0.1:5000"])?;
                Ok(!waiting.text().is_empty())
            };
            let left = Cri::connect(node)?.leave(
                how,
                pull(LEFT),
                |mut c, request| async move { c.images.pull_image(request).await },
                asked,
            );
            node.run("pkill", &["-CONT", "-x", "docker-registry"])?.ok()?;
            left.with_context(|| format!("{how:?}"))?;
            again(node, LEFT).with_context(|| format!("{how:?}"))?;
            crictl.ok(&["rmi", LEFT])?;
            // What is removed is thrown away behind the caller's back.
            wait_until("the image's files to be gone", PATIENCE, || {
                Ok(files()? == without)
            })
            .with_context(|| format!("{how:?} left {:?} instead of {without}", files()))?;
        }
        node.assert_no_leaks(&before)
    });
}

/// The image comes in whole: a container sees all of its layers.
fn again(node: &Node, image: &str) -> Result<()> {
    let cri = Cri::connect(node)?;
    cri.call(|mut c| async move { c.images.pull_image(pull(image)).await })
        .context("the same image again")?;
    let crictl = node.crictl()?;
    let container = tests_harness::ContainerSpec::new(
        "all",
        image,
        &[
            "sh",
            "-c",
            "test \"$(ls /layers | wc -l)\" = 120 && echo whole; sleep 1000",
        ],
    );
    let (sandbox, id) = crictl.start_pod(&PodSpec::new("layers"), &container)?;
    crate::bed::until_logged(&crictl, &id, "whole")?;
    crictl.remove_pod(&sandbox)
}

/// Milliseconds that callers allow.
const DEADLINES: [u64; 16] = [1, 2, 3, 5, 8, 10, 13, 16, 20, 25, 30, 40, 50, 70, 100, 200];

#[test]
fn deadlines_of_every_length_leave_nothing() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        crictl.ok(&["pull", "orlop.test/many-layers:1"])?;
        crictl.ok(&["rmi", "orlop.test/many-layers:1"])?;
        let sandbox = crictl.run_pod(&PodSpec::new("host"))?;
        let with_pod = node.snapshot()?;
        let cri = Cri::connect(node)?;
        let (mut late, mut answered) = (0, 0);
        let mut count = |outcome: &Result<(), Status>| match outcome {
            Ok(()) => answered += 1,
            Err(_) => late += 1,
        };
        for millis in DEADLINES {
            let allowed = Duration::from_millis(millis);
            let run = within(&cri, allowed, run_pod("late"), |mut c, q| async move {
                c.runtime.run_pod_sandbox(q).await
            });
            count(&run.as_ref().map(drop).map_err(Clone::clone));
            // The caller doesn't know whether it was made: it asks for the same once more.
            let request = || create(&sandbox, "host", "late", "sleep 1000");
            let made = within(&cri, allowed, request(), |mut c, q| async move {
                c.runtime.create_container(q).await
            });
            count(&made.as_ref().map(drop).map_err(Clone::clone));
            let pulled = within(
                &cri,
                allowed,
                pull("orlop.test/many-layers:1"),
                |mut c, q| async move { c.images.pull_image(q).await },
            );
            count(&pulled.map(drop));
            if let Ok(made) = made {
                crictl.ok(&["rm", &made.container_id])?;
            }
            if let Ok(run) = run {
                crictl.remove_pod(&run.pod_sandbox_id)?;
            }
            let what = format!("after a deadline of {millis} ms");
            let id = once_free_or_found(
                || cri.call(|mut c| async move { c.runtime.create_container(request()).await }),
                || {
                    let listed = crictl.ok(&["ps", "-aq", "--name", "^late$"])?;
                    listed.lines().try_for_each(|id| remove_container(&cri, id))
                },
            )
            .with_context(|| what.clone())?
            .container_id;
            let pod = once_free_or_found(
                || cri.call(|mut c| async move { c.runtime.run_pod_sandbox(run_pod("late")).await }),
                || {
                    let listed = crictl.ok(&["pods", "-q", "--name", "^late$", "--state", "ready"])?;
                    listed.lines().try_for_each(|id| remove_pod(&cri, id))
                },
            )
            .with_context(|| what.clone())?
            .pod_sandbox_id;
            cri.call(|mut c| async move { c.images.pull_image(pull("orlop.test/many-layers:1")).await })
                .with_context(|| what.clone())?;
            crictl.ok(&["rm", &id])?;
            crictl.remove_pod(&pod)?;
            crictl.ok(&["rmi", "orlop.test/many-layers:1"])?;
            until_clean(node, &with_pod).with_context(|| what)?;
        }
        println!("{late} calls ran out of time, {answered} were answered");
        ensure!(
            late > 0 && answered > 0,
            "{late} late, {answered} answered: try other deadlines"
        );
        crictl.remove_pod(&sandbox)?;
        node.assert_no_leaks(&before)
    });
}

/// Not by crictl, which minds when somebody else is faster.
fn remove_container(cri: &Cri, id: &str) -> Result<()> {
    let container_id = id.to_owned();
    let request = RemoveContainerRequest { container_id };
    cri.call(|mut c| async move { c.runtime.remove_container(request).await })?;
    Ok(())
}

fn remove_pod(cri: &Cri, id: &str) -> Result<()> {
    let pod_sandbox_id = id.to_owned();
    let request = RemovePodSandboxRequest { pod_sandbox_id };
    cri.call(|mut c| async move { c.runtime.remove_pod_sandbox(request).await })?;
    Ok(())
}

fn within<Q, T, F>(
    cri: &Cri,
    allowed: Duration,
    request: Q,
    call: impl FnOnce(crate::client::Calls, tonic::Request<Q>) -> F,
) -> Result<T, Status>
where
    F: Future<Output = Result<tonic::Response<T>, Status>>,
{
    let mut request = tonic::Request::new(request);
    request.set_timeout(allowed);
    cri.call(|c| call(c, request))
}
