//! A rotated key of platform tokens is taken over at SIGHUP, without a restart.

use super::program::{Program, until};

#[tokio::test]
async fn a_rotated_platform_key_is_taken_over_without_a_restart() {
    let program = Program::start("").await;
    let status = async |token: &str| program.ask("GET", "/clusters", token, &[], None).await.unwrap().0;
    let old = program.platform_token();
    assert_eq!(status(&old).await, 200);
    let printed = program.print(&["token", "rotate-platform-key"]);
    assert!(printed.contains("SIGHUP"), "{printed}");
    let new = program.platform_token();
    assert_eq!(
        status(&new).await,
        401,
        "the program that runs does not know the new key yet"
    );
    program.signal("-HUP");
    until("the new key to count", async || {
        (status(&new).await == 200).then_some(())
    })
    .await;
    assert_eq!(status(&old).await, 200, "tokens of the retired key stay valid");
    // Its file is removed: whoever holds a token of it is shut out.
    let retired = std::fs::read_dir(program.data().join("platform-retired")).unwrap();
    for file in retired {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    program.signal("-HUP");
    until("the old key to be forgotten", async || {
        (status(&old).await == 401).then_some(())
    })
    .await;
    assert_eq!(status(&new).await, 200);
    // A file that is no key changes nothing, and is told.
    std::fs::write(program.data().join("platform.key"), "no key").unwrap();
    program.signal("-HUP");
    until("the fault to be logged", async || {
        program.log().contains("stay as they were").then_some(())
    })
    .await;
    assert_eq!(status(&new).await, 200);
}
