//! What was measured, and how it is shown (P).

use serde_json::{Value, json};

/// One measured number.
#[derive(Debug, Clone, PartialEq)]
struct Figure {
    /// Stable name in the JSON.
    name: &'static str,
    what: &'static str,
    unit: &'static str,
    value: f64,
    /// At most this was promised.
    promise: Option<f64>,
}

impl Figure {
    fn verdict(&self) -> &'static str {
        match self.promise {
            Some(promise) if self.value <= promise => "held",
            Some(_) => "MISSED",
            None => "",
        }
    }
}

/// All figures, in the order they were taken.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    list: Vec<Figure>,
}

impl Figures {
    pub(crate) fn add(
        &mut self,
        name: &'static str,
        what: &'static str,
        unit: &'static str,
        value: f64,
        promise: Option<f64>,
    ) {
        self.list.push(Figure {
            name,
            what,
            unit,
            value,
            promise,
        });
    }

    pub(crate) fn json(&self) -> Value {
        self.list
            .iter()
            .map(|figure| {
                json!({
                    "name": figure.name,
                    "what": figure.what,
                    "unit": figure.unit,
                    "value": (figure.value * 1000.0).round() / 1000.0,
                    "promisedAtMost": figure.promise,
                    "held": figure.promise.map(|promise| figure.value <= promise),
                })
            })
            .collect()
    }

    pub(crate) fn table(&self) -> String {
        let mut table = format!(
            "\n{:<52}{:>10}  {:<12}{:>10}\n",
            "FIGURE", "VALUE", "UNIT", "PROMISE"
        );
        for figure in &self.list {
            let promise = figure
                .promise
                .map_or_else(String::new, |promise| format!("{promise:.2}"));
            let line = format!(
                "{:<52}{:>10.2}  {:<12}{promise:>10}  {}",
                figure.what,
                figure.value,
                figure.unit,
                figure.verdict()
            );
            table.push_str(line.trim_end());
            table.push('\n');
        }
        table
    }
}

/// The nearest-rank percentile.
///
/// # Panics
/// Without samples.
pub(crate) fn percentile(samples: &[f64], percent: usize) -> f64 {
    assert!(!samples.is_empty(), "a percentile needs samples");
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(percentile(&samples, 50), 3.0);
        assert_eq!(percentile(&samples, 99), 5.0);
        assert_eq!(percentile(&samples[..1], 50), 5.0);
    }

    #[test]
    fn a_figure_beyond_its_promise_is_marked() {
        let mut figures = Figures::default();
        figures.add("a", "one", "ms", 2.0, Some(1.0));
        figures.add("b", "other", "ms", 1.0, Some(1.0));
        assert!(figures.table().contains("MISSED"));
        assert_eq!(figures.json()[0]["held"], false);
        assert_eq!(figures.json()[1]["held"], true);
    }
}
