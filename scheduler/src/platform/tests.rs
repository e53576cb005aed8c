//! Forged, foreign, expired, early and confused tokens are refused; rotated keys and other issuers are accepted.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::*;

const SECRET: &[u8] = b"a secret of an issuer, long enough for HS256";

struct Place {
    dir: tempfile::TempDir,
    issuer_key: KeyPair,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let issuer_key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        std::fs::write(dir.path().join("issuer.pem"), issuer_key.public_key_pem()).unwrap();
        std::fs::write(dir.path().join("secret"), SECRET).unwrap();
        Self { dir, issuer_key }
    }

    fn issuers(&self) -> [TrustedIssuer; 2] {
        let issuer = |issuer: &str, algorithm, file: &str, key_id: Option<&str>| TrustedIssuer {
            issuer: issuer.into(),
            audience: "berth".into(),
            algorithm,
            key_file: self.dir.path().join(file),
            key_id: key_id.map(str::to_owned),
        };
        [
            issuer(
                "https://id.example",
                SigningAlgorithm::EdDsa,
                "issuer.pem",
                Some("k1"),
            ),
            issuer("https://hs.example", SigningAlgorithm::Hs256, "secret", None),
        ]
    }

    fn keys(&self) -> PlatformKeys {
        PlatformKeys::open(self.dir.path(), &self.issuers()).unwrap()
    }

    fn issuer_signs(&self, kid: Option<&str>, claims: &Value) -> String {
        let key = EncodingKey::from_ed_pem(self.issuer_key.serialize_pem().as_bytes()).unwrap();
        sign(Algorithm::EdDSA, kid, claims, &key)
    }
}

fn sign(algorithm: Algorithm, kid: Option<&str>, claims: &Value, key: &EncodingKey) -> String {
    let header = Header {
        kid: kid.map(str::to_owned),
        ..Header::new(algorithm)
    };
    jsonwebtoken::encode(&header, claims, key).unwrap()
}

fn seconds(ahead: i64) -> i64 {
    i64::try_from(Timestamp::now().millis() / 1000).unwrap() + ahead
}

fn claims(issuer: &str) -> Value {
    json!({"iss": issuer, "aud": "berth", "sub": "alice", "exp": seconds(300)})
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    claims[name] = value;
    claims
}

#[test]
fn our_own_tokens_name_who_they_are_for() {
    let place = Place::new();
    let token = place
        .keys()
        .issue("bob", Duration::from_secs(60), Timestamp::now())
        .unwrap();
    let caller = place.keys().check(&token).unwrap();
    assert_eq!(
        (caller.issuer.as_str(), caller.subject.as_str()),
        (PLATFORM_ISSUER, "bob")
    );
    let header = jsonwebtoken::decode_header(&token).unwrap();
    assert_eq!(header.kid, Some(caller.key_id));
}

#[test]
fn a_rotated_key_signs_and_the_retired_one_still_verifies_until_it_is_removed() {
    let place = Place::new();
    let old = place
        .keys()
        .issue("bob", Duration::from_secs(60), Timestamp::now())
        .unwrap();
    let (retired, present) = rotate(place.dir.path()).unwrap();
    assert_ne!(retired, present);
    let keys = place.keys();
    let new = keys
        .issue("bob", Duration::from_secs(60), Timestamp::now())
        .unwrap();
    assert_eq!(keys.check(&new).unwrap().key_id, present);
    assert_eq!(keys.check(&old).unwrap().key_id, retired);
    let path = place.dir.path().join(RETIRED_DIR).join(format!("{retired}.pem"));
    assert!(!read(&path).unwrap().contains("PRIVATE"));
    std::fs::remove_file(path).unwrap();
    assert_eq!(place.keys().check(&old), Err(InvalidPlatformToken::Unknown));
    assert!(place.keys().check(&new).is_ok());
}

#[test]
fn tokens_of_trusted_issuers_are_accepted() {
    let place = Place::new();
    let keys = place.keys();
    let caller = keys
        .check(&place.issuer_signs(Some("k1"), &claims("https://id.example")))
        .unwrap();
    assert_eq!((caller.subject.as_str(), caller.key_id.as_str()), ("alice", "k1"));
    let hs = claims("https://hs.example");
    let many = with(hs.clone(), "aud", json!(["other", "berth"]));
    for claims in [hs, many] {
        let token = sign(
            Algorithm::HS256,
            Some("any"),
            &claims,
            &EncodingKey::from_secret(SECRET),
        );
        assert_eq!(keys.check(&token).unwrap().issuer, "https://hs.example");
    }
}

