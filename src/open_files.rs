//! The system's limit of open files, of which each connection takes one.

use std::io;

/// Raises this process's limit as far as it may by itself; how many files it may then have open. What a shell or a container
/// starts with is often far below what is allowed.
pub fn raise() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a whole `rlimit` that outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: as above; the call only reads.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_raised_once_and_then_known() {
        let first = super::raise().expect("it is allowed");
        assert!(first > 0);
        assert_eq!(super::raise().expect("it is allowed"), first);
    }
}
