//! Images for containers: whether they must be pulled, by whom they are pulled, and what users are told meanwhile.
//!
//! However many containers want the same image at once, it is pulled once: the first asks, the others wait for the same
//! answer. At most `maxParallelImagePulls` are pulled at a time (one with `serializeImagePulls`). A pull goes on when the
//! pod that began it goes away, because the next one wants the same. What failed is tried again with a growing pause.

mod keyring;
pub mod reference;

pub use keyring::{BadCredentials, Keyring};

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cri_api::v1;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use jiff::{SignedDuration, Timestamp};
use kubelet_pods::backoff::PullBackoff;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::runtime::{CallError, Cri};

/// How long a failure itself is told before it is that its pull backs off.
const TOLD_FOR: SignedDuration = SignedDuration::from_secs(2);

/// An image that is there.
#[derive(Debug, Clone, PartialEq)]
pub struct Present {
    /// What containers are made from: the runtime's ID.
    pub reference: String,
    /// `USER` of the image: a number, or a name.
    pub user: (Option<i64>, String),
    /// The annotations that the image service wants back.
    pub annotations: BTreeMap<String, String>,
    /// How it came to be there.
    pub how: How,
}

/// How an image came to be there.
#[derive(Debug, Clone, PartialEq)]
pub enum How {
    /// It was there.
    Found,
    /// It was pulled: the time of the pull alone, the time with waiting, and its size in bytes.
    Pulled(Duration, Duration, u64),
}

/// An image that isn't there, as a container's `waiting` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// `ErrImagePull`, `ImagePullBackOff`, `InvalidImageName`, `ErrImageNeverPull`, `ImageInspectError`,
    /// `RegistryUnavailable` or `SignatureValidationFailed`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// When to ask again; none when only another spec helps.
    pub again_at: Option<Timestamp>,
}

/// When a container's image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Every time.
    Always,
    /// Where it isn't there.
    IfNotPresent,
    /// Never: somebody else puts it there.
    Never,
}

impl PullPolicy {
    /// The policy of a defaulted container.
    pub fn of(text: Option<&str>) -> Self {
        match text {
            Some("Always") => Self::Always,
            Some("Never") => Self::Never,
            _ => Self::IfNotPresent,
        }
    }
}

/// What a container wants.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The pod's UID: pauses are per pod.
    pub pod_uid: String,
    /// As the spec says.
    pub image: String,
    /// As the spec says.
    pub policy: PullPolicy,
    /// The runtime handler, for daemons that keep images per handler.
    pub handler: String,
    /// Credentials.
    pub keyring: Arc<Keyring>,
    /// The sandbox that the image is for.
    pub sandbox: v1::PodSandboxConfig,
}

type Answer = Result<(String, Duration), CallError>;
type Pull = Shared<BoxFuture<'static, Answer>>;
/// Image, handler and the credentials: two pods with other credentials don't share a pull.
type Key = (String, String, Vec<Vec<u8>>);

/// Pulls images.
pub struct Puller {
    cri: Cri,
    slots: Arc<Semaphore>,
    pulls: Mutex<BTreeMap<Key, Pull>>,
    backoff: Mutex<PullBackoff>,
}

/// Something that a pod's user is told while its image is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The image is there already.
    AlreadyPresent(String),
    /// The pull begins.
    Pulling(String),
}

impl Puller {
    /// A puller of at most so many images at a time.
    pub fn new(cri: Cri, parallel: usize) -> Self {
        Self {
            cri,
            slots: Arc::new(Semaphore::new(parallel.clamp(1, Semaphore::MAX_PERMITS))),
            pulls: Mutex::default(),
            backoff: Mutex::default(),
        }
    }

    /// Makes sure that an image is there.
    ///
    /// # Errors
    /// It isn't; the reason is the container's `waiting`.
    pub async fn ensure(
        self: &Arc<Self>,
        wanted: &Wanted,
        now: impl Fn() -> Timestamp,
        tell: impl Fn(Progress),
    ) -> Result<Present, Missing> {
        let image = &wanted.image;
        let name = reference::with_default_tag(image).map_err(|error| Missing {
            reason: "InvalidImageName",
            message: format!("Failed to apply default image tag \"{image}\": {error}"),
            again_at: None,
        })?;
        let spec = v1::ImageSpec {
            image: name.clone(),
            user_specified_image: image.clone(),
            runtime_handler: wanted.handler.clone(),
            ..Default::default()
        };
        let there = self.inspect(&spec).await.map_err(|error| Missing {
            reason: "ImageInspectError",
            message: format!("Failed to inspect image \"{image}\": {error}"),
            again_at: None,
        })?;
        match (there, wanted.policy) {
            (Some(found), PullPolicy::IfNotPresent | PullPolicy::Never) => {
                tell(Progress::AlreadyPresent(image.clone()));
                return Ok(present(found, How::Found));
            }
            (None, PullPolicy::Never) => {
                return Err(Missing {
                    reason: "ErrImageNeverPull",
                    message: format!("Container image \"{image}\" is not present with pull policy of Never"),
                    again_at: None,
                });
            }
            (_, PullPolicy::Always) | (None, PullPolicy::IfNotPresent) => {}
        }
        self.check_pause(wanted, now())?;
        tell(Progress::Pulling(image.clone()));
        let began = Instant::now();
        match self.pull(wanted, spec.clone()).await {
            Ok((reference, took)) => {
                self.backoff().succeeded(&wanted.pod_uid, image);
                self.pulled(spec, reference, took, began.elapsed()).await
            }
            Err(error) => Err(self.failed(wanted, &error, now())),
        }
    }

