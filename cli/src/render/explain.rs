//! The answer to `berth explain`, for terminals.

use berth_api::explain::Explanation;
use berth_api::time::Timestamp;

use super::text::duration;
use crate::output::{Paint, Screen};

/// What it is, what it waits for and since when, what would help, what each filter ruled out, the facts.
pub(crate) fn explanation(screen: &Screen, now: Timestamp, it: &Explanation) -> String {
    let since = it
        .since
        .map(|since| format!(" for {}", duration(now.since(since))))
        .unwrap_or_default();
    let mut lines = vec![
        format!(
            "{} {}{since}",
            screen.paint(Paint::Bold, &format!("{} {}", it.kind.as_str(), it.id)),
            screen.paint(state_paint(&it.state), &format!("is {}", it.state)),
        ),
        format!("  {}", it.summary),
    ];
    let label = |text: &str| screen.paint(Paint::Dim, &format!("{text:<12}"));
    for wait in &it.waits {
        lines.push(String::new());
        lines.push(format!("  {}{}", label("waits for"), wait.what));
        lines.push(format!(
            "  {}{} ({} ago)",
            label("since"),
            wait.since,
            duration(now.since(wait.since))
        ));
        if let Some(next) = wait.next_attempt {
            let until = next.since(now);
            let when = if until.is_zero() {
                "now".to_owned()
            } else {
                format!("in {}", duration(until))
            };
            lines.push(format!("  {}{when}", label("next try")));
        }
        lines.push(format!("  {}{}", label("helps"), wait.helps));
    }
    if !it.filters.is_empty() {
        lines.push(String::new());
        lines.push("  machines ruled out by".to_owned());
        let width = it
            .filters
            .iter()
            .map(|filter| filter.filter.len())
            .max()
            .unwrap_or(0);
        for filter in &it.filters {
            let nearest = filter
                .nearest
                .as_ref()
                .map(|nearest| format!("  nearest: {nearest}"));
            lines.push(format!(
                "    {:<width$}  {:>3}{}",
                filter.filter,
                filter.machines,
                nearest.unwrap_or_default()
            ));
        }
    }
    if !it.facts.is_empty() {
        lines.push(String::new());
        let width = it
            .facts
            .iter()
            .map(|(name, _)| name.chars().count())
            .max()
            .unwrap_or(0);
        for (name, value) in &it.facts {
            let name = screen.paint(Paint::Dim, &format!("{name:<width$}"));
            lines.push(format!("  {name}  {value}"));
        }
    }
    lines.join("\n")
}

fn state_paint(state: &str) -> Paint {
    match state {
        "running" | "healthy" | "ready" => Paint::Good,
        "failing" | "failed" | "unhealthy" | "unplaced" => Paint::Bad,
        _ => Paint::Warn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_api::explain::{FilterCount, Subject, Waiting};

    #[test]
    fn an_unplaced_replica_is_told_whole() {
        let it = Explanation {
            kind: Subject::Replica,
            id: "reader-3".into(),
            state: "pending".into(),
            since: Some(Timestamp::from_millis(0)),
            summary: "no machine of group general has room".into(),
            waits: vec![Waiting {
                what: "4 GiB of memory on one machine".into(),
                since: Timestamp::from_millis(0),
                next_attempt: Some(Timestamp::from_millis(47_000)),
                helps: "raise maxSize of group general above 3".into(),
            }],
            filters: vec![
                FilterCount {
                    filter: "memory".into(),
                    machines: 3,
                    nearest: Some("m2 lacks 512 MiB".into()),
                },
                FilterCount {
                    filter: "gpu".into(),
                    machines: 12,
                    nearest: None,
                },
            ],
            facts: vec![
                ("image".into(), "app:1".into()),
                ("container".into(), "reader".into()),
            ],
        };
        let golden = "\
replica reader-3 is pending for 42 s
  no machine of group general has room

  waits for   4 GiB of memory on one machine
  since       1970-01-01T00:00:00.000Z (42 s ago)
  next try    in 5 s
  helps       raise maxSize of group general above 3

  machines ruled out by
    memory    3  nearest: m2 lacks 512 MiB
    gpu      12

  image      app:1
  container  reader";
        assert_eq!(
            explanation(&Screen::PLAIN, Timestamp::from_millis(42_000), &it),
            golden
        );
    }
}
