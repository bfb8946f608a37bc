//! The environment that scripts start with, before the variables of their run are added.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// What a script gets from the environment of this program. The stock scripts need no more, and
/// whatever else happens to be set here must not change what they do.
const ALLOWED: [&str; 4] = ["PATH", "HOME", "TERM", "LANG"];

/// Where the scripts' tools live: `brctl`, `ip`, `losetup` and `iptables` are in the `sbin`
/// directories, which the `PATH` of services and users often lacks.
pub(crate) const DIRECTORIES: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Where variables come from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    /// Whether all of this program's variables are handed on, and not only the allowed ones.
    pub(crate) inherit: bool,
    /// Variables for every script.
    pub(crate) extra: BTreeMap<OsString, OsString>,
}

impl Environment {
    /// The variables for a run, given this program's own ones.
    pub(crate) fn variables(
        &self,
        own: impl IntoIterator<Item = (OsString, OsString)>,
        run: &[(&'static str, String)],
    ) -> BTreeMap<OsString, OsString> {
        let allowed = |name: &OsStr| self.inherit || ALLOWED.iter().any(|allowed| name == *allowed);
        let mut variables: BTreeMap<_, _> = own.into_iter().filter(|(name, _)| allowed(name)).collect();
        variables.extend(self.extra.clone());
        let path = variables.remove(OsStr::new("PATH"));
        variables.insert("PATH".into(), complete(path));
        variables.extend(run.iter().map(|(name, value)| (name.into(), value.into())));
        variables
    }
}

/// A search path in which none of [`DIRECTORIES`] is missing. Those that are there keep their order,
/// and their precedence over those that are added.
fn complete(path: Option<OsString>) -> OsString {
    let path = path.filter(|path| !path.is_empty());
    let mut directories: Vec<PathBuf> = path.iter().flat_map(env::split_paths).collect();
    for directory in DIRECTORIES.map(PathBuf::from) {
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    // Joining fails only for a directory with a colon in its name, which splitting cannot yield.
    env::join_paths(directories).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(
        environment: &Environment,
        own: &[(&str, &str)],
        run: &[(&'static str, &str)],
    ) -> Vec<String> {
        let own = own.iter().map(|(name, value)| (name.into(), value.into()));
        let run: Vec<_> = run.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let variables = environment.variables(own, &run);
        let text = |(name, value): (OsString, OsString)| format!("{}={}", name.display(), value.display());
        variables.into_iter().map(text).collect()
    }

    const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

    #[test]
    fn only_allowed_variables_pass() {
        let own = [("HOME", "/root"), ("LANG", "C"), ("TERM", "vt100"), ("LC_ALL", "x"), ("vif", "x")];
        assert_eq!(
            variables(&Environment::default(), &own, &[]),
            ["HOME=/root", "LANG=C", PATH, "TERM=vt100"]
        );
        let inherit = Environment { inherit: true, ..Environment::default() };
        assert_eq!(variables(&inherit, &[("A", "1")], &[]), ["A=1", PATH]);
    }

    #[test]
    fn the_run_wins_over_extras_and_extras_over_what_is_inherited() {
        let extra = [("HOME", "extra"), ("vif", "extra")].map(|(name, value)| (name.into(), value.into()));
        let environment = Environment { inherit: false, extra: extra.into() };
        assert_eq!(
            variables(&environment, &[("HOME", "own")], &[("vif", "vif1.0")]),
            ["HOME=extra", PATH, "vif=vif1.0"]
        );
    }

    #[test]
    fn the_search_path_is_completed() {
        let path = |own| complete(Some(OsString::from(own))).into_string().unwrap();
        assert_eq!(
            path("/bin:/opt/x"),
            "/bin:/opt/x:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin"
        );
        assert_eq!(format!("PATH={}", path("")), PATH);
        assert_eq!(path(&PATH["PATH=".len()..]), &PATH["PATH=".len()..]);
    }
}
