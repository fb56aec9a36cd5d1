//! Ends pods in order when the machine shuts down, while logind waits.
//!
//! A thread listens to the bus, since that blocks; what it hears goes to a task, which ends the pods group by group and
//! then lets go of the inhibitor. A machine without logind is tried again now and then, and goes on without; that is told
//! once.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use controlplane_api::k8s_openapi::api::core::v1::Pod;
use kubelet_pods::status::StatusOverride;
use kubelet_pods::worker::{Cause, Update};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::adapters::NodeAdmission;
use crate::config::KubeletConfiguration;
use crate::events::{EventType, Regarding};
use crate::node::shutdown::logind::{Logind, SYSTEM_BUS};
use crate::node::shutdown::{DROP_IN, Running, TERMINATED, delay_seconds, groups, logind_drop_in, periods};
use crate::sync::Context;

/// How long until the bus is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// How often the task looks whether pods have ended.
const LOOK: Duration = Duration::from_millis(500);
/// How long logind is waited for at first after it was told to read its configuration, and how often, as upstream.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const PAUSES: usize = 5;
/// What pods have that don't say how long.
const DEFAULT_GRACE: i64 = 30;

/// The inhibitor, while it is held.
type Held = Arc<Mutex<Option<OwnedFd>>>;

/// Waits for shutdowns for ever, where the configuration wants pods ended in order.
pub(super) async fn run(ctx: Arc<Context>, admission: Arc<NodeAdmission>, config: KubeletConfiguration) {
    let periods = periods(&config);
    let seconds = delay_seconds(&periods);
    if seconds <= 0 {
        // A task that ends would end the kubelet.
        return std::future::pending().await;
    }
    let held = Held::default();
    let (tell, mut heard) = mpsc::channel(4);
    let of_thread = held.clone();
    let listening = std::thread::Builder::new()
        .name("logind".to_owned())
        .spawn(move || listen(seconds, &of_thread, &tell));
    if let Err(error) = listening {
        warn!(%error, "failed to listen to logind: shutdowns won't wait for pods");
    }
    while let Some(begins) = heard.recv().await {
        admission.shutting_down.store(begins, Ordering::SeqCst);
        if !begins {
            info!("the machine's shutdown was called off");
            continue;
        }
        tell_node(&ctx);
        let pods: Vec<Running> = ctx.registry.active().iter().map(|pod| running(pod)).collect();
        for group in groups(&periods, &pods) {
            end(&ctx, &group.pods, group.seconds).await;
        }
        release(&held);
    }
    std::future::pending().await
}

fn release(held: &Held) {
    held.lock().unwrap_or_else(PoisonError::into_inner).take();
}

fn tell_node(ctx: &Context) {
    let name = ctx.facts().node_name.clone();
    let about = Regarding {
        uid: &name,
        namespace: "",
        name: &name,
        field: None,
    };
    let message = "Shutdown manager detected shutdown event";
    ctx.events
        .record(&about, EventType::Normal, "NodeShutdown", message, ctx.now());
}

fn running(pod: &Pod) -> Running {
    let spec = pod.spec.as_ref();
    Running {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        priority: spec.and_then(|spec| spec.priority).unwrap_or(0),
        grace_seconds: spec
            .and_then(|spec| spec.termination_grace_period_seconds)
            .unwrap_or(DEFAULT_GRACE),
    }
}

/// What a pod's worker is told.
fn kill(seconds: i64) -> Update {
    let (reason, message) = TERMINATED;
    Update::Kill {
        cause: Cause::Killed,
        grace: Some(seconds),
        status: Some(StatusOverride {
            reason: reason.to_owned(),
            message: message.to_owned(),
            failed: true,
            disruption: Some(("TerminationByKubelet".to_owned(), message.to_owned())),
        }),
    }
}

