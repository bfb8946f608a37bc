//! The options that several commands have in common, and what they mean to a toolstack.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, ValueEnum};
use xen_aodevice::{Addition, Force, Limits, MediumChange, Removal, Toolstack, WaitFor};

use crate::problem::{Problem, unless_cancelled};
use crate::xl_conf::XlConf;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Until {
    /// The backend is ready and the hotplug script has run
    Script,
    /// The guest has connected
    Connected,
    /// The nodes are written, of a device without a hotplug script; what serves it need not run yet. Else as `script`
    Tree,
}

/// Parses a time limit. A number that overflows a [`Duration`] means no limit, `Duration::MAX`.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "give a number of seconds".to_owned())?;
    if seconds.is_nan() || seconds < 0.0 {
        return Err("give a number of seconds that is not negative".to_owned());
    }
    Ok(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

// What becomes of an operation that is under way on the same device.
#[derive(Debug, ClapArgs)]
pub(crate) struct Others {
    /// How long another operation on the device may take to end
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true, default_value = "60")]
    owner_timeout: Duration,
    /// Ask another operation on the device to cancel, instead of waiting for it to end
    #[arg(long)]
    pub(crate) take_over: bool,
}

// The configuration that libxl keeps of a domain.
#[derive(Debug, ClapArgs)]
pub(crate) struct Recording {
    /// Leave the configuration that libxl keeps of the guest alone: xl does not know the device when
    /// it reboots, restores or migrates the guest. Only what an earlier device of the same number has
    /// left there goes, before a new one is made
    #[arg(long)]
    no_record: bool,
    /// Where libxl keeps it
    #[arg(long, hide = true, value_name = "DIR")]
    libxl_dir: Option<PathBuf>,
}

impl Recording {
    pub(crate) fn of(&self, toolstack: Toolstack) -> Toolstack {
        match &self.libxl_dir {
            _ if self.no_record => toolstack.without_libxl_config(),
            Some(libxl_dir) => toolstack.with_libxl_dir(libxl_dir),
            None => toolstack,
        }
    }
}

// What all attaching has in common.
#[derive(Debug, ClapArgs)]
pub(crate) struct Attaching {
    /// When it is done
    #[arg(long, value_enum, default_value = "script", value_name = "WHEN")]
    wait: Until,
    /// How long a hotplug script may take
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true, default_value = "40")]
    script_timeout: Duration,
    /// How long the backend may take to take the device up
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true, default_value = "10")]
    backend_timeout: Duration,
    /// How long the guest may take to connect, with --wait connected
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true, default_value = "10")]
    connect_timeout: Duration,
    /// Take nothing from xl.conf
    #[arg(long)]
    no_xl_conf: bool,
    /// Where the defaults of interfaces come from (vif.default.*), as for xl
    /// [default: /etc/xen/xl.conf, if it is there]
    #[arg(long, value_name = "FILE", conflicts_with = "no_xl_conf")]
    xl_conf: Option<PathBuf>,
    #[command(flatten)]
    others: Others,
    #[command(flatten)]
    pub(crate) recording: Recording,
}

impl Attaching {
    pub(crate) fn addition(&self) -> Addition {
        let wait_for = match self.wait {
            Until::Script => WaitFor::Script,
            Until::Connected => WaitFor::Connected,
            Until::Tree => WaitFor::Tree,
        };
        Addition::from(wait_for).take_over(self.others.take_over)
    }

    /// What xl.conf says, if it is to be read.
    pub(crate) async fn xl_conf(&self) -> Result<XlConf, Problem> {
        if self.no_xl_conf {
            return Ok(XlConf::default());
        }
        let (file, asked_for) = match &self.xl_conf {
            Some(file) => (file.clone(), true),
            None => (PathBuf::from("/etc/xen/xl.conf"), false),
        };
        let tried = format!("cannot read {}", file.display());
        // In a thread, since a file system that does not answer must not make it deaf to signals.
        let read = tokio::task::spawn_blocking(move || XlConf::read(&file, asked_for));
        unless_cancelled(tried, read).await?.unwrap_or_else(|_| Ok(XlConf::default()))
    }

    pub(crate) fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        limits.backend = self.backend_timeout;
        limits.connect = self.connect_timeout;
        limits.owner = self.others.owner_timeout;
        limits.scripts = limits.scripts.deadline(self.script_timeout);
        limits
    }
}

/// The limits of removals.
pub(crate) fn letting_go(close: Duration, script: Duration, others: &Others) -> Limits {
    let mut limits = Limits::default();
    limits.close = close;
    limits.owner = others.owner_timeout;
    limits.scripts = limits.scripts.deadline(script);
    limits
}

// What all detaching has in common.
#[derive(Debug, ClapArgs)]
pub(crate) struct Detaching {
    /// How long the guest and the backend may take to let go
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true, default_value = "10")]
    timeout: Duration,
    /// How long a hotplug script may take
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true, default_value = "40")]
    script_timeout: Duration,
    /// Remove also a device that is in use and that no toolstack has recorded
    #[arg(long)]
    adopt: bool,
    #[command(flatten)]
    others: Others,
    #[command(flatten)]
    pub(crate) recording: Recording,
}

impl Detaching {
    pub(crate) fn removal(&self, force: Force) -> Removal {
        Removal::from(force).take_over(self.others.take_over).adopt(self.adopt)
    }

    pub(crate) fn limits(&self) -> Limits {
        letting_go(self.timeout, self.script_timeout, &self.others)
    }
}

// What changing a medium has in common.
#[derive(Debug, ClapArgs)]
pub(crate) struct ChangingMedium {
    /// Open the tray also if the guest has locked it: what reads the medium there gets errors
    #[arg(short, long)]
    force: bool,
    /// How long the device model may take, and the guest to open the tray if it has locked that
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true, default_value = "10")]
    timeout: Duration,
    #[command(flatten)]
    others: Others,
    /// Leave the configuration that libxl keeps of the guest alone: when xl reboots, restores or migrates the
    /// guest, it has the earlier medium
    #[arg(long)]
    no_record: bool,
}

impl ChangingMedium {
    pub(crate) fn of(&self, change: MediumChange) -> MediumChange {
        change.force(self.force).take_over(self.others.take_over)
    }

    pub(crate) fn toolstack(&self, toolstack: Toolstack) -> Toolstack {
        if self.no_record { toolstack.without_libxl_config() } else { toolstack }
    }

    pub(crate) fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        limits.medium = self.timeout;
        limits.owner = self.others.owner_timeout;
        limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_and_too_long_a_one_is_for_ever() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("-0"), Ok(Duration::ZERO));
        for forever in ["1e20", "1e300", "1e999", "inf", "infinity"] {
            assert_eq!(seconds(forever), Ok(Duration::MAX), "{forever}");
        }
        for bad in ["-1", "-1e-3", "nan", "-inf", "", "1s"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
