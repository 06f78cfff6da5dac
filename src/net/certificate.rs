//! The names in a client certificate.

use rustls::pki_types::CertificateDer;
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

/// The names in a verified certificate.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CertificateNames {
    common_name: Option<String>,
    dns: Vec<String>,
}

impl CertificateNames {
    /// The common name of the subject, if it has exactly one (RFC 5280 §4.1.2.6), and the DNS names
    /// (§4.2.1.6). Names that cannot be parsed are left out.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let Ok((_, certificate)) = parse_x509_certificate(certificate) else {
            return Self::default();
        };
        let mut common = certificate.subject().iter_common_name();
        let common_name = common
            .next()
            .filter(|_| common.next().is_none())
            .and_then(|name| name.as_str().ok());
        let alternatives = certificate.subject_alternative_name().ok().flatten();
        let alternatives = alternatives
            .iter()
            .flat_map(|extension| &extension.value.general_names);
        let dns = alternatives.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        Self {
            common_name: common_name.map(str::to_owned),
            dns: dns.collect(),
        }
    }

    /// Whether `name` is the common name (compared exactly) or one of the DNS names (ignoring
    /// case).
    pub fn contains(&self, name: &str) -> bool {
        self.common_name.as_deref() == Some(name)
            || self.dns.iter().any(|dns| dns.eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn names(common: &[&str], dns: &[&str]) -> CertificateNames {
        let mut params = CertificateParams::new(
            dns.iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>(),
        )
        .unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "backup");
        for name in common {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        params.subject_alt_names.push(SanType::Rfc822Name(
            "backup@example.com".try_into().unwrap(),
        ));
        let key = KeyPair::generate().unwrap();
        CertificateNames::of(params.self_signed(&key).unwrap().der())
    }

    #[test]
    fn the_common_name_and_dns_names_count_and_nothing_else() {
        let names = names(&["Nightly backup"], &["backup.example.com"]);
        assert!(names.contains("Nightly backup") && names.contains("Backup.example.com"));
        for other in [
            "nightly backup",
            "backup",
            "backup@example.com",
            "example.com",
            "CN=Nightly backup",
            "",
        ] {
            assert!(!names.contains(other), "{other}");
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_names() {
        assert_eq!(
            CertificateNames::of(&CertificateDer::from(vec![0x30, 0x03, 0x02, 0x01])),
            CertificateNames::default()
        );
        assert!(!CertificateNames::default().contains(""));
    }
}
