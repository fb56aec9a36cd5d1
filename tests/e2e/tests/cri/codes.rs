//! Bad requests, by the gRPC codes that the kubelet acts on, and the message that names the thing.

use anyhow::{Context, Result, ensure};
use cri_api::v1::*;
use tests_harness::{Node, PodSpec};
use tonic::{Code, Status};

use crate::bed::{in_node, settled, sleeper};
use crate::client::{Cri, create, run_pod};

/// An ID that nothing has.
const ABSENT: &str = "no-such-thing";

/// Collects what isn't as it should be, so that one run shows all of it.
struct Table<'c> {
    cri: &'c Cri,
    wrong: Vec<String>,
}

impl Table<'_> {
    fn expect<T>(&mut self, what: &str, answer: Result<T, Status>, code: Code, named: &str) {
        match answer.map(drop) {
            Ok(()) if code == Code::Ok => {}
            Err(status) if status.code() == code && status.message().contains(named) => {}
            other => self.wrong.push(format!(
                "{what}: expected {code:?} naming `{named}`, got {other:?}"
            )),
        }
    }
}

/// Makes the call with a request and notes what is wrong with the answer.
macro_rules! row {
    ($table:ident, $service:ident.$call:ident($request:expr), $code:ident, $named:expr) => {
        let request = $request;
        let answer = $table
            .cri
            .call(move |mut c| async move { c.$service.$call(request).await });
        $table.expect(stringify!($call), answer, Code::$code, $named);
    };
}

#[test]
fn every_bad_request_has_its_code_and_names_the_thing() {
    in_node(Node::builder(), |node| {
        let before = settled(node)?;
        let crictl = node.crictl()?;
        let (sandbox, container) = crictl.start_pod(&PodSpec::new("good"), &sleeper("main"))?;
        let cri = Cri::connect(node)?;
        let mut table = Table {
            cri: &cri,
            wrong: Vec::new(),
        };
        absent(&mut table);
        images(&mut table);
        sandboxes(&mut table);
        containers(&mut table, &sandbox, &container);
        ensure!(table.wrong.is_empty(), "{}", table.wrong.join("\n"));
        let left = cri
            .call(|mut c| async move { c.runtime.list_containers(ListContainersRequest::default()).await })?;
        ensure!(left.containers.len() == 1, "{:?}", left.containers);
        crictl
            .remove_pod(&sandbox)
            .context("the good pod can't be removed")?;
        node.assert_no_leaks(&before)
    });
}

/// What isn't there. Stopping and removing it is done already.
#[rustfmt::skip]
fn absent(t: &mut Table<'_>) {
    let id = || ABSENT.to_owned();
    let container_id = id;
    let pod_sandbox_id = id;
    row!(t, runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id() }), Ok, "");
    row!(t, runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id() }), Ok, "");
    row!(t, runtime.stop_container(StopContainerRequest { container_id: id(), timeout: 0 }), Ok, "");
    row!(t, runtime.remove_container(RemoveContainerRequest { container_id: id() }), Ok, "");
    row!(t, runtime.pod_sandbox_status(PodSandboxStatusRequest { pod_sandbox_id: id(), verbose: false }), NotFound, ABSENT);
    row!(t, runtime.container_status(ContainerStatusRequest { container_id: id(), verbose: true }), NotFound, ABSENT);
    row!(t, runtime.start_container(StartContainerRequest { container_id: id() }), NotFound, ABSENT);
    row!(t, runtime.exec_sync(ExecSyncRequest { container_id: id(), cmd: vec!["true".into()], timeout: 1 }), NotFound, ABSENT);
    row!(t, runtime.exec(ExecRequest { container_id: id(), cmd: vec!["true".into()], stdout: true, ..Default::default() }), NotFound, ABSENT);
    row!(t, runtime.attach(AttachRequest { container_id: id(), stdout: true, ..Default::default() }), NotFound, ABSENT);
    row!(t, runtime.port_forward(PortForwardRequest { pod_sandbox_id: id(), port: vec![80] }), NotFound, ABSENT);
    row!(t, runtime.container_stats(ContainerStatsRequest { container_id: id() }), NotFound, ABSENT);
    row!(t, runtime.pod_sandbox_stats(PodSandboxStatsRequest { pod_sandbox_id: id() }), NotFound, ABSENT);
    row!(t, runtime.reopen_container_log(ReopenContainerLogRequest { container_id: id() }), NotFound, ABSENT);
    row!(t, runtime.update_container_resources(UpdateContainerResourcesRequest { container_id: container_id(), ..Default::default() }), NotFound, ABSENT);
    row!(t, runtime.update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest { pod_sandbox_id: pod_sandbox_id(), ..Default::default() }), NotFound, ABSENT);
    row!(t, runtime.create_container(create(ABSENT, "good", "c", "true")), NotFound, ABSENT);
    row!(t, runtime.checkpoint_container(CheckpointContainerRequest::default()), Unimplemented, "checkpoint");
    row!(t, runtime.checkpoint_pod(CheckpointPodRequest::default()), Unimplemented, "checkpoint");
    row!(t, runtime.restore_pod(RestorePodRequest::default()), Unimplemented, "checkpoint");
}

