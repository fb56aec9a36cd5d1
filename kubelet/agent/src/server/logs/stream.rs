//! A log as a stream to a client, which may be slow, or gone.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cri_api::v1::ContainerState;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::file::{LogFile, Progress};
use super::options::LogOptions;
use crate::server::answers::Body;
use crate::server::seam::Kubelet;

/// Blocks under way to a client.
const UNDER_WAY: usize = 4;
/// The first pause at the end of a log that is followed; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest of these pauses.
const LONGEST_PAUSE: Duration = Duration::from_millis(320);
/// How often the runtime is asked whether the container still runs.
const ASK_EVERY: Duration = Duration::from_secs(1);

type Sender = mpsc::Sender<Result<Frame<Bytes>, io::Error>>;

/// Opens a log and streams it; follows it, where that is asked for, as long as the container runs and the client is there.
///
/// # Errors
/// When the log can't be opened.
pub(in crate::server) async fn open(
    kubelet: Arc<dyn Kubelet>,
    container_id: String,
    path: PathBuf,
    options: LogOptions,
) -> io::Result<Body> {
    let follow = options.follow;
    let file = blocking(move || LogFile::open(&path, &options)).await??;
    let (sender, receiver) = mpsc::channel(UNDER_WAY);
    tokio::spawn(async move {
        if let Err(error) = send(kubelet, &container_id, file, follow, &sender).await {
            // Nobody to tell when the client is gone.
            let _ = sender.send(Err(error)).await;
        }
    });
    Ok(StreamBody::new(ReceiverStream::new(receiver)).boxed_unsync())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

async fn send(
    kubelet: Arc<dyn Kubelet>,
    container_id: &str,
    mut file: LogFile,
    follow: bool,
    sender: &Sender,
) -> io::Result<()> {
    let mut pause = FIRST_PAUSE;
    let mut asked: Option<Instant> = None;
    let mut running = follow;
    loop {
        let (back, out, progress) = blocking(move || {
            let mut out = Vec::new();
            let progress = file.read(&mut out);
            (file, out, progress)
        })
        .await?;
        file = back;
        if !out.is_empty() {
            pause = FIRST_PAUSE;
            if sender.send(Ok(Frame::data(out.into()))).await.is_err() {
                return Ok(());
            }
        }
        match progress? {
            Progress::More => {}
            Progress::Full => return Ok(()),
            Progress::CaughtUp if !running => break,
            Progress::CaughtUp => {
                if asked.is_none_or(|asked| asked.elapsed() >= ASK_EVERY) {
                    asked = Some(Instant::now());
                    running = runs(kubelet.as_ref(), container_id).await;
                    if !running {
                        // It may have written until the end: once more through what is there.
                        continue;
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = sender.closed() => return Ok(()),
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
    let mut rest = Vec::new();
    file.finish(&mut rest);
    if !rest.is_empty() {
        let _ = sender.send(Ok(Frame::data(rest.into()))).await;
    }
    Ok(())
}

/// Whether more may come. When the runtime can't tell it may.
async fn runs(kubelet: &dyn Kubelet, container_id: &str) -> bool {
    use crate::server::seam::KubeletErrorKind::NotFound;
    match kubelet.container_status(container_id).await {
        Ok(status) => status.state() == ContainerState::ContainerRunning,
        Err(error) => error.kind != NotFound,
    }
}
