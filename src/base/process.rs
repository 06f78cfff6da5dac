//! What the system knows of this process.

/// The usual `process_*` numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// User and system CPU time, in seconds.
    pub cpu_seconds: f64,
    /// Memory in use, in bytes.
    pub resident_bytes: u64,
    /// Address space, in bytes.
    pub virtual_bytes: u64,
    /// Start, in seconds since 1970.
    pub start_seconds: f64,
    /// Open file descriptors.
    pub open_descriptors: u64,
    /// Limit of open file descriptors.
    pub descriptor_limit: u64,
    /// Threads.
    pub threads: u64,
}

/// Asks the system; `None` where it cannot be asked.
#[cfg(target_os = "linux")]
pub fn usage() -> Option<Usage> {
    use procfs::{CurrentSI, WithCurrentSystemInfo as _, process::LimitValue};

    let process = procfs::process::Process::myself().ok()?;
    let stat = process.stat().ok()?;
    let limit = match process.limits().ok()?.max_open_files.soft_limit {
        LimitValue::Unlimited => u64::MAX,
        LimitValue::Value(limit) => limit,
    };
    let ticks = procfs::ticks_per_second() as f64;
    let boot = procfs::KernelStats::current().ok()?.btime;
    Some(Usage {
        cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
        resident_bytes: stat.rss_bytes().get(),
        virtual_bytes: stat.vsize,
        start_seconds: boot as f64 + stat.starttime as f64 / ticks,
        open_descriptors: process.fd_count().ok()? as u64,
        descriptor_limit: limit,
        threads: u64::try_from(stat.num_threads).unwrap_or(0),
    })
}

/// Asks the system; `None` where it cannot be asked.
#[cfg(not(target_os = "linux"))]
pub fn usage() -> Option<Usage> {
    None
}

/// Keeps what is in this process's memory out of core dumps, debuggers and `/proc`, except for the superuser's. It holds for
/// this program: one that it starts may be looked into again.
///
/// # Errors
/// When the system refuses; what could be done is done.
pub fn forbid_dumps() -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, setrlimit};
        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        let limited = setrlimit(Resource::Core, none);
        // A handler of core dumps (`|` in core_pattern) is called in spite of the limit; this stops it too.
        #[cfg(target_os = "linux")]
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
        limited?;
    }
    Ok(())
}

/// How many file descriptors may be open.
pub fn descriptor_limit() -> u64 {
    #[cfg(unix)]
    return rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .unwrap_or(u64::MAX);
    #[cfg(not(unix))]
    u64::MAX
}

/// Raises that limit as far as this user may: the usual one is for programs that ask for less.
///
/// # Errors
/// When the system refuses; the limit is what it was.
pub fn raise_descriptor_limit() -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let maximum = getrlimit(Resource::Nofile).maximum;
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: maximum,
                maximum,
            },
        )?;
    }
    Ok(())
}

/// Whether this user may make files in a folder, as far as the system tells beforehand.
pub fn is_writable(folder: &std::path::Path) -> bool {
    #[cfg(unix)]
    {
        use rustix::fs::{Access, access};
        access(folder, Access::WRITE_OK | Access::EXEC_OK).is_ok()
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        true
    }
}

/// Takes everybody else's access to a file away, where access is told by modes; elsewhere the folder decides.
///
/// # Errors
/// Whatever the system says.
pub fn make_private(file: &std::fs::File) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    }
    let _ = file;
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn a_running_process_uses_something() {
        let usage = super::usage().unwrap();
        assert!(
            usage.resident_bytes > 100_000 && usage.open_descriptors > 2 && usage.threads > 0,
            "{usage:?}"
        );
        assert!(
            usage.start_seconds > 1.7e9 && usage.descriptor_limit >= usage.open_descriptors,
            "{usage:?}"
        );
    }
}
