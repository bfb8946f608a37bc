//! Ethernet addresses of network interfaces.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// An Ethernet address, printed as `00:16:3e:xx:xx:xx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// A text that is no address of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MacError {
    /// Not of the form.
    #[error(
        "{0:?} is no MAC address: give six pairs of hexadecimal digits with colons, as in 00:16:3e:01:02:03"
    )]
    Form(String),
    /// A group address, which no interface can have.
    #[error("{0} is a multicast address, which no interface can have")]
    Multicast(Mac),
}

impl Mac {
    /// A random address of Xen's range, `00:16:3e` and 23 random bits.
    pub fn random() -> Self {
        let [a, b, c, _] = fastrand::u32(..).to_be_bytes();
        Self([0x00, 0x16, 0x3e, a & 0x7f, b, c])
    }

    /// The address that stands for "none given".
    pub fn is_zero(self) -> bool {
        self.0 == [0; 6]
    }
}

impl FromStr for Mac {
    type Err = MacError;

    /// Exactly six pairs of hexadecimal digits, separated by colons; no group address.
    fn from_str(text: &str) -> Result<Self, MacError> {
        let form = || MacError::Form(text.chars().take(40).collect());
        let mut octets = [0; 6];
        let mut pairs = text.split(':');
        for octet in &mut octets {
            let pair =
                pairs.next().filter(|pair| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit()));
            *octet = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()).ok_or_else(form)?;
        }
        if pairs.next().is_some() {
            return Err(form());
        }
        let mac = Self(octets);
        if octets[0] & 1 == 1 { Err(MacError::Multicast(mac)) } else { Ok(mac) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let mac: Mac = "00:16:3E:aB:00:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "00:16:3e:ab:00:ff");
        for text in [
            "",
            "00:16:3e:ab:00",
            "00:16:3e:ab:00:ff:11",
            "00:16:3e:ab:00:fff",
            "0:16:3e:ab:00:ff",
            "-1:16:3e:ab:00:ff",
            "+1:16:3e:ab:00:ff",
            "00-16-3e-ab-00-ff",
            "00:16:3e:ab:00:fg",
            " 0:16:3e:ab:00:ff",
            "00:16:3e:ab:00:ff:",
        ] {
            assert!(matches!(text.parse::<Mac>(), Err(MacError::Form(_))), "{text}");
        }
        assert!(matches!("01:00:5e:00:00:01".parse::<Mac>(), Err(MacError::Multicast(_))));
    }

    #[test]
    fn random_ones_are_of_xens_range() {
        for _ in 0..1000 {
            let mac = Mac::random();
            assert!(mac.0.starts_with(&[0x00, 0x16, 0x3e]) && mac.0[3] < 0x80);
            assert_eq!(mac.to_string().parse(), Ok(mac));
        }
    }
}
