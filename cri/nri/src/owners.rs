//! Who set what: two plugins must not set the same thing of a container, unless the second one removes it first.

use crate::error::NriError;
use crate::v1alpha1::{CompoundFieldOwners, Field, FieldOwners, OwningPlugins};

/// Stands before the name of a plugin that removed something.
const REMOVED: &str = "-";

/// The owners of one container's fields.
pub(crate) struct Owners<'a> {
    fields: &'a mut FieldOwners,
    plugin: &'a str,
}

impl<'a> Owners<'a> {
    /// For the wishes of one plugin about one container.
    pub(crate) fn of(all: &'a mut OwningPlugins, container: &str, plugin: &'a str) -> Self {
        Self {
            fields: all.owners.entry(container.to_owned()).or_default(),
            plugin,
        }
    }

    /// Takes a field that is there once.
    pub(crate) fn claim(&mut self, field: Field) -> Result<(), NriError> {
        let owner = self.fields.simple.get(&(field as i32));
        conflict(owner, self.plugin, || field.as_str_name().to_owned())?;
        self.fields.simple.insert(field as i32, self.plugin.to_owned());
        Ok(())
    }

    /// Takes one entry of a field that is a list or a map.
    pub(crate) fn claim_entry(&mut self, field: Field, key: &str) -> Result<(), NriError> {
        let entries = self.entries(field);
        let owner = entries.owners.get(key).cloned();
        conflict(owner.as_ref(), self.plugin, || {
            format!("{} `{key}`", field.as_str_name())
        })?;
        let plugin = self.plugin.to_owned();
        self.entries(field).owners.insert(key.to_owned(), plugin);
        Ok(())
    }

    /// Takes hooks, which all may add.
    pub(crate) fn share(&mut self, field: Field) {
        self.fields
            .simple
            .entry(field as i32)
            .and_modify(|owners| {
                owners.push(',');
                owners.push_str(self.plugin);
            })
            .or_insert_with(|| self.plugin.to_owned());
    }

    /// Removes what somebody else may have set; from now on this plugin alone may set it.
    pub(crate) fn clear(&mut self, field: Field) {
        let owner = format!("{REMOVED}{}", self.plugin);
        self.fields.simple.insert(field as i32, owner);
    }

    /// [`Owners::clear`] for an entry.
    pub(crate) fn clear_entry(&mut self, field: Field, key: &str) {
        let owner = format!("{REMOVED}{}", self.plugin);
        self.entries(field).owners.insert(key.to_owned(), owner);
    }

    fn entries(&mut self, field: Field) -> &mut CompoundFieldOwners {
        self.fields.compound.entry(field as i32).or_default()
    }
}

fn conflict(owner: Option<&String>, plugin: &str, field: impl FnOnce() -> String) -> Result<(), NriError> {
    let other = match owner {
        None => return Ok(()),
        Some(owner) => match owner.strip_prefix(REMOVED) {
            Some(remover) if remover == plugin => return Ok(()),
            Some(remover) => remover,
            None => owner,
        },
    };
    Err(NriError::Conflict {
        plugin: plugin.to_owned(),
        other: other.to_owned(),
        field: field(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_must_remove_before_it_sets() {
        let mut all = OwningPlugins::default();
        Owners::of(&mut all, "c", "00-a").claim(Field::CpuShares).unwrap();
        Owners::of(&mut all, "d", "01-b").claim(Field::CpuShares).unwrap();
        let mut second = Owners::of(&mut all, "c", "01-b");
        let text = second.claim(Field::CpuShares).unwrap_err().to_string();
        assert_eq!(text, "NRI plugins `01-b` and `00-a` both tried to set CPUShares");
        second.clear(Field::CpuShares);
        second.claim(Field::CpuShares).unwrap();
        second.clear_entry(Field::Env, "PATH");
        let mut third = Owners::of(&mut all, "c", "02-c");
        let text = third.claim_entry(Field::Env, "PATH").unwrap_err().to_string();
        assert_eq!(text, "NRI plugins `02-c` and `01-b` both tried to set Env `PATH`");
        third.claim_entry(Field::Env, "HOME").unwrap();
    }

    #[test]
    fn hooks_have_many_owners() {
        let mut all = OwningPlugins::default();
        Owners::of(&mut all, "c", "00-a").share(Field::OciHooks);
        Owners::of(&mut all, "c", "01-b").share(Field::OciHooks);
        assert_eq!(all.owners["c"].simple[&(Field::OciHooks as i32)], "00-a,01-b");
    }
}
