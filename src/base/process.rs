//! This process: resource usage, resource limits, core dumps, file modes.

/// The values of the standard `process_*` metrics.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// User and system CPU time, in seconds.
    pub cpu_seconds: f64,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// Virtual memory, in bytes.
    pub virtual_bytes: u64,
    /// Start time, in seconds since 1970.
    pub start_seconds: f64,
    /// Open file descriptors.
    pub open_descriptors: u64,
    /// The limit of open file descriptors.
    pub descriptor_limit: u64,
    /// Threads.
    pub threads: u64,
}

/// The current usage; `None` where the platform does not provide it.
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

/// The current usage; `None` where the platform does not provide it.
#[cfg(not(target_os = "linux"))]
pub fn usage() -> Option<Usage> {
    None
}

/// Forbids core dumps of this process, and access to its memory through debuggers and `/proc`,
/// except to the superuser. Programs that it executes are not protected.
///
/// # Errors
/// When a setting is refused; the others are made all the same.
pub fn forbid_dumps() -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, setrlimit};
        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        let limited = setrlimit(Resource::Core, none);
        // A core dump handler (`|` in core_pattern) ignores the limit; this setting stops it, too.
        #[cfg(target_os = "linux")]
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
        limited?;
    }
    Ok(())
}

/// The limit of open file descriptors.
pub fn descriptor_limit() -> u64 {
    #[cfg(unix)]
    return rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .unwrap_or(u64::MAX);
    #[cfg(not(unix))]
    u64::MAX
}

/// Raises the soft limit of open file descriptors to the hard limit: the default is too low for a
/// proxy.
///
/// # Errors
/// When the system refuses; the limit stays as it was.
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

/// The effective user ID of this process; `None` where users have no number.
pub fn user_id() -> Option<u32> {
    #[cfg(unix)]
    return Some(rustix::process::geteuid().as_raw());
    #[cfg(not(unix))]
    None
}

/// Whether this user may create files in a folder, as far as this can be checked without trying.
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

/// The permission bits of a file that every user may read or write; `None` for any other file.
pub fn mode_open_to_all(file: &std::path::Path) -> Option<u32> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let mode = std::fs::metadata(file).ok()?.mode() & 0o777;
        (mode & 0o006 != 0).then_some(mode)
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        None
    }
}

/// Whether every user may create and replace files in a folder.
pub fn is_writable_by_others(folder: &std::path::Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata(folder).is_ok_and(|metadata| metadata.mode() & 0o002 != 0)
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        false
    }
}

/// Restricts a file to its owner (mode 0600). Without file modes, the access rules of the folder
/// apply.
///
/// # Errors
/// When the mode cannot be set.
pub fn make_private(file: &std::fs::File) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    }
    let _ = file;
    Ok(())
}

/// The name of this machine, or of the container.
#[cfg(unix)]
pub fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// The name of this machine.
#[cfg(not(unix))]
pub fn host_name() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_default()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn a_running_process_has_usage() {
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
