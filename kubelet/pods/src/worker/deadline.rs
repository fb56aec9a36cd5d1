//! `activeDeadlineSeconds`: how long a pod may be active on the node, counted from its `status.startTime`.

use controlplane_api::k8s_openapi::api::core::v1::{Pod, PodStatus};
use jiff::Timestamp;

use crate::status::StatusOverride;
use crate::times::seconds_after;

/// When the pod's time is over; none where it has no deadline or hasn't started.
pub fn deadline(pod: &Pod, status: &PodStatus) -> Option<Timestamp> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
    Some(seconds_after(status.start_time.as_ref()?.0, seconds))
}

/// What the pod's status says once its time is over.
pub fn exceeded() -> StatusOverride {
    StatusOverride {
        reason: "DeadlineExceeded".to_owned(),
        message: "Pod was active on the node longer than the specified deadline".to_owned(),
        failed: true,
        disruption: None,
    }
}
