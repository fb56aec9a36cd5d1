//! The command line, as runc's callers write it.
//!
//! Options may stand before and after the container's name, as `--name value`, `--name=value` or with one dash; a
//! switch takes `=true` and `=false`. Only for `exec` the first word after the name ends the options: what follows is
//! the command's. A table says which options there are, so an unknown one is refused by name.

use std::collections::BTreeMap;

/// A mistake on the command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// An option: its long name, a short one, and whether it takes a value.
pub(crate) struct OptionName {
    pub(crate) long: &'static str,
    pub(crate) short: &'static str,
    pub(crate) takes_value: bool,
}

const fn value(long: &'static str, short: &'static str) -> OptionName {
    OptionName {
        long,
        short,
        takes_value: true,
    }
}

const fn switch(long: &'static str, short: &'static str) -> OptionName {
    OptionName {
        long,
        short,
        takes_value: false,
    }
}

const GLOBAL: &[OptionName] = &[
    value("root", ""),
    value("log", ""),
    value("log-format", ""),
    value("rootless", ""),
    value("criu", ""),
    switch("systemd-cgroup", ""),
    switch("debug", ""),
    switch("version", "v"),
    switch("help", "h"),
];

const CREATE: &[OptionName] = &[
    value("bundle", "b"),
    value("console-socket", ""),
    value("pid-file", ""),
    value("preserve-fds", ""),
    value("pidfd-socket", ""),
    switch("no-pivot", ""),
    switch("no-new-keyring", ""),
    switch("no-subreaper", ""),
    switch("detach", "d"),
    switch("keep", ""),
];

const EXEC: &[OptionName] = &[
    value("process", "p"),
    value("console-socket", ""),
    value("pid-file", ""),
    value("preserve-fds", ""),
    value("pidfd-socket", ""),
    value("cwd", ""),
    value("env", "e"),
    value("user", "u"),
    value("additional-gids", "g"),
    value("cap", "c"),
    value("apparmor", ""),
    value("process-label", ""),
    value("cgroup", ""),
    switch("tty", "t"),
    switch("detach", "d"),
    switch("no-new-privs", ""),
    switch("no-subreaper", ""),
    switch("ignore-paused", ""),
];

const UPDATE: &[OptionName] = &[
    value("resources", "r"),
    value("memory", ""),
    value("memory-reservation", ""),
    value("memory-swap", ""),
    value("cpu-period", ""),
    value("cpu-quota", ""),
    value("cpu-burst", ""),
    value("cpu-share", ""),
    value("cpu-shares", ""),
    value("cpuset-cpus", ""),
    value("cpuset-mems", ""),
    value("pids-limit", ""),
    value("blkio-weight", ""),
];

/// What a command takes, and whether its words after the name are its own.
pub(crate) fn options_of(command: &str) -> Option<&'static [OptionName]> {
    Some(match command {
        "create" | "run" => CREATE,
        "exec" => EXEC,
        "update" => UPDATE,
        "kill" => const { &[switch("all", "a")] },
        "delete" => const { &[switch("force", "f")] },
        "list" => const { &[value("format", "f"), switch("quiet", "q")] },
        "ps" => const { &[value("format", "f")] },
        "events" => const { &[value("interval", ""), switch("stats", "")] },
        "spec" => const { &[value("bundle", "b"), switch("rootless", "")] },
        "start" | "state" | "pause" | "resume" | "features" | "checkpoint" | "restore" => &[],
        _ => return None,
    })
}

/// A command line, taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// The command; empty: none.
    pub(crate) command: String,
    options: BTreeMap<&'static str, Vec<String>>,
    /// What is no option.
    pub(crate) words: Vec<String>,
}

impl Arguments {
    /// Takes the arguments after the program's name apart.
    pub(crate) fn parse(line: impl IntoIterator<Item = String>) -> Result<Self, Usage> {
        let mut parsed = Self::default();
        let mut line = line.into_iter();
        let mut only_words = false;
        while let Some(word) = line.next() {
            if only_words || word == "-" || !word.starts_with('-') {
                if parsed.command.is_empty() {
                    if options_of(&word).is_none() {
                        return Err(Usage(format!("there is no command `{word}`; see --help")));
                    }
                    parsed.command = word;
                    continue;
                }
                parsed.words.push(word);
                only_words = only_words || (parsed.command == "exec" && parsed.words.len() > 1);
            } else if word == "--" {
                only_words = true;
            } else {
                parsed.option(&word, &mut line)?;
            }
        }
        Ok(parsed)
    }

