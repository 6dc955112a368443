//! The generated code of `proto/`, nested as its packages are.

#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::large_futures)]
pub mod msg {
    pub mod v1 {
        tonic::include_proto!("msg.v1");
    }
}

/// Google's types that the contract uses.
#[allow(missing_docs, unreachable_pub, unused_qualifications)]
pub mod google {
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}

/// Every file of the contract and its imports, encoded, for the reflection service.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The `domain` of every `google.rpc.ErrorInfo` of the gateway.
pub const ERROR_DOMAIN: &str = "msg.v1";

pub use msg::v1::*;
