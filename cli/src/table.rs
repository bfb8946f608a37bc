//! The tables of `xl block-list` and `xl network-list`, byte for byte; and the one of all kinds, which is ours.

use std::fmt::Write;

use aodevice::{DeviceId, Kind, Listed};
use devstate::StateValue;

/// A line of the table of all kinds.
fn line_of_all(cells: [&str; 9]) -> String {
    let [domid, kind, device, be, be_kind, served_by, be_state, fe_state, operation] = cells;
    let line = format!(
        "{domid:<5} {kind:<8} {device:<8} {be:<5} {be_kind:<8} {served_by:<12} {be_state:<17} {fe_state:<17} {operation}"
    );
    format!("{}\n", line.trim_end())
}

fn row_of_all(device: &Listed) -> String {
    let id = device.id;
    let state =
        |state: &Option<StateValue>| state.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    let operation = match (device.record(), &device.operation) {
        (Some(record), _) => format!("{} ({:?})", record.operation, record.stage),
        (None, text) => text.clone().unwrap_or_default(),
    };
    line_of_all([
        &id.fe.to_string(),
        id.kind.name(),
        &(id.kind.info().id_name)(id.devid),
        &id.be.to_string(),
        id.be_kind.name(),
        &id.be_kind.server().to_string(),
        &state(&device.backend_state),
        &state(&device.frontend_state),
        &operation,
    ])
}

/// The header of the table of a kind, or of all kinds.
pub(crate) fn header(kind: Option<Kind>) -> String {
    let Some(kind) = kind else {
        return line_of_all([
            "Domid",
            "Kind",
            "Device",
            "BE",
            "BE-kind",
            "Served-by",
            "BE-state",
            "FE-state",
            "Operation",
        ]);
    };
    match kind {
        Kind::Vbd => format!(
            "{:<5} {:<3} {:<6} {:<5} {:<6} {:<8} {:<30}\n",
            "Vdev", "BE", "handle", "state", "evt-ch", "ring-ref", "BE-path"
        ),
        Kind::Vif => format!(
            "{:<3} {:<2} {:<17} {:<6} {:<5} {:<6} {:>5}/{:<5} {:<30}\n",
            "Idx", "BE", "Mac Addr.", "handle", "state", "evt-ch", "tx-", "rx-ring-ref", "BE-path"
        ),
        _ => format!("{:<5} {:<3} {:<5} {:<30}\n", "Devid", "BE", "state", "BE-path"),
    }
}

/// What is not there prints as -1.
fn or_missing(value: Option<u32>) -> i64 {
    value.map_or(-1, i64::from)
}

pub(crate) fn rows(kind: Option<Kind>, devices: &[Listed]) -> String {
    if kind.is_none() {
        return devices.iter().map(row_of_all).collect();
    }
    let mut text = String::new();
    for device in devices {
        let (backend_path, DeviceId { devid, be, fe, kind, .. }) = (&device.backend_path, device.id);
        let state = device.frontend_state.as_ref().and_then(StateValue::state);
        let state = or_missing(state.map(|state| state.number().into()));
        let number = |name| or_missing(device.number(name));
        // Writing to a String cannot fail.
        _ = match kind {
            Kind::Vbd => writeln!(
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
            header(Some(Kind::Vbd)),
            "Vdev  BE  handle state evt-ch ring-ref BE-path                       \n"
        );
        let vbd = listed(Kind::Vbd, 51712, &[("event_channel", Number(8)), ("ring_ref", Number(8))]);
        assert_eq!(
            rows(Some(Kind::Vbd), &[vbd]),
            "51712 0   1      4     8      8        /local/domain/0/backend/vbd/1/51712\n"
        );
        assert_eq!(
            header(Some(Kind::Vif)),
            "Idx BE Mac Addr.         handle state evt-ch   tx-/rx-ring-ref BE-path                       \n"
        );
        let mac = Text("00:16:3e:46:36:49".to_owned());
        let vif = [("mac", mac), ("tx_ring_ref", Number(522)), ("rx_ring_ref", Number(523))];
        assert_eq!(
            rows(Some(Kind::Vif), &[listed(Kind::Vif, 0, &vif)]),
            "0   0  00:16:3e:46:36:49     0     4     -1   522/523         /local/domain/0/backend/vif/1/0\n"
        );
    }

    #[test]
    fn what_is_missing_or_malformed_is_minus_one() {
        let mut bare = listed(Kind::Vbd, 51712, &[]);
        bare.frontend_state = Some(StateValue::parse(b"junk"));
        assert_eq!(
            rows(Some(Kind::Vbd), &[bare]),
            "51712 0   1      -1    -1     -1       /local/domain/0/backend/vbd/1/51712\n"
        );
    }

    #[test]
    fn all_kinds_in_one_table() {
        let mut left = listed(Kind::Vif, 3, &[]);
        left.backend_state = Some(StateValue::parse(b"2"));
        left.frontend_state = None;
        left.operation = Some("add:00000000000000aa stage=script since=0".to_owned());
        assert_eq!(
            header(None) + &rows(None, &[listed(Kind::Vbd, 51712, &[]), left]),
            "\
Domid Kind     Device   BE    BE-kind  Served-by    BE-state          FE-state          Operation
1     vbd      xvda     0     vbd      kernel       -                 4 (Connected)
1     vif      3        0     vif      kernel       2 (InitWait)      -                 attach (Script)
"
        );
    }
}
