//! CPU rates from two readings.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// More cgroups than a node of the largest design size has (1,000 pods, a few containers each).
const MAX_SAMPLES: usize = 8192;
/// Two readings closer than this say more about the scheduler's ticks than about the load.
const SHORTEST_NANOS: i64 = 100_000_000;

/// The last reading of each cgroup's CPU time, and the rate it gave.
#[derive(Debug, Default)]
pub struct CpuSamples {
    last: Mutex<BTreeMap<String, Sample>>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: i64,
    usage: u64,
    rate: Option<u64>,
}

impl CpuSamples {
    /// Takes a reading of a cgroup, `id`, and gives the rate since the one before in billionths of a core. `None` at
    /// the first reading, and when the counter went back (the container was restarted under its name). A reading that
    /// comes too soon after the last gives the last rate again.
    pub fn rate(&self, id: &str, at: i64, usage_nanos: u64) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = Sample {
            at,
            usage: usage_nanos,
            rate: None,
        };
        let Some(known) = last.get_mut(id) else {
            if last.len() >= MAX_SAMPLES {
                forget_oldest(&mut last);
            }
            last.insert(id.to_owned(), fresh);
            return None;
        };
        let elapsed = at.saturating_sub(known.at);
        if (0..SHORTEST_NANOS).contains(&elapsed) && known.usage <= usage_nanos {
            return known.rate;
        }
        let rate = usage_nanos
            .checked_sub(known.usage)
            .filter(|_| elapsed > 0)
            .map(|used| {
                let rate = u128::from(used) * 1_000_000_000 / u128::from(elapsed.unsigned_abs());
                u64::try_from(rate).unwrap_or(u64::MAX)
            });
        *known = Sample { rate, ..fresh };
        rate
    }

    /// Drops a removed container's or pod's sample.
    pub fn forget(&self, id: &str) {
        self.last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }
}

fn forget_oldest(samples: &mut BTreeMap<String, Sample>) {
    let oldest = samples
        .iter()
        .min_by_key(|(_, sample)| sample.at)
        .map(|(id, _)| id.clone());
    if let Some(id) = oldest {
        samples.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn half_a_core_is_half_a_billion() {
        let samples = CpuSamples::default();
        assert_eq!(samples.rate("a", SECOND, 0), None);
        assert_eq!(samples.rate("a", 3 * SECOND, 1_000_000_000), Some(500_000_000));
        assert_eq!(samples.rate("b", 3 * SECOND, 1), None);
    }

    #[test]
    fn readings_too_close_together_give_the_last_rate() {
        let samples = CpuSamples::default();
        samples.rate("a", 0, 0);
        assert_eq!(samples.rate("a", SECOND / 1000, 999), None);
        assert_eq!(samples.rate("a", SECOND, 100), Some(100));
        assert_eq!(samples.rate("a", SECOND + 5, 90_000), Some(100));
    }

    #[test]
    fn a_counter_or_a_clock_that_goes_back_starts_again() {
        let samples = CpuSamples::default();
        samples.rate("a", 0, 500);
        assert_eq!(samples.rate("a", SECOND, 100), None);
        assert_eq!(samples.rate("a", 2 * SECOND, 200), Some(100));
        assert_eq!(samples.rate("a", SECOND, 300), None);
        assert_eq!(samples.rate("a", 2 * SECOND, 400), Some(100));
        samples.forget("a");
        assert_eq!(samples.rate("a", 3 * SECOND, 500), None);
    }

    #[test]
    fn the_table_stays_bounded_and_drops_the_oldest() {
        let samples = CpuSamples::default();
        for i in 0..=MAX_SAMPLES as i64 {
            samples.rate(&format!("c{i}"), i + 1, 0);
        }
        let table = samples.last.lock().unwrap();
        assert_eq!(table.len(), MAX_SAMPLES);
        assert!(!table.contains_key("c0") && table.contains_key("c1"));
    }
}
