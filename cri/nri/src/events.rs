//! The events that plugins subscribe to.

use crate::v1alpha1::{ConfigureResponse, Event};

/// One bit for each event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Events(u32);

impl Events {
    /// All that NRI has.
    pub(crate) const ALL: Self = Self((1 << (Event::Last as u32 - 1)) - 1);

    /// What a plugin subscribes to; nothing means everything. The error holds the bits that mean nothing.
    pub(crate) fn of(answer: &ConfigureResponse) -> Result<Self, u32> {
        let bits = u32::from_ne_bytes(answer.events.to_ne_bytes());
        match bits & !Self::ALL.0 {
            0 if bits == 0 => Ok(Self::ALL),
            0 => Ok(Self(bits)),
            unknown => Err(unknown),
        }
    }

    /// Whether an event is among them.
    pub(crate) fn has(self, event: Event) -> bool {
        self.0 & Self::bit(event) != 0
    }

    /// An event's bit; `Unknown` has none.
    pub(crate) fn bit(event: Event) -> u32 {
        match event as u32 {
            0 => 0,
            number => 1 << (number - 1),
        }
    }
}

/// The method by which a plugin is told of an event.
pub(crate) fn method(event: Event) -> &'static str {
    match event {
        Event::RunPodSandbox => "RunPodSandbox",
        Event::UpdatePodSandbox => "UpdatePodSandbox",
        Event::PostUpdatePodSandbox => "PostUpdatePodSandbox",
        Event::StopPodSandbox => "StopPodSandbox",
        Event::RemovePodSandbox => "RemovePodSandbox",
        Event::CreateContainer => "CreateContainer",
        Event::PostCreateContainer => "PostCreateContainer",
        Event::StartContainer => "StartContainer",
        Event::PostStartContainer => "PostStartContainer",
        Event::UpdateContainer => "UpdateContainer",
        Event::PostUpdateContainer => "PostUpdateContainer",
        Event::StopContainer => "StopContainer",
        Event::RemoveContainer => "RemoveContainer",
        Event::ValidateContainerAdjustment => "ValidateContainerAdjustment",
        Event::Unknown | Event::Last => "StateChange",
    }
}

/// Whether older plugins are told of an event by `StateChange` only.
pub(crate) fn is_plain(event: Event) -> bool {
    matches!(
        event,
        Event::RunPodSandbox
            | Event::PostUpdatePodSandbox
            | Event::StopPodSandbox
            | Event::RemovePodSandbox
            | Event::PostCreateContainer
            | Event::StartContainer
            | Event::PostStartContainer
            | Event::PostUpdateContainer
            | Event::RemoveContainer
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(events: i32) -> Result<Events, u32> {
        Events::of(&ConfigureResponse {
            events,
            failure_policy: None,
        })
    }

    #[test]
    fn nothing_is_everything_and_the_unknown_is_refused() {
        let all = asked(0).unwrap();
        assert!(all.has(Event::RunPodSandbox) && all.has(Event::ValidateContainerAdjustment));
        assert!(!all.has(Event::Unknown) && !all.has(Event::Last));
        assert_eq!(asked(0x3fff), Ok(all));
        let some = asked(0b1000).unwrap();
        assert!(some.has(Event::CreateContainer) && !some.has(Event::RunPodSandbox));
        assert_eq!(asked(1 << 14), Err(1 << 14));
        assert_eq!(asked(-1), Err(!0x3fff));
    }
}
