//! Ends containers and pods.

use std::net::IpAddr;
use std::time::Duration;

use controlplane_api::k8s_openapi::api::core::v1::Pod;
use cri_api::v1;
use futures_util::future::join_all;
use kubelet_pods::actions::stop::{grace_period, termination_order};
use kubelet_pods::actions::{KillContainer, KillContainerReason};
use kubelet_pods::containers;
use kubelet_pods::observed::{ObservedContainer, ObservedPod};
use tokio::time::Instant;

use super::context::Context;
use crate::events::EventType;
use crate::runtime::CallError;

/// What could not be ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum StopError {
    /// A container.
    #[error("failed to stop container {name}: {source}")]
    Container {
        /// Its name.
        name: String,
        /// What the daemon says.
        source: CallError,
    },
    /// A sandbox.
    #[error("failed to stop sandbox {id}: {source}")]
    Sandbox {
        /// Its ID.
        id: String,
        /// What the daemon says.
        source: CallError,
    },
}

/// One container's end.
struct Stop<'a> {
    id: &'a str,
    name: &'a str,
    grace: Duration,
    message: String,
    hooks: bool,
}

/// Ends containers of a pod that goes on, side by side.
pub(super) async fn containers_of(
    ctx: &Context,
    pod: &Pod,
    observed: &ObservedPod,
    orders: &[KillContainer],
) -> Result<(), StopError> {
    let ip = primary_ip(observed);
    let stops = orders.iter().map(|order| {
        let spec = containers::find(pod, &order.name).map(|(_, container)| container);
        let grace = order.grace.unwrap_or_else(|| {
            grace_period(
                pod,
                spec.as_ref(),
                Some(order.reason),
                pod.metadata.deletion_grace_period_seconds,
            )
        });
        one(
            ctx,
            Some(pod),
            ip,
            Stop {
                id: &order.id,
                name: &order.name,
                grace: seconds(grace),
                message: order.message.clone(),
                hooks: order.hooks && order.reason != KillContainerReason::Unknown,
            },
        )
    });
    join_all(stops).await.into_iter().collect()
}

/// Ends all containers of a pod, in order, and then its sandboxes. `grace` is shared by all steps.
pub(super) async fn pod(
    ctx: &Context,
    pod: Option<&Pod>,
    observed: &ObservedPod,
    grace: Option<i64>,
) -> Result<(), StopError> {
    let ip = primary_ip(observed);
    let unknown = Pod::default();
    let given = grace_period(pod.unwrap_or(&unknown), None, None, grace);
    let until = Instant::now() + seconds(given);
    for step in termination_order(pod.unwrap_or(&unknown), observed) {
        let left = until.saturating_duration_since(Instant::now()).max(MINIMUM);
        let running = step
            .containers
            .iter()
            .filter(|(id, _)| observed.by_id(id).is_some_and(|one| !never_ran(one)));
        let stops = running.map(|(id, name)| {
            one(
                ctx,
                pod,
                ip,
                Stop {
                    id,
                    name,
                    grace: left,
                    message: format!("Stopping container {name}"),
                    hooks: true,
                },
            )
        });
        join_all(stops).await.into_iter().collect::<Result<(), _>>()?;
    }
    sandboxes(ctx, observed).await
}

/// The least that a container is given.
const MINIMUM: Duration = Duration::from_secs(2);

/// A container that was made and not started: there is nothing to be stopped; its sandbox's end takes it along.
fn never_ran(container: &ObservedContainer) -> bool {
    matches!(container.state, kubelet_pods::observed::ContainerState::Created)
}

/// Stops the sandboxes that are ready.
async fn sandboxes(ctx: &Context, observed: &ObservedPod) -> Result<(), StopError> {
    let stops = observed
        .sandboxes
        .iter()
        .filter(|sandbox| sandbox.ready)
        .map(|sandbox| async {
            let request = v1::StopPodSandboxRequest {
                pod_sandbox_id: sandbox.id.clone(),
            };
            match ctx.cri.stop_pod_sandbox(request).await {
                Ok(_) => Ok(()),
                Err(error) if error.is_not_found() => Ok(()),
                Err(source) => Err(StopError::Sandbox {
                    id: sandbox.id.clone(),
                    source,
                }),
            }
        });
    join_all(stops).await.into_iter().collect()
}

/// Ends one container: its hook, then its signal, then SIGKILL, all within its grace.
async fn one(ctx: &Context, pod: Option<&Pod>, ip: Option<IpAddr>, stop: Stop<'_>) -> Result<(), StopError> {
    let began = Instant::now();
    if let Some(pod) = pod {
        ctx.event(pod, Some(stop.name), EventType::Normal, "Killing", stop.message);
        if stop.hooks {
            let hook = ctx.hooks.pre_stop(pod, ip, stop.name, stop.id, stop.grace).await;
            if let Err(message) = hook {
                ctx.event(
                    pod,
                    Some(stop.name),
                    EventType::Warning,
                    "FailedPreStopHook",
                    message,
                );
            }
        }
    }
    // As upstream: what a hook has used up is gone, but two seconds are always left.
    let left = stop
        .grace
        .saturating_sub(began.elapsed())
        .max(MINIMUM.min(stop.grace));
    match ctx.cri.stop_container(stop.id, whole_seconds(left)).await {
        Ok(()) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(source) => Err(StopError::Container {
            name: stop.name.to_owned(),
            source,
        }),
    }
}

/// Rounded up: CRI counts whole seconds.
fn whole_seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs() + u64::from(time.subsec_nanos() > 0))
}

/// The longest grace; what is longer can't be told from for ever, and overflows clocks.
const LONGEST: u64 = 365 * 24 * 3600;

fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0).min(LONGEST))
}

pub(super) fn primary_ip(observed: &ObservedPod) -> Option<IpAddr> {
    observed
        .sandbox()
        .and_then(|sandbox| sandbox.ips.first().copied())
}