    fn option(&mut self, word: &str, line: &mut impl Iterator<Item = String>) -> Result<(), Usage> {
        let name = word.trim_start_matches('-');
        let (name, inline) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        let own = options_of(&self.command).unwrap_or_default();
        // The command's own first: `--rootless` is a switch of spec, and a value before it.
        let found = own
            .iter()
            .chain(GLOBAL)
            .find(|option| option.long == name || (!option.short.is_empty() && option.short == name));
        let Some(option) = found else {
            // CRIU's many options need no table for being refused.
            if matches!(self.command.as_str(), "checkpoint" | "restore") {
                return Ok(());
            }
            let place = if self.command.is_empty() {
                String::new()
            } else {
                format!(" of `{}`", self.command)
            };
            return Err(Usage(format!("`{word}` is not an option{place}; see --help")));
        };
        let value = match (option.takes_value, inline) {
            (true, Some(value)) => value,
            (true, None) => line
                .next()
                .ok_or_else(|| Usage(format!("option `--{}` needs a value", option.long)))?,
            (false, None) => "true".to_owned(),
            (false, Some(value)) if matches!(value.as_str(), "true" | "false" | "1" | "0") => {
                (value == "true" || value == "1").to_string()
            }
            (false, Some(value)) => {
                return Err(Usage(format!(
                    "option `--{}` is true or false, not `{value}`",
                    option.long
                )));
            }
        };
        self.options.entry(option.long).or_default().push(value);
        Ok(())
    }

    /// The last value given.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.options
            .get(name)?
            .last()
            .map(String::as_str)
            .filter(|v| !v.is_empty())
    }

    /// Every value given.
    pub(crate) fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.options.get(name).into_iter().flatten().map(String::as_str)
    }

    /// A switch.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.value(name) == Some("true")
    }

    /// A number.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Usage> {
        let parse = |text: &str| {
            text.parse()
                .map_err(|_| Usage(format!("option `--{name}`: `{text}` is not a number that fits")))
        };
        self.value(name).map(parse).transpose()
    }

    /// The container's name, the first word.
    pub(crate) fn id(&self) -> Result<&str, Usage> {
        match self.words.first() {
            Some(id) => Ok(id),
            None => Err(Usage(format!("`{}` needs a container's name", self.command))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, Usage> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn containerds_lines_parse() {
        let a = parse(
            "--root /r --log /b/log.json --log-format json --systemd-cgroup create --bundle /b --pid-file /p --no-pivot ID",
        )
        .unwrap();
        assert_eq!((a.command.as_str(), a.id().unwrap()), ("create", "ID"));
        assert!(a.is_set("systemd-cgroup") && a.is_set("no-pivot") && !a.is_set("no-new-keyring"));
        assert_eq!(a.value("root"), Some("/r"));
        let a = parse("exec --process /p --console-socket /s --detach --pid-file /f ID").unwrap();
        assert!(a.is_set("detach") && a.value("process") == Some("/p"));
        let a = parse("update --resources=- ID").unwrap();
        assert_eq!(a.value("resources"), Some("-"));
        let a = parse("update --resources - ID").unwrap();
        assert_eq!((a.value("resources"), a.id().unwrap()), (Some("-"), "ID"));
        assert_eq!(parse("kill --all ID 9").unwrap().words, ["ID", "9"]);
    }

    #[test]
    fn options_come_in_every_position_but_a_commands_are_its_own() {
        let a = parse("create ID --bundle=/b --root=/r").unwrap();
        assert_eq!((a.value("bundle"), a.value("root")), (Some("/b"), Some("/r")));
        let a = parse("delete ID -f").unwrap();
        assert!(a.is_set("force"));
        let a = parse("exec -t -e A=1 -e B=2 ID ls -l --bundle x").unwrap();
        assert_eq!(a.words, ["ID", "ls", "-l", "--bundle", "x"]);
        assert_eq!(a.values("env").collect::<Vec<_>>(), ["A=1", "B=2"]);
        let a = parse("exec ID -- ls -l").unwrap();
        assert_eq!(a.words, ["ID", "ls", "-l"]);
        let a = parse("exec ID --tty=false -d true").unwrap();
        assert!(!a.is_set("tty") && a.is_set("detach"));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, word) in [
            ("fly", "fly"),
            ("create --wings", "--wings"),
            ("--root", "root"),
            ("create --no-pivot=maybe", "maybe"),
        ] {
            assert!(parse(line).unwrap_err().0.contains(word), "{line}");
        }
        assert!(parse("start").unwrap().id().is_err());
    }
}
