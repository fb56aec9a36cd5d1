//! exec with a terminal, exec with input, exit codes, port-forward.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tests_harness::{ContainerSpec, Node, PodSpec, run, wait_until};

use crate::bed::{PATIENCE, in_node, sleeper};

#[test]
fn exec_has_a_terminal_when_asked() {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        let (sandbox, container) = crictl.start_pod(&PodSpec::new("tty"), &sleeper("main"))?;
        // `script` gives crictl a terminal of its own.
        for transport in ["spdy", "websocket"] {
            let line = format!(
                "{} exec --transport {transport} -it {container} sh -c 'tty; echo from $0'",
                crictl.command(&[]).get_program().to_string_lossy()
            );
            let mut command = Command::new("script");
            command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
            let told = node.run_within(PATIENCE, &mut command)?.ok()?;
            ensure!(
                told.stdout.contains("/dev/pts/") || told.stdout.contains("/dev/console"),
                "{transport}: {told}"
            );
            ensure!(told.stdout.contains("from sh\r\n"), "{transport}: {told}");
        }
        crictl.remove_pod(&sandbox)
    });
}

#[test]
fn exec_passes_input_output_and_status() {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        let (sandbox, container) = crictl.start_pod(&PodSpec::new("pipe"), &sleeper("main"))?;
        for transport in ["spdy", "websocket"] {
            let mut command = crictl.command(&[
                "exec",
                "--transport",
                transport,
                "-i",
                &container,
                "sh",
                "-c",
                "cat; echo no >&2; exit 9",
            ]);
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            let mut client = node.spawn(&mut command)?;
            let payload = "0123456789abcdef".repeat(20_000);
            let mut stdin = client.stdin.take().context("the client has a stdin")?;
            let sent = payload.clone();
            let writer = std::thread::spawn(move || stdin.write_all(sent.as_bytes()));
            let told = run::finish("crictl exec", client, PATIENCE)?;
            writer.join().expect("the writer doesn't panic")?;
            ensure!(
                told.stdout.len() == payload.len() && told.stdout == payload,
                "{transport}: {} bytes came back",
                told.stdout.len()
            );
            ensure!(told.stderr.contains("no\n"), "{transport}: {}", told.stderr);
            ensure!(
                told.code != 0 && told.stderr.contains('9'),
                "{transport}: {} {}",
                told.code,
                told.stderr
            );
        }
        crictl.remove_pod(&sandbox)
    });
}

#[test]
fn ports_are_forwarded() {
    in_node(Node::builder(), |node| {
        let crictl = node.crictl()?;
        let web = ContainerSpec::new("web", "orlop.test/test-host:1", &["/test-host", "serve", "8080"]);
        let (sandbox, _) = crictl.start_pod(&PodSpec::new("web"), &web)?;
        for (transport, port) in [("spdy", "18080"), ("websocket", "18081")] {
            let mut forward = crictl.spawn(&[
                "port-forward",
                "--transport",
                transport,
                &sandbox,
                &format!("{port}:8080"),
            ])?;
            let page = || -> Result<bool> {
                let url = format!("http://127.0.0.1:{port}/hostname");
                Ok(node.run("curl", &["-fsS", "--max-time", "5", &url])?.text() == "web")
            };
            let outcome = wait_until("the forwarded page", PATIENCE, page);
            // Several at once, over the same connection.
            let url = format!("http://127.0.0.1:{port}/echo?text=[1-8]");
            let many = node.run("curl", &["-fsS", "-Z", "--max-time", "20", &url]);
            forward.kill()?;
            let told = run::finish("crictl port-forward", forward, PATIENCE)?;
            outcome.with_context(|| format!("{transport}: {told}"))?;
            ensure!(many?.ok()?.text().lines().count() == 8, "{transport}: {told}");
        }
        crictl.remove_pod(&sandbox)
    });
}