#[test]
fn clocks_may_differ_by_a_minute_and_no_more() {
    let place = Place::new();
    let keys = place.keys();
    let claims = claims("https://id.example");
    for (name, ahead, outcome) in [
        ("exp", -50, Ok(())),
        ("exp", -70, Err(InvalidPlatformToken::Expired)),
        ("nbf", 50, Ok(())),
        ("nbf", 70, Err(InvalidPlatformToken::NotYet)),
    ] {
        let token = place.issuer_signs(Some("k1"), &with(claims.clone(), name, json!(seconds(ahead))));
        assert_eq!(keys.check(&token).map(drop), outcome, "{name} {ahead}");
    }
}

#[test]
fn tokens_for_others_and_incomplete_ones_are_refused() {
    let place = Place::new();
    let keys = place.keys();
    let good = claims("https://id.example");
    let without = |name: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove(name);
        claims
    };
    use InvalidPlatformToken::{Foreign, Incomplete};
    for (claims, refusal) in [
        (with(good.clone(), "iss", json!(PLATFORM_ISSUER)), Foreign),
        (with(good.clone(), "iss", json!("https://hs.example")), Foreign),
        (with(good.clone(), "aud", json!("others")), Foreign),
        (with(good.clone(), "aud", json!([])), Foreign),
        (with(good.clone(), "sub", json!("")), Incomplete),
        (without("exp"), Incomplete),
        (without("aud"), Incomplete),
        (without("iss"), Incomplete),
        (without("sub"), Incomplete),
        (with(good.clone(), "exp", json!("soon")), Incomplete),
    ] {
        let token = place.issuer_signs(Some("k1"), &claims);
        assert_eq!(keys.check(&token), Err(refusal), "{claims}");
    }
    let other_id = place.issuer_signs(Some("k2"), &good);
    assert_eq!(keys.check(&other_id), Err(InvalidPlatformToken::Unknown));
}

#[test]
fn forged_and_confused_tokens_are_unknown() {
    let place = Place::new();
    let keys = place.keys();
    let good = claims("https://id.example");
    let mut forged = Vec::new();
    // The public key taken for a secret of HS256, in each of its forms.
    let pem = place.issuer_key.public_key_pem();
    for secret in [
        pem.as_bytes(),
        place.issuer_key.public_key_raw(),
        place.issuer_key.der_bytes(),
    ] {
        forged.push(sign(
            Algorithm::HS256,
            Some("k1"),
            &good,
            &EncodingKey::from_secret(secret),
        ));
    }
    forged.push(sign(
        Algorithm::HS384,
        None,
        &claims("https://hs.example"),
        &EncodingKey::from_secret(SECRET),
    ));
    let stranger = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let stranger = EncodingKey::from_ed_pem(stranger.serialize_pem().as_bytes()).unwrap();
    forged.push(sign(Algorithm::EdDSA, Some("k1"), &good, &stranger));
    let token = place.issuer_signs(Some("k1"), &good);
    let parts: Vec<&str> = token.split('.').collect();
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let none = part(&json!({"alg": "none", "typ": "JWT"}));
    let root = part(&with(good, "sub", json!("root")));
    forged.push(format!("{none}.{}.", parts[1]));
    forged.push(format!("{none}.{}.{}", parts[1], parts[2]));
    forged.push(format!("{}.{root}.{}", parts[0], parts[2]));
    forged.push(format!("{}.{}.", parts[0], parts[1]));
    forged.push(format!("{token}.{}", parts[2]));
    for text in ["", ".", "..", "a.b.c", "hm_x", "\u{0}.\u{0}.\u{0}"] {
        forged.push(text.to_owned());
    }
    for token in forged {
        assert_eq!(keys.check(&token), Err(InvalidPlatformToken::Unknown), "{token}");
    }
}

#[test]
fn keys_that_are_none_stop_the_start() {
    let place = Place::new();
    for (file, content) in [
        ("issuer.pem", b"no key".as_slice()),
        ("secret", b"short"),
        ("secret", pem_like().as_bytes()),
    ] {
        let place = Place::new();
        std::fs::write(place.dir.path().join(file), content).unwrap();
        assert!(
            PlatformKeys::open(place.dir.path(), &place.issuers()).is_err(),
            "{file}"
        );
    }
    std::fs::remove_file(place.dir.path().join("secret")).unwrap();
    assert!(PlatformKeys::open(place.dir.path(), &place.issuers()).is_err());
}

/// Whoever configures a public key as a secret would accept what everybody can forge.
fn pem_like() -> String {
    KeyPair::generate_for(&PKCS_ED25519).unwrap().public_key_pem()
}
