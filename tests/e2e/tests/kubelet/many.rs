//! Many pods at once.

use std::time::Instant;

use anyhow::ensure;

use crate::bed::{is_ready, manifest, sleeper, with_kubelet};

#[test]
fn sixty_pods_written_at_once_all_run() {
    with_kubelet(|bed| {
        let began = Instant::now();
        for number in 0..60 {
            let name = format!("pod-{number}");
            bed.apply(&format!("{name}.json"), &manifest(&name, &[sleeper("main")]))?;
        }
        tests_harness::wait_until("sixty pods to be ready", crate::bed::PATIENCE * 3, || {
            Ok(bed.pods()?.iter().filter(|pod| is_ready(pod)).count() == 60)
        })?;
        println!("60 pods were ready after {:.1} s", began.elapsed().as_secs_f64());
        let restarts: u64 = bed
            .pods()?
            .iter()
            .filter_map(|pod| pod["status"]["containerStatuses"][0]["restartCount"].as_u64())
            .sum();
        ensure!(restarts == 0, "{restarts} containers were restarted");
        Ok(())
    });
}
