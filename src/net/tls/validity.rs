//! The validity period of certificates, and warnings before it ends.

use std::{
    fmt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::CertificateDer;
use x509_parser::{parse_x509_certificate, time::ASN1Time};

use super::{Error, certificates};

/// Remaining days at which a warning is due.
const WARNING_DAYS: [u64; 5] = [1, 3, 7, 14, 30];
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The period in which all certificates of a chain are valid (RFC 5280 §4.1.2.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The latest `notBefore`.
    pub not_before: SystemTime,
    /// The earliest `notAfter`.
    pub not_after: SystemTime,
}

/// What is wrong with the validity of a certificate, or soon will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValidityWarning {
    /// It is not valid yet, or this machine's clock is wrong.
    NotYetValid(SystemTime),
    /// It expires within this number of days.
    ExpiresSoon(u64, SystemTime),
    /// It has expired.
    Expired(SystemTime),
}

impl Validity {
    /// The validity of all certificates in a PEM file together; `None` if one of them cannot be
    /// parsed.
    ///
    /// # Errors
    /// When the file cannot be read or contains no certificate.
    pub fn of_file(path: &Path) -> Result<Option<Self>, Error> {
        Ok(Self::of_chain(&certificates(path)?))
    }

    fn of_chain(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let mut all: Option<Self> = None;
        for certificate in chain {
            let (_, certificate) = parse_x509_certificate(certificate).ok()?;
            let validity = certificate.validity();
            let one = Self {
                not_before: moment(validity.not_before),
                not_after: moment(validity.not_after),
            };
            let all = all.get_or_insert(one);
            all.not_before = all.not_before.max(one.not_before);
            all.not_after = all.not_after.min(one.not_after);
        }
        all
    }

    /// The warning that is due at `now`, if any.
    pub fn warning(&self, now: SystemTime) -> Option<ValidityWarning> {
        let Ok(left) = self.not_after.duration_since(now) else {
            return Some(ValidityWarning::Expired(self.not_after));
        };
        if self.not_before > now {
            return Some(ValidityWarning::NotYetValid(self.not_before));
        }
        let days = WARNING_DAYS
            .into_iter()
            .find(|days| left < DAY * u32::try_from(*days).unwrap_or(u32::MAX))?;
        Some(ValidityWarning::ExpiresSoon(days, self.not_after))
    }
}

impl fmt::Display for ValidityWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotYetValid(begin) => write!(f, "is not valid before {}", date(*begin)),
            Self::ExpiresSoon(1, end) => write!(f, "expires within a day, on {}", date(*end)),
            Self::ExpiresSoon(days, end) => {
                write!(f, "expires within {days} days, on {}", date(*end))
            }
            Self::Expired(end) => write!(f, "expired on {}", date(*end)),
        }
    }
}

/// Clamps to the years 1970 to 9999: an earlier date has passed either way, and a later one cannot
/// be written in RFC 3339.
fn moment(time: ASN1Time) -> SystemTime {
    const LAST: u64 = 253_402_300_799;
    let seconds = u64::try_from(time.timestamp()).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(seconds.min(LAST))
}

fn date(moment: SystemTime) -> impl fmt::Display {
    humantime::format_rfc3339_seconds(moment)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(from: (i32, u8, u8), to: (i32, u8, u8)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(["localhost".to_owned()]).expect("parameters");
        params.not_before = date_time_ymd(from.0, from.1, from.2);
        params.not_after = date_time_ymd(to.0, to.1, to.2);
        params
            .self_signed(&KeyPair::generate().expect("a key"))
            .expect("a certificate")
            .into()
    }

    fn at(text: &str) -> SystemTime {
        humantime::parse_rfc3339(&format!("{text}T00:00:00Z")).expect("a date")
    }

    #[test]
    fn a_chain_is_valid_while_all_of_its_certificates_are() {
        let chain = [
            certificate((2024, 1, 1), (2025, 1, 1)),
            certificate((2023, 1, 1), (2024, 7, 1)),
        ];
        let validity = Validity::of_chain(&chain).expect("readable");
        assert_eq!(
            validity,
            Validity {
                not_before: at("2024-01-01"),
                not_after: at("2024-07-01")
            }
        );
        assert_eq!(
            Validity::of_chain(&[chain[0].clone(), CertificateDer::from(vec![1, 2, 3])]),
            None
        );
    }

    #[test]
    fn warnings_are_due_at_each_threshold() {
        let chain = [certificate((2024, 1, 1), (2024, 7, 31))];
        let validity = Validity::of_chain(&chain).expect("readable");
        for (now, expected) in [
            ("2023-12-31", "is not valid before 2024-01-01T00:00:00Z"),
            ("2024-07-01", ""),
            (
                "2024-07-02",
                "expires within 30 days, on 2024-07-31T00:00:00Z",
            ),
            (
                "2024-07-18",
                "expires within 14 days, on 2024-07-31T00:00:00Z",
            ),
            (
                "2024-07-25",
                "expires within 7 days, on 2024-07-31T00:00:00Z",
            ),
            (
                "2024-07-29",
                "expires within 3 days, on 2024-07-31T00:00:00Z",
            ),
            (
                "2024-07-31",
                "expires within a day, on 2024-07-31T00:00:00Z",
            ),
            ("2024-08-01", "expired on 2024-07-31T00:00:00Z"),
        ] {
            let warning = validity
                .warning(at(now))
                .map(|warning| warning.to_string())
                .unwrap_or_default();
            assert_eq!(warning, expected, "{now}");
        }
    }

    #[test]
    fn the_oldest_and_the_newest_dates_can_be_written() {
        let validity =
            Validity::of_chain(&[certificate((1951, 1, 1), (1960, 1, 1))]).expect("readable");
        assert_eq!(
            validity
                .warning(at("2024-01-01"))
                .map(|warning| warning.to_string())
                .as_deref(),
            Some("expired on 1970-01-01T00:00:00Z")
        );
        let validity =
            Validity::of_chain(&[certificate((9999, 12, 31), (9999, 12, 31))]).expect("readable");
        assert_eq!(
            validity
                .warning(at("2024-01-01"))
                .map(|warning| warning.to_string())
                .as_deref(),
            Some("is not valid before 9999-12-31T00:00:00Z")
        );
    }
}
