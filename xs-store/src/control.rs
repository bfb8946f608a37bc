//! `CONTROL`: commands to the store itself, from privileged connections.
//!
//! The commands are those of the C daemon that mean something here, with its arguments and errors.
//! What they answer is text for people, and our own. What would be written to a log that nobody
//! keeps is refused.

use std::collections::BTreeMap;

use bytes::Bytes;
use tracing::{Level, enabled, error, info};
use xs_proto::{DomId, ErrorCode, Reply};

use crate::nodes;
use crate::quota::{Quota, Usage};
use crate::store::Core;
use crate::transaction::Transaction;
use crate::tree::visit_upwards;

/// The commands, with what `help` says of them.
const COMMANDS: [(&str, &str); 9] = [
    ("check", "compare what is counted for each domain with what is there"),
    ("help", "this text"),
    ("log on|off", "write each request to the log, if one is kept, or do so no more"),
    ("print <text>", "write a text to the log, if one is kept"),
    ("quota", "show the quotas of guests"),
    ("quota <domid>", "show what a domain uses"),
    ("quota max [-r]", "show the most that any guest has used, or begin to look anew"),
    ("quota set <name> <value>", "set a quota of all guests without one of their own"),
    ("quota-soft [set <name> <value>]", "show or set what a guest may use without a word in the log"),
];

impl Core {
    /// Carries out a command.
    pub(crate) fn control(&mut self, arguments: &[Bytes]) -> Result<Reply, ErrorCode> {
        let words: Vec<&[u8]> = arguments.iter().map(|word| &word[..]).collect();
        let text = |text: String| Ok(Reply::Text(text.into()));
        match words[..] {
            [b"check"] => self.check_counts(),
            [b"help"] => {
                text(COMMANDS.iter().map(|(command, meaning)| format!("{command:<32}{meaning}\n")).collect())
            }
            [b"log", b"on"] if enabled!(Level::INFO) => {
                self.logging = true;
                Ok(Reply::Ok)
            }
            [b"log", b"off"] => {
                self.logging = false;
                Ok(Reply::Ok)
            }
            [b"print", message] if enabled!(Level::INFO) => {
                info!(message = %message.escape_ascii(), "asked to print");
                Ok(Reply::Ok)
            }
            [b"quota"] => text(self.domains.limits(None)?.table(Quota::is_hard)),
            [b"quota", b"max"] => text(format!("The most of any guest:\n{}", self.domains.most())),
            [b"quota", b"max", b"-r"] => {
                self.domains.forget_most();
                Ok(Reply::Ok)
            }
            [b"quota", domid] => {
                let domid = DomId(number(domid)?);
                text(format!("Domain {domid}:\n{}", self.usage(domid)?))
            }
            [b"quota", b"set", name, value] => self.set_quota(name, value, Quota::is_hard),
            [b"quota-soft"] => text(self.domains.limits(None)?.table(Quota::is_soft)),
            // Here the C daemon calls it by the name of the quota that it comes before.
            [b"quota-soft", b"set", b"memory", value] => {
                self.set_quota(b"soft-memory", value, Quota::is_soft)
            }
            [b"quota-soft", b"set", name, value] => self.set_quota(name, value, Quota::is_soft),
            _ => Err(ErrorCode::EINVAL),
        }
    }

    fn set_quota(&mut self, name: &[u8], value: &[u8], of: fn(Quota) -> bool) -> Result<Reply, ErrorCode> {
        let quota = Quota::from_name(name).filter(|quota| of(*quota)).ok_or(ErrorCode::EINVAL)?;
        match number(value)? {
            // No limit at all is for SET_QUOTA to set.
            0 => Err(ErrorCode::EINVAL),
            value => self.domains.set_limit(None, quota, value).map(|()| Reply::Ok),
        }
    }

    /// Counts everything again.
    fn check_counts(&self) -> Result<Reply, ErrorCode> {
        let mut found: BTreeMap<DomId, Usage> = BTreeMap::new();
        if let Some(root) = self.tree.get("/") {
            visit_upwards("/", root, &root.data, |path, data, _| {
                *found.entry(data.rights().list.owner()).or_default() += nodes::usage(path, data);
            });
        }
        for connection in self.connections() {
            let held: i64 = connection.transactions.values().map(Transaction::held).sum();
            *found.entry(connection.domid).or_default() += Usage::memory(connection.watched + held);
        }
        let used = |(_, usage): &(DomId, Usage)| *usage != Usage::default();
        if self.domains.used().filter(used).eq(found.clone().into_iter().filter(used)) {
            return Ok(Reply::Ok);
        }
        let counted: Vec<_> = self.domains.used().collect();
        error!(?counted, ?found, "what is counted for domains is not what is there");
        Err(ErrorCode::EIO)
    }
}

fn number(text: &[u8]) -> Result<u32, ErrorCode> {
    let digits = text.iter().all(u8::is_ascii_digit).then_some(text);
    digits.and_then(|text| str::from_utf8(text).ok()?.parse().ok()).ok_or(ErrorCode::EINVAL)
}
