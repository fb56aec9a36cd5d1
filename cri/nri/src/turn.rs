//! The word: while it is held, nobody else tells plugins anything, and none joins. Where plugins may want something of
//! other containers, the caller keeps it until that is done.

use prost::Message;
use tokio::sync::MutexGuard;

use std::sync::Arc;

use crate::error::NriError;
use crate::events;
use crate::merge::{Changes, Creation};
use crate::plugin::Plugin;
use crate::v1alpha1::{
    Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, CreateContainerRequest,
    CreateContainerResponse, Event, FieldOwners, LinuxResources, PluginInstance, PodSandbox,
    RunPodSandboxRequest, StartContainerRequest, StopContainerRequest, StopContainerResponse,
    UpdateContainerRequest, UpdateContainerResponse, UpdatePodSandboxRequest, UpdatePodSandboxResponse,
    ValidateContainerAdjustmentRequest, ValidateContainerAdjustmentResponse,
};

/// What all plugins want of a new container.
#[derive(Debug, Default)]
pub struct Adjusted {
    /// Of itself.
    pub adjust: ContainerAdjustment,
    /// Which plugin wants what of it.
    pub owners: FieldOwners,
    /// Of others.
    pub updates: Vec<ContainerUpdate>,
    /// Who shall go.
    pub evict: Vec<ContainerEviction>,
}

/// What all plugins make of an update.
#[derive(Debug, Default)]
pub struct Updated {
    /// The limits to set, those that were asked for included.
    pub resources: LinuxResources,
    /// What they want of others.
    pub others: Vec<ContainerUpdate>,
    /// Who shall go.
    pub evict: Vec<ContainerEviction>,
}

/// The word.
pub struct Turn<'a> {
    plugins: MutexGuard<'a, Vec<Arc<Plugin>>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.plugins.retain(|plugin| !plugin.connection.is_closed());
    }
}

impl<'a> Turn<'a> {
    pub(crate) fn new(plugins: MutexGuard<'a, Vec<Arc<Plugin>>>) -> Self {
        Self { plugins }
    }

    /// Whether there is nobody to talk to.
    pub fn is_empty(&self) -> bool {
        self.plugins.is_empty()
    }

    /// Tells of an event of a pod that has no answer.
    ///
    /// # Errors
    /// A plugin refuses it. Before something happens that ends it; after it, the others are told all the same.
    pub async fn pod(self, event: Event, pod: PodSandbox) -> Result<(), NriError> {
        // The messages of all these events are the same on the wire.
        let request = RunPodSandboxRequest {
            pod: Some(pod.clone()),
        };
        self.tell(event, &request, &pod, None).await
    }

    /// Tells of an event of a container that has no answer.
    ///
    /// # Errors
    /// As for [`Turn::pod`].
    pub async fn container(
        self,
        event: Event,
        pod: PodSandbox,
        container: Container,
    ) -> Result<(), NriError> {
        let request = StartContainerRequest {
            pod: Some(pod.clone()),
            container: Some(container.clone()),
        };
        self.tell(event, &request, &pod, Some(&container)).await
    }

