//! What a script and its handler left, beside each other: for the labs that go through a case with both.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};

/// What there is after each step of a case, by names.
pub(crate) type Views = Vec<BTreeMap<String, String>>;

/// A place that is meant to differ, by how its name begins (`0/store/`: after the first step), and why.
pub(crate) type Difference = (&'static str, &'static str);

/// What differs and is not listed, and what is listed and equal. `show` prints what is listed, with its reason.
pub(crate) fn faults(
    name: &str,
    (script, native): (&Views, &Views),
    differences: &[Difference],
    show: bool,
) -> Result<Vec<String>> {
    ensure!(script.len() == native.len() && !script.is_empty(), "sides of different lengths");
    let mut faults = Vec::new();
    let mut unseen: BTreeSet<_> = differences.iter().map(|(place, _)| *place).collect();
    for (number, (script, native)) in script.iter().zip(native).enumerate() {
        let keys: BTreeSet<_> = script.keys().chain(native.keys()).collect();
        for key in keys {
            let (theirs, ours) = (script.get(key), native.get(key));
            if theirs == ours {
                continue;
            }
            let place = format!("{number}/{key}");
            let listed = differences.iter().find(|(listed, _)| place.starts_with(listed));
            let shown = |value: Option<&String>| value.map_or("nothing", String::as_str).to_owned();
            let text = format!("{place}: {} by the script, {} by the handler", shown(theirs), shown(ours));
            match listed {
                Some((listed, why)) => {
                    unseen.remove(listed);
                    if show {
                        eprintln!("lab: {name}: {text}: {why}");
                    }
                }
                None => faults.push(text),
            }
        }
    }
    faults.extend(unseen.iter().map(|place| format!("{place}: listed as different, and equal")));
    Ok(faults)
}
