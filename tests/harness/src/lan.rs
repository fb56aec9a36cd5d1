//! Nodes joined by a bridge, in a network namespace that is made for the test.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::boot::Sandbox;
use crate::node::Node;
use crate::run::{finish, piped};

/// A switch that nodes are plugged into.
#[derive(Debug)]
pub struct Lan {
    sandbox: Sandbox,
    ports: std::cell::Cell<u32>,
}

/// A node's cable.
#[derive(Debug)]
pub struct Link<'l> {
    lan: &'l Lan,
    port: String,
}

impl Lan {
    /// A bridge without ports.
    ///
    /// # Errors
    /// The namespace or the bridge can't be made.
    pub fn new() -> Result<Self> {
        let lan = Self {
            sandbox: Sandbox::network()?,
            ports: std::cell::Cell::new(0),
        };
        lan.ip("link add switch type bridge")?;
        lan.ip("link set switch up")?;
        Ok(lan)
    }

    /// Plugs a node in; it gets `address` (with a prefix length) on a link called `lan0`.
    ///
    /// # Errors
    /// The link can't be made.
    pub fn plug(&self, node: &Node, address: &str) -> Result<Link<'_>> {
        let n = self.ports.get();
        self.ports.set(n + 1);
        let port = format!("port{n}");
        self.ip(&format!(
            "link add {port} type veth peer name lan0 netns {}",
            node.keeper()
        ))?;
        self.ip(&format!("link set {port} master switch up"))?;
        node.run("ip", &["address", "add", address, "dev", "lan0"])?
            .ok()?;
        node.run("ip", &["link", "set", "lan0", "up"])?.ok()?;
        Ok(Link { lan: self, port })
    }

    fn ip(&self, args: &str) -> Result<()> {
        let child = self
            .sandbox
            .namespaces
            .spawn(piped(Command::new("ip").args(args.split(' '))))?;
        finish(&format!("ip {args}"), child, Duration::from_secs(10))?.ok()?;
        Ok(())
    }
}

impl Link<'_> {
    /// Cuts the cable: the node sees its link lose the carrier.
    ///
    /// # Errors
    /// It can't be done.
    pub fn cut(&self) -> Result<()> {
        self.lan.ip(&format!("link set {} down", self.port))
    }

    /// Mends it.
    ///
    /// # Errors
    /// It can't be done.
    pub fn mend(&self) -> Result<()> {
        self.lan.ip(&format!("link set {} up", self.port))
    }
}
