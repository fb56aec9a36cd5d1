//! Stand-ins for the programs in the CRI suite's images, as far as its specs look at them.
//!
//! - `nginx`: answers 200 on the port in `/etc/nginx/conf.d/default.conf` (80 without it), writes `/var/run/nginx.pid`,
//!   and its title begins with `nginx: master process`. The title is had by executing itself once more under that name.
//! - `httpd`: answers 200 on port 80, and its log names it.
//! - `nonewprivs`: prints its effective user, for an executable that belongs to root and is set-user-ID.
//! - `pause`: sleeps.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::http::{Site, serve};
use crate::{Failure, process};

const TITLE: &str = "nginx: master process";
const NGINX_PID: &str = "/var/run/nginx.pid";
const NGINX_CONF: &str = "/etc/nginx/conf.d/default.conf";

/// A program that we stand in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Nginx,
    Httpd,
    NoNewPrivs,
    Pause,
}

/// The role that a process's name asks for.
pub(crate) fn role(name: &str) -> Option<Role> {
    if name.starts_with(TITLE) {
        return Some(Role::Nginx);
    }
    match name.rsplit('/').next()? {
        "nginx" => Some(Role::Nginx),
        "httpd" | "httpd-foreground" => Some(Role::Httpd),
        "nonewprivs" => Some(Role::NoNewPrivs),
        "pause" => Some(Role::Pause),
        _ => None,
    }
}

/// Plays the role until a signal ends it.
pub(crate) fn run(role: Role, name: &str, args: &[String]) -> Result<u8, Failure> {
    match role {
        Role::Nginx if !name.starts_with(TITLE) => Err(retitle(args)),
        Role::Nginx => {
            fs::write(NGINX_PID, format!("{}\n", std::process::id()))
                .map_err(|e| format!("failed to write `{NGINX_PID}`: {e}"))?;
            serve(
                nginx_port(&fs::read_to_string(NGINX_CONF).unwrap_or_default()),
                Site::Page("nginx"),
            )
        }
        Role::Httpd => serve(80, Site::Page("httpd")),
        Role::NoNewPrivs => {
            process::say(&format!("Effective uid: {}", nix::unistd::geteuid()))?;
            Ok(0)
        }
        Role::Pause => process::pause(),
    }
}

/// Becomes the same program under nginx's title; returns only when that fails.
fn retitle(args: &[String]) -> Failure {
    // By its real path, because the kernel names the process after the last part of what is executed.
    match std::env::current_exe() {
        Ok(exe) => {
            let e = Command::new(&exe)
                .arg0(format!("{TITLE} nginx {}", args.join(" ")))
                .exec();
            format!("failed to execute `{}`: {e}", exe.display())
        }
        Err(e) => format!("failed to find the own executable: {e}"),
    }
}

fn nginx_port(conf: &str) -> u16 {
    conf.split_whitespace()
        .skip_while(|word| *word != "listen")
        .nth(1)
        .and_then(|port| port.trim_end_matches(';').parse().ok())
        .unwrap_or(80)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_come_from_names_and_titles() {
        assert_eq!(role("/usr/sbin/nginx"), Some(Role::Nginx));
        assert_eq!(
            role("nginx: master process nginx -g daemon off;"),
            Some(Role::Nginx)
        );
        assert_eq!(role("httpd"), Some(Role::Httpd));
        assert_eq!(role("/test-host"), None);
    }

    #[test]
    fn the_port_comes_from_the_configuration() {
        assert_eq!(nginx_port("server {\n  listen 12003;\n}"), 12003);
        assert_eq!(nginx_port(""), 80);
    }
}
