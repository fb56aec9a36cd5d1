//! Samples to medians, percentiles and ratios.

use std::time::Duration;

/// The times of one operation of one contestant.
#[derive(Debug, Default, Clone)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    /// Adds a time.
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// The value below which `percent` of the samples lie, in milliseconds.
    pub(crate) fn percentile(&self, percent: usize) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().checked_sub(1)?;
        sorted
            .get((last * percent).div_ceil(100))
            .map(|d| d.as_secs_f64() * 1e3)
    }
}

/// One row of a table: an operation, and each contestant's samples, ours first.
pub(crate) fn print_row(operation: &str, contestants: &[(String, Samples)]) {
    let median = |s: &Samples| s.percentile(50);
    let best_peer = contestants
        .iter()
        .skip(1)
        .filter_map(|(_, s)| median(s))
        .min_by(f64::total_cmp);
    print!("{operation:<22}");
    for (name, samples) in contestants {
        match (median(samples), samples.percentile(90)) {
            (Some(p50), Some(p90)) => print!("  {name} {p50:7.2} (p90 {p90:7.2})"),
            _ => print!("  {name}       - (p90       -)"),
        }
    }
    if let (Some(ours), Some(best)) = (contestants.first().and_then(|(_, s)| median(s)), best_peer) {
        print!("  ratio to best peer {:.2}", ours / best);
    }
    println!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let mut samples = Samples::default();
        assert_eq!(samples.percentile(50), None);
        (1..=10)
            .rev()
            .for_each(|n| samples.push(Duration::from_millis(n)));
        assert_eq!(samples.percentile(0), Some(1.0));
        assert_eq!(samples.percentile(50), Some(6.0));
        assert_eq!(samples.percentile(100), Some(10.0));
    }
}
