//! Debian packages: installing what is missing if this process may, else saying how.

use std::process::Command;

use anyhow::{Context, Result};

use crate::failure::{Failure, output_of};

/// What this process has done, and may do, with apt.
#[derive(Debug)]
pub struct Apt {
    may_install: bool,
    is_root: bool,
    refreshed: bool,
}

impl Apt {
    /// Apt as this process can use it.
    pub fn new(may_install: bool) -> Self {
        Self { may_install, is_root: rustix::process::geteuid().is_root(), refreshed: false }
    }

    /// Installs those of the packages that are not there. If it may not, or cannot, the error says
    /// which command would.
    pub fn install_missing(&mut self, packages: &[&str]) -> Result<()> {
        let missing = missing(packages).map_err(|error| Failure {
            tried: "looking for the packages that the lab needs".into(),
            observed: format!("{error:#}"),
            hint: format!("run the lab on Debian 12 (amd64) with {}", packages.join(", ")),
        })?;
        if missing.is_empty() {
            return Ok(());
        }
        let advice = format!(
            "run as root: apt-get update && apt-get install --no-install-recommends {}",
            missing.join(" ")
        );
        let mut install = || -> Result<()> {
            self.refresh()?;
            println!("lab: installing {}", missing.join(", "));
            let mut command = Command::new("apt-get");
            command.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(&missing);
            output_of(command.env("DEBIAN_FRONTEND", "noninteractive")).map(drop)
        };
        let observed = match install() {
            Ok(()) => return Ok(()),
            Err(error) => format!("not installed: {}; {error:#}", missing.join(", ")),
        };
        Err(Failure { tried: "preparing the packages that the lab needs".into(), observed, hint: advice }
            .into())
    }

    /// Reads the package lists anew, once.
    pub(crate) fn refresh(&mut self) -> Result<()> {
        if self.refreshed {
            return Ok(());
        }
        anyhow::ensure!(self.may_install, "the lab was told not to install anything");
        anyhow::ensure!(self.is_root, "the lab does not run as root, so it cannot install anything");
        println!("lab: reading the package lists");
        output_of(Command::new("apt-get").args(["update", "--quiet"]))?;
        self.refreshed = true;
        Ok(())
    }
}

fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    // dpkg-query fails when it does not know one of them, but still tells of the others.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\n"])
        .args(packages)
        .output()
        .context("cannot run dpkg-query")?;
    let known = String::from_utf8_lossy(&output.stdout);
    let is_installed = |package: &&str| known.lines().any(|line| line == format!("{package} installed"));
    Ok(packages.iter().copied().filter(|package| !is_installed(package)).collect())
}
