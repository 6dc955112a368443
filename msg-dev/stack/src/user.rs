//! Owns the choice of a child's user: PostgreSQL refuses to run as root, so root starts it as the user `nobody`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::error::StackError;

/// The numbers of a user and of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// Returns the user `nobody` if this process is root, else none.
pub(super) fn unprivileged() -> Option<Owner> {
    if !msg_fetch::is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    // 65534 is the id of `nobody` on every Linux distribution that has the name.
    Some(find_user(&passwd).unwrap_or(Owner { uid: 65534, gid: 65534 }))
}

fn find_user(passwd: &str) -> Option<Owner> {
    let line = passwd.lines().find(|line| line.starts_with("nobody:"))?;
    let mut fields = line.split(':').skip(2);
    Some(Owner { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
}

impl Owner {
    /// Makes this user the owner of a folder, and lets no other user read it.
    pub(super) fn make_private(self, folder: &Path) -> Result<(), StackError> {
        std::os::unix::fs::chown(folder, Some(self.uid), Some(self.gid))
            .map_err(StackError::io("change the owner of", folder))?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
            .map_err(StackError::io("change the mode of", folder))
    }

    /// Rejects a path that this user cannot reach; the error names the folder that the user cannot enter.
    pub(super) fn check_reaches(self, path: &Path) -> Result<(), StackError> {
        for folder in path.ancestors().skip(1) {
            let Ok(meta) = fs::metadata(folder) else { continue };
            let passes = meta.mode() & 0o001 != 0
                || (meta.uid() == self.uid && meta.mode() & 0o100 != 0)
                || (meta.gid() == self.gid && meta.mode() & 0o010 != 0);
            if !passes {
                return Err(StackError::Setting(format!(
                    "PostgreSQL does not run as root, and the user that it runs as instead cannot enter {} (above \
                     {}): choose another folder, e.g. --state /var/lib/msg-dev",
                    folder.display(),
                    path.display()
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_read_from_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nnobody:x:99:98:nobody:/:/sbin/nologin\n";
        assert_eq!(find_user(passwd), Some(Owner { uid: 99, gid: 98 }));
        assert_eq!(find_user("root:x:0:0::/:"), None);
    }

    #[test]
    fn closed_parent_folder_is_named_in_the_error() {
        let top = tempfile::tempdir().expect("a temporary folder");
        let path = top.path().join("data");
        let stranger = Owner { uid: 4_000_000, gid: 4_000_000 };
        fs::set_permissions(top.path(), fs::Permissions::from_mode(0o700)).expect("own folder");
        let rejected = stranger.check_reaches(&path).expect_err("mode 0700 lets no other user enter");
        assert!(rejected.to_string().contains(&top.path().display().to_string()), "{rejected}");
        fs::set_permissions(top.path(), fs::Permissions::from_mode(0o711)).expect("own folder");
        stranger.check_reaches(&path).expect("mode 0711 lets other users enter");
    }
}
