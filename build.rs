//! Generates the contract's code from `proto/`, in Rust alone: protox stands in for protoc.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let files = ["msg/v1/msg.proto", "msg/v1/error_reason.proto", "msg/v1/record.proto", "msg/v1/hint.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    // Served by the reflection service, comments included.
    std::fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure()
        .bytes(".msg.v1")
        .btree_map(".msg.v1")
        .codec_path("crate::codec::SmallBuffers")
        .compile_fds(descriptors)?;
    Ok(())
}