/// Ends pods, and waits for them as long as they have together.
async fn end(ctx: &Context, pods: &[(String, i64)], seconds: i64) {
    for (uid, grace) in pods {
        // One that has gone meanwhile needs no ending.
        let _ = ctx.registry.tell(uid, kill(*grace));
    }
    let patience = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let until = tokio::time::Instant::now() + patience;
    while tokio::time::Instant::now() < until {
        let active = ctx.registry.active();
        let is_there = |uid: &String| active.iter().any(|pod| pod.metadata.uid.as_ref() == Some(uid));
        if !pods.iter().any(|(uid, _)| is_there(uid)) {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
    warn!("pods didn't end within their group's time at the machine's shutdown");
}

/// Listens to logind until nobody wants to hear of it.
fn listen(seconds: i64, held: &Held, tell: &mpsc::Sender<bool>) {
    let mut told = false;
    while !tell.is_closed() {
        match listen_once(seconds, held, tell) {
            Ok(()) => return,
            Err(error) if told => debug!(%error, "logind can't be listened to"),
            Err(error) => {
                warn!(%error, "logind can't be listened to: shutdowns won't wait for pods");
                told = true;
            }
        }
        std::thread::sleep(RETRY);
    }
}

fn listen_once(seconds: i64, held: &Held, tell: &mpsc::Sender<bool>) -> io::Result<()> {
    let bus = Path::new(SYSTEM_BUS);
    let mut logind = Logind::connect(bus)?;
    let wanted = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    if logind.longest_delay()? < wanted {
        raise(&Path::new("/etc/systemd").join(DROP_IN), seconds)?;
        logind.reload()?;
        let longest = settle(wanted, || logind.longest_delay(), std::thread::sleep)?;
        if longest < wanted {
            warn!(
                wanted_seconds = seconds,
                longest_seconds = longest.as_secs(),
                "logind doesn't wait as long as pods have at a shutdown: another InhibitDelayMaxSec counts more"
            );
        }
    }
    let mut watch = Logind::connect(bus)?.watch()?;
    loop {
        let inhibitor = logind.inhibit()?;
        *held.lock().unwrap_or_else(PoisonError::into_inner) = Some(inhibitor);
        // Taken again only when a shutdown was called off: during one logind gives none.
        loop {
            let begins = watch.wait()?;
            if tell.blocking_send(begins).is_err() {
                return Ok(());
            }
            if !begins {
                break;
            }
        }
        logind = Logind::connect(bus)?;
    }
}

/// The delay that logind grants once it has read its configuration again, which it does in its own time: asked a few
/// times, less and less often, while it is less than is wanted.
fn settle(
    wanted: Duration,
    mut longest: impl FnMut() -> io::Result<Duration>,
    mut pause: impl FnMut(Duration),
) -> io::Result<Duration> {
    let mut wait = FIRST_PAUSE;
    for _ in 0..PAUSES {
        pause(wait);
        wait *= 2;
        let found = longest()?;
        if found >= wanted {
            return Ok(found);
        }
    }
    longest()
}

/// Lets logind wait long enough from its next start or reload on.
fn raise(file: &Path, seconds: i64) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let next: PathBuf = file.with_extension("conf.new");
    fs::write(&next, logind_drop_in(seconds))?;
    fs::rename(next, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_end_with_what_they_say_and_are_told_why() {
        let pod = |spec: serde_json::Value| -> Pod {
            let manifest = serde_json::json!({"metadata": {"uid": "u"}, "spec": spec});
            serde_json::from_value(manifest).expect("a pod")
        };
        let found = running(&pod(serde_json::json!({
            "containers": [], "priority": 7, "terminationGracePeriodSeconds": 5
        })));
        assert_eq!(
            (found.uid.as_str(), found.priority, found.grace_seconds),
            ("u", 7, 5)
        );
        let found = running(&pod(serde_json::json!({"containers": []})));
        assert_eq!((found.priority, found.grace_seconds), (0, 30));
        let Update::Kill {
            cause: Cause::Killed,
            grace: Some(5),
            status: Some(status),
        } = kill(5)
        else {
            panic!("the pod isn't killed");
        };
        assert_eq!((status.reason.as_str(), status.failed), ("Terminated", true));
        assert_eq!(
            status.message,
            "Pod was terminated in response to imminent node shutdown."
        );
    }

    #[test]
    fn logind_is_told_in_its_drop_in_how_long_to_wait() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join(DROP_IN);
        raise(&file, 45).expect("written");
        let text = fs::read_to_string(&file).expect("there");
        assert!(text.contains("InhibitDelayMaxSec=45"), "{text}");
        let files = fs::read_dir(dir.path().join("logind.conf.d")).expect("listed");
        assert_eq!(files.count(), 1);
    }

    #[test]
    fn logind_is_asked_again_until_it_has_read_its_configuration() {
        let seconds = Duration::from_secs;
        let asked = |answers: &[u64]| {
            let mut answers = answers.iter().copied();
            let mut pauses = Vec::new();
            let longest = || {
                answers
                    .next()
                    .map(seconds)
                    .ok_or_else(|| io::Error::other("asked too often"))
            };
            let found = settle(seconds(30), longest, |pause| pauses.push(pause.as_millis()));
            (found.expect("answered"), pauses)
        };
        assert_eq!(asked(&[5, 5, 30]), (seconds(30), vec![100, 200, 400]));
        let (found, pauses) = asked(&[5; 6]);
        assert_eq!(
            (found, pauses.len()),
            (seconds(5), 5),
            "another setting counts more"
        );
    }

    #[test]
    fn no_pod_is_taken_while_the_machine_shuts_down() {
        use crate::sync::context::Allocations as _;
        let admission = NodeAdmission {
            node: Default::default(),
            registry: Arc::default(),
            placement: Default::default(),
            shutting_down: true.into(),
        };
        let (reason, message) = admission.admit(&Pod::default(), &[]).expect_err("it shuts down");
        assert_eq!(reason, "NodeShutdown");
        assert_eq!(message, "Pod was rejected as the node is shutting down.");
    }
}
