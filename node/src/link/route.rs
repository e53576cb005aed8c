//! Which scheduler is dialled: the one that the last one named, else the configured ones in turn.

/// A node that is sent on more often than this in a row goes back to its configuration: two schedulers disagree.
const REDIRECTS_MAX: u32 = 4;

/// See the module documentation.
#[derive(Debug, Clone, Default)]
pub struct Route {
    redirect: Option<String>,
    redirects: u32,
    failures: usize,
}

impl Route {
    /// The URL to dial now. `configured` is one URL, or several with commas between.
    pub(super) fn url<'a>(&'a self, configured: &'a str) -> &'a str {
        if let Some(redirect) = &self.redirect {
            return redirect;
        }
        let count = configured.split(',').count();
        let url = configured.split(',').nth(self.failures % count);
        url.expect("a remainder is below the count").trim()
    }

    /// Another scheduler was named. False when that has gone on for too long.
    pub(super) fn redirected(&mut self, url: String) -> bool {
        self.redirects += 1;
        if self.redirects > REDIRECTS_MAX {
            self.failed();
            return false;
        }
        self.redirect = Some(url);
        true
    }

    /// The dialled one serves.
    pub(super) fn serves(&mut self) {
        self.redirects = 0;
    }

    /// The dialled one could not be reached, or did not want this node.
    pub(super) fn failed(&mut self) {
        self.redirects = 0;
        if self.redirect.take().is_none() {
            self.failures = self.failures.wrapping_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIGURED: &str = "https://a:1, https://b:1";

    #[test]
    fn configured_schedulers_are_dialled_in_turn() {
        let mut route = Route::default();
        assert_eq!(route.url(CONFIGURED), "https://a:1");
        route.failed();
        assert_eq!(route.url(CONFIGURED), "https://b:1");
        route.failed();
        assert_eq!(route.url(CONFIGURED), "https://a:1");
        assert_eq!(route.url("https://only:1"), "https://only:1");
    }

    #[test]
    fn a_named_scheduler_is_dialled_until_it_fails() {
        let mut route = Route::default();
        assert!(route.redirected("https://c:1".into()));
        assert_eq!(route.url(CONFIGURED), "https://c:1");
        route.serves();
        assert_eq!(route.url(CONFIGURED), "https://c:1");
        route.failed();
        assert_eq!(route.url(CONFIGURED), "https://a:1");
    }

    #[test]
    fn schedulers_that_name_each_other_are_left() {
        let mut route = Route::default();
        for _ in 0..REDIRECTS_MAX {
            assert!(route.redirected("https://c:1".into()));
        }
        assert!(!route.redirected("https://d:1".into()));
        assert_eq!(route.url(CONFIGURED), "https://a:1");
    }
}
