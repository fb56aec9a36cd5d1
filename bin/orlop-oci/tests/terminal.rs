//! Terminals: over a console socket as containerd takes them, and in the foreground.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod bundle;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;

use bundle::{Bundle, texts};
use serde_json::json;

fn receive(listener: &UnixListener) -> OwnedFd {
    let (stream, _) = listener.accept().unwrap();
    let mut name = [0; 4096];
    let (_, mut fds) = oci_runtime_sys::socket::receive(stream.as_fd(), &mut name).unwrap();
    fds.pop().expect("a descriptor comes with the message")
}

fn read_until(main: &mut File, wanted: &str) -> String {
    let mut text = String::new();
    while !text.contains(wanted) {
        let mut part = [0; 1024];
        let length = main.read(&mut part).unwrap();
        text.push_str(&String::from_utf8_lossy(&part[..length]));
    }
    text
}

#[test]
fn the_console_socket_gets_the_terminal() {
    let mut bundle =
        Bundle::new("tty; stat -c %t:%T /dev/console; stty size; read line; echo got $line; read line");
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["process"]["consoleSize"] = json!({ "width": 81, "height": 22 });
    let socket = bundle.folder.join("console.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let error = bundle.bad(&["create", &bundle.id]);
    assert!(error.contains("console socket"), "{error}");
    let path = socket.to_str().unwrap();
    let mut creating = bundle.spawn(&["create", "--console-socket", path, &bundle.id]);
    let mut main = File::from(receive(&listener));
    assert!(creating.wait().unwrap().success());
    bundle.good(&["start", &bundle.id]);
    let text = read_until(&mut main, "22 81");
    assert!(
        text.contains("/dev/pts/0") || text.contains("/dev/console"),
        "{text}"
    );
    main.write_all(b"hello\n").unwrap();
    read_until(&mut main, "got hello");
    // One more terminal for an exec, while the first goes on.
    let mut command = bundle.command(&[
        "exec",
        "--tty",
        "--detach",
        "--console-socket",
        path,
        &bundle.id,
        "sh",
        "-c",
        "tty; read x",
    ]);
    let mut execing = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut second = File::from(receive(&listener));
    assert!(execing.wait().unwrap().success());
    read_until(&mut second, "/dev/pts/1");
    second.write_all(b"\n").unwrap();
    main.write_all(b"\n").unwrap();
    bundle.wait_for("stopped");
}

#[test]
fn in_the_foreground_the_terminals_bytes_come_through() {
    let mut bundle = Bundle::new("tty; ls -l /dev/console");
    bundle.config["process"]["terminal"] = json!(true);
    let output = bundle.call(&["run", &bundle.id]);
    let out = texts(&output).0;
    assert!(
        output.status.success() && out.contains("/dev/") && out.contains("crw"),
        "{output:?}"
    );
}

#[test]
fn a_console_socket_without_a_terminal_is_refused() {
    let bundle = Bundle::new("true");
    let error = bundle.bad(&["create", "--console-socket", "/nowhere", &bundle.id]);
    assert!(error.contains("process.terminal"), "{error}");
}
