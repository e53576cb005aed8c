//! What the terminal can show, and writing to it.

use std::io::{self, IsTerminal as _, Write as _};

use crate::exit::{Code, Failure};

/// How output looks. Renderers take it as an argument and stay pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Screen {
    pub(crate) colour: bool,
    pub(crate) unicode: bool,
    /// Columns.
    pub(crate) width: usize,
}

/// Meaning of a coloured text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paint {
    Bold,
    Dim,
    Good,
    Warn,
    Bad,
    /// One of the colours that tell things apart; any number will do.
    Series(usize),
}

const WIDTH_DEFAULT: usize = 100;
const WIDTH_MIN: usize = 60;
const WIDTH_MAX: usize = 200;

impl Screen {
    /// Without colour and symbols: for files and pipes.
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self {
        colour: false,
        unicode: false,
        width: WIDTH_DEFAULT,
    };

    /// What standard output is. `NO_COLOR` and `TERM=dumb` switch colours off.
    pub(crate) fn detect() -> Self {
        let terminal = io::stdout().is_terminal();
        let variable = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(|value| value.to_string_lossy().into_owned())
        };
        let plain = variable("NO_COLOR").is_some() || variable("TERM").is_some_and(|term| term == "dumb");
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(|name| variable(name));
        let width = rustix::termios::tcgetwinsize(io::stdout())
            .map(|size| usize::from(size.ws_col))
            .ok()
            .filter(|columns| *columns > 0)
            .unwrap_or(WIDTH_DEFAULT);
        Self {
            colour: terminal && !plain,
            unicode: is_utf8(locale.as_deref()),
            width: width.clamp(WIDTH_MIN, WIDTH_MAX),
        }
    }

    pub(crate) fn paint(&self, paint: Paint, text: &str) -> String {
        const SERIES: [&str; 6] = ["36", "35", "34", "32", "33", "96"];
        if !self.colour || text.is_empty() {
            return text.to_owned();
        }
        let code = match paint {
            Paint::Bold => "1",
            Paint::Dim => "2",
            Paint::Good => "32",
            Paint::Warn => "33",
            Paint::Bad => "31",
            Paint::Series(number) => SERIES[number % SERIES.len()],
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// The first where the terminal shows symbols, else the second.
    pub(crate) fn symbol(&self, unicode: &'static str, ascii: &'static str) -> &'static str {
        if self.unicode { unicode } else { ascii }
    }
}

fn is_utf8(locale: Option<&str>) -> bool {
    locale.is_some_and(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

/// Whether a person sits at both ends.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Writes one line to standard output.
///
/// # Errors
/// When it cannot be written. A reader that left (`berth get | head`) ends the command without a word.
pub(crate) fn line(text: impl AsRef<str>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.as_ref())
        .and_then(|()| out.flush())
        .map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::new(Code::Failed, ""),
            _ => Failure::failed(format!("cannot write to standard output: {error}")),
        })
}

/// Writes one line to standard error; there is nobody to tell when that fails.
pub(crate) fn note(text: impl AsRef<str>) {
    let mut out = io::stderr().lock();
    drop(writeln!(out, "{}", text.as_ref()));
}

/// A value as JSON, for `-o json`.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::failed(format!("cannot write the answer as JSON: {error}")))?;
    line(text)
}

/// A plain table: columns two blanks apart, no rules, so that it can be cut and searched.
pub(crate) fn table(screen: &Screen, heads: &[&str], rows: Vec<Vec<String>>) -> String {
    use comfy_table::{ContentArrangement, Table};
    let mut table = Table::new();
    table
        .load_preset(comfy_table::presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(heads.iter().map(|head| screen.paint(Paint::Bold, head)));
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paints_only_where_there_is_colour() {
        let colour = Screen {
            colour: true,
            ..Screen::PLAIN
        };
        assert_eq!(Screen::PLAIN.paint(Paint::Bad, "x"), "x");
        assert_eq!(colour.paint(Paint::Bad, "x"), "\x1b[31mx\x1b[0m");
    }

    #[test]
    fn knows_a_utf8_locale() {
        assert!(is_utf8(Some("de_DE.UTF-8")));
        assert!(is_utf8(Some("C.utf8")));
        assert!(!is_utf8(Some("C")));
        assert!(!is_utf8(None));
    }

    #[test]
    fn tables_are_plain_text() {
        let rows = vec![
            vec!["reader".into(), "2".into()],
            vec!["writer-long".into(), "10".into()],
        ];
        assert_eq!(
            table(&Screen::PLAIN, &["NAME", "N"], rows),
            "NAME         N\nreader       2\nwriter-long  10"
        );
    }
}
