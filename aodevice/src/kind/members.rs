//! Members of an object of libxl's JSON: what was not said is not there.
//!
//! Source: `tools/libs/light/libxl_types.idl` for names and order, and what `xl -N` of 4.17 was seen to print.

use serde_json::{Map, Value};

/// The members that have been added so far.
#[derive(Debug, Default)]
pub(crate) struct Members(Map<String, Value>);

impl Members {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn add(&mut self, name: &str, value: impl Into<Value>) -> &mut Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    pub(crate) fn option(&mut self, name: &str, value: Option<impl Into<Value>>) -> &mut Self {
        match value {
            Some(value) => self.add(name, value),
            None => self,
        }
    }

    pub(crate) fn text(&mut self, name: &str, value: &Option<String>) -> &mut Self {
        self.option(name, value.as_deref())
    }

    /// An integer that is 1 if it is there.
    pub(crate) fn flag(&mut self, name: &str, yes: bool) -> &mut Self {
        self.option(name, yes.then_some(1))
    }

    /// What libxl calls a defbool.
    pub(crate) fn choice(&mut self, name: &str, value: Option<bool>) -> &mut Self {
        self.option(name, value.map(|yes| if yes { "True" } else { "False" }))
    }
}

impl From<Members> for Map<String, Value> {
    fn from(members: Members) -> Self {
        members.0
    }
}
