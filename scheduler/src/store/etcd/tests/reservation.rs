//! A key of a creation is one request's, whichever process it came to.

use super::*;
use crate::store::Reserved;

#[tokio::test]
async fn a_key_is_one_requests_until_it_is_taken_back_or_forgotten() {
    let test = "a_key_is_one_requests_until_it_is_taken_back_or_forgotten";
    let Some(bench) = Bench::start(test, 1, &[]) else {
        return;
    };
    let (one, other) = (bench.open().await, bench.open().await);
    let day = Duration::from_secs(24 * 3600);
    for store in [&one, &other, &one] {
        assert_eq!(store.reserve("k", "request", day).await.unwrap(), Reserved::Ours);
    }
    assert_eq!(other.reserve("k", "another", day).await.unwrap(), Reserved::Taken);
    let client = one.connection.client().await.unwrap();
    let leases = client.lease_client().leases().await.unwrap();
    assert_eq!(
        leases.leases().len(),
        1,
        "attempts that reserved nothing leave no lease"
    );
    // Only whoever has it takes it back.
    other.unreserve("k", "another").await.unwrap();
    assert_eq!(other.reserve("k", "another", day).await.unwrap(), Reserved::Taken);
    one.unreserve("k", "request").await.unwrap();
    let short = Duration::from_secs(5);
    assert_eq!(
        other.reserve("k", "another", short).await.unwrap(),
        Reserved::Ours
    );
    for _ in 0..600 {
        if one.reserve("k", "request", day).await.unwrap() == Reserved::Ours {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("a key is not forgotten when its time is over");
}
