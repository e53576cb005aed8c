//! The corpus of the fuzz target `link`, and messages of proptest: whatever the other end sends is read or refused.

use proptest::prelude::*;

#[path = "../../fuzz/sessions/link.rs"]
mod session;

#[test]
fn every_message_of_the_corpus_is_read() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/link");
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        session::drive(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count >= 10, "{count} messages are hardly a corpus");
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(kind in "[nsrhaeg?]", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        session::drive(&[kind.as_bytes(), &bytes].concat());
    }
}
