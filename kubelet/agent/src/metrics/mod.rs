//! Metrics in Prometheus' text format: counters, gauges and histograms in a registry that is handed in.
//!
//! A [`Registry`] holds families by name. A family has label names, and one series for each set of label values that
//! was seen; beyond [`MAX_SERIES`] further sets share one series whose values all say `other`, so that no label, however
//! unbounded, can eat the memory. [`KubeletMetrics`] names all that the kubelet measures, with upstream's names, helps and
//! buckets; it is cloned into whoever measures.

mod exposition;
mod kubelet;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use exposition::{Exposition, Kind, format_value};
pub use kubelet::KubeletMetrics;

/// The most series that one family keeps.
pub const MAX_SERIES: usize = 10_000;

/// What the series beyond [`MAX_SERIES`] are called.
const OVERFLOW: &str = "other";

/// Prometheus' default buckets, in seconds.
pub const DEFAULT_BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// `count` bounds from `start`, each `factor` times the one before.
pub fn exponential_buckets(start: f64, factor: f64, count: usize) -> Vec<f64> {
    std::iter::successors(Some(start), |bound| Some(bound * factor))
        .take(count)
        .collect()
}

/// Families by name. Clones are the same registry.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    families: Arc<Mutex<BTreeMap<&'static str, Arc<Family>>>>,
}

#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    buckets: Vec<f64>,
    series: Mutex<BTreeMap<Vec<String>, Value>>,
}

#[derive(Debug, Clone)]
enum Value {
    Number(f64),
    Histogram { counts: Vec<u64>, sum: f64, count: u64 },
}

/// A value that only grows.
#[derive(Debug, Clone)]
pub struct Counter(Arc<Family>);

/// A value that goes up and down.
#[derive(Debug, Clone)]
pub struct Gauge(Arc<Family>);

/// Counts of values by size.
#[derive(Debug, Clone)]
pub struct Histogram(Arc<Family>);

impl Registry {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// A counter; the same one where it is there already. Without labels it is shown as 0 from the start.
    pub fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
    ) -> Counter {
        Counter(self.family(name, help, Kind::Counter, labels, Vec::new()))
    }

    /// A gauge; the same one where it is there already. Without labels it is shown as 0 from the start.
    pub fn gauge(&self, name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Gauge {
        Gauge(self.family(name, help, Kind::Gauge, labels, Vec::new()))
    }

    /// A histogram with these upper bounds (ascending, without infinity); the same one where it is there already.
    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        buckets: &[f64],
    ) -> Histogram {
        Histogram(self.family(name, help, Kind::Histogram, labels, buckets.to_vec()))
    }

    fn family(
        &self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        labels: &'static [&'static str],
        buckets: Vec<f64>,
    ) -> Arc<Family> {
        let family = Arc::new(Family {
            name,
            help,
            kind,
            labels,
            buckets,
            series: Mutex::default(),
        });
        if labels.is_empty() {
            let zero = family.zero();
            lock(&family.series).insert(Vec::new(), zero);
        }
        let mut families = lock(&self.families);
        match families.get(name) {
            Some(known) if known.kind == kind && known.labels == labels => known.clone(),
            // Two of one name that differ: the later one is kept out of the text, which it would spoil.
            Some(_) => family,
            None => {
                families.insert(name, family.clone());
                family
            }
        }
    }

    /// All families as text, by name.
    pub fn encode(&self) -> String {
        let families: Vec<_> = lock(&self.families).values().cloned().collect();
        let mut text = Exposition::default();
        for family in families {
            family.encode(&mut text);
        }
        text.finish()
    }
}

impl Family {
    fn zero(&self) -> Value {
        match self.kind {
            Kind::Counter | Kind::Gauge => Value::Number(0.0),
            Kind::Histogram => Value::Histogram {
                counts: vec![0; self.buckets.len()],
                sum: 0.0,
                count: 0,
            },
        }
    }

