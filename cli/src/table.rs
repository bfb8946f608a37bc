//! The tables of `xl block-list` and `xl network-list`, byte for byte.

use std::fmt::Write;

use aodevice::{DeviceId, Kind, Listed};
use devstate::StateValue;

pub(crate) fn header(kind: Kind) -> String {
    match kind {
        Kind::Vbd => format!(
            "{:<5} {:<3} {:<6} {:<5} {:<6} {:<8} {:<30}\n",
            "Vdev", "BE", "handle", "state", "evt-ch", "ring-ref", "BE-path"
        ),
        Kind::Vif => format!(
            "{:<3} {:<2} {:<17} {:<6} {:<5} {:<6} {:>5}/{:<5} {:<30}\n",
            "Idx", "BE", "Mac Addr.", "handle", "state", "evt-ch", "tx-", "rx-ring-ref", "BE-path"
        ),
        Kind::Console => format!(
            "{:<3} {:<2} {:<5} {:<6} {:>8} {:<10} {:<30}\n",
            "Idx", "BE", "state", "evt-ch", "ring-ref", "connection", ""
        ),
        Kind::P9 => format!(
            "{:<3} {:<2} {:<5} {:<10} {:<14} {:<30} {:<30}\n",
            "Idx", "BE", "state", "Tag", "Security", "Path", "BE-path"
        ),
        _ => format!("{:<5} {:<3} {:<5} {:<30}\n", "Devid", "BE", "state", "BE-path"),
    }
}

/// What is not there prints as -1.
fn or_missing(value: Option<u32>) -> i64 {
    value.map_or(-1, i64::from)
}

pub(crate) fn rows(devices: &[Listed]) -> String {
    let mut text = String::new();
    for device in devices {
        let (backend_path, DeviceId { devid, be, fe, kind, .. }) = (&device.backend_path, device.id);
        let state = device.frontend_state.as_ref().and_then(StateValue::state);
        let state = or_missing(state.map(|state| state.number().into()));
        let number = |name| or_missing(device.number(name));
        // Writing to a String cannot fail.
        _ = match kind {
            Kind::Vbd | Kind::VirtioDisk => writeln!(
                text,
                "{devid:<5} {:<3} {:<6} {state:<5} {:<6} {:<8} {backend_path:<30}",
                be.0,
                fe.0,
                number("event_channel"),
                number("ring_ref"),
            ),
            Kind::Vif => writeln!(
                text,
                "{devid:<3} {:<2} {:>17}{devid:>6} {state:>5} {:>6} {:>5}/{:<11} {backend_path:<30}",
                be.0,
                device.text("mac").unwrap_or("00:00:00:00:00:00"),
                number("event_channel"),
                number("tx_ring_ref"),
                number("rx_ring_ref"),
            ),
            Kind::Console => {
                let connection = device.text("connection").unwrap_or_default();
                let pty = device.text("tty").filter(|_| connection == "pty");
                let pty = pty.map(|tty| format!("{tty:<30} ")).unwrap_or_default();
                let number = |name| or_missing(device.number(name));
                let (evt_ch, ring_ref) = (number("event_channel"), number("ring_ref"));
                let channel = devid.saturating_sub(kind.info().first_devid);
                writeln!(
                    text,
                    "{channel:<3} {:<2} {state:<5} {evt_ch:<6} {ring_ref:<8} {connection:<10} {pty}",
                    be.0
                )
            }
            Kind::P9 => writeln!(
                text,
                "{devid:<3} {:<2} {state:<5} {:<10} {:<14} {:<30} {backend_path:<30}",
                be.0,
                device.text("tag").unwrap_or("-"),
                device.text("security_model").unwrap_or("-"),
                device.text("path").unwrap_or("-"),
            ),
            _ => writeln!(text, "{devid:<5} {:<3} {state:<5} {backend_path:<30}", be.0),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use aodevice::{ListedValue, Which};
    use xs_client::DomId;

    use super::*;

    fn listed(kind: Kind, devid: u32, of_kind: &[(&'static str, ListedValue)]) -> Listed {
        let id = DeviceId::new(Which { fe: DomId(1), kind, devid }, DomId::DOM0);
        let mut device = Listed::new(id, format!("/local/domain/0/backend/{kind}/1/{devid}"));
        device.frontend_state = Some(StateValue::parse(b"4"));
        device.of_kind.extend(of_kind.iter().map(|(name, value)| (*name, Some(value.clone()))));
        device
    }

    /// What xl 4.17 printed on a real host.
    #[test]
    fn as_xl_prints_them() {
        use ListedValue::{Number, Text};
        assert_eq!(
            header(Kind::Vbd),
            "Vdev  BE  handle state evt-ch ring-ref BE-path                       \n"
        );
        let vbd = listed(Kind::Vbd, 51712, &[("event_channel", Number(8)), ("ring_ref", Number(8))]);
        assert_eq!(
            rows(&[vbd]),
            "51712 0   1      4     8      8        /local/domain/0/backend/vbd/1/51712\n"
        );
        assert_eq!(
            header(Kind::Vif),
            "Idx BE Mac Addr.         handle state evt-ch   tx-/rx-ring-ref BE-path                       \n"
        );
        let mac = Text("00:16:3e:46:36:49".to_owned());
        let vif = [("mac", mac), ("tx_ring_ref", Number(522)), ("rx_ring_ref", Number(523))];
        assert_eq!(
            rows(&[listed(Kind::Vif, 0, &vif)]),
            "0   0  00:16:3e:46:36:49     0     4     -1   522/523         /local/domain/0/backend/vif/1/0\n"
        );
    }

    /// What xl 4.17 printed on a real host of a socket; of a pty, by its format.
    #[test]
    fn channels() {
        let text = |text: &str| ListedValue::Text(text.to_owned());
        let rings = [("event_channel", ListedValue::Number(8)), ("ring_ref", ListedValue::Number(8))];
        let of = |devid, connection, tty| {
            let texts = [("connection", text(connection)), ("tty", text(tty))];
            listed(Kind::Console, devid, &[&rings[..], &texts].concat())
        };
        assert_eq!(
            header(Kind::Console),
            "Idx BE state evt-ch ring-ref connection                               \n"
        );
        assert_eq!(rows(&[of(1, "socket", "")]), "0   0  4     8      8        socket     \n");
        assert_eq!(
            rows(&[of(2, "pty", "/dev/pts/3")]),
            "1   0  4     8      8        pty        /dev/pts/3                     \n"
        );
    }

    /// xl has no such command.
    #[test]
    fn file_systems() {
        let text = |text: &str| ListedValue::Text(text.to_owned());
        let of_kind = [("tag", text("share")), ("security_model", text("none")), ("path", text("/srv/s"))];
        assert_eq!(
            header(Kind::P9) + &rows(&[listed(Kind::P9, 0, &of_kind)]),
            "Idx BE state Tag        Security       Path                           BE-path                       \n\
             0   0  4     share      none           /srv/s                         /local/domain/0/backend/9pfs/1/0\n"
        );
    }

    #[test]
    fn what_is_missing_or_malformed_is_minus_one() {
        let mut bare = listed(Kind::Vbd, 51712, &[]);
        bare.frontend_state = Some(StateValue::parse(b"junk"));
        assert_eq!(
            rows(&[bare]),
            "51712 0   1      -1    -1     -1       /local/domain/0/backend/vbd/1/51712\n"
        );
    }
}
