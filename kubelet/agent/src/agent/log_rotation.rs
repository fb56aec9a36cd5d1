//! Rotates the logs of running containers: every so often each is looked at, a few at a time.
//!
//! Where a container's log is the runtime is asked once; after that a look costs one `stat`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use controlplane_api::Quantity;
use cri_api::v1;
use futures_util::StreamExt as _;
use tokio::time::MissedTickBehavior;
use tracing::{debug, warn};

use super::adapters::chain;
use crate::config::KubeletConfiguration;
use crate::node::garbage::logs::{self, Policy, ReopenLog};
use crate::runtime::{CallError, Cri};
use crate::sync::Context;

/// The shortest time between two looks.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);

/// What is to be done, and by how many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Settings {
    policy: Policy,
    workers: usize,
    interval: Duration,
}

/// The settings of a configuration; none where logs aren't to be rotated.
fn settings(config: &KubeletConfiguration) -> Option<Settings> {
    let most: Quantity = config.container_log_max_size.parse().ok()?;
    let number = |number: i32| usize::try_from(number).unwrap_or(0).max(1);
    (most.signum() > 0).then(|| Settings {
        policy: Policy {
            most_bytes: most.value(),
            most_files: number(config.container_log_max_files),
        },
        workers: number(config.container_log_max_workers),
        interval: config.container_log_monitor_interval.to_std().max(LEAST_INTERVAL),
    })
}

#[async_trait]
impl ReopenLog for Cri {
    async fn reopen(&self, container_id: &str) -> Result<(), String> {
        let request = v1::ReopenContainerLogRequest {
            container_id: container_id.to_owned(),
        };
        let answer = self.reopen_container_log(request).await;
        answer.map(drop).map_err(|error| error.to_string())
    }
}

/// Goes round for ever, where the configuration wants logs rotated.
pub(super) async fn run(ctx: Arc<Context>, config: KubeletConfiguration) {
    let Some(settings) = settings(&config) else {
        // A task that ends would end the kubelet.
        return std::future::pending().await;
    };
    let mut ticks = tokio::time::interval(settings.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut paths = BTreeMap::new();
    loop {
        ticks.tick().await;
        match running(&ctx.cri, &mut paths).await {
            Ok(()) => look(&ctx, settings, &paths).await,
            Err(error) => debug!(%error, "failed to find the logs of running containers"),
        }
    }
}

/// Brings the paths of running containers' logs up to date.
async fn running(cri: &Cri, paths: &mut BTreeMap<String, PathBuf>) -> Result<(), CallError> {
    let filter = v1::ContainerFilter {
        state: Some(v1::ContainerStateValue {
            state: v1::ContainerState::ContainerRunning.into(),
        }),
        ..Default::default()
    };
    let request = v1::ListContainersRequest { filter: Some(filter) };
    let mut known = std::mem::take(paths);
    for container in cri.list_containers(request).await?.containers {
        let path = match known.remove(&container.id) {
            Some(path) => path,
            None => {
                let request = v1::ContainerStatusRequest {
                    container_id: container.id.clone(),
                    verbose: false,
                };
                match cri.container_status(request).await {
                    Ok(answer) => PathBuf::from(answer.status.unwrap_or_default().log_path),
                    Err(error) if error.is_not_found() => continue,
                    Err(error) => return Err(error),
                }
            }
        };
        paths.insert(container.id, path);
    }
    Ok(())
}

async fn look(ctx: &Context, settings: Settings, paths: &BTreeMap<String, PathBuf>) {
    let with_log = paths.iter().filter(|(_, path)| path.is_absolute());
    let all = futures_util::stream::iter(with_log);
    all.for_each_concurrent(settings.workers, |(id, path)| async move {
        let rotated = logs::rotate(&settings.policy, id, path, &ctx.cri, ctx.now()).await;
        match rotated {
            Ok(outcome) => debug!(container = id, ?outcome, "looked at a log"),
            Err(error) => warn!(container = id, error = chain(&error), "failed to rotate a log"),
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GoDuration;

    #[test]
    fn settings_are_the_configurations_and_negative_is_never() {
        let mut config = KubeletConfiguration {
            container_log_max_size: "10Mi".to_owned(),
            container_log_max_files: 5,
            container_log_max_workers: 2,
            container_log_monitor_interval: GoDuration::from_secs(10),
            ..Default::default()
        };
        let found = settings(&config).expect("logs are rotated");
        let policy = Policy {
            most_bytes: 10 << 20,
            most_files: 5,
        };
        assert_eq!((found.policy, found.workers), (policy, 2));
        assert_eq!(found.interval, Duration::from_secs(10));
        config.container_log_max_size = "-1".to_owned();
        assert_eq!(settings(&config), None);
    }
}