    /// Changes the series of these label values; missing values are empty, surplus ones ignored.
    fn change(&self, values: &[&str], change: impl FnOnce(&mut Value)) {
        let key: Vec<String> = (0..self.labels.len())
            .map(|index| values.get(index).copied().unwrap_or_default().to_owned())
            .collect();
        let mut series = lock(&self.series);
        if let Some(value) = series.get_mut(&key) {
            return change(value);
        }
        let key = if series.len() >= MAX_SERIES {
            vec![OVERFLOW.to_owned(); self.labels.len()]
        } else {
            key
        };
        change(series.entry(key).or_insert_with(|| self.zero()));
    }

    fn add(&self, values: &[&str], amount: f64) {
        self.change(values, |value| {
            if let Value::Number(number) = value {
                *number += amount;
            }
        });
    }

    fn retain(&self, label: &str, keep: impl Fn(&str) -> bool) {
        if let Some(index) = self.labels.iter().position(|name| *name == label) {
            lock(&self.series).retain(|key, _| key.get(index).is_none_or(|value| keep(value)));
        }
    }

    fn value(&self, values: &[&str]) -> f64 {
        let key: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        match lock(&self.series).get(&key) {
            Some(Value::Number(number)) => *number,
            Some(Value::Histogram { count, .. }) => *count as f64,
            None => 0.0,
        }
    }

    fn encode(&self, text: &mut Exposition) {
        let series = lock(&self.series);
        if series.is_empty() {
            return;
        }
        text.family(self.name, self.help, self.kind);
        for (values, value) in series.iter() {
            let labels: Vec<(&str, &str)> = self
                .labels
                .iter()
                .copied()
                .zip(values.iter().map(String::as_str))
                .collect();
            match value {
                Value::Number(number) => text.sample(self.name, &labels, *number, None),
                Value::Histogram { counts, sum, count } => {
                    text.histogram(self.name, &labels, &self.buckets, counts, *sum, *count);
                }
            }
        }
    }
}

impl Counter {
    /// Adds one.
    pub fn inc(&self, labels: &[&str]) {
        self.0.add(labels, 1.0);
    }

    /// Adds `amount`; nothing where it is negative.
    pub fn add(&self, labels: &[&str], amount: f64) {
        self.0.add(labels, amount.max(0.0));
    }

    /// Forgets the series whose `label` has a value that isn't kept, such as those of pods that are gone.
    pub fn retain(&self, label: &str, keep: impl Fn(&str) -> bool) {
        self.0.retain(label, keep);
    }

    /// What it is now.
    pub fn value(&self, labels: &[&str]) -> f64 {
        self.0.value(labels)
    }
}

impl Gauge {
    /// Sets it.
    pub fn set(&self, labels: &[&str], number: f64) {
        self.0.change(labels, |value| *value = Value::Number(number));
    }

    /// Adds to it, or takes away.
    pub fn add(&self, labels: &[&str], amount: f64) {
        self.0.add(labels, amount);
    }

    /// Forgets the series whose `label` has a value that isn't kept.
    pub fn retain(&self, label: &str, keep: impl Fn(&str) -> bool) {
        self.0.retain(label, keep);
    }

    /// What it is now.
    pub fn value(&self, labels: &[&str]) -> f64 {
        self.0.value(labels)
    }
}

impl Histogram {
    /// Counts a value.
    pub fn observe(&self, labels: &[&str], number: f64) {
        let bucket = self.0.buckets.iter().position(|bound| number <= *bound);
        self.0.change(labels, |value| {
            if let Value::Histogram { counts, sum, count } = value {
                if let Some(slot) = bucket.and_then(|index| counts.get_mut(index)) {
                    *slot += 1;
                }
                *sum += number;
                *count += 1;
            }
        });
    }

    /// Counts a span of time, in seconds.
    pub fn observe_duration(&self, labels: &[&str], duration: std::time::Duration) {
        self.observe(labels, duration.as_secs_f64());
    }

    /// Forgets the series whose `label` has a value that isn't kept.
    pub fn retain(&self, label: &str, keep: impl Fn(&str) -> bool) {
        self.0.retain(label, keep);
    }

    /// How many values were counted.
    pub fn count(&self, labels: &[&str]) -> u64 {
        self.0.value(labels) as u64
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
