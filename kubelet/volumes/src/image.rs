//! `image`: an image's files, which the runtime mounts by itself.

use std::path::Path;

use controlplane_api::k8s_openapi::api::core::v1::Volume;

use crate::error::PluginError;
use crate::seam::{Attributes, SetUp, Source, TearDown, VolumePlugin};

/// The plugin.
pub(crate) struct Image;

impl VolumePlugin for Image {
    fn name(&self) -> &'static str {
        "kubernetes.io/image"
    }

    fn supports(&self, volume: &Volume) -> bool {
        volume.image.is_some()
    }

    fn set_up(&self, _request: &SetUp<'_>) -> Result<bool, PluginError> {
        Ok(false)
    }

    fn tear_down(&self, _request: &TearDown<'_>) -> Result<(), PluginError> {
        Ok(())
    }

    fn source(&self, volume: &Volume, _dir: &Path) -> Source {
        let reference = volume.image.as_ref().and_then(|image| image.reference.clone());
        Source::Image {
            reference: reference.unwrap_or_default(),
        }
    }

    fn attributes(&self, _volume: &Volume) -> Attributes {
        Attributes {
            read_only: true,
            relabel: true,
        }
    }
}
