//! The releases of Debian whose Xen the lab boots, and apt, asked for the packages of one of them.
//!
//! The lab runs on Debian 12, whose packages the machine's own apt knows. Those of another release are asked for with a
//! configuration of their own: its lists and its cache are in a folder of the lab, its mirror is the one that this
//! machine uses, and it believes that nothing is installed. So nothing of it touches this machine, and no privilege is
//! needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};

use crate::apt::Apt;
use crate::failure::output_of;

/// A release of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Debian {
    /// Debian 12: Xen 4.17 and Linux 6.1
    #[default]
    #[value(name = "12")]
    Bookworm,
    /// Debian 13: Xen 4.20 and Linux 6.12
    #[value(name = "13")]
    Trixie,
}

impl Debian {
    /// The release that the lab itself runs on.
    pub const HOST: Self = Self::Bookworm;

    /// What folders of this release are called.
    pub fn folder_name(self) -> &'static str {
        match self {
            Self::Bookworm => "debian-12",
            Self::Trixie => "debian-13",
        }
    }

    /// What apt's sources call it.
    pub fn codename(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// The version of its Xen, as it stands in the names of packages and folders.
    pub fn xen(self) -> &'static str {
        match self {
            Self::Bookworm => "4.17",
            Self::Trixie => "4.20",
        }
    }
}

/// Apt, with what makes it tell of one release.
#[derive(Debug)]
pub struct Source {
    debian: Debian,
    options: Vec<String>,
}

impl Source {
    /// A source of the packages of `debian`; one that is not the host's keeps its lists in `folder`.
    pub fn new(debian: Debian, folder: &Path) -> Result<Self> {
        if debian == Debian::HOST {
            return Ok(Self { debian, options: Vec::new() });
        }
        for needed in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(needed)).context("cannot create apt's folders")?;
        }
        let line = format!("deb [signed-by={KEYRING}] {} {} main\n", mirror()?, debian.codename());
        fs::write(folder.join("sources.list"), line).context("cannot write apt's list of sources")?;
        let shown = |path: &str| folder.join(path).display().to_string();
        let options = [
            ("Dir::Etc::sourcelist", shown("sources.list")),
            ("Dir::Etc::sourceparts", "/dev/null".into()),
            ("Dir::Etc::preferences", "/dev/null".into()),
            ("Dir::Etc::preferencesparts", "/dev/null".into()),
            ("Dir::State", shown("state")),
            ("Dir::State::status", "/dev/null".into()), // nothing is installed
            ("Dir::Cache", shown("cache")),
            ("APT::Architecture", "amd64".into()),
            ("Debug::NoLocking", "1".into()), // the lock that it would take is dpkg's
        ];
        let options = options.into_iter().map(|(name, value)| format!("--option={name}={value}")).collect();
        Ok(Self { debian, options })
    }

    fn apt_get(&self) -> Command {
        let mut command = Command::new("apt-get");
        // The user _apt, whom apt would switch to, need not be able to write to our cache.
        command.args(&self.options).args(["--quiet", "--option=APT::Sandbox::User=root"]);
        command
    }

    /// Reads the package lists anew: those of the host if `apt` may.
    pub fn refresh(&self, apt: &mut Apt) -> Result<()> {
        if self.debian == Debian::HOST {
            return apt.refresh();
        }
        println!("lab: reading the package lists of {}", self.debian.codename());
        output_of(self.apt_get().arg("update")).map(drop)
    }

    /// A field of the version of a package that apt would install.
    pub fn field(&self, package: &str, field: &str) -> Result<String> {
        let mut command = Command::new("apt-cache");
        let shown = output_of(command.args(&self.options).args(["show", "--no-all-versions", package]))?;
        String::from_utf8_lossy(&shown)
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(": "))
            .map(str::to_owned)
            .ok_or_else(|| anyhow!("apt knows no {field} of {package}"))
    }

    /// Downloads one package into the folder.
    pub fn download(&self, package: &str, version: &str, into: &Path) -> Result<()> {
        let mut command = self.apt_get();
        output_of(command.args(["download", &format!("{package}={version}")]).current_dir(into)).map(drop)
    }

    /// What would be installed: the packages and all that they depend on, with their versions, a line each.
    pub fn closure(&self, packages: &[&str]) -> Result<String> {
        let printed = output_of(self.install(packages).arg("--simulate"))?;
        Ok(String::from_utf8_lossy(&printed)
            .lines()
            .filter(|line| line.starts_with("Inst "))
            .collect::<Vec<_>>()
            .join("\n"))
    }

    /// Downloads the packages and all that they depend on, and returns the files.
    pub fn download_closure(&self, packages: &[&str], into: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(into.join("partial"))?;
        let archives = format!("--option=Dir::Cache::archives={}", into.display());
        output_of(self.install(packages).args(["--download-only", "--yes", &archives]))?;
        let mut files = Vec::new();
        for entry in fs::read_dir(into)? {
            files.extend(Some(entry?.path()).filter(|path| path.extension() == Some("deb".as_ref())));
        }
        ensure!(!files.is_empty(), "apt has downloaded nothing");
        Ok(files)
    }

    fn install(&self, packages: &[&str]) -> Command {
        let mut command = self.apt_get();
        command.args(["install", "--no-install-recommends"]).args(packages);
        command
    }
}

/// Debian's keys, as each release of Debian has them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The mirror from which this machine's apt has the main part of its own release.
fn mirror() -> Result<String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(RELEASE) $(REPO_URI)"]);
    let targets = output_of(command.args(["Created-By: Packages", "Component: main"]))?;
    let codename = Debian::HOST.codename();
    String::from_utf8_lossy(&targets)
        .lines()
        .find_map(|line| line.strip_prefix(codename)?.strip_prefix(' '))
        .map(str::to_owned)
        .ok_or_else(|| anyhow!("apt's sources have no {codename} main, so the mirror of Debian is not known"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_for_another_release_keeps_to_its_own_folder() {
        let folder = tempfile::tempdir().unwrap();
        let source = Source::new(Debian::Trixie, folder.path()).unwrap();
        let mut command = Command::new("apt-config");
        command.args(&source.options).arg("shell");
        command.args(["lists", "Dir::State::Lists/d", "states", "Dir::State::extended_states/f"]);
        command.args(["archives", "Dir::Cache::Archives/d", "list", "Dir::Etc::sourcelist/f"]);
        let places = String::from_utf8(output_of(&mut command).unwrap()).unwrap();
        assert_eq!(places.lines().count(), 4, "{places}");
        let own = format!("='{}/", folder.path().display());
        assert!(places.lines().all(|place| place.contains(&own)), "{places}");
        let list = fs::read_to_string(folder.path().join("sources.list")).unwrap();
        assert!(list.ends_with(" trixie main\n"), "{list}");
    }
}
