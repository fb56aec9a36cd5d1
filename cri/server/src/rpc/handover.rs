//! Results that their caller must take.
//!
//! A caller that went away doesn't know the ID of what it asked for, and would ask again under the same name: so what
//! was made for it is removed, as if it had failed.

use tokio::sync::oneshot;
use tracing::Instrument as _;

use crate::errors::CallError;

/// Does `work` to its end, whatever becomes of the caller, and returns its result. When the caller has left before
/// it took the result, `unheard` gets it.
pub(super) async fn hand_over<T, U>(
    work: impl Future<Output = Result<T, CallError>> + Send + 'static,
    unheard: impl FnOnce(T) -> U + Send + 'static,
) -> Result<T, CallError>
where
    T: Clone + Send + 'static,
    U: Future<Output = ()> + Send,
{
    let (answer, answered) = oneshot::channel();
    let task = async move {
        let result = work.await;
        let made = result.as_ref().ok().cloned();
        let (take, taken) = oneshot::channel::<()>();
        // Sent isn't taken: the caller may leave between the two, and drops `take` then.
        let heard = answer.send((result, take)).is_ok() && taken.await.is_ok();
        if let Some(made) = made.filter(|_| !heard) {
            unheard(made).await;
        }
    };
    tokio::spawn(Box::pin(task).in_current_span());
    let (result, take) = answered.await.map_err(|_| CallError::Lost)?;
    // The task waits for it.
    let _ = take.send(());
    result
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;

    type Left = Arc<Mutex<Vec<i32>>>;

    fn keep(left: &Left) -> impl FnOnce(i32) -> std::future::Ready<()> + use<> {
        let left = left.clone();
        move |made| {
            left.lock().unwrap().push(made);
            ready(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_nobody_took_is_left() {
        let left = Left::default();
        assert_eq!(hand_over(ready(Ok(1)), keep(&left)).await.unwrap(), 1);
        let failed = hand_over(ready(Err(CallError::Lost)), keep(&left)).await;
        assert!(failed.is_err());
        let slow = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok(2)
        };
        let call = hand_over(slow, keep(&left));
        assert!(tokio::time::timeout(Duration::from_secs(1), call).await.is_err());
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(*left.lock().unwrap(), [2]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_sent_and_not_taken_is_left() {
        let left = Left::default();
        let mut call = Box::pin(hand_over(ready(Ok(3)), keep(&left)));
        // Begins the work; the answer is sent while nobody polls the call, which is then dropped.
        let polled = tokio::select! {
            biased;
            _ = &mut call => true,
            () = ready(()) => false,
        };
        assert!(!polled);
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(call);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(*left.lock().unwrap(), [3]);
    }

    #[tokio::test]
    async fn work_that_panics_is_lost() {
        let work = async { panic!("on purpose") };
        let lost = hand_over::<i32, std::future::Pending<()>>(work, |_| pending()).await;
        assert!(matches!(lost, Err(CallError::Lost)));
    }
}
