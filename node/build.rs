//! Generates the client side of the node link; its messages are those of `berth_api::link`.

fn main() -> std::io::Result<()> {
    println!("cargo:rerun-if-changed=../api/proto/link.proto");
    tonic_prost_build::configure()
        .build_server(false)
        .extern_path(".berth.link.v1", "::berth_api::link")
        .compile_protos(&["../api/proto/link.proto"], &["../api/proto"])
}
