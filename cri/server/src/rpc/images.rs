//! The image service: thin over [`cri_images`].

use std::collections::HashMap;
use std::sync::Arc;

use cri_api::v1::*;
use cri_images::{Credentials, Image as Stored};
use serde_json::json;

use super::{Answers, stream_list};
use crate::errors::CallError;
use crate::node::{Node, detached};
use crate::stats::{WritableLayer, file_system};

fn wanted(spec: Option<ImageSpec>) -> Result<String, CallError> {
    spec.map(|spec| spec.image)
        .filter(|image| !image.is_empty())
        .ok_or_else(|| CallError::Invalid("the request names no image".to_owned()))
}

fn listed(node: &Node, filter: Option<ImageFilter>) -> Vec<Stored> {
    match wanted(filter.and_then(|f| f.image)) {
        Ok(name) => node.images.find(&name).into_iter().collect(),
        Err(_) => node.images.list(),
    }
}

/// An image as the CRI says it.
fn image(stored: &Stored) -> Image {
    let user = stored.config.config().as_ref().and_then(|c| c.user().clone());
    let user = user.unwrap_or_default();
    // `user[:group]`, each a name or a number.
    let name = user.split(':').next().unwrap_or_default();
    let uid = name.parse::<u32>().ok();
    Image {
        id: stored.id.clone(),
        repo_tags: stored.repo_tags.clone(),
        repo_digests: stored.repo_digests.clone(),
        size: stored.size,
        uid: uid.map(|uid| Int64Value {
            value: i64::from(uid),
        }),
        username: if uid.is_none() {
            name.to_owned()
        } else {
            String::new()
        },
        spec: None,
        pinned: stored.pinned,
    }
}

pub(super) async fn list(
    node: Arc<Node>,
    request: ListImagesRequest,
) -> Result<ListImagesResponse, CallError> {
    let images = listed(&node, request.filter);
    Ok(ListImagesResponse {
        images: images.iter().map(image).collect(),
    })
}

pub(super) async fn stream(
    node: Arc<Node>,
    request: StreamImagesRequest,
) -> Result<Answers<StreamImagesResponse>, CallError> {
    Ok(stream_list(
        listed(&node, request.filter),
        |stored| Some(image(stored)),
        |images| StreamImagesResponse { images },
    ))
}

pub(super) async fn status(
    node: Arc<Node>,
    request: ImageStatusRequest,
) -> Result<ImageStatusResponse, CallError> {
    let Some(found) = node.images.find(&wanted(request.image)?) else {
        return Ok(ImageStatusResponse::default());
    };
    let info = if request.verbose {
        let info = json!({ "imageSpec": found.config });
        [("info".to_owned(), info.to_string())].into()
    } else {
        HashMap::new()
    };
    Ok(ImageStatusResponse {
        image: Some(image(&found)),
        info,
    })
}

pub(super) async fn pull(node: Arc<Node>, request: PullImageRequest) -> Result<PullImageResponse, CallError> {
    let name = wanted(request.image)?;
    let auth = request.auth.map(|auth| Credentials {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    });
    detached(async move {
        let pulled = Box::pin(node.images.pull(&name, auth)).await.map_err(Box::new)?;
        tracing::info!(
            image = name,
            id = pulled.id,
            size = pulled.size,
            "image is pulled"
        );
        Ok(PullImageResponse { image_ref: pulled.id })
    })
    .await
}

pub(super) async fn remove(
    node: Arc<Node>,
    request: RemoveImageRequest,
) -> Result<RemoveImageResponse, CallError> {
    let name = wanted(request.image)?;
    detached(async move {
        if let Some(removed) = node.images.remove(&name).await? {
            tracing::info!(
                image = name,
                id = removed.id,
                names = ?removed.names,
                "image is removed"
            );
        }
        Ok(RemoveImageResponse {})
    })
    .await
}

pub(super) async fn fs_info(
    node: Arc<Node>,
    _request: ImageFsInfoRequest,
) -> Result<ImageFsInfoResponse, CallError> {
    let usage = node.images.fs_usage().await;
    let images = WritableLayer {
        mountpoint: usage.path.display().to_string(),
        used_bytes: usage.used_bytes,
        inodes_used: usage.inodes,
        on: None,
    };
    let mut containers = WritableLayer {
        mountpoint: images.mountpoint.clone(),
        ..WritableLayer::default()
    };
    for key in node.images.snapshots() {
        let usage = node.images.snapshot_usage(&key).await.unwrap_or_default();
        containers.used_bytes += usage.bytes;
        containers.inodes_used += usage.inodes;
    }
    let now = node.clock.now();
    Ok(ImageFsInfoResponse {
        image_filesystems: vec![file_system(now, &images)],
        container_filesystems: vec![file_system(now, &containers)],
    })
}
