//! `orlop timeline`: where the time of a pod's start went.
//!
//! Phases overlap: containers' images are pulled side by side, a sync goes on while something waits. So that the table adds
//! up, each moment belongs to one phase: to the latest-begun one of those that run. What no phase covers is a row of its
//! own.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::args::TimelineArguments;
use crate::client::{Client, escape};
use crate::failure::{Failure, print};
use crate::select::{self, name, namespace};
use crate::table;

/// What a timeline must cover to be believed.
const ENOUGH: f64 = 0.98;

/// The kubelet's answer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Timeline {
    start: Timestamp,
    end: Option<Timestamp>,
    #[serde(rename = "wallSeconds")]
    wall_seconds: f64,
    #[serde(default)]
    dropped: u64,
    phases: Vec<Phase>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Phase {
    name: String,
    start: Timestamp,
    end: Option<Timestamp>,
    container: Option<String>,
}

/// Prints it.
pub(crate) async fn run(client: &Client, options: &TimelineArguments) -> Result<(), Failure> {
    let pod = select::pod(client, &options.pod).await?;
    let path = format!("/timeline/{}/{}", escape(namespace(&pod)), escape(name(&pod)));
    let timeline: Timeline = client.object(&path).await?;
    if let Some(file) = &options.chrome {
        let trace = trace(&timeline, &format!("{}/{}", namespace(&pod), name(&pod)));
        std::fs::write(file, format!("{trace}\n"))
            .map_err(|error| Failure::new(format!("failed to write {}: {error}", file.display())))?;
    }
    print(&show(&timeline))?;
    let covered = covered(&timeline);
    if covered < ENOUGH {
        eprintln!("orlop: only {:.1}% of the time is accounted for", covered * 100.0);
    }
    Ok(())
}

/// Nanoseconds since the start.
fn offset(timeline: &Timeline, time: Timestamp) -> i128 {
    time.as_nanosecond() - timeline.start.as_nanosecond()
}

fn wall(timeline: &Timeline) -> i128 {
    match timeline.end {
        Some(end) => offset(timeline, end),
        None => (timeline.wall_seconds * 1e9) as i128,
    }
}

/// A phase's part of the start, both ends in nanoseconds since it.
fn span(timeline: &Timeline, phase: &Phase) -> (i128, i128) {
    let wall = wall(timeline);
    let start = offset(timeline, phase.start).clamp(0, wall);
    let end = phase
        .end
        .map_or(wall, |end| offset(timeline, end))
        .clamp(start, wall);
    (start, end)
}

/// How long each phase alone is to be charged for, and how long none is. They add up to the whole.
fn charges(timeline: &Timeline) -> (Vec<i128>, i128) {
    let wall = wall(timeline);
    let spans: Vec<(i128, i128)> = timeline
        .phases
        .iter()
        .map(|phase| span(timeline, phase))
        .collect();
    let mut moments: Vec<i128> = spans
        .iter()
        .flat_map(|(start, end)| [*start, *end])
        .chain([0, wall])
        .collect();
    moments.sort_unstable();
    moments.dedup();
    let mut charged = vec![0; spans.len()];
    let mut nobody = 0;
    for pair in moments.windows(2) {
        let (from, until) = (pair[0], pair[1]);
        let running = spans
            .iter()
            .enumerate()
            .filter(|(_, (start, end))| *start <= from && until <= *end);
        match running.max_by_key(|(index, (start, _))| (*start, *index)) {
            Some((index, _)) => charged[index] += until - from,
            None => nobody += until - from,
        }
    }
    (charged, nobody)
}

fn covered(timeline: &Timeline) -> f64 {
    let wall = wall(timeline);
    if wall <= 0 {
        return 1.0;
    }
    1.0 - charges(timeline).1 as f64 / wall as f64
}

