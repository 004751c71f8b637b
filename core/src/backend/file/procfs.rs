//! `/proc/locks`: who holds which file, and who waits for it. Pure: text in, locks out.

/// A lock of a file, or a wait for one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct KernelLock {
    pub(super) kind: Kind,
    /// 0 for locks on bytes, which are of no process.
    pub(super) pid: u32,
    pub(super) inode: u64,
    /// Of the file system; not always what stat(2) says.
    pub(super) device: (u32, u32),
    pub(super) exclusive: bool,
    /// Waits for it.
    pub(super) waits: bool,
}

/// By which system call.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Kind {
    /// flock(2).
    Flock,
    /// fcntl(2), by open file description.
    Bytes,
}

/// All locks of these kinds, in the order in which the kernel lists them: each with those that wait for it behind it, first
/// come first. Lines of any other kind or shape are passed over.
///
/// ```text
/// 1: FLOCK  ADVISORY  WRITE 4711 fd:01:5678 0 EOF
/// 1: -> FLOCK  ADVISORY  READ  4712 fd:01:5678 0 EOF
/// 2: OFDLCK ADVISORY  WRITE -1 fd:01:99 4294967296 4294967296
/// ```
pub(super) fn parse_locks(text: &str) -> impl Iterator<Item = KernelLock> + '_ {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1).peekable();
        let waits = words.next_if_eq(&"->").is_some();
        let kind = match words.next()? {
            "FLOCK" => Kind::Flock,
            "OFDLCK" => Kind::Bytes,
            _ => return None,
        };
        let exclusive = match words.nth(1)? {
            "WRITE" => true,
            "READ" => false,
            _ => return None,
        };
        let pid = words.next()?;
        let pid = if kind == Kind::Bytes { 0 } else { pid.parse().ok()? };
        let mut file = words.next()?.split(':');
        let device =
            (u32::from_str_radix(file.next()?, 16).ok()?, u32::from_str_radix(file.next()?, 16).ok()?);
        Some(KernelLock { kind, pid, inode: file.next()?.parse().ok()?, device, exclusive, waits })
    })
}

/// The locks that an open file has, from `/proc/PID/fdinfo/FD`.
pub(super) fn parse_locks_of(fdinfo: &str) -> impl Iterator<Item = KernelLock> + '_ {
    fdinfo.lines().filter_map(|line| line.strip_prefix("lock:")).flat_map(parse_locks)
}

/// Whether a process is stopped, by a signal or by a debugger, from `/proc/PID/stat`.
pub(super) fn says_stopped(stat: &str) -> bool {
    // The name before it may hold anything.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
}

/// The device of the file system that is mounted as `mount`, from `/proc/self/mountinfo`.
pub(super) fn parse_mountinfo(text: &str, mount: &str) -> Option<(u32, u32)> {
    let line = text.lines().find(|line| line.split(' ').next() == Some(mount))?;
    let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The mount that a descriptor is of, from `/proc/self/fdinfo/FD`.
pub(super) fn parse_mount_id(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim)
}

/// The name of a user, from `/etc/passwd`.
pub(super) fn parse_user(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn holders_and_waiters_are_read() {
        let text = "1: POSIX  ADVISORY  WRITE 88 00:19:12 0 EOF\n\
                    2: FLOCK  ADVISORY  WRITE 4711 fd:01:5678 0 EOF\n\
                    2: -> FLOCK  ADVISORY  READ  4712 fd:01:5678 0 EOF\n\
                    2:  -> FLOCK  ADVISORY  WRITE 4713 fd:01:5678 0 EOF\n\
                    3: OFDLCK ADVISORY  WRITE -1 fd:01:99 0 0\n\
                    4: LEASE  ACTIVE    READ  1 fd:01:99 0 EOF\n";
        let locks: Vec<KernelLock> = parse_locks(text).collect();
        let lock = |pid, exclusive, waits| KernelLock {
            kind: Kind::Flock,
            pid,
            inode: 5678,
            device: (0xfd, 1),
            exclusive,
            waits,
        };
        let bytes = KernelLock { kind: Kind::Bytes, pid: 0, inode: 99, ..lock(0, true, false) };
        assert_eq!(locks, [lock(4711, true, false), lock(4712, false, true), lock(4713, true, true), bytes]);
        let fdinfo = "pos:\t0\nino:\t5678\nlock:\t1: FLOCK  ADVISORY  WRITE 4711 fd:01:5678 0 EOF\n";
        assert!(parse_locks_of(fdinfo).eq([lock(4711, true, false)]));
    }

    #[test]
    fn the_stopped_are_told_from_the_living() {
        for (stat, stopped) in [
            ("4711 (sh) T 1 4711", true),
            ("4711 (a) T (b) t 1 4711", true),
            ("4711 (a) T) S 1 4711", false),
            ("4711 (sh) R 1", false),
            ("", false),
        ] {
            assert_eq!(says_stopped(stat), stopped, "{stat}");
        }
    }

    #[test]
    fn mounts_and_users_are_found() {
        assert_eq!(parse_mount_id("pos:\t0\nflags:\t0100000\nmnt_id:\t29\nino:\t1\n"), Some("29"));
        let mounts = "28 1 0:25 / /proc rw - proc proc rw\n29 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n";
        assert_eq!(parse_mountinfo(mounts, "29"), Some((254, 0)));
        assert_eq!(parse_mountinfo(mounts, "2"), None);
        let passwd = "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(parse_user(passwd, 1000), Some("ann"));
        assert_eq!(parse_user(passwd, 7), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_harm(text in "[ -~\n]{0,300}", words in "[0-9]: (-> )?FLOCK [A-Z ]{0,20}[0-9a-f: ]{0,20}") {
            let _ = parse_locks(&text).count() + parse_locks(&words).count();
            let _ = (parse_mountinfo(&text, "1"), parse_mount_id(&text), parse_user(&text, 0));
            let _ = (parse_locks_of(&text).count(), says_stopped(&text));
        }
    }
}
