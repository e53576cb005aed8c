//! What a benchmark gives, and how it is shown: tables in the terminal, JSON and pictures in files, one page for people.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;

/// What every benchmark is given.
#[derive(Debug)]
pub(crate) struct Context {
    /// Where the public traces lie, when they are there.
    pub(crate) data: Option<PathBuf>,
    /// Where results and caches go: `target/bench/placement`.
    pub(crate) out: PathBuf,
    /// Less of everything: to see whether it runs, not to quote.
    pub(crate) is_quick: bool,
}

/// A benchmark and what it is called.
#[derive(Clone, Copy)]
pub(crate) struct Benchmark {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) run: fn(&Context) -> anyhow::Result<Outcome>,
}

/// What a benchmark found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Outcome {
    /// What was measured and how, in a few sentences.
    pub(crate) text: String,
    pub(crate) tables: Vec<Table>,
    pub(crate) promises: Vec<Promise>,
    #[serde(skip)]
    pub(crate) pictures: Vec<Picture>,
    /// What could not be measured, and why.
    pub(crate) missing: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// A figure of SPECIFICATION.md and whether it was reached.
#[derive(Debug, Serialize)]
pub(crate) struct Promise {
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) bound: String,
    pub(crate) held: bool,
}

/// An SVG.
#[derive(Debug)]
pub(crate) struct Picture {
    /// File name without directory, ending in `.svg`.
    pub(crate) file: String,
    pub(crate) title: String,
    pub(crate) svg: String,
}

impl Context {
    /// Reads `BERTH_BENCH_DATA`, `BERTH_BENCH_OUT` and `BERTH_BENCH_QUICK`.
    pub(crate) fn from_env() -> anyhow::Result<Self> {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let data = variable("BERTH_BENCH_DATA").unwrap_or_else(|| PathBuf::from("../shared/bench-data"));
        let out = variable("BERTH_BENCH_OUT").unwrap_or_else(|| PathBuf::from("target/bench/placement"));
        fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
        Ok(Self {
            data: data.is_dir().then_some(data),
            out,
            is_quick: variable("BERTH_BENCH_QUICK").is_some(),
        })
    }

    /// A folder of the data, when it is there.
    #[must_use]
    pub(crate) fn data_folder(&self, name: &str) -> Option<PathBuf> {
        let folder = self.data.as_ref()?.join(name);
        folder.is_dir().then_some(folder)
    }
}

impl Table {
    #[must_use]
    pub(crate) fn new(title: impl Into<String>, columns: &[&str]) -> Self {
        Self {
            title: title.into(),
            columns: columns.iter().map(|&column| column.to_owned()).collect(),
            rows: vec![],
        }
    }

    /// # Panics
    /// When the row has another number of cells than the table has columns.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().collect();
        assert!(cells.len() == self.columns.len(), "{}: {cells:?}", self.title);
        self.rows.push(cells);
    }

    fn markdown(&self) -> String {
        let mut widths: Vec<usize> = self.columns.iter().map(|text| text.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let line = |cells: &[String]| {
            let padded = cells
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"));
            format!("| {} |\n", padded.collect::<Vec<_>>().join(" | "))
        };
        let rule: Vec<String> = widths.iter().map(|width| "-".repeat((*width).max(3))).collect();
        let mut text = format!("**{}**\n\n{}{}", self.title, line(&self.columns), line(&rule));
        for row in &self.rows {
            text.push_str(&line(row));
        }
        text
    }
}

/// All outcomes of one run.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    context: &'a Context,
    missed: Vec<String>,
}

/// Where the committed report lies.
const REPORT: &str = "docs/placement-report.md";
const REPORT_PICTURES: &str = "docs/placement";

impl<'a> Report<'a> {
    #[must_use]
    pub(crate) fn new(context: &'a Context) -> Self {
        Self {
            context,
            missed: vec![],
        }
    }

    /// Writes the results of a benchmark and prints them.
    pub(crate) fn add(&mut self, benchmark: &Benchmark, outcome: Outcome) -> anyhow::Result<()> {
        let mut text = format!("## {}\n\n{}\n", benchmark.title, outcome.text.trim());
        for table in &outcome.tables {
            write!(text, "\n{}", table.markdown())?;
        }
        if !outcome.promises.is_empty() {
            let mut table = Table::new("Promises", &["figure", "measured", "promise", "held"]);
            for promise in &outcome.promises {
                let held = if promise.held { "yes" } else { "MISSED" };
                table
                    .row([&promise.name, &promise.value, &promise.bound, &held.to_owned()].map(Clone::clone));
            }
            write!(text, "\n{}", table.markdown())?;
        }
        let missed = outcome.promises.iter().filter(|promise| !promise.held);
        self.missed.extend(missed.map(|promise| promise.name.clone()));
        for lack in &outcome.missing {
            write!(text, "\nNot measured: {lack}\n")?;
        }
        print(&text);
        for picture in &outcome.pictures {
            let path = self.context.out.join(&picture.file);
            write(&path, &picture.svg)?;
            write!(text, "\n![{}](placement/{})\n", picture.title, picture.file)?;
        }
        let json = serde_json::to_string_pretty(&outcome)?;
        write(&self.context.out.join(format!("{}.json", benchmark.name)), &json)?;
        write(&self.context.out.join(format!("{}.md", benchmark.name)), &text)?;
        Ok(())
    }

    /// Says what was missed; when asked to, writes the page for people from the last result of each benchmark. A missed
    /// promise is no failure of the run.
    pub(crate) fn finish(self, benchmarks: &[Benchmark], write_report: bool) -> anyhow::Result<()> {
        if write_report {
            self.write_page(benchmarks)?;
        }
        if self.missed.is_empty() {
            print("every promise that was measured is held\n");
        } else {
            print(&format!("MISSED: {}\n", self.missed.join("; ")));
        }
        Ok(())
    }

    fn write_page(&self, benchmarks: &[Benchmark]) -> anyhow::Result<()> {
        fs::create_dir_all(REPORT_PICTURES)?;
        let mut page = "# Placement: measured\n\nWritten by `make bench-placement`; benches/README.md says how each figure is \
                        made and where its data come from.\n"
            .to_owned();
        if self.context.is_quick {
            page.push_str("\nA quick run: not to be quoted.\n");
        }
        for benchmark in benchmarks {
            let path = self.context.out.join(format!("{}.md", benchmark.name));
            match fs::read_to_string(&path) {
                Ok(text) => write!(page, "\n{text}")?,
                Err(_) => write!(page, "\n## {}\n\nNot run.\n", benchmark.title)?,
            }
        }
        for entry in fs::read_dir(&self.context.out)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "svg") {
                let name = path.file_name().context("a picture has a name")?;
                fs::copy(&path, Path::new(REPORT_PICTURES).join(name))?;
            }
        }
        write(Path::new(REPORT), &page)
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[expect(clippy::print_stdout, reason = "a benchmark's results go to the terminal")]
fn print(text: &str) {
    println!("{text}");
}