fn show(timeline: &Timeline) -> String {
    let head = ["PHASE", "CONTAINER", "START", "TOOK", "CHARGED", "SHARE"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let wall = wall(timeline);
    let share = |nanos: i128| {
        let part = if wall > 0 { nanos as f64 / wall as f64 } else { 0.0 };
        format!("{:.1}%", part * 100.0)
    };
    let (charged, nobody) = charges(timeline);
    for (phase, nanos) in timeline.phases.iter().zip(&charged) {
        let (start, end) = span(timeline, phase);
        let running = if phase.end.is_none() { "+" } else { "" };
        rows.push(vec![
            phase.name.clone(),
            phase.container.clone().unwrap_or_else(|| "-".to_owned()),
            format!("+{}", millis(start)),
            format!("{}{running}", millis(end - start)),
            millis(*nanos),
            share(*nanos),
        ]);
    }
    let blank = || "-".to_owned();
    rows.push(vec![
        "(none)".to_owned(),
        blank(),
        blank(),
        blank(),
        millis(nobody),
        share(nobody),
    ]);
    let all = charged.iter().sum::<i128>() + nobody;
    rows.push(vec![
        "total".to_owned(),
        blank(),
        blank(),
        millis(wall),
        millis(all),
        share(all),
    ]);
    let mut text = table::render(&rows);
    if timeline.end.is_none() {
        text += "The pod doesn't run yet.\n";
    }
    if timeline.dropped > 0 {
        text += &format!("{} more phases weren't kept.\n", timeline.dropped);
    }
    text
}

fn millis(nanos: i128) -> String {
    format!("{:.1}ms", nanos as f64 / 1e6)
}

/// As Chrome's trace format: complete events, one thread a container.
fn trace(timeline: &Timeline, pod: &str) -> Value {
    let mut lanes: BTreeMap<&str, usize> = BTreeMap::new();
    lanes.insert("", 0);
    for phase in &timeline.phases {
        let next = lanes.len();
        lanes
            .entry(phase.container.as_deref().unwrap_or_default())
            .or_insert(next);
    }
    let micros = |nanos: i128| nanos as f64 / 1e3;
    let mut events = vec![json!({"ph": "M", "pid": 1, "name": "process_name", "args": {"name": pod}})];
    for (container, lane) in &lanes {
        let title = if container.is_empty() { "pod" } else { container };
        events
            .push(json!({"ph": "M", "pid": 1, "tid": lane, "name": "thread_name", "args": {"name": title}}));
    }
    for phase in &timeline.phases {
        let (start, end) = span(timeline, phase);
        let container = phase.container.as_deref().unwrap_or_default();
        events.push(json!({
            "ph": "X", "pid": 1, "tid": lanes.get(container), "name": phase.name, "cat": "pod",
            "ts": micros(start), "dur": micros(end - start), "args": {"container": container},
        }));
    }
    json!({"displayTimeUnit": "ms", "traceEvents": events})
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    fn phase(name: &str, start: i64, end: Option<i64>, container: Option<&str>) -> Phase {
        Phase {
            name: name.into(),
            start: at(start),
            end: end.map(at),
            container: container.map(str::to_owned),
        }
    }

    fn timeline(phases: Vec<Phase>, end: i64) -> Timeline {
        Timeline {
            start: at(0),
            end: Some(at(end)),
            wall_seconds: end as f64 / 1e3,
            dropped: 0,
            phases,
        }
    }

    #[test]
    fn the_table_adds_up() {
        let phases = vec![
            phase("queue", 0, Some(100), None),
            phase("pull", 100, Some(900), Some("web")),
            phase("pull", 300, Some(500), Some("side")),
        ];
        assert_eq!(
            show(&timeline(phases, 1000)),
            "PHASE    CONTAINER   START      TOOK       CHARGED    SHARE\n\
             queue    -           +0.0ms     100.0ms    100.0ms    10.0%\n\
             pull     web         +100.0ms   800.0ms    600.0ms    60.0%\n\
             pull     side        +300.0ms   200.0ms    200.0ms    20.0%\n\
             (none)   -           -          -          100.0ms    10.0%\n\
             total    -           -          1000.0ms   1000.0ms   100.0%\n"
        );
    }

    #[test]
    fn chrome_reads_the_trace() {
        let phases = vec![
            phase("sync", 1, Some(3), None),
            phase("start", 3, None, Some("web")),
        ];
        let trace = trace(&timeline(phases, 10), "x/web");
        let events = trace["traceEvents"].as_array().unwrap();
        assert_eq!(events[0]["args"]["name"], "x/web");
        let last = events.last().unwrap();
        assert_eq!(
            (&last["ph"], &last["ts"], &last["dur"]),
            (&json!("X"), &json!(3000.0), &json!(7000.0))
        );
        assert_eq!(
            (&last["tid"], &last["args"]["container"]),
            (&json!(1), &json!("web"))
        );
    }

    proptest! {
        #[test]
        fn charges_add_up_to_the_wall(
            spans in proptest::collection::vec((-5i64..60, proptest::option::of(-5i64..60)), 0..10),
            end in 0i64..50,
        ) {
            let phases = spans.iter().map(|(start, end)| phase("p", *start, *end, None)).collect();
            let timeline = timeline(phases, end);
            let (charged, nobody) = charges(&timeline);
            prop_assert!(charged.iter().all(|nanos| *nanos >= 0) && nobody >= 0);
            prop_assert_eq!(charged.iter().sum::<i128>() + nobody, i128::from(end) * 1_000_000);
            let covered_millis = (0..end)
                .filter(|t| spans.iter().any(|(from, until)| from <= t && *t < until.unwrap_or(end)))
                .count();
            prop_assert_eq!(i128::from(end) * 1_000_000 - nobody, covered_millis as i128 * 1_000_000);
        }
    }
}
