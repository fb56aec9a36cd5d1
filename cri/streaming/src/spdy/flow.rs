//! Flow control of what we send: how many bytes each stream, and the connection, may still carry.
//!
//! SPDY/3.1 gives both 64 KiB to start with, and the receiver adds to them as it consumes. The SPDY library that
//! `kubectl` and `crictl` are built with does none of this: it never sends a window update, and would stop hearing
//! from us after 64 KiB. So the counting always runs, but it only holds data back once the other side has shown, by
//! a window update or a setting, that it counts too. Until then TCP alone slows us down.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tokio::sync::Notify;

/// What every window starts with.
const INITIAL_WINDOW: i64 = 64 << 10;
/// A window never grows beyond this; who says otherwise is cut to it.
const MAX_WINDOW: i64 = (1 << 31) - 1;

#[derive(Debug)]
struct Windows {
    connection: i64,
    initial: i64,
    streams: BTreeMap<u32, i64>,
    counted: bool,
}

/// The windows of one connection.
#[derive(Debug)]
pub(crate) struct Flow {
    windows: Mutex<Windows>,
    grown: Notify,
}

impl Flow {
    pub(crate) fn new() -> Self {
        let windows = Windows {
            connection: INITIAL_WINDOW,
            initial: INITIAL_WINDOW,
            streams: BTreeMap::new(),
            counted: false,
        };
        Self {
            windows: Mutex::new(windows),
            grown: Notify::new(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Windows> {
        self.windows
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A stream begins.
    pub(crate) fn open(&self, stream: u32) {
        let mut windows = self.lock();
        let initial = windows.initial;
        windows.streams.insert(stream, initial);
    }

    /// A stream is over; who waits to send on it is told.
    pub(crate) fn close(&self, stream: u32) {
        self.lock().streams.remove(&stream);
        self.grown.notify_waiters();
    }

    /// Waits until something may be sent on a stream; takes and returns at most `wanted` bytes, `None` when the
    /// stream is over.
    pub(crate) async fn take(&self, stream: u32, wanted: usize) -> Option<usize> {
        loop {
            let grown = self.grown.notified();
            tokio::pin!(grown);
            // Registered before looking, so that growth in between is not missed.
            grown.as_mut().enable();
            if let Some(taken) = self.try_take(stream, wanted)? {
                return Some(taken);
            }
            grown.await;
        }
    }

    /// `None`: the stream is over. `Some(None)`: nothing may be sent now.
    fn try_take(&self, stream: u32, wanted: usize) -> Option<Option<usize>> {
        let mut windows = self.lock();
        let connection = windows.connection;
        let counted = windows.counted;
        let window = windows.streams.get_mut(&stream)?;
        let wanted = i64::try_from(wanted).unwrap_or(i64::MAX);
        let taken = if counted {
            wanted.min(*window).min(connection)
        } else {
            wanted
        };
        if taken <= 0 && wanted > 0 {
            return Some(None);
        }
        // Not below what a connection can ever win back, however long nobody counts.
        *window = (*window - taken).max(-MAX_WINDOW);
        windows.connection = (connection - taken).max(-MAX_WINDOW);
        Some(usize::try_from(taken).ok())
    }

    /// The other side allows more, on a stream or (0) on the connection.
    pub(crate) fn grow(&self, stream: u32, delta: u32) {
        let mut windows = self.lock();
        if !windows.counted {
            windows.start_counting();
        }
        let grow = |window: &mut i64| *window = (*window + i64::from(delta)).min(MAX_WINDOW);
        if stream == 0 {
            grow(&mut windows.connection);
        } else if let Some(window) = windows.streams.get_mut(&stream) {
            grow(window);
        }
        drop(windows);
        self.grown.notify_waiters();
    }

    /// The other side sets what a stream starts with; open ones change by the difference.
    pub(crate) fn set_initial(&self, initial: u32) {
        let mut windows = self.lock();
        if !windows.counted {
            windows.start_counting();
        }
        let initial = i64::from(initial).min(MAX_WINDOW);
        let change = initial - windows.initial;
        windows.initial = initial;
        for window in windows.streams.values_mut() {
            *window = (*window + change).min(MAX_WINDOW);
        }
        drop(windows);
        self.grown.notify_waiters();
    }
}

impl Windows {
    fn start_counting(&mut self) {
        self.counted = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_held_back_from_who_does_not_count() {
        let flow = Flow::new();
        flow.open(1);
        for _ in 0..100 {
            assert_eq!(flow.try_take(1, 16 << 10), Some(Some(16 << 10)));
        }
    }

    #[test]
    fn who_counts_gets_no_more_than_it_allows() {
        let flow = Flow::new();
        flow.open(1);
        flow.grow(1, 10);
        flow.grow(0, 20);
        assert_eq!(flow.try_take(1, 1 << 20), Some(Some((64 << 10) + 10)));
        assert_eq!(flow.try_take(1, 1), Some(None));
        flow.grow(1, 100);
        assert_eq!(
            flow.try_take(1, 100),
            Some(Some(10)),
            "the connection's window counts too"
        );
        flow.close(1);
        assert_eq!(flow.try_take(1, 1), None);
    }

    #[test]
    fn a_setting_changes_open_streams() {
        let flow = Flow::new();
        flow.open(1);
        flow.set_initial(100);
        flow.open(3);
        assert_eq!(flow.try_take(1, 1000), Some(Some(100)));
        assert_eq!(flow.try_take(3, 1000), Some(Some(100)));
    }

    #[tokio::test]
    async fn waiting_ends_when_the_window_grows_or_the_stream_is_over() {
        let flow = std::sync::Arc::new(Flow::new());
        flow.open(1);
        flow.set_initial(0);
        let waiting = tokio::spawn({
            let flow = flow.clone();
            async move { (flow.take(1, 5).await, flow.take(1, 5).await) }
        });
        tokio::task::yield_now().await;
        flow.grow(1, 3);
        tokio::task::yield_now().await;
        flow.close(1);
        assert_eq!(waiting.await.unwrap(), (Some(3), None));
    }
}
