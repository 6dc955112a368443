//! Keeps OpenSSL usable until the process has ended.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::Once;

/// `OPENSSL_INIT_NO_ATEXIT` of OpenSSL's crypto.h.
const NO_EXIT_HANDLER: u64 = 0x0008_0000;

unsafe extern "C" {
    fn OPENSSL_init_crypto(options: u64, settings: *const c_void) -> c_int;
}

/// Prevents OpenSSL from releasing its memory when the process exits. A thread of librdkafka may still be in a TLS handshake
/// then, and would end the process with a segmentation fault instead of its exit code. Must be called before the first client
/// is created, because OpenSSL registers its exit handler at its first use.
pub(super) fn keep_until_the_end() {
    static ONCE: Once = Once::new();
    // SAFETY: the function may be called by any thread, and accepts no settings. If it fails, the handler stays registered.
    ONCE.call_once(|| unsafe {
        OPENSSL_init_crypto(NO_EXIT_HANDLER, ptr::null());
    });
}
