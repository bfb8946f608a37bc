//! The tables of `xl block-list` and `xl network-list`, byte for byte.

use std::fmt::Write;

use aodevice::{Kind, Listed};
use devstate::StateValue;
use xs_client::DomId;

pub(crate) fn header(kind: Kind) -> String {
    match kind {
        Kind::Vif => format!(
            "{:<3} {:<2} {:<17} {:<6} {:<5} {:<6} {:>5}/{:<5} {:<30}\n",
            "Idx", "BE", "Mac Addr.", "handle", "state", "evt-ch", "tx-", "rx-ring-ref", "BE-path"
        ),
        _ => format!(
            "{:<5} {:<3} {:<6} {:<5} {:<6} {:<8} {:<30}\n",
            "Vdev", "BE", "handle", "state", "evt-ch", "ring-ref", "BE-path"
        ),
    }
}

/// What is not there prints as -1.
fn or_missing(value: Option<u32>) -> i64 {
    value.map_or(-1, i64::from)
}

pub(crate) fn rows(fe: DomId, kind: Kind, devices: &[Listed]) -> String {
    let mut text = String::new();
    for device in devices {
        let Listed { devid, be, backend_path, .. } = device;
        let state = device.frontend_state.as_ref().and_then(StateValue::state);
        let state = or_missing(state.map(|state| state.number().into()));
        let event_channel = or_missing(device.event_channel);
        // Writing to a String cannot fail.
        _ = match kind {
            Kind::Vif => writeln!(
                text,
                "{devid:<3} {:<2} {:>17}{devid:>6} {state:>5} {event_channel:>6} {:>5}/{:<11} {backend_path:<30}",
                be.0,
                device.mac.as_deref().unwrap_or("00:00:00:00:00:00"),
                or_missing(device.tx_ring_ref),
                or_missing(device.rx_ring_ref),
            ),
            _ => writeln!(
                text,
                "{devid:<5} {:<3} {:<6} {state:<5} {event_channel:<6} {:<8} {backend_path:<30}",
                be.0,
                fe.0,
                or_missing(device.ring_ref),
            ),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed() -> Listed {
        Listed {
            devid: 51712,
            be: DomId::DOM0,
            backend_path: "/local/domain/0/backend/vbd/1/51712".to_owned(),
            mac: None,
            vdev: None,
            params: None,
            bridge: None,
            frontend_state: Some(StateValue::parse(b"4")),
            backend_state: None,
            online: None,
            hotplug_status: None,
            event_channel: Some(8),
            ring_ref: Some(8),
            tx_ring_ref: None,
            rx_ring_ref: None,
            operation: None,
        }
    }

    /// What xl 4.17 printed on a real host.
    #[test]
    fn as_xl_prints_them() {
        assert_eq!(
            header(Kind::Vbd),
            "Vdev  BE  handle state evt-ch ring-ref BE-path                       \n"
        );
        assert_eq!(
            rows(DomId(1), Kind::Vbd, &[listed()]),
            "51712 0   1      4     8      8        /local/domain/0/backend/vbd/1/51712\n"
        );
        assert_eq!(
            header(Kind::Vif),
            "Idx BE Mac Addr.         handle state evt-ch   tx-/rx-ring-ref BE-path                       \n"
        );
        let vif = Listed {
            devid: 0,
            backend_path: "/local/domain/0/backend/vif/1/0".to_owned(),
            mac: Some("00:16:3e:46:36:49".to_owned()),
            event_channel: None,
            ring_ref: None,
            tx_ring_ref: Some(522),
            rx_ring_ref: Some(523),
            ..listed()
        };
        assert_eq!(
            rows(DomId(1), Kind::Vif, &[vif]),
            "0   0  00:16:3e:46:36:49     0     4     -1   522/523         /local/domain/0/backend/vif/1/0\n"
        );
    }

    #[test]
    fn what_is_missing_or_malformed_is_minus_one() {
        let bare = Listed {
            frontend_state: Some(StateValue::parse(b"junk")),
            event_channel: None,
            ring_ref: None,
            ..listed()
        };
        assert_eq!(
            rows(DomId(1), Kind::Vbd, &[bare]),
            "51712 0   1      -1    -1     -1       /local/domain/0/backend/vbd/1/51712\n"
        );
    }
}
