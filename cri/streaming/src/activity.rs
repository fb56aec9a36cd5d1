//! Notices when a connection carries nothing any more.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// When something last went over a connection, in milliseconds after its beginning.
#[derive(Debug, Clone)]
pub(crate) struct Activity {
    began: Instant,
    last: Arc<AtomicU64>,
}

impl Activity {
    /// Wraps a connection.
    pub(crate) fn watch<T>(inner: T) -> (Watched<T>, Self) {
        let activity = Self {
            began: Instant::now(),
            last: Arc::default(),
        };
        (
            Watched {
                inner,
                activity: activity.clone(),
            },
            activity,
        )
    }

    fn note(&self) {
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(millis, Ordering::Relaxed);
    }

    /// Waits until nothing has gone over the connection for `idle`.
    pub(crate) async fn ends(&self, idle: Duration) {
        loop {
            let last = self.began + Duration::from_millis(self.last.load(Ordering::Relaxed));
            if last.elapsed() >= idle {
                return;
            }
            tokio::time::sleep_until(last + idle).await;
        }
    }
}

/// A connection that is watched.
#[derive(Debug)]
pub(crate) struct Watched<T> {
    inner: T,
    activity: Activity,
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.note();
        }
        result
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, bytes);
        if matches!(result, Poll::Ready(Ok(count)) if count > 0) {
            self.activity.note();
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn traffic_keeps_a_connection_alive() {
        let (near, _far) = tokio::io::duplex(100);
        let (mut near, activity) = Activity::watch(near);
        let begin = Instant::now();
        let ends = tokio::spawn(async move { activity.ends(Duration::from_secs(10)).await });
        tokio::time::sleep(Duration::from_secs(7)).await;
        near.write_all(b"x").await.unwrap();
        ends.await.unwrap();
        assert_eq!(begin.elapsed().as_secs(), 17);
    }
}
