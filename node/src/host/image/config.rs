//! What an image says of its process (P).

/// What an image declares about its process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Empty: `/`.
    pub working_dir: String,
    /// `name`, `uid`, `name:group`, `uid:gid`; empty: root.
    pub user: String,
    /// For example `SIGINT` or `2`; empty: SIGTERM.
    pub stop_signal: String,
}

impl ImageConfig {
    /// The signal that asks the process to stop; SIGTERM unless the image says otherwise.
    #[must_use]
    pub fn stop_signal_number(&self) -> u32 {
        const SIGTERM: u32 = 15;
        const NAMES: [(&str, u32); 10] = [
            ("HUP", 1),
            ("INT", 2),
            ("QUIT", 3),
            ("ABRT", 6),
            ("KILL", 9),
            ("USR1", 10),
            ("USR2", 12),
            ("ALRM", 14),
            ("TERM", SIGTERM),
            ("WINCH", 28),
        ];
        let text = self.stop_signal.trim();
        let name = text.strip_prefix("SIG").unwrap_or(text);
        let named = NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, number)| *number);
        let number = || text.parse().ok().filter(|number| (1..=64).contains(number));
        named.or_else(number).unwrap_or(SIGTERM)
    }
}