    async fn inspect(&self, spec: &v1::ImageSpec) -> Result<Option<v1::Image>, CallError> {
        let asked = v1::ImageStatusRequest {
            image: Some(spec.clone()),
            verbose: false,
        };
        Ok(self.cri.image_status(asked).await?.image)
    }

    /// What was pulled, as the daemon knows it.
    async fn pulled(
        &self,
        mut spec: v1::ImageSpec,
        reference: String,
        took: Duration,
        waited: Duration,
    ) -> Result<Present, Missing> {
        spec.image.clone_from(&reference);
        let found = self.inspect(&spec).await.ok().flatten();
        let size = found.as_ref().map_or(0, |image| image.size);
        let how = How::Pulled(took, waited, size);
        let mut present = present(found.unwrap_or_default(), how);
        present.reference = reference;
        Ok(present)
    }

    /// Joins the pull of the same image, or begins one.
    async fn pull(self: &Arc<Self>, wanted: &Wanted, spec: v1::ImageSpec) -> Answer {
        let credentials = wanted.keyring.credentials(&spec.image);
        let encoded = credentials.iter().map(prost::Message::encode_to_vec).collect();
        let key: Key = (spec.image.clone(), spec.runtime_handler.clone(), encoded);
        let pull = {
            let mut pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner);
            match pulls.get(&key) {
                Some(pull) => pull.clone(),
                None => {
                    let pull = self.begin(key.clone(), spec, credentials, wanted.sandbox.clone());
                    pulls.insert(key, pull.clone());
                    pull
                }
            }
        };
        pull.await
    }

    /// A pull that goes on when nobody waits for it any more.
    fn begin(
        self: &Arc<Self>,
        key: Key,
        spec: v1::ImageSpec,
        credentials: Vec<v1::AuthConfig>,
        sandbox: v1::PodSandboxConfig,
    ) -> Pull {
        let (puller, slots) = (self.clone(), self.slots.clone());
        let task = tokio::spawn(async move {
            let _slot = slots.acquire().await;
            let began = Instant::now();
            let answer = puller.try_each(&spec, credentials, &sandbox).await;
            puller
                .pulls
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&key);
            answer.map(|reference| (reference, began.elapsed()))
        });
        async move {
            task.await.unwrap_or_else(|error| {
                Err(tonic::Status::internal(format!("the pull ended early: {error}")).into())
            })
        }
        .boxed()
        .shared()
    }

    /// Tries one identity after the other; without any, nobody's.
    async fn try_each(
        &self,
        spec: &v1::ImageSpec,
        credentials: Vec<v1::AuthConfig>,
        sandbox: &v1::PodSandboxConfig,
    ) -> Result<String, CallError> {
        let mut identities: Vec<_> = credentials.into_iter().map(Some).collect();
        if identities.is_empty() {
            identities.push(None);
        }
        let mut last = CallError::from(tonic::Status::internal("no identity to pull with"));
        for auth in identities {
            let request = v1::PullImageRequest {
                image: Some(spec.clone()),
                auth,
                sandbox_config: Some(sandbox.clone()),
            };
            match self.cri.pull_image(request).await {
                Ok(reference) => return Ok(reference),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn check_pause(&self, wanted: &Wanted, now: Timestamp) -> Result<(), Missing> {
        match self.backoff().waits(&wanted.pod_uid, &wanted.image, now) {
            None => Ok(()),
            Some(wait) => Err(Missing {
                reason: "ImagePullBackOff",
                message: wait.message,
                again_at: Some(wait.until),
            }),
        }
    }

    fn failed(&self, wanted: &Wanted, error: &CallError, now: Timestamp) -> Missing {
        let (reason, message) = told(&wanted.image, error);
        let mut backoff = self.backoff();
        backoff.failed(
            &wanted.pod_uid,
            &wanted.image,
            &format!("{reason}: {message}"),
            now,
        );
        let wait = backoff.waits(&wanted.pod_uid, &wanted.image, now);
        // Soon after, who asks is told that it backs off, until it may be tried again.
        let soon = now.checked_add(TOLD_FOR).ok();
        Missing {
            reason,
            message,
            again_at: wait.map(|wait| wait.until).min(soon),
        }
    }

    /// Forgets what failed for a pod that is gone.
    pub fn forget_pod(&self, pod_uid: &str) {
        self.backoff().forget(pod_uid);
    }

    fn backoff(&self) -> MutexGuard<'_, PullBackoff> {
        self.backoff.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reason and the message of a failed pull. Daemons name special reasons at the head of their message.
fn told(image: &str, error: &CallError) -> (&'static str, String) {
    for reason in ["RegistryUnavailable", "SignatureValidationFailed"] {
        if let Some(rest) = error.description.strip_prefix(reason) {
            let rest = rest.trim_start_matches(':').trim();
            let message = if reason == "RegistryUnavailable" {
                format!("image pull failed for {image} because the registry is unavailable: {rest}")
            } else {
                format!("image pull failed for {image} because the signature validation failed: {rest}")
            };
            return (reason, message);
        }
    }
    ("ErrImagePull", error.message.clone())
}

fn present(image: v1::Image, how: How) -> Present {
    let spec = image.spec.unwrap_or_default();
    Present {
        reference: image.id,
        user: (image.uid.map(|uid| uid.value), image.username),
        annotations: spec.annotations.into_iter().collect(),
        how,
    }
}

#[cfg(test)]
mod tests;