#[rustfmt::skip]
fn images(t: &mut Table<'_>) {
    let image = |name: &str| Some(ImageSpec { image: name.to_owned(), ..Default::default() });
    row!(t, images.pull_image(PullImageRequest::default()), InvalidArgument, "image");
    for bad in ["UPPER/Case:1", "name:tag:tag", "a b"] {
        row!(t, images.pull_image(PullImageRequest { image: image(bad), ..Default::default() }), InvalidArgument, bad);
    }
    let absent = "orlop.test/no-such-image:1";
    row!(t, images.pull_image(PullImageRequest { image: image(absent), ..Default::default() }), NotFound, absent);
    row!(t, images.image_status(ImageStatusRequest { image: image(absent), verbose: false }), Ok, "");
    row!(t, images.image_status(ImageStatusRequest::default()), InvalidArgument, "image");
    row!(t, images.remove_image(RemoveImageRequest { image: image(absent) }), Ok, "");
    row!(t, images.remove_image(RemoveImageRequest::default()), InvalidArgument, "image");
}

#[rustfmt::skip]
fn sandboxes(t: &mut Table<'_>) {
    row!(t, runtime.run_pod_sandbox(RunPodSandboxRequest::default()), InvalidArgument, "configuration");
    let with = |change: fn(&mut PodSandboxConfig)| {
        let mut request = run_pod("bad");
        change(request.config.as_mut().expect("`run_pod` gives one"));
        request
    };
    row!(t, runtime.run_pod_sandbox(with(|c| c.metadata = None)), InvalidArgument, "metadata");
    row!(t, runtime.run_pod_sandbox(with(|c| c.metadata = Some(Default::default()))), InvalidArgument, "metadata.name");
    row!(t, runtime.run_pod_sandbox(with(|c| c.hostname = "h".repeat(65))), InvalidArgument, "hostname");
    row!(t, runtime.run_pod_sandbox(with(|c| c.windows = Some(Default::default()))), InvalidArgument, "windows");
    row!(t, runtime.run_pod_sandbox(with(|c| c.linux = Some(LinuxPodSandboxConfig {
        cgroup_parent: "/a/../../b".to_owned(), ..Default::default()
    }))), InvalidArgument, "/a/../../b");
    row!(t, runtime.run_pod_sandbox(RunPodSandboxRequest {
        runtime_handler: "no-such-handler".to_owned(), ..run_pod("bad")
    }), InvalidArgument, "no-such-handler");
}

#[rustfmt::skip]
fn containers(t: &mut Table<'_>, sandbox: &str, container: &str) {
    let id = || container.to_owned();
    let with = |change: fn(&mut ContainerConfig)| {
        let mut request = create(sandbox, "good", "bad", "true");
        change(request.config.as_mut().expect("`create` gives one"));
        request
    };
    row!(t, runtime.create_container(CreateContainerRequest { config: None, ..create(sandbox, "good", "bad", "true") }), InvalidArgument, "configuration");
    row!(t, runtime.create_container(with(|c| c.metadata = None)), InvalidArgument, "metadata");
    row!(t, runtime.create_container(with(|c| c.metadata = Some(Default::default()))), InvalidArgument, "metadata.name");
    row!(t, runtime.create_container(with(|c| c.image = None)), InvalidArgument, "image");
    row!(t, runtime.create_container(with(|c| c.image = Some(ImageSpec { image: "orlop.test/none:1".into(), ..Default::default() }))), NotFound, "orlop.test/none:1");
    row!(t, runtime.create_container(with(|c| c.windows = Some(Default::default()))), InvalidArgument, "windows");
    row!(t, runtime.create_container(with(|c| c.stop_signal = 4321)), InvalidArgument, "4321");
    row!(t, runtime.create_container(with(|c| c.working_dir = "here".into())), InvalidArgument, "here");
    row!(t, runtime.start_container(StartContainerRequest { container_id: id() }), FailedPrecondition, container);
    row!(t, runtime.exec_sync(ExecSyncRequest { container_id: id(), cmd: vec![], timeout: 1 }), InvalidArgument, "cmd");
    row!(t, runtime.exec(ExecRequest { container_id: id(), stdout: true, ..Default::default() }), InvalidArgument, "cmd");
    row!(t, runtime.attach(AttachRequest { container_id: id(), tty: true, stderr: true, ..Default::default() }), InvalidArgument, "tty");
    row!(t, runtime.attach(AttachRequest { container_id: id(), ..Default::default() }), InvalidArgument, "stdout");
    row!(t, runtime.port_forward(PortForwardRequest { pod_sandbox_id: sandbox.to_owned(), port: vec![70_000] }), InvalidArgument, "70000");
    row!(t, runtime.update_container_resources(UpdateContainerResourcesRequest {
        container_id: id(), windows: Some(Default::default()), ..Default::default()
    }), InvalidArgument, "windows");
}
