//! Measures what probes cost: HTTP probes with a period of one second against a server in this process, and the CPU time
//! of the one thread that the prober has. `cargo run --release -p kubelet-agent --example probes [PROBES] [SECONDS]`

use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use kubelet_agent::probing::{
    Exec, ExecError, ExecOutput, Limits, PodProbes, ProbeSink, Probed, ProbedContainer, Prober, Seen,
};
use kubelet_pods::probe::Change;
use nix::time::{ClockId, clock_gettime};
use serde_json::json;

struct NoExec;

#[async_trait]
impl Exec for NoExec {
    async fn exec_sync(&self, _: &str, _: &[String], _: Duration) -> Result<ExecOutput, ExecError> {
        Err(ExecError::Failed("there are no containers".to_owned()))
    }
}

#[derive(Default)]
struct Count {
    well: AtomicU64,
    ill: AtomicU64,
}

impl ProbeSink for Count {
    fn changed(&self, _: &str, _: &Change) {}

    fn probed(&self, probed: &Probed<'_>) {
        let count = if probed.outcome.label() == "successful" {
            &self.well
        } else {
            &self.ill
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn serve(listener: TcpListener) {
    let mut request = [0; 1024];
    while let Ok((mut stream, _)) = listener.accept() {
        // A probe that hangs up early is the prober's to count.
        let _ = stream.read(&mut request);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let probes = numbers.next().unwrap_or(Ok(1000))?;
    let seconds = numbers.next().unwrap_or(Ok(20))?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || serve(listener));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let count = Arc::new(Count::default());
        let next = AtomicU64::new(0);
        let spread = move |period: SignedDuration| {
            let part = next.fetch_add(1, Ordering::Relaxed) % probes;
            period * i32::try_from(part).unwrap_or(0) / i32::try_from(probes).unwrap_or(1)
        };
        let now = Timestamp::now();
        let prober = Prober::new(
            Arc::new(NoExec),
            count.clone(),
            Limits::default(),
            Box::new(spread),
            now,
        );
        let probe = json!({"httpGet": {"port": port, "path": "/healthz"}, "periodSeconds": 1});
        let spec = Arc::new(serde_json::from_value(
            json!({"name": "c", "livenessProbe": probe}),
        )?);
        for number in 0..probes {
            let seen = Seen::Running {
                id: format!("id-{number}"),
                started: now,
            };
            let container = ProbedContainer {
                spec: Arc::clone(&spec),
                seen,
            };
            let uid = format!("uid-{number}");
            let ip = Some([127, 0, 0, 1].into());
            prober.observe(
                &PodProbes {
                    uid,
                    ip,
                    terminating: false,
                    containers: vec![container],
                },
                now,
            );
        }
        let before = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
        let task = tokio::spawn(prober.run());
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        task.abort();
        let after = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
        let cpu = Duration::from(after)
            .saturating_sub(Duration::from(before))
            .as_secs_f64();
        let (well, ill) = (
            count.well.load(Ordering::Relaxed),
            count.ill.load(Ordering::Relaxed),
        );
        println!("{probes} HTTP probes a second for {seconds} s: {well} well, {ill} ill");
        println!(
            "{:.1}% of a core, {:.0} us a probe",
            100.0 * cpu / seconds as f64,
            1e6 * cpu / (well + ill).max(1) as f64
        );
        Ok(())
    })
}
