//! The time that a caller allows for a call (`grpc-timeout`), and the answer when it is over.
//!
//! tonic ends such a call too, but says CANCELLED where gRPC's specification wants DEADLINE_EXCEEDED. A client that
//! counts for itself would see the one or the other, whichever clock is faster. So the call is ended here, inside of
//! tonic's own timer, which starts later.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tonic::Status;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderMap, Request, Response};

/// Answers DEADLINE_EXCEEDED when a call takes longer than its caller allows.
#[derive(Debug, Clone)]
pub(crate) struct Deadlines<S> {
    inner: S,
}

impl<S> Deadlines<S> {
    /// Around `inner`.
    pub(crate) fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S, Q, B> Service<Request<Q>> for Deadlines<S>
where
    S: Service<Request<Q>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    B: Default + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        match allowed(request.headers()) {
            None => Box::pin(self.inner.call(request)),
            Some(allowed) => {
                let until = Instant::now().checked_add(allowed);
                let call = self.inner.call(request);
                match until {
                    // Longer than the clock can count.
                    None => Box::pin(call),
                    Some(until) => Box::pin(within(call, until, allowed)),
                }
            }
        }
    }
}

async fn within<B: Default, E>(
    call: impl Future<Output = Result<Response<B>, E>>,
    until: Instant,
    allowed: Duration,
) -> Result<Response<B>, E> {
    let (mut call, mut sleep) = (pin!(call), pin!(sleep_until(until)));
    poll_fn(move |context| {
        if let Poll::Ready(answer) = call.as_mut().poll(context) {
            return Poll::Ready(answer);
        }
        // The clock itself is asked, not only the timer: tonic's timer may wake this task before ours does, and would
        // answer next.
        let over = sleep.as_mut().poll(context).is_ready() || Instant::now() >= until;
        if !over {
            return Poll::Pending;
        }
        let text = format!("the call was not done within the {allowed:?} that its caller allows");
        Poll::Ready(Ok(Status::deadline_exceeded(text).into_http()))
    })
    .await
}

/// What `grpc-timeout` says: at most eight digits and a unit. Anything else counts as no time-out.
fn allowed(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tonic::Code;

    use super::*;

    fn headers(timeout: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", timeout.parse().unwrap());
        headers
    }

    #[test]
    fn every_unit_is_understood_and_nothing_else() {
        let read = |text| allowed(&headers(text));
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("2M"), Some(Duration::from_secs(120)));
        assert_eq!(read("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(read("0m"), Some(Duration::ZERO));
        assert_eq!(read("5u"), Some(Duration::from_micros(5)));
        assert_eq!(read("7n"), Some(Duration::from_nanos(7)));
        for wrong in ["", "5", "m", "5s", "-5m", "+5m", "123456789m", "5 m", "5µ"] {
            let mut map = HeaderMap::new();
            map.insert(
                "grpc-timeout",
                tonic::codegen::http::HeaderValue::from_bytes(wrong.as_bytes()).unwrap(),
            );
            assert_eq!(allowed(&map), None, "{wrong}");
        }
        assert_eq!(allowed(&HeaderMap::new()), None);
    }

    /// A service that answers after a while.
    #[derive(Clone)]
    struct Slow(Duration);

    impl Service<Request<()>> for Slow {
        type Response = Response<()>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Response<()>, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            let takes = self.0;
            Box::pin(async move {
                tokio::time::sleep(takes).await;
                Ok(Response::new(()))
            })
        }
    }

    async fn answer(takes: u64, allows: Option<&str>) -> Option<Code> {
        let mut request = Request::new(());
        if let Some(allows) = allows {
            *request.headers_mut() = headers(allows);
        }
        let response = Deadlines::new(Slow(Duration::from_millis(takes)))
            .call(request)
            .await
            .unwrap();
        Status::from_header_map(response.headers()).map(|status| status.code())
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_takes_too_long_exceeds_its_deadline() {
        assert_eq!(answer(20, Some("10m")).await, Some(Code::DeadlineExceeded));
        assert_eq!(answer(10, Some("20m")).await, None);
        assert_eq!(answer(100_000, None).await, None);
        assert_eq!(answer(1, Some("0n")).await, Some(Code::DeadlineExceeded));
    }

    /// As tonic does: the call first, then a timer that was started later.
    #[tokio::test]
    async fn an_outer_timer_never_answers_first() {
        for _ in 0..200 {
            let mut request = Request::new(());
            *request.headers_mut() = headers("1m");
            let call = Deadlines::new(Slow(Duration::from_secs(60))).call(request);
            let outer = tokio::time::timeout(Duration::from_millis(1), call).await;
            let response = outer
                .expect("the call must have been answered from within")
                .unwrap();
            let status = Status::from_header_map(response.headers()).unwrap();
            assert_eq!(status.code(), Code::DeadlineExceeded);
        }
    }
}