    async fn tell(
        &self,
        event: Event,
        request: &impl Message,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<(), NriError> {
        let mut first = Ok(());
        for plugin in self.plugins.iter() {
            let told = plugin.tell(event, request, pod, container).await;
            if told.is_err() && matches!(event, Event::RunPodSandbox | Event::StartContainer) {
                return told;
            }
            first = first.and(told);
        }
        first
    }

    /// Tells that a pod's limits are about to change.
    ///
    /// # Errors
    /// A plugin refuses it.
    pub async fn update_pod(
        self,
        pod: PodSandbox,
        overhead: Option<LinuxResources>,
        resources: Option<LinuxResources>,
    ) -> Result<(), NriError> {
        let request = UpdatePodSandboxRequest {
            pod: Some(pod),
            overhead_linux_resources: overhead,
            linux_resources: resources,
        };
        for plugin in self.plugins.iter() {
            let _: Option<UpdatePodSandboxResponse> = plugin.ask(Event::UpdatePodSandbox, &request).await?;
        }
        Ok(())
    }

    /// Asks what should be different about a new container, and validators whether that may be.
    ///
    /// # Errors
    /// A plugin refuses the container, two plugins want the same thing, or a validator rejects what others want.
    pub async fn create_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<Adjusted, NriError> {
        let mut creation = Creation::new(container.clone());
        let mut asked = Vec::new();
        for plugin in self.plugins.iter() {
            asked.push(PluginInstance {
                name: plugin.name.clone(),
                index: plugin.index.clone(),
            });
            let request = CreateContainerRequest {
                pod: Some(pod.clone()),
                container: Some(creation.container.clone()),
            };
            let wish: Option<CreateContainerResponse> = plugin.ask(Event::CreateContainer, &request).await?;
            if let Some(wish) = wish {
                creation.apply(&plugin.title(), wish)?;
            }
        }
        let id = container.id.clone();
        self.validate(pod, container, &creation, asked).await?;
        Ok(Adjusted {
            adjust: creation.adjust,
            owners: creation.changes.owners.owners.remove(&id).unwrap_or_default(),
            updates: creation.changes.updates,
            evict: creation.evict,
        })
    }

    async fn validate(
        &self,
        pod: PodSandbox,
        container: Container,
        creation: &Creation,
        plugins: Vec<PluginInstance>,
    ) -> Result<(), NriError> {
        let event = Event::ValidateContainerAdjustment;
        let validators = || self.plugins.iter().filter(|plugin| plugin.events.has(event));
        if validators().next().is_none() {
            return Ok(());
        }
        let request = ValidateContainerAdjustmentRequest {
            pod: Some(pod),
            container: Some(container),
            adjust: Some(creation.adjust.clone()),
            update: creation.changes.updates.clone(),
            owners: Some(creation.changes.owners.clone()),
            plugins,
        };
        for plugin in validators().filter(|plugin| !plugin.connection.is_closed()) {
            let answer: Result<ValidateContainerAdjustmentResponse, _> = plugin
                .connection
                .call(events::method(event), &request, plugin.limit)
                .await;
            match answer {
                Ok(answer) if answer.reject => {
                    return Err(NriError::Rejected {
                        plugin: plugin.title(),
                        reason: answer.reason,
                    });
                }
                Ok(_) => {}
                // Unlike others, a validator that fails lets nothing through.
                Err(source) => {
                    if !matches!(source, crate::ConnectionError::Refused { .. }) {
                        plugin.drop_for(events::method(event), &source);
                    }
                    return Err(NriError::Validator {
                        plugin: plugin.title(),
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    /// Asks what to make of new limits.
    ///
    /// # Errors
    /// A plugin refuses them, or two plugins want the same thing.
    pub async fn update_container(
        &self,
        pod: PodSandbox,
        container: Container,
        resources: LinuxResources,
    ) -> Result<Updated, NriError> {
        let mut changes = Changes::of(&container.id, resources);
        let mut evict = Vec::new();
        for plugin in self.plugins.iter() {
            let asked = changes.updates.first().and_then(|update| update.linux.clone());
            let request = UpdateContainerRequest {
                pod: Some(pod.clone()),
                container: Some(container.clone()),
                linux_resources: asked.unwrap_or_default().resources,
            };
            let wish: Option<UpdateContainerResponse> = plugin.ask(Event::UpdateContainer, &request).await?;
            if let Some(wish) = wish {
                evict.extend(wish.evict);
                changes.apply(&plugin.title(), wish.update)?;
            }
        }
        // The first is the one that was asked for.
        let mut updates = changes.updates.into_iter();
        let first = updates.next().and_then(|update| update.linux).unwrap_or_default();
        Ok(Updated {
            resources: first.resources.unwrap_or_default(),
            others: updates.collect(),
            evict,
        })
    }

    /// Tells that a container has stopped; what plugins want of others now, and what the first of them that failed
    /// said. All are told.
    pub async fn stop_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> (Vec<ContainerUpdate>, Result<(), NriError>) {
        let mut changes = Changes::default();
        let mut first = Ok(());
        let request = StopContainerRequest {
            pod: Some(pod),
            container: Some(container),
        };
        for plugin in self.plugins.iter() {
            let wish = plugin
                .ask::<StopContainerResponse>(Event::StopContainer, &request)
                .await
                .and_then(|wish| changes.apply(&plugin.title(), wish.unwrap_or_default().update));
            first = first.and(wish);
        }
        (changes.updates, first)
    }
}
