//! Generates the server side of the node link, and the client side for tests; its messages are those of
//! `berth_api::link`.

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=../api/proto/link.proto");
    tonic_prost_build::configure()
        .client_mod_attribute("berth.link.v1", "#[cfg(test)]")
        .extern_path(".berth.link.v1", "::berth_api::link")
        .compile_protos(&["../api/proto/link.proto"], &["../api/proto"])
}
