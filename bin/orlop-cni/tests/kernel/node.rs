//! A throw-away node with pods and an outside world.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use cni_invoke::{Attachment, Cni, CniConfig};
use cni_net::{Rtnl, VethPeer, in_netns, pin_netns, write_sysctl};
use cni_plugins::Builtin;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(5);

/// What a test works with; it is in the node's network namespace.
pub(crate) struct Node {
    dir: PathBuf,
}

/// Runs a test on a node of its own.
pub(crate) fn on_node(test: impl FnOnce(Node) + Send) {
    let dir = tempfile::Builder::new().prefix("orlop-cni-").tempdir().unwrap();
    let path = dir.path();
    let result = thread::scope(|scope| {
        let node = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("root is needed");
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            // On a file system that only this thread sees, so that nothing outlives it.
            mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            for name in ["conf", "bin", "cache", "networks", "pods"] {
                fs::create_dir(path.join(name)).unwrap();
            }
            start_lo();
            test(Node { dir: path.to_owned() });
        });
        node.join()
    });
    // For everybody else the directory is empty, whatever became of the test.
    dir.close().unwrap();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

pub(crate) fn start_lo() {
    let mut rtnl = Rtnl::open().unwrap();
    let lo = rtnl.link("lo").unwrap().unwrap();
    rtnl.set_up(lo.index, true).unwrap();
}

pub(crate) fn host_local(dir: &Path) -> Value {
    json!({
        "type": "host-local", "dataDir": dir,
        "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    })
}

impl Node {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The usual chain: bridge with host-local, and what the test adds to it.
    pub(crate) fn chain(&self, more: &[Value]) -> Value {
        let mut plugins = vec![json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
            "ipam": host_local(&self.path("networks"))
        })];
        plugins.extend_from_slice(more);
        json!({"cniVersion": "1.1.0", "name": "pods", "plugins": plugins})
    }

    pub(crate) fn write_conf(&self, conf: &Value) {
        fs::write(self.path("conf/10-pods.conflist"), conf.to_string()).unwrap();
    }

    pub(crate) fn cni(&self) -> Cni {
        self.cni_with(vec![self.path("bin")], true, PATIENCE)
    }

    pub(crate) fn cni_with(&self, bin_dirs: Vec<PathBuf>, builtin: bool, timeout: Duration) -> Cni {
        let config = CniConfig {
            conf_dir: self.path("conf"),
            bin_dirs,
            cache_dir: self.path("cache"),
            timeout,
        };
        Cni::new(
            config,
            builtin.then(|| Arc::new(Builtin::new()) as Arc<dyn cni_types::PluginExec>),
        )
    }

    /// A new pod's namespace.
    pub(crate) fn pod(&self, id: &str) -> Attachment {
        let netns = self.path("pods").join(id);
        pin_netns(&netns).unwrap();
        Attachment {
            container_id: id.into(),
            netns,
            ifname: "eth0".into(),
            ..Attachment::default()
        }
    }

    /// The world beyond the node: a namespace behind an interface of the node's, that knows no way to the pods.
    pub(crate) fn outside(&self) -> PathBuf {
        let path = self.path("outside");
        pin_netns(&path).unwrap();
        let file = fs::File::open(&path).unwrap();
        let mut rtnl = Rtnl::open().unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        rtnl.add_veth(
            "uplink",
            None,
            VethPeer {
                name: "uplink",
                netns: fd,
                mac: None,
            },
        )
        .unwrap();
        let set = |rtnl: &mut Rtnl, last: u8| {
            let link = rtnl.link("uplink").unwrap().unwrap();
            rtnl.add_address(link.index, format!("192.0.2.{last}/24").parse().unwrap())
                .unwrap();
            write_sysctl(&["net", "ipv6", "conf", "uplink", "accept_dad"], "0").unwrap();
            rtnl.add_address(link.index, format!("2001:db8::{last}/64").parse().unwrap())
                .unwrap();
            rtnl.set_up(link.index, true).unwrap();
        };
        set(&mut rtnl, 1);
        in_netns(&path, || set(&mut Rtnl::open().unwrap(), 2)).unwrap();
        path
    }

    pub(crate) fn files(&self, dir: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path(dir))
            .map(|entries| {
                entries
                    .map(|e| e.unwrap().file_name().into_string().unwrap())
                    .collect()
            })
            .unwrap_or_default();
        names.sort();
        names
    }

    /// The addresses that host-local has handed out.
    pub(crate) fn reserved(&self) -> Vec<String> {
        self.files("networks/pods")
            .into_iter()
            .filter(|name| name.parse::<IpAddr>().is_ok())
            .collect()
    }
}

/// What `nft list ruleset` prints in the calling thread's namespace; it must understand all of it.
pub(crate) fn ruleset() -> String {
    let output = std::process::Command::new("nft")
        .args(["list", "ruleset"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn link_names() -> Vec<String> {
    let mut names: Vec<String> = Rtnl::open()
        .unwrap()
        .links()
        .unwrap()
        .into_iter()
        .map(|l| l.name)
        .collect();
    names.sort();
    names
}

/// Listens for one connection in a namespace and tells who called; the answer goes back to him.
pub(crate) struct Server {
    pub(crate) called_by: mpsc::Receiver<IpAddr>,
}

pub(crate) fn serve_tcp(netns: &Path, address: SocketAddr) -> Server {
    let listener = in_netns(netns, || TcpListener::bind(address)).unwrap().unwrap();
    let (told, called_by) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().take(8) {
            let mut stream = stream.unwrap();
            let _ = told.send(stream.peer_addr().unwrap().ip());
            let mut word = [0; 4];
            if stream.read_exact(&mut word).is_ok() {
                let _ = stream.write_all(&word);
            }
        }
    });
    Server { called_by }
}

pub(crate) fn serve_udp(netns: &Path, address: SocketAddr) -> Server {
    let socket = in_netns(netns, || UdpSocket::bind(address)).unwrap().unwrap();
    let (told, called_by) = mpsc::channel();
    thread::spawn(move || {
        let mut word = [0; 4];
        for _ in 0..8 {
            let Ok((length, from)) = socket.recv_from(&mut word) else {
                return;
            };
            let _ = told.send(from.ip());
            let _ = socket.send_to(&word[..length], from);
        }
    });
    Server { called_by }
}

/// Sends a word and gets it back; the error tells what went wrong.
pub(crate) fn talk_tcp(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"ping")?;
    let mut word = [0; 4];
    stream.read_exact(&mut word)?;
    assert_eq!(&word, b"ping");
    Ok(())
}

pub(crate) fn talk_udp(to: SocketAddr) -> std::io::Result<()> {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.connect(to)?;
    socket.send(b"ping")?;
    let mut word = [0; 4];
    socket.recv(&mut word)?;
    assert_eq!(&word, b"ping");
    Ok(())
}
