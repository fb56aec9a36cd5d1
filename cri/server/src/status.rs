//! Records as the CRI says them; pure.

use std::collections::HashMap;

use cri_api::v1;

use crate::store::{Cause, ContainerPhase, ContainerRecord, Ended, SandboxPhase, SandboxRecord};

/// What a sandbox's phase is called.
pub fn sandbox_state(phase: SandboxPhase) -> v1::PodSandboxState {
    match phase {
        SandboxPhase::Ready => v1::PodSandboxState::SandboxReady,
        SandboxPhase::Creating | SandboxPhase::Lost | SandboxPhase::Stopped => {
            v1::PodSandboxState::SandboxNotready
        }
    }
}

/// What a container's phase is called; one that is being made has no name.
pub fn container_state(phase: &ContainerPhase) -> Option<v1::ContainerState> {
    match phase {
        ContainerPhase::Creating => None,
        ContainerPhase::Created { .. } => Some(v1::ContainerState::ContainerCreated),
        ContainerPhase::Running { .. } => Some(v1::ContainerState::ContainerRunning),
        ContainerPhase::Exited(_) => Some(v1::ContainerState::ContainerExited),
    }
}

/// A line of ListPodSandbox.
pub fn sandbox_item(record: &SandboxRecord) -> v1::PodSandbox {
    v1::PodSandbox {
        id: record.id.to_string(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(record.phase) as i32,
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

/// PodSandboxStatus.
pub fn sandbox_status(record: &SandboxRecord) -> v1::PodSandboxStatus {
    let ready = record.phase == SandboxPhase::Ready;
    let mut ips = record.ips.iter().filter(|_| ready).map(ToString::to_string);
    let network = v1::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
    };
    let options = record
        .config
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref())
        .and_then(|s| s.namespace_options.clone())
        .unwrap_or_default();
    v1::PodSandboxStatus {
        id: record.id.to_string(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(record.phase) as i32,
        created_at: record.created_at,
        network: Some(network),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace {
                options: Some(options),
            }),
        }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

/// How the image of a container is called now, if it is still there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageNames {
    /// A reference with a tag.
    pub tag: Option<String>,
    /// A reference with a digest.
    pub digest: Option<String>,
}

fn image_spec(record: &ContainerRecord, names: &ImageNames) -> v1::ImageSpec {
    let mut spec = record.config.image.clone().unwrap_or_default();
    if let Some(tag) = &names.tag {
        spec.image.clone_from(tag);
    }
    spec
}

/// A line of ListContainers; `None` for one that is being made.
pub fn container_item(record: &ContainerRecord) -> Option<v1::Container> {
    Some(v1::Container {
        id: record.id.to_string(),
        pod_sandbox_id: record.sandbox.to_string(),
        metadata: record.config.metadata.clone(),
        image: Some(record.config.image.clone().unwrap_or_default()),
        image_ref: record.image_id.clone(),
        state: container_state(&record.phase)? as i32,
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image_id.clone(),
    })
}

/// Reason and message of an end.
fn why(ended: &Ended) -> (&'static str, String) {
    match &ended.cause {
        Cause::Exit if ended.code == 0 => ("Completed", String::new()),
        Cause::Exit => ("Error", String::new()),
        Cause::OomKilled => ("OOMKilled", String::new()),
        Cause::StartError(message) => ("StartError", message.clone()),
        Cause::Lost(message) => ("Error", message.clone()),
    }
}

/// ContainerStatus; `None` for a container that is being made.
pub fn container_status(record: &ContainerRecord, names: &ImageNames) -> Option<v1::ContainerStatus> {
    let state = container_state(&record.phase)?;
    let (mut started_at, mut finished_at, mut exit_code) = (0, 0, 0);
    let (mut reason, mut message) = ("", String::new());
    match &record.phase {
        ContainerPhase::Creating | ContainerPhase::Created { .. } => {}
        ContainerPhase::Running { started_at: at, .. } => started_at = *at,
        ContainerPhase::Exited(ended) => {
            (started_at, finished_at, exit_code) = (ended.started_at, ended.finished_at, ended.code);
            (reason, message) = why(ended);
        }
    }
    let linux = record.config.linux.as_ref();
    let image_ref = names.digest.as_ref().unwrap_or(&record.image_ref);
    Some(v1::ContainerStatus {
        id: record.id.to_string(),
        metadata: record.config.metadata.clone(),
        state: state as i32,
        created_at: record.created_at,
        started_at,
        finished_at,
        exit_code,
        image: Some(image_spec(record, names)),
        image_ref: image_ref.clone(),
        reason: reason.to_owned(),
        message,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        mounts: mounts(record),
        log_path: record
            .log_path
            .as_ref()
            .map(|p| p.display().to_string())
            .unwrap_or_default(),
        resources: Some(v1::ContainerResources {
            linux: Some(linux.and_then(|l| l.resources.clone()).unwrap_or_default()),
            windows: None,
        }),
        image_id: record.image_id.clone(),
        user: Some(v1::ContainerUser {
            linux: Some(v1::LinuxContainerUser {
                uid: i64::from(record.user.uid),
                gid: i64::from(record.user.gid),
                supplemental_groups: record.user.groups.iter().copied().map(i64::from).collect(),
            }),
        }),
        stop_signal: stop_signal(record.stop_signal) as i32,
    })
}

/// The container's mounts as asked for; those of images with the digest that they had.
fn mounts(record: &ContainerRecord) -> Vec<v1::Mount> {
    let mut mounts = record.config.mounts.clone();
    for mount in &mut mounts {
        if let (Some(image), Some(digest)) =
            (&mut mount.image, record.image_mounts.get(&mount.container_path))
        {
            image.image_ref.clone_from(digest);
        }
    }
    mounts
}

/// The CRI's name of a signal's number.
fn stop_signal(number: i32) -> v1::Signal {
    use v1::Signal as S;
    const CLASSIC: [S; 31] = [
        S::Sighup,
        S::Sigint,
        S::Sigquit,
        S::Sigill,
        S::Sigtrap,
        S::Sigabrt,
        S::Sigbus,
        S::Sigfpe,
        S::Sigkill,
        S::Sigusr1,
        S::Sigsegv,
        S::Sigusr2,
        S::Sigpipe,
        S::Sigalrm,
        S::Sigterm,
        S::Sigstkflt,
        S::Sigchld,
        S::Sigcont,
        S::Sigstop,
        S::Sigtstp,
        S::Sigttin,
        S::Sigttou,
        S::Sigurg,
        S::Sigxcpu,
        S::Sigxfsz,
        S::Sigvtalrm,
        S::Sigprof,
        S::Sigwinch,
        S::Sigio,
        S::Sigpwr,
        S::Sigsys,
    ];
    match number {
        1..=31 => usize::try_from(number - 1).map_or(S::RuntimeDefault, |n| CLASSIC[n]),
        // The enum counts the real-time signals 34 to 64 in their order.
        34..=64 => S::try_from(S::Sigrtmin as i32 + number - 34).unwrap_or(S::RuntimeDefault),
        _ => S::RuntimeDefault,
    }
}

/// What `crictl inspect` shows beside the status, by key: JSON texts.
pub type VerboseInfo = HashMap<String, String>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing;

    fn exited(code: i32, cause: Cause) -> v1::ContainerStatus {
        let mut record = testing::container(1, 1);
        record.phase = ContainerPhase::Exited(Ended {
            started_at: 5,
            finished_at: 9,
            code,
            cause,
        });
        container_status(&record, &ImageNames::default()).unwrap()
    }

    #[test]
    fn ends_have_reasons() {
        for (code, cause, reason, message) in [
            (0, Cause::Exit, "Completed", ""),
            (3, Cause::Exit, "Error", ""),
            (137, Cause::OomKilled, "OOMKilled", ""),
            (
                128,
                Cause::StartError("no such file".into()),
                "StartError",
                "no such file",
            ),
            (137, Cause::Lost("shim died".into()), "Error", "shim died"),
        ] {
            let status = exited(code, cause);
            assert_eq!(status.state(), v1::ContainerState::ContainerExited);
            assert_eq!((status.exit_code, status.reason.as_str()), (code, reason));
            assert_eq!(status.message, message);
            assert_eq!((status.started_at, status.finished_at), (5, 9));
        }
    }

    #[test]
    fn a_ready_sandbox_shows_all_its_addresses_and_a_stopped_one_none() {
        let mut record = testing::sandbox(1);
        let network = sandbox_status(&record).network.unwrap();
        assert_eq!(network.ip, "10.0.0.2");
        assert_eq!(network.additional_ips[0].ip, "fd00::2");
        record.phase = SandboxPhase::Stopped;
        let status = sandbox_status(&record);
        assert_eq!(status.state(), v1::PodSandboxState::SandboxNotready);
        assert_eq!(status.network.unwrap(), v1::PodSandboxNetworkStatus::default());
    }

    #[test]
    fn signals_have_their_names() {
        for (number, name) in [
            (15, "SIGNAL_SIGTERM"),
            (1, "SIGNAL_SIGHUP"),
            (31, "SIGNAL_SIGSYS"),
            (34, "SIGNAL_SIGRTMIN"),
            (37, "SIGNAL_SIGRTMINPLUS3"),
            (64, "SIGNAL_SIGRTMAX"),
            (0, "SIGNAL_RUNTIME_DEFAULT"),
            (99, "SIGNAL_RUNTIME_DEFAULT"),
        ] {
            assert_eq!(stop_signal(number).as_str_name(), name);
        }
    }

    #[test]
    fn what_is_being_made_has_no_status() {
        let mut record = testing::container(1, 1);
        record.phase = ContainerPhase::Creating;
        assert!(container_status(&record, &ImageNames::default()).is_none());
        assert!(container_item(&record).is_none());
    }

    #[test]
    fn the_image_is_called_as_it_is_now() {
        let names = ImageNames {
            tag: Some("r/x:1".into()),
            digest: Some("r/x@sha256:2".into()),
        };
        let status = container_status(&testing::container(1, 1), &names).unwrap();
        assert_eq!(status.image.unwrap().image, "r/x:1");
        assert_eq!(status.image_ref, "r/x@sha256:2");
        assert_eq!(status.image_id, "sha256:1");
    }
}
