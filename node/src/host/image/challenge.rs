//! How a registry asks for a login: `WWW-Authenticate` (RFC 9110, 11.6.1) with the schemes that registries use (P).

use std::collections::BTreeMap;

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password with each request (RFC 7617).
    Basic,
    /// A token from `realm`: <https://distribution.github.io/distribution/spec/auth/token/>.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// The one to answer of several headers; a token is preferred to a password.
    pub(super) fn pick<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut found: Vec<Self> = headers.into_iter().filter_map(Self::parse).collect();
        found.sort_by_key(|challenge| *challenge == Self::Basic);
        found.into_iter().next()
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (scheme, mut rest) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = BTreeMap::new();
        // name="value", with commas inside values (scopes) and between parameters.
        while let Some((name, after)) = rest.split_once('=') {
            let name = name.trim_matches([',', ' ']).to_ascii_lowercase();
            let (value, next) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').unwrap_or((after, "")),
            };
            parameters.insert(name, value.to_owned());
            rest = next;
        }
        Some(Self::Bearer {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service"),
            scope: parameters.remove("scope"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_challenges_and_prefers_a_token() {
        let text =
            r#"Bearer realm="https://auth.r.io/token",service="r.io",scope="repository:a/b:pull,push""#;
        let bearer = Challenge::Bearer {
            realm: "https://auth.r.io/token".into(),
            service: Some("r.io".into()),
            scope: Some("repository:a/b:pull,push".into()),
        };
        let pick = |headers: &[&str]| Challenge::pick(headers.iter().copied());
        assert_eq!(pick(&[text]), Some(bearer.clone()));
        assert_eq!(pick(&["Basic realm=\"x\""]), Some(Challenge::Basic));
        assert_eq!(pick(&["basic"]), Some(Challenge::Basic));
        assert_eq!(pick(&["Basic realm=\"x\"", text]), Some(bearer));
        for unknown in [
            "Bearer service=\"x\"",
            "Bearer realm=\"unfinished",
            "Digest realm=\"x\"",
            "",
        ] {
            assert_eq!(pick(&[unknown]), None, "{unknown}");
        }
    }
}
