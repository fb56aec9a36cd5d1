//! Prometheus' text format 0.0.4, written line by line.

use std::fmt::Write as _;

/// What a family is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
}

/// Text in the making.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// Begins a family; its samples follow.
    pub fn family(&mut self, name: &str, help: &str, kind: Kind) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample, with its time in milliseconds since 1970 where it has one of its own.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64, at_millis: Option<i64>) {
        self.text.push_str(name);
        self.labels(labels, None);
        self.text.push(' ');
        self.text.push_str(&format_value(value));
        if let Some(at) = at_millis {
            let _ = write!(self.text, " {at}");
        }
        self.text.push('\n');
    }

    /// The samples of a histogram's series; `counts` are those of each bucket alone.
    pub fn histogram(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        bounds: &[f64],
        counts: &[u64],
        sum: f64,
        count: u64,
    ) {
        let mut below = 0;
        let ends = bounds
            .iter()
            .zip(counts)
            .map(|(bound, own)| (format_value(*bound), *own))
            .chain([("+Inf".to_owned(), count - counts.iter().sum::<u64>())]);
        for (bound, own) in ends {
            below += own;
            let _ = write!(self.text, "{name}_bucket");
            self.labels(labels, Some(&bound));
            let _ = writeln!(self.text, " {below}");
        }
        for (suffix, value) in [("sum", format_value(sum)), ("count", count.to_string())] {
            let _ = write!(self.text, "{name}_{suffix}");
            self.labels(labels, None);
            let _ = writeln!(self.text, " {value}");
        }
    }

    fn labels(&mut self, labels: &[(&str, &str)], bound: Option<&str>) {
        let all = labels.iter().copied().chain(bound.map(|bound| ("le", bound)));
        let mut first = true;
        for (name, value) in all {
            self.text.push(if first { '{' } else { ',' });
            first = false;
            let _ = write!(self.text, "{name}=\"");
            for character in value.chars() {
                match character {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    other => self.text.push(other),
                }
            }
            self.text.push('"');
        }
        if !first {
            self.text.push('}');
        }
    }

    /// The text.
    pub fn finish(self) -> String {
        self.text
    }
}

/// A number as Prometheus reads it.
pub fn format_value(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned()
    } else {
        value.to_string()
    }
}
